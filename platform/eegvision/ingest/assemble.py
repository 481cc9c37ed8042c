"""Recording to data set: parts are checked and written one by one, anywhere and in any order; the manifest comes last.

Until then the folder holds `.ingest/`: what is being written (`plan.json`) and what is finished (a file per part). The
same call again reads only the parts that are not.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import itertools
import json
import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import Full, Queue
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eegvision.ingest import order, pictures, quality
from eegvision.ingest.places import Place, place
from eegvision.ingest.shards import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    Manifest,
    Shard,
    eeg_column,
    fingerprint,
    gaze_schema,
    image_schema,
    read_manifest,
    segment_schema,
    sha256_of,
    without,
)
from eegvision.ingest.sources import Drops, Header, Part, Recording
from eegvision.vocab import Fixation, InputError, Segment, Stimulus

T = TypeVar("T")
R = TypeVar("R")
Each = Callable[[Callable[[T], R], Sequence[T]], Iterator[R]]  # apply a function to items, results in any order
Groups = Queue[pa.Table | BaseException | None]  # row groups on their way into a file; None ends it

QUALITY_NAME = "quality.npz"

# 64 segments of 128 x 440 float32 are 14 MB: a row group is what a writer holds and what a reader streams.
_ROWS_PER_GROUP = 64
_STAGE = ".ingest"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Work:
    """One part and all that writing it takes; goes to another process."""

    number: int
    part: Part
    out: Place
    header: Header
    rows_per_shard: int


def in_turn(work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """Apply a function to items one after the other, in this process."""
    return map(work, items)


def write(
    out: Place | Path,
    recording: Recording,
    *,
    rows_per_shard: int = 2048,
    each: Each[_Work, int] = in_turn,
    done: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Write a recording as a new data set in the folder `out`, or go on with one that was interrupted.

    The data set exists when its manifest does, which is written last. What is finished before a failure is kept, and
    the same call goes on from there; if nothing was finished, nothing stays behind.

    Args:
        rows_per_shard: the most segments a file holds.
        each: how to work on the parts that are left, for example on several machines.
        done: told after every part how many parts and rows are finished, those of earlier calls included.
    Raises:
        InputError: `out` holds something else; or a record cannot be used: EEG of a wrong shape, not finite or
            constant in every channel; a picture that does not decode; a repeated id; a segment or fixation of an
            unknown image; a label outside the classes; a fixation outside its picture.
    """
    out = place(out)
    finished = _resume(out, recording)
    works = [
        _Work(number=number, part=part, out=out, header=recording.header, rows_per_shard=rows_per_shard)
        for number, part in enumerate(recording.parts)
    ]
    try:
        for number in each(_write_part, [work for work in works if work.number not in finished]):
            finished[number] = _rows(_outcome(out, number))
            if done:
                done(len(finished), sum(finished.values()))
        _finish(out, recording, rows_per_shard)
    except BaseException as error:  # also when interrupted
        kept = [number for number in range(len(works)) if _outcome(out, number)]
        if not kept and not (out / MANIFEST_NAME).exists():  # else interrupted while tidying up: the data set is whole
            out.remove()
        elif isinstance(error, InputError):
            raise InputError(
                f"{error}\n{len(kept)} of {len(works)} parts are finished and kept in {out}: "
                "the same command goes on from there"
            ) from error
        raise
    return read_manifest(out)


def n_finished(out: Place | Path) -> int:
    """Return how many parts of an interrupted `write` are finished."""
    return sum(name.startswith(f"{_STAGE}/part-") and name.endswith(".json") for name in place(out).files())


def refuse_existing(out: Place | Path) -> None:
    """Raise InputError if `out` holds something other than what an interrupted `write` left."""
    out = place(out)
    if (out / MANIFEST_NAME).exists() or (out.exists() and not (out / _STAGE / "plan.json").exists()):
        raise InputError(f"{out} exists already; choose another name, or remove it to ingest the data again")


def write_dataset(
    out: Place | Path,
    header: Header,
    segments: Iterable[Segment],
    stimuli: Iterable[Stimulus],
    fixations: Iterable[Fixation] = (),
    *,
    dropped: Mapping[str, int] = {},
    rows_per_shard: int = 2048,
) -> Manifest:
    """Write records at hand as a new data set of one part; see `write`. After a failure nothing stays behind."""
    out = place(out)
    part = Part(name="all", rows=0, read=partial(_given, segments), key=secrets.token_hex())  # never taken for another
    recording = Recording(
        header=header, parts=[part], stimuli=stimuli, fixations=fixations, dropped=Counter(dict(dropped))
    )
    is_new = not out.exists()
    try:
        return write(out, recording, rows_per_shard=rows_per_shard)
    except BaseException:
        if is_new:
            out.remove()
        raise


