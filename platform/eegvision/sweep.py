"""Ray Tune and Optuna over run configurations: propose, train, stop the hopeless early, survive interruption.

A sweep lives in one folder: `sweep.json` (what it is), `history.jsonl` (what happened), `tune/` (Ray's state),
`trials/ID/` (checkpoints), `spool/` (metrics on their way to MLflow) and, once finished, `best.json`, `table.txt` and
`trials.csv`.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import optuna
import ray
from ray import cloudpickle, tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch

from eegvision import cluster, distributed, failures, trials
from eegvision.config import RunConfig, SweepConfig
from eegvision.distributed import Placement
from eegvision.history import read
from eegvision.space import Space
from eegvision.train import TrainingDiverged
from eegvision.trials import Status, TrialRow
from eegvision.vocab import InputError, TryAgainError
from eegvision.watching import Watching

# Ray saves a sweep's state this often; a trial that began since then may be lost with its driver. Nothing else is done
# meanwhile, about 0.4 ms for each trial there is, so long sweeps save less often: no more than a twentieth of the time.
_STATE_EVERY_S, _STATE_S_PER_TRIAL = 2.0, 0.008
_STATES = "experiment_state-*.json"


def run_sweep(base: RunConfig, sweep: SweepConfig, space: Space | None, watching: Watching) -> list[TrialRow]:
    """Run a sweep, or go on with the one in the folder that is watched, and return its trials, best first.

    Without a space the base configuration is the only trial. The caller holds `sole_owner` of the folder and has
    joined a cluster. Interrupted trials go on from their checkpoints; finished ones are not run again.

    Raises:
        InputError: a trial asks for more than the cluster has, or no trial got through a single pass.
        TryAgainError: the storage is full, or Ray ended the sweep before its trials; the next call goes on.
    """
    os.environ |= {
        "TUNE_GLOBAL_CHECKPOINT_S": str(max(_STATE_EVERY_S, _STATE_S_PER_TRIAL * sweep.trials)),
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # metrics go to our spool
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune's returns as if all trials were done
        "RAY_AIR_NEW_OUTPUT": "0",  # its banner; the lines a person reads are ours
    }
    # Tune misses the files of the loggers switched off above, and warns; each trial's outcome is in its own folder.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel("ERROR")
    logging.getLogger("ray.tune.search.optuna.optuna_search").setLevel("ERROR")  # of failed trials that are tried again
    with warnings.catch_warnings(), _watched(watching):
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # multivariate, grouped TPE
        warnings.filterwarnings("ignore", "The reported value is ignored")  # a resumed trial repeats its last pass
        _fit(base, sweep, space, watching)
    began = {path.parent for path in (watching.folder / "trials").glob("*/trial.json")}
    unended = [folder for folder in began if not (folder / "end.json").exists()]
    rows = [
        trials.read_trial(folder, base.with_overrides(json.loads((folder / "trial.json").read_text())["suggested"]))
        for folder in sorted(began.difference(unended), key=trials.number_of)
        if folder.name in watching.known
    ]
    if len(rows) < sweep.trials:
        aside = _put_aside(watching.folder / "tune")  # by it nothing is left to do
        raise TryAgainError(
            f"Ray Tune came back with {len(rows)} of {sweep.trials} trials ended; nothing is published, and the same "
            f"command goes on with the others from their own folders (Tune's state lies in {aside} now)"
        )
    watching.close(rows)
    if not any(row.metrics for row in rows):
        raise InputError(f"no trial got through a single pass; the first one said: {rows[0].message}")
    return trials.ranked(rows)


def _fit(base: RunConfig, sweep: SweepConfig, space: Space | None, watching: Watching) -> None:
    """Let Tune run what is left of the sweep: from its own state, or from the trials' folders where that is damaged."""
    folder, placement = watching.folder, placement_of(sweep)
    rooms = _open_rooms(folder, sweep, placement)  # they close when nobody holds them any more
    trainable = _trainable(base, placement, folder, sweep, len(rooms))

    def new(left_over: list[dict[str, Any]]) -> tune.Tuner:
        """Make a tuner with the settings of now, and store them where Tune looks for them when it resumes."""
        return _new_tuner(trainable, base, sweep, space, folder, concurrency(sweep, placement), left_over)

    _Watcher.resources = _resources(placement, sweep)
    there = sorted(path.name for path in (folder / "tune").glob(_STATES))
    if state := _newest_state(folder):
        try:
            known = {json.loads(trial)["trial_id"] for trial, _ in json.loads(state.read_text())["trial_data"]}
            watching.log.write("state", file=state.name, there=there)
            new([])
            tuner = tune.Tuner.restore(str(folder / "tune"), trainable, resume_unfinished=True, resume_errored=True)
            watching.expect(known)
            watching.say("going on with the interrupted sweep of this name")
            tuner.fit()
            return
        except Exception as error:  # whatever a damaged pickle leads to
            if watching.fault or watching.is_under_way or failures.is_disk_full(error):
                raise
            aside = _put_aside(folder / "tune")
            watching.say(
                f"Ray Tune's state of this sweep cannot be read ({_first_line(error)}); it lies in {aside} now, and "
                "trials go on from their own folders, finished ones as they are"
            )
    watching.log.write("state", file=None, there=[])
    watching.expect(set())
    new(watching.waiting()).fit()


