"""eegvision.evaluate.planted: scores are high where the truth is in the numbers and at chance where it is not."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from eegvision.evaluate import planted
from eegvision.evaluate.planted import LayerEffects
from eegvision.vocab import InputError

RNG = np.random.default_rng


def test_intervals_hold_the_mean_and_shrink_with_pictures():
    rng = RNG(0)
    narrow, wide = (planted.mean_score(rng.normal(1, 1, n), seed=1) for n in (400, 25))
    for found in (narrow, wide):
        low, high = found.interval()
        assert low < found.value < high
    assert np.ptp(narrow.interval()) < 0.5 * np.ptp(wide.interval())


def test_differences_of_models_of_the_same_pictures_are_paired():
    rng = RNG(1)
    hard_M = rng.normal(0, 5, 60)  # what pictures have in common for all models
    one, other = (planted.mean_score(hard_M + gain + rng.normal(0, 0.1, 60), seed=2) for gain in (0.3, 0.0))
    assert one.interval()[0] < other.interval()[1], "alone, neither can be told from the other"
    low, high = one.less(other).interval()
    assert 0 < low < 0.3 < high + 0.1


def test_rank_correlation_is_spearmans_and_nothing_for_constants():
    rng = RNG(2)
    left, right = rng.integers(0, 5, (2, 40)).astype(float)
    assert planted.rank_correlation(left, right) == pytest.approx(spearmanr(left, right)[0])
    assert planted.rank_correlation(left, np.ones(40)) == 0.0


def test_maps_on_their_objects_score_and_others_do_not():
    masks, right, wrong = {}, {}, {}
    for n in range(6):
        mask = np.zeros((20, 20), dtype=bool)
        mask[2 * n : 2 * n + 6, 3:9] = True
        masks[f"p{n}"] = mask
        right[f"p{n}"] = mask + 0.1 * RNG(n).normal(size=mask.shape)
        wrong[f"p{n}"] = RNG(50 + n).normal(size=mask.shape)
    auc_M, nss_M = planted.object_scores(right, masks)
    assert auc_M.min() > 0.7
    assert nss_M.min() > 1.5
    auc_M, nss_M = planted.object_scores(wrong, masks)
    assert abs(auc_M.mean() - 0.5) < 0.1
    assert abs(nss_M.mean()) < 0.2
    with pytest.raises(InputError, match="without an object"):
        planted.object_scores(right, masks | {"p0": np.zeros((20, 20), dtype=bool)})


def test_channels_and_intervals_are_scored_against_what_was_planted():
    rng = RNG(3)
    projection_C = rng.uniform(0, 1, 32)
    importance_MC = projection_C + rng.normal(0, 2, (80, 32))
    found = planted.channel_score(importance_MC, projection_C, seed=0)
    assert found.value == pytest.approx(spearmanr(importance_MC.mean(0), projection_C)[0])
    assert found.interval()[0] > 0.2
    assert abs(planted.channel_score(rng.normal(size=(80, 32)), projection_C, seed=0).value) < 0.45
    before_M, after_M = rng.normal(0, 1, (2, 80))
    found = planted.interval_score(after_M + 1, before_M, seed=0)
    pairs = [(a > b) for a in after_M + 1 for b in before_M]
    assert found.value == pytest.approx(np.mean(pairs))
    assert planted.interval_score(before_M, before_M, seed=0).value == pytest.approx(0.5)


def test_selectivity_tells_maps_of_the_class_from_maps_of_low_level_properties():
    rng = RNG(4)
    label_Q = np.repeat(np.arange(5), 20)
    low_QL = rng.normal(size=(100, 3)) + 0.5 * label_Q[:, None]  # classes differ in them, too
    class_Q, low_Q = rng.normal(size=5)[label_Q], low_QL @ rng.normal(size=3)
    response_QF = np.column_stack([class_Q, low_Q, np.ones(100)])
    response_QF[:, :2] += rng.normal(0, 0.05, (100, 2))
    of_class, of_low, of_nothing = planted.class_selectivity(response_QF, label_Q, low_QL)
    assert of_class > 0.9
    assert of_low < -0.9
    assert np.isnan(of_nothing)


def association(strength: float, seed: int = 5):
    """Pictures with a class code that late channels carry, and a low-level code that early ones do."""
    rng = RNG(seed)
    n_pictures, n_chans, n_maps, n_dims = 60, 24, 20, 8
    late_C, early_C = rng.uniform(0, 1, (2, n_chans))
    class_MD, low_MD = (rng.normal(size=(n_pictures, n_dims)) for _ in range(2))
    select_F = np.linspace(-1, 1, n_maps)
    eeg_MKCD = rng.normal(0, 0.3, (n_pictures, 3, n_chans, n_dims))
    late, early = (strength * own_C[:, None] * code[:, None] for own_C, code in ((late_C, class_MD), (early_C, low_MD)))
    eeg_MKCD += np.stack([late + early, early, late], axis=1)
    share_F1 = ((1 + select_F) / 2)[:, None]
    effect_MFD = share_F1 * class_MD[:, None] + (1 - share_F1) * low_MD[:, None]
    effect_MFD += rng.normal(0, 0.3, effect_MFD.shape) + 3.0  # what all pictures share says nothing
    dead = LayerEffects(name="dead", effect_MFD=np.zeros((n_pictures, 4, n_dims)), selectivity_F=np.full(4, np.nan))
    layer = LayerEffects(name="block", effect_MFD=effect_MFD, selectivity_F=select_F)
    return eeg_MKCD, [layer, dead], late_C - early_C


def test_associations_of_class_maps_with_late_channels_are_found():
    in_time, on_scalp = planted.association_scores(*association(1.0), seed=0)
    assert in_time.interval()[0] > 0.5
    assert on_scalp.interval()[0] > 0.5


def test_without_a_link_associations_are_at_chance():
    scores = [planted.association_scores(*association(0.0, seed), seed=0) for seed in range(8)]
    for found in zip(*scores, strict=True):
        assert abs(np.mean([one.value for one in found])) < 0.25


def test_a_network_whose_maps_are_dead_is_refused():
    eeg_MKCD, (_, dead), contrast_C = association(1.0)
    with pytest.raises(InputError, match="the network is dead"):
        planted.association_scores(eeg_MKCD, [dead], contrast_C, seed=0)