def _given(segments: Iterable[Segment], dropped: Drops) -> Iterator[Segment]:  # noqa: ARG001
    return iter(segments)


def _resume(out: Place, recording: Recording) -> dict[int, int]:
    """Return the finished parts of an interrupted call as {number: rows}; claim the folder if there was none."""
    plan = {
        "header": _as_json(dataclasses.asdict(recording.header)),
        "parts": [part.name for part in recording.parts],
    }
    names = plan["parts"]
    assert len(set(names)) == len(names), f"two parts have one name: {names}"
    refuse_existing(out)
    if not out.exists():
        (out / _STAGE / "plan.json").write(json.dumps(plan).encode())
        return {}
    before = json.loads((out / _STAGE / "plan.json").read())
    differing = [*_differing(before["header"], plan["header"])]
    differing += ["parts"] if before["parts"] != plan["parts"] else []
    if differing:
        raise InputError(
            f"{out} holds an unfinished ingest of other data or with other settings (different: "
            f"{', '.join(differing[:5])}); repeat its command to finish it, remove it, or choose another name"
        )
    finished = {}
    for number, part in enumerate(recording.parts):
        outcome = _outcome(out, number)
        if (
            outcome
            and outcome["key"] == part.key
            and all((out / shard["path"]).exists() for shard in outcome["shards"])
        ):
            finished[number] = _rows(outcome)
        elif outcome:
            (out / _STAGE / f"part-{number:05d}.json").remove()
    return finished


