"""How fast frozen features are made: the cache against a plain loop of torchvision's transform, DataLoader and network.

    python benchmarks/features.py [--pictures 192] [--pairs 3] [--nets resnet50 vit_b_16 small]    minutes on 2 cores
    python benchmarks/features.py --quick      under a minute
    python benchmarks/features.py --gpu        networks alone, on pictures in memory; needs torch, torchvision, numpy
                                               and safetensors, no data set and no Ray

Both sides decode the same JPEG files of 500 x 500 px (what THINGS has), prepare them at 224 px and take what enters the
last layer of the same network with the same random weights, in float32, in batches of 32. The peer is what one would
write without this package: a Dataset over the files, `Resize(246)`, `CenterCrop(224)`, `ToTensor`, `Normalize`, a
DataLoader with two workers, the network with its last layer taken away. Ours is `features.image_features` with an
empty cache in one process: reading shards, checks, checksums and writing the entry are counted, on the peer's side
nothing is written. Building the network is counted on both sides, starting Python and importing torch on neither. Runs
alternate; each pair gives a ratio, the peer's time over ours, so above 1 we are faster.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
from _results import tell
from torch import Tensor, nn

from eegvision.config import ImageConfig, RunConfig
from eegvision.encoders.frozen import build_backbone
from eegvision.encoders.image import IMAGENET_MEAN, IMAGENET_STD, build_original

SIZE_PX, BATCH = 224, 32
QUICK = {"pictures": 32, "nets": ["resnet50", "small"]}


def image_config(name: str) -> ImageConfig:
    return RunConfig().with_overrides({"image.encoder": name, "image.frozen": True, "image.size_px": SIZE_PX}).image


def make_data(home: Path, n_pictures: int) -> list[bytes]:
    """Write a data set with this many simulated pictures of 500 px and return them, encoded, in its order."""
    from eegvision.ingest import assemble, shards, simulate

    options = simulate.Simulation(
        n_subjects=1, n_classes=8, images_per_class=n_pictures // 8, repetitions=1, n_chans=8, viewers=0, image_px=500
    )
    root = home / "datasets" / "bench"
    assemble.write(root, simulate.simulate(options, "bench"))
    manifest = shards.read_manifest(root)
    return shards.read_images(root, manifest, columns=["encoded"])["encoded"].to_pylist()


class Files(torch.utils.data.Dataset):
    """Pictures as torchvision's users read them."""

    def __init__(self, encoded: list[bytes]) -> None:
        from torchvision import transforms

        self.encoded = encoded
        self.transform = transforms.Compose(
            [
                transforms.Resize(round(1.1 * SIZE_PX)),
                transforms.CenterCrop(SIZE_PX),
                transforms.ToTensor(),
                transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> Tensor:
        from PIL import Image

        return self.transform(Image.open(io.BytesIO(self.encoded[index])).convert("RGB"))


def headless(name: str) -> nn.Module:
    original = build_original(image_config(name))
    assert original.head is not None
    owner, _, last = original.head.rpartition(".")
    setattr(original.net.get_submodule(owner), last, nn.Identity())
    return original.net


@torch.inference_mode()
def peer(name: str, encoded: list[bytes]) -> Tensor:
    net = headless(name)
    loader = torch.utils.data.DataLoader(Files(encoded), batch_size=BATCH, num_workers=2)
    return torch.cat([net(image_B3HW) for image_B3HW in loader])


def ours(name: str, home: Path) -> Tensor:
    from eegvision import features

    shutil.rmtree(home / "features", ignore_errors=True)
    config = RunConfig().with_overrides({"data.dataset": "bench"})
    found = {f"image.{field}": value for field, value in vars(image_config(name)).items() if value is not None}
    array = features.image_features(config.with_overrides(found))
    assert array is not None
    return torch.tensor(array)


def on_cpu(names: list[str], n_pictures: int, pairs: int) -> dict[str, list[float]]:
    """Compare from files to features; return the ratios of every network."""
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        os.environ["EEGVISION_HOME"] = folder
        encoded = make_data(home, n_pictures)
        from torchvision import models

        models.get_model("resnet18", weights=None)  # imports are not counted
        print("| network | pairs | min | median | max | ours, pictures/s per core | cosine with the peer |")
        print("|---|---|---|---|---|---|---|")
        for name in names:
            ratios, rates, closest = [], [], 1.0
            for _ in range(pairs):
                start = time.perf_counter()
                mine_MF = ours(name, home)
                middle = time.perf_counter()
                peer_MF = peer(name, encoded)
                mine_s, peer_s = middle - start, time.perf_counter() - middle
                ratios.append(peer_s / mine_s)
                rates.append(len(encoded) / mine_s / torch.get_num_threads())
                closest = min(closest, float(torch.cosine_similarity(mine_MF, peer_MF).min()))
            spread = f"{min(ratios):.2f} | **{statistics.median(ratios):.2f}** | {max(ratios):.2f}"
            print(f"| {name} | {pairs} | {spread} | {statistics.median(rates):.1f} | {closest:.5f} |", flush=True)
            found[name] = ratios
    return found


@torch.inference_mode()
def on_gpu(names: list[str], n_pictures: int, pairs: int) -> dict[str, list[float]]:
    """Compare passes over pictures in memory, uint8 on the host: ours, and the bare network on normalised float32."""
    found: dict[str, list[float]] = {}
    pixel_M3HW = torch.randint(0, 256, (n_pictures, 3, SIZE_PX, SIZE_PX), dtype=torch.uint8)
    mean_311, std_311 = (
        torch.tensor(values, device="cuda").reshape(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    print("| network | pairs | min | median | max | ours, pictures/s |\n|---|---|---|---|---|---|")
    for name in names:
        backbone, bare = build_backbone(image_config(name)).cuda(), headless(name).cuda()
        seconds: dict[str, list[float]] = {"ours": [], "peer": []}
        for turn in range(pairs + 1):  # the first warms up
            for kind, net in (("ours", backbone), ("peer", bare)):
                torch.cuda.synchronize()
                start = time.perf_counter()
                for part_B3HW in pixel_M3HW.split(BATCH):
                    net((part_B3HW.cuda().float() / 255 - mean_311) / std_311).cpu()
                if turn:
                    seconds[kind].append(time.perf_counter() - start)
        ratios = [theirs / mine for mine, theirs in zip(seconds["ours"], seconds["peer"], strict=True)]
        spread = f"{min(ratios):.2f} | **{statistics.median(ratios):.2f}** | {max(ratios):.2f}"
        print(f"| {name} | {pairs} | {spread} | {n_pictures / statistics.median(seconds['ours']):.0f} |", flush=True)
        found[name] = ratios
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=192)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--nets", nargs="+", default=["resnet50", "vit_b_16", "small"])
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--quick", action="store_true", help="at a size for a minute")
    options = parser.parse_args()
    if options.quick:
        vars(options).update(QUICK)
    found = (on_gpu if options.gpu else on_cpu)(options.nets, options.pictures, options.pairs)
    peer = "the bare network" if options.gpu else "transform, DataLoader with 2 workers, network"
    for name, ratios in found.items():
        tell(f"frozen features of {name}", ratios, target=">= 1", peer=peer)


if __name__ == "__main__":
    main()
