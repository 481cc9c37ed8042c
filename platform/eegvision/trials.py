"""What a trial leaves in its folder `RUN/trials/ID/`: settings, how it ended, history and checkpoints."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from eegvision import checkpoint, runs
from eegvision.config import RunConfig
from eegvision.vocab import InputError

Status = Literal["finished", "stopped early", "out of time", "diverged", "refused", "failed"]


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """One trial: its settings, its metrics after every pass and at its best pass."""

    trial_id: str
    number: int
    status: Status
    config: RunConfig
    passes: int
    best_pass: int
    metrics: dict[str, float]
    history: tuple[dict[str, float], ...]
    seconds: float
    folder: Path
    message: str = ""
    attempts: int = 1
    """Processes it took: one, and one more for each that was lost or interrupted."""

    @property
    def checkpoint(self) -> Path:
        """Folder of the best pass.

        Raises:
            InputError: there is none.
        """
        path = checkpoint.latest(self.folder / "best")
        if path is None:
            raise InputError(
                f"trial {self.trial_id} ({self.status}) left no whole checkpoint in {self.folder / 'best'}; "
                f"{self.message or 'run the same command again, or choose another trial'}"
            )
        return path


def number_of(folder: Path) -> int:
    """Return a trial's place in the order of starting, which outlives restarts."""
    return json.loads((folder / "trial.json").read_text())["number"]


def end_of(folder: Path) -> dict[str, Any]:
    """Return how a trial ended: its status and, where there is one, the reason."""
    return json.loads((folder / "end.json").read_text())


def write_end(folder: Path, status: Status, message: str = "") -> None:
    """Leave in a trial's folder how it ended."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    runs.write_whole(folder / "end.json", json.dumps({"status": status, "message": message}))


def history_of(folder: Path) -> list[dict[str, float]]:
    """Return the metrics of every pass in a trial's folder, by what its newest readable checkpoint says."""
    for path in reversed(checkpoint.by_age(folder / "last")):
        with contextlib.suppress(checkpoint.CheckpointError):
            return checkpoint.record(path)["history"]
    return []


def read_trial(folder: Path, config: RunConfig, *, status: Status | None = None, message: str = "") -> TrialRow:
    """Read a trial's outcome from its own folder, which also says what Ray does not know after a restart.

    `status` and `message` go over what the folder says.
    """
    end = end_of(folder)
    history = history_of(folder)  # models and optimisers stay unread: those of 1,000 trials may be 100 GB
    better = min if config.mode == "min" else max
    best = better(range(len(history)), key=lambda done: history[done][config.metric], default=None)
    status = status or end["status"]
    assert status in get_args(Status), f"{folder}/end.json has the status {status!r}"
    return TrialRow(
        trial_id=folder.name,
        number=number_of(folder),
        status=status,
        config=config,
        passes=len(history),
        best_pass=0 if best is None else best + 1,
        metrics={} if best is None else history[best],
        history=tuple(history),
        seconds=sum(done["seconds"] for done in history),
        folder=folder,
        message=end["message"] or message,
        attempts=max(1, len(list((folder / "attempts").glob("[0-9]*")))),
    )


def best_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics of the best pass under names of their own: MLflow's tables show the last value of each metric."""
    return {name.replace("val/", "best/"): value for name, value in metrics.items() if name.startswith("val/")}


def ranked(rows: list[TrialRow]) -> list[TrialRow]:
    """Return trials of one metric, the best first and those without any at the end."""
    scored = [row for row in rows if row.metrics]
    if not scored:
        return rows
    sign = 1 if scored[0].config.mode == "min" else -1
    best_first = sorted(scored, key=lambda row: sign * row.metrics[row.config.metric])
    return best_first + [row for row in rows if not row.metrics]


def config_of(checkpoint_folder: Path) -> RunConfig:
    """Return the configuration a checkpoint was made with."""
    return RunConfig.from_dict(checkpoint.load(checkpoint_folder)[1]["config"])


def find_trial(run: Path, number: int | None = None) -> Path:
    """Return the folder of a run's trial: the one of this number, or the best one.

    Raises:
        InputError: no such run or trial, or the run has no best one yet.
    """
    found = {number_of(path.parent): path.parent for path in (run / "trials").glob("*/trial.json")}
    if not found:
        near = ", ".join(sorted(path.name for path in run.parent.glob("*") if (path / "trials").is_dir())) or "none"
        raise InputError(f"there is no run with trials in {run}; runs there: {near}")
    if number is None:
        if not (run / "best.json").exists():
            raise InputError(f"{run.name!r} is not finished, so it has no best trial yet; name one with --trial")
        return run / "trials" / json.loads((run / "best.json").read_text())["trial"]
    if number not in found:
        raise InputError(f"{run.name!r} has no trial {number}; it has {', '.join(map(str, sorted(found)))}")
    return found[number]
