"""A data set in memory, or the way to stream it; what is read once per job and shared by its processes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from eegvision.config import DataConfig
from eegvision.ingest import pieces as reading
from eegvision.ingest import shards
from eegvision.ingest.pieces import Cut, Piece
from eegvision.ingest.places import Place
from eegvision.ingest.shards import Manifest
from eegvision.ingest.splits import Clock, Split, split
from eegvision.stream import controls
from eegvision.stream.repeats import Repeats, grouped, joined
from eegvision.stream.spread import host_budget_bytes, in_order, is_worth_spreading, shared
from eegvision.vocab import InputError

# Palazzo et al. cut their ten crops from an image resized to 1.1 times the input.
RESIZE = 1.1
WINDOW_GROUPS = 16  # row groups mixed with each other when streaming: 1,024 segments, 230 MB at 128 x 440
_SEED_LABELS = 5
_READ_BYTES = 32 << 20  # of EEG per task when everything is read once


@dataclass(frozen=True, kw_only=True, eq=False)
class Store:
    """A data set as read-only arrays, N samples of the subjects in use and M images.

    A sample is a segment, or the mean of several that show one picture to one subject (`repeats`, whose rows count
    segments as `pieces` do). `manifest` describes what batches hold: the channels and times that were chosen.
    `eeg_NCT` is float32 (or `DataConfig.storage`): normalised samples; or, where means are drawn anew every pass
    (`repeats.is_drawn`), segments as stored; or None where segments are streamed. `images_M3HH` is uint8: the central
    square, H = 1.1 times the input size so that ten crops can be cut from it; or None where nobody asked for pictures.
    `split` holds rows of this store. The arrays may lie in Ray's object store; fetch them with `load_store` in each
    process instead of pickling them.
    """

    manifest: Manifest
    cut: Cut
    pieces: tuple[Piece, ...]
    repeats: Repeats
    eeg_NCT: np.ndarray | None
    image_N: np.ndarray
    label_N: np.ndarray
    subject_N: np.ndarray
    segment_id_N: np.ndarray
    split: Split
    images_M3HH: np.ndarray | None
    image_id_M: np.ndarray
    label_M: np.ndarray

    @property
    def trained_subjects(self) -> tuple[str, ...]:
        """Names of the subjects in training, sorted."""
        return tuple(np.unique(self.subject_N[self.split.rows["train"]]).tolist())

    def read(self, sample: int) -> np.ndarray:
        """Return one sample [C,T] from the shards, averaged over all its repetitions."""
        own = self.repeats.of(np.array([sample]))
        return averaged(reading.among(self.pieces, own.row_R), own, self.cut)[0]


def load_store(config: DataConfig, size_px: int | None) -> Store:
    """Read a data set for encoders whose input images are `size_px` wide; None leaves the pictures unread.

    Where this process is connected to Ray, what was read is kept for the job: later calls, in any process, cost
    milliseconds and no memory. It is kept as long as the process that called first lives, so call once in the driver
    before starting trials.

    Raises:
        InputError: the data set is missing, damaged or lacks a picture, or the split cannot be made.
    """
    root = shards.dataset_root(config.dataset)
    stored = shards.read_manifest(root)
    cut, manifest = reading.cut_of(stored, config.channels, config.window_s, config.normalise, config.band_hz)
    segments = shards.read_segments(root, stored)
    images = shards.read_images(root, stored)
    image_n = _join(segments, images, root)
    parts = _split(config, stored, segments, images)
    subject_n = np.array(segments["subject"].to_pylist())
    keep = {"train": config.repetitions}
    of_side = {
        side: grouped(
            (subject_n, image_n),
            rows,
            keep.get(side, config.repetitions if config.val_repetitions is None else config.val_repetitions),
        )
        for side, rows in parts.rows.items()
    }
    samples = joined(list(of_side.values()))
    # In the order of the shards, whatever side they are on, so that streaming reads them in one go.
    order_N = np.argsort(samples.first_N, kind="stable")
    samples = samples.of(order_N)
    side_N = np.repeat(list(of_side), [len(own) for own in of_side.values()])[order_N]
    used = np.sort(samples.row_R)
    found = reading.among(reading.all_pieces(root, stored, "segments"), used)
    pieces = tuple(replace(piece, row_n=np.searchsorted(used, piece.row_n)) for piece in found)
    first_N = samples.first_N
    label_M = images["label"].to_numpy().astype(np.int64)
    image_N = _shown(config, segments, image_n, subject_n, samples, side_N, label_M)
    samples = Repeats(np.searchsorted(used, samples.row_R), samples.start_N, samples.keep_N)
    told_M = _told(label_M, image_N[side_N == "train"], config.labelled, config.split_seed)
    if config.control == "class-codes":
        eeg_NCT = _codes(config, manifest, cut, samples, label_M[image_N])
    else:
        eeg_NCT = _eeg(config, root, manifest, cut, pieces, samples, used)
    reads = reads_per_pass(pieces, samples) if eeg_NCT is None else 1.0
    if reads > 2:
        note = f"repetitions lie apart: streaming their means reads the segments {reads:.1f} times a pass; more memory"
        parts = replace(parts, notes=(*parts.notes, f"{note} (data.residency host) or fewer channels avoid that"))
    return Store(
        manifest=manifest,
        cut=cut,
        pieces=pieces,
        repeats=samples,
        eeg_NCT=eeg_NCT,
        image_N=image_N,
        label_N=told_M[image_N],
        subject_N=subject_n[first_N],
        segment_id_N=np.array(segments["segment_id"].to_pylist())[first_N],
        split=replace(parts, rows={side: np.flatnonzero(side_N == side) for side in parts.rows}),
        images_M3HH=None if size_px is None else _images(root, stored, size_px),
        image_id_M=np.array(images["image_id"].to_pylist()),
        label_M=told_M,
    )


def _split(config: DataConfig, stored: Manifest, segments: pa.Table, images: pa.Table) -> Split:
    parts = split(
        config.split,
        segments,
        images,
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        seed=config.split_seed,
        held_out=config.held_out,
        subjects=config.subjects,
        published=stored.published,
        clock=Clock(duration_s=stored.n_times / stored.sfreq_hz, purge_s=config.purge_s),
    )
    if stored.grade == "green":
        return parts
    return replace(parts, notes=(*parts.notes, f"the data set's order audit is {stored.grade}: see its report"))


def _shown(
    config: DataConfig,
    segments: pa.Table,
    image_n: np.ndarray,
    subject_n: np.ndarray,
    samples: Repeats,
    side_N: np.ndarray,
    label_M: np.ndarray,
) -> np.ndarray:
    """Return the picture of every sample, or the one a control says instead; `samples` count rows of the table."""
    number_n = {name: segments[name].to_numpy() for name in ("session", "block", "order", "onset_s")}
    return controls.applied(
        config.control,
        image_n[samples.first_N],
        side_N=side_N,
        subject_N=subject_n[samples.first_N],
        session_N=controls.common(number_n["session"], samples),
        block_N=controls.common(number_n["block"], samples),
        time_N=controls.recorded_at(number_n["order"], number_n["onset_s"])[samples.first_N],
        label_M=label_M,
        seed=config.split_seed,
    )


def _told(label_M: np.ndarray, trained_N: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Return the classes of all pictures, -1 for those in training that are kept back; one of a class stays at least.

    The draw is nested: what is told at a smaller share is told at every larger one.
    """
    if share == 1:
        return label_M
    told_M = label_M.copy()
    shuffled_M = np.random.default_rng([seed, _SEED_LABELS]).permutation(np.unique(trained_N))
    for label in np.unique(label_M[shuffled_M]):
        own_M = shuffled_M[label_M[shuffled_M] == label]
        told_M[own_M[max(1, round(share * len(own_M))) :]] = -1
    return told_M


