"""Do samples look like what is said of them? Unit by amplitude, rate by the mains line, channels by their own signal.

A wrong unit or rate spoils everything after it without any error. What is said is doubted only where the samples
clearly say something else; where they say nothing, that is a sentence for the data set's facts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eegvision.vocab import InputError, Unit

# Typical standard deviation of a channel, over channels: what recordings have, and what is still believed.
_TYPICAL: dict[Unit, tuple[float, float]] = {"V": (1e-6, 1e-3), "uV": (1.0, 1e3), "T": (1e-14, 1e-10)}
_BELIEVED: dict[Unit, tuple[float, float]] = {
    "V": (1e-7, 1e-2),
    "uV": (0.1, 1e4),
    "T": (1e-15, 1e-9),
    "zscore": (0.05, 20.0),
    "whitened": (0.05, 20.0),
}
_MAINS_HZ = (50.0, 60.0)
_RATES_HZ = (100, 120, 128, 200, 250, 256, 300, 400, 500, 512, 600, 1000, 1024, 1200, 2000, 2048, 5000)
_RHYTHMS_BELOW_HZ = 35.0  # above, nothing in the brain has a sharp peak
_PROMINENCE_DB, _SLOW_PROMINENCE_DB = 8.0, 10.0
_MIN_STRETCHES = 6
_SHOULDER = (3, 8)  # bins from a line to where the spectrum beside it is taken; a line of a Hann window is 2 bins wide


@dataclass(frozen=True, kw_only=True, eq=False)
class Survey:
    """Spectrum and amplitude of some stretches of a recording; channels without any signal are left out."""

    power_CF: np.ndarray
    step_hz: float
    std_C: np.ndarray
    n_stretches: int


@dataclass(frozen=True, kw_only=True)
class Line:
    """A sharp peak that most channels share; `in_nearly_all`: 10 dB in nine of ten."""

    hz: float
    prominence_db: float
    in_nearly_all: bool


def survey(eeg_NCT: np.ndarray, sfreq_hz: float, *, max_stretches: int = 32) -> Survey:
    """Look at stretches of up to 32 s (or segments) spread over a recording: mean periodogram, median amplitude."""
    n_segments, _, n_times = eeg_NCT.shape
    length = min(n_times, math.ceil(32 * sfreq_hz), max(1, n_segments * n_times // 8))
    per_segment = n_times // length
    n_stretches = min(max_stretches, n_segments * per_segment)
    window_T = np.hanning(length + 1)[:-1]
    powers, stds = [], []
    for number in np.linspace(0, n_segments * per_segment - 1, n_stretches).round().astype(int):
        segment, place = divmod(int(number), per_segment)
        x_CT = eeg_NCT[segment, :, place * length : (place + 1) * length].astype(np.float64)
        if not np.isfinite(x_CT).all():
            continue
        x_CT = x_CT - x_CT.mean(axis=-1, keepdims=True)
        stds.append(x_CT.std(axis=-1))
        powers.append(np.abs(np.fft.rfft(x_CT * window_T)) ** 2)
    if not powers:
        nothing = np.zeros((0, length // 2 + 1))
        return Survey(power_CF=nothing, step_hz=sfreq_hz / length, std_C=nothing[:, 0], n_stretches=0)
    std_C = np.median(stds, axis=0)
    is_alive_C = std_C > 0
    power_CF = np.mean(powers, axis=0)[is_alive_C]
    return Survey(power_CF=power_CF, step_hz=sfreq_hz / length, std_C=std_C[is_alive_C], n_stretches=len(powers))


def check_unit(found: Survey, unit: Unit, where: str) -> tuple[str, ...]:
    """Hold the typical amplitude against the unit.

    Raises:
        InputError: it is far from what the unit has, and as another unit would have it.
    """
    if len(found.std_C) == 0:
        return ("the unit could not be checked: no channel has a signal",)
    typical = float(np.median(found.std_C))
    low, high = _BELIEVED[unit]
    if low <= typical <= high:
        return ()
    for other, (other_low, other_high) in _TYPICAL.items():
        if other != unit and other_low <= typical <= other_high:
            raise InputError(
                f"{where}: channels vary by {typical:.2g} (standard deviation, median over channels), which cannot be "
                f"{unit} but looks like {other}; state the unit {other}, or mend the file"
            )
    return (
        f"the unit could not be checked: channels vary by {typical:.2g} {unit}, where {low:g} to {high:g} is usual",
    )


def check_rate(found: Survey, sfreq_hz: float, where: str) -> tuple[str, ...]:
    """Hold the mains line, which is at 50 or 60 Hz, against the sampling rate.

    Only a line that would be at 50 or 60 Hz if the rate were another usual one speaks against it. None of these do:
    a rhythm (not sharp), a harmonic of a slower line (the pace of stimulation), harmonics of the mains whose first
    was cut out. What cannot be seen: a wrong rate that takes 50 Hz to 60, or the reverse.

    Raises:
        InputError: there is such a line, and none at 50 or 60 Hz.
    """
    unchecked = "the rate could not be checked: "
    if found.n_stretches < _MIN_STRETCHES or len(found.std_C) == 0:
        return (f"{unchecked}fewer than {_MIN_STRETCHES} stretches of signal",)
    lines = find_lines(found)
    if any(abs(line.hz - mains) <= 1 for line in lines for mains in _MAINS_HZ):
        return ()
    odd_harmonics = [mains * k for mains in _MAINS_HZ for k in (3, 5, 7)]
    if any(abs(line.hz - harmonic) <= 0.5 for line in lines for harmonic in odd_harmonics):
        return ()
    for line in lines:
        rates = _rates_for(line, sfreq_hz, found.step_hz)
        is_slow = line.hz < _RHYTHMS_BELOW_HZ
        if not rates or (is_slow and not (line.in_nearly_all and found.step_hz <= 0.125)):
            continue
        if _is_of_a_pace(line, lines) or _is_left_of_notch(line, found):
            continue
        likely = " or ".join(f"{rate} Hz (line at {mains:g} Hz)" for rate, mains in rates)
        raise InputError(
            f"{where}: the sampling rate is given as {sfreq_hz:g} Hz, but no mains line is at 50 or 60 Hz and a sharp "
            f"line at {line.hz:.2f} Hz in most channels; the rate is probably {likely}; correct it in the file or "
            "state it, or cut that line out of the recording if it is something else"
        )
    return (f"{unchecked}no line-frequency peak",)


def find_lines(found: Survey) -> list[Line]:
    """Return the peaks that stand 8 dB above the spectrum on both sides in half of the channels, strongest first."""
    near, far = _SHOULDER
    n_bins = found.power_CF.shape[1]
    if n_bins <= 4 * far:
        return []
    level_CF = 10 * np.log10(found.power_CF + 1e-30 * found.power_CF.max())
    prominence_CF = np.full(level_CF.shape, -np.inf)
    for level_F, out_F in zip(level_CF, prominence_CF, strict=True):
        beside_F = np.median(np.lib.stride_tricks.sliding_window_view(level_F, far - near + 1), axis=-1)
        inner = slice(far, n_bins - far)
        out_F[inner] = level_F[inner] - np.maximum(beside_F[: n_bins - 2 * far], beside_F[far + near :])
    shared_F, least_F = np.quantile(prominence_CF, (0.5, 0.1), axis=0, method="lower")
    lines = []
    for peak in np.flatnonzero(shared_F >= _PROMINENCE_DB):
        if shared_F[peak] < shared_F[peak - 2 : peak + 3].max():
            continue
        left, middle, right = level_CF[:, peak - 1 : peak + 2].mean(axis=0)
        bend = left - 2 * middle + right
        shift = 0.5 * (left - right) / bend if bend < 0 else 0.0
        lines.append(
            Line(
                hz=float((peak + np.clip(shift, -0.5, 0.5)) * found.step_hz),
                prominence_db=float(shared_F[peak]),
                in_nearly_all=bool(least_F[peak] >= _SLOW_PROMINENCE_DB),
            )
        )
    return sorted(lines, key=lambda line: -line.prominence_db)


def bad_channels(eeg_NCT: np.ndarray, channels: Sequence[str], sfreq_hz: float) -> dict[str, str]:
    """Return the channels that carry no usable signal, each with its reason; of filtered data, where hum is curable.

    flat: constant. saturated: 2 % of the samples at the largest or smallest value. line: 99 % of the power within
    1 Hz of the mains and its harmonics (segments of at least 1 s). noisy: 20 times the median channel's deviation.
    """
    found: dict[str, str] = {}
    std_of: dict[str, float] = {}
    for row, name in enumerate(channels):
        x_NT = eeg_NCT[:, row]
        low, high = x_NT.min(), x_NT.max()
        if low == high:
            found[name] = "flat"
            continue
        std_of[name] = float(x_NT.std(dtype=np.float64))
        share = max(float((x_NT == low).mean()), float((x_NT == high).mean()))
        if share >= 0.02:
            found[name] = f"saturated: {share:.0%} of the samples at one extreme value"
    median = float(np.median(list(std_of.values()))) if std_of else 0.0
    line_share_of = _line_shares(eeg_NCT, [name in std_of for name in channels], channels, sfreq_hz)
    for name in std_of.keys() - found.keys():
        if line_share_of.get(name, 0.0) >= 0.99:
            found[name] = f"line noise only: {line_share_of[name]:.1%} of its power"
        elif std_of[name] > 20 * median:
            found[name] = f"noisy: {std_of[name] / median:.0f} times the median channel"
    return {name: found[name] for name in channels if name in found}


def refuse_bad_channels(bad: dict[str, str], n_channels: int, where: str) -> tuple[str, ...]:
    """Refuse a recording a quarter of whose channels is bad; else return a sentence that names them, if any.

    Raises:
        InputError: more than a quarter is bad.
    """
    listed = ", ".join(f"{name} ({reason})" for name, reason in bad.items())
    if 4 * len(bad) > n_channels:
        raise InputError(
            f"{where}: {len(bad)} of {n_channels} channels are bad: {listed}; leave the recording out, or keep only "
            "good channels (--channels)"
        )
    return (f"{where}: bad channels {listed}",) if bad else ()


def _line_shares(
    eeg_NCT: np.ndarray, is_alive: Sequence[bool], channels: Sequence[str], sfreq_hz: float
) -> dict[str, float]:
    alive = [row for row, each in enumerate(is_alive) if each]
    if eeg_NCT.shape[-1] < sfreq_hz or not alive:
        return {}
    found = survey(eeg_NCT, sfreq_hz)
    if len(found.std_C) != len(alive):  # a channel that is constant in most stretches
        return {}
    hz_F = np.arange(found.power_CF.shape[1]) * found.step_hz
    is_line_F = np.zeros(len(hz_F), dtype=bool)
    for mains in _MAINS_HZ:
        is_line_F |= np.abs(hz_F - mains * np.maximum(1, np.round(hz_F / mains))) <= max(1.0, 2 * found.step_hz)
    share_C = found.power_CF[:, is_line_F].sum(axis=1) / found.power_CF.sum(axis=1)
    return {channels[row]: float(share) for row, share in zip(alive, share_C, strict=True)}


def _rates_for(line: Line, sfreq_hz: float, step_hz: float) -> list[tuple[int, float]]:
    """Return the usual rates, up to 4 times the given one, with which this line would be the mains, and at what.

    Mains keep to 0.2 Hz. Rates further up would take pictures shown at 10 Hz for the mains.
    """
    return [
        (rate, mains)
        for rate in _RATES_HZ
        for mains in _MAINS_HZ
        if not math.isclose(rate, sfreq_hz, rel_tol=0.01)
        and rate <= 4.2 * sfreq_hz
        and abs(line.hz - mains * sfreq_hz / rate) <= max(0.2 * sfreq_hz / rate, 0.5 * step_hz)
    ]


def _is_of_a_pace(line: Line, lines: list[Line]) -> bool:
    """Whether a slower line divides this one; or, where paces of stimulation are, another is no multiple of it."""
    if any(slower.hz < 0.75 * line.hz and _is_multiple(line, slower) for slower in lines):
        return True
    return line.hz < _RHYTHMS_BELOW_HZ and not all(_is_multiple(other, line) for other in lines)


def _is_multiple(line: Line, slower: Line) -> bool:
    ratio = line.hz / slower.hz
    return ratio > 0.5 and abs(ratio - round(ratio)) < 0.02


def _is_left_of_notch(line: Line, found: Survey) -> bool:
    """Whether the line is a harmonic of a mains frequency at which the spectrum has a hole."""
    level_F = 10 * np.log10(np.median(found.power_CF, axis=0) + 1e-30 * found.power_CF.max())
    hz_F = np.arange(len(level_F)) * found.step_hz
    for mains in _MAINS_HZ:
        is_harmonic = abs(line.hz - mains * round(line.hz / mains)) <= 0.5
        hole = level_F[np.abs(hz_F - mains) <= max(0.5, found.step_hz)]
        left = level_F[(hz_F >= mains - 6) & (hz_F <= mains - 2.5)]
        right = level_F[(hz_F >= mains + 2.5) & (hz_F <= mains + 6)]
        if not is_harmonic or min(map(len, (hole, left, right))) == 0:
            continue
        if hole.min() < min(np.median(left), np.median(right)) - 15:
            return True
    return False
