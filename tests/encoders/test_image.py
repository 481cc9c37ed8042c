"""eegvision.encoders.image: shapes in training and evaluation, smallest sizes, weights from files, offline."""

import dataclasses
import pickle
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import get_args

import pytest
import safetensors.torch
import torch
from torch import nn

from eegvision import stream
from eegvision.config import ALWAYS_FROZEN, ImageConfig, ImageEncoderName
from eegvision.encoders.image import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    build_image_encoder,
    build_original,
    require_size,
)
from eegvision.vocab import InputError

SMALLEST_PX = {
    "small": 16, "alexnet": 63, "resnet18": 16, "resnet50": 16, "resnet101": 16, "densenet161": 29,
    "inception_v3": 75, "vit_b_16": 16, "convnext_tiny": 32, "convnext_base": 32,
}  # fmt: skip


@pytest.fixture(scope="module")
def resnet18() -> dict[str, torch.Tensor]:
    """A state dict as torchvision publishes it, with its head of 1000 classes."""
    from torchvision import models

    torch.manual_seed(7)
    return models.resnet18(weights=None).state_dict()


@pytest.fixture
def offline(monkeypatch, tmp_path) -> list[str]:
    """No network, an empty cache; returns the addresses that were asked for."""
    asked = []

    def refuse(url, *_args, **_options):
        asked.append(url if isinstance(url, str) else url.full_url)
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    return asked


def built_from(path: Path, encoder: ImageEncoderName = "resnet18") -> nn.Module:
    return build_image_encoder(ImageConfig(encoder=encoder, embed_dim=6, weights=str(path)))


def test_every_name_has_a_network():
    assert SMALLEST_PX.keys() == set(get_args(ImageEncoderName)) - set(ALWAYS_FROZEN)


def test_images_are_expected_as_batches_have_them():
    assert (IMAGENET_MEAN, IMAGENET_STD) == (stream.IMAGE_MEAN, stream.IMAGE_STD)


@pytest.mark.parametrize(("name", "side_px"), SMALLEST_PX.items())
def test_gives_one_row_per_image_in_training_and_evaluation_down_to_the_smallest_size(name, side_px):
    encoder = build_image_encoder(ImageConfig(encoder=name, embed_dim=6, size_px=side_px))
    image_B3HW = torch.randn(2, 3, side_px, side_px + (0 if name == "vit_b_16" else 5))
    for is_training in (True, False):
        embedding_BD = encoder.train(is_training)(image_B3HW)
        assert isinstance(embedding_BD, torch.Tensor)
        assert embedding_BD.shape == (2, 6)
        assert torch.isfinite(embedding_BD).all()
    assert not any(1000 in p.shape for p in encoder.parameters())  # the classes of ImageNet are gone


def test_a_vit_takes_whole_patches_and_only_the_size_it_was_built_for():
    with pytest.raises(InputError, match=r"images of 40 px do not divide.*'vit_b_16'.*multiple of 16, such as 32"):
        build_image_encoder(ImageConfig(encoder="vit_b_16", size_px=40))
    encoder = build_image_encoder(ImageConfig(encoder="vit_b_16", size_px=32))
    for shape in ((48, 48), (32, 48)):
        with pytest.raises(
            InputError, match=rf"images of {shape[0]} x {shape[1]} px.*'vit_b_16' was built for 32 x 32"
        ):
            encoder(torch.zeros(1, 3, *shape))


def test_positions_of_a_vit_are_interpolated_to_another_size(tmp_path):
    """A plane of positions stays one between the corners (bicubic: to a few percent), the class token as it was."""
    state = build_image_encoder(ImageConfig(encoder="vit_b_16", embed_dim=6, size_px=128)).state_dict()
    row_8, token_C = torch.arange(8.0), torch.full((768,), 7.0)
    plane_88 = row_8[:, None] * 10 + row_8
    state["encoder.pos_embedding"] = torch.cat([token_C[None], plane_88.reshape(64, 1).expand(64, 768)])[None]
    torch.save(state, tmp_path / "w.pth")
    config = ImageConfig(encoder="vit_b_16", embed_dim=6, weights=str(tmp_path / "w.pth"))
    same = build_image_encoder(dataclasses.replace(config, size_px=128))
    assert torch.equal(same.state_dict()["encoder.pos_embedding"], state["encoder.pos_embedding"])
    half = build_image_encoder(dataclasses.replace(config, size_px=64))
    position_TC = half.state_dict()["encoder.pos_embedding"][0]
    assert position_TC.shape == (17, 768)
    assert torch.equal(position_TC[0], token_C)
    grid_44 = position_TC[1:, 0].reshape(4, 4)
    expected_44 = torch.linspace(0, 70, 4)[:, None] + torch.linspace(0, 7, 4)
    torch.testing.assert_close(grid_44[::3, ::3], expected_44[::3, ::3])
    torch.testing.assert_close(grid_44, expected_44, rtol=0, atol=2)


