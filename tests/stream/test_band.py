"""data.band_hz gives the same samples wherever they are made: in memory, streamed, and from draws on a device."""

import dataclasses

import numpy as np
import pytest
import torch

from eegvision import stream
from eegvision.config import DataConfig
from eegvision.ingest import pieces
from eegvision.ingest.pieces import Cut
from eegvision.stream import batches, store


@pytest.mark.parametrize("repetitions", [1, 0])
def test_streamed_and_stored_samples_are_the_same_band_of_the_normalised_ones(tiny_dataset, repetitions):
    config = DataConfig(dataset=str(tiny_dataset), repetitions=repetitions)
    narrow = dataclasses.replace(config, band_hz=(0.0, 5.0))
    whole, kept = stream.load_store(config, None), stream.load_store(narrow, None)
    assert whole.eeg_NCT is not None
    assert kept.eeg_NCT is not None
    band_TT = pieces.band_projection(88, 200.0, (0.0, 5.0))
    np.testing.assert_allclose(kept.eeg_NCT, whole.eeg_NCT @ band_TT, atol=1e-5)
    assert 0 < kept.eeg_NCT.var() < 0.9 * whole.eeg_NCT.var()
    streamed = stream.load_store(dataclasses.replace(narrow, residency="stream"), None)
    assert streamed.eeg_NCT is None
    every = streamed.repeats.of(np.arange(len(streamed.repeats)))
    np.testing.assert_allclose(store.averaged(streamed.pieces, every, streamed.cut), kept.eeg_NCT, atol=1e-5)


@pytest.mark.parametrize("normalise", ["segment-zscore", "none"])
def test_means_of_draws_are_normalised_and_then_cut_to_the_band(normalise):
    eeg_RCT = np.random.default_rng(0).standard_normal((6, 2, 40)).astype(np.float32) + 3
    samples = stream.Repeats(np.array([0, 2, 1, 3, 5]), np.array([0, 2, 5]), np.zeros(2, dtype=int))
    cut = Cut(channels=("A", "B"), first=0, stop=40, normalise=normalise, band_hz=(1.0, 9.0), sfreq_hz=100.0)
    expected_NCT = cut.finish(samples.mean(np.arange(6), eeg_RCT))
    found_NCT = batches._mean(torch.from_numpy(eeg_RCT), samples, cut).numpy()
    np.testing.assert_allclose(found_NCT, expected_NCT, atol=1e-5)
