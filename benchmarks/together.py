"""Many small trainings: their steps stacked into one program, one after the other, and a process for each.

    python benchmarks/together.py [--encoders tsconv nice-eegnet] [--trainings 8] [--passes 6] [--gpu] [--quick]

Two tables. *Steps*: `train_step` of K trainings one after the other, against one step of their stack (`stacked.Stack`),
for each encoder, batches of 16 and 64, with the rows of all equal (one seed, as in most sweeps) and with rows of their
own (other seeds, or another pass). *Trainings*: whole trainings through `train.fit`, with validation and checkpoints,
as many learning rates as trainings:

    processes   a fresh process for each, as many at a time as there are cores (on a GPU: all), with one thread each:
                what a loop over `python train.py --lr ...` does; the ratios are trainings per hour against this
    in turn     as many processes as cores, each with its share one after the other, as the reused ones of a sweep
    together    one process with as many threads as cores, all steps stacked, as with --together of a sweep

Data are drawn here: 1,800 segments of 32 x 110 and 300 images with 128 frozen features. Needs no Ray and no data set.
The limit: where arithmetic fills the device already, stacking gains no more than what the trainings share.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _results import tell

from eegvision import train as loop
from eegvision.config import RunConfig
from eegvision.encoders.joint import JointModel, build_joint
from eegvision.ingest.pieces import Cut
from eegvision.ingest.shards import Manifest
from eegvision.ingest.splits import Split
from eegvision.resume import TrainState
from eegvision.stacked import ENCODERS, Request, Stack
from eegvision.stream import Batches, Store
from eegvision.stream.batches import Batch
from eegvision.stream.repeats import singles
from eegvision.together import Together
from eegvision.vocab import Montage

N_CHANS, N_TIMES, N_IMAGES, N_SHOWN, N_FEATURES = 32, 110, 300, 6, 128


def config_of(encoder: str, *, batch: int = 64, passes: int = 6, rate: float = 1e-3, seed: int = 0) -> RunConfig:
    return RunConfig().with_overrides(
        {
            "eeg.encoder": encoder, "image.encoder": "random-codebook", "image.size_px": None, "loss.name": "info_nce",
            "optim.name": "adamw", "optim.lr": rate, "seed": seed, "train.batch_size": batch,
            "train.max_passes": passes,
        }
    )  # fmt: skip


def model_of(config: RunConfig) -> JointModel:
    torch.manual_seed(config.seed)
    return build_joint(config, N_CHANS, N_TIMES, 250.0, n_features=N_FEATURES)


# ---- steps


def asked(config: RunConfig, state: TrainState, number: int, device: str) -> Request:
    size = config.train.batch_size
    rows = torch.arange(size, device=device)
    batch = Batch(
        eeg_BCT=torch.randn(size, N_CHANS, N_TIMES, device=device),
        image_BX=torch.randn(size, N_FEATURES, device=device),
        text_BF=None, image_B=rows, label_B=rows - 1 - size, subject_B=rows - rows, row_B=rows,
    )  # fmt: skip
    return Request(config=config, state=state, batch=batch, number=number, index=0, n_steps=1, wish=0)


def compare_steps(encoder: str, count: int, batch: int, is_shared: bool, options: argparse.Namespace) -> list[float]:
    """Print milliseconds for a training's step alone and in a stack of `count`; return the ratios of the pairs."""
    device = torch.device(options.device)
    configs = [config_of(encoder, batch=batch, seed=0 if is_shared else seed).resolved() for seed in range(count)]
    states = [loop._start(config, model_of(config), device, Path()) for config in configs]
    requests = [asked(config, state, 1, options.device) for config, state in zip(configs, states, strict=True)]
    alone_states = [loop._start(config, model_of(config), device, Path()) for config in configs]
    stack = Stack(requests)

    def alone() -> None:
        for request, state in zip(requests, alone_states, strict=True):
            loop.train_step(request.config, state, request.batch, number=1, index=0, n_steps=1)

    ways: dict[str, Callable[[], Any]] = {"alone": alone, "stacked": lambda: stack.step(requests)}
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for work in ways.values():
        work()
    for pair in range(options.pairs):
        for way in ways if pair % 2 == 0 else reversed(ways):
            start = time.perf_counter()
            for _ in range(options.steps):
                ways[way]()
            taken[way].append((time.perf_counter() - start) / options.steps / count)
    ratios = [a / b for a, b in zip(taken["alone"], taken["stacked"], strict=True)]
    times = " | ".join(f"{1000 * statistics.median(own):.3g}" for own in taken.values())
    rows = "equal" if is_shared else "own"
    spread = f"{min(ratios):.2f} | **{statistics.median(ratios):.2f}** | {max(ratios):.2f}"
    print(f"| {encoder} | {batch} | {count} | {rows} | {times} | {spread} |", flush=True)
    return ratios


