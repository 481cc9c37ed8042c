"""Features of networks on disk, made once: `home()/features/KEY/features.npy`, with what they are in `made.json`.

KEY hashes everything they depend on: the pictures, the network, its weights, layer and pooling, the way pictures are
prepared, and a version. An entry appears whole or not at all; one that no longer has its checksum is made again.

Batches are the same 32 pictures whoever computes them, each on one thread in float32, so that an entry comes out with
the same bytes on one machine whether a notebook, a trial or the cluster makes it (a GPU's differ in the last digits).
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import math
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from eegvision import cluster
from eegvision.config import ImageConfig
from eegvision.encoders.frozen import Backbone, build_backbone
from eegvision.encoders.image import IMAGENET_MEAN, IMAGENET_STD
from eegvision.fanout import Progress, spread
from eegvision.features.files import Catalogue
from eegvision.ingest import pictures
from eegvision.ingest import pieces as reading
from eegvision.ingest.pieces import Piece
from eegvision.ingest.places import sync_folder
from eegvision.stream.store import RESIZE
from eegvision.vocab import InputError, home

Say = Callable[[str], None]

VERSION = 1  # of how features are computed; a change makes all of them anew
_BATCH = 32
_TASKS_PER_DEVICE = 16
_PEAK_BYTES = 1 << 30  # of a task without its weights
_CPUS_PER_GPU = 8  # at most: to decode pictures
_PACKAGES = {"timm": "timm", "open_clip": "open_clip_torch"}

# Rows of the images' table, and their features at each layer.
Rows = tuple[np.ndarray, list[np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """Where the features of one configuration are, or are to be."""

    folder: Path
    ingredients: dict[str, Any]
    image: ImageConfig


def network_of(image: ImageConfig) -> ImageConfig:
    """Return what of a configuration decides about a pass through its network, whatever layer is wanted."""
    return replace(image, embed_dim=ImageConfig.embed_dim, projector=None, text=None, layer=None, pooling=None)


def features(
    catalogue: Catalogue, images: Sequence[ImageConfig], *, say: Say | None, on_cluster: bool
) -> list[np.ndarray]:
    """Return the features [M,F] of each configuration, which differ in layer, pooling and what comes after alone.

    Args:
        catalogue: the pictures.
        say: prints a line; None for silence.
        on_cluster: compute what is missing over the cluster this process is connected to, else in this process.
    Raises:
        InputError: network or weights cannot be had, or a picture cannot be read.
    """
    say = say or (lambda _: None)
    wanted = [_entry(catalogue, image) for image in images]
    entries = {entry.folder: entry for entry in wanted}
    found = {folder: _load(folder) for folder in entries}
    if missing := [folder for folder, array in found.items() if array is None]:
        with ExitStack() as locks:
            for folder in sorted(missing):  # in one order, so that two processes cannot wait for each other
                locks.enter_context(_sole_maker(folder, say))
            found |= {folder: _load(folder) for folder in missing}
            if missing := [folder for folder in missing if found[folder] is None]:
                for folder in missing:
                    if folder.exists():
                        say(f"the features in {folder} are damaged; they are made again")
                _make([entries[folder] for folder in missing], catalogue, say, on_cluster)
                found |= {folder: _load(folder) for folder in missing}
    arrays = []
    for entry in wanted:
        array = found[entry.folder]
        assert array is not None, f"{entry.folder} was just made"
        arrays.append(array)
    return arrays


def _entry(catalogue: Catalogue, image: ImageConfig) -> _Entry:
    filled = image.resolved()
    ingredients: dict[str, Any] = {
        "version": VERSION,
        "pictures": catalogue.pictures_sha256,
        "encoder": image.encoder,
        "model": image.model,
        "weights": _weights(image),
        # timm and open_clip know the sizes of their models themselves.
        "size_px": image.size_px if image.encoder in _PACKAGES else image.input_px,
        "layer": filled.layer,
        "pooling": filled.pooling,
        "blur_px": filled.blur_px,
        "foveal": filled.foveal,
    }
    key = hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()[:24]
    return _Entry(folder=home() / "features" / key, ingredients=ingredients, image=image)


def _weights(image: ImageConfig) -> str:
    """Return words that change when the weights do; a package's own are as it names them in its version."""
    if image.encoder in _PACKAGES:
        try:
            release = f"{image.encoder} {importlib.metadata.version(_PACKAGES[image.encoder])}"
        except importlib.metadata.PackageNotFoundError:
            release = image.encoder  # building the network says what to install
    else:
        release = f"torchvision {importlib.metadata.version('torchvision')}"
    if image.weights == "none":
        return f"random, torch {torch.__version__}, {release}"
    path = Path(image.weights).expanduser()
    if path.is_file():
        stat = path.stat()
        return f"sha256 {_sha256(str(path), stat.st_size, stat.st_mtime_ns)}"
    return f"{image.weights}, {release}"


