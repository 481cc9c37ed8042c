"""Ray around `train.fit`: join or start a cluster, then run the one loop in this process or on several workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch

from eegvision import features, stream, train
from eegvision.config import RunConfig
from eegvision.encoders.joint import build_joint
from eegvision.vocab import InputError

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where one training runs: how many workers, and what each of them holds of a node."""

    workers: int = 1
    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.workers < 1 or self.cpus < 0 or self.gpus < 0:
            raise InputError(f"a training needs at least one worker and no negative resource; got {self}")
        if self.workers > 1 and 0 < self.gpus < 1:
            raise InputError(
                f"{self.workers} workers with {self.gpus} GPU each would share one GPU, which its collectives refuse; "
                "give each worker a whole GPU or use one worker"
            )


def warm_up(placement: Placement, count: int) -> None:
    """Have `count` processes import the training loop (seconds each) while the driver is busy with other things.

    Ray hands an idle process of its pool to the next task or trial. Only without GPUs: Ray says which GPU a process
    may see when it gives it work, and a process that has asked for GPUs before would not look again.
    """
    if placement.gpus == 0 and placement.workers == 1:
        for _ in range(count):
            ray.remote(_import_training).options(num_cpus=placement.cpus).remote()


def _import_training() -> None:
    import eegvision.train  # noqa: F401


def fit_here(config: RunConfig, folder: Path, report: Report, *, cpus: float = 1.0) -> train.FitResult:
    """Train one configuration in this process, on its GPU where it was given one."""
    torch.set_num_threads(max(1, int(cpus)))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return _fit(config, folder, report, rank=0, world=1, device=device)


def fit_on_workers(config: RunConfig, folder: Path, placement: Placement) -> None:
    """Train one configuration on several Ray Train workers with one global batch, inside a trial of Ray Tune.

    The workers' reports reach Tune; results are in `folder`, as for one process.

    Raises:
        InputError: settings and data do not fit each other.
        TrainingDiverged: as `train.fit`.
    """
    from ray.train import RunConfig as TrainRunConfig
    from ray.train import ScalingConfig, WorkerGroupError
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    resources = {"CPU": placement.cpus} | ({"GPU": placement.gpus} if placement.gpus else {})
    scaling: Any = ScalingConfig(
        num_workers=placement.workers, use_gpu=placement.gpus > 0, resources_per_worker=resources
    )
    callbacks: list[Any] = [TuneReportCallback()]
    run: Any = TrainRunConfig(name="workers", storage_path=str(folder), callbacks=callbacks)
    settings = {"config": config.to_dict(), "folder": str(folder), "cpus": placement.cpus}
    try:
        TorchTrainer(_worker, train_loop_config=settings, scaling_config=scaling, run_config=run).fit()
    except WorkerGroupError as error:
        raise _final_verdict(error.worker_failures.values()) or error from None


def _final_verdict(failures: Iterable[BaseException]) -> Exception | None:
    """Return a failure that another attempt would only repeat, from inside whatever Ray wrapped it in."""
    for failure in failures:
        seen: BaseException | None = failure
        while seen is not None:
            if isinstance(seen, InputError | train.TrainingDiverged):
                return seen
            seen = getattr(seen, "_base_exc", None) or getattr(seen, "cause", None) or seen.__cause__
    return None


def _worker(settings: dict[str, Any]) -> None:
    import ray.train
    from ray.train.torch import get_device

    torch.set_num_threads(max(1, int(settings["cpus"])))
    context = ray.train.get_context()
    _fit(
        RunConfig.from_dict(settings["config"]),
        Path(settings["folder"]),
        ray.train.report,
        rank=context.get_world_rank(),
        world=context.get_world_size(),
        device=get_device(),
    )


def picture_px(config: RunConfig) -> int | None:
    """Return the side of the pictures a training reads; None where it reads none, but features or EEG alone."""
    return None if config.loss.arm == "eeg" or config.image.is_frozen else config.image.input_px


def batches(
    config: RunConfig, store: stream.Store, *, rank: int = 0, world: int = 1, device: torch.device | str = "cpu"
) -> tuple[stream.Batches, stream.Batches]:
    """Return the training and validation batches of one worker, for a store loaded with pictures of `picture_px`.

    Frozen features that are not in the cache yet are made here (`features.warm` makes them over the cluster).

    Raises:
        InputError: batch, workers and data do not fit each other, or features cannot be had.
    """
    feature_MF = features.image_features(config)
    text_MF = features.text_features(config) if config.loss.text_weight else None
    train_batches, val_batches = (
        stream.Batches(
            store,
            side,
            config=config.data,
            size_px=picture_px(config),
            feature_MF=feature_MF,
            text_MF=text_MF,
            batch_size=config.train.batch_size,
            seed=config.seed,
            rank=rank,
            world=world,
            device=device,
            training=side == "train",
        )
        for side in ("train", "val")
    )
    return train_batches, val_batches


def _fit(
    config: RunConfig, folder: Path, report: Report, *, rank: int, world: int, device: torch.device
) -> train.FitResult:
    """Load the data, build the model from the seed and hand both to the loop."""
    store = stream.load_store(config.data, picture_px(config))
    train_batches, val_batches = batches(config, store, rank=rank, world=world, device=device)
    torch.manual_seed(config.seed)
    manifest = store.manifest
    model = build_joint(
        config,
        manifest.n_chans,
        manifest.n_times,
        manifest.sfreq_hz,
        positions_m=manifest.montage.positions_m,
        subjects=store.trained_subjects if config.eeg.subjects else (),
        n_features=train_batches.n_features,
        n_classes=len(manifest.classes),
    )
    return train.fit(
        config,
        model,
        train_batches,
        val_batches,
        device=device,
        folder=folder,
        report=lambda done: report({"pass": done.number, "objective": done.objective, **done.metrics}),
    )
