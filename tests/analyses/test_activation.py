"""eegvision.analyses.activation: pictures far beyond chance, the planted filter found, seeds, refusals."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eegvision.analyses.activation import Ascent, Visualisation, maximise
from eegvision.analyses.association import find_layers
from eegvision.config import EegConfig, ImageConfig, RunConfig
from eegvision.encoders.image import IMAGENET_MEAN, IMAGENET_STD
from eegvision.encoders.joint import JointModel, build_joint
from eegvision.vocab import InputError

SIDE_PX = 32


def model_of(net: nn.Module | None = None, **image: Any) -> JointModel:
    config = RunConfig(
        eeg=EegConfig(encoder="tsconv", embed_dim=8, filters=4, dropout=0.0),
        image=ImageConfig(embed_dim=8, size_px=SIDE_PX, **image),
    )
    torch.manual_seed(0)
    model = build_joint(config, 3, 80, 250.0, n_features=512)
    model.image = model.image if net is None else net
    return model.eval()


def visualise(model: JointModel, name: str, feature: int, *, seed: int = 0, **ascent: Any) -> Visualisation:
    [layer] = find_layers(model, torch.zeros(3, SIDE_PX, SIDE_PX), [name])
    return maximise(model, layer, feature, seed=seed, ascent=Ascent(**({"n_steps": 120} | ascent)))


def as_batches(image_B3HW: Tensor) -> Tensor:
    return (image_B3HW - torch.tensor(IMAGENET_MEAN).reshape(3, 1, 1)) / torch.tensor(IMAGENET_STD).reshape(3, 1, 1)


@pytest.mark.parametrize(("name", "feature"), [("features.2", 0), ("features.5", 7), ("features.8", 5)])
def test_activates_a_map_far_above_random_pictures_of_any_kind(name, feature):
    model = model_of()
    found = visualise(model, name, feature)
    assert found.image_3HW.shape == (3, SIDE_PX, SIDE_PX)
    assert 0 <= found.image_3HW.min() < 0.2 < 0.8 < found.image_3HW.max() <= 1
    random_R = found.random_R
    assert found.activation > random_R.mean() + 4 * random_R.std()
    assert found.standardised == pytest.approx((found.activation - random_R.mean()) / random_R.std())
    # Pixel noise has other frequencies, so it is a chance of another kind.
    net = nn.Sequential(*list(model.get_submodule("image.features").children())[: int(name.split(".")[1]) + 1])
    with torch.no_grad():
        noise_B = net(as_batches(torch.rand(64, 3, SIDE_PX, SIDE_PX)))[:, feature].mean((1, 2))
        again = net(as_batches(torch.from_numpy(found.image_3HW)[None]))[0, feature].mean()
    assert found.activation > noise_B.max()
    assert found.activation == pytest.approx(float(again), rel=1e-5)
    assert len(found.trace_S) == 120
    assert found.trace_S[-10:].mean() > found.trace_S[:10].mean()


@pytest.mark.parametrize("axis", [2, 3])
def test_finds_a_planted_grating_and_its_colours(axis):
    """A map that wants a grating along one axis, of red against green."""
    wave_7 = torch.cos(2 * math.pi * torch.arange(7) / 4) - torch.cos(2 * math.pi * torch.arange(7) / 4).mean()
    conv = nn.Conv2d(3, 1, 7, bias=False)
    shape = (1, 1, 7, 1) if axis == 2 else (1, 1, 1, 7)
    with torch.no_grad():
        conv.weight.copy_(wave_7.reshape(shape) * torch.tensor([1.0, -1.0, 0.0]).reshape(1, 3, 1, 1))
    net = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 8))
    image_3HW = visualise(model_of(net), "1", 0, rotation_deg=0, zoom=0, n_steps=200).image_3HW
    contrast_HW = image_3HW[0] - image_3HW[1]
    along, across = (
        np.abs(np.diff(contrast_HW, axis=axis - 2)).mean(),
        np.abs(np.diff(contrast_HW, axis=3 - axis)).mean(),
    )
    assert along > 2 * across
    frequency_F = np.abs(np.fft.rfft(contrast_HW - contrast_HW.mean(), axis=axis - 2)).mean(axis=3 - axis)
    peak = frequency_F[3:].argmax() + 3  # beyond the colour of the whole; seven pixels tell neighbours hardly apart
    assert abs(peak - SIDE_PX // 4) <= 1
    grey_HW = image_3HW[:2].mean(axis=0)
    assert contrast_HW.std() > 0.5 * grey_HW.std()  # of random pictures 0.13: their colours go together


def test_the_seed_decides_whatever_else_is_drawn():
    model = model_of()
    first = visualise(model, "features.5", 3, seed=1, n_steps=20)
    torch.rand(7)
    visualise(model, "features.2", 0, n_steps=3)
    second, other = (visualise(model, "features.5", 3, seed=seed, n_steps=20) for seed in (1, 2))
    np.testing.assert_array_equal(first.image_3HW, second.image_3HW)
    np.testing.assert_array_equal(first.random_R, second.random_R)
    np.testing.assert_array_equal(first.trace_S, second.trace_S)
    assert first.activation == second.activation
    assert np.abs(first.image_3HW - other.image_3HW).mean() > 0.01


def test_leaves_model_and_global_generator_as_they_were():
    model = model_of()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    [layer] = find_layers(model, torch.zeros(3, SIDE_PX, SIDE_PX), ["features.2"])
    torch.manual_seed(9)
    maximise(model, layer, 0, ascent=Ascent(n_steps=2))
    drawn = torch.rand(3)
    torch.manual_seed(9)
    assert torch.equal(drawn, torch.rand(3))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_larger_weight_of_roughness_gives_a_smoother_picture():
    rough, smooth = (visualise(model_of(), "features.2", 0, total_variation=weight) for weight in (0, 30))
    variation = [np.abs(np.diff(found.image_3HW, axis=2)).mean() for found in (rough, smooth)]
    assert variation[1] < 0.7 * variation[0]
    assert smooth.activation < rough.activation


def test_moves_make_the_picture_good_wherever_it_is_seen():
    model = model_of(nn.Sequential(Spot(), nn.Flatten(), nn.Linear(1, 8)))
    still = visualise(model, "0", 0, jitter=0, rotation_deg=0, zoom=0, total_variation=0)
    moved = visualise(model, "0", 0, jitter=0.06, total_variation=0)
    around = []
    for found in (still, moved):
        image_13HW = as_batches(torch.from_numpy(found.image_3HW)[None])
        places = [float(Spot()(image_13HW.roll((dy, dx), (2, 3)))) for dy in (-2, 0, 2) for dx in (-2, 0, 2)]
        around.append(np.mean(places))
    assert still.activation > moved.activation
    assert around[1] > 1.2 * around[0]


class Spot(nn.Module):
    """One map, of one place: how bright the 5 x 5 pixels in the middle are against the ring around them."""

    def forward(self, image_B3HW: Tensor) -> Tensor:
        half = SIDE_PX // 2
        inner = image_B3HW[:, :, half - 2 : half + 3, half - 2 : half + 3].mean((1, 2, 3))
        outer = image_B3HW[:, :, half - 4 : half + 5, half - 4 : half + 5].mean((1, 2, 3))
        return (inner - outer).reshape(-1, 1, 1, 1)


def test_works_on_frozen_networks_and_on_tokens():
    model = model_of(encoder="resnet18", frozen=True)
    found = visualise(model, "layer1.0", 3, n_steps=30)
    assert found.activation > found.random_R.max()
    patches = nn.Sequential(nn.Conv2d(3, 6, 8, 8), nn.Flatten(2), Transposed(), nn.Linear(6, 8), Mean())
    found = visualise(model_of(patches), "3", 7, n_steps=30)
    assert found.activation > found.random_R.max()


class Transposed(nn.Module):
    def forward(self, value_BFT: Tensor) -> Tensor:
        return value_BFT.transpose(1, 2)


class Mean(nn.Module):
    def forward(self, value_BTF: Tensor) -> Tensor:
        return value_BTF.mean(1)


def test_a_map_that_is_always_zero_says_so():
    model = model_of()
    norm = model.get_submodule("image.features.1")
    with torch.no_grad():
        norm.get_parameter("weight")[2] = 0
        norm.get_parameter("bias")[2] = -1
    found = visualise(model, "features.2", 2, n_steps=3)
    assert found.activation == 0
    assert not found.random_R.any()
    assert math.isnan(found.standardised)


def test_refuses_maps_models_and_settings_that_cannot_be():
    model = model_of()
    [layer] = find_layers(model, torch.zeros(3, SIDE_PX, SIDE_PX), ["features.2"])
    with pytest.raises(InputError, match=r"map 16 of layer 'features.2' asked for; it has 16, counted from 0"):
        maximise(model, layer, 16)
    with pytest.raises(InputError, match=r"'small' has no layer 'relu'; give one such as"):
        maximise(model, dataclasses.replace(layer, name="relu"), 0)
    with pytest.raises(InputError, match="training mode"):
        maximise(model.train(), layer, 0)
    wrong: dict[str, Any] = {
        "n_steps": 0, "step_size": 0.0, "total_variation": -1.0, "jitter": 0.6, "rotation_deg": -1, "zoom": 1,
    }  # fmt: skip
    for name, value in wrong.items():
        with pytest.raises(InputError, match=f"{name} of activation maximisation is {value!r}"):
            Ascent(**{name: value})
