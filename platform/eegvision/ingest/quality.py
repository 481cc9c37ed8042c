"""Numbers about the samples of a data set: measured row group by row group, merged as they come, summarised.

    quality = functools.reduce(merge, (measure(eeg_NCT, ...) for every row group))

`merge` is associative up to rounding, so parts can be measured in several processes. Everything is a float64 sum
or a count, hence small whatever the size of the data set. Spectrum and amplitudes are taken from a seeded sample of
segments of every row group; all else from every sample.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

Region = Literal["frontal", "central", "temporal", "parietal", "occipital", "other"]

REGIONS: tuple[Region, ...] = ("frontal", "central", "temporal", "parietal", "occipital", "other")
_ROWS_OF: dict[Region, str] = {
    "frontal": "N Fp AFp AF AFF F FFC FFT",
    "central": "FC FCC C CCP",
    "temporal": "FT FTT T TTP TP TPP",
    "parietal": "CP CPP P PPO",
    "occipital": "PO POO O OI I",
}
_REGION_OF_ROW = {row.lower(): region for region, rows in _ROWS_OF.items() for row in rows.split()}
_NAME = re.compile(r"([a-z]+?)(?:z|\d{1,2}h?)", re.IGNORECASE)

SAMPLED = 4  # segments of every row group (of 64) of which spectrum and amplitudes are taken
_ROWS_AT_ONCE = 16  # 16 x 128 x 440 float64 are 7 MB and stay in the cache
_WELCH_S = 2.0  # longest window of the spectrum
LINES_HZ = (50.0, 60.0)

# |x| of samples is counted in tenths of a decade.
_DECADES = (-20, 8)  # teslas to anything
AMPLITUDE_EDGES = 10.0 ** (np.arange(10 * _DECADES[0], 10 * _DECADES[1] + 1) / 10)

# A segment is clipped if a twentieth of its samples equal its highest or lowest value.
_CLIPPED_SHARE = 0.05
# A channel is named bad when, in one session, ...
_QUIET, _LOUD = 0.1, 3.0  # ... its standard deviation is this many times the median of the channels ...
_LOUD_MADS = 5.0  # ... and this many median absolute deviations (of the logarithm) away
_FLAT_SEGMENTS, _CLIPPED_SEGMENTS = 0.05, 0.05  # ... or this share of segments is constant or clipped ...
_LINE_POWER = 0.5  # ... or (over all sessions) this share of its power is at the line's frequency


@dataclass(frozen=True, kw_only=True, eq=False)
class Quality:
    """Sums over segments. G: visits (subject and session), S: subjects, F: frequencies.

    `flat_GC` and `clipped_GC` count segments. `evoked_SCT` and `power_CF` (density, unit^2/Hz) are sums; divide by
    `n_S` and `n_sampled`. `amplitude_B` counts samples by |x| between `AMPLITUDE_EDGES`; zeros are in none.
    """

    channels: tuple[str, ...]
    sfreq_hz: float
    t_min_s: float
    unit: str
    visits: tuple[tuple[str, int], ...]
    n_G: np.ndarray
    sum_GC: np.ndarray
    square_GC: np.ndarray
    low_GC: np.ndarray
    high_GC: np.ndarray
    flat_GC: np.ndarray
    clipped_GC: np.ndarray
    subjects: tuple[str, ...]
    n_S: np.ndarray
    evoked_SCT: np.ndarray
    n_sampled: int
    power_CF: np.ndarray
    amplitude_B: np.ndarray

    @property
    def n_segments(self) -> int:
        """Number of segments measured."""
        return int(self.n_G.sum())

    @property
    def n_times(self) -> int:
        """Samples per segment."""
        return self.evoked_SCT.shape[2]

    @property
    def times_s(self) -> np.ndarray:
        """Time of every sample after onset."""
        return self.t_min_s + np.arange(self.n_times) / self.sfreq_hz

    @property
    def frequencies_hz(self) -> np.ndarray:
        """Frequencies of `power_CF`."""
        return np.fft.rfftfreq(_welch_samples(self.n_times, self.sfreq_hz), 1 / self.sfreq_hz)


@dataclass(frozen=True, kw_only=True)
class BadChannel:
    """A channel that stands out, why, and in which visits ("sub-01, session 1"); in all of them: none is named."""

    channel: str
    reason: str
    visits: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Summary:
    """What `Quality` says about channels, in the data set's unit; shares are of segments, of power for `line_C`.

    `line_hz` is the line frequency with the higher peak; 0 where the spectrum does not reach it.
    """

    mean_C: np.ndarray
    std_C: np.ndarray
    low_C: np.ndarray
    high_C: np.ndarray
    flat_C: np.ndarray
    clipped_C: np.ndarray
    line_hz: float
    line_C: np.ndarray
    bad: tuple[BadChannel, ...]


def region(channel: str) -> Region:
    """Return the region of a 10-05 electrode name, `other` for names that are not one."""
    match = _NAME.fullmatch(channel)
    return _REGION_OF_ROW.get(match[1].lower(), "other") if match else "other"


def measure(
    eeg_NCT: np.ndarray,
    *,
    subject: Sequence[str],
    session: Sequence[int],
    channels: Sequence[str],
    sfreq_hz: float,
    t_min_s: float,
    unit: str,
    seed: int = 0,
) -> Quality:
    """Measure some segments of a data set.

    Args:
        eeg_NCT: finite samples of N >= 1 segments, float32 as they are stored.
        subject: of every segment.
        session: of every segment.
        channels: names of the rows.
        sfreq_hz: samples per second.
        t_min_s: time of the first sample after onset.
        unit: of the samples.
        seed: of the draw of the segments for spectrum and amplitudes; another one for every call.
    """
    n_segments, n_chans, n_times = eeg_NCT.shape
    assert n_segments == len(subject) == len(session) >= 1, "one subject and session per segment"
    assert n_chans == len(channels), "one name per channel"
    visits = tuple(sorted(set(zip(subject, map(int, session), strict=True))))
    subjects = tuple(sorted(set(subject)))
    visit_N = np.array([visits.index(visit) for visit in zip(subject, map(int, session), strict=True)])
    subject_N = np.array([subjects.index(name) for name in subject])
    sum_NC, square_NC, low_NC, high_NC, clipped_NC = (np.empty((n_segments, n_chans)) for _ in range(5))
    evoked_SCT = np.zeros((len(subjects), n_chans, n_times))
    least = max(2, round(_CLIPPED_SHARE * n_times))
    for start in range(0, n_segments, _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        stored_NCT = eeg_NCT[rows]
        x_NCT = stored_NCT.astype(np.float64)
        sum_NC[rows] = x_NCT.sum(axis=2)
        square_NC[rows] = np.einsum("nct,nct->nc", x_NCT, x_NCT)
        low, high = stored_NCT.min(axis=2), stored_NCT.max(axis=2)
        low_NC[rows], high_NC[rows] = low, high
        at_high = np.count_nonzero(stored_NCT == high[..., None], axis=2)
        at_low = np.count_nonzero(stored_NCT == low[..., None], axis=2)
        clipped_NC[rows] = (np.maximum(at_high, at_low) >= least) & (high > low)
        for number in np.unique(subject_N[rows]).tolist():
            evoked_SCT[number] += x_NCT[subject_N[rows] == number].sum(axis=0)
    power_CF, amplitude_B, n_sampled = _sampled(eeg_NCT, sfreq_hz, seed)

    def per_visit(values_NC: np.ndarray, reduce: Callable[..., np.ndarray]) -> np.ndarray:
        return np.stack([reduce(values_NC[visit_N == number], axis=0) for number in range(len(visits))])

    return Quality(
        channels=tuple(channels),
        sfreq_hz=float(sfreq_hz),
        t_min_s=float(t_min_s),
        unit=unit,
        visits=visits,
        n_G=np.bincount(visit_N),
        sum_GC=per_visit(sum_NC, np.sum),
        square_GC=per_visit(square_NC, np.sum),
        low_GC=per_visit(low_NC, np.min),
        high_GC=per_visit(high_NC, np.max),
        flat_GC=per_visit(high_NC == low_NC, np.sum),
        clipped_GC=per_visit(clipped_NC, np.sum).astype(np.int64),
        subjects=subjects,
        n_S=np.bincount(subject_N),
        evoked_SCT=evoked_SCT,
        n_sampled=n_sampled,
        power_CF=power_CF,
        amplitude_B=amplitude_B,
    )


def _sampled(eeg_NCT: np.ndarray, sfreq_hz: float, seed: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the sum of Welch's spectra (Hann windows, half overlapping), counts by |x|, and of how many segments."""
    from scipy.signal import welch

    n_sampled = min(SAMPLED, len(eeg_NCT))
    rows = np.sort(np.random.default_rng(seed).choice(len(eeg_NCT), n_sampled, replace=False))
    drawn_NCT = np.asarray(eeg_NCT[rows], dtype=np.float32)
    n_window = _welch_samples(eeg_NCT.shape[2], sfreq_hz)
    _, power_NCF = welch(drawn_NCT, sfreq_hz, nperseg=n_window, axis=2)
    size = np.abs(drawn_NCT[drawn_NCT != 0])
    n_bins = len(AMPLITUDE_EDGES) - 1
    bin_ = np.clip(np.floor(10 * np.log10(size)).astype(np.int64) - 10 * _DECADES[0], 0, n_bins - 1)
    return power_NCF.sum(axis=0, dtype=np.float64), np.bincount(bin_, minlength=n_bins), n_sampled


