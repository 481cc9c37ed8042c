"""Train one configuration and track it.

    python jobs/train.py --dataset NAME --eeg.encoder tsconv --loss.name info_nce --name NAME

The same command again resumes an interrupted training. Prints the run id that other jobs take as `--run`. With
`--check True` it only holds what lies in the run's folder against the log of what happened.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import _checkout  # noqa: F401  (before eegvision)
import tyro

from eegvision.cli import print_line, run_job
from eegvision.config import PLACES, Place, RunConfig, SweepConfig


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train one configuration; the same command again resumes."""

    name: str | None = None
    """Name of the run; by default made of encoder, data set and the configuration's fingerprint."""
    workers: int = 1
    """Ray Train workers that share every batch."""
    cpus_per_worker: float = 1.0
    """CPUs of each worker."""
    gpus_per_worker: float | None = None
    """GPUs of each worker; by default 1 where the cluster has GPUs, else 0."""
    place: Place | None = None
    """What the training holds: sets the three flags before, where they are not given."""
    max_failures: int = 2
    """Times a failed training is started again from its checkpoint."""
    stall_minutes: float | None = 120.0
    """Start the training again from its checkpoint when nothing is heard of it for so long; longer than any pass."""
    hours: float | None = None
    """End after the pass that brings the training over this many hours, with the best pass so far."""
    allow_drift: bool = False
    """Go on although the code or a library has another version than at the beginning; the table says so."""
    check: bool = False
    """Only check what the run has left against its log."""
    run: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)


def place_of(options: Options) -> dict[str, object]:
    """Return what the place fixes; flags and the configuration file go over it."""
    names = ("workers", "cpus_per_worker", "gpus_per_worker")
    return dict(zip(names, PLACES[options.place], strict=True)) if options.place else {}


def main(options: Options) -> None:
    """Train, as a sweep of the one configuration."""
    from eegvision import study

    run = options.run
    name = options.name or f"{run.eeg.encoder}-{Path(run.data.dataset).name}-{run.fingerprint()}"
    one = SweepConfig(
        trials=1,
        workers_per_trial=options.workers,
        cpus_per_trial=options.cpus_per_worker,
        gpus_per_trial=options.gpus_per_worker,
        max_failures=options.max_failures,
        stall_minutes=options.stall_minutes,
        trial_hours=options.hours,
        allow_drift=options.allow_drift,
    )
    if options.check:
        sys.exit(study.check_run(name, print_line))
    study.ensure_demo(run.data.dataset, print_line)
    study.run_study(run, one, name=name, space=None, say=print_line)


if __name__ == "__main__":
    sys.exit(run_job(Options, main, defaults=place_of))
