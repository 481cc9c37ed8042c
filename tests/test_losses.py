"""eegvision.losses: hand-worked values, a naive double loop, gradients, repeated images, invariances, refusals."""

import math
from functools import partial

import pytest
import torch

from eegvision.losses import centre_mse, classification, info_nce, pair_mse, siglip, similarity_scale, triplet
from eegvision.vocab import InputError

# S = EEG @ IMAGE.T, rows EEG and columns images:  [[1, 2, 0], [3, 1, 2], [0, -1, 4]]
EEG = torch.eye(3)
IMAGE = torch.tensor([[1.0, 3.0, 0.0], [2.0, 1.0, -1.0], [0.0, 2.0, 4.0]])


def seeded_triplet(eeg_BD, image_BD, image_ids_B=None):
    return triplet(eeg_BD, image_BD, image_ids_B=image_ids_B, generator=torch.Generator().manual_seed(0))


LOSSES = {
    "triplet-random": seeded_triplet,
    "triplet-all": partial(triplet, negatives="all"),
    "triplet-margin": partial(triplet, negatives="all", margin=0.7),
    "triplet-semi-hard": partial(triplet, negatives="semi-hard", margin=0.7),
    "info_nce": partial(info_nce, scale=2.0),
    "info_nce-one-way": partial(info_nce, scale=2.0, direction="eeg-to-image"),
    "siglip": partial(siglip, scale=3.0, bias=-1.5),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
every_fixed_loss = pytest.mark.parametrize("name", [name for name in LOSSES if name != "triplet-random"])


def embeddings(n_rows=7, n_dims=5, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(n_rows, n_dims, dtype=dtype, generator=generator) for _ in range(2))


def naive(name, eeg_BD, image_BD, ids):
    """Return the loss as a sum over pairs, in the words of its definition."""
    score = [[float(e @ v) for v in image_BD] for e in eeg_BD]
    rows = range(len(ids))
    others = [[j for j in rows if ids[j] != ids[i]] for i in rows]
    if name == "triplet-semi-hard":
        total = 0.0
        for i in rows:
            told_apart = [j for j in others[i] if score[i][j] < score[i][i]]
            if others[i]:
                j = (
                    max(told_apart, key=lambda j: score[i][j])
                    if told_apart
                    else min(others[i], key=lambda j: score[i][j])
                )
                total += max(0.0, score[i][j] - score[i][i] + 0.7)
        return total / len(ids)
    if name.startswith("triplet"):
        margin = 0.7 if name == "triplet-margin" else 0.0
        per_row = [
            sum(max(0.0, score[i][j] - score[i][i] + margin) for j in others[i]) / len(others[i])
            for i in rows
            if others[i]
        ]
        return sum(per_row) / max(1, len(per_row))
    if name.startswith("info_nce"):
        total, n_ways = 0.0, 1 if name == "info_nce-one-way" else 2
        for i in rows:
            for row in (score[i], [score[j][i] for j in rows])[:n_ways]:
                total -= 2 * row[i] - math.log(sum(math.exp(2 * row[j]) for j in [i, *others[i]]))
        return total / n_ways / len(ids)
    total = 0.0
    for i in rows:
        for j in [i, *others[i]]:
            z = 1 if i == j else -1
            total += math.log(1 + math.exp(-z * (3 * score[i][j] - 1.5)))
    return total / len(ids)


def test_triplet_over_all_negatives_by_hand():
    # hinges: row 0: 2-1 = 1 and 0; row 1: 3-1 = 2 and 2-1 = 1; row 2: 0 and 0
    assert triplet(EEG, IMAGE, negatives="all").item() == pytest.approx((0.5 + 1.5 + 0) / 3)


def test_triplet_margin_is_added_before_the_hinge():
    # margin 4.5: row 0: 5.5, 3.5; row 1: 6.5, 5.5; row 2: 0-4+4.5 = .5 and -1-4+4.5 < 0
    assert triplet(EEG, IMAGE, negatives="all", margin=4.5).item() == pytest.approx((4.5 + 6 + 0.25) / 3)


def test_semi_hard_triplet_by_hand():
    # row 0 (own 1): of 2 and 0 only 0 is below; row 1 (own 1): 3 and 2, none below, so 2; row 2 (own 4): 0 above -1
    loss = triplet(EEG, IMAGE, negatives="semi-hard", margin=1.5)
    assert loss.item() == pytest.approx(((0 - 1 + 1.5) + (2 - 1 + 1.5) + 0) / 3)


def test_semi_hard_triplet_never_chooses_the_same_image():
    # Row 0 (own 1) has below it column 1 at 0.5, which shows its own image, and column 2 at 0.
    ids = torch.tensor([7, 7, 8])
    eeg_BD = torch.tensor([[1.0], [0], [0]])
    image_BD = torch.tensor([[1.0], [0.5], [0.0]])
    loss = triplet(eeg_BD, image_BD, image_ids_B=ids, negatives="semi-hard", margin=2.0)
    assert loss.item() == pytest.approx((1 + 2 + 2) / 3)


def test_random_triplet_is_one_of_the_possible_draws_and_each_is_as_likely():
    # one negative of two per row: (1 or 0) + (2 or 1) + (0 or 0), over 3; four equally likely pairs
    generator = torch.Generator().manual_seed(1)
    draws = [round(3 * triplet(EEG, IMAGE, generator=generator).item()) for _ in range(2000)]
    counts = [draws.count(value) for value in (1, 2, 3)]
    assert sum(counts) == 2000
    # expected 500, 1000, 500; five standard deviations are 97, 112, 97
    assert counts == [pytest.approx(500, abs=97), pytest.approx(1000, abs=112), pytest.approx(500, abs=97)]


def test_random_triplet_draws_every_admissible_row_alike_and_never_the_same_image():
    # Row j is the only one whose compatibility with EEG 0 is j, so the loss of row 0 tells which row was drawn.
    ids = torch.tensor([4, 9, 4, 7, 9])
    eeg_BD = torch.tensor([[1.0], [0], [0], [0], [0]])
    image_BD = torch.tensor([[0.0], [1], [2], [3], [4]])
    generator = torch.Generator().manual_seed(0)
    drawn = [round(5 * triplet(eeg_BD, image_BD, image_ids_B=ids, generator=generator).item()) for _ in range(1500)]
    assert set(drawn) == {1, 3, 4}
    assert all(drawn.count(row) == pytest.approx(500, abs=92) for row in (1, 3, 4))  # five standard deviations


def test_random_triplet_repeats_with_the_generator_and_differs_without():
    eeg_BD, image_BD = embeddings(64)
    losses = [triplet(eeg_BD, image_BD, generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
    assert losses[0] == losses[1] != losses[2]


def test_info_nce_by_hand():
    # orthogonal pairs: S = identity, so each of the four softmaxes is e^s / (e^s + 1)
    assert info_nce(torch.eye(2), torch.eye(2), scale=3.0).item() == pytest.approx(math.log(1 + math.exp(-3)))


def test_info_nce_averages_rows_and_columns():
    score_BB = EEG @ IMAGE.T
    by_hand = -(torch.log_softmax(score_BB, 0).diagonal() + torch.log_softmax(score_BB, 1).diagonal()).mean() / 2
    assert info_nce(EEG, IMAGE, scale=1.0).item() == pytest.approx(by_hand.item())


def test_info_nce_in_one_direction_averages_rows():
    by_hand = -torch.log_softmax(EEG @ IMAGE.T, 1).diagonal().mean()
    assert info_nce(EEG, IMAGE, scale=1.0, direction="eeg-to-image").item() == pytest.approx(by_hand.item())


def test_repeats_are_negatives_where_nothing_says_that_they_are_repeats():
    # Two rows of one image with one embedding: as negatives they are a coin's toss, left out they are no question.
    same_BD = torch.ones(2, 3)
    assert info_nce(same_BD, same_BD, scale=5.0).item() == pytest.approx(math.log(2))
    assert info_nce(same_BD, same_BD, scale=5.0, image_ids_B=torch.zeros(2, dtype=torch.int64)).item() == 0


def test_siglip_by_hand():
    # two positives at s + b = 1, two negatives at b = -1: all four terms are log(1 + e^-1), over B = 2
    loss = siglip(torch.eye(2), torch.eye(2), scale=2.0, bias=-1.0)
    assert loss.item() == pytest.approx(2 * math.log(1 + math.exp(-1)))


@every_fixed_loss
@pytest.mark.parametrize("ids", [[0, 1, 2, 3, 4, 5, 6], [5, 5, 2, 7, 2, 5, 1], [3, 3, 3, 3, 3, 3, 8]])
def test_equals_the_definition_summed_pair_by_pair(name, ids):
    eeg_BD, image_BD = embeddings()
    loss = LOSSES[name](eeg_BD, image_BD, image_ids_B=torch.tensor(ids))
    assert loss.item() == pytest.approx(naive(name, eeg_BD, image_BD, ids), rel=1e-12)


@every_loss
def test_without_ids_every_row_is_another_image(loss):
    eeg_BD, image_BD = embeddings()
    assert loss(eeg_BD, image_BD) == loss(eeg_BD, image_BD, image_ids_B=torch.arange(7) * 3 + 1)


@every_loss
@pytest.mark.parametrize("n_rows", [1, 4])
def test_one_image_alone_gives_zero_on_the_graph(loss, n_rows):
    # Every EEG fits the last row's image best, which is no negative.
    eeg_BD = torch.ones(n_rows, 2, requires_grad=True)
    image_BD = torch.arange(2.0 * n_rows).reshape(n_rows, 2).requires_grad_()
    value = loss(eeg_BD, image_BD, image_ids_B=torch.full((n_rows,), 6))
    value.backward()
    assert value.item() == 0
    for x in (eeg_BD, image_BD):
        assert x.grad is not None
        assert torch.count_nonzero(x.grad) == 0


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in ("triplet-random", "triplet-semi-hard")])
def test_scores_between_repeats_of_an_image_have_no_gradient(name):
    # With one-hot EEG, S[i, j] = image[j, i]. Rows 0 and 2 show the same image.
    image_BD = (1 - torch.eye(3)).requires_grad_()
    (gradient_BB,) = torch.autograd.grad(LOSSES[name](EEG, image_BD, image_ids_B=torch.tensor([5, 8, 5])), image_BD)
    assert (gradient_BB.T != 0).tolist() == [[True, True, False], [True, True, True], [False, True, True]]


@every_fixed_loss
@pytest.mark.parametrize("ids", [None, torch.tensor([1, 1, 2, 3, 2, 4, 4])])
def test_gradients_match_finite_differences(name, ids):
    eeg_BD, image_BD = (x.requires_grad_() for x in embeddings())
    assert torch.autograd.gradcheck(lambda e, v: LOSSES[name](e, v, image_ids_B=ids), (eeg_BD, image_BD))


def test_gradients_reach_scale_and_bias():
    eeg_BD, image_BD = embeddings()
    scale, bias = torch.tensor(2.0, dtype=torch.float64), torch.tensor(-1.0, dtype=torch.float64)
    scalars = (scale.requires_grad_(), bias.requires_grad_())
    assert torch.autograd.gradcheck(lambda s: info_nce(eeg_BD, image_BD, scale=s), scalars[:1])
    assert torch.autograd.gradcheck(lambda s, b: siglip(eeg_BD, image_BD, scale=s, bias=b), scalars)


@every_fixed_loss
def test_order_of_the_batch_does_not_matter(name):
    eeg_BD, image_BD = embeddings()
    ids = torch.tensor([1, 1, 2, 3, 2, 4, 4])
    order = torch.randperm(7, generator=torch.Generator().manual_seed(2))
    shuffled = LOSSES[name](eeg_BD[order], image_BD[order], image_ids_B=ids[order])
    assert shuffled.item() == pytest.approx(LOSSES[name](eeg_BD, image_BD, image_ids_B=ids).item(), rel=1e-12)


def test_info_nce_treats_both_sides_alike():
    eeg_BD, image_BD = embeddings()
    swapped = info_nce(image_BD, eeg_BD, scale=2.0)
    assert swapped.item() == pytest.approx(info_nce(eeg_BD, image_BD, scale=2.0).item(), rel=1e-12)


def test_info_nce_of_unrelated_embeddings_is_at_chance():
    # scores vanish, so each softmax is uniform over the batch: log B
    assert info_nce(torch.zeros(20, 3), torch.zeros(20, 3), scale=100.0).item() == pytest.approx(math.log(20))


@every_loss
@pytest.mark.parametrize("is_autocast", [False, True])
def test_bfloat16_embeddings_are_summed_in_float32(loss, is_autocast):
    eeg_BD, image_BD = (x.bfloat16() for x in embeddings(32, 64))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_autocast):
        value = loss(eeg_BD, image_BD)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(eeg_BD.double(), image_BD.double()).item(), rel=1e-5)


