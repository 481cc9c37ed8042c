"""A data set on disk: Parquet shards with checksums, and a manifest written last (architecture, section 4).

    NAME/dataset.json, segments/part-00000-00000.parquet, images/part-00000.parquet, gaze/part-00000.parquet

Shards of segments are numbered by the part of the recording they come from, and within it. The column `eeg` is a
struct with one field per channel, each T float32 values (little endian) as fixed-size binary: a selection of channels
is a selection of Parquet columns, and no level of a list has to be decoded for every sample. `eeg_array` gives arrays.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from eegvision.ingest.places import Place, place
from eegvision.ingest.sources import Header
from eegvision.vocab import InputError, Montage, home

FORMAT_VERSION = 2  # 1 had one tensor column for the samples and no order audit
MANIFEST_NAME = "dataset.json"
Grade = Literal["green", "amber", "red"]


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One Parquet file of a data set; `path` is relative to the data set's folder."""

    path: str
    rows: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest(Header):
    """All there is to know of a data set without opening its shards: the content of `dataset.json`.

    `audit` holds the order audit (ingest/order.py), JSON-able: could a model name the class from when a stimulus was
    shown? `fingerprint` is 12 hexadecimal digits of a hash over everything else, the
    shards' hashes included, so equal data have equal fingerprints wherever and whenever they were ingested.
    """

    n_segments: int
    n_images: int
    subjects: tuple[str, ...]
    dropped: dict[str, int]
    audit: dict[str, Any]
    shards: tuple[Shard, ...]
    fingerprint: str

    @property
    def grade(self) -> Grade:
        """The order audit in a word."""
        return self.audit["grade"]

    @property
    def channels(self) -> tuple[str, ...]:
        """Channel names in the order of the rows of every segment."""
        return self.montage.channels

    @property
    def n_chans(self) -> int:
        """Number of channels C."""
        return len(self.montage.channels)


def read_manifest(root: Place | Path) -> Manifest:
    """Return the manifest of the data set in the folder `root`.

    Raises:
        InputError: there is none (the data set is not whole), it is of a newer format, or it was changed.
    """
    root = place(root)
    path = root / MANIFEST_NAME
    again = "ingest the data again"
    try:
        values = json.loads(path.read())
    except FileNotFoundError as error:
        again = "its ingest was interrupted: repeat the same command" if (root / ".ingest").exists() else again
        raise InputError(f"{root} is not a whole data set: it has no {MANIFEST_NAME}; {again}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); {again}") from error
    version = values.pop("format_version", None) if isinstance(values, dict) else None
    if not isinstance(version, int):
        raise InputError(f"{path} is not the manifest of a data set; {again}")
    if version > FORMAT_VERSION:
        raise InputError(
            f"{path} has format {version}, and this version reads up to {FORMAT_VERSION}; update eegvision or {again}"
        )
    if version < FORMAT_VERSION:
        raise InputError(f"{path} has format {version} of an older eegvision; remove the data set and {again}")
    if values.get("fingerprint") != fingerprint(values):
        raise InputError(f"{path} does not agree with its own fingerprint, so it was edited or damaged; {again}")
    montage = Montage(
        channels=tuple(values.pop("channels")),
        positions_m=tuple(tuple(point) for point in values.pop("positions_m")),
    )
    shards = tuple(Shard(**shard) for shard in values.pop("shards"))
    published = {name: tuple(ids) for name, ids in values.pop("published").items()}
    for name in ("steps", "classes", "subjects", "facts"):
        values[name] = tuple(values[name])
    return Manifest(montage=montage, shards=shards, published=published, **values)


def dataset_root(name_or_path: str) -> Place:
    """Return where a data set is: a name under `EEGVISION_HOME/datasets`, else an existing path or an address.

    Raises:
        InputError: there is nothing there; the message lists the data sets there are.
    """
    datasets = home() / "datasets"
    if "://" in name_or_path:
        found = place(name_or_path)
        if (found / MANIFEST_NAME).exists():
            return found
        raise InputError(
            f"there is no data set at {found}: it has no {MANIFEST_NAME}; ingest it first (jobs/ingest.py)"
        )
    path = Path(name_or_path).expanduser()
    is_name = bool(path.name) and path.name == name_or_path and not name_or_path.startswith(".")
    if is_name and (datasets / name_or_path).is_dir():
        return place(datasets / name_or_path)
    if name_or_path and path.is_dir():
        return place(path)
    known = sorted(manifest.parent.name for manifest in datasets.glob(f"[!.]*/{MANIFEST_NAME}"))
    raise InputError(
        f"there is no data set {name_or_path!r}: not in {datasets} (which has {', '.join(known) or 'none'}), "
        "and no folder of that path; ingest it first (jobs/ingest.py) or correct the name"
    )


def verify(root: Place | Path, manifest: Manifest) -> None:
    """Compare every shard with the hash in the manifest.

    Raises:
        InputError: a shard is missing or differs; it is named with both hashes.
    """
    for shard in manifest.shards:
        path = place(root) / shard.path
        try:
            found = sha256_of(path)
        except FileNotFoundError as error:
            raise InputError(f"shard {path} is missing; restore it or ingest the data again") from error
        if found != shard.sha256:
            raise InputError(
                f"shard {path} is damaged: its sha256 is {found}, the manifest says {shard.sha256}; "
                "restore it or ingest the data again"
            )


