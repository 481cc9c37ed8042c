"""A data set on disk: Parquet shards with checksums, and a manifest written last (architecture, section 4).

    NAME/dataset.json, segments/part-00000.parquet, images/part-00000.parquet, gaze/part-00000.parquet

Readers yield records one by one; nothing here holds more than a few hundred of them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eegvision.ingest import pictures
from eegvision.vocab import SPLIT_NAMES, UNITS, Fixation, InputError, Montage, Segment, Stimulus, Unit, home

FORMAT_VERSION = 1
MANIFEST_NAME = "dataset.json"

# 64 segments of 128 x 440 float32 are 14 MB: a row group is what a writer holds and what a reader streams.
_ROWS_PER_GROUP = 64
_HASH_BLOCK_BYTES = 1 << 20

Drops = Mapping[str, int] | Callable[[], Mapping[str, int]]


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One Parquet file of a data set; `path` is relative to the data set's folder."""

    path: str
    rows: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a reader knows of a data set before it has read the records.

    `t_min_s` is the time of the first sample after stimulus onset. `published` maps a split name to the image
    ids its publishers put there. `truth` is the planted truth of simulated data, JSON-able.
    """

    name: str
    dialect: str
    licence: str
    montage: Montage
    sfreq_hz: float
    t_min_s: float
    n_times: int
    unit: Unit
    steps: tuple[dict[str, Any], ...] = ()
    classes: tuple[str, ...]
    published: dict[str, tuple[str, ...]] = field(default_factory=dict)
    truth: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        montage = self.montage
        _require(bool(self.name), "name", self.name, "not empty")
        _require(bool(montage.channels), "channels", montage.channels, "at least one channel")
        _require(len(set(montage.channels)) == len(montage.channels), "channels", montage.channels, "without repeats")
        has_positions = len(montage.positions_m) in (0, len(montage.channels))
        _require(has_positions, "positions", len(montage.positions_m), "one per channel, or none")
        _require(math.isfinite(self.sfreq_hz) and self.sfreq_hz > 0, "sfreq_hz", self.sfreq_hz, "above 0")
        _require(math.isfinite(self.t_min_s), "t_min_s", self.t_min_s, "a finite time in seconds")
        _require(self.n_times >= 1, "n_times", self.n_times, "at least 1")
        _require(self.unit in UNITS, "unit", self.unit, "one of " + ", ".join(UNITS))
        _require(len(set(self.classes)) == len(self.classes), "classes", self.classes, "without repeats")
        _require(set(self.published) <= set(SPLIT_NAMES), "published", tuple(self.published), "train, val and test")


@dataclass(frozen=True, kw_only=True)
class Manifest(Header):
    """All there is to know of a data set without opening its shards: the content of `dataset.json`.

    `fingerprint` is 12 hexadecimal digits of a hash over everything else, the shards' hashes included, so equal
    data have equal fingerprints wherever and whenever they were ingested.
    """

    n_segments: int
    n_images: int
    subjects: tuple[str, ...]
    dropped: dict[str, int]
    shards: tuple[Shard, ...]
    fingerprint: str

    @property
    def channels(self) -> tuple[str, ...]:
        """Channel names in the order of the rows of every segment."""
        return self.montage.channels

    @property
    def n_chans(self) -> int:
        """Number of channels C."""
        return len(self.montage.channels)


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What a reader hands over: a header, and records that may be made while they are written.

    Segments are taken first, then stimuli, then fixations. `dropped` counts what the reader left out, by reason;
    a function is called after the records were taken.
    """

    header: Header
    segments: Iterable[Segment]
    stimuli: Iterable[Stimulus]
    fixations: Iterable[Fixation] = ()
    dropped: Drops = field(default_factory=dict)


def write_recording(out: Path, recording: Recording, *, rows_per_shard: int = 2048) -> Manifest:
    """Write everything of `recording` as a new data set in the folder `out`; see `write_dataset`."""
    return write_dataset(
        out,
        recording.header,
        recording.segments,
        recording.stimuli,
        recording.fixations,
        dropped=recording.dropped,
        rows_per_shard=rows_per_shard,
    )


