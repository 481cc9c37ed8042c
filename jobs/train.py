"""Train one configuration and track it.

    python jobs/train.py --dataset NAME --eeg.encoder tsconv --loss.name info_nce --name NAME

The same command again resumes an interrupted training. Prints the run id that other jobs take as `--run`.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import _checkout  # noqa: F401  (before eegvision)
import tyro

from eegvision.cli import print_line, run_job
from eegvision.config import RunConfig, SweepConfig


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
    run: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)


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
    )
    study.ensure_demo(run.data.dataset, print_line)
    study.run_study(run, one, name=name, space=None, say=print_line)


if __name__ == "__main__":
    sys.exit(run_job(Options, main))