# ---- trainings


def drawn() -> tuple[Store, np.ndarray]:
    """Return a store of 1,800 segments, and features of its images that the segments hold traces of."""
    rng = np.random.default_rng(0)
    feature_MF = rng.normal(size=(N_IMAGES, N_FEATURES)).astype(np.float32)
    image_N = np.repeat(np.arange(N_IMAGES), N_SHOWN)
    trace_FCT = rng.normal(size=(8, N_CHANS, N_TIMES)) / 4
    eeg_NCT = np.tensordot(feature_MF[image_N, :8], trace_FCT, 1) + rng.normal(size=(len(image_N), N_CHANS, N_TIMES))
    names, rows = tuple(f"E{number}" for number in range(N_CHANS)), np.arange(len(image_N))
    manifest = Manifest(
        name="drawn", dialect="test", licence="none", montage=Montage(channels=names), sfreq_hz=250.0, t_min_s=0.0,
        n_times=N_TIMES, unit="zscore", classes=(), n_segments=len(rows), n_images=N_IMAGES, subjects=("s",),
        dropped={}, audit={"grade": "green"}, shards=(), fingerprint="drawn",
    )  # fmt: skip
    n_val = len(rows) // 5
    store = Store(
        manifest=manifest, cut=Cut(channels=names, first=0, stop=N_TIMES), pieces=(), repeats=singles(rows),
        eeg_NCT=eeg_NCT.astype(np.float32), image_N=image_N, label_N=np.full(len(rows), -1),
        subject_N=np.full(len(rows), "s"), segment_id_N=rows.astype(str),
        split=Split(rows={"train": rows[n_val:], "val": rows[:n_val], "test": rows[:0]}, notes=()),
        images_M3HH=None, image_id_M=np.arange(N_IMAGES).astype(str), label_M=np.full(N_IMAGES, -1),
    )  # fmt: skip
    return store, feature_MF


def trained(config: RunConfig, data: tuple[Store, np.ndarray], device: str, room: Together | None = None) -> float:
    """Train once; return the last training loss."""
    store, feature_MF = data
    side: dict[str, Any] = {"config": config.data, "size_px": None, "batch_size": config.train.batch_size}
    side |= {"seed": config.seed, "device": device, "feature_MF": feature_MF}
    both = [Batches(store, name, training=name == "train", **side) for name in ("train", "val")]
    with tempfile.TemporaryDirectory() as folder:
        given: dict[str, Any] = {"device": device, "folder": Path(folder)}
        if room is None:
            done = loop.fit(config, model_of(config), *both, report=lambda _: None, **given)
        else:
            with room.place(config) as place:
                with room.one_at_a_time:
                    model = model_of(config)
                done = loop.fit(
                    config, model, *both, take_step=place.step, report=lambda _: place.away(lambda: None), **given
                )
    return done.history[-1]["train/loss"]


