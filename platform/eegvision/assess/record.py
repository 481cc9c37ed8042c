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

from eegvision import cluster, pseudonyms, runs
from eegvision.assess.embedding import Embedded, embed
from eegvision.assess.probing import probe
from eegvision.assess.retrieving import zero_shot_scores
from eegvision.assess.scores import Evaluation, Question
from eegvision.assess.selected import Selected, open_test
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
class Task(Selected):
    """One model to score."""

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
    tasks = [Task.of(run, folder, side=side, question=question) for folder in trial_folders]
    if side == "test":
        opened = open_test(tasks, run, purpose=purpose, again=again, say=say)
        tasks = [replace(task, opening=opened[task.trial]) for task in tasks]
    todo = [task for task in tasks if task.stored() is None]
    if cluster.is_connected() and len(todo) > 1:
        gpus = float(cluster.size()[1] > 0)
        for number, name in enumerate(spread(_score, todo, gpus=gpus), start=1):
            say(f"scored {number} of {len(todo)}: {name}")
    else:
        for task in todo:
            _score(task)
    return [json.loads(task.path.read_text()) for task in tasks]


def _score(task: Task) -> str:
    """Score one trial and write the result, with subjects by their pseudonyms; returns its name."""
    model = task.load()
    store = task.store_of(model, repetitions=task.question.repetitions)
    evaluation = _without_names(evaluate(model, store, task.side, task.question))
    task.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    predictions = task.path.with_suffix(".parquet")
    pq.write_table(pa.table(evaluation.predictions), predictions)
    record = {
        "protocol": evaluation.protocol,
        "run": task.run.name,
        "trial": task.trial.name,
        "checkpoint": str(task.checkpoint.relative_to(task.run)),
        "model_sha256": task.model_sha256,
        "config": pseudonyms.public(model.config.to_dict()),
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


def _without_names(evaluation: Evaluation) -> Evaluation:
    """Return an evaluation as it may leave the run's folder: subjects by pseudonyms, and out of segments' ids."""
    rows = [row | {"held_out": row["held_out"] and pseudonyms.pseudonym(row["held_out"])} for row in evaluation.rows]
    curves = [row | {"subject": pseudonyms.pseudonym(row["subject"])} for row in evaluation.curves]
    predictions = dict(evaluation.predictions)
    subjects = predictions["subject"]
    predictions["query_id"] = list(map(pseudonyms.segment, predictions["query_id"], subjects))
    predictions["subject"] = list(map(pseudonyms.pseudonym, subjects))
    return replace(evaluation, rows=rows, curves=curves, predictions=predictions)


def _jsonable(value: Any) -> Any:
    """Return what JSON has no word for in words it has."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic):
        return value.item()
    return value
