"""Parts of a data set's tables as arrays: what a task reads, decodes and normalises without knowing the rest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from PIL import Image

from eegvision.ingest import pictures
from eegvision.ingest.places import Place, place
from eegvision.ingest.shards import Manifest, eeg_array
from eegvision.vocab import InputError, Montage

Rows = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
    """Some rows of one row group of a shard: their places in the group, and the rows they are wanted as."""

    path: Place
    group: int
    place_n: np.ndarray
    row_n: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Which channels and samples of every segment are read, whether they are standardised, and what is kept of them.

    `band_hz` needs `sfreq_hz`, the samples per second.
    """

    channels: tuple[str, ...]
    first: int
    stop: int
    normalise: Literal["segment-zscore", "none"] = "none"
    band_hz: tuple[float, float] | None = None
    sfreq_hz: float | None = None

    @property
    def as_stored(self) -> Cut:
        """The same channels and samples as they are stored."""
        return replace(self, normalise="none", band_hz=None)

    @property
    def band_TT(self) -> np.ndarray | None:
        """What samples are multiplied with to keep `band_hz` alone; None where everything is kept."""
        if self.band_hz is None:
            return None
        assert self.sfreq_hz is not None, "frequencies need the samples per second"
        return band_projection(self.stop - self.first, self.sfreq_hz, self.band_hz)

    def finish(self, eeg_NCT: np.ndarray) -> np.ndarray:
        """Return segments or means as models see them: as stored, then standardised, then with the band alone."""
        if self.normalise == "segment-zscore":
            eeg_NCT = segment_zscore(eeg_NCT)
        return eeg_NCT if self.band_TT is None else eeg_NCT @ self.band_TT


def cut_of(
    manifest: Manifest,
    channels: Sequence[str],
    window_s: tuple[float, float] | None,
    normalise: Literal["segment-zscore", "none"],
    band_hz: tuple[float, float] | None = None,
) -> tuple[Cut, Manifest]:
    """Return what to read of every segment, and the manifest of what that gives.

    Args:
        channels: names, or patterns such as `O*`; none means all. The data set's order is kept.
        window_s: from (included) and to (not included), after stimulus onset; None means all.
        band_hz: from (included) and to (not included); None means all.
    Raises:
        InputError: a name or pattern fits no channel, the window holds no sample or leaves the segment, or the band
            holds nothing of it.
    """
    for name in channels:
        if not any(fnmatchcase(channel, name) for channel in manifest.channels):
            raise InputError(
                f"data.channels has {name!r}, but no channel of {manifest.name!r} is called so; it has "
                f"{', '.join(manifest.channels)}"
            )
    chosen = [
        n
        for n, channel in enumerate(manifest.channels)
        if not channels or any(fnmatchcase(channel, name) for name in channels)
    ]
    first, stop = 0, manifest.n_times
    if window_s is not None:
        first, stop = (int(np.ceil(round((edge_s - manifest.t_min_s) * manifest.sfreq_hz, 6))) for edge_s in window_s)
        if not 0 <= first < stop <= manifest.n_times:
            end_s = manifest.t_min_s + manifest.n_times / manifest.sfreq_hz
            raise InputError(
                f"data.window_s is {window_s[0]:g} to {window_s[1]:g} s, but segments of {manifest.name!r} last from "
                f"{manifest.t_min_s:g} to {end_s:g} s after onset; choose a window within"
            )
    montage = Montage(
        channels=tuple(manifest.channels[n] for n in chosen),
        positions_m=tuple(manifest.montage.positions_m[n] for n in chosen) if manifest.montage.positions_m else (),
    )
    t_min_s = manifest.t_min_s + first / manifest.sfreq_hz
    cut = Cut(channels=montage.channels, first=first, stop=stop, normalise=normalise)
    if band_hz is not None:
        _refuse_empty_band(stop - first, manifest.sfreq_hz, band_hz, has_mean=normalise == "none")
        cut = replace(cut, band_hz=band_hz, sfreq_hz=manifest.sfreq_hz)
    return cut, replace(manifest, montage=montage, n_times=stop - first, t_min_s=t_min_s)


