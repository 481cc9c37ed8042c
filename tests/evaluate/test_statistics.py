"""eegvision.evaluate.statistics: hand-worked values, brute force, honest error rates, refusals."""

from itertools import permutations, product
from math import comb, inf
from typing import Any, cast

import numpy as np
import pytest
from scipy import stats

from eegvision.evaluate.retrieval import ranks, topk_accuracy
from eegvision.evaluate.statistics import (
    binomial_p,
    bootstrap_interval,
    chance_topk,
    label_permutation_p,
    permutation_p,
    proportion_interval,
    significance_line,
    twoway_interval,
)
from eegvision.vocab import InputError


def test_chance_by_hand():
    assert chance_topk(200, 5) == 0.025
    assert chance_topk(3, 5) == 1.0
    with pytest.raises(InputError, match="no chance level"):
        chance_topk(0, 1)


@pytest.mark.parametrize(("hits", "n", "chance"), [(0, 10, 0.1), (3, 10, 0.1), (10, 10, 0.5), (7, 40, 0.2)])
def test_binomial_p_is_the_upper_tail(hits, n, chance):
    tail = sum(comb(n, x) * chance**x * (1 - chance) ** (n - x) for x in range(hits, n + 1))
    assert binomial_p(hits, n, chance) == pytest.approx(tail, rel=1e-12)


def test_binomial_p_stays_exact_far_in_the_tail():
    assert binomial_p(40, 40, 0.1) == pytest.approx(1e-40, rel=1e-9)


def test_binomial_p_refuses_more_hits_than_queries():
    with pytest.raises(InputError, match="11 hits of 10"):
        binomial_p(11, 10, 0.1)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_permutation_p_approaches_the_share_of_all_permutations(k):
    # Five images, three presentations each, scores rounded so that ties occur.
    rng = np.random.default_rng(1)
    targets = np.repeat(np.arange(5), 3)
    scores = np.round(rng.normal(size=(15, 5)) + 0.7 * np.eye(5)[targets], 1)
    observed = topk_accuracy(ranks(scores, targets), k)
    everything = [topk_accuracy(ranks(scores, np.array(order)[targets]), k) for order in permutations(range(5))]
    exact = np.mean([accuracy >= observed for accuracy in everything])
    got, p = permutation_p(scores, targets, k, n_permutations=4000, seed=0)
    assert got == observed
    assert p == pytest.approx(exact, abs=0.03)


def test_permutation_p_sees_a_planted_signal_and_nothing_else():
    rng = np.random.default_rng(0)
    targets = np.repeat(np.arange(12), 4)
    noise = rng.normal(size=(48, 12))
    observed, p = permutation_p(noise + 3 * np.eye(12)[targets], targets, 1, n_permutations=999)
    assert observed > 0.5
    assert p == 1 / 1000
    assert permutation_p(noise, targets, 1, n_permutations=999)[1] > 0.05


def test_repeated_presentations_give_no_false_certainty():
    # Chance data with one noisy score row per image, presented 20 times: as independent queries nearly every
    # lucky image would count 20 times over. The p of 200 such experiments must stay uniform enough.
    rng = np.random.default_rng(0)
    targets = np.repeat(np.arange(10), 20)
    by_images = by_queries = 0
    for experiment in range(200):
        scores = np.repeat(rng.normal(size=(10, 10)), 20, axis=0)
        observed, p = permutation_p(scores, targets, 1, n_permutations=199, seed=experiment)
        by_images += p <= 0.05
        by_queries += binomial_p(round(observed * 200), 200, 0.1) <= 0.05
    assert by_images <= 20  # 10 expected at most; P(Binomial(200, .05) > 20) < .001
    assert by_queries > 40


def test_permutation_p_depends_on_the_seed_alone():
    scores, targets = np.random.default_rng(0).normal(size=(30, 10)), np.arange(30) % 10
    first, again, other = (permutation_p(scores, targets, 2, n_permutations=99, seed=seed) for seed in (5, 5, 6))
    assert first == again
    assert first[0] == other[0]


@pytest.mark.parametrize(
    ("targets", "k", "message"), [([0, 3], 1, "gallery columns"), ([0, 1], 4, r"1\.\.3"), ([0], 1, "one target each")]
)
def test_permutation_p_refuses_what_it_cannot_rank(targets, k, message):
    with pytest.raises(InputError, match=message):
        permutation_p(np.eye(3)[:2], np.array(targets), k)