def averaged(pieces: Sequence[Piece], samples: Repeats, cut: Cut) -> np.ndarray:
    """Return samples [N,C,T] from pieces that hold all their segments: averaged, then normalised."""
    is_single = len(samples.row_R) == len(samples)
    rows = reading.read_eeg(pieces, cut if is_single else cut.as_stored)
    eeg_NCT = samples.mean(rows["row"], rows["eeg"])
    return eeg_NCT if is_single else cut.finish(eeg_NCT)


def reads_per_pass(pieces: Sequence[Piece], samples: Repeats) -> float:
    """Return how often a streamed pass reads a row group: more than once where the segments of samples lie apart."""
    start_P = np.array([piece.row_n[0] for piece in pieces])
    piece_R = np.searchsorted(start_P, samples.row_R, side="right") - 1
    window_N = piece_R[samples.start_N[:-1]] // WINDOW_GROUPS
    n_reads = len(np.unique(np.repeat(window_N, samples.count_N) * len(pieces) + piece_R))
    return n_reads / len(pieces)


def _eeg(
    config: DataConfig,
    root: Place,
    manifest: Manifest,
    cut: Cut,
    pieces: tuple[Piece, ...],
    samples: Repeats,
    used: np.ndarray,
) -> np.ndarray | None:
    """Return the array of samples (of segments, where means are drawn), or None where they are streamed."""
    n_rows = len(samples.row_R) if samples.is_drawn else len(samples)
    shape = (n_rows, manifest.n_chans, manifest.n_times)
    dtype = _stored_as(config, samples)
    is_large = dtype.itemsize * int(np.prod(shape)) > host_budget_bytes()
    if config.residency == "stream" or (config.residency == "auto" and is_large):
        return None
    what = hashlib.sha256(repr(cut).encode())
    for array in (used, samples.row_R, samples.start_N, np.array(samples.is_drawn)):
        what.update(np.ascontiguousarray(array).tobytes())
    key = (manifest.fingerprint, str(root), "eeg", dtype.name, what.hexdigest())
    if samples.is_drawn or len(samples.row_R) == len(samples):
        finished = cut if len(samples.row_R) == len(samples) else cut.as_stored
        return shared(key, partial(_read_all_eeg, pieces, shape, finished, dtype))
    return shared(key, partial(_read_means, pieces, shape, samples, cut, dtype))


