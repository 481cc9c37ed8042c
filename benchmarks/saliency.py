"""Time for all saliency maps of one picture: captum's Occlusion against the engines, same net, picture, machine, run.

    python benchmarks/saliency.py --weights FOLDER [--nets alexnet resnet18 densenet161 inception_v3] [--pairs 3]
    python benchmarks/saliency.py --weights FOLDER --gpu --compile --dtypes float32 bfloat16 --batch 256
    python benchmarks/saliency.py --quick            AlexNet trained for 10 s, one pair: about a minute

Needs torch, torchvision, NumPy, SciPy, Pillow, safetensors and captum; no data set and no Ray. Networks are trained
once for `--train-s` seconds each to tell the simulator's ten shapes apart, and kept in `--weights`: half of the time in
pictures of 64 px (75 for Inception v3), half at full size, without which their maps at full size are rougher than
those of any network in use. The picture is a new one; segments are the trained row of its class plus noise of the
same length.

What is timed and what is extrapolated. All = H W S squares, 301,056 at 224 px, for every segment.
- `captum`: whole calls of 16 windows on a 4 x 4 lattice, perturbations_per_eval=16, less the one clean picture that
  every call encodes first; per window, times all squares, times segments. captum's work does not depend on a
  window's place or size, since it makes masks and attributions of the whole picture.
- `exact`: tiles of neighbouring places (one batch, 6 x 6 on CPUs) drawn at random from the tiling of the picture,
  borders in their share, one for each scale in every pair; per square, times all. The readout of all segments is in it.
- `fast`, `coarse`: whole calls with everything they do, the held-out pixels too.
- `compiled` (--compile): the plain batched loop through torch.compile, on GPUs with CUDA graphs; steady state.
A pair times captum, then each engine, then captum again; a ratio is the mean of the two captum times over the engine's,
so load that comes and goes hits both. Printed are the median ratio and the range over pairs.

`difference`: largest between the exact engine and captum at the 16 lattice places, over the range of the fast map.
`r`: of the worst segment at held-out pixels, exact in float32, with its interval; `fewer`: squares over evaluations.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _results import tell
from captum.attr import Occlusion
from torch import Tensor, nn

from eegvision.analyses import suppression
from eegvision.analyses.suppression import SCALES_PX, Arithmetic, saliency_map
from eegvision.config import RunConfig
from eegvision.encoders.image import IMAGENET_MEAN, IMAGENET_STD
from eegvision.encoders.joint import JointModel, build_joint
from eegvision.ingest.stimuli import draw, make_scene

N_EMBED, N_CLASSES, LABEL = 128, 10, 3
N_TEST = 160
QUICK = {"nets": ["alexnet"], "train_s": 10, "pairs": 1}
TARGETS = {"exact": ">= 10", "fast": ">= 300", "coarse": ">= 1000"}  # of float32, for six segments


def side_of(name: str) -> int:
    return 299 if name == "inception_v3" else 224


def picture(label: int, index: int, side_px: int) -> Tensor:
    image_3HW = torch.tensor(draw(make_scene(0, label, index), side_px)).permute(2, 0, 1) / 255
    return (image_3HW - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]


def trained(name: str, options: argparse.Namespace, device: str) -> tuple[JointModel, Tensor, float]:
    """Return the model, the classifier's row of the picture's class, and the share right of new pictures."""
    torch.manual_seed(0)
    settings = {"image.encoder": name, "image.size_px": side_of(name)}
    settings |= {"image.embed_dim": N_EMBED, "eeg.embed_dim": N_EMBED}
    model = build_joint(RunConfig().with_overrides(settings), 8, 100, 250.0)
    assert model.image is not None
    path: Path = options.weights / f"{name}.pt"
    if not path.exists():
        head = nn.Linear(N_EMBED, N_CLASSES)
        accuracy = train(nn.Sequential(model.image, head).to(device), name, options.train_s, device)
        options.weights.mkdir(parents=True, exist_ok=True)
        kept = {"image": model.image.state_dict(), "weight": head.weight.detach().cpu(), "accuracy": accuracy}
        torch.save(kept, path)
    found = torch.load(path, map_location="cpu", weights_only=True)
    model.image.load_state_dict(found["image"])
    return model.to(device).eval(), found["weight"][LABEL], found["accuracy"]


@torch.enable_grad()
def train(net: nn.Sequential, name: str, seconds: float, device: str) -> float:
    """Train half of the time in small pictures, half at full size; return the share right of new pictures there."""
    if name == "alexnet":  # its large layers stay random: they would take most of the time and gain little
        for layer in (1, 4):
            net[0].classifier[layer].requires_grad_(False)  # pyrefly: ignore
    optimiser = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.02)
    accuracy = 0.0
    for side_px, n_train, n_batch in ((75 if name == "inception_v3" else 64, 1440, 32), (side_of(name), 480, 16)):
        label_M = torch.arange(n_train + N_TEST) % N_CLASSES
        image_M3HW = torch.stack([picture(int(label), m // N_CLASSES, side_px) for m, label in enumerate(label_M)])
        net.train()
        start = time.perf_counter()
        for step in itertools.count():
            done = (time.perf_counter() - start) / (seconds / 2)
            if done >= 1:
                break
            for group in optimiser.param_groups:
                group["lr"] = 1e-3 * min(1, (step + 1) / 20) * max(0.02, 1 - done)
            drawn_B = torch.randint(n_train, (n_batch,))
            loss = nn.functional.cross_entropy(net(image_M3HW[drawn_B].to(device)), label_M[drawn_B].to(device))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        net.eval()
        with torch.no_grad():
            guess_M = torch.cat([net(part.to(device)).argmax(1).cpu() for part in image_M3HW[n_train:].split(32)])
        accuracy = float((guess_M == label_M[n_train:]).float().mean())
    return accuracy


def seconds(work: Callable[[], Any], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def captum_windows(model: JointModel, eeg_D: Tensor, image_3HW: Tensor) -> tuple[float, np.ndarray, int]:
    """Return the seconds for each of 16 windows, what captum finds in their centres [4, 4], and their side."""
    side_px = image_3HW.shape[1]
    window_px = -(-side_px // 4) | 1
    clean_s = []

    def forward(image_B3HW: Tensor) -> Tensor:
        start = time.perf_counter()
        score_B = model.encode_image(image_B3HW) @ eeg_D
        if len(image_B3HW) == 1:
            if image_3HW.is_cuda:
                torch.cuda.synchronize()
            clean_s.append(time.perf_counter() - start)
        return score_B

    found: list[Tensor] = []
    shape = (3, window_px, window_px)
    occlusion = Occlusion(forward)
    whole_s = seconds(
        lambda: found.append(
            occlusion.attribute(image_3HW[None], sliding_window_shapes=shape, strides=shape, perturbations_per_eval=16)
        ),
        image_3HW.device.type,
    )
    centre = window_px // 2 + window_px * np.arange(4)
    return (whole_s - sum(clean_s)) / 16, found[0][0, 0].cpu().numpy()[np.ix_(centre, centre)], window_px


class Exact:
    """The exact engine on single tiles: seconds for each square."""

    def __init__(self, model: JointModel, eeg_ND: Tensor, image_3HW: Tensor, arithmetic: Arithmetic, batch: int):
        device = image_3HW.device
        encode, layout = suppression._encoder(model, arithmetic, device)
        readout = suppression._readout(model, eeg_ND, device)
        fill_3HW = torch.zeros_like(image_3HW)
        self.engine = suppression._Suppressed(encode, readout, image_3HW, fill_3HW, batch, layout)
        # The tiles that the engine itself makes of neighbouring places.
        self._n_side = min(int(batch**0.5), suppression._NEAR_SIDE) if device.type == "cpu" else int(batch**0.5)
        self._device = device.type
        self.engine.drop(np.zeros((1, 2), dtype=int), SCALES_PX[0])  # the clean picture is encoded but once

    def tile_s(self, rng: np.random.Generator) -> float:
        n_tiles = -(-self.engine.shape[0] // self._n_side)
        spent_s, n_squares = 0.0, 0
        for scale_px in SCALES_PX:
            corner_2 = rng.integers(0, n_tiles, 2) * self._n_side
            place_P2 = corner_2 + np.indices((self._n_side, self._n_side)).reshape(2, -1).T
            place_P2 = place_P2[(place_P2 < self.engine.shape).all(axis=1)]
            spent_s += seconds(lambda at=place_P2, px=scale_px: self.engine.drop(at, px), self._device)
            n_squares += len(place_P2)
        return spent_s / n_squares


@torch.no_grad()
def compare(name: str, options: argparse.Namespace, device: str) -> dict[str, list[float]]:
    """Print a network's table; return captum's time over each engine's, for six segments."""
    model, row_D, accuracy = trained(name, options, device)
    image_3HW = picture(LABEL, 500, side_of(name)).to(device)
    noise_ND = torch.randn(6, N_EMBED, generator=torch.Generator().manual_seed(2))
    eeg_ND = (row_D + row_D.norm() / N_EMBED**0.5 * noise_ND).to(device)
    n_all = side_of(name) ** 2 * len(SCALES_PX)
    rng = np.random.default_rng(3)
    print(f"\n{name}, {side_of(name)} px, accuracy {accuracy:.2f}, {n_all:,} squares\n", flush=True)
    # The engines do six segments in both columns: one would save them the last product, and refine no more.
    work: dict[str, Callable[[], float]] = {}
    maps: dict[str, suppression.Saliency] = {}
    exacts = {}
    for dtype in options.dtypes:
        arithmetic = Arithmetic(dtype=dtype)
        exacts[dtype] = Exact(model, eeg_ND, image_3HW, arithmetic, options.batch)
        work[f"exact {dtype}"] = lambda dtype=dtype: exacts[dtype].tile_s(rng) * n_all
        engines: tuple[suppression.Engine, ...] = ("fast", "coarse")
        for engine in engines:

            def whole(engine: suppression.Engine = engine, arithmetic=arithmetic, dtype=dtype) -> float:
                return seconds(
                    lambda: maps.update(
                        {
                            f"{engine} {dtype}": saliency_map(
                                model, eeg_ND, image_3HW, engine=engine, arithmetic=arithmetic, batch_size=options.batch
                            )
                        }
                    ),
                    device,
                )

            work[f"{engine} {dtype}"] = whole
    if options.compile:
        compiled = torch.compile(model.encode_image, mode="reduce-overhead" if device == "cuda" else "default")
        images_B3HW = image_3HW.repeat(options.batch, 1, 1, 1).contiguous(memory_format=torch.channels_last)
        for dtype in options.dtypes:

            def loop(dtype=dtype) -> float:
                is_short = dtype == "bfloat16"
                with torch.autocast(device, torch.bfloat16, enabled=is_short):
                    return seconds(lambda: compiled(images_B3HW), device) / options.batch * n_all

            loop()
            loop()
            work[f"compiled {dtype}"] = loop
    ratios, captum_ms = measured(work, lambda: captum_windows(model, eeg_ND[0], image_3HW)[0], n_all, options.pairs)
    _, found_44, window_px = captum_windows(model, eeg_ND[0], image_3HW)
    place_P2 = (window_px // 2 + window_px * np.indices((4, 4))).reshape(2, -1).T
    wanted_44 = exacts["float32"].engine.drop(place_P2, window_px)[0].reshape(4, 4)
    total_HW = maps["fast float32"].drop_NSHW[0].sum(axis=0)
    difference = np.abs(found_44 - wanted_44).max() / np.ptp(total_HW)
    print(f"captum {captum_ms:.1f} ms for each square; difference {difference:.1e}\n")
    print("| engine | 1 segment: median | range | 6 segments: median | evaluations | fewer | r | range error |")
    print("|---|---|---|---|---|---|---|---|")
    for key, value in ratios.items():
        low, middle, high = min(value), statistics.median(value), max(value)
        line = f"| {key} | **{middle:.3g}** | {low:.3g}-{high:.3g} | **{6 * middle:.3g}** |"
        found = maps.get(key)
        if found is None or found.agreement is None:
            print(line + " | | | |")
            continue
        of = found.agreement
        worst = int(of.r_N.argmin())
        interval = f"{of.r_N[worst]:.4f} [{of.low_N[worst]:.4f}, {of.high_N[worst]:.4f}]"
        fewer = n_all / found.n_evaluations
        print(f"{line} {found.n_evaluations} | {fewer:.0f} | {interval} | {of.max_N.max():.3f} |", flush=True)
    return {key: [6 * one for one in value] for key, value in ratios.items()}


def measured(
    work: dict[str, Callable[[], float]], captum_s: Callable[[], float], n_all: int, n_pairs: int
) -> tuple[dict[str, list[float]], float]:
    """Return the ratios of captum's time for one segment to that of each engine, and captum's milliseconds."""
    captum_s()
    ratios: dict[str, list[float]] = {key: [] for key in work}
    spent_s = []
    for _ in range(n_pairs):
        before_s = captum_s()
        for key, timed in work.items():
            engine_s = timed()
            after_s = captum_s()
            ratios[key].append((before_s + after_s) / 2 * n_all / engine_s)
            print(f"{key}: {ratios[key][-1]:.3g} for one segment", flush=True)
            before_s = after_s
            spent_s.append(after_s)
    return ratios, 1e3 * statistics.median(spent_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="folder that trained networks are kept in")
    parser.add_argument("--train-s", type=float, default=600, help="seconds of training for each network")
    parser.add_argument("--nets", nargs="+", default=["alexnet", "resnet18", "densenet161", "inception_v3"])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64, help="squares the engines encode at a time")
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=["float32", "bfloat16"])
    parser.add_argument("--compile", action="store_true", help="time the plain loop through torch.compile too")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--quick", action="store_true", help="at a size for a minute")
    options = parser.parse_args()
    if options.quick:
        vars(options).update(QUICK)
    elif options.weights is None:
        parser.error("--weights is needed, so that networks are trained once")
    device = "cuda" if options.gpu else "cpu"
    where = torch.cuda.get_device_name() if options.gpu else f"{torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {where}; engines in batches of {options.batch}, captum of 16")
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        options.weights = options.weights or Path(folder)
        for name in options.nets:
            found |= {f"{name}, {key}": ratios for key, ratios in compare(name, options, device).items()}
    for key, ratios in found.items():
        target = TARGETS.get(key.split()[1]) if "float32" in key else None
        tell(f"saliency of 6 segments, {key}", ratios, target=target, peer="captum Occlusion")


if __name__ == "__main__":
    main()