def part(options: argparse.Namespace) -> None:
    """Be one of the processes: train what is named on the command line, in turn or together, and print the losses."""
    torch.set_num_threads(options.threads)
    data, rates = drawn(), json.loads(options.part)
    configs = [config_of(options.encoders[0], passes=options.passes, rate=rate) for rate in rates]
    if not options.together:
        print(json.dumps([trained(config, data, options.device) for config in configs]))
        return
    room = Together(len(configs))
    with ThreadPoolExecutor(len(configs)) as pool:
        print(json.dumps(list(pool.map(lambda config: trained(config, data, options.device, room), configs))))


def run_processes(shares: list[list[float]], at_a_time: int, options: argparse.Namespace, *flags: str) -> list[float]:
    """Run a process for each share of the learning rates, and return all losses."""

    def one(share: list[float]) -> list[float]:
        command = [sys.executable, __file__, "--part", json.dumps(share), "--passes", str(options.passes), *flags]
        command += ["--encoders", options.encoders[0], *(["--gpu"] if options.gpu else [])]
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)

    with ThreadPoolExecutor(at_a_time) as pool:
        return [loss for losses in pool.map(one, shares) for loss in losses]


def compare_trainings(options: argparse.Namespace) -> dict[str, list[float]]:
    """Print seconds and ratios of all three ways; return the ratios against a process for each."""
    rates, cores = np.geomspace(3e-4, 3e-3, options.trainings).round(7).tolist(), os.cpu_count() or 1
    single, all_threads = ["--threads", "1"], ["--threads", str(cores), "--together"]
    ways: dict[str, Callable[[], list[float]]] = {
        "processes": lambda: run_processes(
            [[rate] for rate in rates], options.trainings if options.gpu else cores, options, *single
        ),
        "in turn": lambda: run_processes([rates[n::cores] for n in range(cores)], cores, options, *single),
        "together": lambda: run_processes([rates], 1, options, *all_threads),
    }
    ratios: dict[str, list[float]] = {way: [] for way in ways}
    print("\n| pair | processes s | in turn s | together s | in turn | together | largest difference of a loss |")
    print("|---|---|---|---|---|---|---|")
    for pair in range(options.pairs):
        seconds, losses = {}, {}
        for way in ways if pair % 2 == 0 else reversed(ways):
            start = time.perf_counter()
            losses[way] = sorted(ways[way]())
            seconds[way] = time.perf_counter() - start
        for way in ways:
            ratios[way].append(seconds["processes"] / seconds[way])
        apart = max(abs(a / b - 1) for a, b in zip(losses["processes"], losses["together"], strict=True))
        times = " | ".join(f"{seconds[way]:.1f}" for way in ways)
        print(
            f"| {pair + 1} | {times} | {ratios['in turn'][-1]:.2f} | {ratios['together'][-1]:.2f} | {apart:.0e} |",
            flush=True,
        )
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=["tsconv", "nice-shallow", "nice-eegnet"])
    parser.add_argument("--trainings", type=int, default=8)
    parser.add_argument("--passes", type=int, default=6)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a minute")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--together", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.device = "cuda" if options.gpu else "cpu"
    if options.part:
        part(options)
        return
    if options.quick:
        options.encoders, options.trainings, options.passes, options.steps = ["tsconv"], 4, 2, 3
    print("| encoder | batch | trainings | rows | alone ms | stacked ms | min | ratio | max |")
    print("|---|---|---|---|---|---|---|---|---|")
    steps = {
        (encoder, batch, is_shared): compare_steps(encoder, options.trainings, batch, is_shared, options)
        for encoder in options.encoders
        for batch in ((16,) if options.quick else (16, 64))
        for is_shared in (True, False)
    }
    ratios = compare_trainings(options)
    for (encoder, batch, is_shared), own in steps.items():
        rows = "the same rows" if is_shared else "rows of their own"
        tell(f"stacked step of {options.trainings}, {encoder}, batch {batch}, {rows}", own, peer="steps alone")
    target = ">= 8" if options.gpu else ">= 2"
    for way in ("in turn", "together"):
        tell(f"trainings per hour, {way}", ratios[way], target=target, peer="a process for each training")


if __name__ == "__main__":
    main()
