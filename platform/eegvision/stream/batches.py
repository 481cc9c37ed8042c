"""Batches of tensors from a store. Where samples live meanwhile (device, host, stream) is decided here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakValueDictionary

import numpy as np

from eegvision import cluster
from eegvision.config import DataConfig
from eegvision.ingest import pieces as reading
from eegvision.ingest.pieces import Cut, Piece, Rows
from eegvision.ingest.places import Place
from eegvision.ingest.shards import Manifest
from eegvision.stream.repeats import Repeats
from eegvision.stream.spread import in_order
from eegvision.stream.store import RESIZE, WINDOW_GROUPS, Store, averaged
from eegvision.vocab import InputError, SplitName

if TYPE_CHECKING:
    import torch

# torchvision's ImageNet statistics, of values in [0, 1].
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)

_CENTRE = 4  # number of the crop in the middle
_DEVICE_SHARE = 0.4  # of the free memory of a GPU; models and activations need the rest
_MEANS_BYTES = 1 << 20  # that a CPU averages at a time, so that what is made on the way stays in its caches
_copies: WeakValueDictionary[tuple[Any, ...], Any] = WeakValueDictionary()  # by the address of what was copied
_moving = Lock()
_SEED_ORDER, _SEED_CROPS, _SEED_WINDOWS, _SEED_REPEATS = 1, 2, 3, 4


@dataclass(frozen=True, eq=False)
class _Window:
    """Samples of a few row groups, in the order to hand them over, and the pieces that hold their segments."""

    sample_n: np.ndarray
    repeats: Repeats
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, eq=False)
class Batch:
    """Paired EEG and images of one optimiser step (this worker's part of it).

    `eeg_BCT` is normalised float32; `image_BX` float32: pixels [B,3,H,W] with ImageNet's mean and standard deviation
    taken out, or frozen features [B,F], or None where nobody asked for either; `text_BF` features of a text for each
    image, where there are any. `image_B`, `row_B` are rows of the store's images and samples; `subject_B` counts
    `Store.trained_subjects`, -1 for one that is not in training; `label_B` is -1 where there is no class.
    """

    eeg_BCT: torch.Tensor
    image_BX: torch.Tensor | None
    text_BF: torch.Tensor | None
    image_B: torch.Tensor
    label_B: torch.Tensor
    subject_B: torch.Tensor
    row_B: torch.Tensor


class Batches:
    """Batches of one side of a store's split, for one of `world` workers.

    Training: every pass is a new order drawn from (seed, pass); `batch_size` counts all workers together, each takes
    its contiguous slice of every global batch, and the last, incomplete batch is left out. So the same global batches
    come whatever `world` is, unless segments are streamed: then a pass goes through shuffled row groups, mixed 16 at
    a time, and who reads what depends on `world` too. Validation: stored order, nothing left out, each worker a
    contiguous share.

    Images come as features [M,F], one row for every image of the store, where these are given; else as pixels, where
    there is a `size_px`; else not at all. Texts come as features alone.

    Raises:
        InputError: the side has too few segments, or the batch cannot be shared equally.
    """

    def __init__(
        self,
        store: Store,
        split_name: SplitName,
        *,
        config: DataConfig,
        size_px: int | None,
        batch_size: int,
        seed: int,
        feature_MF: np.ndarray | None = None,
        text_MF: np.ndarray | None = None,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        training: bool,
    ) -> None:
        import torch

        assert 0 <= rank < world, (rank, world)
        for array_MF in (feature_MF, text_MF):
            assert array_MF is None or len(array_MF) == len(store.image_id_M), "features must have a row for each image"
        self.store = store
        self.device = torch.device(device)
        self._rows = store.split.rows[split_name]
        self._seed, self._rank, self._world, self._is_training = seed, rank, world, training
        self._size_px = size_px
        self._kept_as = torch.float16 if config.storage == "float16" else torch.float32
        number_of = {name: number for number, name in enumerate(store.trained_subjects)}
        self._subject_N = np.array([number_of.get(name, -1) for name in store.subject_N.tolist()], dtype=np.int64)
        has_pixels = feature_MF is None and size_px is not None
        self._has_ten_crops = training and has_pixels and config.crops != "centre"
        if training:
            _check_sizes(len(self._rows), batch_size, world)
        self._local = batch_size // world if training else max(1, batch_size // world)
        self._n_steps = len(self._rows) // batch_size

        picture_MX = _pictures(store, size_px) if has_pixels else feature_MF
        arrays = [array for array in (picture_MX, text_MF) if array is not None]
        eeg_home, image_home = _homes(store, sum(array.nbytes for array in arrays), config.residency, self.device)
        self._image_MX, self._text_MF = (
            None if array is None else _at_home(array, image_home) for array in (picture_MX, text_MF)
        )
        self._eeg = None if store.eeg_NCT is None else _at_home(store.eeg_NCT, eeg_home)
        if self._eeg is None:
            self._pieces = reading.among(store.pieces, store.repeats.first_N[self._rows])
        self._colours = _colours(image_home)

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
    def n_features(self) -> int:
        """Number of features of an image; 0 where images come as pixels or not at all."""
        return 0 if self._image_MX is None or self._image_MX.ndim != 2 else self._image_MX.shape[1]

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
        """Yield (image_BX, image_B) over every different image of this side once, central crop, on every worker."""
        import torch

        assert self._image_MX is not None, "batches without images have no galleries"
        image_M = np.unique(self.store.image_N[self._rows])
        for image_B in np.split(image_M, range(batch_size, len(image_M), batch_size)):
            view_BX = self._seen(image_B, np.full(len(image_B), _CENTRE))
            yield view_BX.to(self.device), torch.from_numpy(image_B).to(self.device)

    def at(self, row_B: np.ndarray) -> Batch:
        """Return any samples of this side, in this order, as validation sees them: central crops, the same draws."""
        import torch

        drawn = self._drawn(0) if self.store.repeats.is_drawn else self.store.repeats
        if self._eeg is None:
            own = drawn.of(row_B)
            pieces = reading.among(self.store.pieces, np.unique(own.row_R))
            eeg_BCT = torch.from_numpy(averaged(pieces, own, self.store.cut))
        elif self.store.repeats.is_drawn:
            eeg_BCT = _mean(self._eeg, drawn.of(row_B), self.store.cut)
        else:
            eeg_BCT = _rows(self._eeg, row_B)
        return self._moved(self._batch(row_B, eeg_BCT, np.full(len(row_B), _CENTRE)))

    def _share(self) -> np.ndarray:
        return np.array_split(self._rows, self._world)[self._rank]

    def _gathered(self, number: int, start_step: int) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        assert self._eeg is not None
        if self._is_training:
            order = np.random.default_rng([self._seed, number, _SEED_ORDER]).permutation(self._rows)
            steps = order[: self._n_steps * self._local * self._world].reshape(-1, self._world, self._local)
            own = steps[:, self._rank].reshape(-1)
        else:
            own = self._share()
        drawn = self._drawn(number) if self.store.repeats.is_drawn else None
        for first in range(start_step * self._local, len(own), self._local):
            row_B = own[first : first + self._local]
            if drawn is None:
                yield row_B, _rows(self._eeg, row_B)
            else:
                yield row_B, _mean(self._eeg, drawn.of(row_B), self.store.cut)

    def _drawn(self, number: int) -> Repeats:
        """Draw, for every sample, the segments of a pass; validation has the same ones every time."""
        seeds = [self._seed, number if self._is_training else 0, _SEED_REPEATS]
        return self.store.repeats.drawn(np.random.default_rng(seeds))

    def _streamed(self, number: int, start_step: int) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        import torch

        windows = self._windows(number)
        n_skipped = start_step * self._local
        while windows and len(windows[0].sample_n) <= n_skipped:
            n_skipped -= len(windows.pop(0).sample_n)
        blocks = in_order(windows, partial(_read_window, cut=self.store.cut), on_cluster=cluster.is_connected())
        for row_B, eeg_BCT in _rebatched(blocks, self._local, n_skipped):
            yield row_B, torch.from_numpy(eeg_BCT)

    def _windows(self, number: int) -> list[_Window]:
        """Cut this worker's share of a pass into windows: some row groups, mixed with each other.

        A sample belongs to the row group of its first segment. The row groups in the pass's order, laid end to end,
        are cut into equal shares, one per worker; a group on a cut is read by both neighbours, each of its samples
        used by one.
        """
        pieces, keys, repeats = self._pieces, [self._seed, number], self._drawn(number)
        if self._is_training:
            order = np.random.default_rng([*keys, _SEED_ORDER]).permutation(len(pieces))
            pieces = [pieces[n] for n in order]
            n_own = self._n_steps * self._local
            pieces = reading.cut(pieces, self._rank * n_own, (self._rank + 1) * n_own)
        else:
            pieces = reading.among(pieces, self.store.repeats.first_N[self._share()])
        first_N = self.store.repeats.first_N
        start_P = np.array([piece.row_n[0] for piece in self.store.pieces])
        windows: list[_Window] = []
        for first in range(0, len(pieces), WINDOW_GROUPS):
            window = pieces[first : first + WINDOW_GROUPS]
            sample_n = np.searchsorted(first_N, np.concatenate([piece.row_n for piece in window]))
            if self._is_training:
                sample_n = np.random.default_rng([*keys, _SEED_WINDOWS, self._rank, first]).permutation(sample_n)
            own = repeats.of(sample_n)
            if len(self.store.repeats.row_R) > len(first_N):  # a sample's other segments may lie anywhere
                rows = np.sort(own.row_R)
                holders = np.unique(np.searchsorted(start_P, rows, side="right") - 1)
                window = reading.among([self.store.pieces[n] for n in holders], rows)
            windows.append(_Window(sample_n=sample_n, repeats=own, pieces=tuple(window)))
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
            eeg_BCT=eeg_BCT.to(self._kept_as).float(),
            image_BX=None if self._image_MX is None else self._seen(image_B, crop_B),
            text_BF=None if self._text_MF is None else _rows(self._text_MF, image_B),
            image_B=torch.from_numpy(image_B),
            label_B=torch.from_numpy(self.store.label_N[row_B]),
            subject_B=torch.from_numpy(self._subject_N[row_B]),
            row_B=torch.tensor(row_B),
        )

    def _seen(self, image_B: np.ndarray, crop_B: np.ndarray) -> torch.Tensor:
        assert self._image_MX is not None
        if self._image_MX.ndim == 2:
            return _rows(self._image_MX, image_B)
        assert self._size_px is not None
        crop = crop_by_slices if self._image_MX.device.type == "cpu" else crop_by_index
        pixel_B3HW = crop(self._image_MX, image_B, crop_B, self._size_px)
        mean_311, scale_311 = self._colours
        return pixel_B3HW.sub_(mean_311).mul_(scale_311)

    def _moved(self, batch: Batch) -> Batch:
        moved = {name: part.to(self.device, non_blocking=True) for name, part in _parts(batch).items()}
        return replace(batch, **moved)


def central_views(root: Place, manifest: Manifest, image_B: np.ndarray, size_px: int) -> torch.Tensor:
    """Return the central crop of these pictures of a data set as batches hold it, [B,3,H,W], decoded here and now.

    Raises:
        InputError: a shard is missing or damaged, or a picture does not decode.
    """
    import torch

    rows = np.unique(image_B)
    side_px, pieces = round(RESIZE * size_px), reading.all_pieces(root, manifest, "images")
    parts = [reading.read_images(piece, side_px) for piece in reading.among(pieces, rows)]
    picture_M3HH = np.concatenate([part["image"] for part in parts])
    view_B3HW = crop_by_slices(
        torch.from_numpy(picture_M3HH), np.searchsorted(rows, image_B), np.full(len(image_B), _CENTRE), size_px
    )
    mean_311, scale_311 = _colours("cpu")
    return view_B3HW.sub_(mean_311).mul_(scale_311)


def _colours(device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean of each colour, of values up to 255, and the factor that brings what is left to unit SD."""
    import torch

    mean_311 = torch.tensor([255 * mean for mean in IMAGE_MEAN]).reshape(3, 1, 1)
    scale_311 = torch.tensor([1 / (255 * std) for std in IMAGE_STD]).reshape(3, 1, 1)
    return mean_311.to(device), scale_311.to(device)


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


def _mean(eeg_RCT: torch.Tensor, samples: Repeats, cut: Cut) -> torch.Tensor:
    """Average segments in memory into samples and normalise them."""
    import torch

    count_B = samples.count_N
    place_BK = np.minimum(np.arange(count_B.max()), count_B[:, None] - 1)  # too few: the last again, without weight
    row_BK = samples.row_R[samples.start_N[:-1, None] + place_BK]
    weight_BK = ((np.arange(count_B.max()) < count_B[:, None]) / count_B[:, None]).astype(np.float32)
    index = torch.from_numpy(row_BK).to(eeg_RCT.device)
    weight = torch.from_numpy(weight_BK).to(eeg_RCT.device)
    size = max(1, _MEANS_BYTES // eeg_RCT[0].nbytes) if eeg_RCT.device.type == "cpu" else len(index)
    parts = zip(index.split(size), weight.split(size), strict=True)
    with torch.autocast(eeg_RCT.device.type, enabled=False):  # on in validation; products would come in bfloat16
        eeg_BCT = torch.cat([_mean_of_few(eeg_RCT, index_BK, of_BK, cut) for index_BK, of_BK in parts])
        return eeg_BCT if cut.band_TT is None else eeg_BCT @ torch.tensor(cut.band_TT, device=eeg_BCT.device)


def _mean_of_few(eeg_RCT: torch.Tensor, index_BK: torch.Tensor, weight_BK: torch.Tensor, cut: Cut) -> torch.Tensor:
    import torch

    some_BKX = eeg_RCT.index_select(0, index_BK.flatten()).view(*index_BK.shape, -1)
    eeg_BCT = torch.bmm(weight_BK[:, None], some_BKX).view(-1, *eeg_RCT.shape[1:])
    if cut.normalise != "segment-zscore":
        return eeg_BCT
    centred_BCT = (eeg_BCT - eeg_BCT.mean(dim=-1, keepdim=True, dtype=torch.float64)).float()
    std_BC1 = centred_BCT.square().mean(dim=-1, keepdim=True).sqrt()
    return centred_BCT / std_BC1.where(std_BC1 > 0, 1.0)


def _read_window(window: _Window, cut: Cut) -> Rows:
    return {"row": window.sample_n, "eeg": averaged(window.pieces, window.repeats, cut)}


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
    return replace(batch, **{name: part.pin_memory() for name, part in _parts(batch).items() if part.is_cpu})


def _parts(batch: Batch) -> dict[str, Any]:
    """Return what there is of a batch."""
    return {name: part for name, part in vars(batch).items() if part is not None}


def _tensor(array: np.ndarray) -> torch.Tensor:
    import warnings

    import torch

    with warnings.catch_warnings():
        # torch has no read-only tensors and warns; these are only ever read.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def _at_home(array: np.ndarray, home: torch.device) -> torch.Tensor:
    """Return an array as a tensor where it is to stay: one copy there for all sides and trainings of this process."""
    if home.type == "cpu":
        return _tensor(array)
    key = (array.__array_interface__["data"][0], array.shape, array.strides, array.dtype.str, str(home))
    with _moving:
        if (there := _copies.get(key)) is None:
            there = _copies[key] = _tensor(array).to(home)
            vars(there)["source"] = array  # whose memory no other array may take while the copy goes by its address
    return there


def _pictures(store: Store, size_px: int | None) -> np.ndarray:
    assert store.images_M3HH is not None, "the store was loaded without pictures"
    assert size_px is not None
    assert store.images_M3HH.shape[-1] == round(RESIZE * size_px), "the store was loaded for another input size"
    return store.images_M3HH


def _rows(array_MF: torch.Tensor, row_B: np.ndarray) -> torch.Tensor:
    import torch

    return array_MF.index_select(0, torch.from_numpy(row_B).to(array_MF.device))


def _homes(store: Store, image_bytes: int, residency: str, device: torch.device) -> tuple[torch.device, torch.device]:
    """Return where the EEG and the images stay: on the device as far as they fit (asked for: in any case)."""
    import torch

    cpu = torch.device("cpu")
    if device.type == "cpu":
        return cpu, cpu
    room = _DEVICE_SHARE * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    eeg_bytes = 0 if store.eeg_NCT is None else store.eeg_NCT.nbytes
    fits_all = eeg_bytes + image_bytes <= room
    if residency == "device" or (residency == "auto" and fits_all):
        return device, device
    return cpu, device if image_bytes <= room else cpu


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
