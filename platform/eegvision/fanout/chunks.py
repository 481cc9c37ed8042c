"""Chunks of work as files: what is finished in a folder, and how one more comes to be.

    FOLDER/manifest.jsonl     what this is and the chunks there are to be; then a line for each finished chunk
    FOLDER/chunks/KEY.npz     named arrays

A worker writes its file under a temporary name; the calling process alone renames it and adds the line. So a worker
that was given up for lost and comes back can change nothing, and no arrays pass through the calling process.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import queue
import time
import traceback
import uuid
import zipfile
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from eegvision.fanout.progress import Progress, Say, clock
from eegvision.overrides import flatten
from eegvision.runs import write_whole
from eegvision.vocab import InputError, TryAgainError

Work = Callable[[Any], Mapping[str, np.ndarray]]

TRIES = 3  # of a chunk, and of starting workers, before it counts as hopeless

_WORDS = 400  # of an exception, in letters, that a message repeats
_SAID = 3  # mishaps that are told one by one


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A piece of the work that is done, and done again if need be, as one.

    `key` names its file: letters, digits, '.', '_' and '-', the first one a letter or digit. `item` is what the
    worker gets, small (row numbers, not arrays of data). `size` counts the units in it, for the progress.
    """

    key: str
    item: Any
    size: int = 1


@dataclass(frozen=True, kw_only=True)
class Results:
    """Finished chunks of a folder and those still missing, both sorted by key."""

    folder: Path
    keys: tuple[str, ...]
    missing: tuple[str, ...]
    _sha256: Mapping[str, str] = field(repr=False)

    def read(self, key: str) -> dict[str, np.ndarray]:
        """Return a chunk's arrays by name.

        Raises:
            InputError: the chunk is not finished, or its file is not what was written.
        """
        if key not in self._sha256:
            raise InputError(
                f"chunk {key!r} of {self.folder} is not finished; the command that began it goes on with it"
            )
        path = _file_of(self.folder, key)
        try:
            with path.open("rb") as file:
                is_whole = hashlib.file_digest(file, "sha256").hexdigest() == self._sha256[key]
        except OSError:
            is_whole = False
        if not is_whole:
            raise InputError(
                f"{path} is damaged: it is not what was written there; remove it, and the command that made it "
                "computes this chunk anew"
            )
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)


def results(folder: Path) -> Results:
    """Return what `compute` has finished in a folder, also while it runs or after it was interrupted.

    Raises:
        InputError: nothing was begun there.
    """
    head, done = _read_manifest(folder)
    if head is None:
        raise InputError(f"{folder} holds no results, not even unfinished ones; run the analysis first")
    finished = {key: done[key]["sha256"] for key in sorted(head["keys"]) if _is_there(folder, key, done)}
    missing = tuple(key for key in sorted(head["keys"]) if key not in finished)
    return Results(folder=folder, keys=tuple(finished), missing=missing, _sha256=finished)


def _file_of(folder: Path, key: str) -> Path:
    return folder / "chunks" / f"{key}.npz"


def _read_manifest(folder: Path) -> tuple[dict[str, Any] | None, dict[str, dict[str, Any]]]:
    """Return the first line and the others by key; a line that a crash cut off counts as not written."""
    try:
        first, *lines = (folder / "manifest.jsonl").read_text().split("\n")
    except FileNotFoundError:
        return None, {}
    done: dict[str, dict[str, Any]] = {}
    for line in lines[:-1]:  # behind the last line's end is nothing, or what a crash left of one more
        with suppress(ValueError, KeyError, TypeError):
            entry = json.loads(line)
            done[entry["key"]] = {"sha256": str(entry["sha256"]), "bytes": int(entry["bytes"])}
    try:
        head = json.loads(first)
        return {"identity": dict(head["identity"]), "keys": list(head["keys"])}, done
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder / 'manifest.jsonl'} is damaged in its first line; remove the folder {folder} and compute anew"
        ) from error


def _is_there(folder: Path, key: str, done: Mapping[str, dict[str, Any]]) -> bool:
    try:
        return key in done and _file_of(folder, key).stat().st_size == done[key]["bytes"]
    except OSError:
        return False


def open_folder(folder: Path, identity: Mapping[str, Any], keys: Sequence[str]) -> set[str]:
    """Make a folder ready for new lines and return the keys that are finished in it."""
    (folder / "chunks").mkdir(exist_ok=True)
    manifest = folder / "manifest.jsonl"
    now = json.loads(json.dumps({"identity": dict(identity), "keys": list(keys)}, allow_nan=False))
    head, done = _read_manifest(folder)
    if head is None:
        write_whole(manifest, json.dumps(now) + "\n")
        return set()
    _require_same(folder, head, now)
    for part in (folder / "chunks").glob(".*.part"):  # of workers that were killed while writing
        part.unlink(missing_ok=True)
    with manifest.open("rb+") as file:
        written = file.read()
        file.truncate(written.rfind(b"\n") + 1)  # or the next line would go on where a crash broke off
    return {key for key in keys if _is_there(folder, key, done)}


