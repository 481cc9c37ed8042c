"""Scoring a trial of a run: its embeddings, one evaluation, and what is left of it in `RUN/evaluations/`."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eegvision import checkpoint, cluster, ledger, runs, stream, trials
from eegvision.assess.embedding import Embedded, embed, open_store, side_sha256
from eegvision.assess.probing import probe
from eegvision.assess.retrieving import zero_shot_scores
from eegvision.assess.scores import Evaluation, Question
from eegvision.config import RunConfig
from eegvision.encoders.joint import JointModel
from eegvision.fanout import spread
from eegvision.stream import Store
from eegvision.tracking import code_version
from eegvision.vocab import InputError, SplitName

Say = Callable[[str], None]


def evaluate(model: JointModel, store: Store, side: SplitName, question: Question) -> Evaluation:
    """Score a model on a side; for the test side the caller has written the opening into the ledger.

    Raises:
        InputError: the question does not fit the model or the data (no classes, no EEG encoder, one picture).
    """
    asked = embed(model, store, side)
    if len(asked.image_M) < 2:
        raise InputError(f"the {side} side shows one picture, so nothing can be told apart; use another split")
    ask = probe if question.protocol == "probe" else zero_shot_scores
    evaluation = ask(model, store, asked, question)
    circumstances = _circumstances(model.config, store, asked)
    for row in evaluation.rows:
        row |= circumstances
    return evaluation


def _circumstances(config: RunConfig, store: Store, asked: Embedded) -> dict[str, Any]:
    return {
        "side": asked.side,
        "split": config.data.split,
        "held_out": config.data.held_out,
        "selection": f"best pass by {config.metric}",
        "is_chosen_on": asked.side == "val",
        "arm": config.loss.arm,
        "n_channels": store.manifest.n_chans,
        "window_s": config.data.window_s,
        "band_hz": config.data.band_hz,
        "control": config.data.control,
    }


@dataclass(frozen=True, kw_only=True)
class Task:
    """One trial to score; all a process needs to know."""

    run: Path
    trial: Path
    checkpoint: Path
    model_sha256: str
    side: SplitName
    question: Question
    opening: dict[str, Any] | None = None

    @property
    def path(self) -> Path:
        """File of the result; its name says what was asked."""
        asked = hashlib.sha256(repr(self.question).encode()).hexdigest()[:6]
        return self.run / "evaluations" / f"{self.trial.name}.{self.question.protocol}.{self.side}.{asked}.json"

    def stored(self) -> dict[str, Any] | None:
        """Return the result if this very model was asked this before."""
        if not self.path.exists():
            return None
        found = json.loads(self.path.read_text())
        return found if found["model_sha256"] == self.model_sha256 else None


def score_trials(
    run: Path,
    trial_folders: Sequence[Path],
    question: Question,
    *,
    side: SplitName,
    purpose: str,
    again: str | None = None,
    say: Say,
) -> list[dict[str, Any]]:
    """Score trials of a run on one side and store the results; on the cluster this process is connected to, if any.

    The test side is opened for all of them at once, in one line of the ledger, before anything is computed. What was
    scored before is not computed again.

    Args:
        purpose: why the test set is opened, for the ledger.
        again: why it is opened although this run's other models have been scored on it; None refuses that.
    Raises:
        InputError: a trial has no checkpoint, the data set has changed, or the test set was opened before.
    """
    tasks = [_task(run, folder, side, question) for folder in trial_folders]
    if side == "test":
        tasks = _opened(tasks, run, purpose, again, say)
    todo = [task for task in tasks if task.stored() is None]
    if cluster.is_connected() and len(todo) > 1:
        gpus = float(cluster.size()[1] > 0)
        for number, name in enumerate(spread(_score, todo, gpus=gpus), start=1):
            say(f"scored {number} of {len(todo)}: {name}")
    else:
        for task in todo:
            _score(task)
    return [json.loads(task.path.read_text()) for task in tasks]


def _task(run: Path, folder: Path, side: SplitName, question: Question) -> Task:
    path = checkpoint.latest(folder / "best")
    if path is None:
        raise InputError(f"trial {folder.name} of {run.name!r} left no whole checkpoint; choose another one")
    files = json.loads((path / "manifest.json").read_text())["files"]
    sha256 = files["model.safetensors"]["sha256"]
    return Task(run=run, trial=folder, checkpoint=path, model_sha256=sha256, side=side, question=question)


def _opened(tasks: Sequence[Task], run: Path, purpose: str, again: str | None, say: Say) -> list[Task]:
    """Write into the ledger which models are about to be scored on which test sets."""
    by_side: dict[str, list[Task]] = {}
    names: dict[str, str] = {}
    views: dict[str, str] = {}
    for task in tasks:
        data = replace(trials.config_of(task.checkpoint).data, residency="stream", control=None, band_hz=None)
        if (view := repr(data)) not in views:
            store = stream.load_store(data, None)
            views[view] = side_sha256(store, "test")
            names[views[view]] = store.manifest.name
        by_side.setdefault(views[view], []).append(task)
    opened: dict[Path, dict[str, Any]] = {}
    for sha256, own in by_side.items():
        models = [
            {
                "run": run.name,
                "trial": task.trial.name,
                "fingerprint": trials.config_of(task.checkpoint).fingerprint(),
                "model_sha256": task.model_sha256,
            }
            for task in own
        ]
        known = {model["model_sha256"] for model in models}
        before = [
            opening
            for opening in ledger.openings(sha256)
            if opening.study == run.name and not known <= {model["model_sha256"] for model in opening.models}
        ]
        if before and again is None:
            raise InputError(
                f"the test set of {names[sha256]!r} was opened for other models of {run.name!r} on {before[-1].time} "
                "(line "
                f"{before[-1].number} of {ledger.ledger_path()}); scoring more of them makes it a validation set. "
                'If that is meant, say why with --again "...": the ledger and every report will show it'
            )
        reason = purpose if not before else f"{purpose}; again, because {again}"
        opening, earlier = ledger.open_test(names[sha256], sha256, study=run.name, models=models, purpose=reason)
        n_openings = len(ledger.openings(sha256))
        say(f"test set of {names[sha256]}: opening {len(earlier) + 1}, line {opening.number} of {ledger.ledger_path()}")
        record = {"number": len(earlier) + 1, "of": n_openings, "line": opening.number, "models": len(opening.models)}
        opened |= {task.trial: record for task in own}
    return [replace(task, opening=opened[task.trial]) for task in tasks]


def _score(task: Task) -> str:
    """Score one trial and write the result; returns its name."""
    model = JointModel.load(task.checkpoint)
    store = open_store(model.config, repetitions=task.question.repetitions)
    if (there := model.data["fingerprint"]) != (here := store.manifest.fingerprint):
        raise InputError(
            f"{task.checkpoint} was trained on the data {there} of {model.data['name']!r}, and {here} is there now; "
            "put the former data set back, or train again"
        )
    evaluation = evaluate(model, store, task.side, task.question)
    task.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    predictions = task.path.with_suffix(".parquet")
    pq.write_table(pa.table(evaluation.predictions), predictions)
    record = {
        "protocol": evaluation.protocol,
        "run": task.run.name,
        "trial": task.trial.name,
        "checkpoint": str(task.checkpoint.relative_to(task.run)),
        "model_sha256": task.model_sha256,
        "config": model.config.to_dict(),
        "fingerprint": model.config.fingerprint(),
        "dataset": {
            "name": store.manifest.name,
            "fingerprint": store.manifest.fingerprint,
            "grade": store.manifest.grade,
        },
        "side": evaluation.side,
        "selection": f"best pass by {model.config.metric}",
        "opening": task.opening,
        "seed": model.config.seed,
        "code": code_version(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "question": {name: _jsonable(value) for name, value in vars(task.question).items()},
        "rows": evaluation.rows,
        "curves": evaluation.curves,
        "confusion": evaluation.confusion,
        "predictions": predictions.name,
    }
    runs.write_whole(task.path, json.dumps(record, indent=1, default=_jsonable))
    return task.path.stem


def _jsonable(value: Any) -> Any:
    """Return what JSON has no word for in words it has."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic):
        return value.item()
    return value