def segment_zscore(eeg_NCT: np.ndarray) -> np.ndarray:
    """Standardise every channel of every segment by itself.

        z[n,c,t] = (x[n,c,t] - mean_t x[n,c]) / std_t x[n,c]        population std

    Source: Palazzo et al., section 3. Unit and offset of a channel do not matter; a constant channel becomes 0.

    Args:
        eeg_NCT: any float type, finite.
    Returns:
        float32, same shape, no unit.
    """
    # In float64 the sum of a constant channel is exact: its mean is its value and its deviations are exactly 0.
    mean_NC1 = eeg_NCT.mean(axis=-1, dtype=np.float64, keepdims=True).astype(np.float32)
    centred_NCT = eeg_NCT.astype(np.float32, copy=False) - mean_NC1
    std_NC1 = np.sqrt(np.vecdot(centred_NCT, centred_NCT) / eeg_NCT.shape[-1])[..., None]
    return np.divide(centred_NCT, std_NC1, out=centred_NCT, where=std_NC1 > 0)


@lru_cache(maxsize=8)
def band_projection(n_times: int, sfreq_hz: float, band_hz: tuple[float, float]) -> np.ndarray:
    """Return the symmetric [T,T] matrix that keeps the cosines of a band: float32, read-only.

        P = sum_k c_k c_k^T over low <= f_k < high,   f_k = k / (2 T/sfreq)
        c_k[t] = sqrt((2 - [k = 0]) / T) cos(pi k (t + 1/2) / T)        DCT-II, orthonormal

    Cosines of half periods, unlike a filter, have no start-up within a segment, and unlike a Fourier series they take a
    straight line as slow. Source: Ahmed, Natarajan & Rao 1974, IEEE Trans. Comput. C-23, 90.
    """
    k = np.arange(n_times)
    cosine_KT = np.cos(np.pi * k[:, None] * (k + 0.5) / n_times) * np.sqrt(2 / n_times)
    cosine_KT[0] /= np.sqrt(2)
    kept_KT = cosine_KT[_is_within(n_times, sfreq_hz, band_hz)]
    band_TT = (kept_KT.T @ kept_KT).astype(np.float32)
    band_TT.flags.writeable = False
    return band_TT


def _is_within(n_times: int, sfreq_hz: float, band_hz: tuple[float, float]) -> np.ndarray:
    rate_hz_K = np.arange(n_times) * sfreq_hz / (2 * n_times)
    return (rate_hz_K >= band_hz[0] - 1e-9) & (rate_hz_K < band_hz[1] - 1e-9)


def _refuse_empty_band(n_times: int, sfreq_hz: float, band_hz: tuple[float, float], *, has_mean: bool) -> None:
    is_kept_K = _is_within(n_times, sfreq_hz, band_hz)
    if not is_kept_K[0 if has_mean else 1 :].any():
        step_hz = sfreq_hz / (2 * n_times)
        mean = "" if has_mean else "; their mean is 0, since data.normalise is 'segment-zscore'"
        raise InputError(
            f"data.band_hz is {band_hz[0]:g} to {band_hz[1]:g} Hz, but segments of {n_times / sfreq_hz:g} s have the "
            f"frequencies {'0' if has_mean else f'{step_hz:.4g}'}, {step_hz if has_mean else 2 * step_hz:.4g}, ... "
            f"up to {(n_times - 1) * step_hz:.4g} Hz{mean}; choose a band that holds one of these"
        )


def square(pixel_HW3: np.ndarray, side_px: int) -> np.ndarray:
    """Return the central square of a picture, resized with antialiasing: uint8 [H,W,3] to uint8 [3,side,side]."""
    height, width, _ = pixel_HW3.shape
    edge = min(height, width)
    left, top = (width - edge) / 2, (height - edge) / 2
    box = (left, top, left + edge, top + edge)
    resized = Image.fromarray(pixel_HW3).resize((side_px, side_px), Image.Resampling.BILINEAR, box=box)
    return np.asarray(resized).transpose(2, 0, 1)


