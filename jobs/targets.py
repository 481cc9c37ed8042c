"""Which image target, channels and normalisation: the factors behind the field's progress, crossed and compared.

    python jobs/targets.py --dataset things --image.encoder resnet50 --image.weights imagenet
    python jobs/targets.py --dataset demo --image.encoder small --image.weights none --layers last 0.5 --seeds 1

Image features are frozen and made once. The test set is opened once, for all. The same command again goes on.
"""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import _checkout  # noqa: F401  (before eegvision)
import tyro
from _trainings import Trainings

from eegvision.cli import print_line, run_job
from eegvision.config import RunConfig

TRAINING = {
    "eeg.encoder": "eeg-project",
    "optim.name": "adamw",
    "optim.lr": 1e-4,
    "optim.weight_decay": 1e-4,
    "train.batch_size": 1024,
    "train.max_passes": 50,
    "loss.name": "info_nce",
    "data.normalise": "none",
    "data.repetitions": 0,
    "image.encoder": "resnet50",
    "image.frozen": True,
    "image.weights": "imagenet",
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Cross image layer, blur, channels and normalisation; the same command again goes on."""

    name: str | None = None
    """Name of the run; by default targets-DATASET."""
    layers: tuple[str, ...] = ("last", "0.67", "0.33")
    """Where image features are taken: last, logits, a module's name or a depth in (0, 1]. Others are compared with
    the first, here and below."""
    blurs_px: tuple[float, ...] = (0.0, 4.0)
    """Sd of the blur of the pictures before the network, in pixels."""
    channels: tuple[Literal["all", "posterior"], ...] = ("all", "posterior")
    """Channel sets."""
    normalised: tuple[Literal["both", "image"], ...] = ("both", "image")
    """Embeddings brought to unit length in the loss."""
    trainings: Annotated[Trainings, tyro.conf.arg(name="")] = field(default_factory=Trainings)
    run: Annotated[RunConfig, tyro.conf.arg(name="")] = field(
        default_factory=lambda: RunConfig().with_overrides(TRAINING)
    )


def main(options: Options) -> None:
    """Make the features, train what is missing, score all of it, print the tables."""
    from eegvision.recipes import nice, targets
    from eegvision.study import ensure_demo

    run = options.run
    ensure_demo(run.data.dataset, print_line)
    if run.data.split == "by-image":
        run = replace(run, data=replace(run.data, split=nice.default_split(run.data.dataset)))
    targets.run(
        options.name or f"targets-{Path(run.data.dataset).name}",
        run,
        factors=targets.Factors(
            layers=options.layers,
            blurs_px=options.blurs_px,
            channels=options.channels,
            normalised=options.normalised,
        ),
        n_seeds=options.trainings.seeds,
        cpus=options.trainings.cpus_per_training,
        gpus=options.trainings.gpus_per_training,
        again=options.trainings.again,
        say=print_line,
    )


if __name__ == "__main__":
    sys.exit(run_job(Options, main))