@lru_cache(maxsize=64)
def _sha256(path: str, size: int, mtime_ns: int) -> str:  # noqa: ARG001  (a replaced file is read anew)
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _sole_maker(folder: Path, say: Say) -> Iterator[None]:
    """Hold an entry for this process; wait for another one that does."""
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder.parent / f".{folder.name}.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say(f"another process is making the features {folder.name}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _load(folder: Path) -> np.ndarray | None:
    """Return the features of an entry, mapped into memory; None where it is not there or damaged."""
    try:
        made = json.loads((folder / "made.json").read_text())
        with (folder / "features.npy").open("rb") as file:
            is_whole = hashlib.file_digest(file, "sha256").hexdigest() == made["sha256"]
        return np.load(folder / "features.npy", mmap_mode="r", allow_pickle=False) if is_whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _make(entries: Sequence[_Entry], catalogue: Catalogue, say: Say, on_cluster: bool) -> None:
    """Compute entries that differ in layer and pooling alone, in one pass over the pictures, and put them in place."""
    n_images, network = len(catalogue.image_id_M), network_of(entries[0].image)
    layers = ", ".join(f"{entry.ingredients['layer']}" for entry in entries)
    say(f"making features of {n_images:,} pictures: {network.model or network.encoder}, {layers}")
    parts = [entry.folder.with_name(f"{entry.folder.name}.part") for entry in entries]
    for part in parts:
        shutil.rmtree(part, ignore_errors=True)  # of an attempt that was interrupted
        part.mkdir(mode=0o700)
    images = [replace(network, layer=entry.image.layer, pooling=entry.image.pooling) for entry in entries]
    pieces = reading.all_pieces(catalogue.root, catalogue.manifest, "images")
    maps: list[np.memmap] = []
    progress, n_done = Progress(n_images, "picture", say), 0
    for row_n, arrays in (_over_cluster if on_cluster else _here)(pieces, n_images, images):
        if not maps:
            maps = [_open(part, n_images, array.shape[1]) for part, array in zip(parts, arrays, strict=True)]
        for mapped, array_nF in zip(maps, arrays, strict=True):
            _require_finite(array_nF, row_n, catalogue, network)
            mapped[row_n] = array_nF
        n_done += len(row_n)
        progress.at(n_done)
    assert n_done == n_images, f"{n_done} of {n_images} pictures were met"
    for mapped in maps:
        mapped.flush()
    maps.clear()
    for entry, part in zip(entries, parts, strict=True):
        _publish(entry, part, catalogue)


def _open(part: Path, n_rows: int, n_features: int) -> np.memmap:
    return np.lib.format.open_memmap(part / "features.npy", mode="w+", dtype=np.float32, shape=(n_rows, n_features))


def _require_finite(array_nF: np.ndarray, row_n: np.ndarray, catalogue: Catalogue, network: ImageConfig) -> None:
    is_bad_n = ~np.isfinite(array_nF).all(axis=1)
    if is_bad_n.any():
        name = catalogue.image_id_M[row_n[is_bad_n.argmax()]]
        raise InputError(
            f"{network.model or network.encoder} with image.weights {network.weights!r} gives values that are not "
            f"finite for picture {name!r}; these weights are damaged or of another network"
        )


def _publish(entry: _Entry, part: Path, catalogue: Catalogue) -> None:
    """Give a finished part its name, beside a note of what it is."""
    with (part / "features.npy").open("rb+") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    note = {
        "sha256": sha256,
        "made of": entry.ingredients,
        "data set": catalogue.manifest.name,
        "torch": torch.__version__,
    }
    (part / "made.json").write_text(json.dumps(note, indent=1))
    sync_folder(part)
    if entry.folder.exists():
        shutil.rmtree(entry.folder)
    part.rename(entry.folder)


