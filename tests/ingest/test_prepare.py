"""eegvision.ingest.prepare: each step against MNE or by hand, `outcome` against the steps, refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mne
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eegvision.ingest import prepare
from eegvision.ingest.perceivelab import ACTICAP_128
from eegvision.ingest.prepare import Preparation, Signal
from eegvision.vocab import InputError

# The order of THINGS-EEG2 as NICE stores it.
# fmt: off
NICE_63 = (
    "Fp1", "Fp2", "AF7", "AF3", "AFz", "AF4", "AF8", "F7", "F5", "F3", "F1", "F2", "F4", "F6", "F8", "FT9", "FT7",
    "FC5", "FC3", "FC1", "FCz", "FC2", "FC4", "FC6", "FT8", "FT10", "T7", "C5", "C3", "C1", "Cz", "C2", "C4", "C6",
    "T8", "TP9", "TP7", "CP5", "CP3", "CP1", "CPz", "CP2", "CP4", "CP6", "TP8", "TP10", "P7", "P5", "P3", "P1", "Pz",
    "P2", "P4", "P6", "P8", "PO7", "PO3", "POz", "PO4", "PO8", "O1", "Oz", "O2",
)
# fmt: on
CHANNELS = ("Oz", "O1", "O2")


def signal(n_times: int, sfreq_hz: float = 1000.0, t_min_s: float = 0.0, leading: tuple[int, ...] = (), **facts: Any):
    eeg = np.random.default_rng(0).standard_normal((*leading, 3, n_times)) * 10
    return replace(Signal(eeg=eeg, channels=CHANNELS, sfreq_hz=sfreq_hz, t_min_s=t_min_s, unit="uV"), **facts)


def facts_of(some: Signal | prepare.Facts) -> tuple:
    return some.channels, some.sfreq_hz, some.t_min_s, some.n_times, some.unit


# ---- channels


@pytest.mark.parametrize("names", [NICE_63, ACTICAP_128])
def test_names_of_known_caps_stay_as_they_are_and_have_places(names):
    assert prepare.canonical_channels(names) == names
    assert len(prepare.positions_m(names)) == len(names)


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("FP1", "Fp1"),
        ("Afz", "AFz"),
        ("EEG Fz-REF", "Fz"),
        ("EEG C3-A2", "C3"),
        ("Fcz..", "FCz"),
        ("POZ", "POz"),
        ("T3", "T7"),
        ("t6", "P8"),
        ("EEG T5-LE", "P7"),
        ("MEG0111", "MEG0111"),
        ("EOG 061", "EOG 061"),
        ("EEG 001", "EEG 001"),
        ("Fp1-F7", "Fp1-F7"),
        ("E17", "E17"),
    ],
)
def test_aliases_become_ten_five_names(name, canonical):
    assert prepare.canonical_channels([name]) == (canonical,)


def test_names_that_would_become_one_stay_apart():
    assert prepare.canonical_channels(["T3", "T7", "FZ"]) == ("T3", "T7", "Fz")


def test_places_are_in_metres_right_front_up():
    right, front, up = (prepare.positions_m([name])[0] for name in ("T8", "Fpz", "Cz"))
    assert right[0] > 0.06
    assert front[1] > 0.08
    assert up[2] > 0.09
    assert prepare.positions_m(["Cz", "MEG0111"]) == ()


def test_channels_come_in_the_order_asked_for():
    given_signal = signal(5, channels=("FP1", "EEG T3-REF", "EOG"))
    picked = prepare.epochs(given_signal, Preparation(channels=("T7", "EOG", "Fp1")))
    assert picked.channels == ("T7", "EOG", "Fp1")
    np.testing.assert_array_equal(picked.eeg, given_signal.eeg[[1, 2, 0]])


@pytest.mark.parametrize("wanted", [("T3",), ("T7", "T3"), ("T3", "Oz")])
def test_picking_what_has_been_picked_changes_nothing(wanted):
    preparation, given_signal = Preparation(channels=wanted), signal(5, channels=("T7", "T3", "OZ"))
    once = prepare.continuous(given_signal, preparation)
    twice = prepare.epochs(once, preparation)
    assert once.channels == twice.channels == outcome_of(given_signal, preparation).channels
    rows = [("T7", "T3", "Oz").index(name) for name in wanted]
    np.testing.assert_array_equal(twice.eeg, given_signal.eeg[rows])


def test_a_channel_that_is_not_there_is_refused_with_near_names():
    with pytest.raises(InputError, match=r"'O3' is not among the 3 channels.*did you mean O[12z], O"):
        prepare.epochs(signal(5), Preparation(channels=("O3",)))


def test_a_channel_asked_for_twice_is_refused():
    with pytest.raises(InputError, match=r"'OZ' is asked for twice \(it is 'Oz' in the source\)"):
        prepare.epochs(signal(5), Preparation(channels=("Oz", "O1", "OZ")))


# ---- nothing asked, nothing done


def test_without_requests_samples_are_untouched():
    given_signal = signal(50, leading=(4,))
    assert prepare.epochs(given_signal, Preparation()).eeg is given_signal.eeg
    assert prepare.continuous(signal(50), Preparation()).n_times == 50
    assert prepare.scaled(given_signal, Preparation(), np.ones(4, bool), np.arange(4)).eeg is given_signal.eeg


# ---- filters


def test_filters_are_those_of_mne_in_the_precision_given():
    given_signal = signal(8000, eeg=np.random.default_rng(1).standard_normal((3, 8000)).astype(np.float32))
    filtered = prepare.continuous(given_signal, Preparation(notch_hz=(100.0, 50.0), low_hz=1.0, high_hz=40.0))
    expected = mne.filter.notch_filter(given_signal.eeg.astype(float), 1000.0, [50.0, 100.0], verbose="error")
    expected = mne.filter.filter_data(expected, 1000.0, 1.0, 40.0, verbose="error")
    assert filtered.eeg.dtype == np.float32
    np.testing.assert_allclose(filtered.eeg, expected, atol=1e-6)


def test_what_continuous_has_filtered_is_not_filtered_again():
    wanted = Preparation(low_hz=1.0, high_hz=40.0, window_s=(0.0, 0.1))
    filtered = prepare.continuous(signal(8000), wanted)
    cut = prepare.segments(filtered, wanted, np.array([0, 4000]))
    np.testing.assert_array_equal(cut.eeg[1], filtered.eeg[:, 4000:4100])


def test_segments_long_enough_for_a_filter_are_filtered_and_shorter_ones_refused():
    wanted = Preparation(high_hz=40.0)
    filtered = prepare.epochs(signal(1000, leading=(2,)), wanted)
    expected = mne.filter.filter_data(signal(1000, leading=(2,)).eeg, 1000.0, None, 40.0, verbose="error")
    np.testing.assert_allclose(filtered.eeg, expected)
    with pytest.raises(InputError, match=r"span 331 samples \(0.33 s\), the data only 330.*continuous recording"):
        prepare.epochs(signal(330), wanted)
    with pytest.raises(InputError, match=r"span 6601 samples"):
        prepare.epochs(signal(6600), Preparation(notch_hz=(50.0,)))
    assert prepare.epochs(signal(6601), Preparation(notch_hz=(50.0,))).n_times == 6601


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Preparation(high_hz=125.0), r"high_hz is 125.0; it must be below half the sampling rate, 125 Hz"),
        (Preparation(low_hz=130.0), r"low_hz is 130.0"),
        (Preparation(notch_hz=(50.0, 124.5)), r"notch_hz is 124.5"),
        (Preparation(notch_hz=(50.0, 100.0, 50.5)), r"notch_hz is .*at least 1.25 Hz apart"),
    ],
)
def test_frequencies_that_the_rate_does_not_have_are_refused(wanted, message):
    for call in (
        lambda: prepare.continuous(signal(9000, 250.0), wanted),
        lambda: outcome_of(signal(9000, 250.0), wanted),
    ):
        with pytest.raises(InputError, match=message):
            call()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"low_hz": 40.0, "high_hz": 1.0}, r"low_hz is 40.0; it must be below high_hz, 1"),
        ({"low_hz": -1.0}, r"low_hz is -1.0; it must be above 0"),
        ({"notch_hz": (50.0, 0.0)}, r"notch_hz"),
        ({"window_s": (1.0, 0.0)}, r"window_s is \(1.0, 0.0\); it must be two times, the earlier first"),
        ({"baseline_s": (0.0, float("nan"))}, r"baseline_s"),
        ({"resample_hz": float("inf")}, r"resample_hz"),
        ({"clamp": 0.0}, r"clamp"),
        ({"scale": "mvnn"}, r"scale is 'mvnn'; it must be one of none, zscore"),
    ],
)
def test_settings_that_make_no_sense_are_refused(setting, message):
    with pytest.raises(InputError, match=message):
        Preparation(**setting)


# ---- time


def test_baseline_and_window_by_hand():
    ramp = np.arange(10.0).reshape(1, 1, 10) * np.ones((2, 3, 1))
    given_signal = signal(10, 10.0, -0.5, eeg=ramp)
    prepared = prepare.epochs(given_signal, Preparation(baseline_s=(-0.2, 0.0), window_s=(0.0, 0.3)))
    np.testing.assert_allclose(prepared.eeg[1, 2], np.array([5, 6, 7]) - 3.5)
    assert (prepared.n_times, prepared.t_min_s) == (3, 0.0)


def test_events_are_cut_by_their_samples_and_those_that_do_not_fit_are_refused():
    recording = signal(100, 10.0)
    sample_N, window_s = np.array([1, 2, 93, 95]), (-0.2, 0.55)
    np.testing.assert_array_equal(prepare.fits(100, 10.0, sample_N, window_s), [False, True, True, False])
    cut = prepare.cut_events(recording, sample_N[1:3], window_s)
    assert cut.t_min_s == -0.2
    np.testing.assert_array_equal(cut.eeg, [recording.eeg[:, 0:8], recording.eeg[:, 91:99]])
    with pytest.raises(
        InputError, match=r"event 0 at sample 1 .*-0.2 to 0.55 s outside.*100 samples \(2 such events\)"
    ):
        prepare.cut_events(recording, sample_N, window_s)


def test_no_events_give_no_segments():
    wanted = Preparation(window_s=(0.0, 1.0), resample_hz=125.0, baseline_s=(-0.5, 0.0))
    assert prepare.segments(signal(5000, 250.0), wanted, np.array([], dtype=int)).eeg.shape == (0, 3, 125)


def test_segments_are_the_same_in_any_number_of_pieces(monkeypatch):
    wanted = Preparation(window_s=(0.0, 0.5), baseline_s=(-0.2, 0.0), resample_hz=250.0)
    recording, sample_N = signal(9000), np.arange(300, 8300, 700)
    whole = prepare.segments(recording, wanted, sample_N)
    assert whole.eeg.shape == (12, 3, 125)
    monkeypatch.setattr(prepare.whiten, "_CHUNK_BYTES", 8 * 3 * 700 * 5)
    np.testing.assert_array_equal(prepare.segments(recording, wanted, sample_N).eeg, whole.eeg)


def test_a_recording_needs_a_window():
    with pytest.raises(InputError, match=r"needs a window around its events; give --window-s"):
        outcome_of(signal(5000), Preparation(), is_continuous=True)


@pytest.mark.parametrize("span", [(-0.3, 0.0), (0.9, 1.1), (2.0, 3.0)])
@pytest.mark.parametrize("name", ["window_s", "baseline_s"])
def test_a_span_that_the_segments_do_not_have_is_refused(span, name):
    with pytest.raises(InputError, match=rf"{name} {span[0]:g} to .*which hold -0.2 to 1 s \(300 samples at 250 Hz\)"):
        prepare.epochs(signal(300, 250.0, -0.2), Preparation(**{name: span}))


def test_files_whose_first_samples_differ_by_less_than_a_sample_give_one_length():
    wanted = Preparation(window_s=(0.0, 0.5), resample_hz=100.0)
    lengths = {prepare.epochs(signal(300, 256.0, -0.2 + shift), wanted).n_times for shift in np.linspace(0, 0.0039, 9)}
    assert lengths == {50}


def test_the_steps_of_nice_agree_with_mne_epochs():
    recording = signal(20_000, eeg=np.random.default_rng(2).standard_normal((3, 20_000)) * 1e-5, unit="V")
    sample_N = np.array([500, 3000, 9123, 18_000])
    # MNE takes both edges of a span, hence one sample more.
    wanted = Preparation(window_s=(0.0, 1.001), baseline_s=(-0.2, 0.001), resample_hz=250.0)
    ours = prepare.segments(recording, wanted, sample_N)

    raw = mne.io.RawArray(recording.eeg, mne.create_info(list(CHANNELS), 1000.0, "eeg"), verbose="error")
    events = np.column_stack([sample_N, np.zeros_like(sample_N), np.ones_like(sample_N)])
    theirs = mne.Epochs(raw, events, tmin=-0.2, tmax=1.0, baseline=(None, 0), preload=True, verbose="error")
    theirs.resample(250.0, verbose="error")
    assert (ours.n_times, ours.t_min_s) == (250, pytest.approx(0.0))
    np.testing.assert_allclose(ours.eeg, theirs.get_data()[:, :, -250:], atol=1e-12)


# ---- what comes out


def outcome_of(some: Signal, wanted: Preparation, *, is_continuous: bool = False) -> prepare.Facts:
    return prepare.outcome(
        wanted,
        channels=some.channels,
        sfreq_hz=some.sfreq_hz,
        t_min_s=None if is_continuous else some.t_min_s,
        n_times=None if is_continuous else some.n_times,
        unit=some.unit,
        is_continuous=is_continuous,
    )


def spans(low: float, high: float) -> st.SearchStrategy:
    edges = st.floats(low, high).map(lambda value: round(value, 3))
    return st.none() | st.tuples(edges, edges).filter(lambda span: span[1] - span[0] > 0.05)


preparations = st.builds(
    Preparation,
    channels=st.sampled_from([(), ("O2", "OZ"), ("Oz", "O1", "O2"), ("O2", "Cz")]),
    low_hz=st.sampled_from([None, None, 5.0]),
    high_hz=st.sampled_from([None, None, 40.0, 60.0]),
    window_s=spans(-0.5, 1.5),
    baseline_s=spans(-0.5, 0.5),
    resample_hz=st.sampled_from([None, 100.0, 128.0, 250.0, 300.0]),
    scale=st.sampled_from(["none", "zscore", "robust", "mvnn-epochs", "mvnn-time"]),
    clamp=st.sampled_from([None, 3.0]),
)


@settings(max_examples=100, deadline=None)
@given(
    wanted=preparations,
    sfreq_hz=st.sampled_from([100.0, 128.0, 200.0, 250.0, 256.0, 333.3]),
    first=st.floats(-0.6, 0.2),
    n_times=st.integers(60, 500),
    is_continuous=st.booleans(),
)
def test_outcome_says_what_the_steps_do(wanted, sfreq_hz, first, n_times, is_continuous):
    if is_continuous:
        given_signal, sample_N = signal(1500, sfreq_hz), np.array([300, 400, 300, 400])
    else:
        given_signal, sample_N = signal(n_times, sfreq_hz, first, leading=(4,)), np.array([])
    expected = result_or_message(lambda: outcome_of(given_signal, wanted, is_continuous=is_continuous))
    prepared = result_or_message(lambda: run(given_signal, wanted, sample_N, is_continuous))
    if isinstance(expected, str) or isinstance(prepared, str):
        assert prepared == expected
        return
    assert facts_of(prepared) == facts_of(expected)
    units = [(step["unit_before"], step["unit_after"]) for step in expected.steps]
    assert [before for before, _ in units] == ["uV", *(after for _, after in units)][: len(units)]
    assert wanted.clamp is None or abs(prepared.eeg).max() <= wanted.clamp


def result_or_message(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except InputError as error:
        return str(error)


def run(given_signal: Signal, wanted: Preparation, sample_N: np.ndarray, is_continuous: bool) -> Signal:
    if is_continuous:
        prepared = prepare.segments(prepare.continuous(given_signal, wanted), wanted, sample_N)
    else:
        prepared = prepare.epochs(given_signal, wanted)
    return prepare.scaled(prepared, wanted, np.ones(4, bool), np.array([0, 0, 1, 1]))


def test_steps_are_named_in_order_with_their_settings_and_units():
    wanted = Preparation(
        channels=("O1",),
        notch_hz=(50.0,),
        low_hz=1.0,
        window_s=(0.0, 1.0),
        baseline_s=(-0.2, 0.0),
        resample_hz=250.0,
        scale="robust",
        clamp=20.0,
    )
    steps = outcome_of(signal(9000), wanted, is_continuous=True).steps
    names = ["channels", "notch", "band-pass", "cut events", "baseline", "resample", "cut", "robust", "clamp"]
    assert [step["step"] for step in steps] == names
    assert steps[3] == {
        "step": "cut events",
        "from_s": -0.2,
        "to_s": 1.0,
        "samples": 1200,
        "unit_before": "uV",
        "unit_after": "uV",
    }
    assert [(step["unit_before"], step["unit_after"]) for step in steps[-3:]] == [
        ("uV", "uV"),
        ("uV", "zscore"),
        ("zscore", "zscore"),
    ]


def test_a_higher_rate_is_allowed_and_said_to_add_nothing():
    (step,) = outcome_of(signal(100, 100.0), Preparation(resample_hz=200.0)).steps
    assert "add no information" in step["what"]
    assert prepare.epochs(signal(100, 100.0), Preparation(resample_hz=200.0)).n_times == 200


def test_whitened_segments_are_clamped_after_scaling():
    wanted = Preparation(scale="mvnn-epochs", clamp=1.5)
    prepared = prepare.scaled(signal(100, leading=(8,)), wanted, np.ones(8, bool), np.arange(8) // 2)
    assert prepared.unit == "whitened"
    assert abs(prepared.eeg).max() == 1.5
    assert 0.8 < prepared.eeg.std() < 1


def test_samples_that_do_not_fit_their_description_are_refused():
    with pytest.raises(InputError, match=r"\[3, 50\] does not fit 2 channel names"):
        signal(50, channels=("Oz", "O1"))
    with pytest.raises(InputError, match=r"stored as int16; it must be float32"):
        signal(50, eeg=np.zeros((3, 50), np.int16))


def test_doubts_reach_through_a_signal():
    volts = signal(60_000, unit="V", eeg=np.random.default_rng(0).standard_normal((3, 60_000)) * 1e-5)
    assert prepare.check_samples(volts, "a.fif") == ("the rate could not be checked: no line-frequency peak",)
    with pytest.raises(InputError, match=r"a\.fif: .* cannot be uV but looks like V; state the unit V"):
        prepare.check_samples(signal(60_000, eeg=volts.eeg), "a.fif")
    volts.eeg[1] = 0
    assert prepare.bad_channels(volts) == {"O1": "flat"}
    with pytest.raises(InputError, match=r"a\.fif: 1 of 3 channels are bad: O1 \(flat\)"):
        prepare.refuse_bad_channels(volts, "a.fif")
