"""From a recording to segments as asked for: channels, filters, baseline, rate, window, scale; and what to doubt.

Steps run in one order, always: channels, notch, band-pass, (cut out events,) baseline, resample, cut to the window,
scale, clamp. `outcome` says what comes out of them without touching a sample.
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from eegvision.ingest import plausible, whiten
from eegvision.ingest.whiten import SCALES, Scale
from eegvision.vocab import InputError, Unit

Span = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What is done to the samples of a source before they are stored; by default nothing.

    Spans are [from, to) in seconds after stimulus onset; edges fall on the nearest sample.
    """

    channels: tuple[str, ...] = ()
    """Channels to keep, in this order; aliases such as FP1 or T3 are understood. None given: all, as in the source."""
    notch_hz: tuple[float, ...] = ()
    """Frequencies in Hz to cut out, such as 50 100."""
    low_hz: float | None = None
    """Lower edge of the pass band in Hz."""
    high_hz: float | None = None
    """Upper edge of the pass band in Hz."""
    window_s: Span | None = None
    """What to keep of every segment: from (included) and to (not included), in seconds after onset."""
    baseline_s: Span | None = None
    """Span whose mean is subtracted from every channel of a segment, in seconds after onset."""
    resample_hz: float | None = None
    """New sampling rate in Hz."""
    scale: Scale = "none"
    """Scaling fitted on the training segments of each session."""
    clamp: float | None = None
    """Largest magnitude kept, in the unit after scaling."""

    def __post_init__(self) -> None:
        for name in ("low_hz", "high_hz", "resample_hz", "clamp"):
            value = getattr(self, name)
            _require(value is None or (math.isfinite(value) and value > 0), name, value, "above 0")
        _require(all(math.isfinite(f) and f > 0 for f in self.notch_hz), "notch_hz", self.notch_hz, "above 0")
        for name in ("window_s", "baseline_s"):
            span = getattr(self, name)
            is_ordered = span is None or (all(map(math.isfinite, span)) and span[0] < span[1])
            _require(is_ordered, name, span, "two times, the earlier first")
        if self.low_hz and self.high_hz:
            _require(self.low_hz < self.high_hz, "low_hz", self.low_hz, f"below high_hz, {self.high_hz:g}")
        _require(self.scale in SCALES, "scale", self.scale, "one of " + ", ".join(SCALES))

    @property
    def has_filters(self) -> bool:
        """Whether anything is filtered."""
        return bool(self.notch_hz) or self.low_hz is not None or self.high_hz is not None