def all_pieces(root: Place | Path, manifest: Manifest, table: str) -> list[Piece]:
    """List the row groups of a table (`segments` or `images`); their rows count from the table's first.

    Raises:
        InputError: a shard is missing or damaged.
    """
    pieces: list[Piece] = []
    n_rows = 0
    for shard in manifest.shards:
        if not shard.path.startswith(f"{table}/"):
            continue
        path = place(root) / shard.path
        try:
            with path.parquet() as file:
                sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
        except (OSError, pa.ArrowException, ValueError) as error:
            raise _unreadable(path, error) from error
        for group, size in enumerate(sizes):
            place_n = np.arange(size)
            pieces.append(Piece(path=path, group=group, place_n=place_n, row_n=n_rows + place_n))
            n_rows += size
    return pieces


def among(pieces: Iterable[Piece], rows: np.ndarray) -> list[Piece]:
    """Return what the pieces hold of `rows` (sorted), without pieces that hold nothing of them."""
    found = []
    for piece in pieces:
        first, stop = np.searchsorted(rows, [piece.row_n[0], piece.row_n[-1] + 1])
        if first < stop:
            is_in_n = np.isin(piece.row_n, rows[first:stop])
            found.append(replace(piece, place_n=piece.place_n[is_in_n], row_n=piece.row_n[is_in_n]))
    return found


def cut(pieces: Iterable[Piece], first: int, stop: int) -> list[Piece]:
    """Return what lies from `first` to before `stop` when the pieces' rows are laid end to end."""
    found, start = [], 0
    for piece in pieces:
        own = slice(max(0, first - start), max(0, stop - start))
        if len(piece.row_n[own]):
            found.append(replace(piece, place_n=piece.place_n[own], row_n=piece.row_n[own]))
        start += len(piece.row_n)
    return found


def read_eeg(pieces: Sequence[Piece], cut: Cut) -> Rows:
    """Return `row` [n] and `eeg` [n,C,T] float32 of the pieces in their order.

    Only the bytes of the channels asked for are read; of a channel, a row group's samples lie together, so times are
    cut from what was read before anything is copied.

    Raises:
        InputError: a shard is missing or damaged (page checksums are compared).
    """
    columns, times = [f"eeg.{name}" for name in cut.channels], slice(cut.first, cut.stop)
    row_n = np.concatenate([piece.row_n for piece in pieces])
    eeg_nCT = np.empty((len(row_n), len(cut.channels), cut.stop - cut.first), dtype=np.float32)
    start = 0
    for piece in pieces:
        column = _read_group(piece, columns)["eeg"]
        own = slice(start, start + len(piece.place_n))
        start = own.stop
        if len(piece.place_n) == len(column):
            eeg_array(column, cut.channels, times, out=eeg_nCT[own])
        else:
            eeg_nCT[own] = eeg_array(column, cut.channels, times)[piece.place_n]
        if cut != cut.as_stored:
            eeg_nCT[own] = cut.finish(eeg_nCT[own])
    return {"row": row_n, "eeg": eeg_nCT}


def read_images(piece: Piece, side_px: int) -> Rows:
    """Return `row` [n] and `image` [n,3,side,side] uint8, each picture decoded and cut to its central square.

    Raises:
        InputError: a shard is missing or damaged, or a picture does not decode.
    """
    table = _read_group(piece, ["image_id", "encoded"]).take(piece.place_n)
    names, encoded = table["image_id"].to_pylist(), table["encoded"].to_pylist()
    views = [square(pictures.decode(data, repr(name)), side_px) for name, data in zip(names, encoded, strict=True)]
    return {"row": piece.row_n, "image": np.stack(views)}


def _read_group(piece: Piece, columns: list[str]) -> pa.Table:
    try:
        with piece.path.parquet() as file:
            return file.read_row_group(piece.group, columns=columns, use_threads=False)
    except (OSError, pa.ArrowException, ValueError, TypeError) as error:
        raise _unreadable(piece.path, error) from error


def _unreadable(path: Place, error: Exception) -> InputError:
    return InputError(f"shard {path} cannot be read ({error}); restore it or ingest the data again")
