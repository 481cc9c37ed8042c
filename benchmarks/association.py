"""Time for all associations of a layer with all channels: a loop over (channel, map) pairs against the product.

    python benchmarks/association.py [--nets small resnet18] [--eegs tsconv palazzo-lstm] [--side 64]     on 2 cores
    python benchmarks/association.py --gpu --nets resnet18 densenet161 --side 224                          on a GPU
    python benchmarks/association.py --quick                                   one network, one encoder, under a minute

Needs torch, torchvision, NumPy, SciPy and safetensors; no data set and no Ray. One segment (128 channels x 440
samples), one picture, one draw of noise, the first layer of the network that has 64 maps (or the number of `--maps`).
The loop is Eq. 9 as it stands, I_c - I_c,l,f with I_c once per channel: for each pair both compatibilities of Eq. 8,
from two segments and a picture whose map is zero, one pair at a time (`one`) or `--batch` of them (`batched`). It is
timed on a random sample of pairs and scaled up to all, and is given its noise; the product is timed whole, noise and
checks included. A ratio is the loop's time over the product's. `difference` is the largest between both at the sampled
pairs, over the largest association. `branching` is the time of all Δθ of a layer without it over that with it, for the
layer itself and for the last that branches.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _results import tell
from torch import Tensor, nn

from eegvision.analyses.association import Layer, association, find_layers, map_effects, module_of, network_of
from eegvision.analyses.channels import Noise, channel_changes, noise_like
from eegvision.config import RunConfig
from eegvision.encoders.joint import JointModel, build_joint

N_CHANS, N_TIMES, SFREQ_HZ = 128, 440, 1000.0
CHANNELS = tuple(f"E{number + 1}" for number in range(N_CHANS))
NOISE = Noise(sfreq_hz=SFREQ_HZ, n_draws=1)
QUICK = {"nets": ["small"], "eegs": ["tsconv"], "sample": 64}


def make(net: str, eeg: str, side_px: int, device: str) -> JointModel:
    """A model with random weights and batch statistics of noise."""
    torch.manual_seed(0)
    settings = {"image.encoder": net, "image.size_px": side_px, "image.embed_dim": 128, "eeg.embed_dim": 128}
    model = build_joint(
        RunConfig().with_overrides(settings | {"eeg.encoder": eeg, "loss.name": "info_nce"}),
        N_CHANS, N_TIMES, SFREQ_HZ,
    )  # fmt: skip
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = None  # statistics of the one batch below
    model.to(device).train()
    with torch.no_grad():
        model.encode_image(torch.randn(16, 3, side_px, side_px, device=device))
        model.encode_eeg(torch.randn(16, N_CHANS, N_TIMES, device=device))
    return model.eval()


@torch.inference_mode()
def loop(
    model: JointModel, layer: Layer, image_3HW: Tensor, eeg_CT: Tensor, copy_CCT: Tensor, pairs: np.ndarray, size: int
) -> Tensor:
    """Return A_c,l,f of pairs [P, 2] of (channel, map), `size` of them at a time."""
    module = module_of(network_of(model)[0], layer.name, model)
    zeroed: list[Tensor] = []

    def suppress(_: nn.Module, __: tuple[Tensor, ...], maps: Tensor) -> Tensor:
        copies = maps.clone()
        copies.movedim(layer.axis, 1)[torch.arange(len(copies)), zeroed[0]] = 0
        return copies

    importances: dict[int, Tensor] = {}
    found = []
    for start in range(0, len(pairs), size):
        channel_P, map_P = pairs[start : start + size].T
        for channel in set(channel_P.tolist()) - importances.keys():
            two = model.compatibility(torch.stack([eeg_CT, copy_CCT[channel]]), image_3HW.expand(2, -1, -1, -1))
            importances[channel] = two[0] - two[1]
        zeroed[:] = [torch.from_numpy(map_P)]
        handle = module.register_forward_hook(suppress)
        image_PD = model.encode_image(image_3HW.expand(len(map_P), -1, -1, -1))
        handle.remove()
        whole_PD, copy_PD = model.encode_eeg(torch.cat([eeg_CT.expand(len(map_P), -1, -1), copy_CCT[channel_P]])).chunk(
            2
        )
        without_P = ((whole_PD - copy_PD) * image_PD).sum(1)
        found.append(torch.stack([importances[channel] for channel in channel_P.tolist()]) - without_P)
    return torch.cat(found)


def product(model: JointModel, layer: Layer, image_3HW: Tensor, eeg_CT: Tensor) -> np.ndarray:
    """Return all A_c,l,f [C, F]."""
    changes = channel_changes(model, eeg_CT[None], ["one"], CHANNELS, NOISE)
    return association(model, image_3HW, changes.change_BRCD.mean(1)[:, None], [layer]).map_KCF[0][0]


def timed(work: Callable[[], Any], device: str) -> tuple[Any, float]:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    found = work()
    if device == "cuda":
        torch.cuda.synchronize()
    return found, time.perf_counter() - start


def branching(model: JointModel, layer: Layer, image_3HW: Tensor, device: str) -> float:
    """Return how many times longer all Δθ take without branching."""
    if not layer.can_branch:
        return 1.0
    apart = dataclasses.replace(layer, can_branch=False)
    (with_FD,), with_s = timed(lambda: map_effects(model, image_3HW, [layer]), device)
    (without_FD,), without_s = timed(lambda: map_effects(model, image_3HW, [apart]), device)
    assert torch.allclose(with_FD, without_FD, atol=1e-4)
    return without_s / with_s


def compare(net: str, eeg: str, options: argparse.Namespace, device: str) -> tuple[str, list[float]]:
    """Return a row of the table, and the batched loop's time over the product's in every round."""
    model = make(net, eeg, options.side, device)
    generator = torch.Generator().manual_seed(1)
    image_3HW = torch.randn(3, options.side, options.side, generator=generator).to(device)
    eeg_CT = torch.randn(N_CHANS, N_TIMES, generator=generator).to(device)
    copy_CCT = eeg_CT.repeat(N_CHANS, 1, 1)
    every = torch.arange(N_CHANS)
    copy_CCT[every, every] = noise_like(eeg_CT[None], ["one"], CHANNELS, 0, NOISE)[0]
    layers = find_layers(model, image_3HW)
    layer = next(one for one in layers if one.n_maps == options.maps)
    n_all = N_CHANS * layer.n_maps
    rng = np.random.default_rng(2)
    sample = rng.permutation(n_all)[: options.sample]
    pairs = np.column_stack(np.divmod(sample, layer.n_maps))
    loop(model, layer, image_3HW, eeg_CT, copy_CCT, pairs[: options.batch], options.batch)
    product(model, layer, image_3HW, eeg_CT)
    ratios: dict[int, list[float]] = {1: [], options.batch: []}
    differences, product_s = [], 0.0
    for _ in range(options.rounds):
        found_CF, product_s = timed(lambda: product(model, layer, image_3HW, eeg_CT), device)
        for size, own in ratios.items():
            used = pairs if size > 1 else pairs[: options.sample // 4]
            value_P, loop_s = timed(
                lambda used=used, size=size: loop(model, layer, image_3HW, eeg_CT, copy_CCT, used, size), device
            )
            own.append(loop_s / len(used) * n_all / product_s)
            at_P = found_CF[used[:, 0], used[:, 1]]
            differences.append(np.abs(at_P - value_P.cpu().numpy()).max() / np.abs(found_CF).max())
    shown = " | ".join(
        f"{min(own):,.0f} | **{statistics.median(own):,.0f}** | {max(own):,.0f}" for own in ratios.values()
    )
    last = [one for one in layers if one.can_branch][-1]
    gains = [branching(model, one, image_3HW, device) for one in (layer, last)]
    line = (
        f"| {net} `{layer.name}` | {eeg} | {shown} | {1000 * product_s:,.0f} | {max(differences):.1e} | "
        f"{gains[0]:.1f}, {gains[1]:.1f} (`{last.name}`, {last.n_maps}) |"
    )
    return line, ratios[options.batch]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=["small", "resnet18"])
    parser.add_argument("--eegs", nargs="+", default=["tsconv", "palazzo-lstm"])
    parser.add_argument("--side", type=int, default=64, help="of the picture, pixels")
    parser.add_argument("--maps", type=int, default=64, help="of the layer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sample", type=int, default=128, help="pairs the batched loop is timed on; the other: a 4th")
    parser.add_argument("--batch", type=int, default=64, help="pairs of the batched loop at a time")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--quick", action="store_true", help="at a size for a minute")
    options = parser.parse_args()
    if options.quick:
        vars(options).update(QUICK)
    device = "cuda" if options.gpu else "cpu"
    where = torch.cuda.get_device_name() if options.gpu else f"{torch.get_num_threads()} threads"
    n_all = N_CHANS * options.maps
    print(f"torch {torch.__version__}, {where}; pictures of {options.side} px; {n_all:,} pairs\n")
    ratios = "one min | median | max | batched min | median | max"
    print(f"| layer | EEG encoder | {ratios} | product, ms | difference | branching |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    found = {}
    for net in options.nets:
        for eeg in options.eegs:
            line, found[f"{net}, {eeg}"] = compare(net, eeg, options, device)
            print(line, flush=True)
    for name, ratios in found.items():
        tell(f"associations of 64 maps with 128 channels, {name}", ratios, target=">= 100", peer="loop, 64 at a time")


if __name__ == "__main__":
    main()
