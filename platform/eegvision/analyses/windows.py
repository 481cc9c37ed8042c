"""How well pictures are found when the model sees only a part of a segment, and where an effect is beyond chance.

A view is a part of a segment: some channels (regions), some samples (windows) or some rates (bands). The model stays
as it was trained. What it is not to see becomes noise of the same mean and variance (`channels.noise_rows`), or is left
away where the encoder takes any length, or is filtered out. To train on a part instead, set `data.channels`,
`data.window_s` or `data.band_hz` of a run: that asks what can be learned from it, this what the model relies on.

The second half tells clusters of channels or of points in time from chance.

Axes: B segments of a chunk, N segments, R draws of noise, C channels, T samples, D embedding, M gallery pictures;
X places (channels, points in time or both), U independent units, E pairs of neighbours, K clusters, P permutations.
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
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import ConvexHull, QhullError
from scipy.special import stdtrit
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
_LONG_EDGE = 2.0  # times the median distance of neighbours: a line across the open bottom of a cap
_CELLS = 2**20  # of permutations x places that are labelled at a time


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


def view_score(
    parts: Iterable[Viewed],
    gallery_MD: np.ndarray,
    target_of: Mapping[str, int],
    *,
    top_k: int = 1,
    level: float = 0.95,
) -> ViewScore:
    """Return top-k retrieval of one view from all its chunks, in any order.

    Args:
        parts: the chunks of one view.
        gallery_MD: theta(v) of at least two gallery pictures.
        target_of: gallery row of each segment's own picture, by segment id.
        top_k: ranks that count as a hit, ties as in `retrieval.ranks`.
        level: of the interval.
    Raises:
        InputError: no chunk, chunks of different views, a segment without a target or in two chunks, or fewer than two
            pictures.
    """
    parts = list(parts)
    if len({(part.view, part.noise, part.encoded) for part in parts}) != 1:
        raise InputError(f"{len(parts)} chunks, not of one view and one noise; score those of one view together")
    ids = [segment_id for part in parts for segment_id in part.segment_ids]
    missing = next((segment_id for segment_id in ids if segment_id not in target_of), None)
    if missing is not None:
        raise InputError(f"segment {missing!r} has no gallery picture; give `target_of` every segment")
    if len(set(ids)) < len(ids) or len(gallery_MD) < 2:
        raise InputError(
            f"{len(ids)} segments, {len(set(ids))} of them different, and {len(gallery_MD)} gallery pictures; "
            "give each segment once and at least two pictures"
        )
    order = sorted(range(len(ids)), key=ids.__getitem__)
    eeg_NRD = np.concatenate([part.eeg_NRD for part in parts])[order]
    ids = [ids[n] for n in order]
    target_N = np.array([target_of[segment_id] for segment_id in ids])
    hits, margins = [], []
    for eeg_ND in eeg_NRD.transpose(1, 0, 2):
        score_NM = similarity(eeg_ND, gallery_MD, normalise="none").astype(np.float64)
        hits.append(ranks(score_NM, target_N) <= top_k)
        own_N = score_NM[np.arange(len(target_N)), target_N]
        margins.append(own_N - (score_NM.sum(axis=1) - own_N) / (len(gallery_MD) - 1))
    accuracy_R, n_draws = np.mean(hits, axis=1), len(hits)
    hit_N = np.mean(hits, axis=0)
    low, high = bootstrap_interval(hit_N, target_N, level=level, small_sample=True)
    error = float(accuracy_R.std(ddof=1) / math.sqrt(n_draws)) if n_draws > 1 else math.nan
    return ViewScore(
        view=parts[0].view,
        encoded=parts[0].encoded,
        segment_ids=tuple(ids),
        hit_N=hit_N,
        margin_N=np.mean(margins, axis=0),
        top_k=top_k,
        accuracy=float(hit_N.mean()),
        low=low,
        high=high,
        level=level,
        draw_error=error if parts[0].has_noise else 0.0,
        chance=chance_topk(len(gallery_MD), top_k),
        n_draws=n_draws,
        n_images=len(np.unique(target_N)),
    )


# ---- clusters of channels and of points in time


@dataclass(frozen=True, kw_only=True, eq=False)
class Clusters:
    """Neighbouring places with effects of one sign, and how often chance makes one as heavy.

    `t_X` is each place's t; `cluster_X` the number of its cluster, -1 for none; `mass_K` the sum of t
    over a cluster, `p_K` its p-value, corrected for all places. `p_X` is that of each place's cluster, 1 where it is
    in none. It is the cluster that is beyond chance, not each place in it, nor its border.
    """

    t_X: np.ndarray
    threshold: float
    cluster_X: np.ndarray
    mass_K: np.ndarray
    p_K: np.ndarray
    p_X: np.ndarray
    n_units: int
    n_permutations: int


def cluster_test(
    value_NX: np.ndarray,
    unit_N: np.ndarray,
    edge_E2: np.ndarray,
    *,
    place_p: float = 0.05,
    n_permutations: int = 2000,
    seed: int = 0,
) -> Clusters:
    """Are there places where the mean over units is not 0? Cluster mass under flips of whole units' signs, two-sided.

        t_x = m_x / sqrt(s_x^2 / U);   clusters: connected places with |t| above its place_p quantile and of one sign
        mass_k = sum of t over the cluster;     p_k = (1 + #{flips : the largest |mass| >= |mass_k|}) / (1 + flips)

    It holds its level for all places together if, without an effect, a unit's values are as likely with the opposite
    sign: differences of conditions, importance for the own less that for another picture, margins of views. With
    2^U <= `n_permutations` every pattern of signs is taken and p is exact.
    Source: Maris & Oostenveld 2007, J. Neurosci. Methods 164, 177.

    Args:
        value_NX: effect of each segment at each place, float64; averaged over each unit's segments.
        unit_N: what is a sample of others like it: subjects, pictures, or classes where pictures of one go together.
        edge_E2: pairs of neighbours, from `channel_neighbours`, `time_neighbours` or `both_neighbours`.
        place_p: two-sided p from which on a place can be in a cluster; it decides what is found, not the level.
        n_permutations: random flips.
        seed: of the flips.
    Raises:
        InputError: shapes disagree, a value is not finite, fewer than two units, or a neighbour that is no place.
    """
    value_NX, unit_N, edge_E2 = np.asarray(value_NX, dtype=np.float64), np.asarray(unit_N), np.asarray(edge_E2)
    _check_test(value_NX, unit_N, edge_E2, place_p, n_permutations)
    _, index_N, count_U = np.unique(unit_N, return_inverse=True, return_counts=True)
    n_units, n_places = len(count_U), value_NX.shape[1]
    if n_units < 2:
        raise InputError(f"{n_units} unit; clusters are tested over at least two subjects or pictures")
    mean_UX = np.zeros((n_units, n_places))
    np.add.at(mean_UX, index_N, value_NX)
    mean_UX /= count_U[:, None]
    threshold = float(-stdtrit(n_units - 1, place_p / 2))
    t_X = _t(np.ones((1, n_units)), mean_UX)[0]
    cluster_1X, mass_K, _ = _clusters(t_X[None], threshold, edge_E2)
    signs = _signs(n_units, n_places, n_permutations, seed)
    heaviest_P = np.concatenate([_heaviest(_t(sign_PU, mean_UX), threshold, edge_E2) for sign_PU in signs])
    # Sums in another order differ in the last digits; what should be equal must count as equal.
    n_as_heavy_K = (heaviest_P[:, None] >= np.abs(mass_K) * (1 - 1e-9)).sum(axis=0)
    p_K = (1 + n_as_heavy_K) / (1 + len(heaviest_P))
    return Clusters(
        t_X=t_X,
        threshold=threshold,
        cluster_X=cluster_1X[0],
        mass_K=mass_K,
        p_K=p_K,
        p_X=np.append(p_K, 1.0)[cluster_1X[0]],
        n_units=n_units,
        n_permutations=len(heaviest_P),
    )


def _check_test(
    value_NX: np.ndarray, unit_N: np.ndarray, edge_E2: np.ndarray, place_p: float, n_permutations: int
) -> None:
    if value_NX.ndim != 2 or 0 in value_NX.shape or unit_N.shape != value_NX.shape[:1]:
        raise InputError(f"values of shape {value_NX.shape} and units of shape {unit_N.shape}; expected [N, X] and [N]")
    if not np.isfinite(value_NX).all():
        n, x = np.argwhere(~np.isfinite(value_NX))[0]
        raise InputError(f"the value of segment {n} at place {x} is not finite; leave the segment out")
    n_places = value_NX.shape[1]
    if edge_E2.size and (edge_E2.ndim != 2 or edge_E2.shape[1] != 2 or edge_E2.min() < 0 or edge_E2.max() >= n_places):
        raise InputError(
            f"neighbours of shape {edge_E2.shape} for {n_places} places; expected pairs [E, 2] of 0 to {n_places - 1}"
        )
    if not 0 < place_p < 1 or n_permutations < 1:
        raise InputError(
            f"place_p {place_p:g} and {n_permutations} permutations; expected a p in (0, 1) and one at least"
        )


def _signs(n_units: int, n_places: int, n_permutations: int, seed: int) -> Iterable[np.ndarray]:
    """Yield chunks of patterns of signs [P, U]: all but the observed where they are few enough, else random ones."""
    size = max(1, _CELLS // max(n_units, n_places))
    # A pattern and its opposite make the same clusters, so half of them stand for all, and 0 is the observed one.
    if 2**n_units <= n_permutations:
        number_P = np.arange(1, 2 ** (n_units - 1))
        for start in range(0, len(number_P), size):
            yield 1.0 - 2.0 * (number_P[start : start + size, None] >> np.arange(n_units) & 1)
        return
    generator = np.random.default_rng(seed)
    for start in range(0, n_permutations, size):
        yield 1.0 - 2.0 * (generator.random((min(size, n_permutations - start), n_units)) < 0.5)


def _t(sign_PU: np.ndarray, mean_UX: np.ndarray) -> np.ndarray:
    """Return t of every place under every pattern; 0 where all units are 0."""
    n_units = len(mean_UX)
    mean_PX = sign_PU @ mean_UX / n_units
    # Squares do not change with signs, so one product per pattern is enough.
    square_PX = np.maximum((mean_UX**2).sum(axis=0) - n_units * mean_PX**2, 0) / (n_units - 1)
    error_PX = np.sqrt(np.maximum(square_PX, 1e-24 * (mean_UX**2).mean(axis=0)) / n_units)
    return np.divide(mean_PX, error_PX, out=np.zeros_like(mean_PX), where=error_PX > 0)


def _clusters(t_PX: np.ndarray, threshold: float, edge_E2: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each place's cluster [P, X] (-1 none), numbered through all rows, and each cluster's mass and row [K]."""
    n_rows, n_places = t_PX.shape
    side_PX = np.where(np.abs(t_PX) > threshold, np.sign(t_PX), 0).astype(np.int8)
    edge_E2 = edge_E2.reshape(-1, 2)
    row, edge = np.nonzero((side_PX[:, edge_E2[:, 0]] == side_PX[:, edge_E2[:, 1]]) & (side_PX[:, edge_E2[:, 0]] != 0))
    # One graph holds all rows, which no edge connects; places outside of clusters are components of one.
    one, other = (row * n_places + edge_E2[edge, end] for end in (0, 1))
    n_cells = t_PX.size
    graph = coo_array((np.ones(len(one), dtype=np.int8), (one, other)), shape=(n_cells, n_cells))
    _, component_n = connected_components(graph.tocsr(), directed=False)
    cell_n = np.flatnonzero(side_PX)
    _, first_K, cluster_n = np.unique(component_n[cell_n], return_index=True, return_inverse=True)
    label_n = np.full(n_cells, -1)
    label_n[cell_n] = cluster_n
    mass_K = np.bincount(cluster_n, weights=t_PX.ravel()[cell_n], minlength=len(first_K))
    return label_n.reshape(n_rows, n_places), mass_K, cell_n[first_K] // n_places


def _heaviest(t_PX: np.ndarray, threshold: float, edge_E2: np.ndarray) -> np.ndarray:
    """Return the largest |mass| of each row, 0 where it has no cluster."""
    _, mass_K, row_K = _clusters(t_PX, threshold, edge_E2)
    heaviest_P = np.zeros(len(t_PX))
    np.maximum.at(heaviest_P, row_K, np.abs(mass_K))
    return heaviest_P


def channel_neighbours(positions_m: Sequence[tuple[float, float, float]]) -> np.ndarray:
    """Return pairs of neighbouring electrodes, [E, 2], each pair once.

    Electrodes are moved onto the sphere that fits them best; neighbours share an edge of their convex hull, which is
    the Delaunay triangulation of the sphere (Brown 1979, Inf. Process. Lett. 9, 223). Edges longer than twice the
    median run across the open bottom of the cap and are left out.

    Raises:
        InputError: fewer than four electrodes, unknown or equal positions, or all in one plane.
    """
    place_C3 = np.asarray(positions_m, dtype=np.float64)
    remedy = "ingest with 10-05 channel names or a montage, or give the pairs of neighbours yourself"
    if place_C3.ndim != 2 or place_C3.shape[1:] != (3,) or len(place_C3) < 4 or not np.isfinite(place_C3).all():
        raise InputError(f"neighbours need finite positions of four channels at least; got {place_C3.shape}; {remedy}")
    # |p - c|^2 = r^2 is linear in (2 c, r^2 - |c|^2)
    solved, *_ = np.linalg.lstsq(np.column_stack([place_C3, np.ones(len(place_C3))]), (place_C3**2).sum(axis=1))
    outward_C3 = place_C3 - solved[:3] / 2
    outward_C3 /= np.maximum(np.linalg.norm(outward_C3, axis=1, keepdims=True), 1e-12)
    try:
        hull = ConvexHull(outward_C3)
    except QhullError as error:
        raise InputError(f"the {len(place_C3)} electrodes do not lie around a head; {remedy}") from error
    if len(hull.vertices) < len(place_C3):
        raise InputError(f"two of the {len(place_C3)} electrodes are at one place; {remedy}")
    corner_F3 = np.sort(hull.simplices, axis=1)
    edge_E2 = np.unique(np.concatenate([corner_F3[:, pair] for pair in ([0, 1], [0, 2], [1, 2])]), axis=0)
    length_E = np.linalg.norm(outward_C3[edge_E2[:, 0]] - outward_C3[edge_E2[:, 1]], axis=1)
    return edge_E2[length_E <= _LONG_EDGE * np.median(length_E)]


def time_neighbours(n_times: int) -> np.ndarray:
    """Return pairs of successive points in time, [n_times - 1, 2]."""
    return np.column_stack([np.arange(n_times - 1), np.arange(1, n_times)])


def both_neighbours(edge_E2: np.ndarray, n_chans: int, n_times: int) -> np.ndarray:
    """Return pairs of neighbours for channels x times, flattened channel by channel: x = channel * n_times + time.

    Neighbouring channels at one time, and successive times of one channel.
    """
    within = np.arange(n_chans)[:, None, None] * n_times + time_neighbours(n_times)
    across = edge_E2[:, None, :] * n_times + np.arange(n_times)[:, None]
    return np.concatenate([within.reshape(-1, 2), across.reshape(-1, 2)])