@contextmanager
def _watched(watching: Watching) -> Iterator[None]:
    """Lead Tune's events to the watching object, and raise what it met instead of what Tune makes of it."""
    _Watcher.live = watching
    try:
        yield
    except Exception as error:
        if watching.fault is not None:
            raise watching.fault from error
        if "[Errno 28]" in str(error) or "[Errno 122]" in str(error):  # Tune hands on errors as text
            raise TryAgainError(
                f"no space is left for the sweep's state ({_first_line(error)}); free some space, then the same "
                "command goes on from what is stored"
            ) from error
        raise
    finally:
        _Watcher.live = None


def _newest_state(folder: Path) -> Path | None:
    """Return Tune's newest state and remove the older ones, of which Tune would take the one with the latest date.

    Clocks jump, so dates do not count: a session goes on from one state and writes another, and the log names those
    that were there when it began.
    """
    states = {path.name: path for path in (folder / "tune").glob(_STATES)}
    begun = [event for event in read(folder) if event["do"] == "state"]
    written_since = states.keys() - {name for event in begun for name in event["there"]}
    if not written_since and begun and begun[-1]["file"] in states:
        newest = states[begun[-1]["file"]]
    else:
        newest = states[max(written_since or states)] if states else None
    for path in states.values():
        if path != newest:
            for old in (folder / "tune").glob(f"*{path.stem.removeprefix('experiment_state')}.*"):
                old.unlink()
    return newest


def _put_aside(tune_folder: Path) -> Path:
    number = 1 + len(list(tune_folder.parent.glob("tune.damaged-*")))
    return tune_folder.rename(tune_folder.with_name(f"tune.damaged-{number}"))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[-1][:200]}"


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
    largest = max((node["Resources"].get("memory", 0.0) for node in ray.nodes() if node["Alive"]), default=0.0) / 1e9
    if (memory := sweep.memory_gb_per_trial or 0.0) > largest:
        raise InputError(
            f"a trial asks for {memory:g} GB of memory, but no machine of the cluster has more than {largest:.1f} GB "
            "to give; lower --memory-gb-per-trial"
        )
    return placement


def _open_rooms(folder: Path, sweep: SweepConfig, placement: Placement) -> list[Any]:
    """Start as many processes for trials that take their steps together as these trials fill."""
    if sweep.together == 1:
        return []
    count = -(-concurrency(sweep, placement) // sweep.together)
    return distributed.open_rooms(folder.name, count, sweep.together, placement)


def concurrency(sweep: SweepConfig, placement: Placement) -> int:
    """Return how many trials run at a time: what was asked for, bounded by what the cluster holds."""
    cpus, gpus = cluster.size()
    room = [
        have // (each * placement.workers) for have, each in ((cpus, placement.cpus), (gpus, placement.gpus)) if each
    ]
    fits = max(1, int(min(room, default=1))) * sweep.together
    return min(fits, sweep.max_concurrent or fits)


class _Limiter(ConcurrencyLimiter):
    """Bounds the trials at a time by what is asked for now; Tune would bring back the bound it stored."""

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state({name: value for name, value in state.items() if name != "max_concurrent"})


def _new_tuner(
    trainable: Any,
    base: RunConfig,
    sweep: SweepConfig,
    space: Space | None,
    folder: Path,
    concurrent: int,
    left_over: list[dict[str, Any]],
) -> tune.Tuner:
    """Make a tuner; `left_over` are settings of trials that are there already, and are proposed again first."""
    rule: dict[str, Any] = {"metric": "objective", "mode": base.mode}
    search = scheduler = None
    if space is not None:
        points = [point for point in space.points if not any(point.items() <= known.items() for known in left_over)]
        # Not the same seed: it would draw again what is left over.
        seed = sweep.search_seed + 7919 * len(left_over)
        sampler = optuna.samplers.TPESampler(multivariate=True, group=True, constant_liar=True, seed=seed)
        search = OptunaSearch(space.suggest, sampler=sampler, points_to_evaluate=[*left_over, *points] or None, **rule)
        search = _Limiter(search, max_concurrent=concurrent)
        scheduler = ASHAScheduler(
            time_attr="pass",
            max_t=base.train.max_passes + 1,  # a trial that gets that far ends by itself, and says so
            grace_period=sweep.first_stop(base.train.max_passes),
            reduction_factor=sweep.keep_one_in,
            **rule,
        )
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=search,
            scheduler=scheduler,
            num_samples=sweep.trials,
            # A fresh process costs each trial seconds of imports. One that waits for workers cannot be had back: Tune
            # would wait two seconds for it and then give the next trial up.
            reuse_actors=sweep.workers_per_trial == 1,
            trial_dirname_creator=_trial_id,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder),
            verbose=0,
            stop=_OutOfTime(),
            callbacks=[_Watcher()],
            failure_config=tune.FailureConfig(max_failures=sweep.max_failures),
        ),
    )