def test_positions_that_are_no_square_are_refused(tmp_path):
    state = build_image_encoder(ImageConfig(encoder="vit_b_16", embed_dim=6, size_px=32)).state_dict()
    state["encoder.pos_embedding"] = torch.zeros(1, 7, 768)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"w.pth has encoder.pos_embedding of shape \(1, 7, 768\).*interpolated"):
        build_image_encoder(ImageConfig(encoder="vit_b_16", size_px=48, weights=str(tmp_path / "w.pth")))


def test_an_original_keeps_the_last_layer_of_its_weights(resnet18, tmp_path):
    torch.save(resnet18, tmp_path / "w.pth")
    config = ImageConfig(encoder="resnet18", frozen=True, weights=str(tmp_path / "w.pth"))
    whole = build_original(config)
    assert whole.has_classes
    assert all(torch.equal(value, resnet18[name]) for name, value in whole.net.state_dict().items())
    assert not whole.net.training
    assert not any(parameter.requires_grad for parameter in whole.net.parameters())

    head = {"fc.weight": torch.ones(7, 512), "fc.bias": torch.ones(7)}
    torch.save(resnet18 | head, tmp_path / "w.pth")
    assert build_original(config).net(torch.zeros(1, 3, 32, 32)).shape == (1, 7)

    torch.save({name: value for name, value in resnet18.items() if not name.startswith("fc.")}, tmp_path / "w.pth")
    headless = build_original(config)
    assert not headless.has_classes
    assert headless.net(torch.zeros(1, 3, 32, 32)).shape == (1, 512)


def test_random_originals_are_the_same_ones_and_leave_the_seed_alone():
    config = ImageConfig(frozen=True)
    torch.manual_seed(3)
    first, drawn = build_original(config), torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(3))
    second = build_original(config)
    for one, other in zip(first.net.parameters(), second.net.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("name", "side_px"), [item for item in SMALLEST_PX.items() if item[1] > 16])
def test_refuses_images_below_the_smallest_size(name, side_px):
    message = f"images of {side_px - 1} px are too small for '{name}'.*at least {side_px}.*'small'"
    with pytest.raises(InputError, match=message):
        build_image_encoder(ImageConfig(encoder=name, size_px=side_px - 1))
    with pytest.raises(InputError, match=message):
        require_size(name, side_px - 1)


def test_small_gradients_reach_every_parameter():
    encoder = build_image_encoder(ImageConfig(embed_dim=6))
    encoder(torch.randn(4, 3, 64, 64)).square().sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_small_is_small_and_knows_where_the_object_is():
    torch.manual_seed(0)
    encoder = build_image_encoder(ImageConfig()).eval()
    assert sum(p.numel() for p in encoder.parameters()) < 300_000
    left_B3HW = torch.zeros(1, 3, 64, 64)
    left_B3HW[..., 24:40, 8:24] = 1
    right_B3HW = left_B3HW.roll(32, dims=3)  # by a multiple of all strides: equal but for the place
    features, places = encoder.get_submodule("features"), []
    for image_B3HW in (left_B3HW, right_B3HW):
        maps_BF44 = features(image_B3HW) - features(torch.zeros_like(image_B3HW))
        assert maps_BF44.shape == (1, 96, 4, 4)
        places.append(maps_BF44.abs().sum((0, 1, 2)).argmax().item())
    assert places[0] < 2 <= places[1]
    assert (encoder(left_B3HW) - encoder(right_B3HW)).abs().max() > 1e-3


def test_the_seed_decides_the_weights():
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(nn.utils.parameters_to_vector(build_image_encoder(ImageConfig()).parameters()))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_a_file_fill_all_but_the_head(resnet18, suffix, tmp_path):
    path = tmp_path / f"weights{suffix}"
    (torch.save if suffix == ".pth" else safetensors.torch.save_file)(resnet18, path)
    state = built_from(path).state_dict()
    assert state.keys() == resnet18.keys()
    assert all(torch.equal(state[name], resnet18[name]) for name in state if not name.startswith("fc."))
    assert state["fc.weight"].shape == (6, 512)


def test_weights_without_a_head_are_enough(resnet18, tmp_path):
    torch.save({name: value for name, value in resnet18.items() if not name.startswith("fc.")}, tmp_path / "w.pth")
    assert torch.equal(built_from(tmp_path / "w.pth").state_dict()["conv1.weight"], resnet18["conv1.weight"])