@every_loss
def test_a_value_that_is_not_finite_shows(loss):
    eeg_BD, image_BD = embeddings()
    eeg_BD[3, 2] = torch.nan
    assert not torch.isfinite(loss(eeg_BD, image_BD))


@every_loss
def test_refuses_embeddings_that_are_not_in_pairs(loss):
    with pytest.raises(InputError, match=r"\(4, 3\) \(EEG\) and \(5, 3\) \(images\).*\[B, D\] twice"):
        loss(torch.zeros(4, 3), torch.zeros(5, 3))
    with pytest.raises(InputError, match=r"image_ids_B has shape \(3,\) for a batch of 4 rows"):
        loss(torch.zeros(4, 3), torch.zeros(4, 3), image_ids_B=torch.arange(3))


# ---- the factor on similarities


def test_the_scale_begins_where_published_code_has_it():
    # temperature 0.07: CLIP's and NICE's factor 14.29; 2.659 as ATM's code uses it; 2.73 behind UBP's softplus
    p = torch.tensor(math.log(1 / 0.07))
    assert similarity_scale(p, "exp").item() == pytest.approx(14.2857, abs=1e-3)
    assert similarity_scale(p, "raw").item() == pytest.approx(2.659, abs=1e-3)
    assert similarity_scale(p, "softplus").item() == pytest.approx(2.73, abs=5e-3)
    assert similarity_scale(p, "softplus").item() == pytest.approx(math.log(1 + 1 / 0.07))