def write_dataset(
    out: Path,
    header: Header,
    segments: Iterable[Segment],
    stimuli: Iterable[Stimulus],
    fixations: Iterable[Fixation] = (),
    *,
    dropped: Drops | None = None,
    rows_per_shard: int = 2048,
) -> Manifest:
    """Write a new data set, whole or not at all.

    Everything goes to a temporary folder beside `out`, which is renamed when its manifest is on disk. Segments
    are taken first, then stimuli, then fixations, each once; stimuli that no segment shows are left out and
    counted, and so are their fixations.

    Raises:
        InputError: `out` exists, or a record cannot be used: EEG of a wrong shape, not finite or constant in every
            channel; a picture that does not decode; a repeated id; a segment or fixation of an unknown image; a
            label outside the classes; a fixation outside its picture. Nothing is left behind.
    """
    assert rows_per_shard >= 1
    out = Path(out).expanduser().absolute()
    if out.exists():
        raise InputError(f"{out} exists already; choose another name, or remove it to ingest the data again")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    try:
        _write_into(temporary, header, segments, stimuli, fixations, dropped=dropped, rows_per_shard=rows_per_shard)
        try:
            temporary.rename(out)
        except OSError as error:
            raise InputError(
                f"{out} was made by somebody else meanwhile ({error.strerror}); nothing written"
            ) from error
        _sync_folder(out.parent)
    except BaseException:  # also when interrupted: nothing half-written may stay
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return read_manifest(out)


def read_manifest(root: Path) -> Manifest:
    """Return the manifest of the data set in the folder `root`.

    Raises:
        InputError: there is none (the data set is not whole), it is of a newer format, or it was changed.
    """
    path = Path(root) / MANIFEST_NAME
    again = "ingest the data again"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
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
    if values.get("fingerprint") != _fingerprint(values):
        raise InputError(f"{path} does not agree with its own fingerprint, so it was edited or damaged; {again}")
    montage = Montage(
        channels=tuple(values.pop("channels")),
        positions_m=tuple(tuple(point) for point in values.pop("positions_m")),
    )
    shards = tuple(Shard(**shard) for shard in values.pop("shards"))
    published = {name: tuple(ids) for name, ids in values.pop("published").items()}
    for name in ("steps", "classes", "subjects"):
        values[name] = tuple(values[name])
    return Manifest(montage=montage, shards=shards, published=published, **values)


def dataset_root(name_or_path: str) -> Path:
    """Return the absolute folder of a data set: a name under `EEGVISION_HOME/datasets`, else an existing path.

    Raises:
        InputError: neither exists; the message lists the data sets there are.
    """
    datasets = home() / "datasets"
    path = Path(name_or_path).expanduser()
    is_name = bool(path.name) and path.name == name_or_path and not name_or_path.startswith(".")
    if is_name and (datasets / name_or_path).is_dir():
        return datasets / name_or_path
    if name_or_path and path.is_dir():
        return path.absolute()
    known = sorted(manifest.parent.name for manifest in datasets.glob(f"[!.]*/{MANIFEST_NAME}"))
    raise InputError(
        f"there is no data set {name_or_path!r}: not in {datasets} (which has {', '.join(known) or 'none'}), "
        "and no folder of that path; ingest it first (jobs/ingest.py) or correct the name"
    )


def verify(root: Path, manifest: Manifest) -> None:
    """Compare every shard with the hash in the manifest.

    Raises:
        InputError: a shard is missing or differs; it is named with both hashes.
    """
    for shard in manifest.shards:
        path = Path(root) / shard.path
        if not path.is_file():
            raise InputError(f"shard {path} is missing; restore it or ingest the data again")
        found = _sha256_of_file(path)
        if found != shard.sha256:
            raise InputError(
                f"shard {path} is damaged: its sha256 is {found}, the manifest says {shard.sha256}; "
                "restore it or ingest the data again"
            )


