"""eegvision.evaluate.saliency: hand-worked values, invariances, chance level, refusals."""

import numpy as np
import pytest

from eegvision.evaluate.saliency import (
    METRICS,
    cc,
    fixation_density,
    human_ceiling,
    in_crop,
    nss,
    score_maps,
    shuffled_auc,
)
from eegvision.vocab import InputError

PEAK = np.array([[0.0, 0.0], [0.0, 4.0]])  # mean 1, standard deviation sqrt(3)
SIDE = 32


def test_nss_by_hand():
    np.testing.assert_allclose(nss(PEAK, np.array([[1, 1], [0, 0]])), [3**0.5, -(3**-0.5)])


@pytest.mark.parametrize(("scale", "offset"), [(7.0, 0.0), (1.0, -5.0)])
def test_scores_ignore_unit_and_offset(scale, offset):
    everywhere = np.argwhere(np.ones((2, 2)))
    changed = scale * PEAK + offset
    np.testing.assert_allclose(nss(changed, everywhere), nss(PEAK, everywhere))
    assert cc(changed, PEAK) == pytest.approx(1)
    assert shuffled_auc(changed, everywhere[3:], everywhere[:3]) == shuffled_auc(PEAK, everywhere[3:], everywhere[:3])


def test_cc_by_hand_and_as_numpy_has_it():
    assert cc(PEAK, -PEAK) == pytest.approx(-1)
    left, right = np.random.default_rng(0).normal(size=(2, 5, 7))
    assert cc(left, right) == pytest.approx(np.corrcoef(left.ravel(), right.ravel())[0, 1])


def test_shuffled_auc_counts_pairs_with_ties_as_halves():
    saliency = np.array([[1.0, 2.0, 2.0, 3.0]])
    own, other = np.array([[0, 1], [0, 3]]), np.array([[0, 0], [0, 2]])
    # 2 against 1 and 2: 1 + 1/2; 3 against 1 and 2: 2.
    assert shuffled_auc(saliency, own, other) == pytest.approx(3.5 / 4)


def test_shuffled_auc_is_the_limit_of_drawing_as_many_negatives_as_positives():
    rng = np.random.default_rng(1)
    saliency = rng.normal(size=(SIDE, SIDE))
    own, other = rng.integers(0, SIDE, (6, 2)), rng.integers(0, SIDE, (40, 2))
    draws = [shuffled_auc(saliency, own, other[rng.choice(40, 6, replace=False)]) for _ in range(2000)]
    assert np.mean(draws) == pytest.approx(shuffled_auc(saliency, own, other), abs=4 * np.std(draws) / 2000**0.5)


def test_a_constant_map_says_nothing():
    flat, places = np.full((4, 4), 0.1), np.array([[0, 1], [2, 3]])
    assert nss(flat, places).tolist() == [0, 0]
    assert cc(flat, np.arange(16.0).reshape(4, 4)) == 0
    assert shuffled_auc(flat, places, places[:, ::-1]) == 0.5


def test_a_density_sums_to_one_also_at_the_edge_and_has_its_width():
    for place in ([0, 0], [15, 16]):
        assert fixation_density(np.array([place]), (SIDE, SIDE), 2.0).sum() == pytest.approx(1)
    density = fixation_density(np.array([[16, 16]]), (33, 33), 2.0)
    away = np.arange(33) - 16
    assert (density.sum(axis=0) * away**2).sum() == pytest.approx(4, rel=0.01)
    np.testing.assert_allclose(fixation_density(np.array([[16, 16]] * 3), (33, 33), 2.0), density)


def looked_at(seed: int, n_images: int = 12, n_viewers: int = 4) -> tuple[dict, dict]:
    """Return viewers' fixations around one place of each image, and around the centre, and these places."""
    rng = np.random.default_rng(seed)
    target = {f"image-{m}": rng.integers(6, SIDE - 6, 2) for m in range(n_images)}
    fixations = {}
    for name, place in target.items():
        near = [np.concatenate([place + rng.normal(0, 2, (4, 2)), rng.normal(16, 3, (3, 2))]) for _ in range(n_viewers)]
        fixations[name] = {f"viewer-{v}": a.round().astype(int).clip(0, SIDE - 1) for v, a in enumerate(near)}
    return fixations, target


def pooled(fixations: dict) -> dict:
    return {name: np.concatenate(list(by_viewer.values())) for name, by_viewer in fixations.items()}


