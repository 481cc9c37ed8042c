"""eegvision.ingest.plausible: wrong rates and units are caught, right ones are not, bad channels are named."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import lfilter

from eegvision.ingest import plausible
from eegvision.vocab import InputError

UNCHECKED = ("the rate could not be checked: no line-frequency peak",)


def recording(seed: int, sfreq_hz: int, *, seconds: int = 60, lines: dict[float, float] | None = None) -> np.ndarray:
    """Microvolts [8, S]: 1/f noise, alpha of 0.8 Hz width at 8 to 13 Hz with a harmonic, lines (Hz to amplitude)."""
    rng = np.random.default_rng(seed)
    n_times, n_chans = sfreq_hz * seconds, 8
    spectrum = np.fft.rfft(rng.standard_normal((n_chans, n_times)))
    spectrum /= np.sqrt(np.maximum(np.fft.rfftfreq(n_times, 1 / sfreq_hz), 0.5))
    eeg_CT = np.fft.irfft(spectrum, n_times)
    eeg_CT = (np.eye(n_chans) + 0.5 * rng.standard_normal((n_chans, n_chans))) @ (6 * eeg_CT / eeg_CT.std())
    alpha_hz = rng.uniform(8, 13)
    for harmonic, amplitude in ((1, 15.0), (2, 5.0)):
        radius, angle = np.exp(-np.pi * 0.8 / sfreq_hz), 2 * np.pi * harmonic * alpha_hz / sfreq_hz
        poles = [1, -2 * radius * np.cos(angle), radius**2]
        rhythm_T = np.asarray(lfilter([1], poles, rng.standard_normal(n_times)))
        eeg_CT += amplitude * rng.uniform(0.3, 1, (n_chans, 1)) * rhythm_T / rhythm_T.std()
    time_s = np.arange(n_times) / sfreq_hz
    for line_hz, amplitude in (lines or {}).items():
        eeg_CT += amplitude * rng.uniform(0.6, 1, (n_chans, 1)) * np.sin(2 * np.pi * line_hz * time_s)
    return eeg_CT


def check_rate(eeg: np.ndarray, sfreq_hz: float) -> tuple[str, ...]:
    return plausible.check_rate(
        plausible.survey(np.atleast_3d(eeg).reshape(-1, *eeg.shape[-2:]), sfreq_hz), sfreq_hz, "f"
    )


@pytest.mark.parametrize("sfreq_hz", [250, 500, 1000])
def test_rhythms_without_a_line_never_speak_against_a_rate(sfreq_hz):
    assert {check_rate(recording(seed, sfreq_hz, seconds=20 + 4 * seed), sfreq_hz) for seed in range(12)} == {UNCHECKED}


@pytest.mark.parametrize("sfreq_hz", [250, 500, 1000])
@pytest.mark.parametrize("line_hz", [50.0, 60.0, 49.95])
def test_a_mains_line_confirms_the_rate(sfreq_hz, line_hz):
    assert {check_rate(recording(seed, sfreq_hz, lines={line_hz: 5.0}), sfreq_hz) for seed in range(3)} == {()}


@pytest.mark.parametrize("line_hz", [50.0, 60.0])
@pytest.mark.parametrize(
    ("true_hz", "labelled_hz"),
    [(250, 1000), (250, 500), (250, 256), (500, 1000), (500, 512), (1000, 1024), (1000, 500), (500, 250), (1000, 2000)],
)
def test_a_wrong_rate_is_refused_with_the_likely_one(true_hz, labelled_hz, line_hz):
    eeg_CT = recording(7, true_hz, seconds=120, lines={line_hz: 8.0})
    with pytest.raises(InputError, match=rf"^f: .*given as {labelled_hz} Hz.*{true_hz} Hz \(line at {line_hz:g} Hz\)"):
        check_rate(eeg_CT, labelled_hz)


def test_segments_of_a_second_show_a_wrong_rate_too():
    eeg_NCT = recording(3, 250, lines={50.0: 5.0}).reshape(8, 60, 250).swapaxes(0, 1)
    assert check_rate(eeg_NCT, 250) == ()
    with pytest.raises(InputError, match=r"line at (200|199)\.\d\d Hz.*250 Hz \(line at 50 Hz\)"):
        check_rate(eeg_NCT, 1000)


@pytest.mark.parametrize("sfreq_hz", [200, 400, 500, 1000])
@pytest.mark.parametrize("pace_hz", [5.0, 10.0])
def test_the_pace_of_stimulation_is_not_a_mains_line(sfreq_hz, pace_hz):
    harmonics = {k * pace_hz: 5.0 for k in range(1, 7) if k * pace_hz < 45}
    found = plausible.survey(recording(1, sfreq_hz, seconds=120, lines=harmonics)[None], sfreq_hz)
    assert len(plausible.find_lines(found)) >= len(harmonics) - 1  # one may drown in alpha
    assert plausible.check_rate(found, sfreq_hz, "f") == UNCHECKED


def test_harmonics_that_a_notch_has_left_do_not_speak_against_the_rate():
    import mne

    eeg_CT = recording(2, 1000, lines={50.0: 5.0, 100.0: 2.0})
    notched_CT = mne.filter.notch_filter(eeg_CT, 1000.0, [50.0], verbose="error")
    assert check_rate(notched_CT, 1000) == UNCHECKED
    with pytest.raises(InputError, match=r"500 Hz \(line at 50 Hz\)"):
        check_rate(recording(2, 1000, lines={100.0: 2.0}), 1000)
    assert check_rate(recording(2, 1000, lines={150.0: 2.0}), 1000) == ()


def test_a_low_pass_edge_is_not_a_line():
    import mne

    low_CT = mne.filter.filter_data(recording(4, 500), 500.0, None, 40.0, verbose="error")
    assert check_rate(low_CT, 500) == UNCHECKED


@pytest.mark.parametrize("eeg_NCT", [np.ones((1, 3, 9000)), np.full((9, 3, 900), np.nan)])
def test_too_little_signal_is_said(eeg_NCT):
    assert check_rate(eeg_NCT, 250) == ("the rate could not be checked: fewer than 6 stretches of signal",)


def test_damaged_stretches_are_passed_over():
    eeg_CT = recording(5, 500, lines={50.0: 5.0})
    eeg_CT[2, 1000] = np.nan
    found = plausible.survey(eeg_CT[None], 500)
    assert found.n_stretches == 7
    assert plausible.check_rate(found, 500, "f") == ()


# ---- unit


def with_std(std: float) -> plausible.Survey:
    return plausible.survey(std * np.random.default_rng(0).standard_normal((10, 3, 500)), 250.0)


@pytest.mark.parametrize(
    ("unit", "std"),
    [("V", 2e-6), ("V", 3e-4), ("uV", 0.7), ("uV", 800.0), ("T", 1e-13), ("zscore", 1.0), ("whitened", 0.3)],
)
def test_usual_amplitudes_pass(unit, std):
    assert plausible.check_unit(with_std(std), unit, "f") == ()


@pytest.mark.parametrize(
    ("unit", "std", "looks_like"),
    [
        ("V", 10.0, "uV"),
        ("uV", 1e-5, "V"),
        ("uV", 1e-12, "T"),
        ("T", 20.0, "uV"),
        ("V", 1e-12, "T"),
        ("zscore", 100.0, "uV"),
        ("whitened", 2e-5, "V"),
    ],
)
def test_an_amplitude_of_another_unit_is_refused_with_its_name(unit, std, looks_like):
    with pytest.raises(InputError, match=rf"^f: channels vary by .* cannot be {unit} but looks like {looks_like};"):
        plausible.check_unit(with_std(std), unit, "f")


def test_an_amplitude_of_no_unit_is_said():
    (sentence,) = plausible.check_unit(with_std(0.3), "V", "f")
    assert "unit could not be checked: channels vary by 0.3 V" in sentence
    (sentence,) = plausible.check_unit(plausible.survey(np.zeros((10, 3, 500)), 250.0), "V", "f")
    assert "no channel has a signal" in sentence


# ---- channels


def test_bad_channels_are_named_with_their_reason():
    eeg_CT = recording(6, 250)
    eeg_CT[1] = 3.0
    eeg_CT[2] = np.clip(eeg_CT[2], -10, 10)
    eeg_CT[3] = 50 * np.sin(2 * np.pi * 50 * np.arange(eeg_CT.shape[1]) / 250) + 0.1 * eeg_CT[3]
    eeg_CT[4] *= 100
    bad = plausible.bad_channels(eeg_CT[None], list("abcdefgh"), 250)
    assert list(bad) == ["b", "c", "d", "e"]
    assert bad["b"] == "flat"
    assert [bad[name].split(":")[0] for name in "cde"] == ["saturated", "line noise only", "noisy"]


def test_good_channels_with_some_hum_are_good():
    assert plausible.bad_channels(recording(6, 250, lines={50.0: 30.0})[None], list("abcdefgh"), 250) == {}


def test_a_quarter_of_bad_channels_is_reported_and_more_is_refused():
    bad = {"Cz": "flat", "Oz": "noisy: 40 times the median channel"}
    assert plausible.refuse_bad_channels({}, 8, "f") == ()
    (sentence,) = plausible.refuse_bad_channels(bad, 8, "f")
    assert sentence == "f: bad channels Cz (flat), Oz (noisy: 40 times the median channel)"
    with pytest.raises(InputError, match=r"f: 2 of 7 channels are bad: Cz \(flat\), Oz.*--channels"):
        plausible.refuse_bad_channels(bad, 7, "f")
