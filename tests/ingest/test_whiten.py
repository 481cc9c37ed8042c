"""eegvision.ingest.whiten: shrinkage as scikit-learn has it, noise that becomes white, training segments only."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import ledoit_wolf
from sklearn.preprocessing import StandardScaler

from eegvision.ingest import whiten
from eegvision.vocab import InputError

CHANNELS = tuple(f"E{number}" for number in range(5))


def noise(n_segments: int, n_chans: int, n_times: int, seed: int = 0) -> np.ndarray:
    """Noise that is correlated between channels, of strengths from 0.1 to 10."""
    rng = np.random.default_rng(seed)
    mixing_CC = np.diag(np.geomspace(0.1, 10, n_chans)) @ (np.eye(n_chans) + 0.5 * rng.standard_normal((n_chans,) * 2))
    return mixing_CC @ rng.standard_normal((n_segments, n_chans, n_times))


def shrunk(x_CS: np.ndarray) -> np.ndarray:
    """The covariance that scikit-learn's discriminant analysis takes with shrinkage "auto"."""
    scaler = StandardScaler().fit(x_CS.T)
    assert scaler.scale_ is not None
    return np.outer(scaler.scale_, scaler.scale_) * ledoit_wolf(scaler.transform(x_CS.T))[0]


@settings(max_examples=40, deadline=None)
@given(
    n_chans=st.integers(1, 12),
    n_samples=st.integers(2, 40),
    n_covariances=st.integers(1, 4),
    offset=st.sampled_from([0.0, -3.0, 1e4]),
    has_constant_channel=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_shrunk_covariance_is_that_of_scikit_learn(
    n_chans, n_samples, n_covariances, offset, has_constant_channel, seed
):
    x_BCS = noise(n_covariances, n_chans, n_samples, seed) + offset
    if has_constant_channel:
        x_BCS[0, 0] = 4.2
    weight_B = np.random.default_rng(seed).uniform(0.1, 1, n_covariances)
    expected = np.tensordot(weight_B, [shrunk(x_CS) for x_CS in x_BCS], axes=1)
    tolerance = 1e-10 * max(1.0, abs(expected).max())
    np.testing.assert_allclose(whiten.mean_shrunk_covariance(x_BCS, weight_B), expected, rtol=0, atol=tolerance)


def test_chunks_do_not_change_the_covariance(monkeypatch):
    x_BCS = noise(50, 5, 30)
    whole = whiten.mean_shrunk_covariance(x_BCS, np.full(50, 0.02))
    monkeypatch.setattr(whiten, "_CHUNK_BYTES", 8 * 5 * 30 * 7)
    np.testing.assert_allclose(whiten.mean_shrunk_covariance(x_BCS, np.full(50, 0.02)), whole, rtol=1e-12)


def test_mvnn_epochs_averages_over_repetitions_then_over_conditions():
    eeg_NCT, condition_N = noise(6, 5, 40), np.array(["b", "a", "b", "b", "c", "a"])
    by_condition = [np.mean([shrunk(eeg_CT) for eeg_CT in eeg_NCT[condition_N == name]], axis=0) for name in "abc"]
    weight_CC = whiten.fit(eeg_NCT, np.ones(6, bool), condition_N, "mvnn-epochs", CHANNELS).weight_CC
    np.testing.assert_allclose(np.linalg.inv(weight_CC @ weight_CC), np.mean(by_condition, axis=0), rtol=1e-8)


def test_mvnn_time_averages_over_samples_then_over_conditions_shown_twice():
    eeg_NCT, condition_N = noise(6, 5, 8), np.array([7, 3, 7, 7, 9, 3])
    by_condition = [
        np.mean([shrunk(eeg_NCT[condition_N == name][:, :, t].T) for t in range(8)], axis=0) for name in (3, 7)
    ]
    weight_CC = whiten.fit(eeg_NCT, np.ones(6, bool), condition_N, "mvnn-time", CHANNELS).weight_CC
    np.testing.assert_allclose(np.linalg.inv(weight_CC @ weight_CC), np.mean(by_condition, axis=0), rtol=1e-8)


@pytest.mark.parametrize(("scale", "shape"), [("mvnn-epochs", (20, 5, 4000)), ("mvnn-time", (1000, 5, 60))])
def test_whitened_noise_is_white(scale, shape):
    eeg_NCT = noise(*shape, seed=3)
    scaling = whiten.fit(eeg_NCT, np.ones(shape[0], bool), np.zeros(shape[0]), scale, CHANNELS)
    covariance_CC = np.cov(whiten.apply(scaling, eeg_NCT).transpose(1, 0, 2).reshape(5, -1))
    np.testing.assert_allclose(covariance_CC, np.eye(5), atol=0.07)


def test_zscore_and_robust_by_hand():
    eeg_NCT = np.array([[[0.0, 2.0, 4.0, 6.0]], [[8.0, 8.0, 8.0, 8.0]], [[900.0, -7.0, 0.0, 0.0]]], np.float32)
    is_train_N = np.array([True, True, False])
    zscore = whiten.fit(eeg_NCT, is_train_N, np.arange(3), "zscore", ("Cz",))
    np.testing.assert_allclose(whiten.apply(zscore, eeg_NCT)[0, 0], (np.array([0, 2, 4, 6]) - 5.5) / 8.75**0.5)
    robust = whiten.fit(eeg_NCT, is_train_N, np.arange(3), "robust", ("Cz",))
    scaled_NCT = whiten.apply(robust, eeg_NCT)
    assert scaled_NCT.dtype == np.float32
    np.testing.assert_allclose(scaled_NCT[0, 0], (np.array([0, 2, 4, 6]) - 7) / 4.5, rtol=1e-6)


@pytest.mark.parametrize("scale", [scale for scale in whiten.SCALES if scale != "none"])
def test_what_is_not_training_changes_nothing(scale):
    eeg_NCT, is_train_N = noise(20, 5, 30), np.arange(20) % 4 != 0
    before = whiten.fit(eeg_NCT, is_train_N, np.arange(20) // 4, scale, CHANNELS)
    eeg_NCT[~is_train_N] = np.nan
    after = whiten.fit(eeg_NCT, is_train_N, np.arange(20) // 4, scale, CHANNELS)
    np.testing.assert_array_equal(before.weight_CC, after.weight_CC)
    np.testing.assert_array_equal(before.offset_C, after.offset_C)
    assert not np.array_equal(
        before.weight_CC, whiten.fit(noise(20, 5, 30), ~is_train_N, np.arange(20), "zscore", CHANNELS).weight_CC
    )


@pytest.mark.parametrize("scale", [scale for scale in whiten.SCALES if scale != "none"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [(7.1, r"channel E2 is constant.*--channels"), (np.nan, r"channel E2 has NaN.*--on-bad drop")],
)
def test_a_channel_that_cannot_be_scaled_is_named(scale, spoil, message):
    eeg_NCT = noise(10, 5, 30).astype(np.float32)
    eeg_NCT[:, 2] = spoil
    with pytest.raises(InputError, match=message):
        whiten.fit(eeg_NCT, np.ones(10, bool), np.arange(10) // 2, scale, CHANNELS)


def test_nothing_to_fit_on_is_refused():
    with pytest.raises(InputError, match=r"this session has none; use scale 'none'"):
        whiten.fit(noise(4, 5, 30), np.zeros(4, bool), np.arange(4), "zscore", CHANNELS)
    with pytest.raises(InputError, match=r"shown at least twice.*use mvnn-epochs"):
        whiten.fit(noise(4, 5, 30), np.ones(4, bool), np.arange(4), "mvnn-time", CHANNELS)


def test_channels_of_hopelessly_different_strength_are_refused():
    eeg_NCT = noise(10, 5, 30)
    eeg_NCT[:, 0] *= 1e-9
    with pytest.raises(InputError, match=r"eigenvalues of the covariance run from.*leave out channels"):
        whiten.fit(eeg_NCT, np.ones(10, bool), np.arange(10), "mvnn-epochs", CHANNELS)