@pytest.mark.parametrize("form", ["exp", "raw", "softplus"])
def test_the_scale_is_learned_through_its_number(form):
    p = torch.tensor(-0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: similarity_scale(p, form), (p,))


# ---- terms that do not contrast


LABELS = torch.tensor([4, 1, -1, 4, 1, 4, -3])  # two rows without a class


def test_pair_mse_is_the_mean_over_pairs_and_dimensions():
    eeg_BD, image_BD = embeddings()
    by_hand = [
        (float(e) - float(v)) ** 2 for pair in zip(eeg_BD, image_BD, strict=True) for e, v in zip(*pair, strict=True)
    ]
    assert pair_mse(eeg_BD, image_BD).item() == pytest.approx(sum(by_hand) / 35, rel=1e-12)


def test_centre_mse_compares_with_the_mean_image_of_the_class():
    eeg_BD, image_BD = embeddings()
    total = 0.0
    for members in ([0, 3, 5], [1, 4]):
        centre = [sum(float(image_BD[j, d]) for j in members) / len(members) for d in range(5)]
        total += sum((float(eeg_BD[i, d]) - centre[d]) ** 2 for i in members for d in range(5))
    assert centre_mse(eeg_BD, image_BD, LABELS).item() == pytest.approx(total / 5 / 5, rel=1e-12)


