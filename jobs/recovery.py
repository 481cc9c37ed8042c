"""Do the analyses find what was planted? The proof, on simulated recordings, with controls that must find nothing.

    python jobs/recovery.py                                    # 3 recordings, 9 trainings; about 20 minutes on 2 cores
    python jobs/recovery.py --name gru --eeg.encoder palazzo-gru --train.max-passes 30 --seeds 5

For every seed a recording is simulated whose sources, intervals, objects and features are known, and three models are
trained: as it should be, not at all, and on pictures and segments paired at random. Saliency, channels, intervals and
associations of all three are scored against the truth. Ends with a table, figures and a page in `RUN/recovery/`. The
same command again goes on after an interruption; with more seeds it adds those.
"""

import sys
from dataclasses import dataclass, field
from typing import Annotated

import _checkout  # noqa: F401  (before eegvision)
import tyro

from eegvision.cli import print_line, run_job
from eegvision.config import RunConfig
from eegvision.inspection.recovery_settings import RecoverySettings

TRAINING = {
    "data.val_fraction": 0.2,
    "data.test_fraction": 0.05,
    "eeg.encoder": "tsconv",
    "eeg.embed_dim": 64,
    "image.embed_dim": 64,
    "image.size_px": 64,
    "loss.name": "info_nce",
    "train.max_passes": 15,
    "train.patience": None,
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Plant, train, look inside, compare."""

    name: str = "recovery"
    """Name of the run; its recordings are called NAME-SEED."""
    cpus_per_worker: float = 1.0
    """CPUs of each training and each worker."""
    gpus_per_worker: float | None = None
    """GPUs of each, fractions allowed; by default 1 where the cluster has GPUs, else 0."""
    settings: Annotated[RecoverySettings, tyro.conf.arg(name="")] = field(default_factory=RecoverySettings)
    run: Annotated[RunConfig, tyro.conf.arg(name="")] = field(
        default_factory=lambda: RunConfig().with_overrides(TRAINING)
    )


def main(options: Options) -> None:
    """Prove it, or show that it does not hold."""
    from eegvision.inspection.recovery import run_recovery

    run_recovery(
        options.name,
        options.run,
        settings=options.settings,
        cpus=options.cpus_per_worker,
        gpus=options.gpus_per_worker,
        say=print_line,
    )


if __name__ == "__main__":
    sys.exit(run_job(Options, main))
