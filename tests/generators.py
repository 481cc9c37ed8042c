"""Files as the labs release them, with a planted signal: what a reader must read and a model can learn."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw


@dataclass(frozen=True, kw_only=True)
class PerceiveLabFiles:
    """Where `write_perceivelab` put things."""

    eeg: Path
    split_all: Path
    split_single: Path
    images: Path


def picture(class_index: int, seed: int = 0, height: int = 72, width: int = 96) -> bytes:
    """Return a JPEG of an object whose shape and colour belong to the class, at a random place on a random ground."""
    rng = np.random.default_rng([class_index, seed])
    ground = rng.integers(90, 166, (height, width, 3)).astype(np.uint8)
    image = Image.fromarray(ground)
    colour = tuple(int(level) for level in np.random.default_rng(class_index).integers(0, 256, 3))
    n_corners = 3 + class_index % 5
    centre = (float(rng.uniform(0.4, 0.6) * width), float(rng.uniform(0.4, 0.6) * height))
    ImageDraw.Draw(image).regular_polygon((*centre, 0.3 * height), n_corners, int(rng.integers(360)), fill=colour)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def write_perceivelab(
    folder: Path,
    *,
    subjects: int = 6,
    classes: int = 40,
    images_per_class: int = 10,
    n_chans: int = 128,
    length_range: tuple[int, int] = (490, 510),
    seed: int = 0,
    signal: float = 1.0,
) -> PerceiveLabFiles:
    """Write a file set in the layout of PerceiveLab's release: EEG file, two split files, ImageNet-like pictures.

    Every segment is white noise of standard deviation 1 plus `signal` times its class's response: a pattern over
    channels (unit variance) times a 10 Hz burst at a latency that belongs to the class. Rows go image by image with the
    subjects inside, so a row's number in the file is never its number within a subject. Lengths L are drawn from
    `length_range`, both ends included. The `single` split names half the rows of subject 4 (or the
    last one).
    """
    rng = np.random.default_rng(seed)
    synsets = [f"n{2000000 + 1009 * index:08d}" for index in range(classes)]
    label_M = rng.permutation(np.repeat(np.arange(classes), images_per_class))
    stems = [f"{synsets[label]}_{1000 + 7 * image}" for image, label in enumerate(label_M.tolist())]

    images = folder / "images"
    for image, (stem, label) in enumerate(zip(stems, label_M.tolist(), strict=True)):
        path = images / synsets[label] / f"{stem}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(label, seed=image))

    pattern_KC = rng.standard_normal((classes, n_chans)).astype(np.float32)
    latency_K = rng.uniform(0.15, 0.35, classes)
    rows: list[dict[str, Any]] = []
    for image, label in enumerate(label_M.tolist()):
        for subject in range(1, subjects + 1):
            length = int(rng.integers(length_range[0], length_range[1] + 1))
            time_s = np.arange(length) / 1000 - latency_K[label]
            burst_L = np.cos(2 * np.pi * 10 * time_s) * np.exp(-0.5 * (time_s / 0.06) ** 2)
            eeg_CL = rng.standard_normal((n_chans, length), dtype=np.float32)
            eeg_CL += signal * pattern_KC[label][:, None] * burst_L.astype(np.float32)
            rows.append({"eeg": torch.from_numpy(eeg_CL), "image": image, "label": label, "subject": subject})

    files = PerceiveLabFiles(
        eeg=folder / "eeg_5_95_std.pth",
        split_all=folder / "block_splits_by_image_all.pth",
        split_single=folder / "block_splits_by_image_single.pth",
        images=images,
    )
    # The released files predate torch 1.6 and its zip layout.
    released = {"_use_new_zipfile_serialization": False}
    torch.save({"dataset": rows, "labels": synsets, "images": stems}, files.eeg, **released)

    # Of every class one image in ten (at least one) is tested and as many validate, as in the release.
    side_of: dict[int, str] = {}
    for label in range(classes):
        members = rng.permutation(np.flatnonzero(label_M == label)).tolist()
        n_held = max(1, images_per_class // 10)
        for position, image in enumerate(members):
            side_of[image] = "test" if position < n_held else "val" if position < 2 * n_held else "train"
    everybody = {
        side: [n for n, row in enumerate(rows) if side_of[row["image"]] == side] for side in ("train", "val", "test")
    }
    one = min(4, subjects)
    single = {side: [n for n in numbers if rows[n]["subject"] == one][::2] for side, numbers in everybody.items()}
    torch.save({"splits": [everybody]}, files.split_all, **released)
    torch.save({"splits": [single]}, files.split_single, **released)
    return files
