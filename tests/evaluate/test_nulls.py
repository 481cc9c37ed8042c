"""eegvision.evaluate.nulls: permutations, the maximum over configurations, its error rate over simulated sweeps."""

from itertools import permutations

import numpy as np
import pytest

from eegvision.evaluate.nulls import (
    answer_permutation,
    hit_pairs,
    hits_under,
    max_statistic,
    permutations_within,
    sweep_permutation,
)
from eegvision.evaluate.retrieval import ranks
from eegvision.evaluate.statistics import label_permutation_p, permutation_p
from eegvision.vocab import InputError


def drawn(stratum, n_permutations, seed=0):
    return np.concatenate([rows for _, rows in permutations_within(np.asarray(stratum), n_permutations, seed)])


def test_permutations_stay_in_their_stratum_and_are_uniform():
    stratum = np.array(["b", "a", "b", "a", "b"])
    permutation = drawn(stratum, 6000)
    assert (np.sort(permutation, axis=1) == np.arange(5)).all()
    assert (stratum[permutation] == stratum).all()
    kinds, counts = np.unique(permutation, axis=0, return_counts=True)
    assert len(kinds) == 12
    assert counts.min() > 500 - 4 * 22
    assert counts.max() < 500 + 4 * 22


def test_permutations_depend_on_the_seed_and_not_on_how_many_follow():
    # 2^21 numbers make one chunk: 3,000 items are drawn 699 at a time.
    many = drawn(np.zeros(3000), 701)
    np.testing.assert_array_equal(many[:5], drawn(np.zeros(3000), 5))
    assert (many[0] != drawn(np.zeros(3000), 1, seed=1)[0]).any()
    with pytest.raises(InputError, match="0 permutations"):
        drawn(np.zeros(3), 0)


@pytest.mark.parametrize("n_queries", [1, 60])
def test_hits_are_counted_alike_by_table_and_by_comparison_as_by_ranking_again(n_queries):
    # 20 images: one query is compared pair by pair, sixty go through a table.
    rng = np.random.default_rng(0)
    score, target = rng.integers(0, 6, (n_queries, 20)), rng.integers(0, 20, n_queries)
    permutation = drawn(np.zeros(20), 50)
    pairs = hit_pairs(score, target, 3)
    assert (len(pairs[0]) >= 5) == (n_queries == 60)
    expected = [(ranks(score, order[target]) <= 3).sum() for order in permutation]
    np.testing.assert_array_equal(hits_under(*pairs, permutation), expected)


def test_max_statistic_by_hand():
    null = np.array([[1, 0, 9], [8, 0, 0], [4, 7, 0], [2, 2, 2]])
    result = max_statistic(np.array([5.0, 3.0, 8.0]), null)
    np.testing.assert_allclose(result.p_M, [2 / 5, 2 / 5, 2 / 5])
    np.testing.assert_allclose(result.single_step_M, [4 / 5, 4 / 5, 3 / 5])
    # Configuration 2 first, against all; 0 against 0 and 1; 1 against itself, but not below 0's.
    np.testing.assert_allclose(result.step_down_M, [3 / 5, 3 / 5, 3 / 5])
    assert result.n_permutations == 4


def test_step_down_lies_between_the_single_p_and_single_step():
    rng = np.random.default_rng(0)
    for _ in range(50):
        result = max_statistic(rng.normal(1, 1, 6), rng.normal(size=(99, 6)))
        assert (result.p_M <= result.step_down_M).all()
        assert (result.step_down_M <= result.single_step_M).all()
        order = np.argsort(-result.statistic_M)
        assert (np.diff(result.step_down_M[order]) >= 0).all()


def test_one_configuration_needs_no_correction():
    rng = np.random.default_rng(0)
    targets = np.repeat(np.arange(10), 3)
    scores = rng.normal(size=(30, 10)) + 0.5 * np.eye(10)[targets]
    result = sweep_permutation([scores], targets, 2, n_permutations=500, seed=4)
    alone = permutation_p(scores, targets, 2, n_permutations=500, seed=4)
    assert (result.statistic_M[0], result.p_M[0]) == alone
    assert result.single_step_M[0] == result.step_down_M[0] == alone[1]


def test_copies_of_one_configuration_cost_nothing():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(40, 40)) + 1.2 * np.eye(40)
    one = sweep_permutation([scores], np.arange(40), 1, n_permutations=500)
    many = sweep_permutation((scores for _ in range(50)), np.arange(40), 1, n_permutations=500)
    np.testing.assert_array_equal(many.single_step_M, one.p_M[0])
    np.testing.assert_array_equal(many.step_down_M, one.p_M[0])


def test_a_sweep_approaches_the_share_of_all_permutations():
    rng = np.random.default_rng(2)
    scores = rng.normal(size=(3, 5, 5)) + np.array([0, 0.5, 1])[:, None, None] * np.eye(5)
    hits = np.array(
        [[(ranks(score, np.array(order)) <= 1).mean() for score in scores] for order in permutations(range(5))]
    )
    result = sweep_permutation(scores, np.arange(5), 1, n_permutations=5000)
    np.testing.assert_allclose(result.statistic_M, hits[0])
    np.testing.assert_allclose(result.p_M, (hits >= hits[0]).mean(axis=0), atol=0.03)
    np.testing.assert_allclose(result.single_step_M, (hits.max(axis=1)[:, None] >= hits[0]).mean(axis=0), atol=0.03)


