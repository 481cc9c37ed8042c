"""Time for the importance of all channels of a segment: a loop over channels, one at a time, against `channel_changes`.

    python benchmarks/channels.py [--encoders tsconv palazzo-gru] [--channels 64 128] [--pairs 5]    minutes on 2 cores
    python benchmarks/channels.py --quick                                                            under a minute

Needs torch, NumPy and SciPy; no data set and no Ray. The loop is what one would write from Palazzo et al., Eq. 5-7: for
each segment, draw and channel, copy the segment, put noise in the row's place (`noise_rows` for this row alone), encode
the copy and subtract F. It is timed on the first `--loop-segments` segments and scaled to all; the engine on all of
them, noise and checks included. `batched` is the loop's kinder sister: the copies of one segment and draw, all their
noise drawn at once, pass the encoder together. Weights are random, with batch statistics of noise. Runs of a pair
follow each other, in an order that alternates; a ratio is the loop's time over the engine's, so above 1 the engine is
faster. `difference` is the largest between both over the largest importance.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from _results import tell
from torch import Tensor, nn

from eegvision.analyses.channels import Noise, channel_importance, noise_rows
from eegvision.config import RunConfig
from eegvision.encoders.joint import JointModel, build_joint

Found = TypeVar("Found")
QUICK = {"encoders": ["tsconv"], "channels": [64], "draws": 1, "segments": 2}


def make(name: str, n_chans: int, n_times: int, sfreq_hz: float) -> JointModel:
    torch.manual_seed(0)
    settings = {"eeg.encoder": name, "image.size_px": 32, "image.embed_dim": 128, "eeg.embed_dim": 128}
    model = build_joint(RunConfig().with_overrides(settings), n_chans, n_times, sfreq_hz)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # statistics of the one batch below
    model.train()
    with torch.no_grad():
        model.encode_eeg(torch.randn(8, n_chans, n_times))
    return model.eval()


@torch.no_grad()
def loop(
    model: JointModel, eeg_NCT: Tensor, image_ND: Tensor, ids: list[str], names: list[str], noise: Noise
) -> np.ndarray:
    """Return the mean over draws [N, C], one copy of one segment at a time."""
    value_NC = np.zeros((len(ids), len(names)))
    for n, segment_id in enumerate(ids):
        row_CT = eeg_NCT[n].numpy()
        whole = float(model.encode_eeg(eeg_NCT[n : n + 1])[0] @ image_ND[n])
        for draw in range(noise.n_draws):
            for c, name in enumerate(names):
                copy_1CT = eeg_NCT[n : n + 1].clone()
                copy_1CT[0, c] = torch.from_numpy(noise_rows(row_CT[c : c + 1], segment_id, [name], draw, noise)[0])
                value_NC[n, c] += whole - float(model.encode_eeg(copy_1CT)[0] @ image_ND[n])
    return value_NC / noise.n_draws


@torch.no_grad()
def batched(
    model: JointModel, eeg_NCT: Tensor, image_ND: Tensor, ids: list[str], names: list[str], noise: Noise
) -> np.ndarray:
    """Return the same, the copies of one segment and draw together."""
    value_NC = np.zeros((len(ids), len(names)))
    every = torch.arange(len(names))
    for n, segment_id in enumerate(ids):
        whole = float(model.encode_eeg(eeg_NCT[n : n + 1])[0] @ image_ND[n])
        for draw in range(noise.n_draws):
            copy_CCT = eeg_NCT[n].repeat(len(names), 1, 1)
            copy_CCT[every, every] = torch.from_numpy(noise_rows(eeg_NCT[n].numpy(), segment_id, names, draw, noise))
            value_NC[n] += (whole - model.encode_eeg(copy_CCT) @ image_ND[n]).numpy()
    return value_NC / noise.n_draws


def timed(work: Callable[[], Found]) -> tuple[Found, float]:
    start = time.perf_counter()
    found = work()
    return found, time.perf_counter() - start


def compare(name: str, n_chans: int, options: argparse.Namespace) -> tuple[str, list[float]]:
    """Return a row of the table, and the loop's time over the engine's in every pair."""
    model = make(name, n_chans, options.times, options.rate)
    generator = torch.Generator().manual_seed(1)
    eeg_NCT = torch.randn(options.segments, n_chans, options.times, generator=generator)
    image_ND = torch.randn(options.segments, 128, generator=generator)
    ids, names = [f"s{n}" for n in range(options.segments)], [f"c{n}" for n in range(n_chans)]
    noise = Noise(sfreq_hz=options.rate, n_draws=options.draws)
    n = options.loop_segments
    first = (model, eeg_NCT[:n], image_ND[:n], ids[:n], names, noise)
    ways: dict[str, Callable[[], np.ndarray]] = {
        "loop": lambda: loop(*first),
        "batched": lambda: batched(*first),
        "engine": lambda: channel_importance(model, eeg_NCT, image_ND, ids, names, noise).importance_NC,
    }
    found: dict[str, np.ndarray] = {}
    ratios: dict[str, list[float]] = {"loop": [], "batched": []}
    engine_s = []
    channel_importance(model, eeg_NCT[:1], image_ND[:1], ids[:1], names, noise)  # whatever is made when first called
    for pair in range(options.pairs):
        taken: dict[str, float] = {}
        for way in ("loop", "batched", "engine") if pair % 2 == 0 else ("engine", "batched", "loop"):
            found[way], taken[way] = timed(ways[way])
        engine_s.append(taken["engine"])
        for way, own in ratios.items():
            own.append(taken[way] / n * options.segments / taken["engine"])
    difference = np.abs(found["engine"][:n] - found["loop"]).max() / np.abs(found["loop"]).max()
    shown = " | ".join(f"{min(own):.1f} | **{statistics.median(own):.1f}** | {max(own):.1f}" for own in ratios.values())
    per_segment_ms = 1000 * statistics.median(engine_s) / options.segments
    return f"| {name} | {n_chans} | {per_segment_ms:.0f} ms | {shown} | {difference:.0e} |", ratios["loop"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", default=["tsconv", "palazzo-gru"])
    parser.add_argument("--channels", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--times", type=int, default=250, help="samples of a segment")
    parser.add_argument("--rate", type=float, default=250.0, help="samples per second")
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--segments", type=int, default=4)
    parser.add_argument("--loop-segments", type=int, default=1, help="segments the loops are timed on")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="at a size for a minute")
    options = parser.parse_args()
    if options.quick:
        vars(options).update(QUICK)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; {options.segments} segments of", end=" ")
    print(f"{options.times} samples at {options.rate:g} Hz, {options.draws} draws\n")
    print("| encoder | channels | a segment | loop min | median | max | batched min | median | max | difference |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    found = {}
    for name in options.encoders:
        for n_chans in options.channels:
            line, found[f"{n_chans} channels, {name}"] = compare(name, n_chans, options)
            print(line, flush=True)
    for what, ratios in found.items():
        tell(f"importance of {what}", ratios, target=">= 10", peer="loop, one channel at a time")


if __name__ == "__main__":
    main()