def _trial_id(trial: Any) -> str:
    return trial.trial_id


def _resources(placement: Placement, sweep: SweepConfig) -> dict[str, float]:
    """Return what Tune reserves for a trial's own process; workers of its own, or its room, reserve theirs."""
    if placement.workers > 1 or sweep.together > 1:
        return {"CPU": 0.0, "memory": 1e6}
    own = {"CPU": placement.cpus, "GPU": placement.gpus}
    return own | ({"memory": 1e9 * sweep.memory_gb_per_trial} if sweep.memory_gb_per_trial else {})


def _trainable(base: RunConfig, placement: Placement, folder: Path, sweep: SweepConfig, n_rooms: int) -> Any:
    """Return the function Tune runs for each trial.

    One worker trains right in Tune's reused process. Several need a trainer of their own; then this function only
    waits, so it holds no CPU: if it did, two trials on two CPUs would wait for each other's workers for ever. So it
    does where trials meet in a room.
    """
    name = folder.name  # of the rooms

    def trial(suggested: dict[str, Any]) -> None:
        trial_folder = folder / "trials" / tune.get_context().get_trial_id()
        run_trial(base.with_overrides(suggested), trial_folder, placement, room=(name, n_rooms))

    return tune.with_resources(trial, _resources(placement, sweep))


def run_trial(config: RunConfig, folder: Path, placement: Placement, room: tuple[str, int] = ("", 0)) -> None:
    """Train one configuration inside a Tune trial and leave a note in its folder when it can never finish.

    `room` is the name and the number of the processes in which trials meet, where they do.

    A trial that diverges or whose settings do not fit the data would do the same again, so it ends without being
    retried, with the score it had or else the worst one. One that has ended before, as its driver may have been killed
    before it stored that, ends again as it did.
    """
    reported = False

    def report(metrics: dict[str, Any]) -> None:
        nonlocal reported
        reported = True
        tune.report(metrics)

    if not (folder / "end.json").exists():
        status: Status = "finished"
        message = ""
        try:
            if placement.workers > 1:
                distributed.fit_on_workers(config, folder, placement)
                reported = True
            elif room[1]:
                distributed.fit_in_room(config, folder, report, name=room[0], count=room[1])
            else:
                distributed.fit_here(config, folder, report, cpus=placement.cpus)
        except (TrainingDiverged, InputError) as error:
            status, message = "diverged" if isinstance(error, TrainingDiverged) else "refused", str(error)
        trials.write_end(folder, status, message)
    if not reported:  # Tune and Optuna want a value all the same
        made = [done[config.metric] for done in trials.history_of(folder)]
        worst = 0.0 if config.mode == "max" else 1e9
        best = (max if config.mode == "max" else min)(made, default=worst)
        tune.report({"pass": len(made), "objective": best})


class _Watcher(tune.Callback):
    """Passes Tune's events on to the running sweep.

    Tune stores its callbacks with the sweep and brings them back on resume, where a file handle or a thread would
    be lost; so this one holds nothing and finds the live object of this process.
    """

    live: ClassVar[Watching | None] = None
    resources: ClassVar[dict[str, float]] = {}

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if self.live and not self.live.is_under_way:
            self.live.is_under_way = True
            for trial in trials:  # of before an interruption: what they may use is what is asked for now
                trial.max_failures = trial.num_failures + self.live.sweep.max_failures
                if trial.status == "PENDING":
                    trial.update_resources(dict(self.resources))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if self.live and self.live.fault:
            raise self.live.fault
        for name in self.live.stalled() if self.live else []:
            actor = next(trial for trial in trials if trial.trial_id == name).temporary_state.ray_actor
            if actor is not None:
                ray.kill(actor)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._tell("started", trial.trial_id, trial.config)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self._tell("reported", trial.trial_id, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._tell("ended", trial.trial_id)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._tell("lost", trial.trial_id, _reason(trial), is_final=False)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._tell("lost", trial.trial_id, _reason(trial), is_final=True)

    def _tell(self, what: str, *words: Any, **more: Any) -> None:
        if self.live is None:
            return
        try:
            getattr(self.live, what)(*words, **more)
        except Exception as error:
            self.live.fault = self.live.fault or error
            raise


class _OutOfTime(tune.Stopper):
    """Ends a trial after the pass that uses up its time; finds the live object as `_Watcher` does."""

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return _Watcher.live is not None and _Watcher.live.is_over(trial_id, result)

    def stop_all(self) -> bool:
        return False


def _reason(trial: Any) -> str:
    """Return why a trial's attempt ended, from what Tune has kept of it."""
    try:
        with Path(trial.pickled_error_file).open("rb") as file:
            error = cloudpickle.load(file)
    except Exception:  # there is no such file, or the disk was too full for all of it
        with suppress(OSError, TypeError):
            error = RuntimeError(Path(trial.error_file).read_text())
            return failures.reason(error)
        return "error: Ray Tune kept no reason"
    return failures.reason(error)
