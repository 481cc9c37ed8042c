"""eegvision.evaluate.answers: chance and losses by hand, false alarms at the nominal rate, Holm by hand."""

import numpy as np
import pytest

from eegvision.evaluate.answers import Answers, against_chance, crossed, drop, holm, selection
from eegvision.vocab import InputError

IMAGES, CLASSES, SHOWN = 30, 5, 4
LABEL_M = np.arange(IMAGES) % CLASSES


def answers(predicted_SQ: np.ndarray) -> Answers:
    """Every picture is shown `SHOWN` times; its class is the truth."""
    image_Q = np.tile(np.arange(IMAGES), SHOWN)
    query_Q = np.array([f"segment-{n}" for n in range(len(image_Q))])
    return Answers(predicted_SQ=predicted_SQ, truth_Q=LABEL_M[image_Q], image_Q=image_Q, query_Q=query_Q)


def guesses(rng: np.random.Generator, n_seeds: int = 3, right: float | np.ndarray = 0.0) -> np.ndarray:
    """What a picture evokes is the same for all its presentations more often than not: answers are not independent."""
    own_SM = rng.integers(0, CLASSES, (n_seeds, IMAGES))
    guess_SQ = np.where(
        rng.random((n_seeds, IMAGES * SHOWN)) < 0.7,
        np.tile(own_SM, (1, SHOWN)),
        rng.integers(0, CLASSES, (n_seeds, IMAGES * SHOWN)),
    )
    return np.where(rng.random(guess_SQ.shape) < right, np.tile(LABEL_M, SHOWN), guess_SQ)


def test_chance_is_the_share_of_pictures_of_the_class_that_was_answered():
    image_Q = np.array([0, 1, 2, 3])
    predicted_SQ = np.array([[0, 0, 0, 0], [1, 1, 1, 7]])
    found = against_chance(
        Answers(predicted_SQ=predicted_SQ, truth_Q=np.array([0, 0, 0, 1]), image_Q=image_Q, query_Q=image_Q)
    )
    assert found.value == pytest.approx(3 / 8)
    assert found.chance == pytest.approx((4 * 3 / 4 + 3 * 1 / 4 + 0) / 8)
    assert found.n == 4


def test_pictures_as_truth_give_the_chance_of_retrieval():
    image_Q = np.repeat(np.arange(IMAGES), SHOWN)
    found = against_chance(
        Answers(predicted_SQ=image_Q[None], truth_Q=image_Q, image_Q=image_Q, query_Q=np.arange(len(image_Q)))
    )
    assert (found.value, found.chance) == (1.0, pytest.approx(1 / IMAGES))
    assert found.p == pytest.approx(1 / 10_001)


def test_guessing_is_above_chance_in_one_case_of_twenty_whoever_answers_alike():
    rng = np.random.default_rng(1)
    p = [against_chance(answers(guesses(rng)), n_permutations=199).p for _ in range(300)]
    assert 0.02 <= np.mean(np.array(p) <= 0.05) <= 0.085  # 0.05 within three standard errors


def test_one_picture_cannot_be_tested():
    one = Answers(predicted_SQ=np.zeros((1, 2)), truth_Q=np.zeros(2), image_Q=np.zeros(2), query_Q=np.array(["a", "b"]))
    with pytest.raises(InputError, match="1 picture is left"):
        against_chance(one)


