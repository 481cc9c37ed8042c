"""eegvision.evaluate.statistics: hand-worked values, brute force, honest error rates, refusals."""

from itertools import permutations
from math import comb

import numpy as np
import pytest

from eegvision.evaluate.retrieval import ranks, topk_accuracy
from eegvision.evaluate.statistics import binomial_p, bootstrap_interval, chance_topk, permutation_p
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
