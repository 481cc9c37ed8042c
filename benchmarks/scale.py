"""How cost grows with the size of the work, on this machine, and what the paper's whole work would take on 64 GPUs.

    python benchmarks/scale.py [--what curves estimate] [--rounds 3]               some minutes on 2 cores
    python benchmarks/scale.py --quick                                             curves of fewer sizes, a minute

Needs torch, NumPy and what ingest needs; no data set and no Ray. There is no peer: a curve is held against the growth
that its work has on paper.

- curves: seconds at growing sizes, all sizes in turn, forth and back, `--rounds` times. The exponent k of seconds ~
  size^k is the slope of a straight line through logarithms, one for each round (min, median, max); `end` is that of the
  two largest sizes alone (of medians): where it differs from the first, a curve is not a power.
- estimate: counted FLOPs (torch's counter, on tensors without values) x how often they are needed / assumed FLOP/s.
  Nothing of it was measured; every assumption is in `Assumed` and printed. Cluster efficiency is that of fanout.py, the
  counts of the saliency engines are those of saliency.py.

How cost grows with trials is in overhead.py, with nodes in fanout.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _results import tell
from residency import WORKS, Training
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from eegvision import stream
from eegvision.analyses import association as associations
from eegvision.analyses.channels import Noise, channel_changes
from eegvision.analyses.suppression import SCALES_PX, saliency_map
from eegvision.config import DataConfig, RunConfig
from eegvision.encoders.joint import JointModel, build_joint
from eegvision.ingest import assemble, simulate
from eegvision.ingest.places import place
from eegvision.ingest.sources import Recording
from eegvision.vocab import Segment

QUICK = {"what": ["curves"], "rounds": 2}
Prepared = Callable[[int], Callable[[], object]]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Some work at several sizes; `expected` is the exponent that it has on paper."""

    what: str
    axis: str
    sizes: tuple[int, ...]
    prepare: Prepared
    expected: float


