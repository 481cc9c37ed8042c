"""NICE's table: zero-shot retrieval within and across subjects, for the encoders of the paper.

    python jobs/nice.py --dataset things --image.encoder file --image.features "clip_feature_maps_*.npy" \\
           --image.weights none --image.projector none --image.embed-dim 768 --eeg.embed-dim 768
    python jobs/nice.py --dataset demo --image.encoder small --image.weights none --train.batch-size 64

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
from eegvision.config import EegEncoderName, RunConfig

# The paper's training; `data.split` follows from the data set.
PUBLISHED = {
    "optim.name": "adam",
    "optim.lr": 2e-4,
    "optim.beta1": 0.5,
    "train.batch_size": 1000,
    "train.max_passes": 200,
    "train.metric": "val/loss",
    "loss.name": "info_nce",
    "loss.learn_temperature": False,
    "data.normalise": "none",
    "data.repetitions": 0,
    # NICE took CLIP's features; these need no extra package and no file. `--image.encoder file` reads NICE's own.
    "image.encoder": "vit_b_16",
    "image.frozen": True,
    "image.weights": "imagenet",
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Zero-shot retrieval within and across subjects, as in NICE; the same command again goes on."""

    name: str | None = None
    """Name of the run; by default nice-DATASET."""
    settings: tuple[Literal["within", "across"], ...] = ("within", "across")
    """Training on the tested subject, or on all others."""
    eegs: tuple[EegEncoderName, ...] = ("tsconv", "nice-sa", "nice-ga")
    """EEG encoders."""
    gallery: Literal["exact-image", "class-centre", "class-centre-without-stimulus"] = "exact-image"
    """What is retrieved: the picture that was shown, or its class."""
    trainings: Annotated[Trainings, tyro.conf.arg(name="")] = field(default_factory=Trainings)
    run: Annotated[RunConfig, tyro.conf.arg(name="")] = field(
        default_factory=lambda: RunConfig().with_overrides(PUBLISHED)
    )


def main(options: Options) -> None:
    """Train what is missing, score all of it, print the tables."""
    from eegvision.recipes import nice
    from eegvision.study import ensure_demo
    from eegvision.vocab import InputError

    if not options.settings or not options.eegs:
        raise InputError("give at least one setting and one EEG encoder")
    run = options.run
    ensure_demo(run.data.dataset, print_line)
    if run.data.split == "by-image":
        run = replace(run, data=replace(run.data, split=nice.default_split(run.data.dataset)))
    nice.run(
        options.name or f"nice-{Path(run.data.dataset).name}",
        run,
        settings=options.settings,
        eegs=options.eegs,
        gallery=options.gallery,
        n_seeds=options.trainings.seeds,
        cpus=options.trainings.cpus_per_training,
        gpus=options.trainings.gpus_per_training,
        again=options.trainings.again,
        say=print_line,
    )


if __name__ == "__main__":
    sys.exit(run_job(Options, main))
