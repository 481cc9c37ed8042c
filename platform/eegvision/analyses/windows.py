"""How well pictures are found when the model sees only a part of a segment.

A view is a part of a segment: some channels (regions), some samples (windows) or some rates (bands). The model stays
as it was trained. What it is not to see becomes noise of the same mean and variance (`channels.noise_rows`), or is left
away where the encoder takes any length, or is filtered out. To train on a part instead, set `data.channels`,
`data.window_s` or `data.band_hz` of a run: that asks what can be learned from it, this what the model relies on.

Axes: B segments of a chunk, N segments, R draws of noise, C channels, T samples, D embedding, M gallery pictures.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.signal
import torch
from torch import Tensor

from eegvision.analyses.channels import (
    EegModel,
    Encoded,
    Noise,
    check_chunk,
    noise_like,
    outside_replaced,
    samples_of,
    takes_excerpt,
)
from eegvision.evaluate.retrieval import ranks, similarity
from eegvision.evaluate.statistics import bootstrap_interval, chance_topk
from eegvision.vocab import InputError

Bands = tuple[tuple[float, float], ...]

BANDS_HZ: dict[str, Bands] = {
    "delta": ((0.0, 4.0),),
    "theta": ((4.0, 8.0),),
    "alpha": ((8.0, 12.0),),
    "beta": ((12.0, 30.0),),
    "gamma": ((32.0, 45.0), (55.0, 95.0)),
}
"""NICE's bands, gamma around the mains; delta from 0 is ours, since a second holds too little to cut below it."""

_ORDER = 4
_REGION_OF = {
    "frontal": ("FP", "AFP", "AF", "AFF", "F", "FFC", "FFT"),
    "central": ("FC", "FCC", "C", "CCP"),
    "temporal": ("FT", "FTT", "T", "TTP", "TP", "TPP"),
    "parietal": ("CP", "CPP", "P", "PPO"),
    "occipital": ("PO", "POO", "O", "OI", "I"),
}
_LATERAL = ("FC5", "FC6", "C5", "C6")  # which NICE counts as temporal


@dataclass(frozen=True, kw_only=True)
class View:
    """The part of a segment that the model is to see; what is not set is not restricted."""

    name: str
    channels: tuple[str, ...] | None = None
    """Names of the channels that are shown."""
    samples: tuple[int, int] | None = None
    """First sample that is shown, and the first after it that is not."""
    bands_hz: Bands = ()
    """Ranges (low, high) of rates, kept or removed; 0 and half the sampling rate are open ends."""
    band_is: Literal["kept", "removed"] = "removed"


