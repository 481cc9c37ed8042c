"""Which parts of a picture made it fit the EEG? Squares are removed from it, and the loss of fit is mapped.

    python jobs/saliency.py --run demo                                   # the best trial, all validation pictures
    python jobs/saliency.py --run demo --pictures 20 --engine exact
    python jobs/saliency.py --run demo --detectors maps/                 # Table IV with maps/SALICON/IMAGE_ID.png, ...
    python jobs/saliency.py --run demo --side test                       # opens the test set: a line in the ledger

Multi-scale suppression maps (Palazzo et al., Eq. 3-4), with the classifier-driven maps beside them; where gaze was
recorded, Table IV: s-AUC, NSS and CC of every detector, with what people reach. Figures 5 and 8, tables and maps go to
`RUN/saliency/` and to MLflow. The same command again goes on after an interruption, or shows what is there.
"""

import sys
from dataclasses import dataclass, field
from typing import Annotated

import _checkout  # noqa: F401  (before eegvision)
import tyro
from _inspection import Inspection

from eegvision.cli import print_line, run_job
from eegvision.inspection.saliency_settings import SaliencySettings


@dataclass(frozen=True, kw_only=True)
class Options(Inspection):
    """Map what a model of a run sees in pictures."""

    settings: Annotated[SaliencySettings, tyro.conf.arg(name="")] = field(default_factory=SaliencySettings)


def main(options: Options) -> None:
    """Map and show."""
    from eegvision.inspection.saliency import run_saliency

    run_saliency(**options.given(), settings=options.settings, say=print_line)


if __name__ == "__main__":
    sys.exit(run_job(Options, main))