def test_centres_of_classes_seen_once_are_their_images():
    eeg_BD, image_BD = embeddings()
    assert centre_mse(eeg_BD, image_BD, torch.arange(7)).item() == pytest.approx(pair_mse(eeg_BD, image_BD).item())


def test_classification_is_the_mean_over_rows_with_a_class():
    logit_BK = next(embeddings())
    terms = [
        math.log(sum(math.exp(float(x)) for x in row)) - float(row[label])
        for row, label in zip(logit_BK, LABELS.tolist(), strict=True)
        if label >= 0
    ]
    assert len(terms) == 5
    assert classification(logit_BK, LABELS).item() == pytest.approx(sum(terms) / 5, rel=1e-12)


def test_gradients_of_further_terms_match_finite_differences():
    eeg_BD, image_BD = (x.requires_grad_() for x in embeddings())
    assert torch.autograd.gradcheck(pair_mse, (eeg_BD, image_BD))
    assert torch.autograd.gradcheck(lambda e, v: centre_mse(e, v, LABELS), (eeg_BD, image_BD))
    assert torch.autograd.gradcheck(lambda logit_BK: classification(logit_BK, LABELS), (eeg_BD,))


def test_rows_without_a_class_take_no_part_and_nothing_else_leaves_zero_on_the_graph():
    for term in (lambda e, v: centre_mse(e, v, LABELS), lambda e, _: classification(e, LABELS)):
        eeg_BD, image_BD = (x.requires_grad_() for x in embeddings())
        (gradient_BD,) = torch.autograd.grad(term(eeg_BD, image_BD), eeg_BD)
        assert gradient_BD.any(dim=1).tolist() == (LABELS >= 0).tolist()
    none = torch.full((7,), -1)
    for term in (lambda e, v: centre_mse(e, v, none), lambda e, v: classification(e + v, none)):
        inputs = [x.requires_grad_() for x in embeddings()]
        value = term(*inputs)
        assert value.item() == 0
        assert all(not gradient.any() for gradient in torch.autograd.grad(value, inputs))


@pytest.mark.parametrize("is_autocast", [False, True])
def test_further_terms_of_bfloat16_are_summed_in_float32(is_autocast):
    eeg_BD, image_BD = (x.bfloat16() for x in embeddings(32, 64))
    label_B = torch.arange(32) % 5
    terms = (pair_mse, lambda e, v: centre_mse(e, v, label_B), lambda e, _: classification(e, label_B))
    for term in terms:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_autocast):
            value = term(eeg_BD, image_BD)
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(term(eeg_BD.double(), image_BD.double()).item(), rel=1e-5)


def test_further_terms_refuse_what_is_not_in_rows():
    with pytest.raises(InputError, match=r"\(4, 3\) \(EEG\) and \(5, 3\) \(images\)"):
        pair_mse(torch.zeros(4, 3), torch.zeros(5, 3))
    with pytest.raises(InputError, match=r"label_B has shape \(3,\) for a batch of 4 rows"):
        centre_mse(torch.zeros(4, 3), torch.zeros(4, 3), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(InputError, match=r"label_B has shape \(3,\) for a batch of 4 rows"):
        classification(torch.zeros(4, 3), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(InputError, match=r"logits have shape \(4,\); expected \[B, K\]"):
        classification(torch.zeros(4), torch.zeros(4, dtype=torch.int64))