def _welch_samples(n_times: int, sfreq_hz: float) -> int:
    return min(n_times, max(8, round(_WELCH_S * sfreq_hz)))


def merge(a: Quality, b: Quality) -> Quality:
    """Return what measuring the segments of both at once would give, up to rounding of the sums."""
    for name in ("channels", "sfreq_hz", "t_min_s", "unit", "n_times"):
        assert getattr(a, name) == getattr(b, name), f"shards of one data set differ in {name}"
    visits = tuple(sorted({*a.visits, *b.visits}))
    subjects = tuple(sorted({*a.subjects, *b.subjects}))
    names: dict[str, Callable[[Quality], tuple]] = {
        "G": lambda q: q.visits,
        "S": lambda q: q.subjects,
    }
    all_of = {"G": visits, "S": subjects}
    merged: dict[str, Any] = {}
    for name in (field.name for field in fields(Quality)):
        stem, _, axes = name.rpartition("_")
        values = [getattr(q, name) for q in (a, b)]
        if stem and axes[0] in all_of:
            keys = all_of[axes[0]]
            join, start = {"low": (np.minimum, np.inf), "high": (np.maximum, -np.inf)}.get(stem, (np.add, 0))
            out = np.full((len(keys), *values[0].shape[1:]), start, dtype=values[0].dtype)
            for q, part in zip((a, b), values, strict=True):
                rows = [keys.index(key) for key in names[axes[0]](q)]
                out[rows] = join(out[rows], part)
            merged[name] = out
        else:
            is_sum = name in ("n_sampled", "power_CF", "amplitude_B")
            merged[name] = values[0] + values[1] if is_sum else values[0]
    return Quality(**merged | {"visits": visits, "subjects": subjects})


