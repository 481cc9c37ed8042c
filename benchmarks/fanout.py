"""Efficiency of chunked work over many workers: `fanout.compute` against a loop with `ray.util.ActorPool`.

    python benchmarks/fanout.py [--workers 1 8 32 64] [--cost-s 2] [--chunks 30] [--load-s 2]      8 minutes on 2 cores
    python benchmarks/fanout.py --quick                     8 workers, under a minute

Every chunk sleeps for a fixed time and returns a map of 256 x 256 values, so that one machine can be declared to have
as many CPUs as wanted: what is measured is what handing out, writing and booking chunks costs, not arithmetic. Workers
sleep a while before their first chunk, as if they loaded a model. There are `--chunks` chunks per worker.

The peer is what one would write without this package: an actor per CPU that loads the model, `map_unordered`, and
`np.savez` of each result in the calling process. It writes no checksums, and nothing of it survives an interruption.

    whole run      (chunks x cost / workers) / wall time, from the call to its return; starting the processes, which are
                   many more than the cores here, is part of it
    steady state   from the first result of the last worker to the last result: seconds of sleep in that time over
                   workers x its length; the end, when workers run out of chunks, is part of it
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from _results import tell

SIDE_PX = 256
QUICK = {"workers": [8], "cost_s": 0.5, "load_s": 0.5, "chunks": 24}


def load(load_s: float, cost_s: float) -> Callable[[int], dict[str, np.ndarray]]:
    """Return the function of a worker; it tells who did a chunk and when."""
    time.sleep(load_s)

    def work(number: int) -> dict[str, np.ndarray]:
        time.sleep(cost_s)
        values = np.full((SIDE_PX, SIDE_PX), number, np.float32)
        return {"map": values, "who": np.array(os.getpid()), "ended_s": np.array(time.time())}

    return work


class Actor:
    """A worker of the peer."""

    def __init__(self, load_s: float, cost_s: float) -> None:
        self._work = load(load_s, cost_s)

    def write(self, number: int) -> dict[str, np.ndarray]:
        return self._work(number)


def run_ours(folder: Path, n_chunks: int, load_s: float, cost_s: float) -> None:
    from eegvision.fanout import Chunk, compute

    chunks = [Chunk(key=f"{number:06}", item=number) for number in range(n_chunks)]
    prepare = partial(load, load_s, cost_s)
    compute(prepare, chunks, folder, identity={}, unit="chunk", say=partial(print, file=sys.stderr, flush=True))


def run_peer(folder: Path, n_chunks: int, load_s: float, cost_s: float, n_workers: int) -> None:
    import ray
    from ray.util import ActorPool

    kind = ray.remote(num_cpus=1)(Actor)
    pool = ActorPool([kind.remote(load_s, cost_s) for _ in range(n_workers)])
    (folder / "chunks").mkdir(parents=True)
    done = pool.map_unordered(lambda actor, number: actor.write.remote(number), list(range(n_chunks)))
    for count, arrays in enumerate(done):
        np.savez(folder / "chunks" / f"{count:06}.npz", **arrays)


def steady_efficiency(folder: Path, cost_s: float) -> tuple[float, float]:
    """Return the efficiency from the first result of the last worker on, and how long that was in seconds."""
    ended_s: dict[int, list[float]] = {}
    for path in (folder / "chunks").glob("*.npz"):
        with np.load(path) as arrays:
            ended_s.setdefault(int(arrays["who"]), []).append(float(arrays["ended_s"]))
    began_s = max(min(own) for own in ended_s.values())
    every = np.array([end for own in ended_s.values() for end in own])
    length_s = every.max() - began_s
    slept_s = np.clip(every - began_s, 0, cost_s).sum()
    return float(slept_s / (len(ended_s) * length_s)), float(length_s)


def measure(kind: str, n_workers: int, options: argparse.Namespace) -> dict[str, float]:
    """Run one side on a Ray of its own that believes in so many CPUs."""
    import ray

    ray.init(
        address="local",
        num_cpus=n_workers,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=300 << 20,
    )
    n_chunks = n_workers * options.chunks
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "out"
        began = time.perf_counter()
        if kind == "ours":
            run_ours(folder, n_chunks, options.load_s, options.cost_s)
        else:
            run_peer(folder, n_chunks, options.load_s, options.cost_s, n_workers)
        wall_s = time.perf_counter() - began
        steady, length_s = steady_efficiency(folder, options.cost_s)
    ray.shutdown()
    whole = options.chunks * options.cost_s / wall_s
    return {"wall_s": wall_s, "whole": whole, "steady": steady, "steady_s": length_s, "load": os.getloadavg()[0]}


def main() -> None:
    """Print a line of the table for each number of workers and side; each run has a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--cost-s", type=float, default=2.0)
    parser.add_argument("--load-s", type=float, default=2.0)
    parser.add_argument("--chunks", type=int, default=30, help="per worker")
    parser.add_argument("--kinds", nargs="+", default=["ours", "peer"], choices=["ours", "peer"])
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="at a size for a minute")
    options = parser.parse_args()
    if options.quick:
        vars(options).update(QUICK)
    if options.one:
        print(json.dumps(measure(options.kinds[0], options.workers[0], options)))
        return
    print("| workers | side | wall, s | whole run | steady state | its length, s | load of the machine |")
    print("|---|---|---|---|---|---|---|")
    flags = ["--cost-s", str(options.cost_s), "--load-s", str(options.load_s), "--chunks", str(options.chunks)]
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    steady: dict[int, float] = {}
    for n_workers in options.workers:
        for kind in options.kinds:
            command = [sys.executable, __file__, "--one", "--workers", str(n_workers), "--kinds", kind, *flags]
            done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            print(
                f"| {n_workers} | {kind} | {found['wall_s']:.1f} | {found['whole']:.2f} | {found['steady']:.3f} | "
                f"{found['steady_s']:.0f} | {found['load']:.0f} |",
                flush=True,
            )
            if kind == "ours":
                steady[n_workers] = found["steady"]
    for n_workers, share in steady.items():
        what, peer = f"efficiency of {n_workers} workers in the steady state", "workers that never wait"
        tell(what, [share], unit="share", target=">= 0.95", peer=peer)


if __name__ == "__main__":
    main()
