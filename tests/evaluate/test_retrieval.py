"""eegvision.evaluate.retrieval: hand-worked values, brute force, chance level, refusals."""

from itertools import combinations

import numpy as np
import pytest

from eegvision.evaluate.retrieval import class_top1, kway_accuracy, median_rank, ranks, topk_accuracy
from eegvision.vocab import InputError

# Targets 0, 1, 2:  first of three · last, two above · tied for the two best places
SCORES = np.array([[0.9, 0.1, 0.5], [0.8, 0.2, 0.3], [0.1, 0.7, 0.7]])
TARGETS = np.array([0, 1, 2])


def test_ranks_by_hand():
    np.testing.assert_array_equal(ranks(SCORES, TARGETS), [1, 3, 1.5])


def test_ranks_are_float64_whatever_the_scores_are():
    for dtype in (np.float16, np.float32, np.int64):
        assert ranks((10 * SCORES).astype(dtype), TARGETS).dtype == np.float64


@pytest.mark.parametrize("n_levels", [3, 1000])
def test_ranks_equal_a_stable_sort_both_ways(n_levels):
    # With ties, the average rank is the mean of the best and the worst place a sort can give.
    rng = np.random.default_rng(0)
    scores, targets = rng.integers(0, n_levels, (50, 17)), rng.integers(0, 17, 50)
    expected = []
    for row, target in zip(scores, targets, strict=True):
        best = sorted(row, reverse=True).index(row[target]) + 1
        worst = 17 - sorted(row).index(row[target])
        expected.append((best + worst) / 2)
    np.testing.assert_array_equal(ranks(scores, targets), expected)


def test_ranks_of_more_rows_than_one_chunk():
    # 2^24 scores are compared at a time: 4096 columns make chunks of 4096 rows.
    scores = np.broadcast_to(np.arange(4096, dtype=np.int16), (5000, 4096))
    np.testing.assert_array_equal(ranks(scores, np.arange(5000) % 4096), 4096 - np.arange(5000) % 4096)


def test_ranks_ignore_increasing_changes_of_the_scores():
    np.testing.assert_array_equal(ranks(np.exp(3 * SCORES - 1), TARGETS), ranks(SCORES, TARGETS))


def test_a_model_that_scores_everything_alike_is_in_the_middle_not_first():
    np.testing.assert_array_equal(ranks(np.zeros((4, 7)), np.arange(4)), 4.0)


def test_ranks_refuse_nan_which_would_look_perfect():
    scores = SCORES.copy()
    scores[1] = np.nan
    with pytest.raises(InputError, match="query 1 contain NaN"):
        ranks(scores, TARGETS)


@pytest.mark.parametrize("targets", [[0, 1, 3], [0, -1, 2]])
def test_ranks_refuse_a_target_outside_the_gallery(targets):
    with pytest.raises(InputError, match="3 columns"):
        ranks(SCORES, np.array(targets))


def test_ranks_refuse_shapes_that_disagree():
    with pytest.raises(InputError, match="each of 3 rows"):
        ranks(SCORES, np.array([0, 1]))
    with pytest.raises(InputError, match="queries x gallery"):
        ranks(SCORES[0], TARGETS)


def test_topk_and_median_by_hand():
    rank_Q = np.array([1, 3, 1.5, 8])
    assert [topk_accuracy(rank_Q, k) for k in (1, 2, 3, 8)] == [0.25, 0.5, 0.75, 1.0]
    assert median_rank(rank_Q) == 2.25


def test_scores_of_no_queries_are_refused():
    for score in (median_rank, lambda none: topk_accuracy(none, 1), lambda none: kway_accuracy(none, 4, 2)):
        with pytest.raises(InputError, match="at least one query"):
            score(np.array([]))


@pytest.mark.parametrize("k", [2, 3, 5, 6])
def test_kway_equals_drawing_every_set_of_candidates(k):
    # Of a gallery of 6 ranked 1..6, the target of rank r wins where every other candidate ranks below it.
    for rank in range(1, 7):
        others = [other for other in range(1, 7) if other != rank]
        draws = [all(other > rank for other in drawn) for drawn in combinations(others, k - 1)]
        assert kway_accuracy(np.array([rank]), 6, k) == pytest.approx(np.mean(draws))


def test_kway_of_two_tied_is_the_mean_of_either_order():
    either = (kway_accuracy(np.array([2.0]), 9, 4) + kway_accuracy(np.array([3.0]), 9, 4)) / 2
    assert kway_accuracy(np.array([2.5]), 9, 4) == pytest.approx(either)


def test_kway_of_a_larger_tie_is_exact_for_two_and_a_lower_bound_beyond():
    # Ranks 2, 3, 4, 5 tied: all report 3.5.
    tied, broken = np.array([3.5]), np.array([2.0, 3.0, 4.0, 5.0])
    assert kway_accuracy(tied, 9, 2) == pytest.approx(kway_accuracy(broken, 9, 2))
    assert kway_accuracy(tied, 9, 5) < kway_accuracy(broken, 9, 5)


@pytest.mark.parametrize("k", [2, 10, 200])
def test_kway_of_uniform_ranks_is_chance(k):
    assert kway_accuracy(np.arange(1, 201), 200, k) == pytest.approx(1 / k)


def test_kway_refuses_more_candidates_than_the_gallery_holds():
    with pytest.raises(InputError, match="gallery's size 6"):
        kway_accuracy(np.array([1.0]), 6, 7)
    with pytest.raises(InputError, match="expected 1 to 6"):
        kway_accuracy(np.array([7.0]), 6, 2)


def test_class_top1_by_hand():
    # The best items are 0 (class 5), 0 (class 5), then 1 and 2 tied (classes 6, 5), of which one is right.
    assert class_top1(SCORES, np.array([5, 6, 5]), np.array([5, 6, 6])) == pytest.approx((1 + 0 + 0.5) / 3)


def test_class_top1_of_a_collapsed_model_is_the_share_of_the_class():
    assert class_top1(np.ones((2, 4)), np.array([0, 0, 0, 1]), np.array([0, 1])) == pytest.approx((3 / 4 + 1 / 4) / 2)


def test_class_top1_refuses_labels_of_another_gallery():
    with pytest.raises(InputError, match="gallery and query labels"):
        class_top1(SCORES, np.array([5, 6]), np.array([5, 6, 6]))
