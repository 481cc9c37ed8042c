"""A training step, forward and backward, of every EEG encoder against its published layers one after another.

    python benchmarks/step.py [--encoders tsconv nice-sa] [--batch 64] [--pairs 7] [--gpu] [--compile]
    python benchmarks/step.py --quick                    two encoders, under a minute

Needs torch and NumPy; no data set and no Ray. The published layers are those of the same module with the same weights,
written out below in the order of papers and programs (`published`): what one trains with who takes the released code.
Runs of a pair follow each other, in an order that alternates; a ratio is the published time over ours, so above 1 ours
is faster. Times are of the wall clock, or with `--processor` of this process on all its cores: on a machine that others
use the one says how long it takes there, the other how much work it is. `difference` is the largest of embedding and
parameter gradients, relative to the largest value of the array, in float32 without dropout; arrays whose largest value
is below a thousandth of the largest of all (biases before a BatchNorm, which are rounding) are left out.

Encoders that are not named here are their published layers as they stand, so there would be nothing to compare.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from _results import tell
from torch import Tensor, nn
from torch.nn import functional as F

from eegvision.config import EegConfig
from eegvision.encoders.eeg import build_eeg_encoder

TSCONV = ("tsconv", "nice-sa", "nice-ga", "atm-s")
QUICK = {"encoders": ["tsconv", "nice-shallow"], "pairs": 5, "batch": 32}
NAMES = (*TSCONV, "nice-shallow", "nice-deep", "nice-eegnet", "simple-conv", "palazzo-gru", "palazzo-lstm")


def make(name: str, n_chans: int, n_times: int) -> Any:
    torch.manual_seed(0)
    config: Any = {"encoder": name, "embed_dim": 128}
    places = [tuple(row) for row in torch.randn(n_chans, 3).tolist()]
    return build_eeg_encoder(EegConfig(**config), n_chans, n_times, 250.0, positions_m=places)


def published(encoder: Any, name: str) -> Callable[[Tensor], Tensor]:
    """Return the encoder's function of [B, C, T] by its published layers, each called by itself."""
    if name == "simple-conv":
        return lambda eeg_BCT: simple_conv(encoder, eeg_BCT)
    if name.startswith("palazzo"):
        return lambda eeg_BCT: palazzo(encoder, eeg_BCT)
    layers = list(encoder.encode)
    if name in TSCONV:  # ours pools first, and takes the convolution at every fifth sample
        temporal = layers[1]

        def stem(maps: Tensor) -> Tensor:
            return F.avg_pool2d(F.conv2d(maps, temporal.weight, temporal.bias), (1, 51), stride=(1, 5))

        return lambda eeg_BCT: encoder.project(run(layers[2:], stem(encoder.before(eeg_BCT)[:, None])))
    return lambda eeg_BCT: encoder.project(run(layers, eeg_BCT[:, None]))


def run(layers: list[nn.Module], maps: Tensor) -> Tensor:
    for layer in layers:
        maps = layer(maps)
    return maps


def simple_conv(encoder: Any, eeg_BCT: Tensor) -> Tensor:
    x = encoder.first(encoder._merge_OC() @ eeg_BCT)
    for layer, gate in zip(encoder.layers, encoder.gates, strict=True):
        y = layer(x)
        x = gate(x + y if x.shape[1] == y.shape[1] else y)
    return encoder.head(encoder.over_time(encoder.last(x)).squeeze(2))


def palazzo(encoder: Any, eeg_BCT: Tensor) -> Tensor:
    """Every channel by itself, as further rows of the batch (the merge of channels is ours)."""
    maps = eeg_BCT.flatten(0, 1).unsqueeze(1)
    for conv, norm, _ in encoder.temporal:
        dilation = conv.dilation[1]
        maps = F.conv1d(maps, conv.weight[:, :, 0], padding=dilation, dilation=dilation)
        maps = F.elu(F.batch_norm(maps, None, None, norm.weight, norm.bias, training=True))
    maps_BFT = torch.einsum("fc,bcft->bft", encoder.merge_F1C[:, 0], maps.unflatten(0, eeg_BCT.shape[:2]))
    return encoder.summarise(maps_BFT)


