"""How much training a search takes until it has the best of a grid: our default, its rivals, and random search.

    python benchmarks/search.py [--seeds 50] [--workers 8 2] [--only NAME ...]            minutes on one core
    python benchmarks/search.py --quick                                                   the default alone, a minute

Searches are replayed on `search_table.json.gz`, real trainings of a whole grid (`search_table.py`), so they cost no
training: workers take trials as in a sweep, each pass of a configuration lasts its tabulated seconds and reports its
tabulated score. What decides is real: Optuna's samplers behind Ray Tune's `OptunaSearch`, set as in
`eegvision.sweep`, the space and its known points through `eegvision.space`, and Ray Tune's schedulers, which are told
of results and asked for decisions in the order of Tune's controller. Ours are only its event loop (`Replay`) and the
snapping of the two floats to the nearest tabulated value. A configuration that is proposed again is trained again.

The budget is the number of passes trained by all workers, until some trial of the search has a score (the best pass so
far, averaged over the tabulated seeds of training) within one standard deviation between seeds of the best of the grid
(`found`), and until that is so for the trial with the best score seen by the search, which a sweep would return
(`returned`). A search that has used up as many passes as the whole grid has never got there. The peer is random search:
full trainings, no known points. Ratios are of medians over seeds, with intervals of 95 % by bootstrap.
"""

from __future__ import annotations

import argparse
import gzip
import heapq
import json
import logging
import math
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    TrialScheduler,
)
from ray.tune.search.optuna import OptunaSearch

from eegvision.config import SweepConfig
from eegvision.space import Space

TABLE = Path(__file__).with_name("search_table.json.gz")
RULE: dict[str, Any] = {"metric": "objective", "mode": "max"}
DEFAULTS = SweepConfig()


