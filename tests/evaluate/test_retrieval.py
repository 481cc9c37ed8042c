"""eegvision.evaluate.retrieval: hand-worked values, brute force, chance level, refusals."""

from itertools import combinations, permutations
from typing import Any, cast

import numpy as np
import pytest
from sklearn import metrics

from eegvision.evaluate.retrieval import (
    assignment,
    average_precision,
    chance_average_precision,
    chance_first_right,
    class_top1,
    csls,
    first_right_ranks,
    kway_accuracy,
    median_rank,
    ranks,
    similarity,
    topk_accuracy,
)
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


def test_the_best_of_several_right_items_has_the_rank_expected_over_tie_breaks():
    # Of five level items two are right: over all orders the first right one is at place 2 on average, (5 + 1)/(2 + 1).
    score, right = np.zeros((1, 5)), np.array([[True, False, False, True, False]])
    places = [min(order.index(0), order.index(3)) + 1 for order in permutations(range(5))]
    assert first_right_ranks(score, right)[0] == pytest.approx(np.mean(places)) == 2


def test_first_right_ranks_by_hand():
    score = np.array([[5, 4, 3, 2], [5, 4, 3, 2], [1, 1, 0, -np.inf]])
    right = np.array([[0, 1, 0, 1], [1, 1, 0, 0], [0, 0, 0, 1]], dtype=bool)
    np.testing.assert_array_equal(first_right_ranks(score, right), [2, 1, 4])


def test_first_right_ranks_of_one_right_item_are_ranks():
    rng = np.random.default_rng(0)
    for score in (rng.integers(0, 4, (40, 9)), rng.normal(size=(40, 9))):
        target = rng.integers(0, 9, 40)
        np.testing.assert_array_equal(first_right_ranks(score, np.eye(9, dtype=bool)[target]), ranks(score, target))


def test_average_precision_by_hand():
    # Right at places 1 and 3 of 4: (1/1 + 2/3) / 2. All four level, two right: each 1.5 / 2.5.
    score = np.array([[9.0, 8.0, 7.0, 6.0], [0.0, 0.0, 0.0, 0.0]])
    right = np.array([[True, False, True, False], [True, False, True, False]])
    np.testing.assert_allclose(average_precision(score, right), [5 / 6, 0.6])


def test_average_precision_of_one_right_item_is_the_reciprocal_rank():
    right = np.eye(3, dtype=bool)[TARGETS]
    np.testing.assert_allclose(average_precision(SCORES, right), 1 / ranks(SCORES, TARGETS))
    np.testing.assert_allclose(average_precision(np.where(right, -np.inf, np.inf), right), 1 / 3)


def test_average_precision_agrees_with_scikit_learn_where_nothing_is_level():
    rng = np.random.default_rng(0)
    score, right = rng.normal(size=(30, 20)), rng.random((30, 20)) < 0.3
    right[:, 0] = True
    expected = [metrics.average_precision_score(*row) for row in zip(right, score, strict=True)]
    np.testing.assert_allclose(average_precision(score, right), expected)


@pytest.mark.parametrize("n_right", [1, 2, 4, 6])
def test_chance_levels_are_the_mean_over_every_order(n_right):
    orders = np.array(list(permutations(range(6))))
    right = np.tile(np.arange(6) < n_right, (len(orders), 1))
    rank = first_right_ranks(orders, right)
    for k in (1, 3, 5, 6, 9):
        assert chance_first_right(6, n_right, k) == pytest.approx(topk_accuracy(rank, k))
    assert chance_average_precision(6, n_right) == pytest.approx(average_precision(orders, right).mean())


def test_several_right_items_refuse_what_cannot_be_scored():
    with pytest.raises(InputError, match="at least one right item"):
        average_precision(SCORES, np.zeros((3, 3), dtype=bool))
    with pytest.raises(InputError, match="marks of the same shape"):
        first_right_ranks(SCORES, np.ones((3, 2), dtype=bool))
    with pytest.raises(InputError, match="7 right items of 6"):
        chance_average_precision(6, 7)
    with pytest.raises(InputError, match="7 right items of 6"):
        chance_first_right(6, 7, 1)


@pytest.mark.parametrize(
    ("normalise", "expected"),
    [("none", [[3, 8], [0, 4]]), ("query", [[0.6, 1.6], [0, 2]]), ("gallery", [[3, 4], [0, 2]])],
)
def test_similarity_by_hand(normalise, expected):
    query, gallery = np.array([[3, 4], [0, 2]]), np.array([[1, 0], [0, 2]])
    np.testing.assert_allclose(similarity(query, gallery, normalise=normalise), expected)
    np.testing.assert_allclose(similarity(query, gallery, normalise="both"), [[0.6, 0.8], [0, 1]])


def test_similarity_of_half_precision_is_computed_in_single():
    query = np.full((1, 4096), 8, dtype=np.float16)
    assert similarity(query, query, normalise="none") == np.array([[8 * 8 * 4096]], dtype=np.float32)


def test_similarity_refuses_vectors_it_cannot_compare():
    vector = np.ones((2, 3))
    with pytest.raises(InputError, match="3 dimensions and the gallery 2"):
        similarity(vector, np.ones((2, 2)), normalise="both")
    with pytest.raises(InputError, match="gallery item 1 has length zero"):
        similarity(vector, vector * [[1], [0]], normalise="both")
    with pytest.raises(InputError, match="query 1 is not finite"):
        similarity(vector * [[1], [np.nan]], vector, normalise="none")
    with pytest.raises(InputError, match="'cosine'"):
        similarity(vector, vector, normalise=cast(Any, "cosine"))


def test_csls_by_hand_takes_the_hub_away():
    # Item 0 is everybody's favourite. With one neighbour: 2 s - best of the row - best of the column.
    score = np.array([[0.9, 0.8], [0.9, 0.1]])
    np.testing.assert_allclose(csls(score, 1), [[0.0, -0.1], [0.0, -1.5]], atol=1e-12)
    np.testing.assert_array_equal(csls(score, 10).argmax(axis=1), [1, 0])


def test_assignment_gives_every_item_once():
    np.testing.assert_array_equal(assignment(np.array([[0.9, 0.8], [0.9, 0.1]])), [1, 0])
    with pytest.raises(InputError, match="average the repetitions"):
        assignment(np.ones((3, 2)))
