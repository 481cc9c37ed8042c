"""eegvision.report.importance: a hand-worked share, nothing from noise, a planted effect found."""

import numpy as np
import pytest

from eegvision.report.importance import main_effects


def test_a_share_by_hand():
    # Ranks 1..8 in two halves: SS_total 42, SS_between 32, MS_within 10/6; (32 - 10/6) / 42
    (effect,) = main_effects({"half": ["a"] * 4 + ["b"] * 4}, [1, 2, 3, 4, 50, 60, 70, 80], n_resamples=500)
    assert effect.share == pytest.approx((32 - 10 / 6) / 42)
    assert effect.low < effect.share < effect.high <= 1
    assert effect.p < 0.05


def test_only_the_order_of_scores_counts():
    score_N = np.random.default_rng(0).normal(size=20)
    settings = {"a": [n % 3 for n in range(20)]}
    assert main_effects(settings, score_N, n_resamples=50) == main_effects(settings, np.exp(score_N), n_resamples=50)


def test_noise_is_called_an_effect_at_the_nominal_rate():
    found = []
    for seed in range(200):
        generator = np.random.default_rng(seed)
        settings = {"a": generator.integers(0, 3, 24).tolist()}
        found.append(main_effects(settings, generator.normal(size=24), n_resamples=200, seed=seed)[0].p <= 0.05)
    assert 0.01 <= np.mean(found) <= 0.1


def test_the_interval_covers_what_a_large_sample_shows():
    def trials(generator, n):
        group_N = generator.integers(0, 3, n)
        return {"a": group_N.tolist()}, 0.7 * group_N + generator.normal(size=n)

    truth = main_effects(*trials(np.random.default_rng(0), 20_000), n_resamples=2)[0].share
    drawn = [main_effects(*trials(np.random.default_rng(s), 40), n_resamples=200)[0] for s in range(1, 151)]
    assert np.mean([effect.low <= truth <= effect.high for effect in drawn]) >= 0.87


def test_numbers_are_parted_into_thirds_and_the_largest_effect_comes_first():
    generator = np.random.default_rng(1)
    lr_N = 10 ** generator.uniform(-4, -2, 30)
    score_N = np.log(lr_N) + 0.1 * generator.normal(size=30)
    effects = main_effects({"noise": generator.choice(["a", "b"], 30).tolist(), "lr": lr_N.tolist()}, score_N)
    assert [effect.name for effect in effects] == ["lr", "noise"]
    assert effects[0].n_groups == 3
    assert effects[0].share > effects[0].null_high > effects[1].share - 0.2


def test_a_setting_some_trials_lack_is_judged_among_those_that_have_it():
    # Those without it score lower, which is not its doing.
    settings = {"dropout": [None] * 8 + [0.1, 0.5] * 5}
    (effect,) = main_effects(settings, [0.0] * 8 + [1.0, 1.0] * 5, n_resamples=50)
    assert (effect.n_trials, effect.n_groups, effect.share) == (10, 2, 0.0)


def test_few_trials_one_value_or_a_value_for_each_trial_say_nothing():
    assert main_effects({"a": [0, 1, 0]}, [1, 2, 3]) == []
    assert main_effects({"a": ["x"] * 9, "b": [f"name {n}" for n in range(9)]}, range(9)) == []
