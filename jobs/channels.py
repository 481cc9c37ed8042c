"""Which channels, moments, regions and rates does a trained model live on?

    python jobs/channels.py --run demo                                  # the best trial, validation pictures
    python jobs/channels.py --run demo --trial 3 --draws 8
    python jobs/channels.py --run demo --intervals-s 0 0.1 0.1 0.2 --no-views
    python jobs/channels.py --run demo --side test                      # opens the test set: a line in the ledger

Noise takes the place of one channel after the other (Palazzo et al., Eq. 5-7), in whole segments and in intervals; and
the model retrieves pictures from parts of segments (NICE's analyses). Tables, head maps and a summary go to
`RUN/channels/` and to MLflow. The same command again goes on after an interruption, or shows what is there.
"""

import sys
from dataclasses import dataclass, field
from typing import Annotated

import _checkout  # noqa: F401  (before eegvision)
import tyro
from _inspection import Inspection

from eegvision.cli import print_line, run_job
from eegvision.inspection.channel_settings import ChannelSettings


@dataclass(frozen=True, kw_only=True)
class Options(Inspection):
    """Measure what channels, intervals and parts of segments are worth to a model of a run."""

    settings: Annotated[ChannelSettings, tyro.conf.arg(name="")] = field(default_factory=ChannelSettings)


def main(options: Options) -> None:
    """Measure and show."""
    from eegvision.inspection.channels import run_channels

    run_channels(**options.given(), settings=options.settings, say=print_line)


if __name__ == "__main__":
    sys.exit(run_job(Options, main))
