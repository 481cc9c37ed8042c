"""eegvision.evaluate.comparisons: hand-worked values, exact tests, error rates, seeds as a factor, refusals."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from eegvision.evaluate.comparisons import compare_pair, mcnemar_p, seed_components, sign_flip
from eegvision.evaluate.statistics import bootstrap_interval, twoway_interval
from eegvision.vocab import InputError


def test_mcnemar_by_hand():
    # Only A right three times, only B never: 2 (1/2)^3.
    assert mcnemar_p(np.array([1, 1, 1, 1, 0]), np.array([0, 0, 0, 1, 0])) == pytest.approx(0.25)
    assert mcnemar_p(np.array([1, 0]), np.array([0, 1])) == 1
    assert mcnemar_p(np.array([1, 0]), np.array([1, 0])) == 1


def test_mcnemar_is_the_binomial_test_of_the_queries_that_differ():
    rng = np.random.default_rng(0)
    a, b = rng.random(80) < 0.5, rng.random(80) < 0.3
    expected = stats.binomtest(int((a & ~b).sum()), int((a ^ b).sum())).pvalue
    assert mcnemar_p(a, b) == pytest.approx(expected)
    assert mcnemar_p(b, a) == pytest.approx(expected)


def test_mcnemar_refuses_scores_that_are_not_hits():
    with pytest.raises(InputError, match="hits of 0 or 1"):
        mcnemar_p(np.array([0.5, 1]), np.array([0, 1]))


def test_sign_flip_of_few_clusters_is_exact():
    rng = np.random.default_rng(0)
    difference, cluster = rng.normal(0.4, 1, (18, 3)), np.repeat(np.arange(6), 3)
    total = difference.reshape(6, 3, 3).sum(axis=1)
    flipped = np.abs(np.array(list(product((1, -1), repeat=6))) @ total) / np.sqrt((total**2).sum(axis=0))
    result = sign_flip(difference, cluster)
    np.testing.assert_allclose(result.statistic_M, flipped[0])
    np.testing.assert_allclose(result.p_M, (flipped >= flipped[0] - 1e-9).mean(axis=0))
    largest = flipped.max(axis=1)[:, None]
    np.testing.assert_allclose(result.single_step_M, (largest >= flipped[0] - 1e-9).mean(axis=0))


def test_sign_flip_of_many_clusters_approaches_the_exact_p():
    rng = np.random.default_rng(0)
    difference, cluster = rng.normal(0.3, 1, (12, 2)), np.arange(12)
    exact = sign_flip(difference, cluster, n_permutations=4096)
    drawn = sign_flip(difference, cluster, n_permutations=4095)
    assert exact.n_permutations == 2047
    assert drawn.n_permutations == 4095
    np.testing.assert_allclose(drawn.p_M, exact.p_M, atol=0.03)


def test_sign_flip_p_is_uniform_where_there_is_no_difference():
    p = []
    for seed in range(600):
        difference = np.random.default_rng(seed).standard_t(3, size=(30, 1))
        p.append(sign_flip(difference, np.arange(30), n_permutations=399, seed=10_000 + seed).p_M[0])
    # p moves in steps of 1/400; 1.63 / sqrt(600) is the 1 % bound of Kolmogorov.
    assert stats.kstest(p, "uniform").statistic < 1.63 / 600**0.5 + 1 / 400


def test_comparing_many_with_one_baseline_finds_a_difference_in_one_sweep_of_twenty():
    # 1,000 sweeps: eight configurations and their baseline alike, 40 images seen four times with effects of their own.
    rng = np.random.default_rng(0)
    image = np.repeat(np.arange(40), 4)
    corrected = uncorrected = by_query = 0
    for sweep in range(1000):
        score = np.repeat(rng.normal(size=(40, 9)), 4, axis=0) + rng.normal(size=(160, 9))
        difference = score[:, 1:] - score[:, :1]
        result = sign_flip(difference, image, n_permutations=199, seed=sweep)
        corrected += result.step_down_M.min() <= 0.05
        uncorrected += result.p_M.min() <= 0.05
        by_query += sign_flip(difference, np.arange(160), n_permutations=199, seed=sweep).step_down_M.min() <= 0.05
    assert 30 <= corrected <= 71
    assert uncorrected > 120
    assert by_query > 200


def test_a_column_without_any_difference_is_no_evidence():
    difference = np.array([[0.0, 1.0], [0.0, 2.0], [0.0, 1.5]])
    result = sign_flip(difference, np.arange(3))
    np.testing.assert_allclose(result.p_M, [1, 0.25])


def test_sign_flip_refuses_what_has_nothing_to_flip():
    with pytest.raises(InputError, match="two clusters"):
        sign_flip(np.ones((3, 1)), np.zeros(3))
    with pytest.raises(InputError, match="one cluster per query"):
        sign_flip(np.ones((3, 1)), np.zeros(2))


def test_a_pair_is_compared_by_all_three_means():
    rng = np.random.default_rng(0)
    a = (rng.random(300) < 0.6).astype(float)
    b = np.where(rng.random(300) < 0.3, rng.random(300) < 0.2, a)
    result = compare_pair(a, b, np.arange(300))
    assert result.difference == pytest.approx(a.mean() - b.mean())
    assert 0 < result.low < result.difference < result.high
    assert (result.low, result.high) == bootstrap_interval(a - b, np.arange(300), small_sample=True)
    assert result.p == sign_flip((a - b)[:, None], np.arange(300)).p_M[0] < 1e-3
    assert result.p_mcnemar == mcnemar_p(a, b) < 1e-3


def test_a_pair_over_subjects_takes_the_two_way_interval_and_no_mcnemar():
    rng = np.random.default_rng(0)
    subject, image = (axis.ravel() for axis in np.indices((5, 40)))
    a, b = rng.random(200) < 0.5, rng.random(200) < 0.5
    result = compare_pair(a, b, image, subject_Q=subject, n_resamples=500)
    assert result.p_mcnemar is None
    assert (result.n_queries, result.n_images) == (200, 40)
    assert (result.low, result.high) == twoway_interval(1.0 * a - b, subject, image, n_resamples=500)
    assert compare_pair(a + 0.5, b, np.arange(200), n_resamples=10).p_mcnemar is None


def test_pairs_must_be_of_the_same_queries():
    with pytest.raises(InputError, match="on the same queries"):
        compare_pair(np.ones(3), np.ones(4), np.arange(3))


def test_the_paired_interval_covers_the_true_difference():
    # Images differ in difficulty and in which configuration they favour; the true difference is 0.1.
    rng = np.random.default_rng(0)
    image = np.repeat(np.arange(50), 4)
    covered = naive = 0
    for experiment in range(500):
        base = rng.uniform(0.2, 0.6, 50)
        lift = rng.uniform(-0.2, 0.4, 50)
        a = rng.random((50, 4)) < (base + lift)[:, None]
        b = rng.random((50, 4)) < base[:, None]
        result = compare_pair(a.ravel(), b.ravel(), image, n_resamples=800, seed=experiment)
        covered += result.low <= 0.1 <= result.high
        spread = 1.96 * ((a.mean() * (1 - a.mean()) + b.mean() * (1 - b.mean())) / 50) ** 0.5
        naive += abs(a.mean() - b.mean() - 0.1) <= spread
    assert 465 <= covered <= 485  # 93 % to 97 %
    assert naive > 485  # pairing ignored, images taken as the only queries: far too wide


def test_seed_components_by_hand():
    # Seeds differ by 2, units by 4, no residual: MS_s = 4, MS_u = 16.
    result = seed_components(np.array([[0.0, 4.0], [2.0, 6.0]]))
    assert (result.mean, result.seed_variance, result.unit_variance, result.residual_variance) == (3, 2, 8, 0)
    assert result.standard_error == pytest.approx(5**0.5)
    assert result.seed_share == pytest.approx(0.2)
    assert (result.n_seeds, result.n_units) == (2, 2)


def test_seed_components_find_the_planted_ones():
    rng = np.random.default_rng(0)
    score = rng.normal(size=(400, 300)) + 0.5 * rng.normal(size=(400, 1)) + 2 * rng.normal(size=(1, 300))
    result = seed_components(score)
    assert result.seed_variance == pytest.approx(0.25, rel=0.2)
    assert result.unit_variance == pytest.approx(4, rel=0.2)
    assert result.residual_variance == pytest.approx(1, rel=0.02)


def test_the_interval_over_seeds_and_units_covers_where_the_one_over_units_does_not():
    # Five seeds, ten subjects: the mean of the seeds treated as one measurement per subject misses the seed.
    rng = np.random.default_rng(0)
    covered = units_alone = 0
    for _ in range(2000):
        score = 0.6 * rng.normal(size=(5, 10)) + rng.normal(size=(5, 1)) + rng.normal(size=(1, 10))
        result = seed_components(score)
        covered += result.low <= 0 <= result.high
        low, high = stats.t.interval(0.95, 9, score.mean(), stats.sem(score.mean(axis=0)))
        units_alone += low <= 0 <= high
    assert 1860 <= covered <= 1940
    assert units_alone < 1600


def test_scores_that_never_vary_have_an_interval_without_width():
    result = seed_components(np.ones((3, 4)))
    assert (result.low, result.high, result.standard_error, result.seed_share) == (1, 1, 0, 0)


def test_seed_components_refuse_a_single_seed_and_gaps():
    for score in (np.ones((1, 5)), np.array([[1.0, np.nan], [0.0, 1.0]])):
        with pytest.raises(InputError, match="at least two of each"):
            seed_components(score)
