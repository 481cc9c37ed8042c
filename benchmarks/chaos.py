"""A sweep in simulated pods under random faults, against the same sweep unharmed: is the outcome the same?

    python benchmarks/chaos.py [--minutes 10] [--seed 0] [--trials 10] [--passes 80]         about 20 minutes on 2 cores

Needs root and Linux (network namespaces), kubectl or kustomize, PostgreSQL's server, and the group `test`. The pods are
those of `k8s/overlays/dev` with two small workers, started with the operator's commands; see `tests/cluster/lab.py`.
Faults of `--seed` fall until `--minutes` are over, 10 to 30 s apart; then the sweep may end in peace:

    trial     SIGKILL to a process that trains
    node      all processes of a worker's pod are killed; another pod comes
    cut       a worker's network is cut; another pod comes; 5 to 20 s later the old one's network is back
    driver    SIGKILL to the process that runs jobs/sweep.py: the job fails, and a new cluster goes on
    head      all processes of the head's pod are killed, likewise
    submitter its pod is killed; another one follows the job
    disk      the shared volume is full for 5 to 15 s
    mlflow    the tracking server is killed; it is back after 10 to 60 s

Each new cluster stands for one retry of the RayJob (the manifests allow two; here there are as many as it takes).
Compared are score and best pass of every trial, bit for bit, and the named best; `history.check` reads the log. After
its last pass a trial counts as finished or as stopped early, whichever came first, so status is not compared.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from cluster import sweeps
from cluster.hosts import Host, missing, until
from cluster.lab import Lab, lab
from eegvision import history

VOLUME_MB = 500


class Chaos:
    """The faults, and what an operator does about them."""

    def __init__(self, made: Lab, seed: int) -> None:
        self.lab, self.draw = made, random.Random(seed)
        self.tracking = made.net.hosts[-1]
        self.cluster = made.start_job(sweeps.NAME)
        self.n_clusters = 1
        self.hits: collections.Counter[str] = collections.Counter()
        self.noticed_s: list[float] = []
        self.later: list[tuple[float, Callable[[], object]]] = []
        self.faults: dict[str, Callable[[], bool]] = {
            "trial": self.trial, "node": self.node, "cut": self.cut, "driver": self.driver, "head": self.head,
            "submitter": self.submitter, "disk": self.disk, "mlflow": self.mlflow,
        }  # fmt: skip

    def tend(self) -> bool:
        """Do what is due: undo faults, replace submitters and clusters; say whether the sweep is finished."""
        for at_s, undo in [due for due in self.later if due[0] <= time.monotonic()]:
            undo()
            self.later = [due for due in self.later if due[0] > at_s]
        _, submission = self.cluster.submitters[-1]
        is_lost = not self.cluster.head.pids()
        if submission.poll() is None and not is_lost:
            return False
        # A submitter's exit code says nothing of the job, so the head is asked, as the operator does.
        jobs = self.lab.ray(self.cluster, "/api/jobs/")
        status = jobs[0]["status"] if jobs else "unknown"
        if status == "SUCCEEDED":
            return True
        if status in ("FAILED", "STOPPED") or is_lost:
            tell(f"job {status}: a new cluster")
            self.cluster.kill()
            self.cluster = self.lab.start_job(sweeps.NAME)
            self.n_clusters += 1
        else:
            self.lab.resubmit(sweeps.NAME, self.cluster)
        return False

    def strike(self) -> None:
        """Let one fault fall; one that finds nothing to harm does not count."""
        name = self.draw.choice(sorted(self.faults))
        if self.faults[name]():
            self.hits[name] += 1
            tell(f"{name}; {sweeps.passes_made(self.lab)} passes so far")

    def trial(self) -> bool:
        found = [process for host in self.workers() for process in running(host, "ray::ImplicitFunc")]
        if found:
            self.draw.choice(sorted(found, key=lambda process: process.pid)).kill()
        return bool(found)

    def node(self) -> bool:
        if hosts := self.workers():
            self.draw.choice(hosts).kill()
            self.lab.replace_worker(sweeps.NAME, self.cluster)
        return bool(hosts)

    def cut(self) -> bool:
        hosts, before = self.workers(), self.lab.nodes_alive(self.cluster)
        if not hosts or not before or before < 3:
            return False
        host = self.draw.choice(hosts)
        host.cut()
        self.noticed_s.append(until("noticed", lambda: self.lab.nodes_alive(self.cluster) != before, timeout_s=60))
        self.lab.replace_worker(sweeps.NAME, self.cluster)
        self.after(self.draw.uniform(5, 20), host.heal)
        return True

    def driver(self) -> bool:
        found = running(self.cluster.head, "python jobs/sweep.py")
        for process in found:
            process.kill()
        return bool(found)

    def head(self) -> bool:
        return self.cluster.head.kill() > 0

    def submitter(self) -> bool:
        return self.cluster.submitters[-1][0].kill() > 0

    def disk(self) -> bool:
        filler = self.lab.shared / "filler"
        if filler.exists():
            return False
        status = os.statvfs(self.lab.shared)
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(status.f_bavail * status.f_frsize - 65536, 1))
        self.after(self.draw.uniform(5, 15), filler.unlink)
        return True

    def mlflow(self) -> bool:
        if not self.tracking.kill():
            return False
        self.after(self.draw.uniform(10, 60), lambda: self.lab.serve_mlflow(self.tracking))
        return True

    def workers(self) -> list[Host]:
        return [host for host in self.cluster.workers if running(host, "raylet")]

    def after(self, seconds: float, undo: Callable[[], object]) -> None:
        self.later.append((time.monotonic() + seconds, undo))


def running(host: Host, words: str) -> list[psutil.Process]:
    """Return the processes of a host whose command line has these words."""
    found = []
    for pid in host.pids():
        try:
            process = psutil.Process(pid)
            if words in " ".join(process.cmdline()) and "bash -c" not in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def tell(line: str) -> None:
    print(f"{time.strftime('%X')} {line}", file=sys.stderr, flush=True)


@contextmanager
def furnished(folder: Path, options: argparse.Namespace) -> Iterator[Lab]:
    """Make a lab with tracking, data and search space, whose shared volume is a small disk of its own."""
    size = {"trials": options.trials, "passes": options.passes}
    folder.mkdir()
    with lab(sweeps.overlay(folder / "overlay", **size), folder) as made:
        disk = str(made.shared)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={VOLUME_MB}m", "none", disk], check=True)
        try:
            made.start_postgres()
            made.start_mlflow()
            sweeps.furnish(made, **size)
            yield made
        finally:
            for host in made.net.hosts:
                host.kill()
            subprocess.run(["umount", "--lazy", disk], check=True)


def unharmed(folder: Path, options: argparse.Namespace) -> tuple[dict, float, float]:
    """Run the sweep in peace; return how its trials ended, the best, and the seconds it took."""
    with furnished(folder, options) as made:
        began = time.monotonic()
        cluster = made.start_job(sweeps.NAME)
        code = cluster.submitters[-1][1].wait(3600)
        assert code == 0, cluster.said()
        assert history.check(sweeps.run_folder(made)) == []
        return sweeps.ends(made), sweeps.best(made), time.monotonic() - began


def harmed(
    folder: Path, options: argparse.Namespace
) -> tuple[dict, float, float, Chaos, list[str], list[history.Event]]:
    """Run it under faults."""
    with furnished(folder, options) as made:
        began = time.monotonic()
        chaos = Chaos(made, options.seed)
        until("the first pass", lambda: sweeps.passes_made(made) > 0, timeout_s=300)
        first_s = strike_s = time.monotonic()
        while not chaos.tend():
            now = time.monotonic()
            if now - first_s < 60 * options.minutes and now >= strike_s:
                chaos.strike()
                strike_s = time.monotonic() + chaos.draw.uniform(10, 30)
            assert now - first_s < 3600, chaos.cluster.said()
            time.sleep(0.5)
        took_s = time.monotonic() - began
        run = sweeps.run_folder(made)
        return sweeps.ends(made), sweeps.best(made), took_s, chaos, history.check(run), history.read(run)


def main() -> None:
    """Print a table of what fell and what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--passes", type=int, default=80)
    options = parser.parse_args()
    if why := missing():
        sys.exit(f"pods cannot be simulated here: this {why}")
    with tempfile.TemporaryDirectory() as place:
        before, best_before, peace_s = unharmed(Path(place) / "peace", options)
        tell(f"unharmed: {peace_s:.0f} s, best is the trial with rate {best_before:g}")
        after, best_after, chaos_s, chaos, problems, log = harmed(Path(place) / "chaos", options)
    passes = [(event["id"], event["pass"]) for event in log if event["do"] == "pass"]
    lost = collections.Counter(event["reason"].partition(":")[0] for event in log if event["do"] == "lost")
    print("| | |\n|---|---|")
    print(f"| seed; trials x passes | {options.seed}; {options.trials} x {options.passes} |")
    print(f"| unharmed, harmed | {peace_s:.0f} s, {chaos_s:.0f} s |")
    print(f"| faults that hit | {', '.join(f'{name} {count}' for name, count in sorted(chaos.hits.items()))} |")
    print(f"| cut networks, noticed after | {', '.join(f'{s:.1f} s' for s in chaos.noticed_s) or 'none'} |")
    print(f"| clusters, drivers that went on | {chaos.n_clusters}, {sum(event['do'] == 'resume' for event in log)} |")
    print(f"| attempts lost | {', '.join(f'{name} {count}' for name, count in sorted(lost.items())) or 'none'} |")
    print(f"| passes made, made twice | {len(passes)}, {len(passes) - len(set(passes))} |")
    print(f"| problems that the checker found | {'; '.join(problems) or 'none'} |")
    differing = [rate for rate, end in before.items() if rate not in after or after[rate][1:] != end[1:]]
    for rate in differing:
        tell(f"learning rate {rate:g}: {before[rate]} unharmed, {after.get(rate)} harmed")
    same = len(before) - len(differing)
    print(f"| trials with the same score and best pass | {same} of {len(before)} |")
    print(f"| best, unharmed and harmed | rate {best_before:g}, rate {best_after:g} |")
    sys.exit(bool(problems) or same < len(before) or best_before != best_after)


if __name__ == "__main__":
    main()
