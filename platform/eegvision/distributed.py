"""Ray around `train.fit`: join or start a cluster, then run the one loop in this process or on several workers."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import queue
import signal
import socket
import threading
import uuid
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
from eegvision.stacked import ENCODERS, family
from eegvision.together import Together
from eegvision.vocab import InputError

_log = logging.getLogger(__name__)

Report = Callable[[dict[str, Any]], None]

# A process that is told to end may take this long to store where it is: less than the 30 s after which pods are killed.
GRACE_S = 20.0

# A trial asks its room for the next report as soon as the last one has been dealt with, so silence means it is gone.
_SILENCE_S = 120.0


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


def fit_here(config: RunConfig, folder: Path, report: Report, *, cpus: float = 1.0) -> train.FitResult:
    """Train one configuration in this process, on its GPU where it was given one.

    A SIGTERM meanwhile lets it store its position before the process ends as it would have done.
    """
    torch.set_num_threads(max(1, int(cpus)))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return _fit(config, folder, report, rank=0, world=1, device=device)


def open_rooms(name: str, count: int, places: int, placement: Placement) -> list[Any]:
    """Start `count` processes, each with a worker's share of a node, in which up to `places` trainings meet.

    They end when whoever called this drops them. Trials find them by `name`; one that dies with its node is started
    again, and its trainings go on from their checkpoints when their trials are.
    """
    room = ray.remote(_Room)
    share: Any = {"num_cpus": placement.cpus, "num_gpus": placement.gpus}
    return [
        room.options(name=f"{name} {number}", max_restarts=-1, max_concurrency=2 * places + 4, **share).remote(
            places, placement.cpus
        )
        for number in range(count)
    ]


def fit_in_room(config: RunConfig, folder: Path, report: Report, *, name: str, count: int) -> None:
    """Train one configuration in the emptiest of the rooms of this name, together with others of its family.

    Raises:
        InputError, TrainingDiverged, Superseded: as `train.fit`.
    """
    rooms = [ray.get_actor(f"{name} {number}") for number in range(count)]
    sizes: list[int] = ray.get([room.size.remote() for room in rooms])
    room, key = rooms[sizes.index(min(sizes))], uuid.uuid4().hex
    try:
        while (told := _answer(room.next.remote(key, config.to_dict(), str(folder)))) is not None:
            report(told)
    finally:  # Tune ends a trial by leaving `report` with SystemExit
        room.leave.remote(key)


def _answer(promised: Any) -> dict[str, Any] | None:
    try:
        return ray.get(promised)
    except ray.exceptions.RayTaskError as error:
        raise _verdict(error) from None


class _Room:
    """A process in which the trainings of several trials take their steps together."""

    def __init__(self, places: int, cpus: float) -> None:
        torch.set_num_threads(max(1, int(cpus)))
        self._together = Together(places)
        self._lock = threading.Lock()
        self._guests: dict[str, _Guest] = {}

    def size(self) -> int:
        """Return how many trainings are here."""
        return len(self._guests)

    def next(self, key: str, settings: dict[str, Any], folder: str) -> dict[str, Any] | None:
        """Return what a training reports next, and let it go on from its last report; None at its end."""
        with self._lock:
            guest = self._guests.get(key)
            if guest is None:
                for other in [other for other in self._guests.values() if other.folder == folder]:
                    other.leave()  # an earlier attempt whose trial is gone
                guest = self._guests[key] = _Guest(folder, RunConfig.from_dict(settings), self._together)
        told = guest.go_on()
        if not isinstance(told, dict):
            self.leave(key)
        if isinstance(told, BaseException):
            raise told
        return told

    def leave(self, key: str) -> None:
        """Forget a training, and end it where it has not ended."""
        with self._lock:
            guest = self._guests.pop(key, None)
        if guest is not None:
            guest.leave()


class _Guest:
    """A training in a thread of its own, which waits after each report until somebody asks for the next one."""

    def __init__(self, folder: str, config: RunConfig, room: Together) -> None:
        self.folder, self._config, self._room = folder, config, room
        self._told: queue.SimpleQueue[dict[str, Any] | BaseException | None] = queue.SimpleQueue()
        self._may_go, self._is_leaving = threading.Semaphore(0), threading.Event()
        self._thread = threading.Thread(target=self._train, daemon=True)

    def go_on(self) -> dict[str, Any] | BaseException | None:
        """Let the training go on, and return what it says next."""
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._may_go.release()
        return self._told.get()

    def leave(self) -> None:
        """End the training; its position is stored if it is within a pass."""
        self._is_leaving.set()
        self._may_go.release()

    def _train(self) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if family(self._config) is None:
            _log.warning(
                "this training cannot be stacked with others (frozen image features, and an EEG encoder among %s): "
                "it and others like it take their steps in turn",
                ", ".join(ENCODERS),
            )
        try:
            _fit(
                self._config, Path(self.folder), self._report, rank=0, world=1, device=device, room=self._room,
                is_leaving=self._is_leaving.is_set,
            )  # fmt: skip
            self._told.put(None)
        except BaseException as error:
            self._told.put(error)

    def _report(self, told: dict[str, Any]) -> None:
        self._told.put(told)
        if not self._may_go.acquire(timeout=_SILENCE_S) or self._is_leaving.is_set():
            raise train.Stopped("nobody asks for this training any more")


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
    config: RunConfig,
    folder: Path,
    report: Report,
    *,
    rank: int,
    world: int,
    device: torch.device,
    room: Together | None = None,
    is_leaving: Callable[[], bool] = lambda: False,
) -> train.FitResult:
    """Load the data, build the model from the seed and hand both to the loop, which takes its steps in `room`."""
    try:
        store = stream.load_store(config.data, picture_px(config))
        train_batches, val_batches = batches(config, store, rank=rank, world=world, device=device)
        manifest = store.manifest
        with room.one_at_a_time if room else contextlib.nullcontext():
            torch.manual_seed(config.seed)
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
        with Ending().awaited() as ending, room.place(config) if room else contextlib.nullcontext() as place:

            def tell(done: train.PassReport) -> None:
                def rest() -> None:
                    ending.resting(lambda: report(_told(done)))

                place.away(rest) if place else rest()

            return train.fit(
                config,
                model,
                train_batches,
                val_batches,
                device=device,
                folder=folder,
                report=tell,
                should_stop=lambda: ending.is_asked() or is_leaving(),
                take_step=place.step if place else None,
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
