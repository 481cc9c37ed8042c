"""What data cost a training step: steps over a resident data set against the same steps on one fixed batch.

    python benchmarks/residency.py [--works demo things] [--cases features pictures drawn] [--rounds 9]   on 2 cores
    python benchmarks/residency.py --gpu                                the data set on the GPU; not tried here
    python benchmarks/residency.py --quick                              the small data, under a minute

Needs torch and NumPy; no data set and no Ray. One process and the project's own loop: `train.train_step` of TSConv with
InfoNCE and AdamW, over `Batches.passes` of a store of random numbers, for `demo` (32 channels x 110 samples, batches of
64) and for what THINGS-EEG2 has (63 x 250, batches of 256, an eighth of a subject's segments). `features`: images are
frozen features (768 numbers). `pictures`: they are 64 px, one of ten crops, and their encoder is trained. `drawn`: as
features, every sample the mean of two of four presentations, drawn anew in every pass. Whatever a pass does once, the
order it is shuffled in among others, is in the time of its steps.

The peer is the step itself: the first batch of the same data, over and over, for which nothing is to be done. Steps of
both follow each other in an order that alternates, in one training that goes on: one by one, on a GPU round by round,
since work there is handed over and not waited for. A ratio is a round's steps over data by those on one batch. `share`
is the time spent in asking for batches, measured by itself in the same steps, over the time of the steps: it needs no
pair and has less noise, but does not see what a cold batch costs the step, and on a GPU it means nothing. `--processor`
takes the processor time of the process in place of the wall clock: the better one where others use the machine, with a
single thread.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _results import tell

from eegvision import stream, train
from eegvision.config import RunConfig
from eegvision.encoders.joint import build_joint
from eegvision.ingest.pieces import Cut
from eegvision.ingest.shards import Manifest
from eegvision.ingest.splits import Split
from eegvision.stream import Batch, Batches, Repeats, Store
from eegvision.vocab import Montage

N_FEATURES, SIZE_PX = 768, 64
QUICK = {"works": ["demo"], "rounds": 5}
CASES = ("features", "pictures", "drawn")


@dataclass(frozen=True, kw_only=True)
class Work:
    """A data set and the batches it is trained in; `n_steps` of each kind make a round."""

    n_segments: int
    n_images: int
    n_chans: int
    n_times: int
    sfreq_hz: float
    batch_size: int
    n_steps: int


WORKS = {
    "demo": Work(
        n_segments=1440, n_images=240, n_chans=32, n_times=110, sfreq_hz=250.0, batch_size=64, n_steps=22
    ),
    "things": Work(
        n_segments=8192, n_images=2048, n_chans=63, n_times=250, sfreq_hz=250.0, batch_size=256, n_steps=4
    ),
}  # fmt: skip


def store_of(work: Work, case: str) -> Store:
    """Return a store in memory as `load_store` would: all of it for training, each picture shown equally often."""
    rng = np.random.default_rng(0)
    n_each = 4 if case == "drawn" else 1
    n, n_samples = work.n_segments, work.n_segments // n_each
    side_px = round(stream.RESIZE * SIZE_PX)
    channels = tuple(f"E{number}" for number in range(work.n_chans))
    label_M = np.arange(work.n_images) % 10
    image_N = np.arange(n_samples) % work.n_images
    manifest = Manifest(
        name="random", dialect="random", licence="CC0", montage=Montage(channels=channels), sfreq_hz=work.sfreq_hz,
        t_min_s=0.0, n_times=work.n_times, unit="zscore", classes=tuple("abcdefghij"), n_segments=n,
        n_images=work.n_images, subjects=("1",), dropped={}, shards=(), audit={"grade": "green"}, fingerprint="0" * 12,
    )  # fmt: skip
    pixels_M3HH = rng.integers(0, 256, (work.n_images, 3, side_px, side_px), dtype=np.uint8)
    return Store(
        manifest=manifest,
        cut=Cut(channels=channels, first=0, stop=work.n_times, normalise="segment-zscore"),
        pieces=(),
        repeats=Repeats(np.arange(n), np.arange(0, n + 1, n_each), np.full(n_samples, (n_each + 1) // 2)),
        eeg_NCT=rng.standard_normal((n, work.n_chans, work.n_times), dtype=np.float32),
        image_N=image_N,
        label_N=label_M[image_N],
        subject_N=np.full(n_samples, "1"),
        segment_id_N=np.arange(n_samples).astype(str),
        split=Split(rows={"train": np.arange(n_samples)}, notes=()),
        images_M3HH=pixels_M3HH if case == "pictures" else None,
        image_id_M=np.arange(work.n_images).astype(str),
        label_M=label_M,
    )


class Training:
    """One training that takes steps on whatever batches it is given."""

    def __init__(
        self, work: Work, case: str, device: torch.device, folder: Path, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        images: dict[str, Any] = {"image.size_px": SIZE_PX} if case == "pictures" else {"image.frozen": True}
        settings = {"loss.name": "info_nce", "optim.name": "adamw", "train.batch_size": work.batch_size}
        self.config = RunConfig().with_overrides({"eeg.encoder": "tsconv"} | settings | images).resolved()
        store = store_of(work, case)
        feature_MF = np.random.default_rng(1).standard_normal((work.n_images, N_FEATURES), dtype=np.float32)
        self.batches = Batches(
            store,
            "train",
            config=self.config.data,
            size_px=SIZE_PX if case == "pictures" else None,
            feature_MF=None if case == "pictures" else feature_MF,
            batch_size=work.batch_size,
            seed=0,
            device=device,
            training=True,
        )
        torch.manual_seed(0)
        model = build_joint(
            self.config, work.n_chans, work.n_times, work.sfreq_hz, n_features=self.batches.n_features
        ).train()
        self.state = train._start(self.config, model, device, folder)
        self.device, self._clock = device, clock
        self._coming = self._all()
        self._fixed = next(self._coming)

    def _all(self) -> Iterator[Batch]:
        return itertools.chain.from_iterable(self.batches.passes(number) for number in itertools.count(1))

    def steps(self, n_steps: int, *, is_fixed: bool) -> tuple[float, float]:
        """Take some steps; return their seconds, and those in which batches were asked for."""
        self._wait()
        asking_s, start = 0.0, self._clock()
        for _ in range(n_steps):
            before = self._clock()
            batch = self._fixed if is_fixed else next(self._coming)
            asking_s += self._clock() - before
            train.train_step(self.config, self.state, batch, number=1, index=0, n_steps=len(self.batches))
        self._wait()
        return self._clock() - start, asking_s

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def measured(training: Training, n_steps: int, rounds: int) -> list[tuple[float, float, float]]:
    """Return for each round the seconds of steps over data, of these those of asking, and of steps on one batch."""
    n_at_once = n_steps if training.device.type == "cuda" else 1
    found = []
    for number in range(rounds):
        data_s = asking_s = fixed_s = 0.0
        for turn in range(n_steps // n_at_once):
            for is_fixed in (True, False) if (number + turn) % 2 == 0 else (False, True):
                all_s, own_s = training.steps(n_at_once, is_fixed=is_fixed)
                if is_fixed:
                    fixed_s += all_s
                else:
                    data_s, asking_s = data_s + all_s, asking_s + own_s
        found.append((data_s, asking_s, fixed_s))
    return found


def compare(name: str, case: str, options: argparse.Namespace) -> tuple[str, list[float], list[float]]:
    """Return a row of the table, and for every round the ratio and the share."""
    work, device = WORKS[name], torch.device("cuda" if options.gpu else "cpu")
    clock = time.process_time if options.processor else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        training = Training(work, case, device, Path(folder), clock)
        for is_fixed in (True, False):  # whatever is made when first called
            training.steps(3, is_fixed=is_fixed)
        found = measured(training, work.n_steps, options.rounds)
    ratios = [data_s / fixed_s for data_s, _, fixed_s in found]
    shares = [1 + asking_s / (data_s - asking_s) for data_s, asking_s, _ in found]
    step_ms, asking_ms = (1000 / work.n_steps * statistics.median(row[n] for row in found) for n in (2, 1))
    spreads = " | ".join(
        f"{min(own):.3f} | **{statistics.median(own):.3f}** | {max(own):.3f}" for own in (ratios, shares)
    )
    times = f"{step_ms:.1f} | {asking_ms:.2f}"
    return f"| {name} | {case} | {training.batches.residency} | {times} | {spreads} |", ratios, shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--works", nargs="+", choices=list(WORKS), default=list(WORKS))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--processor", action="store_true", help="processor time of the process, not the wall clock")
    parser.add_argument("--quick", action="store_true", help="at a size for a minute")
    options = parser.parse_args()
    if options.quick:
        vars(options).update(QUICK)
    where = torch.cuda.get_device_name() if options.gpu else f"{torch.get_num_threads()} threads"
    clock = "processor time" if options.processor else "wall clock"
    print(f"torch {torch.__version__}, {where}; {options.rounds} rounds, {clock}\n")
    columns = "ratio min | median | max | 1 + share min | median | max"
    print(f"| data | images | where they are | step on one batch, ms | asking for a batch, ms | {columns} |")
    print("|" + "---|" * 11)
    found = {}
    for name, case in itertools.product(options.works, options.cases):
        line, *found[f"{name}, {case}"] = compare(name, case, options)
        print(line, flush=True)
    for what, (ratios, shares) in found.items():
        tell(f"steps over data: {what}", ratios, target="<= 1.03", peer="steps on one batch")
        tell(f"1 + time asking for batches: {what}", shares, target="<= 1.03", peer="the steps' own time")


if __name__ == "__main__":
    main()