@dataclass(frozen=True, kw_only=True, eq=False)
class Signal:
    """Samples and what is needed to read them: `eeg` is [..., C, T], float32 or float64.

    `t_min_s` is the time of the first sample after onset (0 for a continuous recording). `is_filtered`: `continuous`
    has been here, so `epochs` does not filter a second time.
    """

    eeg: np.ndarray
    channels: tuple[str, ...]
    sfreq_hz: float
    t_min_s: float
    unit: Unit
    is_filtered: bool = False

    def __post_init__(self) -> None:
        if self.eeg.ndim < 2 or self.eeg.shape[-2] != len(self.channels):
            raise InputError(
                f"EEG of shape {list(self.eeg.shape)} does not fit {len(self.channels)} channel names; the axis before "
                "the last holds the channels"
            )
        if self.eeg.dtype not in (np.float32, np.float64):
            raise InputError(f"EEG is stored as {self.eeg.dtype}; it must be float32 or float64")
        _require(math.isfinite(self.sfreq_hz) and self.sfreq_hz > 0, "sampling rate", self.sfreq_hz, "above 0")

    @property
    def n_times(self) -> int:
        """Number of samples along the last axis."""
        return self.eeg.shape[-1]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a prepared data set is like, and by which steps it became so."""

    channels: tuple[str, ...]
    sfreq_hz: float
    t_min_s: float
    n_times: int
    unit: Unit
    steps: tuple[dict[str, Any], ...]


# ---- steps


def continuous(signal: Signal, preparation: Preparation) -> Signal:
    """Pick channels and filter a recording [C, S]; for what is cut out of it, `epochs` then leaves filters alone.

    Raises:
        InputError: a channel is not there, a frequency does not fit the rate, the recording is shorter than a filter.
    """
    return replace(_filtered(_picked(signal, preparation), preparation), is_filtered=True)


def epochs(signal: Signal, preparation: Preparation) -> Signal:
    """Bring segments [..., C, T] to the form asked for, all but scale and clamp.

    Resampling is MNE's in the frequency domain, edge values repeated, as `mne.Epochs.resample` does it.

    Raises:
        InputError: as `continuous`; or the window or baseline is not in the segments.
    """
    signal = _picked(signal, preparation)
    if not signal.is_filtered:
        signal = _filtered(signal, preparation)
    if preparation.baseline_s:
        rows, _ = _rows(preparation.baseline_s, signal.sfreq_hz, signal.t_min_s, signal.n_times, "baseline_s")
        mean = signal.eeg[..., rows].mean(axis=-1, keepdims=True, dtype=np.float64)
        signal = replace(signal, eeg=signal.eeg - mean.astype(signal.eeg.dtype))
    if _is_resampled(preparation, signal.sfreq_hz):
        signal = _resampled(signal, float(preparation.resample_hz or 0))
    if preparation.window_s:
        rows, t_min_s = _rows(preparation.window_s, signal.sfreq_hz, signal.t_min_s, signal.n_times, "window_s")
        signal = replace(signal, eeg=signal.eeg[..., rows], t_min_s=t_min_s)
    return signal


def segments(signal: Signal, preparation: Preparation, sample_N: np.ndarray) -> Signal:
    """Cut events out of a recording [C, S] that `continuous` has filtered, and run `epochs`, some at a time: [N, C, T].

    Raises:
        InputError: as `cut_events` and `epochs`.
    """
    window_s = event_window_s(preparation)
    _, n_times = _event_rows(window_s, signal.sfreq_hz)
    first = epochs(cut_events(signal, sample_N[:1], window_s), preparation)
    out_NCT = np.empty((len(sample_N), *first.eeg.shape[1:]), signal.eeg.dtype)
    for rows in whiten.chunks(len(sample_N), len(signal.channels) * n_times):
        out_NCT[rows] = epochs(cut_events(signal, sample_N[rows], window_s), preparation).eeg
    return replace(first, eeg=out_NCT)


def event_window_s(preparation: Preparation) -> Span:
    """Return the span to cut around every event: the window and the baseline, whatever lies between.

    Raises:
        InputError: no window is asked for.
    """
    if preparation.window_s is None:
        raise InputError("a continuous recording needs a window around its events; give --window-s, such as 0 1")
    spans = [preparation.window_s, preparation.baseline_s or preparation.window_s]
    return min(span[0] for span in spans), max(span[1] for span in spans)


def cut_events(signal: Signal, sample_N: np.ndarray, window_s: Span) -> Signal:
    """Cut [N, C, T] out of a recording [C, S]: around every sample, all samples that touch the window.

    Raises:
        InputError: a window leaves the recording; `fits` tells which.
    """
    start, n_times = _event_rows(window_s, signal.sfreq_hz)
    is_in_N = fits(signal.n_times, signal.sfreq_hz, sample_N, window_s)
    if not is_in_N.all():
        event = int(np.flatnonzero(~is_in_N)[0])
        raise InputError(
            f"event {event} at sample {sample_N[event]} has its window of {window_s[0]:g} to {window_s[1]:g} s outside "
            f"the recording of {signal.n_times} samples ({int((~is_in_N).sum())} such events); drop it, or shorten "
            "the window"
        )
    rows_NT = np.asarray(sample_N, dtype=np.int64)[:, None] + np.arange(start, start + n_times)
    eeg_NCT = np.empty((len(rows_NT), len(signal.channels), n_times), signal.eeg.dtype)
    for out_CT, rows_T in zip(eeg_NCT, rows_NT, strict=True):
        out_CT[:] = signal.eeg[:, rows_T[0] : rows_T[-1] + 1]
    return replace(signal, eeg=eeg_NCT, t_min_s=start / signal.sfreq_hz)


def fits(n_samples: int, sfreq_hz: float, sample_N: np.ndarray, window_s: Span) -> np.ndarray:
    """Return for every event whether its window lies within a recording of `n_samples`, bool [N]."""
    start, n_times = _event_rows(window_s, sfreq_hz)
    first_N = np.asarray(sample_N, dtype=np.int64) + start
    return (first_N >= 0) & (first_N + n_times <= n_samples)


def scaled(signal: Signal, preparation: Preparation, is_train_N: np.ndarray, condition_N: np.ndarray) -> Signal:
    """Scale the segments [N, C, T] of one session by what its training segments are like, then clamp.

    `condition_N` says which segments are repetitions of one another (image ids). For the scales see `whiten.fit`.

    Raises:
        InputError: there is nothing to fit on; see `whiten.fit`.
    """
    eeg_NCT = signal.eeg
    if preparation.scale != "none":
        scaling = whiten.fit(eeg_NCT, is_train_N, condition_N, preparation.scale, signal.channels)
        eeg_NCT = whiten.apply(scaling, eeg_NCT)
    if preparation.clamp is not None:
        eeg_NCT = np.clip(eeg_NCT, -preparation.clamp, preparation.clamp)
    return replace(signal, eeg=eeg_NCT, unit=_unit_after(signal.unit, preparation.scale))


# ---- what to doubt


def check_samples(signal: Signal, where: str) -> tuple[str, ...]:
    """Hold unit and rate against the samples of a source, [..., C, T], before anything is done to them.

    Returns:
        what could not be checked, in sentences; see `plausible.check_unit` and `plausible.check_rate`.
    Raises:
        InputError: the samples clearly have another unit or rate.
    """
    found = plausible.survey(_segmented(signal), signal.sfreq_hz)
    return (
        *plausible.check_unit(found, signal.unit, where),
        *plausible.check_rate(found, signal.sfreq_hz, where),
    )


def bad_channels(signal: Signal) -> dict[str, str]:
    """Return the channels without usable signal and why: flat, saturated, line noise only, noisy."""
    return plausible.bad_channels(_segmented(signal), signal.channels, signal.sfreq_hz)


def refuse_bad_channels(signal: Signal, where: str) -> tuple[str, ...]:
    """Return a sentence that names the bad channels, or nothing.

    Raises:
        InputError: more than a quarter of the channels is bad.
    """
    return plausible.refuse_bad_channels(bad_channels(signal), len(signal.channels), where)


def _segmented(signal: Signal) -> np.ndarray:
    return signal.eeg.reshape(-1, *signal.eeg.shape[-2:])


# ---- what comes out


def outcome(
    preparation: Preparation,
    *,
    channels: Sequence[str],
    sfreq_hz: float,
    t_min_s: float | None,
    n_times: int | None,
    unit: Unit,
    is_continuous: bool = False,
) -> Facts:
    """Return what the steps make of a source, and the steps themselves, without samples.

    For segments give their time and length; for a continuous source (`is_continuous`) these are those of the window,
    and what is given is not looked at.

    Raises:
        InputError: whatever the steps would raise because of channels, rate, time or length.
    """
    rows = _pick(tuple(channels), preparation)
    kept = _kept_names(tuple(channels), preparation, rows)
    steps: list[dict[str, Any]] = []
    if preparation.channels:
        steps.append({"step": "channels", "kept": list(kept)})
    if preparation.has_filters:
        _check_filters(preparation, sfreq_hz, None if is_continuous else n_times)
        steps += _filter_steps(preparation, sfreq_hz)
    if is_continuous:
        window_s = event_window_s(preparation)
        start, n_times = _event_rows(window_s, sfreq_hz)
        t_min_s = start / sfreq_hz
        steps.append({"step": "cut events", "from_s": window_s[0], "to_s": window_s[1], "samples": n_times})
    if t_min_s is None or n_times is None:
        raise InputError("segments need their first time and their number of samples; only a recording has none")
    if preparation.baseline_s:
        _rows(preparation.baseline_s, sfreq_hz, t_min_s, n_times, "baseline_s")
        steps.append({"step": "baseline", "from_s": preparation.baseline_s[0], "to_s": preparation.baseline_s[1]})
    if _is_resampled(preparation, sfreq_hz):
        new_hz = float(preparation.resample_hz or 0)
        what = "up: the new samples add no information" if new_hz > sfreq_hz else "down"
        steps.append({"step": "resample", "from_hz": sfreq_hz, "to_hz": new_hz, "by": "SciPy, Fourier", "what": what})
        n_times, sfreq_hz = _resampled_length(n_times, sfreq_hz, new_hz), new_hz
    if preparation.window_s:
        rows_T, t_min_s = _rows(preparation.window_s, sfreq_hz, t_min_s, n_times, "window_s")
        n_times = rows_T.stop - rows_T.start
        window_s = preparation.window_s
        steps.append({"step": "cut", "from_s": window_s[0], "to_s": window_s[1], "samples": n_times})
    steps = [step | {"unit_before": unit, "unit_after": unit} for step in steps]
    after = _unit_after(unit, preparation.scale)
    if preparation.scale != "none":
        basis = "training segments of each session"
        steps.append({"step": preparation.scale, "fitted_on": basis, "unit_before": unit, "unit_after": after})
    if preparation.clamp is not None:
        steps.append({"step": "clamp", "limit": preparation.clamp, "unit_before": after, "unit_after": after})
    return Facts(channels=kept, sfreq_hz=sfreq_hz, t_min_s=t_min_s, n_times=n_times, unit=after, steps=tuple(steps))


def _unit_after(unit: Unit, scale: Scale) -> Unit:
    if scale == "none":
        return unit
    return "zscore" if scale in ("zscore", "robust") else "whitened"


# ---- channels

_OLD_SITES = {"t3": "T7", "t4": "T8", "t5": "P7", "t6": "P8"}
# "EEG Fz-REF", "EEG C3-A2", "Fz-LE", "Fcz."
_DECORATED = re.compile(r"(?:eeg[ _:-]*)?(.+?)(?:-(?:ref|le|ar|avg?|a1|a2|m1|m2))?\.*", re.IGNORECASE)


@cache
def _sites_m() -> dict[str, tuple[float, float, float]]:
    """Return the 10-05 sites with head coordinates in metres (x right, y front, z up)."""
    import mne

    montage = mne.channels.make_standard_montage("colin27_1005")  # once named standard_1005
    info = mne.create_info(montage.ch_names, 1000.0, "eeg", verbose="error")
    info.set_montage(montage, verbose="error")
    position_C3 = [each["loc"][:3].tolist() for each in info["chs"]]
    return {name: (x, y, z) for name, (x, y, z) in zip(info["ch_names"], position_C3, strict=True)}


def canonical_channels(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names in 10-05 spelling: FP1 is Fp1, "EEG Fz-REF" is Fz, T3 is T7; unknown names stay as they are.

    So do names that would become the same one.
    """
    found = [_site(name) for name in names]
    count = Counter(found)
    return tuple(new if count[new] == 1 else old for old, new in zip(names, found, strict=True))


