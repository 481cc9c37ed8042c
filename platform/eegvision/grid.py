"""A fixed list of trainings, each with the same budget as the others and none stopped early: tables, audits.

Each lies in a folder of its own, as the trials of a sweep do; what is finished is not run again, what was interrupted
goes on, and one that fails, or whose process is lost again and again, does not stop the others.
"""

from __future__ import annotations

import json
import logging
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from eegvision import cluster, distributed, features, pseudonyms, runs, stream, trials
from eegvision.config import RunConfig
from eegvision.failures import kind_of
from eegvision.fanout import spread
from eegvision.resume import Superseded
from eegvision.tracking import Tracker
from eegvision.train import TrainingDiverged
from eegvision.trials import TrialRow
from eegvision.vocab import InputError, RunInUseError, TryAgainError

Say = Callable[[str], None]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training of a grid; `key` is the name of its folder."""

    key: str
    config: RunConfig


def fit_all(
    cells: Sequence[Cell],
    folder: Path,
    *,
    say: Say,
    cpus: float = 1.0,
    gpus: float | None = None,
    tracker: Tracker | None = None,
) -> dict[str, TrialRow]:
    """Train every configuration on the cluster this process is connected to and return the outcomes by key.

    Args:
        cells: what to train; keys differ.
        folder: of the run; each cell lies in `folder/trials/KEY`. The caller holds `runs.sole_owner` of it.
        say: prints a line whenever a training ends.
        cpus, gpus: what each training holds; by default one GPU where the cluster has any. Fractions are allowed.
        tracker: where to log, under the run `folder.name`, which the caller has started.
    Raises:
        RunInUseError: a cell's folder holds another configuration or data set.
        InputError: a training asks for more than the cluster has, or its settings do not fit the data.
        TryAgainError: the storage is full.
    """
    assert len({cell.key for cell in cells}) == len(cells), "keys repeat"
    has_cpus, has_gpus = cluster.size()
    gpus = float(has_gpus > 0) if gpus is None else gpus
    for what, asked, has in (("CPU", cpus, has_cpus), ("GPU", gpus, has_gpus)):
        if asked > has:
            raise InputError(f"a training asks for {asked:g} {what}s, but the cluster has {has:g}; lower it")
    numbers = {cell.key: number for number, cell in enumerate(cells, start=1)}
    todo = []
    for cell in cells:
        own = folder / "trials" / cell.key
        _claim(own, cell, numbers[cell.key])
        if not (own / "end.json").exists() or trials.end_of(own)["status"] != "finished":
            (own / "end.json").unlink(missing_ok=True)  # what failed is tried again, from its last checkpoint
            todo.append(cell)
    if todo:
        features.warm([cell.config for cell in todo], say=say)
        _load_data(todo)
    began, n_done = time.monotonic(), len(cells) - len(todo)
    if n_done and todo:
        say(f"{n_done} of {len(cells)} trainings are there already")
    lost = partial(_lost, folder=folder)
    for key in spread(partial(_fit, folder=folder, cpus=cpus), todo, cpus=cpus, gpus=gpus, lost=lost):
        n_done += 1
        row = _outcome(folder, next(cell for cell in cells if cell.key == key))
        _track(row, folder, tracker)
        say(_line(row, n_done, len(cells), began, len(todo)))
    return {cell.key: _outcome(folder, cell) for cell in cells}


def _claim(own: Path, cell: Cell, number: int) -> None:
    """Note in a cell's folder what it is, or refuse a folder that holds something else."""
    path, fingerprint = own / "trial.json", cell.config.fingerprint()
    if path.exists() and (own / "last").exists():  # without a pass there is nothing to mix up
        if (found := json.loads(path.read_text()))["fingerprint"] != fingerprint:
            raise RunInUseError(
                f"{own} holds the training {found['fingerprint']}, and {fingerprint} is asked for now; the settings "
                "of this run have changed since: repeat the first ones, or give the run another --name"
            )
        return
    own.mkdir(parents=True, exist_ok=True, mode=0o700)
    runs.write_whole(path, json.dumps({"number": number, "suggested": {}, "fingerprint": fingerprint}))


def _load_data(cells: Sequence[Cell]) -> None:
    """Read each view of the data once in the driver, whose copy all trainings share; refuse what does not fit."""
    seen: set[str] = set()
    for cell in cells:
        data, size_px = cell.config.data, distributed.picture_px(cell.config)
        if (what := repr((data, size_px))) not in seen:
            seen.add(what)
            stream.load_store(data, size_px)


def _fit(cell: Cell, *, folder: Path, cpus: float) -> str:
    """Train one cell in this process, and leave a note of how it ended."""
    own = folder / "trials" / cell.key
    try:
        distributed.fit_here(cell.config, own, lambda _: None, cpus=cpus)
    except TrainingDiverged as error:
        trials.write_end(own, "diverged", str(error))
    except InputError as error:
        trials.write_end(own, "refused", str(error))
    except Superseded:  # another process trains this one by now, and says how it ends
        raise
    except Exception as error:  # whatever a device or a library leads to; the other trainings go on
        if kind_of(error) == "storage":  # which none of them could
            raise TryAgainError(f"the training {cell.key} could not store its work: {error}") from error
        (own / "error.txt").write_text(traceback.format_exc())
        trials.write_end(own, "failed", f"{type(error).__name__}: {error} (see error.txt)")
    else:
        trials.write_end(own, "finished")
    return cell.key


def _lost(cell: Cell, reason: str, *, folder: Path) -> str:
    """Note that a cell's process was lost every time it was started."""
    trials.write_end(folder / "trials" / cell.key, "failed", reason)
    return cell.key


def _outcome(folder: Path, cell: Cell) -> TrialRow:
    return trials.read_trial(folder / "trials" / cell.key, cell.config)


def _track(row: TrialRow, folder: Path, tracker: Tracker | None) -> None:
    if tracker is None:
        return
    key = f"{folder.name}/{row.trial_id}"
    tags = {
        "eegvision.kind": "train",
        "eegvision.config": row.config.fingerprint(),
        "eegvision.status": row.status,
        "eegvision.trial": str(row.number),
    }
    tracker.start(key, name=row.trial_id, parent=folder.name, params=row.config.flat(), tags=tags)
    for number, metrics in enumerate(row.history, start=1):
        tracker.metrics(key, metrics, step=number)
    tracker.text(key, json.dumps(pseudonyms.public(row.config.to_dict()), indent=2), "config.json")
    tracker.finish(key, "FAILED" if row.status == "failed" else "FINISHED")


def _line(row: TrialRow, n_done: int, n_all: int, began: float, n_todo: int) -> str:
    elapsed = time.monotonic() - began
    n_now = n_done - (n_all - n_todo)
    said = f"[{elapsed // 60:02.0f}:{elapsed % 60:02.0f}] {n_done}/{n_all} trainings done | {row.trial_id}: "
    metric = row.config.metric
    said += f"{metric} {row.metrics[metric]:.3f} (pass {row.best_pass})" if row.metrics else f"{row.status}"
    if row.status != "finished":
        said += f" {row.message}"
    if n_done < n_all:
        left_s = elapsed / n_now * (n_all - n_done)
        said += f" | about {f'{left_s:.0f} s' if left_s < 90 else f'{left_s / 60:.0f} min'} left"
    return said


def failures(rows: Mapping[str, TrialRow]) -> list[str]:
    """Say in a line each which trainings did not finish."""
    return [f"{key} {row.status}: {row.message}" for key, row in rows.items() if row.status != "finished"]
