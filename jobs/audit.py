"""Audit a trained model: does its score come from what was seen, or from when, from a leak, from chance?

    python jobs/audit.py --run demo                       # the best trial, three seeds of every control
    python jobs/audit.py --run demo --trial 3 --seeds 1 --passes 5

Trains the configuration again, as it is and with one thing after another taken away (order, blocks, overlap, pairs,
fast waves, EEG itself): up to 16 trainings per seed, each as long as the audited model was trained. Ends with a verdict
per control and overall. The test set stays closed. The same command again goes on after an interruption.
"""

import sys
from dataclasses import dataclass, field
from typing import Annotated

import _checkout  # noqa: F401  (before eegvision)
import tyro

from eegvision.audits import Budget
from eegvision.cli import print_line, run_job


@dataclass(frozen=True, kw_only=True)
class Options:
    """Audit a model of a run; the same command again goes on, or shows the verdicts."""

    run: str
    """Name of the run or sweep."""
    trial: int | None = None
    """Number of the trial; by default the best one on validation."""
    budget: Annotated[Budget, tyro.conf.arg(name="")] = field(default_factory=Budget)


def main(options: Options) -> None:
    """Audit and show."""
    from eegvision.audits import record

    record.run_audit(options.run, trial=options.trial, budget=options.budget, say=print_line)


if __name__ == "__main__":
    sys.exit(run_job(Options, main))