def test_weights_of_torchvisions_old_densenet_files_are_understood(tmp_path):
    # Published in 2017: `norm.1` for `norm1`, and no counters of batches.
    state = build_image_encoder(ImageConfig(encoder="densenet161", embed_dim=6)).state_dict()
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", name): torch.full_like(value, 0.5)
        for name, value in state.items()
        if not name.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "w.pth")
    filled = built_from(tmp_path / "w.pth", "densenet161").state_dict()
    assert all(
        (value == 0.5).all()
        for name, value in filled.items()
        if not name.startswith("classifier.") and not name.endswith("num_batches_tracked")
    )


def test_weights_of_inceptions_auxiliary_head_are_dropped(tmp_path):
    state = build_image_encoder(ImageConfig(encoder="inception_v3", embed_dim=6)).state_dict()
    found = {name: torch.full_like(value, 0.5) for name, value in state.items()}
    torch.save(found | {"AuxLogits.fc.bias": torch.zeros(1000), "fc.bias": torch.zeros(1000)}, tmp_path / "w.pth")
    filled = built_from(tmp_path / "w.pth", "inception_v3").state_dict()
    assert filled.keys() == state.keys()
    assert (filled["Mixed_7c.branch1x1.conv.weight"] == 0.5).all()


def test_weights_that_do_not_fit_are_refused_by_name(resnet18, tmp_path):
    changed = resnet18 | {"conv1.weight": torch.zeros(64, 1, 7, 7), "extra.bias": torch.zeros(3)}
    del changed["layer1.0.bn1.bias"]
    torch.save(changed, tmp_path / "w.pth")
    with pytest.raises(InputError) as caught:
        built_from(tmp_path / "w.pth")
    for part in (
        f"{tmp_path / 'w.pth'} is no state dict of 'resnet18'",
        "lacks layer1.0.bn1.bias",
        "has unknown extra.bias",
        "has conv1.weight of shape (64, 1, 7, 7) instead of (64, 3, 7, 7)",
    ):
        assert part in str(caught.value)


def test_weights_of_another_network_are_refused_in_few_words(resnet18, tmp_path):
    torch.save(resnet18, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"no state dict of 'alexnet': it has unknown .*; and \d+ more$") as caught:
        built_from(tmp_path / "w.pth", "alexnet")
    assert len(str(caught.value)) < 400


def test_weights_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"absent.pth' is not a file.*'none', 'imagenet', or the absolute path"):
        built_from(tmp_path / "absent.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_that_were_cut_short_are_refused(resnet18, suffix, tmp_path):
    path = tmp_path / f"weights{suffix}"
    (torch.save if suffix == ".pth" else safetensors.torch.save_file)(resnet18, path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match=rf"weights{suffix} cannot be read as a state dict"):
        built_from(path)


class Trap:
    def __reduce__(self):
        return Path.touch, (Path("sprung"),)


def test_a_file_cannot_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"fc.weight": Trap()}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="cannot be read"):
        built_from(tmp_path / "w.pth")
    (tmp_path / "w.pth").write_bytes(pickle.dumps(Trap(), protocol=2))
    with pytest.raises(InputError, match="cannot be read"):
        built_from(tmp_path / "w.pth")
    assert not Path("sprung").exists()


@pytest.mark.parametrize(("content", "what"), [({"model": {}, "step": 3}, "keys model, step"), ([1], "list")])
def test_a_file_with_something_else_is_refused(content, what, tmp_path):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(InputError, match=rf"w.pth holds .*{what}.*, not a state dict"):
        built_from(tmp_path / "w.pth")


def test_imagenet_offline_says_what_to_fetch_and_where_to_put_it(offline, tmp_path):
    with pytest.raises(InputError) as caught:
        build_image_encoder(ImageConfig(encoder="resnet18", weights="imagenet"))
    address = "https://download.pytorch.org/models/resnet18-f37072fd.pth"
    assert offline == [address]  # asked once, not again and again
    for part in (address, str(tmp_path / "cache" / "hub" / "checkpoints" / "resnet18-f37072fd.pth"), "image.weights"):
        assert part in str(caught.value)


def test_imagenet_weights_in_the_cache_need_no_network(resnet18, offline, tmp_path):
    folder = tmp_path / "cache" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(resnet18, folder / "resnet18-f37072fd.pth")
    encoder = build_image_encoder(ImageConfig(encoder="resnet18", embed_dim=6, weights="imagenet"))
    assert torch.equal(encoder.state_dict()["conv1.weight"], resnet18["conv1.weight"])
    assert offline == []
