"""What a sweep costs over its fits: 16 trials through `jobs/sweep.py` against the same 16 fits run bare.

    python benchmarks/sweep.py [--trials 16] [--passes 12] [--pairs 3]        about 7 minutes a pair on 2 quiet cores
    python benchmarks/sweep.py --quick               4 trials of 2 passes, where fixed costs are most; about a minute

Bare means what one would script without us: one plain Python process per core, each with its half of the
configurations, calling the training loop one after the other; no Ray, no tracking, no table, no figures. Nothing is
stopped early, so both do the same optimiser steps; the losses are compared to make sure. Times are of whole
processes, from start to exit: the sweep's contains starting Ray, MLflow, the table and all figures.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _results import tell

ROOT = Path(__file__).resolve().parent.parent
QUICK = {"trials": 4, "passes": 2, "pairs": 1}
SPACE = """
BASE = {base}
POINTS = {points}

def space(trial):
    trial.suggest_float("optim.lr", 1e-4, 1e-2, log=True)
"""
BARE = """
import json, sys
from pathlib import Path
from eegvision.config import RunConfig
from eegvision.distributed import fit_here
base, points, folder = json.loads(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3])
for number, point in points:
    config = RunConfig().with_overrides(base | point)
    result = fit_here(config, folder / str(number), lambda metrics: None)
    print(json.dumps([point["optim.lr"], result.history[-1]["train/loss"]]), flush=True)
"""


def environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_", "EEGVISION_"))}
    return kept | {"EEGVISION_HOME": str(home), "OMP_NUM_THREADS": "1"}


def run_bare(home: Path, base: dict, points: list[dict], tag: str) -> tuple[float, dict[float, float]]:
    """Time one process per core over its share of the fits; return seconds and the last loss by learning rate."""
    start = time.perf_counter()
    numbered = list(enumerate(points))
    shares = [numbered[core :: os.cpu_count()] for core in range(os.cpu_count() or 1)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", BARE, json.dumps(base), json.dumps(share), str(home / "bare" / tag)],
            env=environment(home), stdout=subprocess.PIPE, text=True,
        )
        for share in shares
    ]  # fmt: skip
    outputs = [process.communicate()[0] for process in processes]
    seconds = time.perf_counter() - start
    assert all(process.returncode == 0 for process in processes)
    return seconds, dict(json.loads(line) for output in outputs for line in output.splitlines())


def run_sweep(home: Path, space: Path, trials: int, passes: int, tag: str) -> tuple[float, dict[float, float]]:
    """Time the same through the job; return seconds and the last loss by learning rate."""
    start = time.perf_counter()
    flags = ["--space", str(space), "--name", tag, "--trials", str(trials), "--min-passes", str(passes)]
    subprocess.run(
        [sys.executable, "jobs/sweep.py", *flags],
        cwd=ROOT,
        env=environment(home),
        check=True,
        stdout=subprocess.DEVNULL,
    )
    seconds = time.perf_counter() - start
    losses = {}
    for trial in (home / "runs" / tag / "trials").iterdir():
        newest = max((trial / "last").glob("pass-*"))
        state = json.loads((newest / "state.json").read_text())
        losses[state["config"]["optim"]["lr"]] = state["history"][-1]["train/loss"]
    return seconds, losses


def main() -> None:
    """Alternate the two and print the ratio of each pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--passes", type=int, default=12)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="at a size for a minute")
    options = parser.parse_args()
    if options.quick:
        vars(options).update(QUICK)
    base = {
        "train.max_passes": options.passes, "train.batch_size": 64, "eeg.encoder": "tsconv", "loss.name": "info_nce",
        "optim.name": "adamw",
    }  # fmt: skip
    points = [{"optim.lr": round(3e-4 * 1.15**number, 7)} for number in range(options.trials)]
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        ingest = [sys.executable, "jobs/ingest.py", "simulated", "--out", "demo"]
        subprocess.run(ingest, cwd=ROOT, env=environment(home), check=True, stdout=subprocess.DEVNULL)
        space = home / "space.py"
        space.write_text(SPACE.format(base=base, points=points))
        ratios = []
        for pair in range(options.pairs):
            bare_s, bare = run_bare(home, base, points, f"pair{pair}")
            sweep_s, swept = run_sweep(home, space, options.trials, options.passes, f"pair{pair}")
            assert bare.keys() == swept.keys()
            largest = max(abs(swept[lr] / bare[lr] - 1) for lr in bare)
            ratios.append(sweep_s / bare_s)
            print(
                f"pair {pair + 1}: bare {bare_s:.1f} s, sweep {sweep_s:.1f} s, ratio {ratios[-1]:.3f}; "
                f"largest relative difference of a last loss {largest:.1e}",
                flush=True,
            )
    print(f"sweep / bare: min {min(ratios):.3f}, median {statistics.median(ratios):.3f}, max {max(ratios):.3f}")
    target = None if options.quick else "<= 1.15"
    what = f"a sweep of {options.trials} trials x {options.passes} passes over its fits"
    tell(what, ratios, target=target, peer="the same fits, a bare process per core")


if __name__ == "__main__":
    main()