def _require_same(folder: Path, head: dict[str, Any], now: dict[str, Any]) -> None:
    before, after = flatten(head["identity"]), flatten(now["identity"])
    differing = [
        f"{name} was {_shown(before, name)}, now {_shown(after, name)}"
        for name in sorted(before | after)
        if _shown(before, name) != _shown(after, name)
    ]
    if differing:
        raise InputError(
            f"{folder} holds results of something else ({'; '.join(differing)}); give these a folder of their own, or "
            "remove that one"
        )
    if sorted(head["keys"]) != sorted(now["keys"]):
        both = set(head["keys"]) ^ set(now["keys"])
        raise InputError(
            f"{folder} holds the same work cut into other chunks ({len(head['keys'])}, now {len(now['keys'])}; "
            f"{min(both)!r} is in one only); cut it as before, or remove the folder"
        )


def _shown(values: Mapping[str, Any], name: str) -> str:
    return repr(values[name]) if name in values else "not given"


def storage_fault(error: OSError, folder: Path) -> TryAgainError | None:
    """Return what to tell of a full disk; None for other errors."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    return TryAgainError(
        f"no space is left for {folder} on {os.uname().nodename} ({error.strerror}); what is finished there stays "
        "usable: free space, or put EEGVISION_HOME on a larger disk with that folder copied, and give the same "
        "command again"
    )


def _not_shared(what: str) -> str:
    return f"{what} {os.uname().nodename}; EEGVISION_HOME must be on storage that all machines of the cluster share"


@dataclass(frozen=True, kw_only=True)
class Written:
    """A chunk's file, still under a temporary name."""

    part: str
    sha256: str
    n_bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Failed:
    """What ended an attempt: input or storage (stop everything), the process (another may do better), or the chunk."""

    reason: str
    whose: Literal["input", "storage", "process", "chunk"]

    def stop(self) -> None:
        """Raise what is to be told to the user where no other chunk would do better.

        Raises:
            InputError, TryAgainError: the input is at fault; the storage is full.
        """
        if self.whose == "input":
            raise InputError(self.reason)
        if self.whose == "storage":
            raise TryAgainError(self.reason)


@dataclass(frozen=True, kw_only=True)
class _Made:
    """A chunk between computing and writing."""

    number: int
    arrays: Mapping[str, np.ndarray] | Failed
    seconds: float


class Worker:
    """One process's part: makes the function once, then computes and writes chunks; returns reasons, never raises.

    `write` waits for what `compute` makes and may be called from another thread, so that the next chunk is computed
    while a file is written: flushing one to a busy disk takes up to seconds.

    Args:
        items: key and item of every chunk, so that a call names a chunk by its number.
    """

    def __init__(self, prepare: Callable[[], Work], items: Sequence[tuple[str, Any]], folder: Path) -> None:
        self._prepare, self._items, self._folder = prepare, items, folder
        self._work: Work | None = None
        self._made: queue.Queue[_Made] = queue.Queue(maxsize=1)  # a slow disk does not fill the memory

    def begin(self) -> Failed | None:
        """Make the function."""
        if not (self._folder / "chunks").is_dir():
            return Failed(reason=_not_shared(f"the folder {self._folder} is not there on"), whose="input")
        try:
            self._work = self._prepare()
        except Exception as error:
            return _explained(error, self._folder)
        return None

    def compute(self, number: int) -> None:
        """Compute a chunk."""
        assert self._work is not None, "begin comes first"
        began = time.perf_counter()
        made: Mapping[str, np.ndarray] | Failed
        try:
            made = self._work(self._items[number][1])
        except Exception as error:
            made = _explained(error, self._folder)
        except BaseException as error:  # `write` would wait for ever
            made = Failed(reason=type(error).__name__, whose="process")
            raise
        finally:
            self._made.put(_Made(number=number, arrays=made, seconds=round(time.perf_counter() - began, 3)))

    def write(self, number: int) -> Written | Failed:
        """Write the chunk that `compute` was called with, in the same order."""
        made = self._made.get()
        assert made.number == number, (made.number, number)
        if isinstance(made.arrays, Failed):
            return made.arrays
        # A name of its own for every attempt: two of one chunk may be under way when a machine was given up too early.
        part = self._folder / "chunks" / f".{self._items[number][0]}.{uuid.uuid4().hex}.part"
        try:
            _write_arrays(part, made.arrays)
            with part.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            return Written(part=part.name, sha256=sha256, n_bytes=part.stat().st_size, seconds=made.seconds)
        except BaseException as error:
            part.unlink(missing_ok=True)
            if not isinstance(error, Exception):
                raise
            return _explained(error, self._folder)