def _site(name: str) -> str:
    match = _DECORATED.fullmatch(name.strip())
    return _site_of_folded().get(match[1].casefold(), name) if match else name


@cache
def _site_of_folded() -> dict[str, str]:
    return {site.casefold(): site for site in _sites_m()} | _OLD_SITES


def positions_m(channels: Sequence[str]) -> tuple[tuple[float, float, float], ...]:
    """Return the standard head coordinates of 10-05 channels in metres, or nothing if one of them is not 10-05."""
    sites = _sites_m()
    return tuple(sites[name] for name in channels) if all(name in sites for name in channels) else ()


def _pick(channels: tuple[str, ...], preparation: Preparation) -> list[int]:
    if not preparation.channels:
        return list(range(len(channels)))
    row_of = {name: row for names in (canonical_channels(channels), channels) for row, name in enumerate(names)}
    rows: list[int] = []
    for name in preparation.channels:
        row = row_of.get(name, row_of.get(_site(name)))
        if row is None:
            near = difflib.get_close_matches(name, row_of, n=3, cutoff=0.3) or list(channels[:3])
            raise InputError(
                f"channel {name!r} is not among the {len(channels)} channels of the source; did you mean "
                f"{', '.join(near)}?"
            )
        if row in rows:
            raise InputError(
                f"channel {name!r} is asked for twice (it is {channels[row]!r} in the source); name it once"
            )
        rows.append(row)
    return rows