def test_bootstrap_of_equal_images_has_no_width():
    low, high = bootstrap_interval(np.array([1, 0, 1, 0, 1, 0]), np.array([7, 7, 8, 8, 9, 9]), n_resamples=100)
    assert low == high == 0.5


def test_bootstrap_of_two_images_by_hand():
    # Image 0 has mean 0 in two queries, image 1 mean 1 in one: the four draws give 0, 1/3, 1/3 and 1.
    hits, images = np.array([0, 0, 1]), np.array([0, 0, 1])
    assert bootstrap_interval(hits, images, level=0.4, n_resamples=2000) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert bootstrap_interval(hits, images, level=0.9, n_resamples=2000) == (0.0, 1.0)


def test_bootstrap_covers_the_truth_when_images_differ():
    # Each image has a hit rate of its own, uniform in 0..1, seen in 10 presentations; the true mean is 1/2.
    rng = np.random.default_rng(0)
    images = np.repeat(np.arange(40), 10)
    clustered = independent = 0
    for experiment in range(200):
        hits = rng.random(400) < np.repeat(rng.random(40), 10)
        low, high = bootstrap_interval(hits, images, n_resamples=200, seed=experiment)
        clustered += low <= 0.5 <= high
        low, high = bootstrap_interval(hits, np.arange(400), n_resamples=200, seed=experiment)
        independent += low <= 0.5 <= high
    assert clustered >= 180  # 190 expected less the percentile interval's known shortfall
    assert independent < 170


def test_bootstrap_refuses_a_single_image():
    with pytest.raises(InputError, match="at least two images"):
        bootstrap_interval(np.array([1, 0]), np.array([3, 3]))


@pytest.mark.parametrize(("k", "hits"), [(1, 5), (5, 12)])
def test_the_line_for_two_hundred_pictures_is_the_one_in_the_literature(k, hits):
    # Zero-shot retrieval among 200: p < .01 from 5 of 200 for top-1 and from 12 of 200 for top-5.
    chance = chance_topk(200, k)
    assert significance_line(200, chance, 0.01) == hits / 200
    assert binomial_p(hits, 200, chance) < 0.01 < binomial_p(hits - 1, 200, chance)


def test_the_line_moves_up_with_the_number_of_comparisons_and_may_be_out_of_reach():
    lines = [significance_line(200, 0.005, 0.05, comparisons) for comparisons in (1, 10, 1000)]
    assert lines == sorted(set(lines))
    assert significance_line(4, 0.5) == inf
    assert significance_line(5, 0.5) == 1
    assert significance_line(7, 0.0) == 1 / 7
    with pytest.raises(InputError, match="0 comparisons"):
        significance_line(200, 0.005, 0.05, 0)


@pytest.mark.parametrize("method", ["clopper-pearson", "wilson"])
@pytest.mark.parametrize(("hits", "n"), [(0, 9), (3, 9), (9, 9), (31, 200)])
def test_proportion_intervals_agree_with_scipy(method, hits, n):
    names = {"clopper-pearson": "exact", "wilson": "wilson"}
    for level in (0.9, 0.95):
        expected = stats.binomtest(hits, n).proportion_ci(level, names[method])
        assert proportion_interval(hits, n, level=level, method=method) == pytest.approx(tuple(expected), abs=1e-12)


def test_clopper_pearson_never_covers_less_than_its_level_and_wilson_does_so_on_average():
    n, truths = 50, np.linspace(0.01, 0.99, 99)
    for method, mean_range in (("clopper-pearson", (0.95, 0.985)), ("wilson", (0.94, 0.96))):
        bounds = np.array([proportion_interval(hits, n, method=method) for hits in range(n + 1)])
        is_covered = (bounds[:, 0] <= truths[:, None]) & (truths[:, None] <= bounds[:, 1])
        coverage = (is_covered * stats.binom.pmf(np.arange(n + 1), n, truths[:, None])).sum(axis=1)
        assert mean_range[0] <= coverage.mean() <= mean_range[1]
        assert (coverage.min() >= 0.95) == (method == "clopper-pearson")


def test_proportion_intervals_refuse_impossible_counts_and_unknown_methods():
    with pytest.raises(InputError, match="6 hits of 5"):
        proportion_interval(6, 5)
    with pytest.raises(InputError, match="'wald'"):
        proportion_interval(1, 5, method=cast(Any, "wald"))