def step(encoder: Any, encode: Callable[[Tensor], Tensor], eeg_BCT: Tensor, weight_BD: Tensor) -> Tensor:
    encoder.zero_grad()
    embedding_BD = encode(eeg_BCT)
    (embedding_BD * weight_BD).sum().backward()
    return embedding_BD


def difference(encoder: Any, name: str, eeg_BCT: Tensor, weight_BD: Tensor) -> float:
    """Return the largest difference of one step without dropout, relative to the largest value of each array."""
    encoder, eeg_BCT, weight_BD = copy.deepcopy(encoder).double(), eeg_BCT[:4].double(), weight_BD[:4].double()
    for module in encoder.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
    if name == "simple-conv":
        encoder.dropout_radius = 0.0
    if name == "atm-s":
        encoder.before.dropout = 0.0
    found = []
    for encode in (published(encoder, name), encoder):
        embedding_BD = step(encoder, encode, eeg_BCT, weight_BD).detach()
        found.append([embedding_BD, *(parameter.grad.clone() for parameter in encoder.parameters())])
    floor = 1e-3 * max(float(array.abs().max()) for array in found[0])
    pairs = [(a, b) for a, b in zip(*found, strict=True) if a.abs().max() > floor]
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


def seconds(work: Callable[[], Any], device: torch.device, clock: Callable[[], float], n_steps: int) -> float:
    start = clock()
    for _ in range(n_steps):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (clock() - start) / n_steps


def compare(name: str, options: argparse.Namespace) -> tuple[str, list[float]]:
    """Return a row of the table, and the published time over ours in every pair."""
    device = torch.device("cuda" if options.gpu else "cpu")
    clock = time.process_time if options.processor else time.perf_counter
    encoder = make(name, options.channels, options.times).to(device)
    eeg_BCT = torch.randn(options.batch, options.channels, options.times, device=device)
    weight_BD = torch.randn(options.batch, 128, device=device)
    apart = difference(encoder, name, eeg_BCT, weight_BD)
    ours: Callable[[Tensor], Tensor] = torch.compile(encoder) if options.compile else encoder
    ways = {
        "published": lambda: step(encoder, published(encoder, name), eeg_BCT, weight_BD),
        "ours": lambda: step(encoder, ours, eeg_BCT, weight_BD),
    }
    n_steps = 20 if options.gpu else 1
    for work in ways.values():  # whatever is made when first called
        seconds(work, device, clock, n_steps)
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for pair in range(options.pairs):
        for way in ways if pair % 2 == 0 else reversed(ways):
            taken[way].append(seconds(ways[way], device, clock, n_steps))
    ratios = [a / b for a, b in zip(taken["published"], taken["ours"], strict=True)]
    times = " | ".join(f"{1000 * statistics.median(own):.3g} ms" for own in taken.values())
    spread = f"{min(ratios):.2f} | **{statistics.median(ratios):.2f}** | {max(ratios):.2f}"
    return f"| {name} | {times} | {spread} | {apart:.0e} |", ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--channels", type=int, default=63)
    parser.add_argument("--times", type=int, default=250, help="samples of a segment")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--compile", action="store_true", help="compile ours; published stays as it is")
    parser.add_argument("--processor", action="store_true", help="processor time of the process, not the wall clock")
    parser.add_argument("--quick", action="store_true", help="at a size for a minute")
    options = parser.parse_args()
    if options.quick:
        vars(options).update(QUICK)
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if options.gpu else 'CPU'}", end=", ")
    print(f"{torch.get_num_threads()} threads; {options.batch} segments of", end=" ")
    print(f"{options.channels} x {options.times}, {options.pairs} pairs\n")
    print("| encoder | published | ours | ratio min | median | max | difference |")
    print("|---|---|---|---|---|---|---|")
    found = {}
    for name in options.encoders:
        line, found[name] = compare(name, options)
        print(line, flush=True)
    for name, ratios in found.items():
        target = ">= 5" if name == "tsconv" else None
        tell(f"training step of {name}", ratios, target=target, peer="its published layers one by one")


if __name__ == "__main__":
    main()
