"""Events on their way to MLflow, in a folder: one writer, a file that only grows, and how far each target has it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import logging
import os
import socket
import time
import uuid
from pathlib import Path
from typing import Any, Literal

from eegvision.vocab import RunInUseError

Event = dict[str, Any]
Status = Literal["FINISHED", "FAILED", "KILLED"]

log = logging.getLogger(__name__)

_LINES_PER_CHUNK = 500


class Spool:
    """A folder of events: `events.jsonl` only grows, `shipped.json` says how far each target has it.

    `id` tells this study from another one of the same name, and `lock` keeps a second process out. While the disk is
    full, events wait in memory.

    Raises:
        RunInUseError: another process holds the folder.
    """

    def __init__(self, folder: Path, target: str) -> None:
        self.folder = folder
        self.starts: dict[str, Event] = {}  # key -> its last start event
        self.ends: dict[str, Status] = {}  # key -> how it ended, unless it was started again
        self._told: dict[tuple[str, int], frozenset[str]] = {}  # (key, step) -> its metrics
        self._names: dict[frozenset[str], frozenset[str]] = {}  # one object for all steps with the same metrics
        self.held: list[bytes] = []  # lines that could not be written yet
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = _locked(folder / "lock")
        if not (folder / "id").exists():
            _write_whole(folder / "id", uuid.uuid4().hex)
        self.id = (folder / "id").read_text()
        self._events = folder / "events.jsonl"
        self._target = _short(target)
        self._shipped: int = _offsets(folder).get(self._target, 0)
        # Unbuffered: a buffer would write the rest of a line that failed once more, after the next one.
        self._file = self._events.open("ab", buffering=0)
        self._learn()
        self._size = self._events.stat().st_size

    def holds(self, key: str, name: str, step: int) -> bool:
        """Say whether there is a value of this metric of the run at this step."""
        return name in self._told.get((key, step), ())

    def append(self, event: Event) -> None:
        """Add an event; never raises for want of space."""
        self.held.append(json.dumps(event, allow_nan=False).encode() + b"\n")
        self._remember(event)
        self.write_held(is_news=len(self.held) == 1)

    def write_held(self, *, is_news: bool = False) -> None:
        """Write what could not be written before; a part of a line is taken back, so that the next stands alone."""
        if not self.held:
            return
        rest = memoryview(b"".join(self.held))
        size = self._size + len(rest)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self._size)
            if is_news:
                log.warning(
                    "%s cannot be written (%s); events wait in memory: make room there, or what is not written when "
                    "this process ends is missing in MLflow", self._events, error.strerror,
                )  # fmt: skip
            return
        self._size = size
        self.held.clear()

    def read(self) -> tuple[list[Event], int]:
        """Return the next events for the target and the offset after them."""
        events: list[Event] = []
        offset = self._shipped
        with self._events.open("rb") as file:
            file.seek(offset)
            for line in itertools.islice(file, _LINES_PER_CHUNK):
                if not line.endswith(b"\n"):  # being written
                    break
                offset += len(line)
                with contextlib.suppress(ValueError):  # reported when the spool was opened
                    events.append(json.loads(line))
        return events, offset

    def commit(self, offset: int) -> None:
        """Note that the target has everything before `offset`."""
        with contextlib.suppress(OSError):  # on a full disk it is shipped once more, which changes nothing
            _write_whole(self.folder / "shipped.json", json.dumps(_offsets(self.folder) | {self._target: offset}))
        self._shipped = offset

    @property
    def is_behind(self) -> bool:
        """Whether there are written events that the target does not have."""
        return self._events.stat().st_size > self._shipped

    def pending(self) -> int:
        """Return the number of events that the target does not have."""
        return _lines_after(self._events, self._shipped) + len(self.held)

    def close(self) -> None:
        """Let another process have the folder."""
        self._file.close()
        self._lock.close()

    def _learn(self) -> None:
        """Remember what an earlier process wrote; end the line it was killed in, so that the next stands alone."""
        damaged, line = 0, b"\n"
        with self._events.open("rb") as file:
            for line in file:
                try:
                    self._remember(json.loads(line))
                except ValueError:
                    damaged += 1
        if not line.endswith(b"\n"):
            self._file.write(b"\n")
        if damaged:
            log.warning("%s: %d damaged lines (a crash while writing) are left out", self._events, damaged)

    def _remember(self, event: Event) -> None:
        if event["do"] == "start":
            self.starts[event["key"]] = event
            self.ends.pop(event["key"], None)
        elif event["do"] == "finish":
            self.ends[event["key"]] = event["status"]
        elif event["do"] == "metrics":
            point = (event["key"], event["step"])
            names = self._told.get(point, frozenset()).union(event["values"])
            self._told[point] = self._names.setdefault(names, names)


def waiting(folder: Path, target: str) -> int:
    """Return how many events of a spool the target does not have; looks only, so whoever holds it is not disturbed."""
    events = folder / "events.jsonl"
    return _lines_after(events, _offsets(folder).get(_short(target), 0)) if events.exists() else 0


def _short(target: str) -> str:
    """Return a hash, because an address may hold a password."""
    return hashlib.sha256(target.encode()).hexdigest()[:16]


def _offsets(folder: Path) -> dict[str, int]:
    path = folder / "shipped.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _lines_after(path: Path, offset: int) -> int:
    with path.open("rb") as file:
        file.seek(offset)
        return sum(1 for _ in file)


def _write_whole(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def _locked(path: Path) -> Any:
    """Open `path` and lock it for this process; the system lets go when the process ends, however it ends."""
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise RunInUseError(
            f"{path.parent} is being written by {holder}; wait until it ends, or give this run another name"
        ) from None
    except OSError as error:  # some network file systems have no locks
        log.warning("%s cannot be locked (%s): do not start the same run twice", path, error)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
    file.flush()
    return file