def test_permutation_within_strata_approaches_the_share_of_the_permutations_that_keep_them():
    rng = np.random.default_rng(3)
    stratum, targets = np.array([0, 1, 0, 1, 1]), np.repeat(np.arange(5), 2)
    scores = rng.normal(size=(10, 5)) + 0.8 * np.eye(5)[targets]
    kept = [order for order in permutations(range(5)) if (stratum[list(order)] == stratum).all()]
    assert len(kept) == 12
    observed = topk_accuracy(ranks(scores, targets), 1)
    exact = np.mean([topk_accuracy(ranks(scores, np.array(order)[targets]), 1) >= observed for order in kept])
    got = permutation_p(scores, targets, 1, stratum_N=stratum, n_permutations=4000)
    assert got == (observed, pytest.approx(exact, abs=0.03))


def test_what_only_the_block_tells_is_no_evidence_once_images_stay_in_their_block():
    # Every query resembles all images of its block, and none in particular.
    rng = np.random.default_rng(0)
    block = np.repeat(np.arange(8), 5)
    scores = rng.normal(size=(40, 40)) + 4 * (block[:, None] == block)
    assert permutation_p(scores, np.arange(40), 1, n_permutations=999)[1] == 0.001
    assert permutation_p(scores, np.arange(40), 1, stratum_N=block, n_permutations=999)[1] > 0.05
    with pytest.raises(InputError, match="one stratum each"):
        permutation_p(scores, np.arange(40), 1, stratum_N=block[:-1])


def test_permutation_p_is_uniform_where_there_is_nothing_to_find():
    # 600 data sets of noise, top-10 of 40 with five presentations each: fine enough for a nearly continuous p.
    targets = np.repeat(np.arange(40), 5)
    p = [
        permutation_p(
            np.random.default_rng(seed).normal(size=(200, 40)), targets, 10, n_permutations=399, seed=10_000 + seed
        )[1]
        for seed in range(600)
    ]
    # What is discrete lies at or below the diagonal by one step; 1.63 / sqrt(600) is the 1 % bound of Kolmogorov.
    assert stats.kstest(p, "uniform").statistic < 1.63 / 600**0.5 + 0.02


def test_label_permutation_p_approaches_the_share_of_all_permutations():
    # Four images of three classes, two segments each, moved as wholes.
    unit, label = np.repeat(np.arange(4), 2), np.array([0, 0, 1, 1, 2, 2, 1, 1])
    predicted = np.array([0, 0, 1, 2, 2, 1, 0, 7])
    exact = np.mean([(label[::2][list(order)][unit] == predicted).mean() >= 0.5 for order in permutations(range(4))])
    got = label_permutation_p(predicted, label, unit, n_permutations=4000)
    assert got == (0.5, pytest.approx(exact, abs=0.03))


def test_a_classifier_that_knows_only_the_block_fails_within_blocks():
    # Ten blocks with two classes each; it names a random class of the right block.
    rng = np.random.default_rng(0)
    block = np.repeat(np.arange(10), 20)
    label, unit = 2 * block + np.arange(200) % 2, np.arange(200)
    predicted = 2 * block + rng.integers(0, 2, 200)
    assert label_permutation_p(predicted, label, unit, n_permutations=999)[1] == 0.001
    assert label_permutation_p(predicted, label, unit, stratum_Q=block, n_permutations=999)[1] > 0.05


def test_label_permutation_p_gives_segments_of_one_image_no_false_certainty():
    rng = np.random.default_rng(0)
    unit = np.repeat(np.arange(20), 10)
    label = unit % 4
    by_unit = by_segment = 0
    for experiment in range(300):
        predicted = np.repeat(rng.integers(0, 4, 20), 10)
        by_unit += label_permutation_p(predicted, label, unit, n_permutations=199, seed=experiment)[1] <= 0.05
        by_segment += label_permutation_p(predicted, label, np.arange(200), n_permutations=199)[1] <= 0.05
    assert by_unit <= 28  # 15 expected at most; P(Binomial(300, .05) > 28) < .001
    assert by_segment > 60


def test_label_permutation_p_refuses_a_unit_that_is_no_unit():
    label, unit = np.array([0, 1, 0, 1]), np.array([5, 5, 6, 7])
    with pytest.raises(InputError, match="unit 5 has more than one label"):
        label_permutation_p(label, label, unit)
    with pytest.raises(InputError, match="unit 5 has more than one stratum"):
        label_permutation_p(label, np.array([1, 1, 0, 1]), unit, stratum_Q=np.arange(4))
    with pytest.raises(InputError, match="one prediction, label, unit"):
        label_permutation_p(label, label, unit[:-1])
    with pytest.raises(InputError, match="at least one segment"):
        label_permutation_p(label[:0], label[:0], unit[:0])


