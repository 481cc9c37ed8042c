"""The log of a sweep: what happened, in order. Lines are added, never changed, and one process writes at a time.

    RUN/history.jsonl    {"n": 17, "t": "2026-11-21T19:02:16+0000", "do": "pass", "id": "1f3a", "pass": 4, ...}

| do | fields |
|---|---|
| begin, resume | identity (a hash), code, host, pid, owner, metric, mode, trials, gpus |
| state | file: the one of Ray's states that was gone on from, or None; there: all that were in the folder |
| drift | differences: what the sweep goes on with instead of what it was begun with |
| trial | id, number, suggested; was: the id its folder had before |
| attempt | id, attempt: how often the driver has started the trial |
| pass | id, pass, metrics, attempt (the worker's own count), host, pid, checkpoint, best_checkpoint and their hashes |
| lost | id, attempt, reason: the attempt ended before the trial did |
| end | id, status, message, score, best_pass, and the newest checkpoints as in `pass` |
| best | id, number, metric, value |
| artifact | path in RUN, sha256, bytes |
| interrupted, finished | reason |

`check` reads this file and those it names, and nothing else: it finds a trial that two processes held, a pass that is
missing or came out differently the second time, a best that is not the best, a file that has changed. `n` counts
lines and puts them in order; `t` is for people, because clocks jump.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

Event = dict[str, Any]

NAME = "history.jsonl"
GONE = "lost with its driver"
"""Status of a trial that nothing is left of: its driver died before it had a pass, and another took its place."""

_TIMES = ("seconds", "segments_per_s")  # of a pass that is made again these alone may differ
_SLOW, _FEWEST_PASSES = 0.5, 3


class History:
    """The log of a run's folder, open for adding lines; `see` is shown every line that was added."""

    def __init__(self, folder: Path, see: Callable[[Mapping[str, Any]], None] | None = None) -> None:
        self.folder = folder
        self._see = see
        self._file: IO[bytes] | None = None
        self._n = 0
        self._is_cut = False

    def __enter__(self) -> Self:
        path = self.folder / NAME
        found = read(self.folder)
        self._n = max((event["n"] for event in found), default=0)
        self._file = path.open("ab+")
        if self._file.tell():
            self._file.seek(-1, os.SEEK_END)
            self._is_cut = self._file.read() != b"\n"  # of a process that was ended while it wrote
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        self._file.close()

    @property
    def is_new(self) -> bool:
        """Whether there is no line yet."""
        return self._n == 0

    def write(self, do: str, **fields: Any) -> None:
        """Add a line; it is on disk when this returns."""
        assert self._file is not None, "open the history with `with`"
        event = {"n": self._n + 1, "t": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "do": do, **fields}
        line = json.dumps(event).encode() + b"\n"
        cut, self._is_cut = self._is_cut, True
        self._file.write(b"\n" + line if cut else line)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._n, self._is_cut = self._n + 1, False
        if self._see is not None:
            self._see(event)


def read(folder: Path) -> list[Event]:
    """Return what a run's log says, the oldest first; lines that were cut short are left out."""
    return [event for event in _lines(folder) if event is not None]


def _lines(folder: Path) -> Iterator[Event | None]:
    path = folder / NAME
    if not path.exists():
        return
    for line in path.read_bytes().splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        is_whole = isinstance(event, dict) and isinstance(event.get("n"), int) and isinstance(event.get("do"), str)
        yield event if is_whole else None


@dataclass(kw_only=True)
class _Trial:
    """What the log has said of a trial so far."""

    number: int
    starts: int = 0
    is_open: bool = False
    """Whether it was started, and neither lost nor ended since."""
    attempt: int = 0
    """Highest attempt that made a pass."""
    attempt_before: int = 0
    """The same when the trial was last started."""
    makers: dict[int, tuple[Any, Any]] = field(default_factory=dict)
    passes: dict[int, dict[str, float]] = field(default_factory=dict)
    files: dict[str, tuple[str, str]] = field(default_factory=dict)
    end: Event | None = None
    is_ended: bool = False
    """Whether its last line is its end."""


