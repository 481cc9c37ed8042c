"""What a sweep costs per trial beside the training: 1,000 trials of the real sweep whose training does nothing.

    python benchmarks/overhead.py [--trials 1000] [--passes 2] [--concurrent 2]            about 50 minutes on 2 cores
    python benchmarks/overhead.py --quick                                          40 trials, about three minutes

Ours is the whole way of `jobs/sweep.py` (`study.run_study`: Tune, Optuna, log, spool, MLflow in a SQLite file, tables
and figures) over the demo space and data. In the trials' processes two things are put in the place of training: a pass
takes no step, and validation gets random embeddings instead of encoding anything. All else is real: the data set is
had from shared memory, the model built, checkpoints written.

    overhead of a trial    time its process spent outside `train.fit` since the fit before it, and within the fit
                           waiting for reports to be taken; the first trial of each process is left out
    lag                    how long an event waits in the spool until MLflow has it

Peers, at the same concurrency and with as many reports per trial, but without log, tracking and checkpoints:

    tune-random, tune-tpe  plain Ray Tune with its own settings, a function that does nothing, reused processes; the
                           searcher is Optuna at random, or TPE with the settings of ours
    tune-fresh             the same with a new process for each trial, which imports torch: what Tune does by itself

`ours-random` is ours with Optuna at random: what TPE costs, and how that grows, is the difference. The limit is 0.6 s.

With `--real` trials really train, for one pass; then the same configurations are trained again by bare processes, one
per core, and the means compared. Pairs alternate.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from _results import tell

ROOT = Path(__file__).resolve().parent.parent
QUICK = {"trials": 40, "fresh": 4, "real": 6, "pairs": 1, "sides": ["ours-tpe", "tune-tpe", "tune-fresh"]}
SIDES = ("ours-tpe", "ours-random", "tune-tpe", "tune-random", "tune-fresh")
SWEEP = "overhead"
SPACE = ROOT / "search_spaces" / "demo.py"
TARGET = "<= 0.6"

# What the driver is doing, by the first of these that lies in its stack: a part of a file's path, and a function.
DOING = (
    ("optuna/", "", "Optuna (suggest, tell)"),
    ("experiment_state.py", "sync_up_experiment_state", "Tune saving its state"),
    ("eegvision/history.py", "", "our log, flushed to disk"),
    ("eegvision/tracking.py", "", "our spool"),
    ("eegvision/watching.py", "", "what else we do per trial"),
    ("ray/_private/worker.py", "wait", "waiting for trials"),
    ("tune_controller.py", "", "Tune, all else"),
)
# The same for the time after the last trial.
ENDING = (
    ("eegvision/trials.py", "read_trial", "reading what trials left"),
    ("eegvision/watching.py", "close", "closing the log"),
    ("evaluate/nulls.py", "", "p-values"),
    ("report/figures", "", "figures"),
    ("report/tables.py", "", "tables"),
    ("eegvision/study.py", "_publish", "publishing, all else"),
    ("eegvision/tracking.py", "close", "waiting for MLflow"),
    ("eegvision/history.py", "check", "checking the log"),
    ("tune_controller.py", "", "Tune ending"),
)


def environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_", "EEGVISION_"))}
    own = {"EEGVISION_HOME": str(home), "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
    return kept | own | {"RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true"}


# --- in the processes of trials ---


def note_fit(folder: Path, trial: str, began: float, waited: float) -> None:
    """Leave in the folder when a fit began and ended by the clock of this machine, and how long its reports waited."""
    noted = {"pid": os.getpid(), "began": began, "ended": time.monotonic(), "waited": waited}
    (folder / f"{trial}.json").write_text(json.dumps(noted))


def watch_fits(noted: Path, *, is_idle: bool) -> None:
    """Have this process note its fits; idle ones take no steps and encode nothing."""
    import torch

    from eegvision import distributed, train
    from eegvision.stream import Batches

    trained: Callable[..., Any] = train.fit

    def fit(*arguments: Any, report: Callable[[Any], None], folder: Path, **others: Any) -> Any:
        waited = 0.0

        def told(done: Any) -> None:
            nonlocal waited
            began = time.monotonic()
            try:
                report(done)
            finally:
                waited += time.monotonic() - began

        began = time.monotonic()
        try:
            return trained(*arguments, report=told, folder=folder, **others)
        finally:
            note_fit(noted, folder.name, began, waited)

    def no_steps(_config: Any, state: Any, *_: Any) -> None:
        state.tally.add(1.0, 1.0, is_bad=False)
        state.tally.seconds = 1e-3

    def no_segments(config: Any, _model: Any, val: Batches, *_: Any) -> tuple[Any, Any, None]:
        rows = val.store.split.rows["val"]
        return rows, torch.randn(len(rows), config.eeg.embed_dim), None

    def no_images(config: Any, _model: Any, val: Batches, *_: Any) -> tuple[Any, Any]:
        images = np.unique(val.store.image_N[val.store.split.rows["val"]])
        return images, torch.randn(len(images), config.image.embed_dim)

    distributed.train.fit = fit
    if is_idle:
        loop: Any = train
        loop._take_steps, loop._encode_segments, loop._encode_images = no_steps, no_segments, no_images


def make_hook(noted: Path, *, is_idle: bool) -> Callable[[], None]:
    """Return what Ray is to call in each process it starts."""

    def hook() -> None:
        watch_fits(noted, is_idle=is_idle)

    return hook


# --- in the driver ---


class Probe(threading.Thread):
    """Looks at this process: every 20 ms at what its threads do, every second at memory, processor and spool."""

    def __init__(self, spool: Path) -> None:
        super().__init__(daemon=True)
        self.spool = spool
        self.rows: list[list[float]] = []  # time, resident MiB, the main thread's processor s, bytes spooled, shipped
        self.seen: list[tuple[float, str]] = []
        self.saves: list[tuple[float, float]] = []  # when Tune saved its state, and for how long
        self.ends_at = float("inf")
        self.ending = threading.Event()

    def run(self) -> None:
        import psutil

        process, main = psutil.Process(), threading.main_thread().ident
        due = 0.0
        while not self.ending.wait(0.02):
            now = time.monotonic()
            frame = sys._current_frames().get(main or 0)
            if frame is not None:
                self.seen.append((now, doing(frame, DOING if now < self.ends_at else ENDING)))
            if now >= due:
                due = now + 1.0
                (own,) = (thread for thread in process.threads() if thread.id == process.pid)
                used = own.user_time + own.system_time
                self.rows.append([now, process.memory_info().rss / 2**20, used, *self._shipped()])

    def _shipped(self) -> tuple[int, int]:
        try:
            spooled = (self.spool / "events.jsonl").stat().st_size
            return spooled, max(json.loads((self.spool / "shipped.json").read_text()).values(), default=0)
        except (OSError, ValueError):
            return 0, 0

    def watch_tune(self) -> None:
        """Time how long Tune takes to save its state, and note when it has run the last trial."""
        from ray.tune.execution.tune_controller import TuneController

        save, cleanup = TuneController.save_to_dir, TuneController.cleanup

        def timed(controller: TuneController) -> None:
            began = time.monotonic()
            save(controller)
            self.saves.append((began, time.monotonic() - began))

        def ended(controller: TuneController) -> None:
            self.ends_at = time.monotonic()
            cleanup(controller)

        controller: Any = TuneController
        controller.save_to_dir, controller.cleanup = timed, ended


def doing(frame: FrameType, kinds: Sequence[tuple[str, str, str]]) -> str:
    """Return which of the kinds a stack belongs to: the first in their order of which it has a frame."""
    stack = []
    at: FrameType | None = frame
    while at is not None:
        stack.append((at.f_code.co_filename, at.f_code.co_name))
        at = at.f_back
    for path, function, kind in kinds:
        if any(path in file and function in ("", name) for file, name in stack):
            return kind
    return "all else"


def run_side(side: str, options: argparse.Namespace, home: Path) -> None:
    """Run a side in this process and leave what was seen in `home/probe.json`."""
    import ray

    noted = home / "fits"
    noted.mkdir()
    probe = Probe(home / "runs" / SWEEP / "spool")
    hook = {"worker_process_setup_hook": make_hook(noted, is_idle=side != "ours-real")} if "ours" in side else {}
    ray.init(
        address="local", num_cpus=options.concurrent, include_dashboard=False, log_to_driver=False,
        logging_level=logging.ERROR, runtime_env=hook or None,
    )  # fmt: skip
    probe.watch_tune()
    probe.start()
    began = time.monotonic()
    said = run_ours(side, options) if "ours" in side else run_tune(side, options, noted)
    ended = time.monotonic()
    probe.ending.set()
    probe.join()
    ray.shutdown()
    tune_folder = home / ("runs/" + SWEEP if "ours" in side else "") / "tune"
    sizes = {path.name.partition("-20")[0]: path.stat().st_size / 2**20 for path in tune_folder.glob("*state-20*.*")}
    found = {"began": began, "ends_at": probe.ends_at, "ended": ended, "rows": probe.rows, "seen": probe.seen}
    (home / "probe.json").write_text(json.dumps(found | {"saves": probe.saves, "sizes": sizes, "said": said}))


def run_ours(side: str, options: argparse.Namespace) -> list[str]:
    """Run a sweep as the job does; return what it said."""
    import optuna

    from eegvision import study
    from eegvision.config import RunConfig, SweepConfig
    from eegvision.space import load_space

    if side == "ours-random":
        at_random: Any = lambda seed, **_: optuna.samplers.RandomSampler(seed=seed)  # noqa: E731
        optuna.samplers.TPESampler = at_random
    space = load_space(SPACE)
    base = RunConfig().with_overrides(space.base | {"train.max_passes": options.passes})
    settings = SweepConfig(trials=options.trials, max_concurrent=options.concurrent, min_passes=options.passes)
    said: list[str] = []
    study.run_study(base, settings, name=SWEEP, space=space, say=said.append)
    return said


def run_tune(side: str, options: argparse.Namespace, noted: Path) -> list[str]:
    """Run a search with Tune alone over a function that does nothing."""
    import optuna
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    from eegvision.space import load_space

    is_fresh, passes = side == "tune-fresh", options.passes

    def nothing(_: dict[str, Any]) -> None:
        began = time.monotonic()
        if is_fresh:
            import torch  # noqa: F401
        began_told = time.monotonic()
        for number in range(1, passes + 1):
            tune.report({"pass": number, "objective": float(np.random.default_rng().random())})
        note_fit(noted, tune.get_context().get_trial_id(), began, time.monotonic() - began_told)

    sampler = optuna.samplers.RandomSampler(seed=0)
    if side == "tune-tpe":
        sampler = optuna.samplers.TPESampler(multivariate=True, group=True, constant_liar=True, seed=0)
    suggest = load_space(SPACE).suggest
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    tune.Tuner(
        nothing,
        tune_config=tune.TuneConfig(
            search_alg=OptunaSearch(suggest, sampler=sampler, metric="objective", mode="max"),
            max_concurrent_trials=options.concurrent,
            num_samples=options.fresh if is_fresh else options.trials,
            reuse_actors=not is_fresh,
        ),
        run_config=tune.RunConfig(name="tune", storage_path=os.environ["EEGVISION_HOME"], verbose=0),
    ).fit()
    return []


def run_bare(home: Path) -> None:
    """Train the configurations of a list one after the other in this process, without Ray."""
    from eegvision.config import RunConfig
    from eegvision.distributed import fit_here

    watch_fits(home / "fits", is_idle=False)
    for trial, overrides in json.loads(sys.stdin.read()):
        fit_here(RunConfig().with_overrides(overrides), home / "bare" / trial, lambda _: None)


# --- what was found ---


class Side:
    """What a run of one side left, in seconds, the first trial of each process left out."""

    def __init__(self, home: Path) -> None:
        self.fits = sorted(
            (json.loads(path.read_text()) | {"trial": path.stem} for path in (home / "fits").glob("*.json")),
            key=lambda fit: fit["began"],
        )
        last: dict[int, float] = {}
        self.overhead: list[float] = []
        self.ended: list[float] = []
        for fit in self.fits:
            if fit["pid"] in last:
                self.overhead.append(fit["began"] - last[fit["pid"]] + fit["waited"])
                self.ended.append(fit["ended"])
            last[fit["pid"]] = fit["ended"]
        self.probe: dict[str, Any] = json.loads((home / "probe.json").read_text())
        self.rows = np.array(self.probe["rows"])

    def at(self, moment: float, column: int) -> float:
        """Return the driver's memory (1) or its main thread's processor time (2) at a moment."""
        return float(np.interp(moment, self.rows[:, 0], self.rows[:, column]))

    def per_trial(self, began: int, end: int, column: int = 0) -> float:
        """Return what trials `began` to `end` took each of the clock (0) or of the driver's main thread (2)."""
        ends = sorted(self.ended)
        first, last = ends[began], ends[end - 1]
        span = last - first if column == 0 else self.at(last, column) - self.at(first, column)
        return span / (end - 1 - began)

    def windows(self, size: int) -> list[tuple[int, int]]:
        """Return where windows of so many trials begin and end; what is left of the last one goes to it."""
        n_trials = len(self.overhead)
        count = max(1, round(n_trials / size))
        edges = np.linspace(0, n_trials, count + 1).astype(int).tolist()
        return list(itertools.pairwise(edges))

    def slope(self, column: int = 0) -> float:
        """Return by how much a trial's overhead (or the driver's work for it, 2) grows over 1,000 trials, in seconds.

        Of a line through twenty windows: their medians of the overhead, their means of the work.
        """
        windows = self.windows(max(5, len(self.overhead) // 20))
        middle = [(one + other) / 2 for one, other in windows]
        if column:
            found = [self.per_trial(one, other, column) for one, other in windows]
        else:
            found = [statistics.median(self.overhead[one:other]) for one, other in windows]
        return 1000 * float(np.polyfit(middle, found, 1)[0])

    def growth(self) -> float:
        """Return by how much the driver's memory grows, MiB per 1,000 trials, after the first tenth."""
        ends = sorted(self.ended)
        moments = np.linspace(ends[len(ends) // 10], ends[-1], 50)
        count = np.searchsorted(ends, moments)
        return 1000 * float(np.polyfit(count, [self.at(moment, 1) for moment in moments], 1)[0])

    def lags(self) -> list[tuple[float, float]]:
        """Return for moments of the run how long what had been spooled by then took until MLflow had it."""
        found = []
        for now, _, _, spooled, _ in self.rows:
            there = self.rows[self.rows[:, 4] >= spooled, 0]
            if spooled and now <= self.probe["ends_at"] and len(there):
                found.append((float(now), float(max(0.0, there[0] - now))))
        return found

    def share(self, kind: str, began: float, end: float) -> float:
        """Return the share of the driver's time between two moments that went to a kind of work."""
        seen = Counter(what for moment, what in self.probe["seen"] if began <= moment < end)
        return seen[kind] / max(1, seen.total())


def run_one(command: str, options: argparse.Namespace, home: Path) -> None:
    """Run this script for one side in a process of its own."""
    flags = [f"--{name}={getattr(options, name)}" for name in ("trials", "passes", "concurrent", "fresh")]
    subprocess.run(
        [sys.executable, __file__, "--one", command, *flags],
        env=environment(home), check=True, stdout=sys.stderr,
    )  # fmt: skip


def furnish(home: Path) -> None:
    """Make the demo data set."""
    ingest = [sys.executable, "jobs/ingest.py", "simulated", "--out", "demo"]
    subprocess.run(ingest, cwd=ROOT, env=environment(home), check=True, stdout=subprocess.DEVNULL)


def new_home(data: Path, folder: Path, name: str) -> Path:
    """Make an EEGVISION_HOME that shares the data set."""
    home = folder / name
    home.mkdir()
    (home / "datasets").symlink_to(data / "datasets")
    return home


def table_of_sides(sides: dict[str, Side], options: argparse.Namespace) -> None:
    heads = (
        "side", "trials", "overhead of a trial, s: min", "median", "max", "its growth over 1,000 trials",
        "s a trial by the clock", "driver's main thread, processor s a trial", "its growth over 1,000 trials",
        "driver's memory, MiB", "its growth over 1,000 trials",
    )  # fmt: skip
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for name, side in sides.items():
        if name == "tune-fresh":  # no process has a second trial
            ends = [fit["ended"] for fit in side.fits]
            each = (ends[-1] - ends[0]) / (len(ends) - 1)
            print(f"| {name} | {len(ends)} | | {options.concurrent * each:.2f} | | | {each:.2f} | | | | |")
            continue
        medians = [statistics.median(side.overhead[one:other]) for one, other in side.windows(options.window)]
        n_trials = len(side.overhead)
        print(
            f"| {name} | {len(side.fits)} | {min(medians):.3f} | {statistics.median(medians):.3f} | "
            f"{max(medians):.3f} | {side.slope():+.3f} | {side.per_trial(0, n_trials):.3f} | "
            f"{side.per_trial(0, n_trials, 2):.3f} | {side.slope(2):+.3f} | {side.at(max(side.ended), 1):.0f} | "
            f"{side.growth():+.0f} |"
        )


def table_of_windows(side: Side, options: argparse.Namespace) -> None:
    heads = (
        "trials", "overhead of a trial, s: median", "mean", "s a trial by the clock", "driver's main thread, s",
        "driver's memory, MiB", "Tune saving its state, s", "lag of MLflow, s: median", "max",
    )  # fmt: skip
    print(f"\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    ends, lags = sorted(side.ended), side.lags()
    for one, other in side.windows(options.window):
        own = side.overhead[one:other]
        since, until = ends[one], ends[other - 1]
        saves = [seconds for moment, seconds in side.probe["saves"] if since <= moment <= until]
        late = [lag for moment, lag in lags if since <= moment <= until]
        print(
            f"| {one + 1}-{other} | {statistics.median(own):.3f} | {statistics.mean(own):.3f} | "
            f"{side.per_trial(one, other):.3f} | {side.per_trial(one, other, 2):.3f} | {side.at(until, 1):.0f} | "
            f"{len(saves)} x {statistics.median(saves or [0]):.3f} | {statistics.median(late or [0]):.1f} | "
            f"{max(late or [0]):.1f} |"
        )


def table_of_work(sides: dict[str, Side]) -> None:
    """Print what the driver's main thread does, in ms a trial, for the first and the last fifth of the trials."""
    columns = [(f"{name}, {part} fifth", side, part) for name, side in sides.items() for part in ("first", "last")]
    print(
        f"\n| the driver, ms a trial | {' | '.join(name for name, _, _ in columns)} |\n|" + "---|" * (1 + len(columns))
    )
    for kind in [*dict.fromkeys(kind for _, _, kind in DOING), "all else"]:
        cells = []
        for _, side, part in columns:
            count = max(2, len(side.ended) // 5)
            one, other = (0, count) if part == "first" else (len(side.ended) - count, len(side.ended))
            ends = sorted(side.ended)
            share = side.share(kind, ends[one], ends[other - 1])
            cells.append(f"{1000 * share * side.per_trial(one, other):.0f}")
        print(f"| {kind} | {' | '.join(cells)} |")


def tell_of_end(side: Side) -> None:
    """Print what happened after the last trial."""
    probe = side.probe
    length = probe["ended"] - probe["ends_at"]
    print(f"\nAfter the last trial {length:.1f} s, of these:", end=" ")
    parts = {kind: length * side.share(kind, probe["ends_at"], probe["ended"]) for _, _, kind in ENDING}
    parts["all else"] = length * side.share("all else", probe["ends_at"], probe["ended"])
    print(", ".join(f"{kind} {seconds:.1f} s" for kind, seconds in parts.items() if seconds >= 0.05))
    behind = [row for row in side.rows if row[0] >= probe["ends_at"]]
    print(f"driver's memory at its most {max(row[1] for row in side.rows):.0f} MiB; of the spool "
          f"{behind[-1][4]:.0f} of {behind[-1][3]:.0f} bytes were in MLflow at the end")  # fmt: skip
    sizes = ", ".join(f"{name} {size:.1f} MiB" for name, size in sorted(probe["sizes"].items()))
    print(f"Tune's state: {sizes}; saved {len(probe['saves'])} times in {sum(s for _, s in probe['saves']):.1f} s")
    for line in probe["said"]:
        if line.startswith("warning"):
            print(line)


def compare_with_bare(options: argparse.Namespace, data: Path, folder: Path) -> list[float]:
    """Let trials really train, then train the same configurations bare; return overhead per trial of each pair."""
    heads = ("pair", "trials", "s a trial in the sweep", "fit alone, s", "difference", "overhead: median", "mean")
    print(f"\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    found = []
    for pair in range(options.pairs):
        home = new_home(data, folder, f"real{pair}")
        run_one("ours-real", argparse.Namespace(**vars(options) | {"trials": options.real, "passes": 1}), home)
        swept, bare = Side(home), train_bare(home, new_home(data, folder, f"bare{pair}"), options.concurrent)
        ends_by_pid: dict[int, list[float]] = {}
        for fit in swept.fits:
            ends_by_pid.setdefault(fit["pid"], []).append(fit["ended"])
        each = [after - before for ends in ends_by_pid.values() for before, after in itertools.pairwise(ends)]
        alone = [bare[fit["trial"]] for fit in swept.fits if fit["ended"] > ends_by_pid[fit["pid"]][0]]
        found.append(statistics.mean(each) - statistics.mean(alone))
        print(
            f"| {pair + 1} | {len(alone)} | {statistics.mean(each):.3f} | {statistics.mean(alone):.3f} | "
            f"{found[-1]:.3f} | {statistics.median(swept.overhead):.3f} | {statistics.mean(swept.overhead):.3f} |",
            flush=True,
        )
    return found


def train_bare(swept: Path, home: Path, processes: int) -> dict[str, float]:
    """Train what the trials of a sweep trained, in bare processes side by side; return seconds by trial."""
    from eegvision.space import load_space

    base = load_space(SPACE).base | {"train.max_passes": 1}
    (home / "fits").mkdir()
    trials = sorted((swept / "runs" / SWEEP / "trials").glob("*/trial.json"))
    fits = [(path.parent.name, base | json.loads(path.read_text())["suggested"]) for path in trials]
    command = [sys.executable, __file__, "--one", "bare"]
    running = []
    for core in range(processes):
        process = subprocess.Popen(command, env=environment(home), stdin=subprocess.PIPE, text=True)
        assert process.stdin is not None
        with process.stdin:
            process.stdin.write(json.dumps(fits[core::processes]))
        running.append(process)
    assert all(process.wait() == 0 for process in running)
    noted = {path.stem: json.loads(path.read_text()) for path in (home / "fits").glob("*.json")}
    return {trial: fit["ended"] - fit["began"] for trial, fit in noted.items()}


def main() -> None:
    """Run the sides one after the other and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--concurrent", type=int, default=2)
    parser.add_argument("--fresh", type=int, default=16, help="trials of tune-fresh")
    parser.add_argument("--real", type=int, default=30, help="trials that train")
    parser.add_argument("--pairs", type=int, default=2, help="of sweep and bare; 0 for none")
    parser.add_argument("--sides", nargs="*", default=list(SIDES), choices=SIDES)
    parser.add_argument("--keep", type=Path, help="a new folder for what runs leave; by default it is removed")
    parser.add_argument("--quick", action="store_true", help="at a size for three minutes")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        vars(options).update(QUICK)
    options.window = 100 if options.trials >= 500 else 10
    if options.one:
        home = Path(os.environ["EEGVISION_HOME"])
        run_bare(home) if options.one == "bare" else run_side(options.one, options, home)
        return
    with tempfile.TemporaryDirectory() as place:
        folder = options.keep or Path(place)
        data = folder / "data"
        data.mkdir(parents=True)
        furnish(data)
        sides = {}
        for name in options.sides:
            run_one(name, options, new_home(data, folder, name))
            sides[name] = Side(folder / name)
            print(f"{name}: done, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
        table_of_sides(sides, options)
        if ours := sides.get("ours-tpe"):
            table_of_windows(ours, options)
            table_of_work({name: side for name, side in sides.items() if name != "tune-fresh"})
            tell_of_end(ours)
        real = compare_with_bare(options, data, folder) if options.pairs else []
    if ours:
        tell_results(ours, sides, options)
    if real:
        what = f"overhead of a trial that trains: the sweep's time a trial over its fit alone, {options.real} trials"
        tell(what, real, unit="s", target=TARGET, peer="the same fits, a bare process per core")


def tell_results(ours: Side, sides: dict[str, Side], options: argparse.Namespace) -> None:
    of_windows = [statistics.median(ours.overhead[one:other]) for one, other in ours.windows(options.window)]
    what = f"overhead of a trial after the first, {options.trials} trials, windows of {options.window}"
    plain = sides.get("tune-tpe")
    peer = f"plain Tune and TPE {statistics.median(plain.overhead):.2f} s" if plain else "none"
    tell(what, of_windows, unit="s", target=TARGET, peer=peer)
    tell("lag of MLflow behind the sweep", [lag for _, lag in ours.lags()], unit="s", target=None, peer="none")
    if options.trials < 400:  # of fewer, a slope is the first trials' noise
        return
    for column, what in ((0, "growth of that overhead"), (2, "growth of the driver's processor time for a trial")):
        peer = f"plain Tune and TPE {plain.slope(column):+.3f} s" if plain else "none"
        tell(f"{what} over 1,000 trials", [ours.slope(column)], unit="s", target=None, peer=peer)
    tell("growth of the driver's memory over 1,000 trials", [ours.growth()], unit="MiB", target=None, peer="none")


if __name__ == "__main__":
    main()
