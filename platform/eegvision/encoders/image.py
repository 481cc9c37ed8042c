"""Image encoders, [B, 3, H, W] -> [B, D]: torchvision's networks with a new last layer, and a small one of ours.

Images come normalised with ImageNet's mean and standard deviation per colour. Axes: B batch, D embedding.
"""

from __future__ import annotations

import logging
import math
import re
import urllib.request
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from eegvision.config import ImageConfig
from eegvision.vocab import InputError

# torchvision's statistics of ImageNet, of values in [0, 1]: those of batches, and of its weights.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_log = logging.getLogger(__name__)


def build_image_encoder(config: ImageConfig) -> nn.Module:
    """Return the network named by `config.encoder` with its last layer replaced by a linear map to D.

    `config.weights` says how the other layers start: `none` at random, `imagenet` from torchvision's first set of
    weights (IMAGENET1K_V1, those of the paper's time), or from a state-dict file: `.safetensors`, else what
    `torch.save` wrote. The last layer always starts at random; the one in the file, if any, is dropped.

    Inception v3 comes without its auxiliary head, so it returns [B, D] in training too, and rescales its input to
    the range torchvision's weights expect, whatever weights it has, so that a reloaded model is the same function.
    ViT-B/16 is built for images of `config.size_px`, a multiple of its patches of 16 px, and takes no others;
    positions of weights for another size are interpolated (bicubic, as torchvision does it).

    Raises:
        InputError: `config.size_px` does not suit the network, the weights cannot be had (offline) or read, or they
            do not fit the network.
    """
    net, owner = _with_weights(config)
    old = net.get_submodule(owner.head)
    assert isinstance(old, nn.Linear)
    _set(net, owner.head, nn.Linear(old.in_features, config.embed_dim))
    return net


@dataclass(frozen=True, kw_only=True)
class Original:
    """A network as it was published, and what has to be known to take features from it.

    Attributes:
        net: in evaluation mode, its weights without gradients.
        head: name of its last layer, whose input is the feature vector; None where that is what the network returns.
        has_classes: whether its last layer is a classifier.
        blocks: pattern of the names of its blocks, which run in the order they are listed in.
        n_class_tokens: tokens ahead of those of the patches.
        size_px: side of the images it is for; it takes no others where `is_sized`.
        mean, std: per colour, of values in [0, 1], what it wants taken out of images.
        transform: from a picture (PIL) to colours in [0, 1], [3, H, W]; None: the central crop that batches have.
        has_unit_length: whether the feature vector is given unit length.
    """

    net: nn.Module
    head: str | None
    has_classes: bool
    blocks: str
    n_class_tokens: int
    size_px: int
    is_sized: bool
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    transform: Callable[[Any], Tensor] | None = None
    has_unit_length: bool = False


