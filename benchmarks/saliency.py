"""Time for all saliency maps of one picture: a plain batched loop over Eq. 3 against the two engines.

    python benchmarks/saliency.py [--nets small resnet18] [--side 64] [--segments 1 6] [--pairs 3]    minutes on 2 cores
    python benchmarks/saliency.py --gpu --nets resnet18 densenet161 --side 224                        on a GPU

Needs torch, torchvision, NumPy, SciPy and safetensors; no data set and no Ray. The loop is what one would write
from the paper: for each segment, in inference mode and batches of `--loop-batch`, copy the picture, set squares to
zero, encode, multiply with the segment's embedding. It is timed on a random sample of places and scales and scaled up
to all of them, times the number of segments; the engines are timed whole, with all their checks. Weights are random,
with batch statistics of noise. All runs of a pair follow each other; a ratio is the loop's time over the engine's, so
above 1 the engine is faster. `difference` is the largest between exact and loop at the sampled places over the range
of the summed map; `fewer` is how many times fewer pictures `fast` encodes; r is what it reports, `true r` is against
the exact map.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch
from torch import Tensor, nn

from eegvision.analyses.suppression import SCALES_PX, Fast, Saliency, saliency_map
from eegvision.config import RunConfig
from eegvision.encoders.joint import JointModel, build_joint


def make(name: str, side_px: int, device: str) -> JointModel:
    torch.manual_seed(0)
    settings = {"image.encoder": name, "image.size_px": side_px, "image.embed_dim": 128, "eeg.embed_dim": 128}
    model = build_joint(RunConfig().with_overrides(settings), 8, 100, 250.0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # statistics of the one batch below
    model.to(device).train()
    with torch.no_grad():
        model.encode_image(torch.randn(16, 3, side_px, side_px, device=device))
    return model.eval()


def picture(side_px: int, device: str) -> Tensor:
    """Smooth noise, since pictures are smooth, with a bright object."""
    coarse = torch.randn(1, 3, max(2, side_px // 8), max(2, side_px // 8), generator=torch.Generator().manual_seed(1))
    image_3HW = nn.functional.interpolate(coarse, size=(side_px, side_px), mode="bicubic")[0]
    image_3HW[:, side_px // 4 : side_px // 2, side_px // 2 : 3 * side_px // 4] += 2
    return image_3HW.to(device)


@torch.inference_mode()
def loop(model: JointModel, eeg_D: Tensor, image_3HW: Tensor, squares: np.ndarray, batch_size: int) -> Tensor:
    """Return S_σ of one segment at squares [P, 3] of (row, column, side)."""
    whole = model.encode_image(image_3HW[None])[0] @ eeg_D
    drops = []
    for start in range(0, len(squares), batch_size):
        batch = squares[start : start + batch_size].tolist()
        image_B3HW = image_3HW.repeat(len(batch), 1, 1, 1)
        for view_3HW, (row, column, side) in zip(image_B3HW, batch, strict=True):
            reach = side // 2
            view_3HW[:, max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1] = 0
        drops.append(whole - model.encode_image(image_B3HW) @ eeg_D)
    return torch.cat(drops)


def timed(work, device: str):
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    found = work()
    if device == "cuda":
        torch.cuda.synchronize()
    return found, time.perf_counter() - start


def compare(name: str, n_segments: int, options: argparse.Namespace, device: str) -> str:
    model, image_3HW = make(name, options.side, device), picture(options.side, device)
    generator = torch.Generator().manual_seed(2)
    eeg_ND = torch.randn(n_segments, 128, generator=generator).to(device)
    rng = np.random.default_rng(3)
    places = rng.integers(0, options.side, (options.sample, 2))
    squares = np.column_stack([places, rng.choice(SCALES_PX, options.sample)])
    n_all = options.side**2 * len(SCALES_PX)
    exact_ratios, fast_ratios = [], []
    fast = Fast(fidelity=options.fidelity, n_held_out=options.held_out)
    loop(model, eeg_ND[0], image_3HW, squares[: options.loop_batch], options.loop_batch)
    exact: Saliency | None = None
    quick: Saliency | None = None
    drop_P = torch.empty(0)
    for _ in range(options.pairs):
        drop_P, sample_s = timed(lambda: loop(model, eeg_ND[0], image_3HW, squares, options.loop_batch), device)
        loop_s = sample_s / options.sample * n_all * n_segments
        exact, exact_s = timed(lambda: saliency_map(model, eeg_ND, image_3HW, batch_size=options.batch), device)
        quick, quick_s = timed(
            lambda: saliency_map(model, eeg_ND, image_3HW, engine=fast, batch_size=options.batch), device
        )
        exact_ratios.append(loop_s / exact_s)
        fast_ratios.append(loop_s / quick_s)
    assert exact is not None
    assert quick is not None
    assert quick.agreement is not None
    at_P = exact.drop_NSHW[0, [SCALES_PX.index(s) for s in squares[:, 2]], squares[:, 0], squares[:, 1]]
    difference = np.abs(at_P - drop_P.cpu().numpy()).max() / np.ptp(exact.drop_NSHW[0].sum(axis=0))
    true_r = min(np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(quick.map_NHW, exact.map_NHW, strict=True))
    worst = int(quick.agreement.r_N.argmin())
    r, low, high = (value[worst] for value in (quick.agreement.r_N, quick.agreement.low_N, quick.agreement.high_N))
    shown = " | ".join(
        f"{min(ratios):.2f} | **{statistics.median(ratios):.2f}** | {max(ratios):.2f}"
        for ratios in (exact_ratios, fast_ratios)
    )
    fewer = exact.n_evaluations / quick.n_evaluations
    return (
        f"| {name} | {options.side} | {n_segments} | {shown} | {difference:.1e} | {fewer:.1f} | "
        f"{r:.4f} [{low:.4f}, {high:.4f}] | {true_r:.4f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=["small", "resnet18"])
    parser.add_argument("--side", type=int, default=64, help="of the picture, pixels")
    parser.add_argument("--segments", type=int, nargs="+", default=[1, 6])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--sample", type=int, default=512, help="squares the loop is timed on")
    parser.add_argument("--loop-batch", type=int, default=16, help="pictures the loop encodes at a time")
    parser.add_argument("--batch", type=int, default=64, help="pictures the engines encode at a time")
    parser.add_argument("--fidelity", type=float, default=0.99)
    parser.add_argument("--held-out", type=int, default=100)
    parser.add_argument("--gpu", action="store_true")
    options = parser.parse_args()
    device = "cuda" if options.gpu else "cpu"
    where = torch.cuda.get_device_name() if options.gpu else f"{torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {where}; loop in batches of {options.loop_batch}, engines of {options.batch}\n")
    ratios = "exact min | median | max | fast min | median | max"
    print(f"| network | side | segments | {ratios} | difference | fewer | r | true r |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|---|")
    for name in options.nets:
        for n_segments in options.segments:
            print(compare(name, n_segments, options, device), flush=True)


if __name__ == "__main__":
    main()