def test_maps_are_ranked_with_people_at_the_top_and_the_centre_at_chance():
    fixations, target = looked_at(2)
    where = np.indices((SIDE, SIDE))
    right = {name: np.exp(-((where - place[:, None, None]) ** 2).sum(axis=0) / 18.0) for name, place in target.items()}
    centre = {name: np.exp(-((where - 16) ** 2).sum(axis=0) / 50.0) for name in target}
    good, middling = score_maps(right, pooled(fixations), 2.0), score_maps(centre, pooled(fixations), 2.0)
    ceiling = human_ceiling(fixations, (SIDE, SIDE), 2.0)
    others = human_ceiling(fixations, (SIDE, SIDE), 2.0, method="one-viewer-out")
    assert 0.35 < middling.auc_M.mean() < 0.6 < good.auc_M.mean() < ceiling.auc_M.mean()
    assert good.nss_M.mean() < ceiling.nss_M.mean()
    np.testing.assert_allclose(ceiling.cc_M, 1)
    assert (others.nss_M < ceiling.nss_M).all()
    assert (others.cc_M < 1).all()
    low, high = good.interval("s-auc")
    assert low < good.auc_M.mean() < high
    assert good.interval("s-auc", level=0.5)[0] > low


def test_one_image_is_scored_as_by_the_metrics_alone():
    fixations = pooled(looked_at(3, n_images=3)[0])
    maps = {name: np.random.default_rng(4).normal(size=(SIDE, SIDE)) for name in list(fixations)[1:2]}
    (name,) = maps
    scores = score_maps(maps, fixations, 2.0)
    others = np.concatenate([places for other, places in fixations.items() if other != name])
    assert scores.auc_M[0] == shuffled_auc(maps[name], fixations[name], others)
    assert scores.nss_M[0] == nss(maps[name], fixations[name]).mean()
    assert scores.cc_M[0] == cc(maps[name], fixation_density(fixations[name], (SIDE, SIDE), 2.0))
    rows = scores.to_rows()
    assert [row["image"] for row in rows] == [None, name]
    assert [rows[1][metric] for metric in METRICS] == [scores.auc_M[0], scores.nss_M[0], scores.cc_M[0]]


def test_places_move_with_the_crop():
    # A picture of 100 x 200, its central square 100 to 110 px, the crop 100 of these: 5 px off on each side.
    places = np.array([[50.0, 100.0], [0.0, 100.0], [50.0, 20.0], [99.9, 149.9], [4.6, 54.6]])
    assert in_crop(places, (100, 200), 100).tolist() == [[50, 50], [0, 0]]


@pytest.mark.parametrize("picture_shape", [(120, 120), (90, 131)])
def test_a_spot_of_a_picture_lands_where_its_crop_shows_it(picture_shape):
    from PIL import Image

    from eegvision.stream.store import RESIZE

    size, side = 60, min(picture_shape)
    place = np.array([[picture_shape[0] * 0.3, picture_shape[1] * 0.6]])
    picture = np.zeros(picture_shape, dtype=np.uint8)
    picture[int(place[0, 0]) - 1 : int(place[0, 0]) + 2, int(place[0, 1]) - 1 : int(place[0, 1]) + 2] = 255
    top, left = ((n - side) // 2 for n in picture_shape)
    square = Image.fromarray(picture).crop((left, top, left + side, top + side)).resize((round(RESIZE * size),) * 2)
    edge = round((square.size[0] - size) / 2)
    seen = np.asarray(square)[edge : edge + size, edge : edge + size]
    brightest = np.unravel_index(seen.argmax(), seen.shape)
    assert np.abs(in_crop(place, picture_shape, size)[0] - brightest).max() <= 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nss(PEAK, np.array([[2, 0]])), r"fixation 0 at \(row 2, column 0\).*2x2.*\(x, y\)"),
        (lambda: nss(PEAK, np.empty((0, 2))), r"\(0, 2\); expected at least one"),
        (lambda: nss(np.array([[np.nan, 1.0]]), np.array([[0, 0]])), "not finite"),
        (lambda: cc(PEAK, PEAK[:1]), r"\(2, 2\).*\(1, 2\).*resize"),
        (lambda: fixation_density(np.array([[0, 0]]), (2, 2), 0.0), "sigma_px is 0.0"),
        (lambda: in_crop(np.array([[5.0, 0.0]]), (5, 5), 4), "row 5.0"),
        (lambda: score_maps({"a": PEAK}, {"a": np.array([[0, 0]])}, 1.0), "1 images with fixations"),
        (
            lambda: score_maps({"c": PEAK}, {"a": np.array([[0, 0]]), "b": np.array([[0, 0]])}, 1.0),
            r"1 of 1 maps.*\['c'\]",
        ),
        (
            lambda: human_ceiling({n: {"v": np.array([[0, 0]])} for n in "ab"}, (2, 2), 1.0, method="one-viewer-out"),
            "'a' has 1 viewers",
        ),
    ],
)
def test_bad_input_is_refused_with_a_remedy(call, message):
    with pytest.raises(InputError, match=message):
        call()