def _kept_names(channels: tuple[str, ...], preparation: Preparation, rows: list[int]) -> tuple[str, ...]:
    kept = tuple(channels[row] for row in rows)
    return canonical_channels(kept) if preparation.channels else kept


def _picked(signal: Signal, preparation: Preparation) -> Signal:
    rows = _pick(signal.channels, preparation)
    names = _kept_names(signal.channels, preparation, rows)
    if rows == list(range(len(signal.channels))):
        return replace(signal, channels=names)
    return replace(signal, eeg=signal.eeg[..., rows, :], channels=names)


# ---- filters and time


def _filtered(signal: Signal, preparation: Preparation) -> Signal:
    """Run MNE's zero-phase FIR filters over every channel by itself, in float64."""
    if not preparation.has_filters:
        return signal
    import mne

    _check_filters(preparation, signal.sfreq_hz, signal.n_times)
    rows_XT = signal.eeg.reshape(-1, signal.n_times)
    out_XT = np.empty(rows_XT.shape, signal.eeg.dtype)
    for rows in whiten.chunks(len(rows_XT), 4 * signal.n_times):
        x = rows_XT[rows].astype(np.float64)
        if preparation.notch_hz:
            x = mne.filter.notch_filter(x, signal.sfreq_hz, sorted(preparation.notch_hz), verbose="error")
        if preparation.low_hz or preparation.high_hz:
            x = mne.filter.filter_data(x, signal.sfreq_hz, preparation.low_hz, preparation.high_hz, verbose="error")
        out_XT[rows] = x
    return replace(signal, eeg=out_XT.reshape(signal.eeg.shape))


