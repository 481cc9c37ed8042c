"""Frozen image features: a network that stays as it is, looked into at some layer, and the trained map from there to D.

Axes: B batch, T tokens, C maps, H height, W width, F features, D embedding.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eegvision.config import ImageConfig
from eegvision.encoders.image import IMAGENET_MEAN, IMAGENET_STD, Original, build_original
from eegvision.encoders.vision_zoo import build_open_clip, build_timm
from eegvision.vocab import InputError

# UBP's kernel of 51 pixels, for which OpenCV takes a standard deviation of 8, reaches this many of them.
_REACH_SD = 25 / 8
_FOVEAL_DECAY = 3.0

# What the hooks of a forward pass have seen, by the number of the layer; each thread has its own.
_seen: ContextVar[dict[int, Tensor]] = ContextVar("seen")


class Backbone(nn.Module):
    """A network with fixed weights, from pictures to the features of some of its layers.

        x' = w x + (1 - w) (g_σ * x),   w = foveal exp(-3 r / r_max)          blur, where σ = blur_px is not 0

    g is a Gaussian cut at 25/8 σ with mirrored edges, r the distance from the centre, r_max that of the corners.
    Source of the blur: UBP (its kernel of 51 px is σ = 8, with foveal = 0.5).

    Always in evaluation mode, its weights without gradients; gradients go through to the picture.

    Attributes:
        size_px: side of the pictures it is for; `original.is_sized` says whether it takes no others.
        original: the network, and how it wants pictures.
    """

    def __init__(self, original: Original, configs: Sequence[ImageConfig]) -> None:
        super().__init__()
        self.original, self.size_px = original, original.size_px
        self.net = original.net
        self._name, self._blur_px, self._foveal = _name(configs[0]), configs[0].blur_px or 0.0, configs[0].foveal or 0.0
        # (x - m) / s of the weights' statistics, from (x - m') / s' of ImageNet's, in which batches come.
        mean, std, net_mean, net_std = map(torch.tensor, (IMAGENET_MEAN, IMAGENET_STD, original.mean, original.std))
        self.register_buffer("_factor_311", (std / net_std).reshape(3, 1, 1), persistent=False)
        self.register_buffer("_shift_311", ((mean - net_mean) / net_std).reshape(3, 1, 1), persistent=False)
        self._is_as_batches = (original.mean, original.std) == (IMAGENET_MEAN, IMAGENET_STD)
        self._poolings = [config.pooling for config in configs]
        for number, config in enumerate(configs):
            self._look(number, config)
        self.eval().requires_grad_(False)

    def forward(self, image_B3HW: Tensor) -> Tensor:
        """Return the features [B, F] of pictures with ImageNet's mean and standard deviation taken out.

        Raises:
            InputError: the pictures have not the size or the shape that the network takes, or there is nothing to pool.
        """
        return self.all_layers(image_B3HW)[0]

    def all_layers(self, image_B3HW: Tensor) -> list[Tensor]:
        """Return the features of every configuration this was built for, from one pass; errors as `forward`."""
        height, width = image_B3HW.shape[-2:]
        if height != width or (self.original.is_sized and height != self.size_px):
            wanted = f"{self.size_px} x {self.size_px} px" if self.original.is_sized else "square ones"
            raise InputError(f"images of {height} x {width} px given, but frozen {self._name} takes {wanted}")
        image_B3HW = blurred(image_B3HW, self._blur_px, self._foveal)
        if not self._is_as_batches:
            image_B3HW = image_B3HW * self.get_buffer("_factor_311") + self.get_buffer("_shift_311")
        seen: dict[int, Tensor] = {}
        token = _seen.set(seen)
        try:
            self.net(image_B3HW)
        finally:
            _seen.reset(token)
        assert len(seen) == len(self._poolings), "a layer did not run"
        return [seen[number] for number in range(len(seen))]

    def train(self, mode: bool = True) -> Backbone:  # noqa: ARG002  (frozen means: as in evaluation)
        return super().train(False)

    def _look(self, number: int, config: ImageConfig) -> None:
        """Have the features of a layer put aside when it runs."""
        layer, original = config.layer or "last", self.original
        if layer == "logits":
            if not original.has_classes:
                raise InputError(f"image.layer is 'logits', but {_name(config)} has no classifier; use 'last'")
            path, is_input = "", False
        elif layer == "last":
            path, is_input = original.head or "", original.head is not None
        else:
            path, is_input = _path_of(self.net, layer, original.blocks, _name(config)), False
        catch = partial(self._catch, number=number, layer=layer)
        module = self.net.get_submodule(path)
        if is_input:
            module.register_forward_pre_hook(lambda _, inputs: catch(inputs[0]))
        else:
            module.register_forward_hook(lambda _, __, output: catch(output))

    def _catch(self, value: Any, *, number: int, layer: str) -> None:
        if (seen := _seen.get(None)) is None:
            return  # the network was called by itself
        if isinstance(value, tuple) and layer == "last":
            value = value[0]  # embedding and tokens, of some of open_clip's towers
        if not isinstance(value, Tensor):
            raise InputError(
                f"image.layer {layer!r} of {self._name} gives a {type(value).__name__}, not a tensor; name another"
            )
        if number in seen:
            raise InputError(
                f"image.layer {layer!r} of {self._name} runs several times in a pass; name the block that holds it"
            )
        feature_BF = pooled(value, self._poolings[number], self.original.n_class_tokens, f"{layer!r} of {self._name}")
        is_unit = layer == "last" and self.original.has_unit_length
        # A copy: the layer after this one may work in place.
        seen[number] = F.normalize(feature_BF, dim=1) if is_unit else feature_BF.clone()


def build_backbone(config: ImageConfig, *others: ImageConfig) -> Backbone:
    """Return the network that gives the frozen features of a configuration; with `others`, theirs in the same pass.

    `config.layer` is `last` (what enters the classifier; open_clip's joint embedding), `logits`, the name of a
    module, or a depth d in (0, 1]: the output of block floor(n d + 1/2), but at least the first, of n. `config.pooling`
    says how maps or tokens become one vector (`pooled`).

    Args:
        others: configurations that differ from the first in layer and pooling alone.
    Raises:
        InputError: weights, size or package cannot be had, or there is no such layer.
    """
    assert all(replace(other, layer=config.layer, pooling=config.pooling) == config for other in others)
    build = {"timm": build_timm, "open_clip": build_open_clip}.get(config.encoder, build_original)
    return Backbone(build(config), (config, *others))


def build_projector(config: ImageConfig, n_features: int) -> nn.Module:
    """Return the trained map [B, F] -> [B, D] that `config.projector` names (linear where it names none).

        none        y = x, D = F, as NICE's released code
        linear      y = W x + b
        residual    y = LayerNorm(h + Dropout(V GELU(h) + c)),  h = W x + b          NICE, dropout 0.5

    Raises:
        InputError: `none` with D other than F.
    """
    kind, n_out = config.resolved().projector, config.embed_dim
    if kind == "none":
        if n_out != n_features:
            raise InputError(
                f"image.projector is 'none', but the features have {n_features} dimensions and image.embed_dim is "
                f"{n_out}; set image.embed_dim and eeg.embed_dim to {n_features}, or choose the projector 'linear'"
            )
        return nn.Identity()
    return nn.Linear(n_features, n_out) if kind == "linear" else Residual(n_features, n_out)


class Residual(nn.Module):
    """NICE's projector: h = W x + b, then LayerNorm(h + Dropout(V GELU(h) + c)); [B, F] -> [B, D]."""

    def __init__(self, n_in: int, n_out: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(n_in, n_out), nn.Linear(n_out, n_out)
        self.dropout, self.norm = nn.Dropout(dropout), nn.LayerNorm(n_out)

    def forward(self, feature_BF: Tensor) -> Tensor:
        hidden_BD = self.first(feature_BF)
        return self.norm(hidden_BD + self.dropout(self.second(F.gelu(hidden_BD))))


def pooled(value: Tensor, pooling: str | None, n_class_tokens: int, where: str) -> Tensor:
    """Return what a layer gives as one vector per picture.

    `mean` (also None) and `max` go over the places of maps [B, C, H, W] or [B, H, W, C], H = W, or over the tokens of
    the patches [B, T, C] without those of the class; `cls` is the first token; `flatten` keeps everything. A vector
    [B, F] is left as it is.

    Args:
        n_class_tokens: tokens ahead of those of the patches.
        where: what to call the layer.
    Raises:
        InputError: there is no class token, or the shape is none of these.
    """
    if pooling == "cls":
        if value.ndim != 3 or n_class_tokens == 0:
            raise InputError(
                f"image.pooling is 'cls', but layer {where} of shape {tuple(value.shape)} has no class token; "
                "use 'mean', or name a block of a ViT"
            )
        return value[:, 0]
    if value.ndim == 2:
        return value
    if pooling == "flatten":
        return value.flatten(1)
    if value.ndim == 3:
        place_BPC = value[:, n_class_tokens:]
    elif value.ndim == 4 and value.shape[2] == value.shape[3]:
        place_BPC = value.flatten(2).transpose(1, 2)
    elif value.ndim == 4 and value.shape[1] == value.shape[2]:
        place_BPC = value.flatten(1, 2)
    else:
        raise InputError(
            f"layer {where} gives the shape {tuple(value.shape)}, which is neither maps nor tokens; name another, or "
            "set image.pooling to 'flatten'"
        )
    return place_BPC.amax(dim=1) if pooling == "max" else place_BPC.mean(dim=1)


def blurred(image_B3HW: Tensor, blur_px: float, foveal: float) -> Tensor:
    """Return pictures blurred but for their centre; equation and source as `Backbone`.

    Raises:
        InputError: the blur reaches further than the pictures.
    """
    if blur_px == 0:
        return image_B3HW
    side_px, reach = min(image_B3HW.shape[-2:]), math.ceil(_REACH_SD * blur_px)
    if reach >= side_px:
        raise InputError(
            f"image.blur_px {blur_px:g} reaches {reach} px, further than images of {side_px} px; set it below "
            f"{(side_px - 1) / _REACH_SD:.3g}"
        )
    along_K = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weight_K = torch.exp(-0.5 * (along_K / blur_px) ** 2)
    weight_K = (weight_K / weight_K.sum()).to(image_B3HW)
    blurred_B3HW = F.pad(image_B3HW, (reach, reach, reach, reach), mode="reflect")
    for shape in ((1, 1, -1, 1), (1, 1, 1, -1)):
        blurred_B3HW = F.conv2d(blurred_B3HW, weight_K.reshape(shape).expand(3, -1, -1, -1), groups=3)
    if foveal == 0:
        return blurred_B3HW
    height, width = image_B3HW.shape[-2:]
    row_H, column_W = torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2
    radius_HW = torch.hypot(row_H[:, None], column_W)
    sharp_HW = (foveal * torch.exp(-_FOVEAL_DECAY * radius_HW / radius_HW.max())).to(image_B3HW)
    return torch.lerp(blurred_B3HW, image_B3HW, sharp_HW)


def _path_of(net: nn.Module, layer: str, pattern: str, name: str) -> str:
    """Return the name of the module that `layer` means: its own name, or a depth in (0, 1] among the blocks."""
    names = [path for path, _ in net.named_modules()]
    if not re.fullmatch(r"[0-9.]+(e-?\d+)?", layer):
        if layer in names:
            return layer
        near = ", ".join(difflib.get_close_matches(layer, names, n=3, cutoff=0.3) or names[-1:])
        raise InputError(
            f"image.layer is {layer!r}, but {name} has no such layer; give 'last', 'logits', a depth in (0, 1], or "
            f"the name of a module, such as {near}"
        )
    found = [path for path in names if re.fullmatch(pattern, path)]
    # Of stages and the blocks within them, the blocks.
    blocks = [path for path in found if not any(other.startswith(f"{path}.") for other in found)]
    try:
        depth = float(layer)
    except ValueError:
        depth = -1.0
    if not 0 < depth <= 1:
        raise InputError(f"image.layer is {layer!r}; as a depth it must be in (0, 1], such as 0.67")
    if not blocks:
        raise InputError(f"image.layer is the depth {layer}, but the blocks of {name} are unknown; name a module")
    return blocks[max(1, math.floor(len(blocks) * depth + 0.5)) - 1]


def _name(config: ImageConfig) -> str:
    return repr(config.encoder if config.model is None else f"{config.encoder} {config.model}")
