"""Tables I, II and III of Palazzo et al.: encoder pairs, pictures alone and joint, EEG alone and joint.

    python jobs/palazzo.py --dataset NAME                                  # as published: 4 x 2 encoders, 3 seeds
    python jobs/palazzo.py --dataset NAME --tables II --images resnet18 --eegs palazzo-gru --seeds 3

Each configuration has the same budget; the test set is opened once, for all of them. The same command again goes on.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import _checkout  # noqa: F401  (before eegvision)
import tyro
from _trainings import Trainings

from eegvision.cli import print_line, run_job
from eegvision.config import EegEncoderName, ImageEncoderName, RunConfig

# What the paper states; what it leaves open is the default of each setting. Weights: ImageNet, fine-tuned.
PUBLISHED = {
    "optim.name": "adam",
    "optim.lr": 1e-3,
    "train.batch_size": 16,
    "train.max_passes": 100,
    "train.metric": "val/class_top1",
    "loss.name": "triplet",
    "image.encoder": "alexnet",  # in its place come those of --images
    "image.weights": "imagenet",
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Tables I, II and III of Palazzo et al. on a data set; the same command again goes on."""

    name: str | None = None
    """Name of the run; by default palazzo-DATASET."""
    tables: tuple[Literal["I", "II", "III"], ...] = ("I", "II", "III")
    """Which of them."""
    images: tuple[ImageEncoderName, ...] = ("inception_v3", "resnet101", "densenet161", "alexnet")
    """Image encoders."""
    eegs: tuple[EegEncoderName, ...] = ("palazzo-lstm", "palazzo-gru")
    """EEG encoders."""
    trainings: Annotated[Trainings, tyro.conf.arg(name="")] = field(default_factory=Trainings)
    run: Annotated[RunConfig, tyro.conf.arg(name="")] = field(
        default_factory=lambda: RunConfig().with_overrides(PUBLISHED)
    )


def main(options: Options) -> None:
    """Train what is missing, score all of it, print the tables."""
    from eegvision.recipes import palazzo
    from eegvision.study import ensure_demo
    from eegvision.vocab import InputError

    if not options.tables:
        raise InputError("give at least one table: I, II or III")
    ensure_demo(options.run.data.dataset, print_line)
    palazzo.run(
        options.name or f"palazzo-{Path(options.run.data.dataset).name}",
        options.run,
        parts=options.tables,
        images=options.images,
        eegs=options.eegs,
        n_seeds=options.trainings.seeds,
        cpus=options.trainings.cpus_per_training,
        gpus=options.trainings.gpus_per_training,
        again=options.trainings.again,
        say=print_line,
    )


if __name__ == "__main__":
    sys.exit(run_job(Options, main))
