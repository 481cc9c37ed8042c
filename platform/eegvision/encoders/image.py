"""Image encoders, [B, 3, H, W] -> [B, D]: torchvision's networks with a new last layer, and a small one of ours.

Images come normalised with ImageNet's mean and standard deviation per colour. Axes: B batch, D embedding.
"""

from __future__ import annotations

import logging
import re
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from eegvision.config import ImageConfig
from eegvision.vocab import InputError

_log = logging.getLogger(__name__)


def build_image_encoder(config: ImageConfig) -> nn.Module:
    """Return the network named by `config.encoder` with its last layer replaced by a linear map to D.

    `config.weights` says how the other layers start: `none` at random, `imagenet` from torchvision's first set of
    weights (IMAGENET1K_V1, those of the paper's time), or from a state-dict file: `.safetensors`, else what
    `torch.save` wrote. The last layer always starts at random; the one in the file, if any, is dropped.

    Inception v3 comes without its auxiliary head, so it returns [B, D] in training too, and rescales its input to
    the range torchvision's weights expect, whatever weights it has, so that a reloaded model is the same function.

    Raises:
        InputError: `config.size_px` is too small for the network, the weights cannot be had (offline) or read, or
            they do not fit the network.
    """
    size_px = config.resolved().size_px
    assert size_px is not None
    require_size(config.encoder, size_px)
    network = _NETWORKS[config.encoder]
    net = network.build()
    if config.weights != "none":
        pretrained = _imagenet(config.encoder) if config.weights == "imagenet" else _read(Path(config.weights))
        _fill(net, pretrained, network.head, config)
    owner, _, name = network.head.rpartition(".")
    old = net.get_submodule(network.head)
    assert isinstance(old, nn.Linear)
    setattr(net.get_submodule(owner), name, nn.Linear(old.in_features, config.embed_dim))
    return net


def require_size(encoder: str, side_px: int) -> None:
    """Raise InputError if images of this side are too small for the encoder; every larger size will do."""
    min_px = _NETWORKS[encoder].min_px
    if side_px < min_px:
        raise InputError(
            f"images of {side_px} px are too small for {encoder!r}, which would shrink them to nothing; "
            f"set image.size_px to at least {min_px}, or choose the encoder 'small'"
        )


class Small(nn.Module):
    """Four convolutions for laptops: 64 px in 8 x 8 steps, pooled to 4 x 4 cells, then linear; about 0.3 M weights.

    The cells are kept, not averaged, since early visual responses depend on where in the picture the object is.
    """

    def __init__(self) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        n_in = 3
        for n_out, kernel, stride in ((16, 5, 2), (32, 3, 2), (64, 3, 2), (96, 3, 1)):
            conv = nn.Conv2d(n_in, n_out, kernel, stride, padding=kernel // 2, bias=False)
            stages += [conv, nn.BatchNorm2d(n_out), nn.ReLU(inplace=True)]
            n_in = n_out
        self.features = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(4))
        self.head = nn.Linear(n_in * 4 * 4, 1)

    def forward(self, image_B3HW: Tensor) -> Tensor:
        return self.head(self.features(image_B3HW).flatten(1))


def _torchvision(name: str, **options: bool) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from torchvision import models  # slow to import (seconds), so only where it is needed

        return models.get_model(name, weights=None, **options)

    return build


def _imagenet(encoder: str) -> dict[str, Tensor]:
    """Return torchvision's ImageNet weights, downloaded to torch's cache if they are not there yet."""
    from torchvision import models

    weights = models.get_model_weights(encoder)["IMAGENET1K_V1"]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    try:
        if not cached.exists():
            # torch's own request has no time limit, so a network that swallows packets would hang it for minutes.
            with urllib.request.urlopen(weights.url, timeout=20):
                _log.info("downloading %s to %s", weights.url, cached)
        return weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # of the network, the disk, or whatever damaged bytes lead torch to
        raise InputError(
            f"image.weights 'imagenet': could not get {weights.url} ({error}); download it elsewhere and either put "
            f"it at {cached} or set image.weights to the path of the file; image.weights 'none' needs no download"
        ) from error


def _read(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a file, without running any code the file may hold."""
    path = path.expanduser()
    if not path.is_file():
        raise InputError(
            f"image.weights {str(path)!r} is not a file (looked in {Path.cwd()}); give 'none', 'imagenet', or the "
            "absolute path of a state dict (.safetensors, .pth) that every worker can read"
        )
    try:
        if path.suffix == ".safetensors":
            found: Any = safetensors.torch.load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes lead torch to errors of every type
        raise InputError(
            f"image.weights {path} cannot be read as a state dict: {error}; write one with "
            "torch.save(model.state_dict(), path)"
        ) from error
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        what = f"a dict with keys {', '.join(map(str, list(found)[:5]))}" if isinstance(found, dict) else type(found)
        raise InputError(f"image.weights {path} holds {what}, not a state dict of named tensors; save that part alone")
    return found


def _fill(net: nn.Module, found: dict[str, Tensor], head: str, config: ImageConfig) -> None:
    """Load every layer but the head, or raise naming the tensors that are missing, unknown or of another shape."""
    given = {_modern(name): value for name, value in found.items()}
    given = {name: value for name, value in given.items() if not name.startswith((f"{head}.", "AuxLogits."))}
    wanted = {name: value for name, value in net.state_dict().items() if not name.startswith(f"{head}.")}
    optional = {name for name in wanted if name.endswith("num_batches_tracked")}  # absent from torchvision's old files
    faults = [f"lacks {name}" for name in wanted.keys() - given.keys() - optional]
    faults += [f"has unknown {name}" for name in given.keys() - wanted.keys()]
    faults += [
        f"has {name} of shape {tuple(given[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in given.keys() & wanted.keys()
        if given[name].shape != wanted[name].shape
    ]
    if faults:
        shown = "; ".join(sorted(faults)[:4]) + (f"; and {len(faults) - 4} more" if len(faults) > 4 else "")
        raise InputError(f"image.weights {config.weights} is no state dict of {config.encoder!r}: it {shown}")
    net.load_state_dict(given, strict=False)


def _modern(name: str) -> str:
    """Undo the spelling `denselayer1.norm.1.weight` of torchvision's DenseNet files, which dates from torch 0.3."""
    return re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.(?=[12]\.)", r"\1", name)


@dataclass(frozen=True, kw_only=True)
class _Network:
    build: Callable[[], nn.Module]
    head: str
    """Name of the layer that is replaced."""
    min_px: int = 16
    """Smallest input side that leaves every layer at least one pixel."""


_NETWORKS: dict[str, _Network] = {
    "small": _Network(build=Small, head="head"),
    "alexnet": _Network(build=_torchvision("alexnet"), head="classifier.6", min_px=63),
    "resnet18": _Network(build=_torchvision("resnet18"), head="fc"),
    "resnet101": _Network(build=_torchvision("resnet101"), head="fc"),
    "densenet161": _Network(build=_torchvision("densenet161"), head="classifier", min_px=29),
    "inception_v3": _Network(
        build=_torchvision("inception_v3", aux_logits=False, init_weights=True, transform_input=True),
        head="fc",
        min_px=75,
    ),
}