def build_original(config: ImageConfig) -> Original:
    """Return one of this module's networks as published, for features at any of its layers.

    With weights `none` all layers are random, the same ones every time. A file may come without the last layer, or
    with one for other classes than ImageNet's, which is then kept.

    Raises:
        InputError: as `build_image_encoder`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, owner = _with_weights(config, keeps_head=True)
    has_classes = config.encoder != "small" and not isinstance(net.get_submodule(owner.head), nn.Identity)
    net.eval().requires_grad_(False)
    return Original(
        net=net,
        head=owner.head,
        has_classes=has_classes,
        blocks=owner.blocks,
        n_class_tokens=owner.n_class_tokens,
        size_px=config.input_px,
        is_sized=owner.patch_px > 0,
    )


def layers_of(encoder: str) -> str:
    """Return the pattern of the names of a network's layers worth a look: its first maps, then every block.

    `encoder` is one of this module's.
    """
    network = _NETWORKS[encoder]
    return network.blocks if network.first is None else f"{re.escape(network.first)}|{network.blocks}"


def require_size(encoder: str, side_px: int) -> None:
    """Raise InputError if images of this side are too small for the encoder; every larger size will do.

    A ViT needs whole patches, and takes only the size it was built for (it says so itself).
    """
    network = _NETWORKS[encoder]
    if side_px < network.min_px:
        raise InputError(
            f"images of {side_px} px are too small for {encoder!r}, which would shrink them to nothing; "
            f"set image.size_px to at least {network.min_px}, or choose the encoder 'small'"
        )
    if network.patch_px and side_px % network.patch_px:
        raise InputError(
            f"images of {side_px} px do not divide into the patches of {encoder!r}; set image.size_px to a multiple "
            f"of {network.patch_px}, such as {side_px - side_px % network.patch_px}"
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


def _with_weights(config: ImageConfig, *, keeps_head: bool = False) -> tuple[nn.Module, _Network]:
    """Return the network filled with the weights asked for, and what is known of it."""
    size_px = config.input_px
    require_size(config.encoder, size_px)
    network = _NETWORKS[config.encoder]
    net = network.build(size_px)
    if config.weights == "none":
        return net, network
    found = _imagenet(config.encoder) if config.weights == "imagenet" else read_weights(config.weights)
    given = {_modern(name): value for name, value in found.items() if not name.startswith("AuxLogits.")}
    if network.patch_px:
        given = _resized(given, net, size_px, config)
    own_head = {name: given.pop(name) for name in list(given) if name.startswith(f"{network.head}.")}
    _fill(net, given, network.head, config)
    if keeps_head:
        _set(net, network.head, _head(net.get_submodule(network.head), own_head, network.head))
    return net, network


def _set(net: nn.Module, path: str, module: nn.Module) -> None:
    owner, _, name = path.rpartition(".")
    setattr(net.get_submodule(owner), name, module)


def _head(random: nn.Module, given: dict[str, Tensor], name: str) -> nn.Module:
    """Return the last layer of a file, for as many classes as it has; the identity where the file has none."""
    assert isinstance(random, nn.Linear)
    weight, bias = given.get(f"{name}.weight"), given.get(f"{name}.bias")
    if weight is None or bias is None or weight.ndim != 2 or weight.shape[1] != random.in_features:
        return nn.Identity()
    head = nn.Linear(random.in_features, len(weight))
    head.load_state_dict({"weight": weight, "bias": bias})
    return head


def _torchvision(name: str, **options: bool) -> Callable[[int], nn.Module]:
    def build(_: int) -> nn.Module:
        from torchvision import models  # slow to import (seconds), so only where it is needed

        return models.get_model(name, weights=None, **options)

    return build


def _vit(name: str) -> Callable[[int], nn.Module]:
    def build(size_px: int) -> nn.Module:
        from torchvision import models

        net = models.get_model(name, weights=None, image_size=size_px)
        net.register_forward_pre_hook(partial(_require_side, encoder=name, size_px=size_px))
        return net

    return build


def _require_side(_: nn.Module, inputs: tuple[Tensor], *, encoder: str, size_px: int) -> None:
    height, width = inputs[0].shape[-2:]
    if (height, width) != (size_px, size_px):
        raise InputError(
            f"images of {height} x {width} px given, but this {encoder!r} was built for {size_px} x {size_px}; "
            "resize them, or set image.size_px"
        )


def _resized(given: dict[str, Tensor], net: nn.Module, size_px: int, config: ImageConfig) -> dict[str, Tensor]:
    """Interpolate a ViT's positions to this image size, where they are for another."""
    from torchvision.models.vision_transformer import interpolate_embeddings

    name = "encoder.pos_embedding"
    position, wanted = given.get(name), net.get_parameter(name)
    if position is None or position.shape == wanted.shape or position.ndim != 3:
        return given
    n_side = math.isqrt(max(0, position.shape[1] - 1))
    if position.shape[0] != 1 or n_side**2 + 1 != position.shape[1] or position.shape[2] != wanted.shape[2]:
        raise InputError(
            f"image.weights {config.weights} has {name} of shape {tuple(position.shape)}, which are no positions of "
            f"a square of patches that could be interpolated to {tuple(wanted.shape)}; "
            f"give weights of {config.encoder!r}"
        )
    return dict(interpolate_embeddings(size_px, _NETWORKS[config.encoder].patch_px, OrderedDict(given)))


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


def read_weights(where: str) -> dict[str, Tensor]:
    """Return the state dict in a file, without running any code the file may hold.

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    path = Path(where).expanduser()
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


def _fill(net: nn.Module, given: dict[str, Tensor], head: str, config: ImageConfig) -> None:
    """Load every layer but the head, or raise naming the tensors that are missing, unknown or of another shape."""
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
    build: Callable[[int], nn.Module]
    """From the side of the input."""
    head: str
    """Name of the layer that is replaced."""
    blocks: str
    """Pattern of the names of its blocks."""
    first: str | None = None
    """Name of the layer of its first maps (edges, colours), where these come before the first block."""
    min_px: int = 16
    """Smallest input side that leaves every layer at least one pixel."""
    patch_px: int = 0
    """Side of a transformer's patches."""
    n_class_tokens: int = 0


_RESIDUAL = r"layer\d\.\d+"
_CONVNEXT = r"features\.[1357]\.\d+"
_NETWORKS: dict[str, _Network] = {
    "small": _Network(build=lambda _: Small(), head="head", blocks=r"features\.(2|5|8|11)"),
    "alexnet": _Network(
        build=_torchvision("alexnet"),
        head="classifier.6",
        blocks=r"features\.(1|4|7|9|11)|classifier\.(2|5)",
        min_px=63,
    ),
    "resnet18": _Network(build=_torchvision("resnet18"), head="fc", blocks=_RESIDUAL, first="relu"),
    "resnet50": _Network(build=_torchvision("resnet50"), head="fc", blocks=_RESIDUAL, first="relu"),
    "resnet101": _Network(build=_torchvision("resnet101"), head="fc", blocks=_RESIDUAL, first="relu"),
    "densenet161": _Network(
        build=_torchvision("densenet161"),
        head="classifier",
        blocks=r"features\.denseblock\d",
        first="features.relu0",
        min_px=29,
    ),
    "inception_v3": _Network(
        build=_torchvision("inception_v3", aux_logits=False, init_weights=True, transform_input=True),
        head="fc",
        blocks=r"Conv2d_\w+|Mixed_\w+",
        min_px=75,
    ),
    "vit_b_16": _Network(
        build=_vit("vit_b_16"),
        head="heads.head",
        blocks=r"encoder\.layers\.encoder_layer_\d+",
        patch_px=16,
        n_class_tokens=1,
    ),
    "convnext_tiny": _Network(
        build=_torchvision("convnext_tiny"), head="classifier.2", blocks=_CONVNEXT, first="features.0", min_px=32
    ),
    "convnext_base": _Network(
        build=_torchvision("convnext_base"), head="classifier.2", blocks=_CONVNEXT, first="features.0", min_px=32
    ),
}
