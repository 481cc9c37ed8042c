"""Which feature maps of the image encoder go with which EEG channels, and when.

Axes: B segments of one image, U images, K intervals of time (one: the whole segment), C EEG channels, D embedding,
F feature maps of a layer, L layers, H W pixels.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eegvision.config import ALWAYS_FROZEN
from eegvision.encoders.frozen import Backbone
from eegvision.encoders.image import layers_of
from eegvision.encoders.joint import JointModel
from eegvision.vocab import InputError


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer of an image encoder whose feature maps can be taken out one by one.

    Attributes:
        name: of the module.
        n_maps: F, the number of its maps: of [1, F, H, W] or [1, H, W, F], of tokens [1, T, F], or units [1, F].
        axis: where F is: 1 or -1.
        can_branch: whether a pass of one image can become one of many here: later layers see nothing else of the image,
            or nothing that would not broadcast.
    """

    name: str
    n_maps: int
    axis: int
    can_branch: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Association:
    """What channels and feature maps contribute together, for some images and the segments they evoked.

    Attributes:
        layers: the layers looked at, in the order in which they run.
        n_pairs_U: int64 [U], segments of each image.
        layer_UKCL: float64 [U, K, C, L], A_c,l averaged over the segments of each image.
        map_KCF: for each layer float64 [K, C, F], A_c,l,f averaged over all pairs of a segment and its image.
    """

    layers: tuple[Layer, ...]
    n_pairs_U: np.ndarray
    layer_UKCL: np.ndarray
    map_KCF: tuple[np.ndarray, ...]

    def by_channel(self) -> tuple[np.ndarray, np.ndarray]:
        """Return A_c,l averaged over pairs and its standard error over images, [K, C, L] each; see `mean_error`."""
        return mean_error(self.layer_UKCL, self.n_pairs_U)

    def by_interval(self) -> tuple[np.ndarray, np.ndarray]:
        """Return what each interval contributes to each layer, and its standard error over images, [K, L] each.

        That is A_c,l averaged over pairs and channels, not normalised.
        """
        return mean_error(self.layer_UKCL.mean(axis=2), self.n_pairs_U)