def _filter_steps(preparation: Preparation, sfreq_hz: float) -> Iterator[dict[str, Any]]:
    taps = _filter_lengths(preparation, sfreq_hz)
    by = "MNE, FIR, zero phase"
    if preparation.notch_hz:
        yield {"step": "notch", "at_hz": sorted(preparation.notch_hz), "by": by, "taps": taps["notch"]}
    if "band" in taps:
        band = {"low_hz": preparation.low_hz, "high_hz": preparation.high_hz}
        yield {"step": "band-pass", **band, "by": by, "taps": taps["band"]}


def _filter_lengths(preparation: Preparation, sfreq_hz: float) -> dict[str, int]:
    """Return the number of samples that MNE's filters span."""
    import mne

    lengths = {}
    if preparation.notch_hz:  # 0.5 Hz from stop to pass on either side, as notch_filter has it
        low, high = preparation.notch_hz[0] - 0.5, preparation.notch_hz[0] + 0.5
        taps = mne.filter.create_filter(
            None, sfreq_hz, high, low, l_trans_bandwidth=0.5, h_trans_bandwidth=0.5, verbose="error"
        )
        lengths["notch"] = len(taps)
    if preparation.low_hz or preparation.high_hz:
        taps = mne.filter.create_filter(None, sfreq_hz, preparation.low_hz, preparation.high_hz, verbose="error")
        lengths["band"] = len(taps)
    return lengths