def regions_of(channels: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the channels of each region of the scalp, by their 10-05 names; regions without one are left out.

    NICE's parietal (CP, P), occipital (PO, O) and temporal (FT, T, TP, FC5-6, C5-6) regions; what it takes together as
    frontal/central is apart here. Names between two rows of the 10-10 system go with the one in front.

    Raises:
        InputError: a channel has no such name.
    """
    region_of_letters = {letters: region for region, each in _REGION_OF.items() for letters in each}
    found: dict[str, list[str]] = {region: [] for region in _REGION_OF}
    for channel in channels:
        match = re.fullmatch(r"([A-Z]+)(Z|\d+)H?", channel.upper())
        region = region_of_letters.get(match[1]) if match else None
        if region is None:
            raise InputError(
                f"channel {channel!r} is no 10-05 name, so its region is not known; give `regions` as a mapping from "
                "a region's name to its channels"
            )
        found["temporal" if channel.upper() in _LATERAL else region].append(channel)
    return {region: tuple(names) for region, names in found.items() if names}


def region_views(channels: Sequence[str], regions: Mapping[str, Sequence[str]]) -> list[View]:
    """Return views of all channels, of each region alone, and of all but each region.

    Raises:
        InputError: a region is empty or has a channel that is not there.
    """
    views = [View(name="all")]
    for region, names in regions.items():
        unknown = [name for name in names if name not in channels]
        if unknown or not names:
            raise InputError(
                f"region {region!r} has {unknown or 'no channels'}; the segments have {', '.join(channels)}"
            )
        rest = tuple(name for name in channels if name not in names)
        views.append(View(name=f"only {region}", channels=tuple(names)))
        views.append(View(name=f"without {region}", channels=rest))
    return views


def band_views(sfreq_hz: float, bands: Mapping[str, Bands] = BANDS_HZ) -> list[View]:
    """Return views of all rates, of each band alone, and of all but each band, with the rates in the names.

    Ranges that begin at or above half the sampling rate hold nothing and are left out.
    """
    views = [View(name="all")]
    for band, ranges in bands.items():
        bands_hz = tuple(each for each in ranges if each[0] < sfreq_hz / 2)
        if bands_hz:
            name = f"{band} ({', '.join(f'{low:g}-{high:g}' for low, high in bands_hz)} Hz)"
            views.append(View(name=f"only {name}", bands_hz=bands_hz, band_is="kept"))
            views.append(View(name=f"without {name}", bands_hz=bands_hz))
    return views


def growing_windows(step_s: float, *, t_min_s: float, sfreq_hz: float, n_times: int) -> list[View]:
    """Return views from stimulus onset to each multiple of the step: NICE's [0, t].

    Raises:
        InputError: the step is not above 0, or no window fits.
    """
    edges_s = _edges(step_s, t_min_s, sfreq_hz, n_times)
    return [_window((edges_s[0], stop_s), t_min_s, sfreq_hz, n_times) for stop_s in edges_s[1:]]


def shrinking_windows(step_s: float, *, t_min_s: float, sfreq_hz: float, n_times: int) -> list[View]:
    """Return views from each multiple of the step to the segment's end: NICE's [t, end].

    Raises:
        InputError: the step is not above 0, or no window fits.
    """
    edges_s, end_s = _edges(step_s, t_min_s, sfreq_hz, n_times), t_min_s + n_times / sfreq_hz
    starts_s = [start_s for start_s in edges_s if start_s < end_s - 0.5 / sfreq_hz]
    return [_window((start_s, end_s), t_min_s, sfreq_hz, n_times) for start_s in starts_s]


def sliding_windows(step_s: float, width_s: float, *, t_min_s: float, sfreq_hz: float, n_times: int) -> list[View]:
    """Return views of this width that begin at each multiple of the step: NICE's [t, t + 100 ms].

    Raises:
        InputError: the step or width is not above 0, or no window fits.
    """
    edges_s, end_s = _edges(step_s, t_min_s, sfreq_hz, n_times), t_min_s + n_times / sfreq_hz
    starts_s = [start_s for start_s in edges_s if start_s + width_s <= end_s + 1e-9]
    if width_s <= 0 or not starts_s:
        raise InputError(
            f"no window of {width_s:g} s fits between {edges_s[0]:g} and {end_s:g} s; choose a width in it"
        )
    return [_window((start_s, start_s + width_s), t_min_s, sfreq_hz, n_times) for start_s in starts_s]


def _edges(step_s: float, t_min_s: float, sfreq_hz: float, n_times: int) -> list[float]:
    """Return the multiples of a step from onset, or from the first sample if that is later, to the segment's end."""
    start_s, end_s = max(0.0, t_min_s), t_min_s + n_times / sfreq_hz
    if not 0 < step_s <= end_s - start_s:
        raise InputError(f"step_s is {step_s:g} with segments from {start_s:g} to {end_s:g} s; choose a step in them")
    return [start_s + step_s * n for n in range(math.floor((end_s - start_s) / step_s + 1e-9) + 1)]


def _window(interval_s: tuple[float, float], t_min_s: float, sfreq_hz: float, n_times: int) -> View:
    samples = samples_of(interval_s, t_min_s=t_min_s, sfreq_hz=sfreq_hz, n_times=n_times)
    return View(name=f"{interval_s[0]:.3g} to {interval_s[1]:.3g} s", samples=samples)


def band_filtered(
    eeg_BCT: np.ndarray, bands_hz: Bands, band_is: Literal["kept", "removed"], sfreq_hz: float
) -> np.ndarray:
    """Return segments with only these ranges of rates, or without them, in the segments' type.

    Butterworth filters of order 4, run forwards and backwards so that nothing is shifted in time (edges are at half
    amplitude, the order counts twice). Kept ranges are added up, removed ones filtered out one after the other. The
    segment is continued by its odd reflection; what is slower than the segment is long cannot be told from its trend.

    Args:
        bands_hz: (low, high) each; 0, and anything from half the sampling rate on, are open ends.
    Raises:
        InputError: a range is empty, or begins at or above half the sampling rate.
    """
    value_BCT = np.asarray(eeg_BCT, dtype=np.float64)
    nyquist_hz = sfreq_hz / 2
    is_kept = band_is == "kept"
    filtered_BCT = np.zeros_like(value_BCT) if is_kept else value_BCT
    for low_hz, high_hz in bands_hz:
        if not 0 <= low_hz < min(high_hz, nyquist_hz):
            raise InputError(
                f"band {low_hz:g} to {high_hz:g} Hz holds nothing of segments at {sfreq_hz:g} Hz; "
                f"choose one that begins below {nyquist_hz:g} Hz and ends above where it begins"
            )
        passed_BCT = _butterworth(value_BCT if is_kept else filtered_BCT, (low_hz, high_hz), is_kept, sfreq_hz)
        filtered_BCT = filtered_BCT + passed_BCT if is_kept else passed_BCT
    return filtered_BCT.astype(np.asarray(eeg_BCT).dtype)


def _butterworth(value_BCT: np.ndarray, band_hz: tuple[float, float], is_kept: bool, sfreq_hz: float) -> np.ndarray:
    low_hz, high_hz = band_hz
    is_open_above = high_hz >= sfreq_hz / 2
    if low_hz == 0 and is_open_above:
        return value_BCT if is_kept else np.zeros_like(value_BCT)
    if low_hz == 0:
        edges, kind = high_hz, "lowpass" if is_kept else "highpass"
    elif is_open_above:
        edges, kind = low_hz, "highpass" if is_kept else "lowpass"
    else:
        edges, kind = band_hz, "bandpass" if is_kept else "bandstop"
    sections = scipy.signal.butter(_ORDER, edges, kind, fs=sfreq_hz, output="sos")
    return scipy.signal.sosfiltfilt(sections, value_BCT, axis=-1, padlen=value_BCT.shape[-1] - 1)


# ---- what the model makes of a view


@dataclass(frozen=True, kw_only=True, eq=False)
class Viewed:
    """Embeddings of segments of which the model saw a part; one draw where nothing was replaced by noise.

    `encoded` as in `channels.ChannelChanges`.
    """

    view: View
    noise: Noise
    segment_ids: tuple[str, ...]
    eeg_NRD: np.ndarray
    has_noise: bool
    encoded: Encoded


@torch.no_grad()
def embed_view(
    model: EegModel,
    eeg_BCT: Tensor,
    segment_ids: Sequence[str],
    channels: Sequence[str],
    view: View,
    noise: Noise,
    *,
    subject_B: Tensor | None = None,
    batch_size: int = 256,
) -> Viewed:
    """Return the embeddings of a chunk of segments of which the model sees the view alone.

    Rates are filtered first, on the whole segment; then channels that are not shown become noise; then samples that
    are not shown are left away, or become noise where the encoder is bound to a length.

    Args:
        eeg_BCT, segment_ids, channels, subject_B: as in `channels.channel_changes`.
        noise: `n_draws` are encoded where something becomes noise; its rate is that of the segments.
        batch_size: segments encoded at once; it changes the results by rounding only.
    Raises:
        InputError: as `channels.channel_changes`; or the view names other channels, samples or rates than there are.
    """
    check_chunk(model, eeg_BCT, segment_ids, channels, noise, subject_B, batch_size)
    n_times = eeg_BCT.shape[2]
    shown = tuple(channels) if view.channels is None else view.channels
    first, stop = view.samples or (0, n_times)
    unknown = [name for name in shown if name not in channels]
    if unknown or not shown or not 0 <= first < stop <= n_times:
        raise InputError(
            f"view {view.name!r} shows channels {list(shown)} and samples {first} to {stop}; the segments have "
            f"{', '.join(channels)} and {n_times} samples"
        )
    encoded: Encoded = "segment"
    if (first, stop) != (0, n_times):
        encoded = "excerpt" if takes_excerpt(model, eeg_BCT, (first, stop), subject_B) else "noise outside"
    is_hidden_C = torch.tensor([name not in shown for name in channels], device=eeg_BCT.device)
    has_noise = bool(is_hidden_C.any()) or encoded == "noise outside"
    embedded = []
    for rows in (slice(start, start + batch_size) for start in range(0, len(eeg_BCT), batch_size)):
        ids, subject = segment_ids[rows], None if subject_B is None else subject_B[rows]
        part_BCT = eeg_BCT[rows]
        if view.bands_hz:
            kept = band_filtered(part_BCT.cpu().numpy(), view.bands_hz, view.band_is, noise.sfreq_hz)
            part_BCT = torch.from_numpy(kept).to(eeg_BCT)
        draws = []
        for draw in range(noise.n_draws if has_noise else 1):
            seen_BCT = part_BCT
            if is_hidden_C.any():
                replaced_BCT = noise_like(part_BCT, ids, channels, draw, noise)
                seen_BCT = torch.where(is_hidden_C[:, None], replaced_BCT, part_BCT)
            if encoded == "noise outside":
                seen_BCT = outside_replaced(seen_BCT, (first, stop), ids, channels, draw, noise)
            elif encoded == "excerpt":
                seen_BCT = seen_BCT[:, :, first:stop]
            draws.append(model.encode_eeg(seen_BCT, subject))
        embedded.append(torch.stack(draws, 1))
    eeg_NRD = torch.cat(embedded).cpu().numpy()
    ids = tuple(segment_ids)
    return Viewed(view=view, noise=noise, segment_ids=ids, eeg_NRD=eeg_NRD, has_noise=has_noise, encoded=encoded)


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranked:
    """Where segments of a view put their own picture among a gallery: what is left of a chunk when it is scored.

    `rank_NR` counts from 1, ties as in `retrieval.ranks`; `margin_NR` is F with the own picture less the mean of F
    over the others; `target_N` the gallery row of the own picture.
    """

    view: View
    noise: Noise
    segment_ids: tuple[str, ...]
    target_N: np.ndarray
    rank_NR: np.ndarray
    margin_NR: np.ndarray
    n_gallery: int
    has_noise: bool
    encoded: Encoded


def rank_view(viewed: Viewed, gallery_MD: np.ndarray, target_of: Mapping[str, int]) -> Ranked:
    """Return the rank and the margin of each segment's own picture, draw by draw.

    Args:
        viewed: a chunk of a view.
        gallery_MD: theta(v) of at least two gallery pictures.
        target_of: gallery row of each segment's own picture, by segment id.
    Raises:
        InputError: a segment has no target, or there are fewer than two pictures.
    """
    missing = next((segment_id for segment_id in viewed.segment_ids if segment_id not in target_of), None)
    if missing is not None:
        raise InputError(f"segment {missing!r} has no gallery picture; give `target_of` every segment")
    if len(gallery_MD) < 2:
        raise InputError(f"{len(gallery_MD)} gallery picture; a picture is found among at least two")
    target_N = np.array([target_of[segment_id] for segment_id in viewed.segment_ids])
    rank_RN, margin_RN = [], []
    for eeg_ND in viewed.eeg_NRD.transpose(1, 0, 2):
        score_NM = similarity(eeg_ND, gallery_MD, normalise="none").astype(np.float64)
        rank_RN.append(ranks(score_NM, target_N))
        own_N = score_NM[np.arange(len(target_N)), target_N]
        margin_RN.append(own_N - (score_NM.sum(axis=1) - own_N) / (len(gallery_MD) - 1))
    return Ranked(
        view=viewed.view,
        noise=viewed.noise,
        segment_ids=viewed.segment_ids,
        target_N=target_N,
        rank_NR=np.stack(rank_RN, axis=1),
        margin_NR=np.stack(margin_RN, axis=1),
        n_gallery=len(gallery_MD),
        has_noise=viewed.has_noise,
        encoded=viewed.encoded,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class ViewScore:
    """How well pictures are found by what the model saw, segments sorted by id.

    `accuracy` is the mean of `hit_N`, shares of draws in which the own picture is among the first `top_k`;
    `low` and `high` bound it at `level` when pictures are drawn again. `draw_error` is its standard error over draws:
    0 where there was no noise, NaN of one draw. `margin_N` is F with the own picture less the mean of F over the
    others, mean over draws: 0 for a model that sees nothing.
    """

    view: View
    encoded: Encoded
    segment_ids: tuple[str, ...]
    hit_N: np.ndarray
    margin_N: np.ndarray
    top_k: int
    accuracy: float
    low: float
    high: float
    level: float
    draw_error: float
    chance: float
    n_draws: int
    n_images: int


def view_score(parts: Iterable[Ranked], *, top_k: int = 1, level: float = 0.95) -> ViewScore:
    """Return top-k retrieval of one view from all its chunks, in any order.

    Args:
        parts: the chunks of one view and one gallery.
        top_k: ranks that count as a hit.
        level: of the interval.
    Raises:
        InputError: no chunk, chunks of different views or galleries, or a segment in two of them.
    """
    parts = list(parts)
    if len({(part.view, part.noise, part.encoded, part.n_gallery) for part in parts}) != 1:
        raise InputError(f"{len(parts)} chunks, not of one view, noise and gallery; score those of one view together")
    ids = [segment_id for part in parts for segment_id in part.segment_ids]
    if len(set(ids)) < len(ids):
        raise InputError(f"{len(ids)} segments, {len(set(ids))} of them different; give each segment once")
    order = sorted(range(len(ids)), key=ids.__getitem__)
    target_N = np.concatenate([part.target_N for part in parts])[order]
    hit_NR = np.concatenate([part.rank_NR for part in parts])[order] <= top_k
    n_draws, n_gallery = hit_NR.shape[1], parts[0].n_gallery
    hit_N = hit_NR.mean(axis=1)
    low, high = bootstrap_interval(hit_N, target_N, level=level, small_sample=True)
    error = float(hit_NR.mean(axis=0).std(ddof=1) / math.sqrt(n_draws)) if n_draws > 1 else math.nan
    return ViewScore(
        view=parts[0].view,
        encoded=parts[0].encoded,
        segment_ids=tuple(ids[n] for n in order),
        hit_N=hit_N,
        margin_N=np.concatenate([part.margin_NR for part in parts])[order].mean(axis=1),
        top_k=top_k,
        accuracy=float(hit_N.mean()),
        low=low,
        high=high,
        level=level,
        draw_error=error if parts[0].has_noise else 0.0,
        chance=chance_topk(n_gallery, top_k),
        n_draws=n_draws,
        n_images=len(np.unique(target_N)),
    )