def model_of(image: str, eeg: str, n_chans: int, side_px: int) -> JointModel:
    """A model with random weights and batch statistics of noise."""
    torch.manual_seed(0)
    settings = {"image.encoder": image, "image.size_px": side_px, "eeg.encoder": eeg, "loss.name": "info_nce"}
    model = build_joint(RunConfig().with_overrides(settings), n_chans, 250, 250.0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = None  # statistics of the one batch below
    model.train()
    with torch.no_grad():
        model.encode_image(torch.randn(8, 3, side_px, side_px))
        model.encode_eeg(torch.randn(8, n_chans, 250))
    return model.eval()


def training(folder: Path, size: int, *, axis: str) -> Callable[[], object]:
    """Steps of TSConv on frozen features: two on one batch, or, for segments, those of a pass over the data."""
    work = dataclasses.replace(WORKS["demo"], **{axis: size})
    state = Training(work, "features", torch.device("cpu"), folder)
    if axis == "n_segments":
        return lambda: state.steps(size // work.batch_size, is_fixed=False)
    return lambda: state.steps(2, is_fixed=True)


def channels(n_chans: int) -> Callable[[], object]:
    """All channels of two segments."""
    model = model_of("small", "tsconv", n_chans, 32)
    eeg_BCT, names = torch.randn(2, n_chans, 250), [f"E{number}" for number in range(n_chans)]
    noise = Noise(sfreq_hz=250.0, n_draws=1)
    return lambda: channel_changes(model, eeg_BCT, ["one", "two"], names, noise)


def pairs(size: int, *, axis: str, can_branch: bool = True) -> Callable[[], object]:
    """Associations of maps of a layer with channels: the first with so many maps, or 64 maps and so many channels."""
    n_chans, n_maps = (size, 64) if axis == "channels" else (32, size)
    model = model_of("resnet18", "tsconv", n_chans, 64)
    image_3HW = torch.randn(3, 64, 64)
    layer = next(one for one in associations.find_layers(model, image_3HW) if one.n_maps == n_maps)
    layer = dataclasses.replace(layer, can_branch=layer.can_branch and can_branch)
    eeg_BCT, names = torch.randn(1, n_chans, 250), [f"E{number}" for number in range(n_chans)]
    noise = Noise(sfreq_hz=250.0, n_draws=1)

    def work() -> object:
        changes = channel_changes(model, eeg_BCT, ["one"], names, noise)
        return associations.association(model, image_3HW, changes.change_BRCD.mean(1)[:, None], [layer])

    return work


def maps(side_px: int) -> Callable[[], object]:
    """Every pixel of a picture at two scales."""
    model = model_of("small", "tsconv", 8, side_px)
    image_3HW, eeg_ND = torch.randn(3, side_px, side_px), torch.randn(6, model.config.image.embed_dim)
    return lambda: saliency_map(model, eeg_ND, image_3HW, scales_px=(3, 9))


def recording_of(n_segments: int, n_images: int) -> Recording:
    """A simulated recording in memory, so that making it up takes no time."""
    options = simulate.Simulation(
        n_subjects=1, n_classes=4, images_per_class=n_images // 4, repetitions=n_segments // n_images, viewers=0
    )
    made = simulate.simulate(options)
    kept = [list(part.read(type(made.dropped)())) for part in made.parts]
    parts = [dataclasses.replace(part, read=partial(given, own)) for part, own in zip(made.parts, kept, strict=True)]
    return dataclasses.replace(made, parts=parts, stimuli=list(made.stimuli))


def given(segments: list[Segment], _: object) -> Iterator[Segment]:
    return iter(segments)


def ingest(folder: Path, n_segments: int) -> Callable[[], object]:
    """A recording of 80 pictures to a data set."""
    recording, number = recording_of(n_segments, 80), itertools.count()
    return lambda: assemble.write(place(folder / f"{n_segments}-{next(number)}"), recording)


def load(folder: Path, size: int, *, axis: str) -> Callable[[], object]:
    """A data set to memory: segments alone, or its pictures too, one segment each."""
    root = folder / f"{axis}-{size}"
    assemble.write(place(root), recording_of(size, size if axis == "images" else 80))
    config = DataConfig(dataset=str(root))
    return lambda: stream.load_store(config, 64 if axis == "images" else None)


def curves_in(folder: Path) -> list[Curve]:
    """Return what is measured."""

    def step(axis: str) -> Prepared:
        return partial(training, folder, axis=axis)

    def loading(axis: str) -> Prepared:
        return partial(load, folder, axis=axis)

    def of_maps(*, can_branch: bool) -> Prepared:
        return partial(pairs, axis="maps", can_branch=can_branch)

    of_channels = partial(pairs, axis="channels")
    rows: list[tuple[str, str, tuple[int, ...], Prepared, float]] = [
        ("training step", "segments of a batch", (16, 32, 64, 128, 256), step("batch_size"), 1),
        ("training step", "channels", (16, 32, 64, 128), step("n_chans"), 1),
        ("training step", "samples of a segment", (110, 220, 440, 880), step("n_times"), 1),
        ("pass of training", "segments", (512, 1024, 2048, 4096), step("n_segments"), 1),
        ("ingest", "segments", (320, 640, 1280, 2560), partial(ingest, folder), 1),
        ("loading", "segments", (320, 640, 1280, 2560), loading("segments"), 1),
        ("loading with pictures", "images", (160, 320, 640, 1280), loading("images"), 1),
        ("all channels of a segment", "channels", (16, 32, 64, 128), channels, 1),
        ("associations, 64 maps", "channels", (16, 32, 64, 128), of_channels, 1),
        ("associations, whole passes", "maps of a layer", (64, 128, 256, 512), of_maps(can_branch=False), 1),
        ("associations", "maps of a layer", (64, 128, 256, 512), of_maps(can_branch=True), 1),
        ("exact saliency map", "pixels of a side", (24, 32, 48, 64), maps, 4),
    ]
    return [
        Curve(what=what, axis=axis, sizes=sizes, prepare=prepare, expected=expected)
        for what, axis, sizes, prepare, expected in rows
    ]


def measured(curve: Curve, rounds: int) -> np.ndarray:
    """Return seconds [rounds, sizes], the mean over at least a fifth of a second."""
    works = [curve.prepare(size) for size in curve.sizes]
    n_times = []
    for work in works:
        work()  # whatever is made when first called
        start = time.perf_counter()
        work()
        n_times.append(max(1, math.ceil(0.2 / (time.perf_counter() - start))))
    taken_s = np.empty((rounds, len(works)))
    for turn, order in zip(range(rounds), itertools.cycle((range(len(works)), range(len(works))[::-1])), strict=False):
        for n in order:
            start = time.perf_counter()
            for _ in range(n_times[n]):
                works[n]()
            taken_s[turn, n] = (time.perf_counter() - start) / n_times[n]
    return taken_s


def exponents(sizes: tuple[int, ...], taken_s: np.ndarray) -> tuple[list[float], float]:
    """Return k of seconds ~ size^k for each round, and that between the two largest sizes."""
    log_S, log_RS = np.log(sizes), np.log(taken_s)
    end = np.diff(np.log(np.median(taken_s, axis=0))[-2:]) / np.diff(log_S[-2:])
    return [float(np.polyfit(log_S, log_S_of, 1)[0]) for log_S_of in log_RS], float(end[0])


def draw_curves(rounds: int, *, is_quick: bool) -> dict[str, list[float]]:
    """Measure and print all curves; return the exponents of each."""
    print("| what | over | sizes | ms at these, median | expected | exponent min | median | max | end |")
    print("|---|---|---|---|---|---|---|---|---|")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for curve in curves_in(Path(folder)):
            sizes = curve.sizes[1:] if is_quick else curve.sizes
            curve = dataclasses.replace(curve, sizes=sizes[:-1] if is_quick else sizes)
            taken_s = measured(curve, rounds)
            each, end = exponents(curve.sizes, taken_s)
            times = ", ".join(f"{1000 * value:.3g}" for value in np.median(taken_s, axis=0))
            print(
                f"| {curve.what} | {curve.axis} | {', '.join(map(str, curve.sizes))} | {times} | {curve.expected:g} | "
                f"{min(each):.2f} | **{statistics.median(each):.2f}** | {max(each):.2f} | {end:.2f} |",
                flush=True,
            )
            found[f"{curve.what} over {curve.axis}; on paper {curve.expected:g}"] = each
    return found


# ---- the estimate


Range = tuple[float, float, float]  # worst, middle, best


@dataclass(frozen=True, kw_only=True)
class Assumed:
    """What the estimate rests on; of three values the worst, the likeliest and the best."""

    n_gpus: int = 64
    n_seeds: int = 5
    n_pictures: int = 2000
    n_segments: int = 12_000
    trained_share: float = 0.8
    batch_size: int = 16
    passes: int = 100
    n_chans: int = 128
    n_times: int = 440
    n_looks: int = 5
    """Whole segments and four intervals."""
    training_share: Range = (0.02, 0.06, 0.2)
    """Of the peak in bfloat16: a fifth is NVIDIA's ResNet-50 on an A100 in batches of 256; batches of 16 reach less."""
    analysis_share: Range = (0.15, 0.35, 0.65)
    """Of the peak in float32 without tensor cores: the best is NVIDIA's ResNet-50 in batches of 256 on a V100."""
    recurrence_ms: Range = (20, 9, 4)
    """Of 440 steps of a GRU or LSTM forth and back, one after the other: 23, 10 and 5 us each."""
    aside: float = 1.1
    """Validation, checkpoints, starting: of a training."""
    exact_gain: Range = (1, 2, 2)
    """Full passes over what the exact engine computes: 2.1 for DenseNet-161 and Inception v3 on a CPU."""
    fast_evaluations: Range = (10_384, 2_463, 862)
    """Of the engine `fast`, on networks trained for minutes: its limit, DenseNet-161, and ResNet-18 as the best."""
    choosing_s: Range = (94, 9, 3)
    """What `fast` takes to choose squares: on one CPU core at its limit and for DenseNet-161; on a GPU a guess."""
    efficiency: float = 0.95
    """Of 64 workers in the steady state; fanout.py had 0.96 to 0.97."""


PEAK_TFLOPS = {"A100": {"float32": 19.5, "bfloat16": 312.0}, "H100": {"float32": 67.0, "bfloat16": 989.0}}
IMAGES, EEGS = ("alexnet", "resnet101", "densenet161", "inception_v3"), ("palazzo-lstm", "palazzo-gru")
BEST_PAIR = ("densenet161", "palazzo-gru")  # of the paper


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """FLOPs of an image encoder: of a picture, a training step, and all maps of a picture taken out one by one."""

    side_px: int
    picture: float
    step: float
    n_maps: int
    maps: float

    @property
    def n_squares(self) -> int:
        """Squares of a saliency map at every pixel."""
        return self.side_px**2 * len(SCALES_PX)


@dataclass(frozen=True, kw_only=True)
class Segments:
    """FLOPs of an EEG encoder: of a segment, of what of it comes after channels have met, of a training step."""

    segment: float
    met: float
    step: float


def built(image: str, eeg: str, assumed: Assumed) -> JointModel:
    """Return a model without values; build and use it under `torch.device("meta")`."""
    settings = {"image.encoder": image, "eeg.encoder": eeg, "loss.name": "triplet"}
    return build_joint(RunConfig().with_overrides(settings), assumed.n_chans, assumed.n_times, 1000.0).eval()


def count_pictures(image: str, assumed: Assumed) -> Pictures:
    with torch.device("meta"):
        model = built(image, "tsconv", assumed)
        side_px = model.config.image.input_px
        picture = torch.empty(1, 3, side_px, side_px)
        batch = picture.expand(assumed.batch_size, -1, -1, -1)
        n_maps, maps = count_maps(model, picture)
        return Pictures(
            side_px=side_px,
            picture=flops(lambda: model.encode_image(picture)),
            step=flops(lambda: model.encode_image(batch).sum().backward(), has_gradient=True),
            n_maps=n_maps,
            maps=maps,
        )


def count_segments(eeg: str, assumed: Assumed) -> Segments:
    with torch.device("meta"):
        model = built("small", eeg, assumed)
        encoder: Any = model.eeg
        segment = torch.empty(1, assumed.n_chans, assumed.n_times)
        met_1FT = torch.empty(1, encoder.merge_F1C.shape[0], assumed.n_times)
        of_one = flops(lambda: model.encode_eeg(segment))
        # Backward is twice forward; to count it through a recurrent layer takes a quarter of an hour.
        step = 3 * assumed.batch_size * of_one
        return Segments(segment=of_one, met=flops(lambda: encoder.summarise(met_1FT)), step=step)


def flops(work: Callable[[], object], *, has_gradient: bool = False) -> float:
    """Return the floating-point operations of matrix products and convolutions, two for each multiplication."""
    counter = FlopCounterMode(display=False)
    with counter, torch.set_grad_enabled(has_gradient):
        work()
    return float(counter.get_total_flops())


def count_maps(model: JointModel, picture: torch.Tensor) -> tuple[int, float]:
    """Return the maps of the layers looked at, and the FLOPs of taking each out, from its layer on."""
    net = associations.network_of(model)[0]
    counter, seen = FlopCounterMode(display=False), []

    def note(_: nn.Module, __: object, output: torch.Tensor) -> None:
        if output.ndim == 4:
            seen.append((output.shape[1], counter.get_total_flops()))

    handles = [net.get_submodule(name).register_forward_hook(note) for name in associations._usual(model, net)]
    with counter, torch.no_grad():
        model.encode_image(picture)
    for handle in handles:
        handle.remove()
    total = counter.get_total_flops()
    return sum(n for n, _ in seen), float(sum(n * (total - before) for n, before in seen))


def training_hours(steps: list[float], assumed: Assumed, gpu: str) -> tuple[Range, Range]:
    """Return the GPU hours of all trainings, and the hours of the longest, by FLOPs of a step of each configuration.

    Each has one GPU, and there are more GPUs than trainings, or they take turns.
    """
    n_steps = assumed.passes * int(assumed.trained_share * assumed.n_segments / assumed.batch_size)
    peak = 1e12 * PEAK_TFLOPS[gpu]["bfloat16"]
    each = [
        [
            assumed.aside * n_steps * (step / (share * peak) + recurrence_ms / 1000) / 3600
            for share, recurrence_ms in zip(assumed.training_share, assumed.recurrence_ms, strict=True)
        ]
        for step in steps
    ]
    worst, middle, best = (assumed.n_seeds * sum(hours) for hours in zip(*each, strict=True))
    n_turns = math.ceil(assumed.n_seeds * len(steps) / assumed.n_gpus)
    longest = [n_turns * max(hours) for hours in zip(*each, strict=True)]
    return (worst, middle, best), (longest[0], longest[1], longest[2])


def analyses(of: Pictures, segments: Segments, assumed: Assumed) -> dict[str, Range]:
    """Return the FLOPs of each analysis of one model."""
    exact = [assumed.n_pictures * of.n_squares * of.picture / gain for gain in assumed.exact_gain]
    fast = [assumed.n_pictures * n * of.picture for n in assumed.fast_evaluations]
    # The channels of a segment, and those of its noise, pass the first layers once.
    changes = assumed.n_looks * assumed.n_segments * (2 * segments.segment + assumed.n_chans * segments.met)
    maps = assumed.n_pictures * of.maps
    return {
        "maps, exact": (exact[0], exact[1], exact[2]),
        "maps, fast": (fast[0], fast[1], fast[2]),
        "all channels": (changes, changes, changes),
        "all associations": (maps, maps, maps),
    }


def wall_hours(needed: Range, assumed: Assumed, gpu: str) -> Range:
    """Return the hours on all GPUs together."""
    rate = 3600e12 * PEAK_TFLOPS[gpu]["float32"] * assumed.n_gpus * assumed.efficiency
    worst, middle, best = (flop / (rate * share) for flop, share in zip(needed, assumed.analysis_share, strict=True))
    return worst, middle, best


def with_choosing(hours: Range, assumed: Assumed) -> Range:
    """Add the time in which the engine `fast` chooses squares."""
    each = assumed.n_pictures / (3600 * assumed.n_gpus * assumed.efficiency)
    worst, middle, best = (hour + each * second for hour, second in zip(hours, assumed.choosing_s, strict=True))
    return worst, middle, best


def shown(hours: Range) -> str:
    """Return worst, middle and best, in hours or minutes."""
    scale, unit = (60, "min") if max(hours) < 1 else (1, "h")
    return " | ".join(f"{scale * value:.2g} {unit}" if value < 99.5 else f"{value:.0f} h" for value in hours)


def print_hours(gpu: str, of: dict[str, Pictures], eegs: dict[str, Segments], assumed: Assumed) -> Range:
    """Print the table of a kind of GPU; return the hours of the whole work, analyses of the paper's best pair."""
    steps = [one.step + other.step for one, other in itertools.product(of.values(), eegs.values())]
    every, longest = training_hours(steps, assumed, gpu)
    print(f"\n{assumed.n_gpus} {gpu}s, time until all is done\n\n| work | worst | likeliest | best |")
    print("|---|---|---|---|")
    print(f"| {assumed.n_seeds * len(steps)} trainings, a GPU each | {shown(longest)} |")
    print(f"| (the same, GPU hours) | {shown(every)} |")
    parts = [longest]
    for image, one in of.items():
        for name, needed in analyses(one, eegs[BEST_PAIR[1]], assumed).items():
            hours = wall_hours(needed, assumed, gpu)
            if name == "maps, fast":
                hours = with_choosing(hours, assumed)
            if image == BEST_PAIR[0] and name != "maps, fast":
                parts.append(hours)
            if image == BEST_PAIR[0] or name != "all channels":  # these are the same for every image encoder
                print(f"| {name}{'' if name == 'all channels' else f', {image}'} | {shown(hours)} |")
    worst, middle, best = (sum(part) for part in zip(*parts, strict=True))
    what = f"trainings, then exact maps, channels and associations of {BEST_PAIR[0]}"
    print(f"| **{what}** | {shown((worst, middle, best))} |")
    return worst, middle, best


def estimate(assumed: Assumed) -> dict[str, Range]:
    """Print what was assumed, what was counted and what follows; return the hours of the whole work on each GPU."""
    print("\nAssumed (worst, likeliest, best where there are three):\n")
    for name, value in dataclasses.asdict(assumed).items():
        print(f"- {name}: {value}")
    print(f"- peak TFLOP/s (data sheets, dense, SXM): {PEAK_TFLOPS}")
    columns = "a picture, GFLOP | a step, TFLOP | squares of a map | maps of its layers | all of them out, TFLOP"
    print(f"\n| network | px | {columns} |\n|---|---|---|---|---|---|---|")
    of = {image: count_pictures(image, assumed) for image in IMAGES}
    for image, one in of.items():
        counts = f"{one.side_px} | {one.picture / 1e9:.3g} | {one.step / 1e12:.3g} | {one.n_squares:,} | {one.n_maps:,}"
        print(f"| {image} | {counts} | {one.maps / 1e12:.3g} |")
    eegs = {eeg: count_segments(eeg, assumed) for eeg in EEGS}
    for eeg, other in eegs.items():
        print(
            f"\n{eeg}: {other.segment / 1e9:.3g} GFLOP a segment, {other.met / 1e9:.3g} after channels have met;",
            end=" ",
        )
        print(f"a step {other.step / 1e12:.3g} TFLOP.")
    return {gpu: print_hours(gpu, of, eegs, assumed) for gpu in PEAK_TFLOPS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", choices=["curves", "estimate"], default=["curves", "estimate"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="at a size for a minute")
    options = parser.parse_args()
    if options.quick:
        vars(options).update(QUICK)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; {options.rounds} rounds\n")
    found = draw_curves(options.rounds, is_quick=options.quick) if "curves" in options.what else {}
    totals = estimate(Assumed()) if "estimate" in options.what else {}
    for what, each in found.items():
        tell(f"growth of {what}", each, unit="exponent", peer="growth of the work on paper")
    for gpu, hours in totals.items():
        tell(f"estimate, not measured: the paper's work on 64 {gpu}s", hours, unit="h", peer="none")


if __name__ == "__main__":
    main()
