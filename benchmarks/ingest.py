"""How fast batches come: `eegvision.stream` against a plain torch DataLoader and against tensors held in memory.

    python benchmarks/ingest.py [--quick]        about 9 minutes on 2 cores; --quick: the first table, two processes

Three questions, each answered by a ratio (peer's time over ours, so above 1 we are faster):

- first pass: everything from opening the data set to the last batch of the first pass. The peer is what one would
  write without this package: a Dataset over the same shards that decodes the picture of the row it is asked for, and a
  DataLoader with two workers.
- streamed pass (`residency=stream`, for data that does not fit into memory): the peer is DataLoader's second pass,
  which has all EEG in memory.
- later passes: the peer is a loop over tensors in memory, pictures resized beforehand, that shuffles, indexes, crops
  and normalises: nothing is read, decoded or copied between processes.

All make the same batches: EEG standardised per segment and channel, one of ten crops, ImageNet normalisation. Runs
alternate and each pair gives one ratio. Starting Python, importing torch and starting Ray are not counted; starting
DataLoader's workers and our actor is.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _results import tell

from eegvision.config import DataConfig
from eegvision.ingest import assemble, shards, simulate
from eegvision.ingest.splits import split

BATCH_SIZE = 16  # the paper's
REPETITIONS = 5  # fresh processes of each kind
PAIRS = 3  # in each of them
PASSES = 5  # per measurement of later passes, which take a few hundredths of a second
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Work:
    """A data set and the input size of the image encoder it is read for."""

    name: str
    options: simulate.Simulation
    size_px: int


DEMO = simulate.PRESETS["demo"]
WORKS = [
    Work("small", dataclasses.replace(DEMO, n_subjects=5, n_chans=64), 64),
    Work("large", dataclasses.replace(DEMO, n_subjects=5, n_chans=64, images_per_class=20, image_px=375), 224),
]


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def run_through(batches: Iterable[object]) -> None:
    for _ in batches:
        pass


def ours(root: Path, size_px: int) -> dict[str, list[float]]:
    """Time our first pass, then later passes in turn with the loop over tensors, then a streamed pass."""
    import ray
    import torch

    from eegvision import stream

    torch.set_num_threads(1)
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    config = DataConfig(dataset=str(root))
    settings: dict[str, Any] = {"size_px": size_px, "batch_size": BATCH_SIZE, "seed": 0, "training": True}
    start = time.perf_counter()
    store = stream.load_store(config, size_px)
    batches = stream.Batches(store, "train", config=config, **settings)
    run_through(batches.passes(1))
    times = {"first": [time.perf_counter() - start], "later": [], "loop": []}
    assert store.eeg_NCT is not None
    rows = torch.from_numpy(store.split.rows["train"])
    eeg, images = torch.tensor(store.eeg_NCT), torch.tensor(store.images_M3HH)
    image_of, label_of = torch.from_numpy(store.image_N), torch.from_numpy(store.label_N)
    loop = partial(tensor_loop, rows, eeg, images, image_of, label_of, size_px)
    for first in range(2, 2 + PAIRS * PASSES, PASSES):
        numbers = range(first, first + PASSES)
        times["later"].append(seconds(lambda numbers=numbers: [run_through(batches.passes(n)) for n in numbers]))
        times["loop"].append(seconds(lambda: [run_through(loop()) for _ in range(PASSES)]))
    config = dataclasses.replace(config, residency="stream")
    batches = stream.Batches(stream.load_store(config, size_px), "train", config=config, **settings)
    run_through(batches.passes(1))  # starts Ray Data
    times["streamed"] = [seconds(lambda: run_through(batches.passes(2)))]
    ray.shutdown()
    return times


def tensor_loop(rows, eeg, images, image_of, label_of, size_px: int) -> Iterator[tuple]:
    """Yield one pass of batches from tensors in memory."""
    import torch

    mean, scale = 255 * torch.tensor(MEAN)[:, None, None], 1 / (255 * torch.tensor(STD)[:, None, None])
    margin = images.shape[-1] - size_px
    corners = [(0, 0), (0, margin), (margin, 0), (margin, margin), (margin // 2, margin // 2)]
    shuffled = rows[torch.randperm(len(rows))]
    for chosen in shuffled[: len(rows) // BATCH_SIZE * BATCH_SIZE].split(BATCH_SIZE):
        views = []
        for image, kind in zip(image_of[chosen].tolist(), torch.randint(10, (len(chosen),)).tolist(), strict=True):
            top, left = corners[kind % 5]
            view = images[image, :, top : top + size_px, left : left + size_px]
            views.append(view.flip(-1) if kind >= 5 else view)
        view_B3HW = torch.stack(views).float().sub_(mean).mul_(scale)
        yield eeg[chosen], view_B3HW, image_of[chosen], label_of[chosen], chosen


def loader(root: Path, size_px: int) -> dict[str, list[float]]:
    """Time the first pass of a plain DataLoader, and its second."""
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    torch.set_num_threads(1)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    side_px = round(1.1 * size_px)
    margin = side_px - size_px
    corners = [(0, 0), (0, margin), (margin, 0), (margin, margin), (margin // 2, margin // 2)]

    class Pairs(Dataset):
        def __init__(self) -> None:
            manifest = shards.read_manifest(root)
            segments = shards.read_segments(root, manifest)
            images = shards.read_images(root, manifest)
            config = DataConfig(dataset=str(root))
            shares = {"val_fraction": config.val_fraction, "test_fraction": config.test_fraction, "seed": 0}
            self.rows = split(config.split, segments, images, **shares).rows["train"]
            self.eeg = shards.eeg_array(shards.read_segments(root, manifest, columns=["eeg"])["eeg"])
            self.encoded = shards.read_images(root, manifest, columns=["encoded"])["encoded"].to_pylist()
            row_of = {name: row for row, name in enumerate(images["image_id"].to_pylist())}
            self.image_of = [row_of[name] for name in segments["image_id"].to_pylist()]
            self.label_of = images["label"].to_pylist()

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, index: int) -> tuple:
            row = int(self.rows[index])
            eeg_CT = self.eeg[row]
            eeg_CT = eeg_CT - eeg_CT.mean(axis=1, keepdims=True)
            eeg_CT /= np.maximum(eeg_CT.std(axis=1, keepdims=True), 1e-12)
            image = self.image_of[row]
            picture = Image.open(io.BytesIO(self.encoded[image])).convert("RGB")
            picture = picture.resize((side_px, side_px), Image.Resampling.BILINEAR)  # these pictures are square
            kind = int(torch.randint(10, ()))
            top, left = corners[kind % 5]
            view_HW3 = np.asarray(picture)[top : top + size_px, left : left + size_px]
            view_HW3 = view_HW3[:, ::-1] if kind >= 5 else view_HW3
            view_3HW = torch.from_numpy(view_HW3.transpose(2, 0, 1).copy()).float().div_(255).sub_(mean).div_(std)
            return torch.from_numpy(eeg_CT), view_3HW, image, self.label_of[image], row

    start = time.perf_counter()
    batches = DataLoader(
        Pairs(), BATCH_SIZE, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True
    )  # fmt: skip
    run_through(batches)
    return {"first": [time.perf_counter() - start], "later": [seconds(lambda: run_through(batches))]}


def in_fresh_process(part: str, root: Path, size_px: int) -> dict[str, list[float]]:
    command = [sys.executable, __file__, "--part", part, "--root", str(root), "--size-px", str(size_px)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def ratios(peer: list[float], mine: list[float]) -> list[float]:
    return [theirs / own for theirs, own in zip(peer, mine, strict=True)]


def row(name: str, found: list[float], mine: list[float], peer: list[float]) -> str:
    spread = f"{min(found):.2f} | **{statistics.median(found):.2f}** | {max(found):.2f}"
    return f"| {name} | {spread} | {statistics.median(mine):.3f} | {statistics.median(peer):.3f} | {len(found)} |"


def compare(work: Work, folder: Path, repetitions: int) -> dict[str, list[float]]:
    """Print a table; return the ratios that have a target."""
    root = folder / work.name
    manifest = assemble.write(root, simulate.simulate(work.options, work.name))
    print(
        f"\n{work.name}: {manifest.n_segments} segments of {manifest.n_chans} x {manifest.n_times}, "
        f"{manifest.n_images} pictures of {work.options.image_px} px read for {work.size_px} px\n"
    )
    mine, peers = [], []
    for repetition in range(repetitions):
        order = ("ours", "loader") if repetition % 2 == 0 else ("loader", "ours")
        for part in order:
            (mine if part == "ours" else peers).append(in_fresh_process(part, root, work.size_px))
    print("| what | min | median | max | ours, s | peer, s | pairs |\n|---|---|---|---|---|---|---|")
    firsts = [[one["first"][0] for one in kind] for kind in (mine, peers)]
    print(row("first pass / DataLoader's first", ratios(firsts[1], firsts[0]), *firsts))
    peer_later = [one["later"][0] for one in peers]
    streamed = [one["streamed"][0] for one in mine]
    print(row("streamed pass / DataLoader's second", ratios(peer_later, streamed), streamed, peer_later))
    resident = [statistics.median(one["later"]) / PASSES for one in mine]
    print(row("later pass / DataLoader's second", ratios(peer_later, resident), resident, peer_later))
    pairs = [[time / PASSES for one in mine for time in one[kind]] for kind in ("later", "loop")]
    print(row("later pass / tensors in memory", ratios(pairs[1], pairs[0]), *pairs))
    return {"first": ratios(firsts[1], firsts[0]), "later": ratios(pairs[1], pairs[0])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the small pictures only, two processes of each kind")
    parser.add_argument("--part", choices=["ours", "loader"], help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--size-px", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps((ours if options.part == "ours" else loader)(options.root, options.size_px)))
        return
    with tempfile.TemporaryDirectory() as folder:
        works, repetitions = (WORKS[:1], 2) if options.quick else (WORKS, REPETITIONS)
        found = {work.name: compare(work, Path(folder), repetitions) for work in works}
    for name, of in found.items():
        tell(f"first pass, {name} pictures", of["first"], target=">= 1", peer="DataLoader with 2 workers")
        tell(f"later passes, {name} pictures", of["later"], target=">= 0.95", peer="loop over tensors in memory")


if __name__ == "__main__":
    main()
