"""Do concepts of one category lie together in the embeddings of a trained model?

    python jobs/semantic.py --run demo                                     # pictures by class
    python jobs/semantic.py --run demo --categories categories.csv         # classes by category, as NICE shows it
    python jobs/semantic.py --run demo --trial 3 --side test               # opens the test set: a line in the ledger

Similarity of EEG and pictures ordered by category, with a test, and maps of both in two dimensions go to
`RUN/semantic/` and to MLflow.
"""

import sys
from dataclasses import dataclass, field
from typing import Annotated

import _checkout  # noqa: F401  (before eegvision)
import tyro
from _inspection import Inspected

from eegvision.cli import print_line, run_job
from eegvision.inspection.feature_settings import SemanticSettings


@dataclass(frozen=True, kw_only=True)
class Options(Inspected):
    """Compare concepts in the embeddings of a model of a run."""

    settings: Annotated[SemanticSettings, tyro.conf.arg(name="")] = field(default_factory=SemanticSettings)


def main(options: Options) -> None:
    """Compare, show and log."""
    from eegvision.inspection.semantic import run_semantic

    run_semantic(**options.given(), settings=options.settings, say=print_line)


if __name__ == "__main__":
    sys.exit(run_job(Options, main))
