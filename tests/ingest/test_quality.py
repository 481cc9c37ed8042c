"""eegvision.ingest.quality: values against NumPy on all samples at once, any grouping of shards, planted faults."""

import functools

import numpy as np
import pytest

from eegvision.ingest import quality
from eegvision.ingest.quality import measure, merge, summary

CHANNELS = ("Fz", "Cz", "T7", "Pz", "Oz", "EOG")
FACTS = {"channels": CHANNELS, "sfreq_hz": 200.0, "t_min_s": -0.1, "unit": "uV"}


def recording(n=60, n_times=100, seed=0):
    rng = np.random.default_rng(seed)
    eeg_NCT = (10 * rng.standard_normal((n, len(CHANNELS), n_times)) + 3).astype(np.float32)
    visits = {
        "subject": [f"sub-{k}" for k in rng.integers(0, 3, n)],
        "session": rng.integers(0, 2, n).tolist(),
    }
    return eeg_NCT, visits


def measured(eeg_NCT, visits, rows=slice(None), seed=0):
    return measure(eeg_NCT[rows], **{name: values[rows] for name, values in visits.items()}, **FACTS, seed=seed)


def in_shards(eeg_NCT, visits, size):
    return [measured(eeg_NCT, visits, slice(a, a + size), seed=a) for a in range(0, len(eeg_NCT), size)]


def assert_same(a, b):
    first, second = quality.to_arrays(a), quality.to_arrays(b)
    assert first.keys() == second.keys()
    for name, values in first.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(values, second[name], rtol=1e-12, atol=1e-9, err_msg=name)
        else:
            np.testing.assert_array_equal(values, second[name], err_msg=name)


def test_statistics_equal_those_of_all_samples_at_once():
    eeg_NCT, visits = recording()
    found = summary(functools.reduce(merge, in_shards(eeg_NCT, visits, 7)))
    every_NCT = eeg_NCT.astype(np.float64)
    np.testing.assert_allclose(found.mean_C, every_NCT.mean(axis=(0, 2)), rtol=1e-12)
    np.testing.assert_allclose(found.std_C, every_NCT.std(axis=(0, 2)), rtol=1e-10)
    np.testing.assert_array_equal(found.low_C, every_NCT.min(axis=(0, 2)))
    np.testing.assert_array_equal(found.high_C, every_NCT.max(axis=(0, 2)))
    assert found.flat_C.tolist() == [0.0] * len(CHANNELS)


def test_evoked_responses_and_counts_are_those_of_each_subject():
    eeg_NCT, visits = recording()
    whole = functools.reduce(merge, in_shards(eeg_NCT, visits, 11))
    assert whole.subjects == ("sub-0", "sub-1", "sub-2")
    for number, subject in enumerate(whole.subjects):
        is_own_N = np.array(visits["subject"]) == subject
        assert whole.n_S[number] == is_own_N.sum()
        mean_CT = eeg_NCT[is_own_N].astype(np.float64).mean(axis=0)
        np.testing.assert_allclose(whole.evoked_SCT[number] / whole.n_S[number], mean_CT, rtol=1e-10, atol=1e-9)
    pairs = list(zip(visits["subject"], visits["session"], strict=True))
    assert dict(zip(whole.visits, whole.n_G, strict=True)) == {pair: pairs.count(pair) for pair in sorted(set(pairs))}
    assert whole.times_s[[0, 20]] == pytest.approx([-0.1, 0.0])


@pytest.mark.parametrize("cut", [1, 2, 5])
def test_merging_is_associative_and_takes_any_order(cut):
    shards = in_shards(*recording(), 10)
    left, right = functools.reduce(merge, shards[:cut]), functools.reduce(merge, shards[cut:])
    assert_same(merge(left, right), functools.reduce(merge, shards))
    assert_same(merge(right, left), functools.reduce(merge, shards))


def test_the_same_seed_draws_the_same_segments_and_another_one_others():
    eeg_NCT, visits = recording()
    first, again, other = (measured(eeg_NCT, visits, seed=seed) for seed in (1, 1, 2))
    assert first.n_sampled == quality.SAMPLED
    assert_same(first, again)
    assert not np.array_equal(first.power_CF, other.power_CF)


def test_power_is_a_density_with_a_peak_where_the_wave_is():
    eeg_NCT, visits = recording(n=16)
    time_s = np.arange(100) / 200
    eeg_NCT += (20 * np.sqrt(2) * np.sin(2 * np.pi * 50 * time_s)).astype(np.float32)
    found = measured(eeg_NCT, visits)
    power_F = found.power_CF.mean(axis=0) / found.n_sampled
    assert found.frequencies_hz[power_F.argmax()] == 50
    # The integral of the density is the variance: noise 10^2 and a wave of 20^2.
    assert power_F.sum() * found.frequencies_hz[1] == pytest.approx(500, rel=0.1)
    told = summary(found)
    assert told.line_hz == 50
    assert {bad.channel for bad in told.bad} == set(CHANNELS)
    assert "at 50 Hz, the power line" in told.bad[0].reason