def _differing(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of what differs."""
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict) and prefix.count(".") < 2:
            yield from _differing(old, new, prefix=f"{prefix}{name}.")
        elif old != new:
            yield prefix + name


def _outcome(out: Place, number: int) -> dict[str, Any] | None:
    try:
        return json.loads((out / _STAGE / f"part-{number:05d}.json").read())
    except OSError:
        return None


def _rows(outcome: Mapping[str, Any] | None) -> int:
    return sum(shard["rows"] for shard in outcome["shards"]) if outcome else 0


def _write_part(work: _Work) -> int:
    """Read one part and write its shards, its numbers on quality and, last, that it is finished."""
    dropped: Drops = Counter()
    header, part = work.header, work.part
    seen: list[quality.Quality] = []
    tables = _segment_tables(header, _checked_segments(header, part.read(dropped)), seen, work)
    shards = _write_table(work.out, f"segments/part-{work.number:05d}-", tables, work.rows_per_shard)
    stage = work.out / _STAGE
    if seen:
        _save_quality(stage / f"part-{work.number:05d}.npz", seen[0])
    outcome = {
        "key": part.key,
        "dropped": dict(dropped),
        "shards": [dataclasses.asdict(shard) for shard in shards],
    }
    (stage / f"part-{work.number:05d}.json").write(json.dumps(outcome).encode())
    return work.number


def _finish(out: Place, recording: Recording, rows_per_shard: int) -> None:
    """Write pictures and fixations, look at the whole, and write the manifest."""
    header, drops, stage = recording.header, Counter(recording.dropped), out / _STAGE
    shards: list[Shard] = []
    for number in range(len(recording.parts)):
        outcome = _outcome(out, number)
        assert outcome is not None, f"part {number} was not finished"
        shards += [Shard(**shard) for shard in outcome["shards"]]
        drops.update(outcome["dropped"])
    if not shards:
        why = ", ".join(f"{count} {reason}" for reason, count in drops.items())
        raise InputError(
            f"data set {header.name!r} has no segments{f' (left out: {why})' if why else ''}; "
            "check the source and what was filtered out"
        )
    segments = _segments_table(out, header, shards)
    shown = _shown(segments)
    sizes: dict[str, tuple[int, int] | None] = {}  # image id -> height and width; None where left out
    checked = _tables(image_schema(), _checked_images(header, recording.stimuli, shown, sizes, drops), rows_per_shard)
    images = _write_table(out, "images/part-", checked, rows_per_shard)
    for image_id, segment_id in shown.items():
        if image_id not in sizes:
            raise InputError(f"segment {segment_id} shows image {image_id!r}, which is not among the stimuli; add it")
    fixations = _tables(gaze_schema(), _checked_fixations(recording.fixations, sizes, drops), rows_per_shard)
    shards += images + _write_table(out, "gaze/part-", fixations, rows_per_shard)

    image_table = _read(out, images, ["image_id", "label", "sha256"])
    audit = order.audit(
        segments,
        image_table,
        n_times=header.n_times,
        sfreq_hz=header.sfreq_hz,
        published=header.published,
        critique=header.critique,
    )
    measured = [path for number in range(len(recording.parts)) if (path := stage / f"part-{number:05d}.npz").exists()]
    _save_quality(out / QUALITY_NAME, functools.reduce(quality.merge, map(read_quality, measured)))
    values = {"format_version": FORMAT_VERSION} | {
        f.name: getattr(header, f.name) for f in dataclasses.fields(header) if f.name != "montage"
    }
    values |= {
        "channels": header.montage.channels,
        "positions_m": header.montage.positions_m,
        "n_segments": len(segments),
        "n_images": len(shown),
        "subjects": sorted(set(segments["subject"].to_pylist())),
        "dropped": {reason: count for reason, count in sorted(drops.items()) if count},
        "audit": audit.to_dict(),
        "shards": [dataclasses.asdict(shard) for shard in shards],
    }
    values = _as_json(values)
    values["fingerprint"] = fingerprint(values)
    listed = {shard.path for shard in shards} | {QUALITY_NAME}
    for name in out.files():  # of attempts that were interrupted
        if name.startswith(("segments/", "images/", "gaze/")) and name not in listed:
            (out / name).remove()
    (out / MANIFEST_NAME).write(json.dumps(values, indent=1, allow_nan=False).encode())
    (out / _STAGE).remove()


def _as_json(values: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(values, allow_nan=False))


def _segments_table(out: Place, header: Header, shards: Sequence[Shard]) -> pa.Table:
    """Return the columns of all segments but the samples, no id twice."""
    table = _read(out, shards, without(segment_schema(header.montage.channels, header.n_times), "eeg"))
    for segment_id, count in Counter(table["segment_id"].to_pylist()).most_common(1):
        if count > 1:
            raise InputError(f"segment {segment_id!r} occurs twice; give every segment an id of its own")
    return table


def _read(out: Place, shards: Sequence[Shard], columns: list[str]) -> pa.Table:
    tables = []
    for shard in shards:
        with (out / shard.path).parquet() as file:
            tables.append(file.read(columns=columns))
    return pa.concat_tables(tables)


def _shown(segments: pa.Table) -> dict[str, str]:
    """Return for every image the first segment that shows it."""
    first: dict[str, str] = {}
    for image, segment in zip(segments["image_id"].to_pylist(), segments["segment_id"].to_pylist(), strict=True):
        first.setdefault(image, segment)
    return first


def _checked_segments(header: Header, segments: Iterable[Segment]) -> Iterator[dict[str, Any]]:
    channels = header.montage.channels
    columns = without(segment_schema(channels, header.n_times), "eeg")
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
        yield {column: getattr(segment, column) for column in columns} | {"eeg": eeg_CT}


def _checked_images(
    header: Header,
    stimuli: Iterable[Stimulus],
    shown: Mapping[str, str],
    sizes: dict[str, tuple[int, int] | None],
    drops: Counter[str],
) -> Iterator[dict[str, Any]]:
    with ThreadPoolExecutor(
        min(8, os.cpu_count() or 1)
    ) as pool:  # decoding is most of the work, and runs beside Python
        for group in _groups(_labelled(header, stimuli, shown, sizes, drops), _ROWS_PER_GROUP):
            for stimulus, (height, width) in zip(group, pool.map(_size, group), strict=True):
                sizes[stimulus.image_id] = (height, width)
                yield {
                    "image_id": stimulus.image_id,
                    "label": stimulus.label,
                    "label_name": stimulus.label_name,
                    "height": height,
                    "width": width,
                    "encoded": stimulus.encoded,
                    "sha256": hashlib.sha256(stimulus.encoded).hexdigest(),
                }


def _labelled(
    header: Header,
    stimuli: Iterable[Stimulus],
    shown: Mapping[str, str],
    sizes: dict[str, tuple[int, int] | None],
    drops: Counter[str],
) -> Iterator[Stimulus]:
    """Yield the stimuli that are shown, their names and labels checked."""
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
        sizes[name] = None
        if name in shown:
            yield stimulus
        else:
            drops["images without a segment"] += 1


def _size(stimulus: Stimulus) -> tuple[int, int]:
    height, width, _ = pictures.decode(stimulus.encoded, repr(stimulus.image_id)).shape
    return height, width


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


def _write_table(out: Place, prefix: str, tables: Iterator[pa.Table], rows_per_shard: int) -> list[Shard]:
    """Write row groups as files `prefix00000.parquet` and so on; none, no file.

    A file is encoded, flushed to disk and hashed in another thread, mostly outside Python's lock, while its next groups
    (and those of the next file) are made.
    """
    writing: list[tuple[str, Future[tuple[int, str]]]] = []
    groups_per_shard = max(1, rows_per_shard // _ROWS_PER_GROUP)  # of `_ROWS_PER_GROUP` or, in tiny shards, fewer
    with ThreadPoolExecutor(2) as pool:
        while (first := next(tables, None)) is not None:
            name = f"{prefix}{len(writing):05d}.parquet"
            groups: Groups = Queue(maxsize=2)
            writing.append((name, pool.submit(_write_shard, out / name, first.schema, groups)))
            end: pa.Table | BaseException | None = None
            try:
                for table in itertools.chain([first], itertools.islice(tables, groups_per_shard - 1)):
                    _hand_over(table, groups, writing[-1][1])
            except BaseException as error:
                end = error  # the file is given up
                raise
            finally:
                _hand_over(end, groups, writing[-1][1])
        results = [(name, *done.result()) for name, done in writing]
    return [Shard(path=name, rows=n_rows, sha256=digest) for name, n_rows, digest in results]


def _hand_over(group: pa.Table | BaseException | None, groups: Groups, done: Future[tuple[int, str]]) -> None:
    """Put a group where the file's thread takes it; if that has failed, there is nobody to wait for."""
    while not done.done():
        try:
            groups.put(group, timeout=0.2)
        except Full:
            continue
        return
    if isinstance(group, pa.Table):
        done.result()  # raises


def _write_shard(path: Place, schema: pa.Schema, groups: Groups) -> tuple[int, str]:
    """Write what comes until None; return rows and hash. An exception that comes is raised and leaves no file."""
    n_rows = 0
    # Noise and JPEG do not compress, so reading stays a copy; statistics of samples help nobody.
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False, "write_page_checksum": True}
    with path.writing() as file, pq.ParquetWriter(file, schema, **options) as writer:
        while (group := groups.get()) is not None:
            if isinstance(group, BaseException):
                raise group
            writer.write_table(group, row_group_size=_ROWS_PER_GROUP)
            n_rows += len(group)
    return n_rows, sha256_of(path)