def _over_cluster(pieces: Sequence[Piece], n_images: int, images: Sequence[ImageConfig]) -> Iterator[Rows]:
    cpus, gpus = cluster.size()
    n_batches = math.ceil(n_images / _BATCH)
    n_tasks = min(n_batches, int(_TASKS_PER_DEVICE * (gpus or cpus)) or 1)
    edges = [n * n_batches // n_tasks * _BATCH for n in range(n_tasks + 1)]
    tasks = [reading.cut(pieces, first, stop) for first, stop in pairwise(edges)]
    weights = Path(images[0].weights).expanduser()
    peak_bytes = _PEAK_BYTES + (2 * weights.stat().st_size if weights.is_file() else 0)
    held_cpus = float(max(1, min(_CPUS_PER_GPU, cpus // gpus))) if gpus else 1.0
    work = partial(_task, images=images)
    yield from spread(work, tasks, peak_bytes=lambda _: peak_bytes, cpus=held_cpus, gpus=1.0 if gpus else 0.0)


def _task(pieces: Sequence[Piece], images: Sequence[ImageConfig]) -> Rows:
    done = list(_computed(pieces, images))
    arrays = [np.concatenate(own) for own in zip(*(arrays for _, arrays in done), strict=True)]
    return np.concatenate([row_n for row_n, _ in done]), arrays


def _here(pieces: Sequence[Piece], _: int, images: Sequence[ImageConfig]) -> Iterator[Rows]:
    yield from _computed(pieces, images)


def _computed(pieces: Sequence[Piece], images: Sequence[ImageConfig]) -> Iterator[Rows]:
    """Yield batches of features; at most a batch of pictures per thread is in memory, and one more.

    On a CPU every thread takes a batch of its own through the network; for a GPU they only decode.
    """
    backbone = build_backbone(*images)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone.to(device)
    n_threads = max(1, torch.get_num_threads())

    def ahead_of(batch: list[_Picture]) -> Any:
        views = _views(batch, backbone)
        return _through(views, backbone, device) if device.type == "cpu" else views

    def at_last(future: Future[Any]) -> Rows:
        done = future.result()
        return done if device.type == "cpu" else _through(done, backbone, device)

    with ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        ahead: deque[Future[Any]] = deque()
        for batch in _batches(pieces):
            ahead.append(pool.submit(ahead_of, batch))
            if len(ahead) > n_threads:
                yield at_last(ahead.popleft())
        while ahead:
            yield at_last(ahead.popleft())


@dataclass(frozen=True)
class _Picture:
    row: int
    image_id: str
    encoded: bytes


def _batches(pieces: Sequence[Piece]) -> Iterator[list[_Picture]]:
    """Yield pictures in batches that end at multiples of the batch's size, counted over the whole table."""
    batch: list[_Picture] = []
    for piece in pieces:
        try:
            with piece.path.parquet() as file:
                table = file.read_row_group(piece.group, columns=["image_id", "encoded"], use_threads=False)
        except (OSError, pa.ArrowException, ValueError) as error:
            raise InputError(
                f"shard {piece.path} cannot be read ({error}); restore it or ingest the data again"
            ) from error
        for place, row in zip(piece.place_n.tolist(), piece.row_n.tolist(), strict=True):
            batch.append(_Picture(row, table["image_id"][place].as_py(), table["encoded"][place].as_py()))
            if (row + 1) % _BATCH == 0:
                yield batch
                batch = []
    if batch:
        yield batch


def _views(batch: Sequence[_Picture], backbone: Backbone) -> tuple[np.ndarray, torch.Tensor]:
    """Return the rows of pictures, and the pictures as the network is to see them, uint8 [B,3,H,W]."""
    views = [_view(pictures.decode(picture.encoded, repr(picture.image_id)), backbone) for picture in batch]
    return np.array([picture.row for picture in batch]), torch.from_numpy(np.stack(views))


def _view(pixel_HW3: np.ndarray, backbone: Backbone) -> np.ndarray:
    """Prepare a picture: as the network's package does for evaluation, else the central crop that batches have."""
    size_px = backbone.size_px
    if backbone.original.transform is not None:
        seen_3HW = backbone.original.transform(Image.fromarray(pixel_HW3))
        return seen_3HW.mul(255).round().to(torch.uint8).numpy()
    side_px = round(RESIZE * size_px)
    edge = round((side_px - size_px) / 2)
    return reading.square(pixel_HW3, side_px)[:, edge : edge + size_px, edge : edge + size_px]


@torch.inference_mode()
def _through(views: tuple[np.ndarray, torch.Tensor], backbone: Backbone, device: torch.device) -> Rows:
    row_n, pixel_B3HW = views
    mean_311 = torch.tensor([255 * mean for mean in IMAGENET_MEAN]).reshape(3, 1, 1).to(device)
    scale_311 = torch.tensor([1 / (255 * std) for std in IMAGENET_STD]).reshape(3, 1, 1).to(device)
    image_B3HW = pixel_B3HW.to(device).float().sub_(mean_311).mul_(scale_311)
    with torch.backends.cudnn.flags(benchmark=False, deterministic=True, allow_tf32=False):
        return row_n, [feature_BF.float().cpu().numpy() for feature_BF in backbone.all_layers(image_B3HW)]
