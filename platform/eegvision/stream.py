"""Shards to batches of tensors. Where segments live meanwhile (device, host, stream) is decided here and nowhere else.

    shards --read, decode, normalise--> arrays in Ray's object store, shared by all processes --gather, crop--> batches

What fits into memory is read once per job, every picture decoded once: by Ray Data over the whole cluster where that
pays, else by threads. What does not fit is streamed through Ray Data again in every pass. Without Ray the same code
gives the same arrays. Ray and torch are imported where they are used: a notebook needs no Ray, and the processes that
read and decode start without torch (seconds each).
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import numpy as np
import psutil
import pyarrow as pa

from eegvision.config import DataConfig
from eegvision.ingest import pieces as reading
from eegvision.ingest import shards
from eegvision.ingest.pieces import Piece, Rows
from eegvision.ingest.shards import Manifest
from eegvision.ingest.splits import Split, split
from eegvision.vocab import InputError, SplitName

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
Normalise = Literal["segment-zscore", "none"]
Window = tuple[tuple[Piece, ...], np.ndarray]  # row groups, and the order to hand their rows over in

# torchvision's ImageNet statistics, of values in [0, 1].
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)

# Palazzo et al. cut their ten crops from an image resized to 1.1 times the input.
_RESIZE = 1.1
_CENTRE = 4  # number of the crop in the middle

_DEVICE_SHARE = 0.4  # of the free memory of a GPU; models and activations need the rest
_STORE_SHARE = 0.6  # of the smallest object store in the cluster
_HOST_SHARE = 0.4  # of all memory, without Ray. Not of what is free just now: a rerun must decide alike
# Starting Ray Data took 8 to 30 s on 2 cores (five processes import it); two threads read about this much meanwhile.
_SPREAD_BYTES = 1 << 30
_READ_BYTES = 32 << 20  # of EEG per task when everything is read once
_WINDOW_GROUPS = 16  # row groups mixed with each other when streaming: 1,024 segments, 230 MB at 128 x 440
_IN_FLIGHT_BYTES = 1 << 30  # of the object store that one pipeline may fill ahead of its reader
_SEED_ORDER, _SEED_CROPS, _SEED_WINDOWS = 1, 2, 3


@dataclass(frozen=True, eq=False)
class Batch:
    """Paired EEG and images of one optimiser step (this worker's part of it).

    `eeg_BCT` is normalised float32; `image_B3HW` float32 with ImageNet's mean and standard deviation taken out;
    `image_B`, `row_B` are rows of the store's images and segments; `label_B` is -1 where there is no class.
    """

    eeg_BCT: torch.Tensor
    image_B3HW: torch.Tensor
    image_B: torch.Tensor
    label_B: torch.Tensor
    row_B: torch.Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Store:
    """A data set as read-only arrays, N segments of the subjects in use and M images, in the order of the shards.

    `eeg_NCT` is float32, normalised as configured, or None where it is streamed from `pieces` every pass.
    `images_M3HH` is uint8: the central square, H = 1.1 times the input size so that ten crops can be cut from it.
    `split` holds rows of this store. The arrays may lie in Ray's object store; fetch them with `load_store` in each
    process instead of pickling them.
    """

    manifest: Manifest
    pieces: tuple[Piece, ...]
    eeg_NCT: np.ndarray | None
    image_N: np.ndarray
    label_N: np.ndarray
    subject_N: np.ndarray
    segment_id_N: np.ndarray
    split: Split
    images_M3HH: np.ndarray
    image_id_M: np.ndarray
    label_M: np.ndarray


def load_store(config: DataConfig, size_px: int) -> Store:
    """Read a data set for encoders whose input images are `size_px` wide.

    Where this process is connected to Ray, what was read is kept for the job: later calls, in any process, cost
    milliseconds and no memory. It is kept as long as the process that called first lives, so call once in the driver
    before starting trials.

    Raises:
        InputError: the data set is missing, damaged or lacks a picture, or the split cannot be made.
    """
    root = shards.dataset_root(config.dataset)
    manifest = shards.read_manifest(root)
    segments = shards.read_segments(root, manifest)
    images = shards.read_images(root, manifest)
    image_N = _join(segments, images, root)
    parts = split(
        config.split,
        segments,
        images,
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        seed=config.split_seed,
        held_out=config.held_out,
        subjects=config.subjects,
        published=manifest.published,
    )
    subject_N = np.array(segments["subject"].to_pylist())
    sided = np.concatenate(list(parts.rows.values()))
    subjects = np.unique(subject_N[sided])
    kept = np.flatnonzero(np.isin(subject_N, subjects))
    found = reading.among(reading.all_pieces(root, manifest, "segments"), kept)
    pieces = tuple(replace(piece, row_n=np.searchsorted(kept, piece.row_n)) for piece in found)

    shape = (len(kept), manifest.n_chans, manifest.n_times)
    is_streamed = config.residency == "stream" or (
        config.residency == "auto" and 4 * int(np.prod(shape)) > _host_budget_bytes()
    )
    data = (manifest.fingerprint, str(root))
    read_eeg = partial(_read_all_eeg, pieces, shape, config.normalise)
    read_images = partial(_read_all_images, root, manifest, round(_RESIZE * size_px))
    label_M = images["label"].to_numpy().astype(np.int64)
    return Store(
        manifest=manifest,
        pieces=pieces,
        eeg_NCT=None if is_streamed else _shared((*data, "eeg", config.normalise, *subjects.tolist()), read_eeg),
        image_N=image_N[kept],
        label_N=label_M[image_N[kept]],
        subject_N=subject_N[kept],
        segment_id_N=np.array(segments["segment_id"].to_pylist())[kept],
        split=replace(parts, rows={side: np.searchsorted(kept, rows) for side, rows in parts.rows.items()}),
        images_M3HH=_shared((*data, "images", str(size_px)), read_images),
        image_id_M=np.array(images["image_id"].to_pylist()),
        label_M=label_M,
    )


class Batches:
    """Batches of one side of a store's split, for one of `world` workers.

    Training: every pass is a new order drawn from (seed, pass); `batch_size` counts all workers together, each takes
    its contiguous slice of every global batch, and the last, incomplete batch is left out. So the same global batches
    come whatever `world` is, unless segments are streamed: then a pass goes through shuffled row groups, mixed 16 at
    a time, and who reads what depends on `world` too. Validation: stored order, nothing left out, each worker a
    contiguous share.

    Raises:
        InputError: the side has too few segments, or the batch cannot be shared equally.
    """

    def __init__(
        self,
        store: Store,
        split_name: SplitName,
        *,
        config: DataConfig,
        size_px: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        training: bool,
    ) -> None:
        import torch

        assert 0 <= rank < world, (rank, world)
        assert store.images_M3HH.shape[-1] == round(_RESIZE * size_px), "the store was loaded for another input size"
        self.store = store
        self.device = torch.device(device)
        self._rows = store.split.rows[split_name]
        self._seed, self._rank, self._world, self._is_training = seed, rank, world, training
        self._size_px, self._normalise = size_px, config.normalise
        self._has_ten_crops = training and config.crops == "ten"
        if training:
            _check_sizes(len(self._rows), batch_size, world)
        self._local = batch_size // world if training else max(1, batch_size // world)
        self._n_steps = len(self._rows) // batch_size

        eeg_home, image_home = _homes(store, config.residency, self.device)
        self._images = _tensor(store.images_M3HH).to(image_home)
        self._eeg = None if store.eeg_NCT is None else _tensor(store.eeg_NCT).to(eeg_home)
        if self._eeg is None:
            self._pieces = reading.among(store.pieces, self._rows)
        self._mean_311 = torch.tensor([255 * mean for mean in IMAGE_MEAN]).reshape(3, 1, 1).to(image_home)
        self._scale_311 = torch.tensor([1 / (255 * std) for std in IMAGE_STD]).reshape(3, 1, 1).to(image_home)

    def __len__(self) -> int:
        """Return the number of batches of a pass; in training it is equal on every worker."""
        return self._n_steps if self._is_training else -(-len(self._share()) // self._local)

    @property
    def residency(self) -> Literal["device", "host", "stream"]:
        """Where the segments are taken from; on a CPU the device is the host."""
        if self._eeg is None:
            return "stream"
        return "device" if self._eeg.device.type == self.device.type else "host"

    @property
    def n_images(self) -> int:
        """Number of different images on this side, over all workers."""
        return len(np.unique(self.store.image_N[self._rows]))

    def passes(self, number: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of pass `number`, without the first `start_step`: what an interrupted pass still owes."""
        parts = (self._streamed if self._eeg is None else self._gathered)(number, start_step)
        crop_N = self._crops(number)
        batches = (self._batch(row_B, eeg_BCT, crop_N[row_B]) for row_B, eeg_BCT in parts)
        if self.device.type != "cpu" and self.residency != "device":
            batches = _ahead(map(_pinned, batches) if self.device.type == "cuda" else batches)
        return map(self._moved, batches)

    def images(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield (image_B3HW, image_B) over every different image of this side once, central crop, on every worker."""
        import torch

        image_M = np.unique(self.store.image_N[self._rows])
        for image_B in np.split(image_M, range(batch_size, len(image_M), batch_size)):
            view_B3HW = self._cropped(image_B, np.full(len(image_B), _CENTRE))
            yield view_B3HW.to(self.device), torch.from_numpy(image_B).to(self.device)

    def _share(self) -> np.ndarray:
        return np.array_split(self._rows, self._world)[self._rank]

    def _gathered(self, number: int, start_step: int) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        import torch

        assert self._eeg is not None
        if self._is_training:
            order = np.random.default_rng([self._seed, number, _SEED_ORDER]).permutation(self._rows)
            steps = order[: self._n_steps * self._local * self._world].reshape(-1, self._world, self._local)
            own = steps[:, self._rank].reshape(-1)
        else:
            own = self._share()
        for first in range(start_step * self._local, len(own), self._local):
            row_B = own[first : first + self._local]
            yield row_B, self._eeg.index_select(0, torch.from_numpy(row_B).to(self._eeg.device))

    def _streamed(self, number: int, start_step: int) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        import torch

        windows = self._windows(number)
        n_skipped = start_step * self._local
        while windows and len(windows[0][1]) <= n_skipped:
            n_skipped -= len(windows.pop(0)[1])
        blocks = in_order(windows, partial(_read_window, normalise=self._normalise), on_cluster=_ray_is_up())
        for row_B, eeg_BCT in _rebatched(blocks, self._local, n_skipped):
            yield row_B, torch.from_numpy(eeg_BCT)

    def _windows(self, number: int) -> list[Window]:
        """Cut this worker's share of a pass into windows: some row groups, and the order to hand their rows over in.

        The row groups in the pass's order, laid end to end, are cut into equal shares, one per worker; a group on a
        cut is read by both neighbours, each of its segments used by one.
        """
        pieces, keys = self._pieces, [self._seed, number]
        if self._is_training:
            order = np.random.default_rng([*keys, _SEED_ORDER]).permutation(len(pieces))
            pieces = [pieces[n] for n in order]
            n_own = self._n_steps * self._local
            pieces = reading.cut(pieces, self._rank * n_own, (self._rank + 1) * n_own)
        else:
            pieces = reading.among(pieces, self._share())
        windows: list[Window] = []
        for first in range(0, len(pieces), _WINDOW_GROUPS):
            window = tuple(pieces[first : first + _WINDOW_GROUPS])
            order = np.arange(sum(len(piece.row_n) for piece in window))
            if self._is_training:
                order = np.random.default_rng([*keys, _SEED_WINDOWS, self._rank, first]).permutation(order)
            windows.append((window, order))
        return windows

    def _crops(self, number: int) -> np.ndarray:
        """Draw the crop of every segment, so that it does not depend on which worker meets the segment, or when."""
        n_segments = len(self.store.image_N)
        if not self._has_ten_crops:
            return np.full(n_segments, _CENTRE)
        return np.random.default_rng([self._seed, number, _SEED_CROPS]).integers(10, size=n_segments)

    def _batch(self, row_B: np.ndarray, eeg_BCT: torch.Tensor, crop_B: np.ndarray) -> Batch:
        import torch

        image_B = self.store.image_N[row_B]
        return Batch(
            eeg_BCT=eeg_BCT,
            image_B3HW=self._cropped(image_B, crop_B),
            image_B=torch.from_numpy(image_B),
            label_B=torch.from_numpy(self.store.label_N[row_B]),
            row_B=torch.tensor(row_B),
        )

    def _cropped(self, image_B: np.ndarray, crop_B: np.ndarray) -> torch.Tensor:
        crop = crop_by_slices if self._images.device.type == "cpu" else crop_by_index
        pixel_B3HW = crop(self._images, image_B, crop_B, self._size_px)
        return pixel_B3HW.sub_(self._mean_311).mul_(self._scale_311)

    def _moved(self, batch: Batch) -> Batch:
        return Batch(**{name: tensor.to(self.device, non_blocking=True) for name, tensor in vars(batch).items()})


def crop_by_slices(images_M3HH: torch.Tensor, image_B: np.ndarray, crop_B: np.ndarray, size_px: int) -> torch.Tensor:
    """Cut one of ten crops (0-3 corners, 4 centre, 5-9 their mirror images) from each chosen image, as float32.

    One copy per image, which is quickest on a CPU.
    """
    import torch

    images = images_M3HH.numpy()
    pixel_B3HW = np.empty((len(image_B), 3, size_px, size_px), dtype=np.float32)
    corners = (column.tolist() for column in (image_B, *_corners(images.shape[-1], crop_B, size_px)))
    for view_3HW, image, top, left, is_mirrored in zip(pixel_B3HW, *corners, strict=True):
        crop_3HW = images[image, :, top : top + size_px, left : left + size_px]
        view_3HW[:] = crop_3HW[..., ::-1] if is_mirrored else crop_3HW
    return torch.from_numpy(pixel_B3HW)


def crop_by_index(images_M3HH: torch.Tensor, image_B: np.ndarray, crop_B: np.ndarray, size_px: int) -> torch.Tensor:
    """Cut the same crops with one gather: quickest on a GPU, where every call costs, and slow on a CPU."""
    import torch

    top_B, left_B, is_mirrored_B = _corners(images_M3HH.shape[-1], crop_B, size_px)
    along = np.arange(size_px)
    row_BH = top_B[:, None] + along
    column_BW = left_B[:, None] + np.where(is_mirrored_B[:, None], along[::-1], along)
    indices = (
        image_B[:, None, None, None],
        np.arange(3)[:, None, None],
        row_BH[:, None, :, None],
        column_BW[:, None, None],
    )
    return images_M3HH[tuple(torch.from_numpy(index).to(images_M3HH.device) for index in indices)].to(torch.float32)


def _corners(side_px: int, crop_B: np.ndarray, size_px: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    far, centre = side_px - size_px, round((side_px - size_px) / 2)
    top = np.array([0, 0, far, far, centre])
    left = np.array([0, far, 0, far, centre])
    return top[crop_B % 5], left[crop_B % 5], crop_B >= 5


def in_order(plan: Sequence[T], work: Callable[[T], Rows], *, on_cluster: bool) -> Iterator[Rows]:
    """Yield the rows that `work` makes of each item of `plan`, in the plan's order, reading ahead within bounds.

    On the cluster this is a Ray Data pipeline, its tasks spread over the nodes; a large result may come in several
    parts. Otherwise threads of this process do the same work.

    Raises:
        InputError: raised by `work`.
    """
    if on_cluster and plan:  # Ray Data refuses an empty plan
        yield from _in_order_on_cluster(plan, work)
        return
    n_threads = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(n_threads) as pool:
        ahead: deque[Future[Rows]] = deque()
        for item in plan:
            ahead.append(pool.submit(work, item))
            if len(ahead) > n_threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _in_order_on_cluster(plan: Sequence[T], work: Callable[[T], Rows]) -> Iterator[Rows]:
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it reports every pipeline; failures arrive as exceptions
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    context.execution_options.preserve_order = True
    limits = ray.data.ExecutionResources.for_limits(object_store_memory=_IN_FLIGHT_BYTES)
    context.execution_options.resource_limits = limits
    n_tasks = min(len(plan), max(1, int(ray.cluster_resources().get("CPU", 1))))
    with ray.data.DataContext.current(context):
        items = ray.data.from_items([{"item": n} for n in range(len(plan))], override_num_blocks=len(plan))
    # Tasks that claimed CPUs would wait for ever for trials that hold them all and wait for the data: hence none.
    rows = items.map_batches(
        lambda batch: work(plan[int(batch["item"][0])]),
        batch_size=None,
        num_cpus=0,
        compute=ray.data.TaskPoolStrategy(size=n_tasks),
    )
    try:
        for batch in rows.iter_batches(batch_size=None, batch_format="numpy"):
            yield cast("Rows", batch)
    except ray.exceptions.RayTaskError as error:
        raise _cause(error) from None


def _ray_is_up() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


class _Shelf:
    """Actor: arrays in Ray's object store, each made once for all processes of a job."""

    def __init__(self) -> None:
        self._refs: dict[tuple[str, ...], Any] = {}
        self._locks: defaultdict[tuple[str, ...], threading.Lock] = defaultdict(threading.Lock)

    def get(self, key: tuple[str, ...], make: Callable[[], np.ndarray]) -> list[Any]:
        import ray

        with self._locks[key]:
            if key not in self._refs:
                self._refs[key] = ray.put(make())
        return [self._refs[key]]


@cache  # an actor lives as long as its creator keeps the handle
def _shelf(cluster: str, job_id: str) -> Any:
    import ray.util.scheduling_strategies

    assert cluster == ray.get_runtime_context().gcs_address, "a handle is of use in its own cluster only"
    roomiest = max(_working_nodes(), key=_store_bytes)["NodeID"]
    options = {"name": f"arrays-{job_id}", "namespace": "eegvision", "get_if_exists": True, "max_concurrency": 8}
    place = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(roomiest, soft=True)
    return ray.remote(_Shelf).options(**options, num_cpus=0, scheduling_strategy=place).remote()


def _working_nodes() -> list[dict[str, Any]]:
    """List the nodes that trials can run on: not a head that only keeps the books, with little memory."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    return [node for node in alive if node["Resources"].get("CPU")] or alive


def _store_bytes(node: dict[str, Any]) -> float:
    return node["Resources"].get("object_store_memory", 0.0)


def _shared(key: tuple[str, ...], make: Callable[[], np.ndarray]) -> np.ndarray:
    """Return the array that `make` makes; on Ray the one every process of this job shares under `key`."""
    if not _ray_is_up():
        return make()
    import ray

    context = ray.get_runtime_context()
    for _ in range(3):
        try:
            return ray.get(ray.get(_shelf(context.gcs_address, context.get_job_id()).get.remote(key, make))[0])
        except ray.exceptions.RayTaskError as error:
            raise _cause(error) from None
        except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError):
            _shelf.cache_clear()  # the process that made the shelf has ended, and its arrays with it: make them again
    raise RuntimeError(f"the arrays of {key} were lost three times; are processes being killed for memory?")


def _cause(error: Exception) -> Exception:
    """Return the InputError that a Ray task raised, or the task's error itself."""
    seen: BaseException | None = error
    while seen is not None and type(seen) is not InputError:
        seen = getattr(seen, "cause", None) or seen.__cause__
    return seen if isinstance(seen, Exception) else error


def _read_all_eeg(pieces: Sequence[Piece], shape: tuple[int, int, int], normalise: Normalise) -> np.ndarray:
    eeg_NCT = np.empty(shape, dtype=np.float32)
    per_task = -(-_READ_BYTES * len(pieces) // eeg_NCT.nbytes)
    plan = [pieces[first : first + per_task] for first in range(0, len(pieces), per_task)]
    work = partial(reading.read_eeg, normalise=normalise)
    for rows in in_order(plan, work, on_cluster=_is_worth_spreading(eeg_NCT)):
        eeg_NCT[rows["row"]] = rows["eeg"]
    return eeg_NCT


def _read_all_images(root: Path, manifest: Manifest, side_px: int) -> np.ndarray:
    images_M3HH = np.empty((manifest.n_images, 3, side_px, side_px), dtype=np.uint8)
    plan, work = reading.all_pieces(root, manifest, "images"), partial(reading.read_images, side_px=side_px)
    for rows in in_order(plan, work, on_cluster=_is_worth_spreading(images_M3HH)):
        images_M3HH[rows["row"]] = rows["image"]
    return images_M3HH


def _is_worth_spreading(array: np.ndarray) -> bool:
    return _ray_is_up() and array.nbytes >= _SPREAD_BYTES


def _read_window(window: Window, normalise: Normalise) -> Rows:
    pieces, order = window
    return {name: column[order] for name, column in reading.read_eeg(pieces, normalise).items()}


def _rebatched(blocks: Iterable[Rows], size: int, n_skipped: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cut blocks of rows and EEG into batches of `size` rows, after the first `n_skipped` rows."""
    row_n, eeg_nCT = np.empty(0, dtype=np.int64), None
    for block in blocks:
        row_n = np.concatenate([row_n, block["row"]])
        eeg_nCT = block["eeg"].copy() if eeg_nCT is None else np.concatenate([eeg_nCT, block["eeg"]])
        first = min(n_skipped, len(row_n))
        n_skipped -= first
        while first + size <= len(row_n):
            yield row_n[first : first + size], eeg_nCT[first : first + size]
            first += size
        row_n, eeg_nCT = row_n[first:], eeg_nCT[first:]
    if len(row_n):
        assert eeg_nCT is not None
        yield row_n, eeg_nCT


def _ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Make each batch while its predecessor is in use."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = pool.submit(next, batches, None)
            yield batch


def _pinned(batch: Batch) -> Batch:
    """Copy what is not on the device to memory that it can fetch from by itself."""
    return Batch(
        **{name: part.pin_memory() if part.device.type == "cpu" else part for name, part in vars(batch).items()}
    )


def _tensor(array: np.ndarray) -> torch.Tensor:
    import warnings

    import torch

    with warnings.catch_warnings():
        # torch has no read-only tensors and warns; these are only ever read.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def _homes(store: Store, residency: str, device: torch.device) -> tuple[torch.device, torch.device]:
    """Return where the EEG and the images stay: on the device as far as they fit (asked for: in any case)."""
    import torch

    cpu = torch.device("cpu")
    if device.type == "cpu":
        return cpu, cpu
    room = _DEVICE_SHARE * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    eeg_bytes = 0 if store.eeg_NCT is None else store.eeg_NCT.nbytes
    fits_all = eeg_bytes + store.images_M3HH.nbytes <= room
    if residency == "device" or (residency == "auto" and fits_all):
        return device, device
    return cpu, device if store.images_M3HH.nbytes <= room else cpu


def _host_budget_bytes() -> float:
    if _ray_is_up():
        return _STORE_SHARE * min(map(_store_bytes, _working_nodes()))
    return _HOST_SHARE * psutil.virtual_memory().total


def _join(segments: pa.Table, images: pa.Table, root: Path) -> np.ndarray:
    """Return the row in `images` of every segment's image."""
    row_of = {image_id: row for row, image_id in enumerate(images["image_id"].to_pylist())}
    names = segments["image_id"].to_pylist()
    for n, name in enumerate(names):
        if name not in row_of:
            raise InputError(
                f"segment {segments['segment_id'][n]} shows image {name!r}, which {root}/images does not have; "
                "ingest the data again"
            )
    return np.array([row_of[name] for name in names], dtype=np.int64)


def _check_sizes(n_rows: int, batch_size: int, world: int) -> None:
    if batch_size % world:
        raise InputError(
            f"train.batch_size {batch_size} cannot be shared equally by {world} workers; use a multiple of {world}"
        )
    if batch_size > n_rows:
        raise InputError(
            f"train.batch_size {batch_size} is larger than the training set of {n_rows} segments; "
            "lower it or use more data"
        )