def test_a_loss_is_measured_on_the_queries_in_common_in_whatever_order():
    right = answers(np.tile(LABEL_M, SHOWN)[None].repeat(3, axis=0))
    wrong_SQ = right.predicted_SQ.copy()
    wrong_SQ[:, : IMAGES // 2] += 1
    lost = drop(right, answers(wrong_SQ).of(right.query_Q[IMAGES - 1 :: -1]), is_matched=True)
    assert lost.difference == pytest.approx(-0.5)
    assert lost.shared.value == 1.0
    assert lost.apart.value == 0.5
    assert lost.lost == pytest.approx(0.5 / 0.8, rel=0.05)
    assert lost.p < 0.001
    assert lost.high < 0


def test_a_loss_of_nothing_is_seen_in_one_case_of_twenty_at_most():
    """Models of one kind differ by their seed as well: some are better on all pictures."""
    rng = np.random.default_rng(3)
    alarms = 0
    for _ in range(80):
        skill_A, skill_B = (rng.normal(0.5, 0.08, 3) for _ in range(2))
        both = [answers(np.concatenate([guesses(rng, 1, s) for s in skill])) for skill in (skill_A, skill_B)]
        lost = drop(*both, is_matched=True, n_resamples=400)
        alarms += lost.p <= 0.05
    assert alarms <= 9  # of 80 at 0.05: more in 1 of 100 cases


def test_of_one_seed_a_loss_cannot_be_told_from_a_poorer_start():
    rng = np.random.default_rng(0)
    assert drop(answers(guesses(rng, 1, 0.9)), answers(guesses(rng, 1, 0.1)), is_matched=True).p == 1.0


def test_holm_by_hand():
    corrected = holm({"a": 0.03, "b": 0.01, "c": 0.02, "d": 0.9})
    assert corrected == pytest.approx({"b": 0.04, "c": 0.06, "a": 0.06, "d": 0.9})


def test_rules_for_the_pass_by_hand():
    found = selection(np.array([[0.1, 0.5, 0.2], [0.3, 0.1, 0.2]]))
    # The first seed goes by the second's best pass, the first one, and the other way round.
    assert (found.fixed, found.chosen) == (pytest.approx(0.2), pytest.approx(0.4))
    assert found.by_other_seeds == pytest.approx((0.1 + 0.1) / 2)
    assert selection(np.array([[0.1, 0.5]])).by_other_seeds is None


def test_choosing_among_noise_is_a_gap_and_choosing_by_others_is_none():
    score_SP = np.random.default_rng(0).normal(0.2, 0.05, (40, 20))
    found = selection(score_SP)
    assert found.chosen > 0.26
    assert found.by_other_seeds == pytest.approx(0.2, abs=0.03)


# ---- folds, each model its own control


def in_folds(rng: np.random.Generator, n_seeds: int, loss: float) -> tuple[list[Answers], np.ndarray]:
    """Five folds of pictures; models and folds differ in skill and ease; away from home a model is worse by `loss`."""
    fold_Q = np.tile(np.arange(IMAGES) % 5, SHOWN)
    skill_FS, ease_G = rng.normal(0.5, 0.08, (5, n_seeds)), rng.normal(0, 0.1, 5)
    parts = []
    for fold in range(5):
        right_SQ = np.clip(skill_FS[fold][:, None] + ease_G[fold_Q] - loss * (fold_Q == fold), 0, 1)
        parts.append(answers(guesses(rng, n_seeds, right_SQ)))
    return parts, fold_Q


def test_a_model_apart_is_compared_with_the_others_on_the_same_queries():
    right = answers(np.tile(LABEL_M, SHOWN)[None])
    fold_Q = np.tile(np.arange(IMAGES) % 5, SHOWN)
    parts = []
    for fold in range(5):
        predicted_SQ = right.predicted_SQ.copy()
        predicted_SQ[:, fold_Q == fold] = CLASSES  # wrong
        parts.append(answers(predicted_SQ))
    found = crossed(parts, fold_Q)
    assert (found.shared.value, found.apart.value, found.difference) == (1.0, 0.0, -1.0)
    assert found.p == pytest.approx(1 / 120, rel=0.2)  # of all orders of five folds one is as bad
    assert crossed([right] * 5, fold_Q).p == 1.0
    assert found.shared.n == IMAGES


@pytest.mark.parametrize("n_seeds", [1, 3])
def test_folds_alarm_in_one_case_of_twenty_where_models_and_folds_differ_but_blocks_do_not_matter(n_seeds):
    rng = np.random.default_rng(n_seeds)
    p = [crossed(*in_folds(rng, n_seeds, 0.0), n_permutations=199).p for _ in range(100)]
    assert np.mean(np.array(p) <= 0.05) <= 0.12  # of 100 at 0.05: more in 1 of 200 cases


def test_a_leak_is_seen_from_one_seed():
    rng = np.random.default_rng(0)
    p = [crossed(*in_folds(rng, 1, 0.4), n_permutations=999).p for _ in range(10)]
    assert np.mean(np.array(p) <= 0.0125) >= 0.8


def test_a_fold_without_queries_is_refused():
    parts, fold_Q = in_folds(np.random.default_rng(0), 1, 0.0)
    with pytest.raises(InputError, match="the queries lie in 4 of 5 folds"):
        crossed(parts, np.where(fold_Q == 2, -1, fold_Q))