def read_segments(root: Path, manifest: Manifest, *, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the table of segments in stored order, by default without the column `eeg` (the large one).

    Raises:
        InputError: a shard is missing, damaged (page checksums are compared) or has another number of rows.
    """
    schema = segment_schema(manifest.n_chans, manifest.n_times)
    return _read_table(root, manifest, "segments", schema, columns or _without(schema, "eeg"))


def read_images(root: Path, manifest: Manifest, *, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the table of images in stored order, by default without the column `encoded`; errors as for segments."""
    schema = image_schema()
    return _read_table(root, manifest, "images", schema, columns or _without(schema, "encoded"))


def read_gaze(root: Path, manifest: Manifest) -> pa.Table | None:
    """Return the table of fixations, or None where the data set has none; errors as for segments."""
    schema = gaze_schema()
    has_gaze = any(shard.path.startswith("gaze/") for shard in manifest.shards)
    return _read_table(root, manifest, "gaze", schema, schema.names) if has_gaze else None


def segment_schema(n_chans: int, n_times: int) -> pa.Schema:
    """Return the columns of `segments/`."""
    return pa.schema(
        {
            "segment_id": pa.string(),
            "subject": pa.string(),
            "session": pa.int32(),
            "block": pa.int32(),
            "order": pa.int32(),
            "onset_s": pa.float64(),
            "repetition": pa.int32(),
            "image_id": pa.string(),
            "eeg": pa.fixed_shape_tensor(pa.float32(), [n_chans, n_times]),
        }
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


def _require(holds: bool, name: str, value: Any, condition: str) -> None:
    if not holds:
        raise InputError(f"the data set's {name} is {value!r}; it must be {condition}")


def _write_into(
    folder: Path,
    header: Header,
    segments: Iterable[Segment],
    stimuli: Iterable[Stimulus],
    fixations: Iterable[Fixation],
    *,
    dropped: Drops | None,
    rows_per_shard: int,
) -> None:
    shown: dict[str, str] = {}  # image id -> the first segment that shows it
    subjects: set[str] = set()
    sizes: dict[str, tuple[int, int] | None] = {}  # image id -> height and width; None where left out
    drops: Counter[str] = Counter()

    schema = segment_schema(len(header.montage.channels), header.n_times)
    rows = _checked_segments(header, segments, shown, subjects)
    shards = _write_table(folder, "segments", schema, rows, rows_per_shard)
    n_segments = sum(shard.rows for shard in shards)
    if n_segments == 0:
        raise InputError(f"data set {header.name!r} has no segments; check the source and what was filtered out")

    rows = _checked_images(header, stimuli, shown, sizes, drops)
    shards += _write_table(folder, "images", image_schema(), rows, rows_per_shard)
    for image_id, segment_id in shown.items():
        if image_id not in sizes:
            raise InputError(f"segment {segment_id} shows image {image_id!r}, which is not among the stimuli; add it")

    rows = _checked_fixations(fixations, sizes, drops)
    shards += _write_table(folder, "gaze", gaze_schema(), rows, rows_per_shard)

    drops.update(dropped() if callable(dropped) else dropped or {})
    values = {"format_version": FORMAT_VERSION} | {
        f.name: getattr(header, f.name) for f in dataclasses.fields(header) if f.name != "montage"
    }
    values |= {
        "channels": header.montage.channels,
        "positions_m": header.montage.positions_m,
        "n_segments": n_segments,
        "n_images": len(shown),
        "subjects": sorted(subjects),
        "dropped": {reason: count for reason, count in sorted(drops.items()) if count},
        "shards": [dataclasses.asdict(shard) for shard in shards],
    }
    values["fingerprint"] = _fingerprint(values)
    with (folder / MANIFEST_NAME).open("w", encoding="utf-8") as file:
        json.dump(values, file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(folder)


def _checked_segments(
    header: Header, segments: Iterable[Segment], shown: dict[str, str], subjects: set[str]
) -> Iterator[dict[str, Any]]:
    channels = header.montage.channels
    columns = _without(segment_schema(len(channels), header.n_times), "eeg")
    seen: set[str] = set()
    for segment in segments:
        name = f"segment {segment.segment_id!r}"
        if segment.segment_id in seen:
            raise InputError(f"{name} occurs twice; give every segment an id of its own")
        eeg_CT = np.asarray(segment.eeg_CT, dtype=np.float32)
        if eeg_CT.shape != (len(channels), header.n_times):
            raise InputError(
                f"{name} has shape {list(eeg_CT.shape)}, but the data set has {len(channels)} channels x "
                f"{header.n_times} samples; cut every segment to the same window and channels"
            )
        bad = [channels[c] for c in np.flatnonzero(~np.isfinite(eeg_CT).all(axis=1))]
        if bad:
            raise InputError(
                f"{name} has NaN or infinite values in channel {', '.join(bad[:5])}"
                f"{f' and {len(bad) - 5} more' if len(bad) > 5 else ''}; repair or drop it before ingestion"
            )
        if (eeg_CT == eeg_CT[:, :1]).all():
            raise InputError(f"{name} is constant in every channel: nothing was recorded; drop it before ingestion")
        seen.add(segment.segment_id)
        subjects.add(segment.subject)
        shown.setdefault(segment.image_id, segment.segment_id)
        yield {column: getattr(segment, column) for column in columns} | {"eeg": eeg_CT}


def _checked_images(
    header: Header,
    stimuli: Iterable[Stimulus],
    shown: Mapping[str, str],
    sizes: dict[str, tuple[int, int] | None],
    drops: Counter[str],
) -> Iterator[dict[str, Any]]:
    for stimulus in stimuli:
        name, label = stimulus.image_id, stimulus.label
        if name in sizes:
            raise InputError(f"image {name!r} occurs twice; give every stimulus an id of its own")
        if not -1 <= label < len(header.classes):
            raise InputError(
                f"image {name!r} has label {label}, but there are {len(header.classes)} classes (-1: none)"
            )
        if label >= 0 and stimulus.label_name != header.classes[label]:
            raise InputError(
                f"image {name!r} is called {stimulus.label_name!r}, but class {label} is {header.classes[label]!r}; "
                "names and labels disagree"
            )
        if name not in shown:
            sizes[name] = None
            drops["images without a segment"] += 1
            continue
        height, width, _ = pictures.decode(stimulus.encoded, repr(name)).shape
        sizes[name] = (height, width)
        yield {
            "image_id": name,
            "label": label,
            "label_name": stimulus.label_name,
            "height": height,
            "width": width,
            "encoded": stimulus.encoded,
            "sha256": hashlib.sha256(stimulus.encoded).hexdigest(),
        }


def _checked_fixations(
    fixations: Iterable[Fixation], sizes: Mapping[str, tuple[int, int] | None], drops: Counter[str]
) -> Iterator[dict[str, Any]]:
    for fixation in fixations:
        name, row, column = fixation.image_id, fixation.row_px, fixation.column_px
        if name not in sizes:
            raise InputError(f"a fixation of viewer {fixation.viewer!r} is on image {name!r}, which is not a stimulus")
        size = sizes[name]
        if size is None:
            drops["fixations on images without a segment"] += 1
            continue
        if not (0 <= row < size[0] and 0 <= column < size[1]):
            raise InputError(
                f"a fixation of viewer {fixation.viewer!r} at (row {row}, column {column}) lies outside the "
                f"{size[0]}x{size[1]} image {name!r}; drop it, or swap the two if they are stored as (x, y)"
            )
        yield {"image_id": name, "viewer": fixation.viewer, "row_px": float(row), "column_px": float(column)}


def _write_table(
    folder: Path, table: str, schema: pa.Schema, rows: Iterator[dict[str, Any]], rows_per_shard: int
) -> list[Shard]:
    """Write `rows` as `table/part-*.parquet`, a row group at a time; no rows, no folder."""
    shards: list[Shard] = []
    while first := list(itertools.islice(rows, 1)):
        (folder / table).mkdir(exist_ok=True)
        path = folder / table / f"part-{len(shards):05d}.parquet"
        n_rows = _write_shard(path, schema, itertools.chain(first, itertools.islice(rows, rows_per_shard - 1)))
        shards.append(Shard(path=f"{table}/{path.name}", rows=n_rows, sha256=_sha256_of_file(path)))
    if shards:
        _sync_folder(folder / table)
    return shards


def _write_shard(path: Path, schema: pa.Schema, rows: Iterator[dict[str, Any]]) -> int:
    n_rows = 0
    # Noise and JPEG do not compress, so reading stays a copy; statistics of samples help nobody.
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False, "write_page_checksum": True}
    with path.open("wb") as file:
        with pq.ParquetWriter(file, schema, **options) as writer:
            while group := list(itertools.islice(rows, _ROWS_PER_GROUP)):
                writer.write_table(_as_table(schema, group), row_group_size=_ROWS_PER_GROUP)
                n_rows += len(group)
        file.flush()
        os.fsync(file.fileno())
    return n_rows


def _as_table(schema: pa.Schema, rows: list[dict[str, Any]]) -> pa.Table:
    arrays = []
    for column in schema:
        values = [row[column.name] for row in rows]
        if isinstance(column.type, pa.FixedShapeTensorType):
            arrays.append(pa.FixedShapeTensorArray.from_numpy_ndarray(np.stack(values)))
        else:
            arrays.append(pa.array(values, type=column.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def _read_table(root: Path, manifest: Manifest, table: str, schema: pa.Schema, columns: Sequence[str]) -> pa.Table:
    assert set(columns) <= set(schema.names), f"{columns} are not all columns of {table}: {schema.names}"
    expected = pa.schema([schema.field(name) for name in columns])
    parts = []
    for shard in manifest.shards:
        if not shard.path.startswith(f"{table}/"):
            continue
        path = Path(root) / shard.path
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
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


def _without(schema: pa.Schema, column: str) -> list[str]:
    return [name for name in schema.names if name != column]


def _fingerprint(values: Mapping[str, Any]) -> str:
    kept = {name: value for name, value in values.items() if name not in ("fingerprint", "format_version")}
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _sha256_of_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