def check(folder: Path) -> list[str]:
    """Return what is wrong with a run according to its log, a sentence each; nothing for a sound one.

    A run that is under way, or was interrupted, is held against all that must be true so far.
    """
    if not (folder / NAME).exists():
        return [f"{folder} has no {NAME}; it was made by an older version, or by something that is no sweep"]
    checker = _Checker(folder)
    previous: Event | None = None
    cut_at: int | None = None
    for number, event in enumerate(_lines(folder), start=1):
        if event is None:
            cut_at = number
            continue
        if cut_at is not None and event["do"] not in ("resume", "begin", "interrupted"):
            checker.tell(f"line {cut_at} cannot be read, and the sweep went on after it")
        cut_at = None
        if event["n"] != (expected := (previous["n"] if previous else 0) + 1):
            checker.tell(f"line {number} is number {event['n']}, not {expected}: lines are missing or were put in")
        checker.take(event)
        previous = event
    return checker.close()


class _Checker:
    """Follows a log line by line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trials: dict[str, _Trial] = {}
        self.begin: Event = {}
        self.best: Event | None = None
        self.artifacts: dict[str, Event] = {}
        self.problems: list[str] = []
        self.is_finished = False
        self.owner = 0

    def tell(self, problem: str) -> None:
        self.problems.append(problem)

    def take(self, event: Event) -> None:
        """Follow one line."""
        do = event["do"]
        if self.is_finished:
            self.tell(f"number {event['n']} ({do}) comes after the sweep was finished")
        if not self.begin and do != "begin":
            self.tell(f"the log begins with {do!r} instead of 'begin'")
            self.begin = {"do": do}
        if do in ("begin", "resume"):
            self._driver(event)
        elif do == "best":
            self.best = event
        elif do == "artifact":
            self.artifacts[event["path"]] = event
        elif do == "finished":
            self.is_finished = True
        elif do == "trial":
            was = self.trials.pop(event.get("was", ""), None)
            self.trials[event["id"]] = was or _Trial(number=event["number"])
        elif do in ("attempt", "pass", "lost", "end"):
            if (trial := self.trials.get(event["id"])) is None:
                self.tell(f"number {event['n']} ({do}) is of the trial {event['id']}, which never began")
                return
            if do == "lost":
                trial.is_open = False
            else:
                {"attempt": self._attempt, "pass": self._pass, "end": self._end}[do](trial, event)

    def _driver(self, event: Event) -> None:
        if event["do"] == "begin" and self.begin:
            self.tell(f"number {event['n']} begins the sweep a second time")
        if event["do"] == "begin":
            self.begin = event
        if event["identity"] != self.begin.get("identity", event["identity"]):
            self.tell(f"number {event['n']} goes on with another sweep than the one that was begun")
        if event["owner"] <= self.owner:
            self.tell(
                f"{event['host']} (process {event['pid']}) wrote as owner {event['owner']} after owner {self.owner}: "
                "two processes held this run at a time"
            )
        self.owner = max(self.owner, event["owner"])
        for trial in self.trials.values():
            trial.is_open = False  # whatever ran ended with its driver

    def _attempt(self, trial: _Trial, event: Event) -> None:
        if trial.is_open:
            self.tell(f"trial {trial.number} was started again while it ran")
        if event["attempt"] != trial.starts + 1:
            self.tell(f"trial {trial.number} was started for time {event['attempt']} after time {trial.starts}")
        trial.starts, trial.is_open, trial.is_ended = event["attempt"], True, False
        trial.attempt_before = trial.attempt

    def _pass(self, trial: _Trial, event: Event) -> None:
        who, number = f"trial {trial.number}", event["pass"]
        if trial.is_ended and not event.get("recovered"):
            self.tell(f"{who}: pass {number} comes after its end")
        if number > len(trial.passes) + 1:
            self.tell(f"{who}: pass {number} follows pass {len(trial.passes)}")
        before = trial.passes.setdefault(number, event["metrics"])
        for name in sorted(before | event["metrics"]):
            if name not in _TIMES and not self._is_same(before.get(name), event["metrics"].get(name)):
                self.tell(
                    f"{who}: pass {number} was made twice with different results: {name} {before.get(name)}, "
                    f"then {event['metrics'].get(name)}"
                )
                break
        if (attempt := event.get("attempt")) is not None:
            maker = (event.get("host"), event.get("pid"))
            if attempt < trial.attempt:
                self.tell(f"{who}: attempt {attempt} made pass {number} after attempt {trial.attempt} had begun")
            elif attempt == trial.attempt_before:
                self.tell(f"{who} was started anew, but attempt {attempt} of before made pass {number}")
            if trial.makers.setdefault(attempt, maker) != maker:
                self.tell(f"{who}: two processes made passes as attempt {attempt}")
            trial.attempt = max(trial.attempt, attempt)
        self._note_files(trial, event)
        trial.is_ended = False

    def _note_files(self, trial: _Trial, event: Event) -> None:
        for kind in ("checkpoint", "best_checkpoint"):
            if event.get(kind):
                trial.files[kind] = (event[kind], event[f"{kind}_sha256"])

    def _is_same(self, one: float | None, other: float | None) -> bool:
        if one is None or other is None:
            return one is other
        # Sums on a GPU are not in a fixed order; on a CPU a pass is made again to the last bit.
        return one == other or (bool(self.begin.get("gpus")) and math.isclose(one, other, rel_tol=0.1, abs_tol=0.05))

    def _end(self, trial: _Trial, event: Event) -> None:
        if trial.is_ended:
            self.tell(f"trial {trial.number} ends twice")
        trial.end, trial.is_ended, trial.is_open = event, True, False
        self._note_files(trial, event)

    def close(self) -> list[str]:
        """Hold the state at the end against itself and the files, and return all problems."""
        kept = {key: trial for key, trial in self.trials.items() if not trial.end or trial.end["status"] != GONE}
        for key, trial in kept.items():
            if trial.end and trial.is_ended:
                self._settled(key, trial, trial.end)
            elif self.is_finished:
                self.tell(f"trial {trial.number} has no end, and the sweep is finished")
        if self.is_finished:
            if len(kept) != self.begin.get("trials", len(kept)):
                self.tell(f"{self.begin['trials']} trials were planned, and {len(kept)} are in the log")
            self._best(kept)
        for path, event in self.artifacts.items():
            self._file(path, event["sha256"])
        return self.problems

    def _settled(self, key: str, trial: _Trial, end: Event) -> None:
        who, metric = f"trial {trial.number}", self.begin.get("metric")
        scores = [metrics[metric] for metrics in trial.passes.values() if metric in metrics]
        best = (min if self.begin.get("mode") == "min" else max)(scores, default=None)
        if end["score"] != best:
            self.tell(f"{who} ended with {metric} {end['score']}, but the best of its passes is {best}")
        own = f"trials/{key}"
        for path, sha256 in trial.files.values():
            self._file(f"{own}/{path}/manifest.json", sha256)
        numbers = [int(path.name) for path in (self.folder / own / "attempts").glob("[0-9]*")]
        if missing := sorted(set(trial.makers) - set(numbers)):
            self.tell(f"{who} has passes of attempt {missing[0]}, which never took its number in {own}/attempts")

    def _best(self, trials: Mapping[str, _Trial]) -> None:
        ended = {key: trial.end["score"] for key, trial in trials.items() if trial.end}
        scores = [score for score in ended.values() if score is not None]
        top = (min if self.begin.get("mode") == "min" else max)(scores, default=None)
        if self.best is None:
            self.tell("the sweep is finished and names no best trial")
        elif (self.best["value"], ended.get(self.best["id"])) != (top, top):
            self.tell(
                f"trial {self.best['number']} is named the best with {self.best['metric']} {self.best['value']}, "
                f"but the best of all ends is {top}"
            )

    def _file(self, path: str, sha256: str) -> None:
        try:
            with (self.folder / path).open("rb") as file:
                is_same = hashlib.file_digest(file, "sha256").hexdigest() == sha256
        except OSError as error:
            self.tell(f"{path} cannot be read ({error.strerror}), and the log names it")
            return
        if not is_same:
            self.tell(f"{path} has changed since it was written")


def slow_hosts(folder: Path) -> list[str]:
    """Say which machines made their passes at less than half the speed of the others, if several took part.

    Speeds are segments per second of a trial's passes; each machine counts with the median of its own.
    """
    speeds: dict[str, list[float]] = {}
    for event in read(folder):
        if event["do"] == "pass" and event.get("host") and "segments_per_s" in event["metrics"]:
            speeds.setdefault(event["host"], []).append(event["metrics"]["segments_per_s"])
    medians = {host: statistics.median(found) for host, found in speeds.items() if len(found) >= _FEWEST_PASSES}
    said = []
    for host, speed in sorted(medians.items()):
        others = [median for other, median in medians.items() if other != host]
        if others and speed < _SLOW * statistics.median(others):
            said.append(
                f"{host} is slow: {speed:.0f} segments/s in the middle of its passes, the other machines "
                f"{statistics.median(others):.0f}; look at what else runs there before it takes part again"
            )
    return said