def summary(quality: Quality) -> Summary:
    """Return means, spreads and shares per channel, and the channels that stand out."""
    n_samples_G1 = quality.n_G[:, None] * quality.n_times
    std_GC = _std(n_samples_G1, quality.sum_GC, quality.square_GC)
    n_samples = n_samples_G1.sum()
    line_hz, line_C = _line(quality)
    return Summary(
        mean_C=quality.sum_GC.sum(axis=0) / n_samples,
        std_C=_std(n_samples, quality.sum_GC.sum(axis=0), quality.square_GC.sum(axis=0)),
        low_C=quality.low_GC.min(axis=0),
        high_C=quality.high_GC.max(axis=0),
        flat_C=quality.flat_GC.sum(axis=0) / quality.n_segments,
        clipped_C=quality.clipped_GC.sum(axis=0) / quality.n_segments,
        line_hz=line_hz,
        line_C=line_C,
        bad=tuple(_bad(quality, std_GC, line_hz, line_C)),
    )


def evoked_by_region(quality: Quality) -> dict[Region, np.ndarray]:
    """Return the evoked response [S, T] of every subject in every region that has channels: means over channels."""
    evoked_SCT = quality.evoked_SCT / quality.n_S[:, None, None]
    return {name: evoked_SCT[:, rows].mean(axis=1) for name, rows in _rows_by_region(quality.channels).items()}