def _stored_as(config: DataConfig, samples: Repeats) -> np.dtype[Any]:
    """Return the type that samples are kept as in memory."""
    if config.storage and samples.is_drawn:
        raise InputError(
            f"data.storage {config.storage!r} is for normalised segments, but data.repetitions {config.repetitions} "
            "draws means anew in every pass, which are normalised after; leave it out, or average all (0)"
        )
    return np.dtype(config.storage or np.float32)


def _codes(config: DataConfig, manifest: Manifest, cut: Cut, samples: Repeats, label_N: np.ndarray) -> np.ndarray:
    """Return a class's code in place of every sample (every segment, where means are drawn)."""
    if config.residency == "stream":
        raise InputError("data.control 'class-codes' makes EEG in memory; it cannot go with data.residency 'stream'")
    dtype = _stored_as(config, samples)
    label_N = np.repeat(label_N, samples.count_N)[np.argsort(samples.row_R)] if samples.is_drawn else label_N
    shape_CT = (manifest.n_chans, manifest.n_times)
    what = hashlib.sha256(repr((cut, config.split_seed, samples.is_drawn)).encode() + label_N.tobytes())

    def make() -> np.ndarray:
        codes_NCT = controls.class_codes(label_N, shape_CT, config.split_seed)
        return codes_NCT if samples.is_drawn else cut.finish(codes_NCT).astype(dtype, copy=False)

    return shared((manifest.fingerprint, "class-codes", dtype.name, what.hexdigest()), make)


def _read_all_eeg(pieces: Sequence[Piece], shape: tuple[int, int, int], cut: Cut, dtype: np.dtype[Any]) -> np.ndarray:
    eeg_NCT = np.empty(shape, dtype=dtype)
    for rows in in_order(
        _tasks(pieces, shape), partial(reading.read_eeg, cut=cut), on_cluster=is_worth_spreading(eeg_NCT)
    ):
        eeg_NCT[rows["row"]] = rows["eeg"]
    return eeg_NCT


def _read_means(
    pieces: Sequence[Piece], shape: tuple[int, int, int], samples: Repeats, cut: Cut, dtype: np.dtype[Any]
) -> np.ndarray:
    """Add up segments as they come, so that never more than the means and a few tasks are in memory."""
    eeg_NCT = np.zeros(shape, dtype=np.float32)
    sample_R = np.empty(len(samples.row_R), dtype=np.int64)
    sample_R[samples.row_R] = np.repeat(np.arange(len(samples)), samples.count_N)
    work = partial(reading.read_eeg, cut=cut.as_stored)
    for rows in in_order(_tasks(pieces, shape), work, on_cluster=is_worth_spreading(eeg_NCT)):
        own = grouped((sample_R[rows["row"]],), np.arange(len(rows["row"])), 0)
        sum_nCT = np.add.reduceat(rows["eeg"][own.row_R], own.start_N[:-1], axis=0)
        eeg_NCT[sample_R[rows["row"][own.first_N]]] += sum_nCT
    for first in range(0, len(eeg_NCT), 1024):
        part_NCT = eeg_NCT[first : first + 1024]
        part_NCT /= samples.count_N[first : first + 1024, None, None]
        if cut != cut.as_stored:
            part_NCT[:] = cut.finish(part_NCT)
    return eeg_NCT.astype(dtype, copy=False)


def _tasks(pieces: Sequence[Piece], shape: tuple[int, int, int]) -> list[Sequence[Piece]]:
    rows_per_task = max(1, _READ_BYTES // (4 * shape[1] * shape[2]))
    tasks: list[list[Piece]] = []
    n_rows = rows_per_task
    for piece in pieces:
        if n_rows >= rows_per_task:
            tasks.append([])
            n_rows = 0
        tasks[-1].append(piece)
        n_rows += len(piece.row_n)
    return [tuple(task) for task in tasks]


def _images(root: Place, manifest: Manifest, size_px: int) -> np.ndarray:
    key = (manifest.fingerprint, str(root), "images", str(size_px))
    return shared(key, partial(_read_all_images, root, manifest, round(RESIZE * size_px)))


def _read_all_images(root: Place, manifest: Manifest, side_px: int) -> np.ndarray:
    images_M3HH = np.empty((manifest.n_images, 3, side_px, side_px), dtype=np.uint8)
    plan, work = reading.all_pieces(root, manifest, "images"), partial(reading.read_images, side_px=side_px)
    for rows in in_order(plan, work, on_cluster=is_worth_spreading(images_M3HH)):
        images_M3HH[rows["row"]] = rows["image"]
    return images_M3HH


def _join(segments: pa.Table, images: pa.Table, root: Place) -> np.ndarray:
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