def _check_filters(preparation: Preparation, sfreq_hz: float, n_times: int | None) -> None:
    nyquist_hz = sfreq_hz / 2
    for name in ("low_hz", "high_hz"):
        edge = getattr(preparation, name)
        _require(edge is None or edge < nyquist_hz, name, edge, f"below half the sampling rate, {nyquist_hz:g} Hz")
    for at_hz in preparation.notch_hz:
        margin_hz = at_hz / 400 + 0.5  # half of MNE's notch and its transition
        is_inside = margin_hz < at_hz < nyquist_hz - margin_hz
        _require(
            is_inside, "notch_hz", at_hz, f"above 0.6 Hz and {margin_hz:.2f} Hz below {nyquist_hz:g} Hz, half the rate"
        )
    for one, other in itertools.pairwise(sorted(preparation.notch_hz)):
        apart_hz = (one + other) / 400 + 1
        _require(other - one >= apart_hz, "notch_hz", preparation.notch_hz, f"at least {apart_hz:.2f} Hz apart there")
    needed = max(_filter_lengths(preparation, sfreq_hz).values())
    if n_times is not None and n_times < needed:
        raise InputError(
            f"the filters span {needed} samples ({needed / sfreq_hz:.2f} s), the data only {n_times} "
            f"({n_times / sfreq_hz:.2f} s); filter the continuous recording instead, or raise low_hz, lower high_hz "
            "or leave the notch out"
        )


def _is_resampled(preparation: Preparation, sfreq_hz: float) -> bool:
    return preparation.resample_hz is not None and not math.isclose(preparation.resample_hz, sfreq_hz)


def _resampled_length(n_times: int, sfreq_hz: float, new_hz: float) -> int:
    return max(round(new_hz / sfreq_hz * n_times), 1)


def _resampled(signal: Signal, new_hz: float) -> Signal:
    """Resample by FFT as MNE's `Epochs.resample` does: ends held to a power of two, padding cut off again.

    MNE takes one row at a time; here many go through SciPy's transform at once.
    """
    import scipy.signal

    n_old, ratio = signal.n_times, new_hz / signal.sfreq_hz
    n_times = _resampled_length(n_old, signal.sfreq_hz, new_hz)
    n_padded = 2 ** math.ceil(math.log2(n_old + 2 * min(n_old // 8, 100)))
    before = (n_padded - n_old) // 2
    pad = ((0, 0), (before, n_padded - n_old - before))
    first, n_long = round(ratio * before), max(round(ratio * n_padded), 1)
    rows_XT = signal.eeg.reshape(-1, n_old)
    out_XT = np.empty((len(rows_XT), n_times), signal.eeg.dtype)
    for rows in whiten.chunks(len(rows_XT), 2 * n_padded):
        padded_XT = np.pad(rows_XT[rows].astype(np.float64), pad, mode="edge")
        out_XT[rows] = np.asarray(scipy.signal.resample(padded_XT, n_long, axis=-1))[:, first : first + n_times]
    return replace(signal, eeg=out_XT.reshape(*signal.eeg.shape[:-1], n_times), sfreq_hz=new_hz)


def _event_rows(window_s: Span, sfreq_hz: float) -> tuple[int, int]:
    """Return the first sample of a window relative to the event, and how many: the fewest that hold all of it."""
    start, stop = (_snapped(edge_s * sfreq_hz) for edge_s in window_s)
    return math.floor(start), max(1, math.ceil(stop) - math.floor(start))


def _rows(span_s: Span, sfreq_hz: float, t_min_s: float, n_times: int, name: str) -> tuple[slice, float]:
    """Return the samples of a span, and the time of the first.

    The count depends on the span's length alone, so that files whose first samples differ by a fraction of a sample
    give segments of one length. The first is the nearest to the span's start; or, where the last would be missing
    because of that, the one before.
    """
    count = max(1, round(_snapped((span_s[1] - span_s[0]) * sfreq_hz)))
    first = _snapped((span_s[0] - t_min_s) * sfreq_hz)
    for start in (round(first), math.floor(first)):
        if start >= 0 and start + count <= n_times:
            return slice(start, start + count), t_min_s + start / sfreq_hz
    raise InputError(
        f"{name} {span_s[0]:g} to {span_s[1]:g} s is not inside the segments, which hold {t_min_s:g} to "
        f"{t_min_s + n_times / sfreq_hz:g} s ({n_times} samples at {sfreq_hz:g} Hz); choose a span they have"
    )


def _snapped(position: float) -> float:
    """Return the whole number that this is, but for rounding, or itself."""
    return round(position) if abs(position - round(position)) < 1e-6 else position


def _require(holds: bool, name: str, value: Any, condition: str) -> None:
    if not holds:
        raise InputError(f"{name} is {value!r}; it must be {condition}")