def power_by_region(quality: Quality) -> dict[Region, np.ndarray]:
    """Return the power density [F] (unit^2/Hz) of every region that has channels: means over channels."""
    power_CF = quality.power_CF / quality.n_sampled
    return {name: power_CF[rows].mean(axis=0) for name, rows in _rows_by_region(quality.channels).items()}


def to_arrays(quality: Quality) -> dict[str, np.ndarray]:
    """Return everything as plain arrays, for `np.savez`."""
    values = {name: np.asarray(value) for name, value in vars(quality).items() if name != "visits"}
    visit_subjects = np.array([subject for subject, _ in quality.visits])
    return values | {"visit_subjects": visit_subjects, "visit_sessions": np.array([s for _, s in quality.visits])}


def from_arrays(arrays: Mapping[str, np.ndarray]) -> Quality:
    """Return the quality of which `to_arrays` gave these arrays."""
    values: dict[str, Any] = {name: arrays[name] for name in (f.name for f in fields(Quality)) if name in arrays}
    visits = zip(arrays["visit_subjects"].tolist(), arrays["visit_sessions"].tolist(), strict=True)
    for name in ("channels", "subjects"):
        values[name] = tuple(values[name].tolist())
    for name in ("sfreq_hz", "t_min_s", "unit", "n_sampled"):
        values[name] = values[name].item()
    return Quality(**values, visits=tuple(visits))


def _rows_by_region(channels: Sequence[str]) -> dict[Region, np.ndarray]:
    found = [region(channel) for channel in channels]
    return {name: np.flatnonzero([f == name for f in found]) for name in REGIONS if name in found}


def _std(n: Any, total: np.ndarray, squares: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(squares / n - (total / n) ** 2, 0))


def _line(quality: Quality) -> tuple[float, np.ndarray]:
    """Return 50 or 60 Hz, whichever stands out more, and the share of each channel's power (above 1 Hz) there."""
    hz = quality.frequencies_hz
    width_hz = max(1.0, 1.5 * (hz[1] - hz[0])) if len(hz) > 1 else 0.0
    shares = {}
    for line_hz in LINES_HZ:
        if hz[-1] >= line_hz + width_hz:
            is_line_F = np.abs(hz - line_hz) <= width_hz
            total_C = np.maximum(quality.power_CF[:, hz >= 1].sum(axis=1), 1e-300)
            shares[line_hz] = quality.power_CF[:, is_line_F].sum(axis=1) / total_C
    if not shares:
        return 0.0, np.zeros(len(quality.channels))
    return max(shares.items(), key=lambda item: float(np.median(item[1])))


def _bad(quality: Quality, std_GC: np.ndarray, line_hz: float, line_C: np.ndarray) -> list[BadChannel]:
    """Name channels by reason; a visit with all channels alike names none."""
    median_G1 = np.median(std_GC, axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_GC = np.log(std_GC / median_G1)
    mad_G1 = 1.4826 * np.median(np.abs(log_GC), axis=1, keepdims=True)
    segments_G1 = quality.n_G[:, None]
    is_flat_GC = quality.flat_GC / segments_G1 > _FLAT_SEGMENTS
    reasons = {
        "constant": is_flat_GC,
        "nearly no signal": (std_GC < _QUIET * median_G1) & ~is_flat_GC,
        "far more noise than the others": (std_GC > _LOUD * median_G1) & (log_GC > _LOUD_MADS * mad_G1),
        "clipped: many samples at one extreme value": quality.clipped_GC / segments_G1 > _CLIPPED_SEGMENTS,
    }
    bad = []
    for number, channel in enumerate(quality.channels):
        for reason, is_bad_GC in reasons.items():
            where = np.flatnonzero(is_bad_GC[:, number]).tolist()
            names = tuple("{}, session {}".format(*quality.visits[visit]) for visit in where)
            if where:
                visits = () if len(where) == len(quality.visits) else names
                bad.append(BadChannel(channel=channel, reason=reason, visits=visits))
        if line_C[number] > _LINE_POWER:
            reason = f"{100 * line_C[number]:.0f} % of its power is at {line_hz:g} Hz, the power line"
            bad.append(BadChannel(channel=channel, reason=reason))
    return bad
