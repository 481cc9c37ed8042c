"""Score the best model of a run on its test pictures: softmax probes or zero-shot retrieval.

    python jobs/evaluate.py --run demo                                     # the best trial, retrieval
    python jobs/evaluate.py --run demo --protocol probe --trial 3
    python jobs/evaluate.py --run demo --side val                          # the test set stays closed

The test set is opened once per model, and the ledger keeps who opened it. Scores and predictions go to
`RUN/evaluations/` and to MLflow.
"""

import sys
from dataclasses import dataclass, field
from typing import Annotated, Literal

import _checkout  # noqa: F401  (before eegvision)
import tyro

from eegvision.assess.scores import Question
from eegvision.cli import print_line, run_job


@dataclass(frozen=True, kw_only=True)
class Options:
    """Score a model of a run; what was scored before is shown."""

    run: str
    """Name of the run or sweep."""
    trial: int | None = None
    """Number of the trial; by default the best one on validation."""
    side: Literal["val", "test"] = "test"
    """Pictures to score on; models were chosen on val."""
    again: str | None = None
    """Why the test set is opened although another model of this run was scored on it; goes into the ledger."""
    question: Annotated[Question, tyro.conf.arg(name="")] = field(default_factory=Question)


def main(options: Options) -> None:
    """Score and show."""
    from eegvision import study

    study.evaluate_run(
        options.run,
        options.question,
        trial=options.trial,
        side=options.side,
        again=options.again,
        say=print_line,
    )


if __name__ == "__main__":
    sys.exit(run_job(Options, main))