def _tables(schema: pa.Schema, rows: Iterator[dict[str, Any]], rows_per_shard: int) -> Iterator[pa.Table]:
    for group in _groups(rows, min(_ROWS_PER_GROUP, rows_per_shard)):
        arrays = [pa.array([row[column.name] for row in group], type=column.type) for column in schema]
        yield pa.Table.from_arrays(arrays, schema=schema)


def _segment_tables(
    header: Header, rows: Iterator[dict[str, Any]], seen: list[quality.Quality], work: _Work
) -> Iterator[pa.Table]:
    """Yield row groups of segments; `seen` is left with what was measured of all of them."""
    channels = header.montage.channels
    schema = segment_schema(channels, header.n_times)
    for n, group in enumerate(_groups(rows, min(_ROWS_PER_GROUP, work.rows_per_shard))):
        eeg_NCT = np.stack([row["eeg"] for row in group])
        measured = quality.measure(
            eeg_NCT,
            subject=[row["subject"] for row in group],
            session=[row["session"] for row in group],
            channels=channels,
            sfreq_hz=header.sfreq_hz,
            t_min_s=header.t_min_s,
            unit=header.unit,
            seed=n,
        )
        seen[:] = [quality.merge(seen[0], measured) if seen else measured]
        arrays = [pa.array([row[name] for row in group], type=schema.field(name).type) for name in schema.names[:-1]]
        yield pa.Table.from_arrays([*arrays, eeg_column(eeg_NCT, channels)], schema=schema)


def _save_quality(path: Place, measured: quality.Quality) -> None:
    with path.writing() as file:
        np.savez(file, allow_pickle=False, **quality.to_arrays(measured))


def read_quality(path: Place) -> quality.Quality:
    """Return what was measured of a data set's samples while it was written (`QUALITY_NAME` in its folder)."""
    with np.load(io.BytesIO(path.read()), allow_pickle=False) as arrays:
        return quality.from_arrays(arrays)


def _groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    items = iter(items)
    while group := list(itertools.islice(items, size)):
        yield group
