"""What a running sweep's driver knows of its trials: numbers, tracks and logs them, and says how it goes.

`history.jsonl` gets a line for everything that happens; `trials/ID/trial.json` and `end.json` say what a trial is and
how it ended. So whatever becomes of Ray's own state, these are enough to go on.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eegvision import checkpoint, history, pseudonyms, runs, trials
from eegvision.config import RunConfig, SweepConfig
from eegvision.history import GONE, History
from eegvision.tracking import Tracker
from eegvision.trials import Status, TrialRow
from eegvision.vocab import TryAgainError

Say = Callable[[str], None]

_SAY_EVERY_S = 20.0
_HELD_UP_S = 60.0
# What a report says beside the metrics, and the log keeps.
_FACTS = (
    "attempt", "checkpoint", "checkpoint_sha256", "best_checkpoint", "best_checkpoint_sha256", "fell_back", "parts",
    "host", "pid",
)  # fmt: skip


@dataclass(kw_only=True)
class _Book:
    """What is known of one trial."""

    number: int
    suggested: dict[str, Any]
    is_logged: bool = False
    starts: int = 0
    passes: int = 0
    seconds: float = 0.0
    parts: int = 1
    running_since: float | None = None
    """By the monotonic clock, when it was started or last heard of; None while it does not run."""
    is_out_of_time: bool = False
    is_stalled: bool = False


@dataclass(kw_only=True)
class Watching:
    """Numbers, tracks and logs the trials of a running sweep and says how it goes.

    `chance` is the level of guessing for the metric, where it has one; it stands beside every score.
    """

    base: RunConfig
    sweep: SweepConfig
    folder: Path
    tracker: Tracker
    log: History
    chance: float | None
    say: Say
    fault: Exception | None = None
    """What must end the sweep: Tune would hand on an error of its callbacks as text."""
    is_under_way: bool = False
    """Whether Tune has taken its first step, so that its state was readable."""
    _books: dict[str, _Book] = field(init=False, default_factory=dict)
    _orphans: set[str] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        events = history.read(self.folder)
        for event in events:
            if event["do"] == "trial" and "was" in event:
                self._rename(event["was"], event["id"])  # unless that was done
        for path in (self.folder / "trials").glob("*/trial.json"):
            found = json.loads(path.read_text())
            self._books[path.parent.name] = _Book(number=found["number"], suggested=found["suggested"])
        self._restore(events)
        over = (self.folder / "trials").glob("*/end.json")
        self._ended = {path.parent.name: trials.end_of(path.parent) for path in over}
        self._best_file = self.folder / "best_so_far.json"
        self._best = json.loads(self._best_file.read_text()) if self._best_file.exists() else None
        self._began = self._last_said = self._looked = time.monotonic()
        self._ended_before = len(self._ended)
        self.expect(set())

    def _restore(self, events: list[history.Event]) -> None:
        """Take up the counts that the log holds."""
        later = {event["was"]: event["id"] for event in events if "was" in event}
        for event in events:
            name = event.get("id", "")
            while name in later:
                name = later[name]
            if (book := self._books.get(name)) is None:
                continue
            if event["do"] == "trial":
                book.is_logged = True
            elif event["do"] == "attempt":
                book.starts = event["attempt"]
            elif event["do"] == "pass" and event["pass"] > book.passes:
                book.passes, book.seconds = event["pass"], book.seconds + event["metrics"].get("seconds", 0.0)

    def key(self, trial_id: str) -> str:
        return f"{self.folder.name}/{trial_id}"

    def expect(self, known: set[str]) -> None:
        """Say which trials Tune knows; the others wait for one with the same settings to take them over."""
        self._orphans = self._books.keys() - known

    @property
    def known(self) -> set[str]:
        """Trials that are in Tune's records too."""
        return self._books.keys() - self._orphans

    def waiting(self) -> list[dict[str, Any]]:
        """Return the settings of trials that Tune does not know, in the order they were first started."""
        books = sorted((self._books[name] for name in self._orphans), key=lambda book: book.number)
        return [book.suggested for book in books]

    def started(self, trial_id: str, config: Mapping[str, Any]) -> None:
        suggested: dict[str, Any] = json.loads(json.dumps(config))  # as it is read again
        was = None
        if trial_id not in self._books:
            was = next((name for name in sorted(self._orphans) if self._books[name].suggested == suggested), None)
            number = 1 + max((book.number for book in self._books.values()), default=0)
            self._books[trial_id] = self._books.pop(was) if was else _Book(number=number, suggested=suggested)
        book, own = self._books[trial_id], self.folder / "trials" / trial_id
        if was:
            self._orphans.discard(was)
            self.log.write("trial", id=trial_id, number=book.number, suggested=suggested, was=was)
            self._rename(was, trial_id)
        else:
            own.mkdir(parents=True, exist_ok=True, mode=0o700)
            runs.write_whole(own / "trial.json", json.dumps({"number": book.number, "suggested": suggested}))
            if not book.is_logged:
                self.log.write("trial", id=trial_id, number=book.number, suggested=suggested)
        book.is_logged, book.starts, book.running_since = True, book.starts + 1, time.monotonic()
        self.log.write("attempt", id=trial_id, attempt=book.starts)
        if (end := self._ended.pop(was or trial_id, None)) and end["status"] == "failed":
            (own / "end.json").unlink()  # tried again, from its last checkpoint
        elif end:
            self._ended[trial_id] = end
        self._track(trial_id, book)
        if was:
            self._give_up(was, f"goes on as {trial_id}")

    def _give_up(self, trial_id: str, status: str) -> None:
        """End the tracked run of a trial that is there no more."""
        if self.tracker.knows(self.key(trial_id)):
            self.tracker.finish(self.key(trial_id), "KILLED", {"eegvision.status": status})

    def _rename(self, was: str, trial_id: str) -> None:
        """Give a trial's folder the name of the trial that goes on in it."""
        old, new = self.folder / "trials" / was, self.folder / "trials" / trial_id
        if old.exists() and not new.exists():
            old.rename(new)

    def _track(self, trial_id: str, book: _Book) -> None:
        config = self.base.with_overrides(book.suggested)
        name = f"{book.number:03d} {config.eeg.encoder} {config.image.encoder} {config.loss.name}"
        self.tracker.start(
            self.key(trial_id),
            name=f"{name} D{config.eeg.embed_dim}",
            parent=self.folder.name,
            params=config.flat(),
            tags={
                "eegvision.kind": "train",
                "eegvision.config": config.fingerprint(),
                "eegvision.trial": str(book.number),
            },
        )

    def reported(self, trial_id: str, result: Mapping[str, Any]) -> None:
        book, number = self._books[trial_id], int(result["pass"])
        book.running_since = time.monotonic()
        metrics = _metrics(result)
        if metrics:
            self._fill(trial_id, number - 1)
            self._passed(trial_id, number, metrics, {name: result[name] for name in _FACTS if name in result})
        value = float(result["objective"])
        sign = 1 if self.base.mode == "max" else -1
        if metrics and (self._best is None or sign * value > sign * self._best["value"]):
            self._best = {"value": value, "trial": book.number, "pass": number}
            runs.write_whole(self._best_file, json.dumps(self._best))
        if result.get("fell_back"):
            self.say(f"trial {book.number}: its newest checkpoint is damaged; it goes on after pass {number}")
        if (parts := int(result.get("parts", 1))) > book.parts:
            book.parts = parts
            self.say(f"trial {book.number}: a batch did not fit in the GPU's memory; it is computed in {parts} parts")
        if time.monotonic() - self._last_said > _SAY_EVERY_S:
            self.say(self.line())

    def _fill(self, trial_id: str, upto: int) -> None:
        """Log passes that were made while no driver listened; the trial's checkpoint knows them."""
        book = self._books[trial_id]
        if book.passes < upto:
            made = trials.history_of(self.folder / "trials" / trial_id)[:upto]
            for number, metrics in enumerate(made[book.passes :], start=book.passes + 1):
                self._passed(trial_id, number, metrics, {"recovered": True})

    def _passed(self, trial_id: str, number: int, metrics: dict[str, float], facts: Mapping[str, Any]) -> None:
        book = self._books[trial_id]
        self.log.write("pass", id=trial_id, **{"pass": number}, metrics=metrics, **facts)
        if number > book.passes:
            book.passes, book.seconds = number, book.seconds + metrics.get("seconds", 0.0)
        shown = {name: value for name, value in metrics.items() if "/" in name}
        self.tracker.metrics(self.key(trial_id), shown, step=number)

    def is_over(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Say whether a trial has used up its time with the pass it reports."""
        book, limit_h = self._books[trial_id], self.sweep.trial_hours
        seconds = book.seconds + (result.get("seconds", 0.0) if int(result["pass"]) > book.passes else 0.0)
        book.is_out_of_time = limit_h is not None and seconds > 3600 * limit_h
        return book.is_out_of_time

    def stalled(self) -> list[str]:
        """Return the trials that are to be ended because nothing was heard of them for too long."""
        if (limit := self.sweep.stall_minutes) is None:
            return []
        now, found = time.monotonic(), []
        if (away := now - self._looked) > _HELD_UP_S:  # this process did not run, so it could not hear anything
            for book in self._books.values():
                book.running_since = None if book.running_since is None else book.running_since + away
        self._looked = now
        for trial_id, book in self._books.items():
            if book.running_since is not None and now - book.running_since > 60 * limit:
                book.is_stalled, book.running_since = True, now
                found.append(trial_id)
        return found

    def lost(self, trial_id: str, reason: str, *, is_final: bool) -> None:
        """Note that an attempt ended before its trial did: it will be started again, unless that was the last time."""
        book = self._books.get(trial_id)
        if book is None:  # its process could not even be started
            return
        if book.is_stalled:
            book.is_stalled = False
            reason = f"stall: nothing was heard of it for {self.sweep.stall_minutes:g} min, so its process was ended"
            reason += " (--stall-minutes)"
        book.running_since = None
        self.log.write("lost", id=trial_id, attempt=book.starts, reason=reason)
        if reason.startswith("storage:"):
            # No fault of the trial's, and the next ones would meet the same: nothing ends, all of it waits.
            text = reason.removeprefix("storage: ")
            self.fault = self.fault or TryAgainError(f"trial {book.number} could not store its work: {text}")
        elif is_final:
            trials.write_end(self.folder / "trials" / trial_id, "failed", reason)
            self.ended(trial_id)
        else:
            self.say(f"trial {book.number} was lost and goes on from its checkpoint ({reason})")

    def ended(self, trial_id: str) -> None:
        own, book = self.folder / "trials" / trial_id, self._books[trial_id]
        book.running_since = None
        if not (own / "end.json").exists():  # it did not get to say so itself
            # After its last pass too it is held against others; then nothing is taken from it.
            config = self.base.with_overrides(book.suggested)
            has_all = len(trials.history_of(own)) >= config.train.max_passes
            status: Status = "out of time" if book.is_out_of_time else "finished" if has_all else "stopped early"
            limit = f"it trained for {book.seconds / 3600:.2g} h (--trial-hours)" if book.is_out_of_time else ""
            trials.write_end(own, status, limit)
        self._ended[trial_id] = trials.end_of(own)
        self._log_end(trial_id)
        self._track_end(trial_id)
        self.say(self.line())

    def _track_end(self, trial_id: str) -> None:
        """End a trial's tracked run, unless that was done; its settings go along, as all at once would be a crowd."""
        key, status = self.key(trial_id), self._ended[trial_id]["status"]
        tracked = "FAILED" if status == "failed" else "FINISHED"
        if self.tracker.end_of(key) != tracked:
            config = self.base.with_overrides(self._books[trial_id].suggested)
            self.tracker.text(key, json.dumps(pseudonyms.public(config.to_dict()), indent=2), "config.json")
            self.tracker.finish(key, tracked, {"eegvision.status": status})

    def _log_end(self, trial_id: str) -> None:
        own = self.folder / "trials" / trial_id
        made = trials.history_of(own)
        self._fill(trial_id, len(made))
        best = (min if self.base.mode == "min" else max)(
            range(len(made)), key=lambda at: made[at][self.base.metric], default=None
        )
        if best is not None:
            self.tracker.metrics(self.key(trial_id), trials.best_metrics(made[best]), step=best + 1)
        self.log.write(
            "end",
            id=trial_id,
            **self._ended[trial_id],
            score=None if best is None else made[best][self.base.metric],
            best_pass=0 if best is None else best + 1,
            **_files(own),
        )

    def line(self) -> str:
        """Say in one line how many trials are done, what is best so far and how long it may take."""
        self._last_said = time.monotonic()
        elapsed = self._last_said - self._began
        done, total = len(self._ended), self.sweep.trials
        text = f"[{elapsed // 60:02.0f}:{elapsed % 60:02.0f}] {done}/{total} trials done"
        others = Counter(end["status"] for end in self._ended.values() if end["status"] != "finished")
        if others:
            text += f" ({', '.join(f'{count} {status}' for status, count in sorted(others.items()))})"
        text += f", {sum(book.running_since is not None for book in self._books.values())} running"
        if self._best:
            chance = f"; chance {self.chance:.3f}" if self.chance else ""
            text += f" | best {self.base.metric} {self._best['value']:.3f}"
            text += f" (trial {self._best['trial']}, pass {self._best['pass']}{chance})"
        if (ended_now := done - self._ended_before) > 0 and done < total:
            text += f" | about {_duration(elapsed / ended_now * (total - done))} left"
        return text

    def close(self, rows: list[TrialRow]) -> None:
        """Bring log and tracker in line with the outcome.

        Workers of a trial that was stopped may have finished one more pass. And a trial that began just
        before its driver was killed is in our records but not in Ray's; where no other has taken it over it
        goes, with its passes to `lost/` if it has any. The kill may even have come before the tracker heard of it.
        """
        for row in rows:
            if row.passes > self._books[row.trial_id].passes:
                self._log_end(row.trial_id)
            self._track_end(row.trial_id)
        for event in history.read(self.folder):
            if "was" in event:  # said before, unless the driver was killed at that moment
                self._give_up(event["was"], f"goes on as {event['id']}")
        for gone in self._books.keys() - {row.trial_id for row in rows}:
            self._give_up(gone, GONE)
            if self._books[gone].is_logged:
                self.log.write("end", id=gone, status=GONE, message="", score=None, best_pass=0)
            own = self.folder / "trials" / gone
            if (own / "last").exists():
                (self.folder / "lost").mkdir(exist_ok=True, mode=0o700)
                own.rename(self.folder / "lost" / gone)
            else:
                shutil.rmtree(own, ignore_errors=True)


def _metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """Return a report's metrics as plain numbers, without what Tune adds; none where a trial had ended before."""
    found = {name: value for name, value in result.items() if "/" in name and isinstance(value, int | float)}
    if found:
        found |= {name: result[name] for name in ("segments_per_s", "seconds") if name in result}
    return {name: float(value) for name, value in found.items()}


def _files(own: Path) -> dict[str, str]:
    """Return the newest checkpoints of a trial, with the hashes of their manifests."""
    found = {}
    for kind, root in (("checkpoint", "last"), ("best_checkpoint", "best")):
        for path in checkpoint.by_age(own / root)[-1:]:
            found |= {kind: str(path.relative_to(own)), f"{kind}_sha256": checkpoint.digest(path)}
    return found


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
