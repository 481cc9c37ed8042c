"""Ray Tune and Optuna over run configurations: propose, train, stop the hopeless early, survive interruption.

A sweep lives in one folder: `sweep.json` (what it is), `tune/` (Ray's state), `trials/ID/` (checkpoints),
`spool/` (metrics on their way to MLflow) and, once finished, `result.json` and `trials.csv`.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import optuna
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from eegvision import cluster, distributed, runs, trials
from eegvision.config import RunConfig, SweepConfig
from eegvision.distributed import Placement
from eegvision.space import Space
from eegvision.tracking import Tracker
from eegvision.train import TrainingDiverged
from eegvision.trials import Status, TrialRow
from eegvision.vocab import InputError

Say = Callable[[str], None]

# Ray saves a sweep's state this often; at the default a killed driver would repeat more than one pass of each trial.
_STATE_EVERY_S = "2"
_SAY_EVERY_S = 20.0


def run_sweep(base: RunConfig, sweep: SweepConfig, space: Space | None, watching: Watching) -> list[TrialRow]:
    """Run a sweep, or go on with the one in the folder that is watched, and return its trials, best first.

    Without a space the base configuration is the only trial. The caller holds `sole_owner` of the folder and has
    joined a cluster. Interrupted trials go on from their checkpoints; finished ones are not run again.

    Raises:
        InputError: a trial asks for more than the cluster has, or no trial got through a single pass.
    """
    folder, placement = watching.folder, placement_of(sweep)
    trainable = _trainable(base, placement, folder)
    _Watcher.live = watching
    os.environ |= {
        "TUNE_GLOBAL_CHECKPOINT_S": _STATE_EVERY_S,
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # metrics go to our spool
        "RAY_AIR_NEW_OUTPUT": "0",  # its banner; the lines a person reads are ours
    }
    # Tune misses the files of the loggers switched off above, and warns; each trial's outcome is in its own folder.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel("ERROR")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # multivariate, grouped TPE
        warnings.filterwarnings("ignore", "The reported value is ignored")  # a resumed trial repeats its last pass
        if tune.Tuner.can_restore(str(folder / "tune")):
            watching.say("going on with the interrupted sweep of this name")
            tuner = tune.Tuner.restore(str(folder / "tune"), trainable=trainable, resume_unfinished=True)
        else:
            tuner = _new_tuner(trainable, base, sweep, space, folder, concurrency(sweep, placement))
        results = tuner.fit()
    rows = [_row(base, folder / "trials" / Path(result.path).name, result) for result in results]
    watching.close(rows)
    if not any(row.metrics for row in rows):
        raise InputError(f"no trial got through a single pass; the first one said: {rows[0].message}")
    return trials.ranked(rows)


def _row(base: RunConfig, folder: Path, result: tune.Result) -> TrialRow:
    config = base.with_overrides(result.config or {})
    if result.error is None:
        return trials.read_trial(folder, config)
    return trials.read_trial(folder, config, status="failed", message=str(result.error).strip().splitlines()[-1])


def placement_of(sweep: SweepConfig) -> Placement:
    """Settle what each worker gets.

    Raises:
        InputError: one trial asks for more than the cluster has; Ray would wait for it without a word.
    """
    cpus, gpus = cluster.size()
    gpus_each = sweep.gpus_per_trial if sweep.gpus_per_trial is not None else float(gpus > 0)
    placement = Placement(workers=sweep.workers_per_trial, cpus=sweep.cpus_per_trial, gpus=gpus_each)
    for what, each, have in (("CPU", placement.cpus, cpus), ("GPU", placement.gpus, gpus)):
        if each * placement.workers > have:
            raise InputError(
                f"a trial asks for {each * placement.workers:g} {what}s ({placement.workers} workers with {each:g}), "
                f"but the cluster has {have:g}; lower --{what.lower()}s-per-trial or --workers-per-trial"
            )
    return placement


def concurrency(sweep: SweepConfig, placement: Placement) -> int:
    """Return how many trials run at a time: what was asked for, bounded by what the cluster holds."""
    cpus, gpus = cluster.size()
    room = [
        have // (each * placement.workers) for have, each in ((cpus, placement.cpus), (gpus, placement.gpus)) if each
    ]
    fits = max(1, int(min(room, default=1)))
    return min(fits, sweep.max_concurrent or fits)


def _new_tuner(
    trainable: Any, base: RunConfig, sweep: SweepConfig, space: Space | None, folder: Path, concurrent: int
) -> tune.Tuner:
    rule: dict[str, Any] = {"metric": "objective", "mode": base.mode}
    search = scheduler = None
    if space is not None:
        sampler = optuna.samplers.TPESampler(multivariate=True, group=True, constant_liar=True, seed=sweep.search_seed)
        search = OptunaSearch(space.suggest, sampler=sampler, points_to_evaluate=space.points or None, **rule)
        scheduler = ASHAScheduler(
            time_attr="pass",
            max_t=base.train.max_passes + 1,  # a trial that gets that far ends by itself, and says so
            grace_period=min(sweep.min_passes, base.train.max_passes),
            reduction_factor=sweep.keep_one_in,
            **rule,
        )
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=search,
            scheduler=scheduler,
            num_samples=sweep.trials,
            max_concurrent_trials=concurrent,
            reuse_actors=True,  # a fresh process costs each trial seconds of imports
            trial_dirname_creator=_trial_id,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder),
            verbose=0,
            callbacks=[_Watcher()],
            failure_config=tune.FailureConfig(max_failures=sweep.max_failures),
        ),
    )


def _trial_id(trial: Any) -> str:
    return trial.trial_id


def _trainable(base: RunConfig, placement: Placement, folder: Path) -> Any:
    """Return the function Tune runs for each trial.

    One worker trains right in Tune's reused process. Several need a trainer of their own; then this function only
    waits, so it holds no CPU: if it did, two trials on two CPUs would wait for each other's workers for ever.
    """

    def trial(suggested: dict[str, Any]) -> None:
        trial_folder = folder / "trials" / tune.get_context().get_trial_id()
        run_trial(base.with_overrides(suggested), trial_folder, placement)

    nested = placement.workers > 1
    own = {"CPU": 0.0, "memory": 1e6} if nested else {"CPU": placement.cpus, "GPU": placement.gpus}
    return tune.with_resources(trial, own)


def run_trial(config: RunConfig, folder: Path, placement: Placement) -> None:
    """Train one configuration inside a Tune trial and leave a note in its folder when it can never finish.

    A trial that diverges or whose settings do not fit the data would do the same again, so it ends without being
    retried, with the score it had or else the worst one.
    """
    reported = False

    def report(metrics: dict[str, Any]) -> None:
        nonlocal reported
        reported = True
        tune.report(metrics)

    status: Status = "finished"
    message, result = "", None
    try:
        if placement.workers > 1:
            distributed.fit_on_workers(config, folder, placement)
            reported = True
        else:
            result = distributed.fit_here(config, folder, report, cpus=placement.cpus)
    except (TrainingDiverged, InputError) as error:
        status, message = "diverged" if isinstance(error, TrainingDiverged) else "refused", str(error)
    trials.write_end(folder, status, message)
    if not reported:  # it had finished before, or never got through a pass; Tune and Optuna want a value all the same
        worst = 0.0 if config.mode == "max" else 1e9
        passes = result.passes if result else 0
        best = result.best_metrics[config.metric] if result else worst
        tune.report({"pass": passes, "objective": best})


class _Watcher(tune.Callback):
    """Passes Tune's events on to the running sweep.

    Tune stores its callbacks with the sweep and brings them back on resume, where a file handle or a thread would
    be lost; so this one holds nothing and finds the live object of this process.
    """

    live: ClassVar[Watching | None] = None

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if self.live:
            self.live.started(trial.trial_id, trial.config)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if self.live:
            self.live.reported(trial.trial_id, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if self.live:
            self.live.ended(trial.trial_id, failed=False)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if self.live:
            self.live.ended(trial.trial_id, failed=True)


class Watching:
    """Numbers and tracks the trials of a running sweep and says how it goes.

    `chance` is the level of guessing for the metric, where it has one; it stands beside every score.
    """

    def __init__(
        self, base: RunConfig, sweep: SweepConfig, folder: Path, tracker: Tracker, chance: float | None, say: Say
    ) -> None:
        self.folder, self.say = folder, say
        self._base, self._sweep = base, sweep
        self._tracker, self._chance = tracker, chance
        began, over = (folder / "trials").glob("*/trial.json"), (folder / "trials").glob("*/end.json")
        self._numbers = {path.parent.name: trials.number_of(path.parent) for path in began}
        self._running: set[str] = set()
        self._ended = {path.parent.name: trials.end_of(path.parent) for path in over}
        self._best_file = folder / "best_so_far.json"
        self._best = json.loads(self._best_file.read_text()) if self._best_file.exists() else None
        self._began = self._last_said = time.monotonic()
        self._ended_before = len(self._ended)

    def key(self, trial_id: str) -> str:
        return f"{self.folder.name}/{trial_id}"

    def started(self, trial_id: str, suggested: dict[str, Any]) -> None:
        number = self._numbers.setdefault(trial_id, len(self._numbers) + 1)
        own = self.folder / "trials" / trial_id
        own.mkdir(parents=True, exist_ok=True, mode=0o700)
        runs.write_whole(own / "trial.json", json.dumps({"number": number, "suggested": suggested}))
        config = self._base.with_overrides(suggested)
        self._running.add(trial_id)
        self._tracker.start(
            self.key(trial_id),
            name=f"{number:03d} {config.eeg.encoder} {config.image.encoder} {config.loss.name} D{config.eeg.embed_dim}",
            parent=self.folder.name,
            params=config.flat(),
            tags={"eegvision.kind": "train", "eegvision.config": config.fingerprint(), "eegvision.trial": str(number)},
        )

    def reported(self, trial_id: str, result: dict[str, Any]) -> None:
        metrics = {name: value for name, value in result.items() if "/" in name and isinstance(value, int | float)}
        self._tracker.metrics(self.key(trial_id), metrics, step=int(result["pass"]))
        value = float(result["objective"])
        sign = 1 if self._base.mode == "max" else -1
        if metrics and (self._best is None or sign * value > sign * self._best["value"]):
            self._best = {"value": value, "trial": self._numbers[trial_id], "pass": int(result["pass"])}
            runs.write_whole(self._best_file, json.dumps(self._best))
        if time.monotonic() - self._last_said > _SAY_EVERY_S:
            self.say(self.line())

    def ended(self, trial_id: str, *, failed: bool) -> None:
        self._running.discard(trial_id)
        own = self.folder / "trials" / trial_id
        if not (own / "end.json").exists():  # it did not get to say so itself
            trials.write_end(own, "failed" if failed else "stopped early")
        self._ended[trial_id] = trials.end_of(own)
        self._tracker.finish(self.key(trial_id), "FAILED" if failed else "FINISHED")
        self.say(self.line())

    def line(self) -> str:
        """Say in one line how many trials are done, what is best so far and how long it may take."""
        self._last_said = time.monotonic()
        elapsed = self._last_said - self._began
        done, total = len(self._ended), self._sweep.trials
        text = f"[{elapsed // 60:02.0f}:{elapsed % 60:02.0f}] {done}/{total} trials done"
        others = Counter(end["status"] for end in self._ended.values() if end["status"] != "finished")
        if others:
            text += f" ({', '.join(f'{count} {status}' for status, count in sorted(others.items()))})"
        text += f", {len(self._running)} running"
        if self._best:
            chance = f"; chance {self._chance:.3f}" if self._chance else ""
            text += f" | best {self._base.metric} {self._best['value']:.3f}"
            text += f" (trial {self._best['trial']}, pass {self._best['pass']}{chance})"
        if (ended_now := done - self._ended_before) and done < total:
            text += f" | about {_duration(elapsed / ended_now * (total - done))} left"
        return text

    def close(self, rows: list[TrialRow]) -> None:
        """Bring what is tracked in line with the outcome.

        An end may have been missed. And a trial that began less than two seconds before its driver was killed is in
        our records but not in Ray's; another one has taken its place, so it goes. The kill may even have come before
        the tracker heard of it.
        """
        for row in rows:
            self._tracker.tag(self.key(row.trial_id), {"eegvision.status": row.status})
            self._tracker.finish(self.key(row.trial_id), "FAILED" if row.status == "failed" else "FINISHED")
        for lost in self._numbers.keys() - {row.trial_id for row in rows}:
            if self._tracker.knows(self.key(lost)):
                self._tracker.tag(self.key(lost), {"eegvision.status": "lost with its driver"})
                self._tracker.finish(self.key(lost), "KILLED")
            shutil.rmtree(self.folder / "trials" / lost)
        _Watcher.live = None


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