def test_amplitudes_are_counted_by_decade_and_zeros_not():
    eeg_NCT = np.full((2, 6, 100), 0.5, dtype=np.float32)
    eeg_NCT[0, 0, :30] = 0
    eeg_NCT[1, :, :50] = -200
    found = measured(eeg_NCT, {"subject": ["a", "a"], "session": [0, 0]})
    shown = {float(quality.AMPLITUDE_EDGES[b]): int(found.amplitude_B[b]) for b in np.flatnonzero(found.amplitude_B)}
    assert shown == pytest.approx({10**-0.4: 600 - 30 + 300, 10**2.3: 300})


def test_planted_faults_are_named_with_reason_and_place():
    eeg_NCT, visits = recording(n=80)
    visits["subject"] = ["sub-0"] * 40 + ["sub-1"] * 40
    visits["session"] = [1] * 80
    eeg_NCT[:40, 0] = 4.0
    eeg_NCT[40:, 2] *= 0.01
    eeg_NCT[:, 3] *= 20
    np.clip(eeg_NCT[:, 4], -8, 8, out=eeg_NCT[:, 4])
    found = summary(functools.reduce(merge, in_shards(eeg_NCT, visits, 16)))
    assert {(bad.channel, bad.reason, bad.visits) for bad in found.bad} == {
        ("Fz", "constant", ("sub-0, session 1",)),
        ("T7", "nearly no signal", ("sub-1, session 1",)),
        ("Pz", "far more noise than the others", ()),
        ("Oz", "clipped: many samples at one extreme value", ()),
    }
    assert found.flat_C[0] == 0.5
    assert found.clipped_C[4] == 1.0


def test_sound_channels_of_different_loudness_are_not_called_bad():
    eeg_NCT, visits = recording(n=40)
    eeg_NCT *= np.linspace(0.6, 2.4, len(CHANNELS), dtype=np.float32)[:, None]
    assert summary(measured(eeg_NCT, visits)).bad == ()


@pytest.mark.parametrize(
    ("channel", "expected"),
    [
        ("Fp1", "frontal"), ("AFz", "frontal"), ("AFF5h", "frontal"), ("FFC3h", "frontal"), ("F10", "frontal"),
        ("FCz", "central"), ("FCC1h", "central"), ("C3", "central"), ("CCP4h", "central"),
        ("FT9", "temporal"), ("T7", "temporal"), ("TTP7h", "temporal"), ("TPP10h", "temporal"),
        ("CP1", "parietal"), ("CPP3h", "parietal"), ("Pz", "parietal"), ("PPO9h", "parietal"),
        ("PO10", "occipital"), ("POO9h", "occipital"), ("OI1h", "occipital"), ("Oz", "occipital"), ("I2", "occipital"),
        ("FZ", "frontal"), ("EOG", "other"), ("MLC11-2908", "other"), ("stim", "other"), ("A1", "other"),
    ],
)  # fmt: skip
def test_regions_follow_the_names_of_the_10_05_system(channel, expected):
    assert quality.region(channel) == expected


def test_regions_average_their_channels():
    eeg_NCT, visits = recording()
    found = measured(eeg_NCT, visits)
    evoked, power = quality.evoked_by_region(found), quality.power_by_region(found)
    assert tuple(evoked) == tuple(power) == ("frontal", "central", "temporal", "parietal", "occipital", "other")
    np.testing.assert_allclose(evoked["occipital"], found.evoked_SCT[:, 4] / found.n_S[:, None])
    np.testing.assert_allclose(power["other"], found.power_CF[5] / found.n_sampled)


def test_arrays_on_disk_give_the_quality_back(tmp_path):
    found = functools.reduce(merge, in_shards(*recording(), 20))
    np.savez(tmp_path / "quality.npz", allow_pickle=False, **quality.to_arrays(found))
    with np.load(tmp_path / "quality.npz", allow_pickle=False) as arrays:
        again = quality.from_arrays(arrays)
    assert_same(again, found)
    assert (again.channels, again.visits, again.unit) == (CHANNELS, found.visits, "uV")
    assert_same(merge(again, found), merge(found, found))


def test_a_large_offset_does_not_hide_the_spread():
    eeg_NCT, visits = recording()
    assert summary(measured(eeg_NCT + np.float32(20_000), visits)).std_C == pytest.approx(10, rel=0.05)