def mean_error(value_UX: np.ndarray, n_pairs_U: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean over pairs of means of units, [...], and the standard error that other units would give it.

        m = sum_u n_u x_u / n        SE^2 = U/(U - 1) sum_u n_u^2 (x_u - m)^2 / n^2        (NaN of one unit)

    Source: Liang & Zeger 1986, Biometrika 73, 13 (errors that are robust to clusters).

    Args:
        value_UX: the mean of each unit (an image, or several), of any further axes.
        n_pairs_U: how many pairs it is the mean of.
    """
    n_units = len(n_pairs_U)
    weight_UX = (n_pairs_U / n_pairs_U.sum()).reshape(-1, *(1 for _ in value_UX.shape[1:]))
    mean_X = (weight_UX * value_UX).sum(axis=0)
    if n_units == 1:
        return mean_X, np.full_like(mean_X, np.nan)
    variance_X = n_units / (n_units - 1) * (weight_UX**2 * (value_UX - mean_X) ** 2).sum(axis=0)
    return mean_X, np.sqrt(variance_X)


@dataclass(frozen=True, kw_only=True)
class Link:
    """The association of one feature map with one channel."""

    layer: str
    feature: int
    channel: str
    value: float


def association(
    model: JointModel, image_3HW: Tensor, delta_eeg_BKCD: Tensor, layers: Sequence[Layer], *, batch_size: int = 64
) -> Association:
    """Return how much of what each channel contributes to F(e, v) is lost with each feature map.

        A_c,l,f = I_c - I_c,l,f = [F(e, v) - F(e_-c, v)] - [F(e, v_-(l,f)) - F(e_-c, v_-(l,f))]        Eq. 8, 9
                = Δφ_c · Δθ_l,f,    Δφ_c = φ(e) - φ(e_-c),  Δθ_l,f = θ(v) - θ(v_-(l,f))
        A_c,l = mean_f A_c,l,f                                                                        Eq. 10

    e_-c has noise in place of channel c, v_-(l,f) is the image to an encoder whose map f of layer l is zero. F is a
    product of embeddings, so this is exact with C + F encodings in place of C F, whether or not they have unit length.
    A is linear in Δφ: the mean over draws of the noise comes from the mean of Δφ over them. Every image is computed by
    itself, so images can be spread and `pooled` at will.

    Source: Palazzo et al., arXiv 1810.10974, Section 6.

    Args:
        model: in evaluation mode.
        image_3HW: normalised as in batches, on the model's device.
        delta_eeg_BKCD: Δφ_c for the B segments that this image evoked, each in K intervals: of every interval
            `channels.channel_changes`, `change_BRCD.mean(1)`.
        layers: from `find_layers`.
        batch_size: maps taken out at a time; changes speed and memory, and results by no more than rounding.
    Raises:
        InputError: shapes do not fit the model, Δφ is not finite, or see `map_effects`.
    """
    n_dims = model.config.image.embed_dim
    if delta_eeg_BKCD.ndim != 4 or 0 in delta_eeg_BKCD.shape or delta_eeg_BKCD.shape[3] != n_dims:
        raise InputError(
            f"differences of EEG embeddings have the shape {tuple(delta_eeg_BKCD.shape)}; expected [B, K, C, {n_dims}] "
            "of segments, intervals (1 for the whole segment) and channels"
        )
    if not torch.isfinite(delta_eeg_BKCD).all():
        raise InputError("a difference of EEG embeddings is not finite; leave segments with NaN or infinity out")
    effect_FD = map_effects(model, image_3HW, layers, batch_size=batch_size)
    mean_KCD = delta_eeg_BKCD.double().mean(0).cpu()
    mean_DL = torch.stack([delta_FD.double().mean(0) for delta_FD in effect_FD], dim=1).cpu()
    return Association(
        layers=tuple(layers),
        n_pairs_U=np.array([len(delta_eeg_BKCD)]),
        layer_UKCL=(mean_KCD @ mean_DL)[None].numpy(),
        map_KCF=tuple((mean_KCD @ delta_FD.double().cpu().T).numpy() for delta_FD in effect_FD),
    )


def pooled(parts: Iterable[Association]) -> Association:
    """Return the association over the pairs of several parts, which may be any shares of a data set's images.

    Images keep the order of the parts. Means over other shares or orders differ by rounding of float64 alone.

    Raises:
        InputError: there is no part, or parts differ in layers, intervals or channels.
    """
    layers: tuple[Layer, ...] = ()
    counts: list[np.ndarray] = []
    images: list[np.ndarray] = []
    sum_KCF: list[np.ndarray] = []
    for part in parts:
        if not images:
            layers, sum_KCF = part.layers, [np.zeros_like(map_KCF) for map_KCF in part.map_KCF]
        elif (part.layers, part.layer_UKCL.shape[1:]) != (layers, images[0].shape[1:]):
            raise InputError(
                f"associations of {len(part.layers)} layers and {part.layer_UKCL.shape[1:3]} intervals and channels "
                f"cannot be pooled with {len(layers)} layers and {images[0].shape[1:3]}; pool those of one model and "
                "the same layers"
            )
        counts.append(part.n_pairs_U)
        images.append(part.layer_UKCL)
        for total_KCF, map_KCF in zip(sum_KCF, part.map_KCF, strict=True):
            total_KCF += part.n_pairs_U.sum() * map_KCF  # one pass over parts that need not all fit into memory
    if not images:
        raise InputError("no associations to pool; give those of at least one image")
    n_pairs_U = np.concatenate(counts)
    for total_KCF in sum_KCF:
        total_KCF /= n_pairs_U.sum()
    return Association(layers=layers, n_pairs_U=n_pairs_U, layer_UKCL=np.concatenate(images), map_KCF=tuple(sum_KCF))


def strongest(
    found: Association,
    channels: Sequence[str],
    *,
    n: int = 20,
    interval: int = 0,
    layer: str | None = None,
    channel: str | None = None,
) -> list[Link]:
    """Return the n largest associations of a feature map with a channel, largest first.

    Equal ones come in the order of layers, maps, channels. Fewer than n where there are no more.

    Args:
        channels: names of the C channels.
        interval: which of the K.
        layer, channel: look at this one alone.
    Raises:
        InputError: names do not fit the channels, n < 1, or there is no such interval, layer or channel.
    """
    n_intervals, n_chans = found.layer_UKCL.shape[1:3]
    if len(channels) != n_chans:
        raise InputError(f"{len(channels)} names given for {n_chans} channels; give those of the recording, in order")
    if n < 1:
        raise InputError(f"the strongest {n} associations asked for; ask for at least 1")
    if not 0 <= interval < n_intervals:
        raise InputError(f"interval {interval} asked for; there are {n_intervals}, counted from 0")
    names = [one.name for one in found.layers]
    if layer is not None and layer not in names:
        raise InputError(f"layer {layer!r} was not looked at{_near(layer, names)}")
    if channel is not None and channel not in channels:
        raise InputError(f"channel {channel!r} is not in the montage{_near(channel, channels)}")
    columns = [column for column, name in enumerate(channels) if channel in (None, name)]
    chosen = [
        (name, map_KCF[interval, columns].T)  # [F, columns]
        for name, map_KCF in zip(names, found.map_KCF, strict=True)
        if layer in (None, name)
    ]
    value_N = np.concatenate([value_FC.ravel() for _, value_FC in chosen])
    stop_L = np.cumsum([value_FC.size for _, value_FC in chosen])
    links = []
    for place in np.argsort(-value_N, kind="stable")[:n].tolist():
        number = int(np.searchsorted(stop_L, place, side="right"))
        name, value_FC = chosen[number]
        feature, column = divmod(place - int(stop_L[number]) + value_FC.size, len(columns))
        links.append(Link(layer=name, feature=feature, channel=channels[columns[column]], value=float(value_N[place])))
    return links


@torch.no_grad()
def map_effects(model: JointModel, image_3HW: Tensor, layers: Sequence[Layer], *, batch_size: int = 64) -> list[Tensor]:
    """Return for each layer Δθ_l,f = θ(v) - θ(v_-(l,f)), [F, D]: what each of its maps adds to the image's embedding.

    Maps that are zero everywhere for this image add exactly nothing, and no time is spent on them. Where a pass
    `can_branch`, the layers before are run once for a whole batch of maps; elsewhere every map takes a full pass.

    Raises:
        InputError: the model is in training mode, has no image encoder, takes images of another size, or has no such
            layer or one of other maps.
    """
    net, image_13HW = _network(model, image_3HW), image_3HW[None]
    if not layers or batch_size < 1:
        raise InputError(f"{len(layers)} layers and a batch of {batch_size} given; both must be at least 1")
    effects = []
    for layer in layers:
        module = module_of(net, layer.name, model)
        seen: list[Tensor] = []
        with _changed(module, lambda maps, seen=seen: seen.append(maps.clone())):
            image_1D = model.encode_image(image_13HW)
        if _shape(layer.name, seen, model) != (layer.n_maps, layer.axis):
            raise InputError(
                f"layer {layer.name!r} of {_called(model)} gives the shape {tuple(seen[0].shape)}, not {layer.n_maps} "
                f"maps on axis {layer.axis}; find layers with this model"
            )
        delta_FD = image_1D.new_zeros(layer.n_maps, image_1D.shape[1])
        alive_A = torch.nonzero(seen[0].movedim(layer.axis, 1).reshape(layer.n_maps, -1).any(1)).squeeze(1)
        for feature_N in alive_A.split(batch_size):
            n_copies = len(feature_N)
            with _changed(module, lambda maps, layer=layer, feature_N=feature_N: _without(maps, layer, feature_N)):
                image_ND = model.encode_image(image_13HW.expand(1 if layer.can_branch else n_copies, -1, -1, -1))
            delta_FD[feature_N] = image_1D - image_ND
        effects.append(delta_FD)
    return effects


@torch.no_grad()
def find_layers(model: JointModel, image_3HW: Tensor, names: Sequence[str] | None = None) -> tuple[Layer, ...]:
    """Return the layers of these module names, or the encoder's usual ones, in the order in which they run.

    Usual are the first maps and every block that gives maps or tokens, as far as embeddings depend on them; any other
    module that gives a tensor and runs once in a pass can be named. The image, any that the model takes, is encoded a
    few times to see what the layers give.

    Raises:
        InputError: as `map_effects`; or a layer is unknown, runs several times, gives no maps, or changes nothing
            because features are taken before it.
    """
    net, image_13HW = _network(model, image_3HW), image_3HW[None]
    wanted = _usual(model, net) if names is None else list(dict.fromkeys(names))
    seen: dict[str, list[object]] = {}
    with ExitStack() as stack:
        for name in wanted:
            note = partial(_note, seen, name)
            stack.enter_context(_changed(module_of(net, name, model), note))
        model.encode_image(image_13HW)
    missing = [name for name in wanted if name not in seen]
    if names is not None and missing:
        raise InputError(f"layer {missing[0]!r} of {_called(model)} does not run; leave it out")
    layers = []
    for name, outputs in seen.items():
        n_maps, axis = _shape(name, outputs, model)
        if names is None and isinstance(outputs[0], Tensor) and outputs[0].ndim == 2:
            continue  # units of a classifier, which are no maps
        can_branch = _can_branch(model, net.get_submodule(name), image_13HW, axis)
        if can_branch is not None:
            layers.append(Layer(name=name, n_maps=n_maps, axis=axis, can_branch=can_branch))
        elif names is not None:
            raise InputError(
                f"layer {name!r} of {_called(model)} changes nothing: image features are taken before it (image.layer "
                f"is {model.config.image.layer or 'last'!r}); name an earlier one"
            )
    if not layers:
        raise InputError(
            f"no block of {_called(model)} runs before its features are taken (image.layer is "
            f"{model.config.image.layer or 'last'!r}); name earlier layers"
        )
    return tuple(layers)


def _note(seen: dict[str, list[object]], name: str, output: object) -> None:
    seen.setdefault(name, []).append(output)


def _usual(model: JointModel, net: nn.Module) -> list[str]:
    encoder = model.config.image.encoder
    pattern = _backbone(model).original.blocks if encoder in ALWAYS_FROZEN else layers_of(encoder)
    names = [name for name, _ in net.named_modules() if name]
    found = [name for name in names if re.fullmatch(pattern, name)]
    if not found:
        raise InputError(
            f"which layers of {_called(model)} are its blocks is not known; name some, among {', '.join(names[:5])} .."
        )
    # Of stages and the blocks within them, the blocks.
    return [name for name in found if not any(other.startswith(f"{name}.") for other in found)]


def _shape(name: str, outputs: Sequence[object], model: JointModel) -> tuple[int, int]:
    """Return how many maps a layer gives and on which axis."""
    if len(outputs) > 1:
        raise InputError(
            f"layer {name!r} of {_called(model)} runs {len(outputs)} times in a pass; name the block that holds it"
        )
    output = outputs[0]
    shape = tuple(output.shape) if isinstance(output, Tensor) else ()
    if len(shape) not in (2, 3, 4) or shape[0] != 1:
        what = f"the shape {shape}" if shape else f"a {type(output).__name__}"
        raise InputError(
            f"layer {name!r} of {_called(model)} gives {what}, neither maps, tokens nor units of one image; "
            "name another"
        )
    # Images are square, so of four axes the two of places are the equal ones.
    is_last = len(shape) == 3 or (len(shape) == 4 and shape[2] != shape[3] and shape[1] == shape[2])
    return (shape[-1], -1) if is_last else (shape[1], 1)


def _can_branch(model: JointModel, module: nn.Module, image_13HW: Tensor, axis: int) -> bool | None:
    """Return whether a pass of one image can become one of many at a layer; None if the layer changes nothing.

    Two images that differ from this layer on are encoded in full, and again from one that becomes two here.
    """

    def two(maps: Tensor) -> Tensor:
        maps = maps[:1].movedim(axis, -1)
        # As large as what is there, and different for each map: a constant would be lost in a normalisation.
        ramp = torch.linspace(0.5, 1, maps.shape[-1], dtype=maps.dtype, device=maps.device)
        return torch.cat([maps, maps + ramp * maps.abs().amax().clamp(min=1)]).movedim(-1, axis)

    with _changed(module, two):
        full_2D = model.encode_image(image_13HW.expand(2, -1, -1, -1))
        if torch.equal(full_2D[0], full_2D[1]):
            return None
        try:
            resumed_2D = model.encode_image(image_13HW)
        except torch.OutOfMemoryError:
            raise
        except (
            RuntimeError
        ):  # one image's maps cannot be put beside those of two: a branch, or a layer in a dense block
            return False
    if resumed_2D.shape != full_2D.shape:
        return False
    return bool((resumed_2D - full_2D).abs().max() < 0.01 * (full_2D[0] - full_2D[1]).abs().max())


def _without(maps: Tensor, layer: Layer, feature_N: Tensor) -> Tensor:
    """Return N copies of an image's maps, in each of which another map is zero."""
    copies = maps[:1].expand(len(feature_N), *maps.shape[1:]).clone()
    copies.movedim(layer.axis, 1)[torch.arange(len(feature_N), device=maps.device), feature_N] = 0
    return copies


@contextmanager
def _changed(module: nn.Module, change: Callable[[Any], Tensor | None]) -> Iterator[None]:
    """Have a module give `change` of what it gives, or the same where that is None."""
    # Ahead of other hooks, since a frozen backbone takes its features with one.
    handle = module.register_forward_hook(lambda _, __, output: change(output), prepend=True)
    try:
        yield
    finally:
        handle.remove()


def network_of(model: JointModel) -> tuple[nn.Module, int]:
    """Return the network from pixels, whose modules are the layers, and the side in pixels of the images it is for.

    Raises:
        InputError: the model has no image encoder or none from pixels, or is in training mode.
    """
    if model.image is None:
        raise InputError(f"a model of loss.name {model.config.loss.name!r} has no image encoder; load a joint one")
    if model.training:
        raise InputError("the model is in training mode, in which an embedding depends on the batch; call model.eval()")
    if model.config.image.is_frozen:
        return _backbone(model).net, _backbone(model).size_px
    return model.image, model.config.image.input_px


def _backbone(model: JointModel) -> Backbone:
    backbone = model.backbone
    assert isinstance(backbone, Backbone)
    return backbone


def module_of(net: nn.Module, name: str, model: JointModel) -> nn.Module:
    """Return the module of this name in the model's network (`network_of`).

    Raises:
        InputError: there is none.
    """
    names = [path for path, _ in net.named_modules() if path]
    if name not in names:
        raise InputError(f"{_called(model)} has no layer {name!r}{_near(name, names)}")
    return net.get_submodule(name)


def _network(model: JointModel, image_3HW: Tensor) -> nn.Module:
    """Return the network, or refuse an image that is not for it."""
    net, side_px = network_of(model)
    if tuple(image_3HW.shape) != (3, side_px, side_px):
        raise InputError(
            f"an image of shape {tuple(image_3HW.shape)} given to a model of [3, {side_px}, {side_px}]; "
            "resize or crop it as for training"
        )
    return net


def _near(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.3) or list(names[:3])
    return f"; give one such as {', '.join(near)}"


def _called(model: JointModel) -> str:
    image = model.config.image
    return f"image encoder {image.encoder!r}" if image.model is None else f"{image.encoder} {image.model!r}"