def test_the_clustered_interval_covers_at_its_level_and_the_naive_one_does_not():
    # 40 images with hit rates of their own (mean 1/4), ten presentations each, 1,000 experiments.
    rng = np.random.default_rng(1)
    images = np.repeat(np.arange(40), 10)
    clustered = naive = 0
    for experiment in range(1000):
        hits = rng.random(400) < np.repeat(rng.beta(1, 3, 40), 10)
        low, high = bootstrap_interval(hits, images, n_resamples=1000, seed=experiment, small_sample=True)
        clustered += low <= 0.25 <= high
        low, high = proportion_interval(int(hits.sum()), 400)
        naive += low <= 0.25 <= high
    assert 930 <= clustered <= 970
    assert naive < 850


def test_the_small_sample_interval_is_the_wider_one_and_meets_t_for_normal_values():
    value = np.random.default_rng(0).normal(size=12)
    plain = bootstrap_interval(value, np.arange(12), n_resamples=200_000)
    wide = bootstrap_interval(value, np.arange(12), n_resamples=200_000, small_sample=True)
    assert wide[0] < plain[0] < plain[1] < wide[1]
    expected = stats.t.interval(0.95, 11, value.mean(), value.std(ddof=1) / 12**0.5)
    assert wide[1] - wide[0] == pytest.approx(expected[1] - expected[0], rel=0.06)


def test_the_two_way_interval_covers_where_one_way_and_naive_ones_do_not():
    # Ten subjects and 60 images, both with effects of their own on a probit scale; 1,000 experiments.
    rng = np.random.default_rng(0)
    subject, image = (axis.ravel() for axis in np.indices((10, 60)))
    truth = stats.norm.cdf(-0.7 / np.sqrt(1 + 0.4**2 + 0.7**2))
    covered = np.zeros(3, dtype=int)
    for experiment in range(1000):
        effect = 0.4 * rng.normal(size=(10, 1)) + 0.7 * rng.normal(size=(1, 60))
        hits = (rng.normal(size=(10, 60)) + effect > 0.7).ravel()
        intervals = [
            twoway_interval(hits, subject, image, n_resamples=1000, seed=experiment),
            bootstrap_interval(hits, image, n_resamples=300, seed=experiment),
            proportion_interval(int(hits.sum()), 600),
        ]
        covered += [low <= truth <= high for low, high in intervals]
    assert 930 <= covered[0] <= 970
    assert covered[1] < 850
    assert covered[2] < 700


def test_the_two_way_interval_without_any_effect_is_as_wide_as_the_naive_one():
    hits = np.random.default_rng(0).random((20, 50)) < 0.3
    subject, image = (axis.ravel() for axis in np.indices(hits.shape))
    low, high = twoway_interval(hits.ravel(), subject, image)
    naive = proportion_interval(int(hits.sum()), 1000, method="wilson")
    assert high - low == pytest.approx(naive[1] - naive[0], rel=0.25)
    assert twoway_interval(np.ones(1000), subject, image, n_resamples=10) == (1.0, 1.0)


def test_a_subject_that_saw_only_some_images_counts_with_its_own_queries():
    # Two subjects, two images, three queries: every draw weighs the cells by both counts.
    hits, subject, image = np.array([1.0, 0.0, 0.0, 0.0]), np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    cells = np.array([[1.0, 0.0], [0.0, 0.0]])
    means = {cells[np.ix_(drawn[:2], drawn[2:])].mean() for drawn in product((0, 1), repeat=4)}
    low, high = twoway_interval(hits, subject, image, n_resamples=500)
    assert (low, high) == (min(means), max(means))
    with pytest.raises(InputError, match="share so few queries"):
        twoway_interval(hits[:2], np.array([0, 1]), np.array([0, 1]))


def test_the_two_way_interval_refuses_a_single_subject():
    with pytest.raises(InputError, match="at least two subjects and at least two images"):
        twoway_interval(np.array([1, 0]), np.array([3, 3]), np.array([0, 1]))
    with pytest.raises(InputError, match="or NaN"):
        twoway_interval(np.array([1, np.nan]), np.array([3, 4]), np.array([0, 1]))
