"""What a feature map of the image encoder answers to: the picture that activates it most.

Axes: B pictures, H W pixels, V frequencies of half a spectrum along W, R random pictures, S steps.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eegvision.analyses.association import Layer, module_of, network_of
from eegvision.encoders.image import IMAGENET_MEAN, IMAGENET_STD
from eegvision.encoders.joint import JointModel
from eegvision.vocab import InputError

# Colours of ImageNet's pixels: principal axes (columns; rows red, green, blue) and standard deviations along them.
# Source: the colour augmentation of Krizhevsky et al. 2012, NeurIPS 25, Section 4.1, with the figures in common use.
_COLOUR_AXES = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
_COLOUR_SD = (0.2175, 0.0188, 0.0045)

_N_RANDOM = 32
# In logits: most of the range of colours, few pixels saturated. Ascent starts there too: from grey, where rectified
# maps have hardly a gradient, some end below what random pictures reach.
_CONTRAST = 1.0


@dataclass(frozen=True, kw_only=True)
class Ascent:
    """How a picture is sought.

    Attributes:
        n_steps: of Adam, at least 1.
        step_size: of Adam, on coefficients whose random value is about 1.
        total_variation: weight λ of roughness, in standard deviations of the activation over random pictures.
        jitter: largest shift, as a share of the side, in [0, 0.5].
        rotation_deg: largest turn to either side.
        zoom: largest change of size, as a share, in [0, 1).
    """

    n_steps: int = 256
    step_size: float = 0.05
    total_variation: float = 5.0
    jitter: float = 0.06
    rotation_deg: float = 10.0
    zoom: float = 0.1

    def __post_init__(self) -> None:
        limits = (
            ("n_steps", self.n_steps >= 1, "at least 1"),
            ("step_size", 0 < self.step_size < math.inf, "above 0"),
            ("total_variation", 0 <= self.total_variation < math.inf, "at least 0"),
            ("jitter", 0 <= self.jitter <= 0.5, "a share of the side in [0, 0.5]"),
            ("rotation_deg", 0 <= self.rotation_deg <= 180, "in [0, 180] degrees"),
            ("zoom", 0 <= self.zoom < 1, "a share in [0, 1)"),
        )
        for name, is_right, allowed in limits:
            if not is_right:
                raise InputError(f"{name} of activation maximisation is {getattr(self, name)!r}; it must be {allowed}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Visualisation:
    """The picture that was found for one feature map.

    Attributes:
        layer, feature: which map.
        image_3HW: float32 colours in [0, 1].
        activation: mean of the map for this picture, as it is.
        random_R: the same for random pictures with the amplitudes of natural ones: what chance gives.
        trace_S: the same at every step, for the shifted, turned and zoomed picture.
    """

    layer: str
    feature: int
    image_3HW: np.ndarray
    activation: float
    random_R: np.ndarray
    trace_S: np.ndarray

    @property
    def standardised(self) -> float:
        """The activation in standard deviations above the mean of random pictures; NaN for a map that is constant."""
        sd = float(self.random_R.std())
        return (self.activation - float(self.random_R.mean())) / sd if sd > 0 else math.nan


def maximise(
    model: JointModel, layer: Layer, feature: int, *, seed: int = 0, ascent: Ascent | None = None
) -> Visualisation:
    """Return the picture, grown from noise, for which the mean of a feature map is largest.

        z* = argmax_z E_T [a(T x(z))] / s - λ TV(x(z)),      x(z) = sigmoid(M Re FFT⁻¹(z / |f|))

    a is the mean of the map over places, T a random shift, turn and zoom about the centre (edges mirrored), s the
    standard deviation of a over random pictures, TV the mean absolute difference of neighbouring pixels. z is a
    spectrum with the amplitudes 1/|f| of natural images, M the colour axes of ImageNet: in these terms neighbouring
    pixels and the three colours of a picture are about independent, so that ascent favours no frequency or colour.
    Source: Olah, Mordvintsev & Schubert 2017, Feature visualization, Distill, doi 10.23915/distill.00007; the constants
    are ours.

    The same seed gives the same picture, bit for bit on a CPU, whichever maps are looked at besides; on a GPU the
    gradient of T is summed in no fixed order. A map that stays zero around the start has no gradient: the picture is
    then noise with `activation` 0; try another seed.

    Args:
        model: in evaluation mode.
        layer: of `association.find_layers`.
        feature: number of the map, from 0.
        seed: of the first spectrum, the T and the random pictures.
        ascent: the settings; by default those of `Ascent`.
    Raises:
        InputError: the model is in training mode or runs no network from pixels, or there is no such layer or map.
    """
    ascent = ascent or Ascent()
    net, side_px = network_of(model)
    if not 0 <= feature < layer.n_maps:
        raise InputError(f"map {feature} of layer {layer.name!r} asked for; it has {layer.n_maps}, counted from 0")
    device = next(net.parameters()).device
    activation = functools.partial(_activation, model, module_of(net, layer.name, model), layer, feature)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        random_R = torch.cat(
            [activation(_picture(_spectrum(side_px, generator).to(device), side_px)) for _ in range(_N_RANDOM)]
        )
    sd = float(random_R.std(correction=0)) or 1.0
    spectrum = _spectrum(side_px, generator).to(device).requires_grad_()
    adam = torch.optim.Adam([spectrum], lr=ascent.step_size)
    trace_S = []
    for _ in range(ascent.n_steps):
        image_13HW = _picture(spectrum, side_px)
        reached = activation(_moved(image_13HW, ascent, generator)).mean()
        loss = -reached / sd + ascent.total_variation * _total_variation(image_13HW)
        # Of the spectrum alone: the model's own gradients stay as they are.
        (spectrum.grad,) = torch.autograd.grad(loss, [spectrum])
        adam.step()
        trace_S.append(float(reached.detach()))
    with torch.no_grad():
        image_13HW = _picture(spectrum, side_px)
        final = float(activation(image_13HW))
    return Visualisation(
        layer=layer.name,
        feature=feature,
        image_3HW=image_13HW[0].cpu().numpy(),
        activation=final,
        random_R=random_R.double().cpu().numpy(),
        trace_S=np.array(trace_S),
    )


class _ReachedError(Exception):
    """Ends a pass at the layer looked at; nothing after it matters."""


def _activation(model: JointModel, module: nn.Module, layer: Layer, feature: int, image_B3HW: Tensor) -> Tensor:
    """Return the mean of a map for each picture of colours in [0, 1], [B]."""
    found: list[Tensor] = []

    def stop(_: nn.Module, __: tuple[Tensor, ...], maps: Tensor) -> None:
        found.append(maps.select(layer.axis, feature).flatten(1).mean(1))
        raise _ReachedError

    mean_3, std_3 = (image_B3HW.new_tensor(value).reshape(3, 1, 1) for value in (IMAGENET_MEAN, IMAGENET_STD))
    handle = module.register_forward_hook(stop)
    try:
        model.encode_image((image_B3HW - mean_3) / std_3)
    except _ReachedError:
        return found[0]
    finally:
        handle.remove()
    raise AssertionError(f"{layer.name} did not run")


def _spectrum(side_px: int, generator: torch.Generator) -> Tensor:
    """Return random coefficients [1, 3, H, V, 2] (real and imaginary)."""
    return _CONTRAST * torch.randn(1, 3, side_px, side_px // 2 + 1, 2, generator=generator)


def _picture(spectrum: Tensor, side_px: int) -> Tensor:
    """Return the picture [1, 3, H, W] of colours in [0, 1] that a spectrum stands for."""
    weight_HV = _weights(side_px).to(spectrum.device)
    field_13HW = torch.fft.irfft2(torch.view_as_complex(spectrum) * weight_HV, s=(side_px, side_px))
    # The first axis is nearly grey, 1/√3 of each colour: scaled so, unit coefficients give colours of unit variance.
    axes_33 = spectrum.new_tensor(_COLOUR_AXES) * spectrum.new_tensor(_COLOUR_SD) * (3**0.5 / _COLOUR_SD[0])
    return torch.sigmoid(torch.einsum("rc,bchw->brhw", axes_33, field_13HW))


@functools.cache
def _weights(side_px: int) -> Tensor:
    """Return 1/|f| [H, V], as large at 0 as at the lowest frequency; unit coefficients give pixels of unit variance."""
    row_H, column_V = np.fft.fftfreq(side_px), np.fft.rfftfreq(side_px)
    weight_HV = 1 / np.maximum(np.hypot(row_H[:, None], column_V), 1 / side_px)
    times_V = np.where((column_V == 0) | (column_V == 0.5), 1, 2)  # all but these stand for two of the whole spectrum
    return torch.from_numpy(weight_HV * side_px**2 / np.sqrt(2 * (weight_HV**2 * times_V).sum())).float()


def _moved(image_13HW: Tensor, ascent: Ascent, generator: torch.Generator) -> Tensor:
    """Return the picture after a random shift, turn and zoom about its centre, uniform within the limits."""
    shift_x, shift_y, turn, zoom = (2 * torch.rand(4, generator=generator) - 1).tolist()
    angle = math.radians(ascent.rotation_deg * turn)
    factor = 1 + ascent.zoom * zoom
    cos, sin = math.cos(angle) / factor, math.sin(angle) / factor
    # Where each pixel of the result comes from; sides reach from -1 to 1.
    x, y = 2 * ascent.jitter * shift_x, 2 * ascent.jitter * shift_y
    source_123 = image_13HW.new_tensor([[[cos, -sin, x], [sin, cos, y]]])
    grid = F.affine_grid(source_123, list(image_13HW.shape), align_corners=False)
    return F.grid_sample(image_13HW, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _total_variation(image_B3HW: Tensor) -> Tensor:
    """Return the mean absolute difference of neighbours, down plus across."""
    return image_B3HW.diff(dim=2).abs().mean() + image_B3HW.diff(dim=3).abs().mean()