class Table:
    """The trained grid."""

    def __init__(self, path: Path) -> None:
        stored = json.loads(gzip.decompress(path.read_bytes()))
        self.space = Space(path=Path("search_table"), source=stored["space"])
        self.snap: dict[str, list[float]] = stored["snap"]
        self.seconds: list[float] = stored["seconds"]
        self.number = {self._key(settings): index for index, settings in enumerate(stored["configurations"])}
        so_far = [
            {int(seed): np.maximum.accumulate(hits) / stored["n_queries"] for seed, hits in seeds.items()}
            for seeds in stored["hits"]
        ]
        self.shown_CP = np.stack([seeds[0] for seeds in so_far])
        """What a search is shown: the best score so far of seed 0."""
        self.score_CP = np.stack([np.mean(list(seeds.values()), axis=0) for seeds in so_far])
        """What counts: the mean of that over the seeds of training."""
        repeated = [[curve[-1] for curve in seeds.values()] for seeds in so_far if len(seeds) > 1]
        self.noise = float(np.mean([np.var(scores, ddof=1) for scores in repeated]) ** 0.5)
        self.n_passes = self.shown_CP.shape[1]

    @staticmethod
    def _key(settings: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(sorted(settings.items()))

    def find(self, suggested: dict[str, Any]) -> int:
        """Return the number of the configuration that is nearest to what was suggested."""
        settings = dict(suggested)
        for name in self.snap.keys() & suggested.keys():
            settings[name] = min(self.snap[name], key=lambda value: abs(math.log(value / suggested[name])))
        return self.number[self._key(settings)]

    def draw(self, trial: Any) -> int:
        """Return the number of a configuration that an Optuna trial suggests."""
        fixed = self.space.suggest(trial)
        return self.find(trial.params | fixed)


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to search."""

    name: str
    sampler: Callable[[int], BaseSampler]
    scheduler: Callable[[int], Any] = lambda _: FIFOScheduler()
    """Made for the number of passes of a full training."""
    has_points: bool = True
    is_limited: bool = True
    """Whether paused trials count among those that may be under way; a sweep proposes no more than it has workers."""
    marks_stopped: bool = False
    """Whether the sampler is told which trials were stopped early; Tune's searcher calls all of them complete."""


@dataclass(eq=False)
class Trial:
    """What schedulers see of a trial of Tune."""

    trial_id: str
    configuration: int
    status: str = TuneTrial.PENDING
    passes: int = 0
    last_result: dict[str, Any] = field(default_factory=dict)
    is_saving: bool = False


@dataclass
class Reached:
    """The budget at which something was first so: passes and seconds; None where it never was."""

    passes: int | None = None
    seconds: float | None = None

    def mark(self, passes: int, seconds: float) -> None:
        if self.passes is None:
            self.passes, self.seconds = passes, seconds


class _Marking(OptunaSearch):
    """Tells Optuna that a trial was stopped before its last pass, where Tune's searcher calls every end complete."""

    def __init__(self, *words: Any, n_passes: int, **more: Any) -> None:
        super().__init__(*words, **more)
        self._n_passes = n_passes

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if result and result["pass"] < self._n_passes:
            self._ot_trials[trial_id].report(result["objective"], result["pass"])
            result = None
        super().on_trial_complete(trial_id, result, error)


class Replay:
    """One search on the table, with the part of Tune's controller that searchers and schedulers see."""

    search_alg = None

    def __init__(self, table: Table, method: Method, *, seed: int, workers: int, target: float) -> None:
        self.table, self.method, self.workers, self.target = table, method, workers, target
        self.scheduler = method.scheduler(table.n_passes)
        kind = (
            (lambda *words, **more: _Marking(*words, n_passes=table.n_passes, **more))
            if method.marks_stopped
            else OptunaSearch
        )
        points = table.space.points if method.has_points else None
        self.search = kind(table.space.suggest, sampler=method.sampler(seed), points_to_evaluate=points, **RULE)
        self.trials: list[Trial] = []
        self.live: list[Trial] = []
        self.due: list[tuple[float, int, Trial]] = []
        self.passes, self.now_s = 0, 0.0
        self.best: Trial | None = None
        self.found, self.returned = Reached(), Reached()
        np.random.seed(seed)  # noqa: NPY002  (ASHA with several brackets draws from it)

    def get_trials(self) -> list[Trial]:
        return self.trials

    def get_live_trials(self) -> list[Trial]:
        return self.live

    def stop_trial(self, trial: Trial) -> None:
        """End a trial, telling both sides what Tune would."""
        if trial.status == TuneTrial.RUNNING:
            self.scheduler.on_trial_complete(self, trial, trial.last_result)
            self.search.on_trial_complete(trial.trial_id, trial.last_result)
        else:
            self.scheduler.on_trial_remove(self, trial)
            self.search.on_trial_complete(trial.trial_id)
        trial.status = TuneTrial.TERMINATED
        self.live.remove(trial)

    def run(self, n_most: int) -> Replay:
        """Search until the best is found and would be returned, or for so many passes."""
        while self.passes < n_most and (self.found.passes is None or self.returned.passes is None):
            self._fill()
            self.now_s, _, trial = heapq.heappop(self.due)
            self._finish_pass(trial)
        return self

    def _fill(self) -> None:
        """Give every free worker a trial."""
        while len(self.due) < self.workers:
            # Without a limit Tune keeps one trial waiting.
            is_room = (
                len(self.live) < self.workers
                if self.method.is_limited
                else not any(trial.status == TuneTrial.PENDING for trial in self.live)
            )
            if is_room:
                self._propose()
            trial = self.scheduler.choose_trial_to_run(self)
            if trial is None:
                return
            trial.status = TuneTrial.RUNNING
            self._train(trial)

    def _propose(self) -> None:
        name = f"{len(self.trials):05}"
        suggested = self.search.suggest(name)
        assert suggested is not None
        trial = Trial(name, self.table.find(suggested))
        self.trials.append(trial)
        self.live.append(trial)
        self.scheduler.on_trial_add(self, trial)

    def _train(self, trial: Trial) -> None:
        heapq.heappush(self.due, (self.now_s + self.table.seconds[trial.configuration], int(trial.trial_id), trial))

    def _finish_pass(self, trial: Trial) -> None:
        """Report a pass, and do what the scheduler says."""
        trial.passes += 1
        self.passes += 1
        shown = float(self.table.shown_CP[trial.configuration, trial.passes - 1])
        result = {"pass": trial.passes, "training_iteration": trial.passes, "objective": shown}
        decision = self.scheduler.on_trial_result(self, trial, result)
        trial.last_result = result
        self._look(trial)
        if decision == TrialScheduler.CONTINUE and trial.passes == self.table.n_passes:
            decision = TrialScheduler.STOP
        if decision == TrialScheduler.STOP:
            self.stop_trial(trial)
            return
        self.search.on_trial_result(trial.trial_id, result)
        if decision == TrialScheduler.PAUSE:
            trial.status = TuneTrial.PAUSED
        elif decision == TrialScheduler.CONTINUE:
            self._train(trial)

    def _look(self, trial: Trial) -> None:
        """Note whether the search is there."""
        if self.best is None or trial.last_result["objective"] > self.best.last_result["objective"]:
            self.best = trial
        for reached, which in ((self.found, trial), (self.returned, self.best)):
            if self.table.score_CP[which.configuration, which.passes - 1] >= self.target:
                reached.mark(self.passes, self.now_s)


def tpe(
    *, multivariate: bool = True, group: bool = True, constant_liar: bool = True, n_startup_trials: int = 10
) -> Callable[[int], BaseSampler]:
    """Return what makes the sampler of a sweep for a seed."""
    return lambda seed: TPESampler(
        multivariate=multivariate,
        group=group,
        constant_liar=constant_liar,
        n_startup_trials=n_startup_trials,
        seed=seed,
    )


def gp(seed: int) -> BaseSampler:
    return GPSampler(seed=seed)


def asha(first: int | None = None, keep_one_in: int = DEFAULTS.keep_one_in, brackets: int = 1) -> Any:
    """Return what makes the scheduler of a sweep."""
    return lambda n_passes: ASHAScheduler(
        time_attr="pass",
        max_t=n_passes + 1,
        grace_period=first or DEFAULTS.first_stop(n_passes),
        reduction_factor=keep_one_in,
        brackets=brackets,
        **RULE,
    )


def hyperband(n_passes: int) -> Any:
    return HyperBandScheduler(time_attr="pass", max_t=n_passes, reduction_factor=DEFAULTS.keep_one_in, **RULE)


def median_stopping(_: int) -> Any:
    """Ray's rule from pass 3 on, whatever the sweep's own first stop is: the median needs no full rung."""
    return MedianStoppingRule(time_attr="pass", grace_period=3, **RULE)


PEER = Method(name="random search, full trainings", sampler=lambda seed: RandomSampler(seed=seed), has_points=False)
DEFAULT = Method(name="default: TPE, ASHA, points", sampler=tpe(), scheduler=asha())
RIVALS = [
    Method(name="default without points", sampler=tpe(), scheduler=asha(), has_points=False),
    Method(name="TPE, full trainings, points", sampler=tpe()),
    Method(name="random, ASHA", sampler=PEER.sampler, scheduler=asha(), has_points=False),
    Method(name="TPE, HyperBand, points", sampler=tpe(), scheduler=hyperband, is_limited=False),
    Method(name="TPE, median stopping from pass 3, points", sampler=tpe(), scheduler=median_stopping),
    Method(name="GP, ASHA, points", sampler=gp, scheduler=asha()),
]
SETTINGS = [
    *(
        Method(name=f"default, min_passes {first}, keep_one_in {keep}", sampler=tpe(), scheduler=asha(first, keep))
        for first, keep in ((1, 3), (2, 3), (3, 3), (5, 3), (1, 2), (3, 2), (1, 4), (3, 4))
    ),
    Method(name="default, 3 brackets", sampler=tpe(), scheduler=asha(1, 3, 3)),
    Method(name="default, one parameter at a time", sampler=tpe(multivariate=False, group=False), scheduler=asha()),
    Method(name="default, not grouped", sampler=tpe(group=False), scheduler=asha()),
    Method(name="default, no constant liar", sampler=tpe(constant_liar=False), scheduler=asha()),
    Method(name="default, 5 random trials first", sampler=tpe(n_startup_trials=5), scheduler=asha()),
    Method(name="default, 20 random trials first", sampler=tpe(n_startup_trials=20), scheduler=asha()),
    Method(name="default, told who was stopped", sampler=tpe(), scheduler=asha(), marks_stopped=True),
]


def interval(draws: np.ndarray) -> str:
    low, high = np.percentile(draws, [2.5, 97.5], method="nearest")
    return f"{low:.2f} to {high:.2f}"


def drawn_medians(values: list[float | None], n_draws: int = 4000) -> np.ndarray:
    """Return the medians of bootstrap samples; what never came counts as infinite."""
    found = np.array([math.inf if value is None else value for value in values])
    return np.median(np.random.default_rng(0).choice(found, (n_draws, len(found))), axis=1)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a method needed, over seeds, with the same number of workers."""

    replays: list[Replay]

    def of(self, what: str, unit: str = "passes") -> list[float | None]:
        return [getattr(getattr(replay, what), unit) for replay in self.replays]


def run(table: Table, method: Method, *, n_seeds: int, workers: int, target: float) -> Outcome:
    """Replay a search with one seed after the other, each up to the passes of the whole grid."""
    n_most = table.score_CP.size
    replays = [Replay(table, method, seed=seed, workers=workers, target=target).run(n_most) for seed in range(n_seeds)]
    return Outcome(replays=replays)


def row(name: str, workers: int, mine: Outcome, peer: Outcome) -> tuple[str, np.ndarray]:
    """Return a line of the table, and draws of the ratio of medians of `found`."""
    found = mine.of("found")
    medians = drawn_medians(found)
    peers = np.random.default_rng(1).permutation(drawn_medians(peer.of("found")))
    ratios = medians / peers
    ninth = np.percentile([math.inf if value is None else value for value in found], 90, method="nearest")
    cells = [
        name,
        f"{workers}",
        f"{median_of(found):.0f} ({np.percentile(medians, 2.5):.0f} to {np.percentile(medians, 97.5):.0f})",
        f"{ninth:.0f}",
        f"{found.count(None)} of {len(found)}",
        f"**{median_of(found) / median_of(peer.of('found')):.2f}** ({interval(ratios)})",
        f"{median_of(mine.of('found', 'seconds')) / median_of(peer.of('found', 'seconds')):.2f}",
        f"{median_of(mine.of('returned')) / median_of(peer.of('returned')):.2f}",
        f"{mine.of('returned').count(None)}",
    ]
    return "| " + " | ".join(cells) + " |", ratios


def median_of(values: list[float | None]) -> float:
    return statistics.median(math.inf if value is None else value for value in values)


HEAD = (
    "| search | workers | passes until found, median (95 %) | 90 % within | never | ratio to random (95 %) | "
    "ratio of wall time | ratio, returned | never returned |\n|---|---|---|---|---|---|---|---|---|"
)


def describe(table: Table, target: float) -> str:
    """Say what a random trial's chances are."""
    final = table.score_CP[:, -1]
    good = np.flatnonzero(final >= target)
    n_draws = 20_000
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    hits = 0
    for _ in range(n_draws):
        hits += table.draw(study.ask()) in set(good.tolist())
    return (
        f"Grid: {len(final)} configurations x {table.n_passes} passes. Best {final.max():.4f}, median "
        f"{np.median(final):.4f}, sd between seeds {table.noise:.4f}. Target: {target:.4f}, which {len(good)} "
        f"configurations reach ({100 * len(good) / len(final):.1f} %); a random trial is one of them with probability "
        f"{hits / n_draws:.4f}. Known points score "
        + ", ".join(f"{final[table.draw(optuna.trial.FixedTrial(point))]:.4f}" for point in table.space.points)
        + "."
    )


def main() -> None:
    """Replay and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--peer-seeds", type=int, default=200)
    parser.add_argument("--workers", type=int, nargs="+", default=[8, 2])
    parser.add_argument("--only", nargs="+", default=[], help="parts of names of searches")
    parser.add_argument("--tolerance", type=float, default=1.0, help="in sd between seeds of training")
    parser.add_argument("--quick", action="store_true", help="the default and random search, 20 seeds, 8 workers")
    options = parser.parse_args()
    quiet()
    methods = [DEFAULT, *RIVALS, *SETTINGS]
    if options.quick:
        options.seeds, options.peer_seeds, options.workers, methods = 20, 50, [8], [DEFAULT]
    if options.only:
        methods = [method for method in methods if any(part in method.name for part in options.only)]
    table = Table(TABLE)
    target = float(table.score_CP[:, -1].max()) - options.tolerance * table.noise
    print(describe(table, target) + "\n\n" + HEAD, flush=True)
    results = []
    for workers in options.workers:
        peer = run(table, PEER, n_seeds=options.peer_seeds, workers=workers, target=target)
        print(row(PEER.name, workers, peer, peer)[0], flush=True)
        for method in methods:
            began = time.perf_counter()
            mine = run(table, method, n_seeds=options.seeds, workers=workers, target=target)
            line, ratios = row(method.name, workers, mine, peer)
            print(line, flush=True)
            print(f"{method.name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
            if method is DEFAULT:
                low, high = np.percentile(ratios, [2.5, 97.5], method="nearest")
                middle = median_of(mine.of("found")) / median_of(peer.of("found"))
                results.append(
                    {
                        "what": f"passes until the best of a grid is found, default search, {workers} workers",
                        "unit": "x",
                        "min": round(float(low), 3),
                        "median": round(middle, 3),
                        "max": round(float(high), 3),
                        "target": "<= 0.25",
                        "peer": "random search with full trainings (min and max: 95 % interval)",
                    }
                )
    for result in results:
        print("RESULT " + json.dumps(result))


def quiet() -> None:
    """Leave out what the libraries say of each trial."""
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("ray").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    warnings.filterwarnings("ignore", "The reported value is ignored")


if __name__ == "__main__":
    main()