def test_strata_hold_for_the_whole_sweep():
    rng = np.random.default_rng(0)
    block = np.repeat(np.arange(8), 5)
    scores = rng.normal(size=(4, 40, 40)) + 4 * (block[:, None] == block)
    free = sweep_permutation(scores, np.arange(40), 1, n_permutations=499)
    within = sweep_permutation(scores, np.arange(40), 1, stratum_N=block, n_permutations=499)
    assert (free.step_down_M < 0.01).all()
    assert (within.step_down_M > 0.05).all()


def test_guessing_is_called_better_than_guessing_in_one_sweep_of_twenty():
    # 1,000 sweeps of 8 configurations that guess, their mistakes partly shared; 40 queries, top-10 of 40.
    rng = np.random.default_rng(0)
    false_single = false_step = false_uncorrected = 0
    for sweep in range(1000):
        shared = rng.normal(size=(40, 40))
        scores = shared + rng.normal(size=(8, 40, 40))
        result = sweep_permutation(scores, np.arange(40), 10, n_permutations=199, seed=sweep)
        false_single += result.single_step_M.min() <= 0.05
        false_step += result.step_down_M.min() <= 0.05
        false_uncorrected += result.p_M.min() <= 0.05
    # Hits are whole numbers, so the rate may lie below 5 %; three standard errors of it are 2.1 %.
    assert 25 <= false_single <= 71
    assert false_step == false_single  # the first step of step-down is single step
    assert false_uncorrected > 140


def test_the_error_rate_of_the_maximum_is_nominal_for_continuous_statistics():
    rng = np.random.default_rng(0)
    mixing = np.linalg.cholesky(0.6 + 0.4 * np.eye(20))
    false = sum(
        max_statistic(*(draws[0], draws[1:])).single_step_M.min() <= 0.05
        for draws in (rng.normal(size=(200, 20)) @ mixing.T for _ in range(1000))
    )
    assert 30 <= false <= 70


def test_step_down_keeps_its_error_rate_beside_configurations_that_are_truly_better():
    rng = np.random.default_rng(0)
    false = found_more = 0
    for _ in range(1000):
        observed = rng.normal(size=10) + np.array([4.0] * 5 + [0.0] * 5)
        result = max_statistic(observed, rng.normal(size=(199, 10)))
        false += result.step_down_M[5:].min() <= 0.05
        found_more += (result.step_down_M <= 0.05).sum() > (result.single_step_M <= 0.05).sum()
    assert 25 <= false <= 71
    assert found_more > 10


def test_a_sweep_refuses_what_cannot_be_compared():
    with pytest.raises(InputError, match="no configuration"):
        sweep_permutation([], np.arange(3), 1)
    with pytest.raises(InputError, match="configuration 1 has scores of shape"):
        sweep_permutation([np.eye(3), np.eye(4)], np.arange(3), 1)
    with pytest.raises(InputError, match="one stratum each"):
        sweep_permutation([np.eye(3)], np.arange(3), 1, stratum_N=np.zeros(2))
    with pytest.raises(InputError, match="do not fit"):
        max_statistic(np.zeros(3), np.zeros((5, 2)))
    with pytest.raises(InputError, match="not finite"):
        max_statistic(np.array([np.nan]), np.zeros((5, 1)))


def test_answers_alone_give_the_same_p_values_as_all_scores():
    rng = np.random.default_rng(4)
    image_Q = np.repeat(np.arange(20), 3)
    scores = [rng.normal(size=(60, 20)) + level * np.eye(20)[image_Q] for level in (0.0, 0.5, 2.0)]
    answer_MQ = np.stack([score_QN.argmax(axis=1) for score_QN in scores])
    whole = sweep_permutation(scores, image_Q, 1, n_permutations=500)
    found = answer_permutation(answer_MQ, image_Q, np.arange(20), n_permutations=500)
    for name in ("statistic_M", "p_M", "single_step_M", "step_down_M"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))


def test_classes_as_keys_give_the_p_value_of_one_classifier_alone():
    rng = np.random.default_rng(5)
    key_N = np.array(["star", "ring", "disc"])[np.arange(12) % 3]
    image_Q = np.repeat(np.arange(12), 4)
    answer_Q = np.where(rng.random(48) < 0.5, key_N[image_Q], "cross")
    found = answer_permutation(answer_Q[None], image_Q, key_N, n_permutations=999, seed=3)
    share, p = label_permutation_p(answer_Q, key_N[image_Q], image_Q, n_permutations=999, seed=3)
    assert (found.statistic_M[0], found.p_M[0]) == (share, p)


def test_the_best_of_many_guessers_is_not_taken_for_one_that_knows():
    rng = np.random.default_rng(6)
    image_Q = np.repeat(np.arange(30), 2)
    found = answer_permutation(rng.integers(30, size=(50, 60)), image_Q, np.arange(30), n_permutations=1000)
    assert found.p_M.min() < 0.05 < found.step_down_M.min()


@pytest.mark.parametrize(
    ("answer_MQ", "image_Q", "message"),
    [
        (np.zeros((2, 3), dtype=int), np.zeros(4, dtype=int), "one image for each query"),
        (np.zeros((1, 2), dtype=int), np.full(2, 5), "images 5 to 5, but 5 keys"),
        (np.zeros((0, 2), dtype=int), np.zeros(2, dtype=int), "configurations x queries"),
    ],
)
def test_answers_that_fit_no_images_are_refused(answer_MQ, image_Q, message):
    with pytest.raises(InputError, match=message):
        answer_permutation(answer_MQ, image_Q, np.arange(5))