def _write_arrays(part: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write what `np.load` reads; unlike np.savez, which has opinions about names, and flushed to the disk."""
    with part.open("wb") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, np.asanyarray(array), allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())


def _explained(error: Exception, folder: Path) -> Failed:
    if isinstance(error, InputError):
        return Failed(reason=str(error), whose="input")
    if isinstance(error, OSError) and (full := storage_fault(error, folder)):
        return Failed(reason=str(full), whose="storage")
    words = " / ".join(line.strip() for line in str(error).strip().splitlines()[:3])[:_WORDS]
    place = traceback.extract_tb(error.__traceback__)[-1]
    reason = f"{type(error).__name__}: {words} ({Path(place.filename).name}, line {place.lineno})"
    # After a fault of CUDA no call of that process succeeds any more: left alone it would fail every other chunk.
    return Failed(reason=reason, whose="process" if type(error).__name__ == "AcceleratorError" else "chunk")


class Book:
    """What the calling process knows: which chunks wait, which are finished or set aside; writes the manifest."""

    def __init__(self, folder: Path, chunks: Sequence[Chunk], done: set[str], unit: str, say: Say) -> None:
        self.chunks, self.unit, self.say = chunks, unit, say
        self.waiting = deque(number for number, chunk in enumerate(chunks) if chunk.key not in done)
        self._folder, self._n_begun = folder, len(self.waiting)
        self._aside: dict[int, str] = {}
        self._lost: Counter[int] = Counter()
        self._n_total = sum(chunk.size for chunk in chunks)
        self._n_units = sum(chunk.size for chunk in chunks if chunk.key in done)
        if self.waiting and done:
            say(f"going on in {folder}: {self._n_units:,} of {self._n_total:,} {unit}s were finished")
        self.progress = Progress(self._n_total, unit, say, before=self._n_units)
        self._manifest = (folder / "manifest.jsonl").open("a")

    def __enter__(self) -> Book:
        return self

    def __exit__(self, *_: object) -> None:
        self._manifest.close()

    def enter(self, number: int, answer: Written | Failed) -> None:
        """Take a worker's answer for a chunk."""
        if isinstance(answer, Failed):
            answer.stop()
            self._put_aside(number, answer.reason)
            return
        chunk = self.chunks[number]
        path = _file_of(self._folder, chunk.key)
        try:
            path.with_name(answer.part).replace(path)
        except FileNotFoundError:
            raise InputError(_not_shared(f"what a worker wrote to {self._folder} is not there on")) from None
        entry = {"key": chunk.key, "sha256": answer.sha256, "bytes": answer.n_bytes, "seconds": answer.seconds}
        self._manifest.write(json.dumps(entry) + "\n")
        self._manifest.flush()
        self._n_units += chunk.size

    def lose(self, number: int, reason: str) -> None:
        """Note that a process was lost while it worked on a chunk."""
        self._lost[number] += 1
        n_lost = self._lost.total()
        if n_lost <= _SAID:
            self.say(f"a worker was lost at chunk {self.chunks[number].key!r}, others go on ({reason})")
        if self._lost[number] < TRIES:
            self.waiting.append(number)  # last, so that all the others come first
        else:
            self._put_aside(number, f"its process ended {TRIES} times, the last time: {reason}")

    def at(self, also: str = "") -> None:
        """Say how far all is, when it is time to."""
        self.progress.at(self._n_units, also)

    def finish(self) -> None:
        """Say how it ended; raise when chunks were set aside."""
        for part in (self._folder / "chunks").glob(".*.part"):  # of workers that were lost on the way
            part.unlink(missing_ok=True)
        if self._aside:
            told = "; ".join(f"{self.chunks[n].key!r}: {reason}" for n, reason in list(self._aside.items())[:_SAID])
            more = f"; and {len(self._aside) - _SAID} more" if len(self._aside) > _SAID else ""
            raise RuntimeError(
                f"{len(self._aside)} of {len(self.chunks)} chunks could not be computed ({told}{more}); all others are "
                f"finished in {self._folder}, and the same command tries these again"
            )
        took = f" in {clock(self.progress.elapsed_s)}" if self._n_begun else " were finished before"
        self.say(f"{self._n_total:,} {self.unit}s{took}: {self._folder}")

    def _put_aside(self, number: int, reason: str) -> None:
        self._aside[number] = reason
        if len(self._aside) <= _SAID:
            self.say(f"chunk {self.chunks[number].key!r} is set aside ({reason})")
