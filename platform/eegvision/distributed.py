"""Ray around `train.fit`: join or start a cluster, then run the one loop in this process or on several workers."""

from __future__ import annotations

import atexit
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch

from eegvision import failures, features, parts, stream, train
from eegvision.config import RunConfig
from eegvision.encoders.joint import build_joint
from eegvision.resume import Superseded
from eegvision.vocab import InputError

Report = Callable[[dict[str, Any]], None]

# A process that is told to end may take this long to store where it is: less than the 30 s after which pods are killed.
GRACE_S = 20.0


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
    """Train one configuration in this process, on its GPU where it was given one.

    A SIGTERM meanwhile lets it store its position before the process ends as it would have done.
    """
    torch.set_num_threads(max(1, int(cpus)))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return _fit(config, folder, report, rank=0, world=1, device=device)


def fit_on_workers(config: RunConfig, folder: Path, placement: Placement) -> None:
    """Train one configuration on several Ray Train workers with one global batch, inside a trial of Ray Tune.

    The workers' reports reach Tune; results are in `folder`, as for one process. Where the memory of a GPU was too
    small the workers are started again, and go on with batches in more parts.

    Raises:
        InputError: settings and data do not fit each other, or the GPUs are too small.
        TrainingDiverged, Superseded: as `train.fit`.
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
    while True:
        try:
            TorchTrainer(_worker, train_loop_config=settings, scaling_config=scaling, run_config=run).fit()
        except WorkerGroupError as error:
            verdict = _verdict(error)
            if not isinstance(verdict, parts.NeedsMoreParts):
                raise verdict from None
        else:
            return


def _verdict(error: BaseException) -> BaseException:
    """Return what decides how to go on, from inside whatever Ray wrapped it in; or else the error itself."""
    decisive = (InputError, train.TrainingDiverged, Superseded, parts.NeedsMoreParts)
    return next((inner for inner in failures.chain(error) if isinstance(inner, decisive)), error)


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
    try:
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
        with Ending().awaited() as ending:
            return train.fit(
                config,
                model,
                train_batches,
                val_batches,
                device=device,
                folder=folder,
                report=lambda done: ending.resting(lambda: report(_told(done))),
                should_stop=ending.is_asked,
            )
    except torch.OutOfMemoryError as error:  # smaller parts of batches help the loop; this came from elsewhere
        raise parts.GpuOutOfMemoryError(
            "the GPU's memory does not hold data and weights; set data.residency to 'host', choose smaller encoders "
            f"or give each training a whole GPU. The GPU said: {parts.first_line(error)}"
        ) from None


def _told(done: train.PassReport) -> dict[str, Any]:
    """Return what the driver learns of a pass: its metrics, and who stored it where."""
    last, best = done.last, done.best_stored
    return {
        "pass": done.number,
        "objective": done.objective,
        **done.metrics,
        "attempt": done.attempt,
        "parts": done.parts,
        "fell_back": done.fell_back,
        "checkpoint": last.path if last else None,
        "checkpoint_sha256": last.sha256 if last else None,
        "best_checkpoint": best.path if best else None,
        "best_checkpoint_sha256": best.sha256 if best else None,
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }


class Ending:
    """Whether SIGTERM has told this process to end, and time for a training to store its position before it does.

    In the main thread the signal sets a flag meanwhile, and does what it always did once the training has stopped.
    Tune and Train run the loop in a thread of its own. There the signal makes the main thread leave, which ends the
    process; a function registered for that moment holds it back until the loop has stored all it has.
    """

    def __init__(self) -> None:
        self._asked, self._at_rest = threading.Event(), threading.Event()

    def is_asked(self) -> bool:
        """Say whether the process is to end."""
        return self._asked.is_set()

    def resting(self, report: Callable[[], None]) -> None:
        """Report, which may wait for the driver; meanwhile all is stored and the process free to go."""
        self._at_rest.set()
        report()
        self._at_rest.clear()

    @contextmanager
    def awaited(self) -> Iterator[Ending]:
        """Look out for the signal while the block runs."""
        if threading.current_thread() is threading.main_thread():
            before = signal.signal(signal.SIGTERM, lambda *_: self._asked.set())
            try:
                yield self
            finally:
                signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
                if self.is_asked():
                    signal.raise_signal(signal.SIGTERM)
            return
        atexit.register(self.hold_back)
        try:
            yield self
        finally:
            self._at_rest.set()
            atexit.unregister(self.hold_back)

    def hold_back(self) -> None:
        """Ask for the end and wait until all is stored, but no longer than `GRACE_S`."""
        self._asked.set()
        self._at_rest.wait(GRACE_S)
