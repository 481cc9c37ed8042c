"""Which feature maps of a trained model go with which channels, and when: Palazzo's Eq. 8 to 10 and Figure 9.

    python jobs/association.py --run demo                                  # the best trial, validation pictures
    python jobs/association.py --run demo --trial 3 --layers layer1.0 layer4.1 --visuals 5
    python jobs/association.py --run demo --intervals-s 0 0.1 0.1 0.2 --pictures 50 --gpus-per-worker 0.5

Layers by channels with errors, what each interval of time contributes, the strongest links of a map with a channel and
the pictures that activate the strongest maps most go to `RUN/association/` and to MLflow. An interrupted job goes on
with the same command; of a finished one it shows the results.
"""

import sys
from dataclasses import dataclass, field
from typing import Annotated

import _checkout  # noqa: F401  (before eegvision)
import tyro
from _inspection import Inspection

from eegvision.cli import print_line, run_job
from eegvision.inspection.feature_settings import AssociationSettings


@dataclass(frozen=True, kw_only=True)
class Options(Inspection):
    """Associate feature maps with channels; what was computed before is kept."""

    settings: Annotated[AssociationSettings, tyro.conf.arg(name="")] = field(default_factory=AssociationSettings)


def main(options: Options) -> None:
    """Compute what is missing, show and log."""
    from eegvision.inspection.association import run_association

    run_association(**options.given(), settings=options.settings, say=print_line)


if __name__ == "__main__":
    sys.exit(run_job(Options, main))
