"""Parts of a data set's tables as arrays: what a task reads, decodes and normalises without knowing the rest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from eegvision.ingest import pictures
from eegvision.ingest.shards import Manifest
from eegvision.vocab import InputError

Rows = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
    """Some rows of one row group of a shard: their places in the group, and the rows they are wanted as."""

    path: Path
    group: int
    place_n: np.ndarray
    row_n: np.ndarray


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


def square(pixel_HW3: np.ndarray, side_px: int) -> np.ndarray:
    """Return the central square of a picture, resized with antialiasing: uint8 [H,W,3] to uint8 [3,side,side]."""
    height, width, _ = pixel_HW3.shape
    edge = min(height, width)
    left, top = (width - edge) / 2, (height - edge) / 2
    box = (left, top, left + edge, top + edge)
    resized = Image.fromarray(pixel_HW3).resize((side_px, side_px), Image.Resampling.BILINEAR, box=box)
    return np.asarray(resized).transpose(2, 0, 1)


def all_pieces(root: Path, manifest: Manifest, table: str) -> list[Piece]:
    """List the row groups of a table (`segments` or `images`); their rows count from the table's first."""
    pieces: list[Piece] = []
    n_rows = 0
    for shard in manifest.shards:
        if not shard.path.startswith(f"{table}/"):
            continue
        path = root / shard.path
        with pq.ParquetFile(path) as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
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


def read_eeg(pieces: Sequence[Piece], normalise: Literal["segment-zscore", "none"]) -> Rows:
    """Return `row` [n] and `eeg` [n,C,T] float32, normalised, of the pieces in their order.

    Raises:
        InputError: a shard is missing or damaged (page checksums are compared).
    """
    parts = []
    for piece in pieces:
        eeg_NCT = _read_group(piece, ["eeg"])["eeg"].combine_chunks().to_numpy_ndarray()
        eeg_nCT = eeg_NCT if len(piece.place_n) == len(eeg_NCT) else eeg_NCT[piece.place_n]
        parts.append(segment_zscore(eeg_nCT) if normalise == "segment-zscore" else eeg_nCT)
    return {"row": np.concatenate([piece.row_n for piece in pieces]), "eeg": np.concatenate(parts)}


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
        with pq.ParquetFile(piece.path, page_checksum_verification=True) as file:
            return file.read_row_group(piece.group, columns=columns, use_threads=False)
    except (OSError, pa.ArrowException, ValueError, TypeError) as error:
        raise InputError(f"shard {piece.path} cannot be read ({error}); restore it or ingest the data again") from error