def read_segments(root: Place | Path, manifest: Manifest, *, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the table of segments in stored order, by default without the column `eeg` (the large one).

    Raises:
        InputError: a shard is missing, damaged (page checksums are compared) or has another number of rows.
    """
    schema = segment_schema(manifest.channels, manifest.n_times)
    return _read_table(root, manifest, "segments", schema, columns or without(schema, "eeg"))


def read_images(root: Place | Path, manifest: Manifest, *, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the table of images in stored order, by default without the column `encoded`; errors as for segments."""
    schema = image_schema()
    return _read_table(root, manifest, "images", schema, columns or without(schema, "encoded"))


def read_gaze(root: Place | Path, manifest: Manifest) -> pa.Table | None:
    """Return the table of fixations, or None where the data set has none; errors as for segments."""
    schema = gaze_schema()
    has_gaze = any(shard.path.startswith("gaze/") for shard in manifest.shards)
    return _read_table(root, manifest, "gaze", schema, schema.names) if has_gaze else None


def segment_schema(channels: Sequence[str], n_times: int) -> pa.Schema:
    """Return the columns of `segments/`."""
    samples = pa.binary(4 * n_times)
    return pa.schema(
        [
            pa.field("segment_id", pa.string()),
            pa.field("subject", pa.string()),
            pa.field("session", pa.int32()),
            pa.field("block", pa.int32()),
            pa.field("order", pa.int32()),
            pa.field("onset_s", pa.float64()),
            pa.field("repetition", pa.int32()),
            pa.field("image_id", pa.string()),
            pa.field("eeg", pa.struct([pa.field(name, samples, nullable=False) for name in channels]), nullable=False),
        ]
    )


def image_schema() -> pa.Schema:
    """Return the columns of `images/`."""
    return pa.schema(
        {
            "image_id": pa.string(),
            "label": pa.int32(),
            "label_name": pa.string(),
            "height": pa.int32(),
            "width": pa.int32(),
            "encoded": pa.binary(),
            "sha256": pa.string(),
        }
    )


def gaze_schema() -> pa.Schema:
    """Return the columns of `gaze/`."""
    return pa.schema(
        {"image_id": pa.string(), "viewer": pa.string(), "row_px": pa.float64(), "column_px": pa.float64()}
    )


def eeg_column(eeg_NCT: np.ndarray, channels: Sequence[str]) -> pa.StructArray:
    """Return segments as the column `eeg`: per channel, the samples of every segment as bytes."""
    n_segments, _, n_times = eeg_NCT.shape
    samples = pa.binary(4 * n_times)
    fields = [pa.field(name, samples, nullable=False) for name in channels]
    of_channel = np.ascontiguousarray(eeg_NCT.transpose(1, 0, 2), dtype="<f4")
    arrays = [
        pa.FixedSizeBinaryArray.from_buffers(samples, n_segments, [None, pa.py_buffer(rows_NT)])
        for rows_NT in of_channel
    ]
    return pa.StructArray.from_arrays(arrays, fields=fields)


def eeg_array(
    column: pa.Array | pa.ChunkedArray,
    channels: Sequence[str] | None = None,
    times: slice = slice(None),
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Return the column `eeg` as float32 [N, C, T], the channels (all if none are named) in the order given.

    With `out`, an array of that shape, nothing else is allocated.
    """
    names = [column.type.field(n).name for n in range(column.type.num_fields)] if channels is None else channels
    n_times = column.type.field(names[0]).type.byte_width // 4
    if out is None:
        out = np.empty((len(column), len(names), len(range(n_times)[times])), dtype=np.float32)
    start = 0
    for chunk in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
        for n, name in enumerate(names):
            samples = chunk.field(name)
            first = samples.offset * n_times
            flat = np.frombuffer(samples.buffers()[1], dtype="<f4")[first : first + len(chunk) * n_times]
            out[start : start + len(chunk), n] = flat.reshape(len(chunk), n_times)[:, times]
        start += len(chunk)
    return out


def without(schema: pa.Schema, column: str) -> list[str]:
    """Return the names of a schema's columns except one."""
    return [name for name in schema.names if name != column]


def fingerprint(values: Mapping[str, Any]) -> str:
    """Return 12 hexadecimal digits of a hash over a manifest's values."""
    kept = {name: value for name, value in values.items() if name not in ("fingerprint", "format_version")}
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def sha256_of(path: Place) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with path.filesystem.open_input_file(path.path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  (it reads into buffers)


def _read_table(
    root: Place | Path, manifest: Manifest, table: str, schema: pa.Schema, columns: Sequence[str]
) -> pa.Table:
    assert set(columns) <= set(schema.names), f"{columns} are not all columns of {table}: {schema.names}"
    expected = pa.schema([schema.field(name) for name in columns])
    parts = []
    for shard in manifest.shards:
        if not shard.path.startswith(f"{table}/"):
            continue
        path = place(root) / shard.path
        try:
            with path.parquet() as file:
                part = file.read(columns=list(columns)).select(list(columns))
            if not part.schema.equals(expected):  # page checksums do not cover the footer
                raise ValueError(f"its columns are {dict(zip(part.schema.names, part.schema.types, strict=True))}")
        except (OSError, pa.ArrowException, ValueError, TypeError, KeyError) as error:
            raise InputError(f"shard {path} cannot be read ({error}); restore it or ingest the data again") from error
        if part.num_rows != shard.rows:
            raise InputError(
                f"shard {path} has {part.num_rows} rows, the manifest says {shard.rows}; ingest the data again"
            )
        parts.append(part)
    return pa.concat_tables(parts)
