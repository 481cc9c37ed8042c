"""eegvision.encoders.frozen: features of every kind of layer by hand, blur by hand, projectors, optional packages."""

import builtins
import dataclasses
import math
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eegvision.config import ImageConfig, ImageEncoderName
from eegvision.encoders import frozen
from eegvision.encoders.frozen import blurred, build_backbone, build_projector, pooled
from eegvision.encoders.image import IMAGENET_MEAN, IMAGENET_STD
from eegvision.vocab import InputError

SIZES_PX: dict[ImageEncoderName, int] = {
    "small": 32, "resnet18": 48, "densenet161": 32, "vit_b_16": 32, "convnext_tiny": 32,
}  # fmt: skip


def config(encoder: ImageEncoderName, **settings: Any) -> ImageConfig:
    given: dict[str, Any] = {"size_px": SIZES_PX[encoder]} | settings
    return ImageConfig(encoder=encoder, frozen=True, **given)


def pictures(size_px: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, size_px, size_px, generator=torch.Generator().manual_seed(1))


def by_hooks(net: nn.Module, image_B3HW: Tensor, names: list[str]) -> dict[str, Tensor]:
    """What the named modules put out, and under "input of NAME" what enters them, in a pass of the bare network."""
    seen: dict[str, Tensor] = {}
    handles = []
    for name in names:
        module = net.get_submodule(name)
        handles.append(
            module.register_forward_pre_hook(lambda _, x, name=name: seen.update({f"input of {name}": x[0]}))
        )
        handles.append(module.register_forward_hook(lambda _, __, y, name=name: seen.update({name: y.clone()})))
    with torch.no_grad():
        seen["output"] = net(image_B3HW)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize(
    ("encoder", "head", "n_features"),
    [
        ("small", "head", 1536), ("resnet18", "fc", 512), ("vit_b_16", "heads.head", 768),
        ("convnext_tiny", "classifier.2", 768),
    ],
)  # fmt: skip
def test_last_is_what_enters_the_last_layer(encoder, head, n_features):
    backbone, image_B3HW = build_backbone(config(encoder)), pictures(SIZES_PX[encoder])
    feature_BF = backbone(image_B3HW)
    assert feature_BF.shape == (2, n_features)
    assert torch.equal(feature_BF, by_hooks(backbone.net, image_B3HW, [head])[f"input of {head}"])


def test_logits_are_what_the_network_returns():
    backbone, image_B3HW = build_backbone(config("resnet18", layer="logits")), pictures(48)
    feature_BF = backbone(image_B3HW)
    assert feature_BF.shape == (2, 1000)
    assert torch.equal(feature_BF, backbone.net(image_B3HW))


def test_networks_without_classes_have_no_logits():
    with pytest.raises(InputError, match=r"image.layer is 'logits', but 'small' has no classifier; use 'last'"):
        build_backbone(config("small", layer="logits"))


def test_one_pass_gives_all_layers_as_forward_hooks_see_them():
    """Blocks of a ResNet end in place, so what a hook keeps without a copy would change under it."""
    first = config("resnet18")
    chosen: list[tuple[str, Any]] = [
        ("layer2.0.bn1", "mean"),
        ("layer2", "max"),
        ("layer4.1", "flatten"),
        ("last", None),
        ("conv1", "mean"),
    ]
    others = [dataclasses.replace(first, layer=layer, pooling=pooling) for layer, pooling in chosen]
    backbone, image_B3HW = build_backbone(first, *others), pictures(48)
    with torch.no_grad():
        found = backbone.all_layers(image_B3HW)
    seen = by_hooks(backbone.net, image_B3HW, ["layer2.0.bn1", "layer2", "layer4.1", "conv1", "fc"])
    expected = [
        seen["input of fc"],
        seen["layer2.0.bn1"].mean((2, 3)),
        seen["layer2"].amax((2, 3)),
        seen["layer4.1"].flatten(1),
        seen["input of fc"],
        seen["conv1"].mean((2, 3)),
    ]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    for number, other in enumerate(others):
        alone = build_backbone(other)(image_B3HW)
        torch.testing.assert_close(found[number + 1], alone, rtol=0, atol=0)


def test_tokens_of_a_vit_are_pooled_without_the_class():
    first, name = config("vit_b_16", layer="0.5"), "encoder.layers.encoder_layer_5"
    others = [dataclasses.replace(first, pooling=pooling) for pooling in ("max", "cls", "flatten")]
    image_B3HW = pictures(32)
    backbone = build_backbone(first, *others)
    mean_BF, max_BF, cls_BF, flat_BF = backbone.all_layers(image_B3HW)
    token_BTC = by_hooks(backbone.net, image_B3HW, [name])[name]
    assert token_BTC.shape == (2, 5, 768)
    torch.testing.assert_close(mean_BF, token_BTC[:, 1:].mean(1))
    assert torch.equal(max_BF, token_BTC[:, 1:].amax(1))
    assert torch.equal(cls_BF, token_BTC[:, 0])
    assert torch.equal(flat_BF, token_BTC.flatten(1))


def test_maps_are_pooled_over_places_wherever_their_channels_are():
    map_BCHW = torch.randn(2, 5, 3, 3)
    for pooling, expected in (("mean", map_BCHW.mean((2, 3))), ("max", map_BCHW.amax((2, 3)))):
        torch.testing.assert_close(pooled(map_BCHW, pooling, 0, "it"), expected)
        torch.testing.assert_close(pooled(map_BCHW.permute(0, 2, 3, 1), pooling, 0, "it"), expected)
    vector_BF = torch.randn(2, 7)
    for pooling in (None, "mean", "max", "flatten"):
        assert torch.equal(pooled(vector_BF, pooling, 1, "it"), vector_BF)


@pytest.mark.parametrize(
    ("value", "pooling", "n_class", "message"),
    [
        (torch.zeros(2, 7), "cls", 1, r"'cls', but layer it of shape \(2, 7\) has no class token"),
        (torch.zeros(2, 7, 3), "cls", 0, "has no class token; use 'mean'"),
        (torch.zeros(2, 5, 3, 4), "mean", 0, r"layer it gives the shape \(2, 5, 3, 4\), which is neither"),
        (torch.zeros(2), "mean", 0, "neither maps nor tokens"),
    ],
)
def test_what_cannot_be_pooled_is_refused(value, pooling, n_class, message):
    with pytest.raises(InputError, match=message):
        pooled(value, pooling, n_class, "it")


@pytest.mark.parametrize(
    ("encoder", "layer", "name"),
    [
        ("vit_b_16", "0.67", "encoder.layers.encoder_layer_7"),  # 0.67 * 12 = 8.04: the eighth
        ("vit_b_16", "1", "encoder.layers.encoder_layer_11"),
        ("vit_b_16", "0.01", "encoder.layers.encoder_layer_0"),
        ("resnet18", "0.5", "layer2.1"),
        ("resnet18", "0.3125", "layer2.0"),  # 2.5 of 8 blocks: the third
        ("convnext_tiny", "1.0", "features.7.2"),
        ("convnext_tiny", "1e-3", "features.1.0"),
        ("small", "0.5", "features.5"),
        ("densenet161", "0.25", "features.denseblock1"),
    ],
)
def test_a_depth_counts_blocks(encoder, layer, name):
    with torch.device("meta"):  # no values, so it costs nothing
        net = build_backbone(config(encoder, layer=layer)).net
    assert [path for path, module in net.named_modules() if module._forward_hooks] == [name]


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("layer9", r"image.layer is 'layer9', but 'resnet18' has no such layer.*such as layer"),
        ("1.5", r"image.layer is '1.5'; as a depth it must be in \(0, 1\]"),
        ("0", r"as a depth it must be in \(0, 1\]"),
        ("1.2.3", r"as a depth it must be in \(0, 1\]"),
    ],
)
def test_layers_that_are_not_there_are_refused(layer, message):
    with pytest.raises(InputError, match=message):
        build_backbone(config("resnet18", layer=layer))


def test_layers_that_run_twice_or_give_no_tensor_are_refused():
    with pytest.raises(InputError, match=r"'layer1.0.relu' of 'resnet18' runs several times"):
        build_backbone(config("resnet18", layer="layer1.0.relu"))(pictures(48))
    attention = "encoder.layers.encoder_layer_0.self_attention"
    with torch.device("meta"), pytest.raises(InputError, match=r"self_attention' of 'vit_b_16' gives a tuple, not a"):
        build_backbone(config("vit_b_16", layer=attention))(torch.zeros(1, 3, 32, 32))


def test_pictures_of_another_shape_are_refused():
    with pytest.raises(InputError, match=r"images of 32 x 48 px given, but frozen 'resnet18' takes square ones"):
        build_backbone(config("resnet18"))(torch.zeros(1, 3, 32, 48))
    vit = r"images of 48 x 48 px given, but frozen 'vit_b_16' takes 32 x 32 px"
    with torch.device("meta"), pytest.raises(InputError, match=vit):
        build_backbone(config("vit_b_16"))(torch.zeros(1, 3, 48, 48))


def test_it_stays_in_evaluation_and_lets_gradients_through_to_the_picture():
    backbone = build_backbone(config("resnet18", blur_px=1.0, foveal=0.5)).train()
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    image_B3HW = pictures(48).requires_grad_()
    backbone(image_B3HW).sum().backward()
    assert image_B3HW.grad is not None
    assert (image_B3HW.grad != 0).float().mean() > 0.5


def test_no_blur_changes_nothing_and_a_flat_picture_stays_flat():
    image_B3HW = pictures(32)
    assert blurred(image_B3HW, 0.0, 0.0) is image_B3HW
    flat_B3HW = torch.full((1, 3, 32, 32), 0.3)
    torch.testing.assert_close(blurred(flat_B3HW, 2.0, 0.5), flat_B3HW)


def test_blur_is_a_gaussian_of_the_standard_deviation_asked_for():
    point_B3HW = torch.zeros(1, 3, 65, 65, dtype=torch.float64)
    point_B3HW[..., 32, 32] = 1
    spread_HW = blurred(point_B3HW, 4.0, 0.0)[0, 1]
    along = torch.arange(65, dtype=torch.float64) - 32
    assert spread_HW.sum().item() == pytest.approx(1)
    assert (spread_HW.sum(0) * along**2).sum().item() == pytest.approx(16, rel=0.05)  # cut at 3.125 sd
    density_W = torch.exp(-0.5 * (along / 4) ** 2)
    torch.testing.assert_close(spread_HW[32] / spread_HW[32, 32], density_W.where(along.abs() <= 13, 0.0))
    assert torch.equal(spread_HW, spread_HW.T)


def test_edges_are_mirrored():
    """A ramp mirrored at its edges, blurred by hand along one line."""
    ramp_B3HW = torch.arange(16.0).expand(1, 3, 16, 16)
    along = np.arange(-4, 5)
    weight = np.exp(-0.5 * (along / 1.25) ** 2)
    mirrored = np.pad(np.arange(16.0), 4, mode="reflect")
    expected = np.convolve(mirrored, weight / weight.sum(), mode="valid")
    np.testing.assert_allclose(blurred(ramp_B3HW, 1.25, 0.0)[0, 0, 5], expected, rtol=1e-5, atol=1e-5)


def test_the_centre_stays_sharper_as_ubp_has_it():
    image_B3HW = pictures(33, count=1)
    blurry_B3HW, seen_B3HW = blurred(image_B3HW, 2.0, 0.0), blurred(image_B3HW, 2.0, 0.5)
    share_HW = ((seen_B3HW - blurry_B3HW) / (image_B3HW - blurry_B3HW))[0, 0]
    assert share_HW[16, 16].item() == pytest.approx(0.5, rel=1e-3)
    for row, column in ((0, 0), (16, 0), (4, 9)):
        radius = math.hypot(row - 16, column - 16)
        expected = 0.5 * math.exp(-3 * radius / math.hypot(16, 16))
        assert share_HW[row, column].item() == pytest.approx(expected, rel=1e-2)


def test_a_blur_wider_than_the_picture_is_refused():
    with pytest.raises(
        InputError, match=r"image.blur_px 8 reaches 25 px, further than images of 16 px; set it below 4.8"
    ):
        blurred(torch.zeros(1, 3, 16, 16), 8.0, 0.5)


def test_blurred_features_are_those_of_the_blurred_picture():
    image_B3HW = pictures(48)
    seen = build_backbone(config("resnet18", blur_px=1.5, foveal=0.25))
    torch.testing.assert_close(seen(image_B3HW), build_backbone(config("resnet18"))(blurred(image_B3HW, 1.5, 0.25)))


def test_the_identity_takes_features_of_its_own_size_alone():
    projector = build_projector(ImageConfig(encoder="random-codebook", embed_dim=5, projector="none"), 5)
    feature_BF = torch.randn(2, 5)
    assert projector(feature_BF) is feature_BF
    with pytest.raises(InputError, match=r"'none', but the features have 7 dimensions and image.embed_dim is 5"):
        build_projector(ImageConfig(encoder="random-codebook", embed_dim=5, projector="none"), 7)


def test_projectors_are_their_equations():
    feature_BF = torch.randn(3, 7)
    linear = build_projector(ImageConfig(encoder="random-codebook", embed_dim=5), 7)
    assert isinstance(linear, nn.Linear)
    torch.testing.assert_close(linear(feature_BF), feature_BF @ linear.weight.T + linear.bias)

    residual = cast("frozen.Residual", build_projector(config("small", embed_dim=5, projector="residual"), 7)).eval()
    weight = {name: parameter.detach() for name, parameter in residual.named_parameters()}
    hidden = feature_BF @ weight["first.weight"].T + weight["first.bias"]
    inner = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
    total = hidden + inner @ weight["second.weight"].T + weight["second.bias"]
    expected = (total - total.mean(1, keepdim=True)) / (total.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(residual(feature_BF), expected)
    assert sum(parameter.numel() for parameter in residual.parameters()) == 7 * 5 + 5 + 5 * 5 + 5 + 10
    assert residual.dropout.p == 0.5
    residual.train()
    assert not torch.equal(residual(feature_BF), residual(feature_BF))


@pytest.mark.parametrize(
    ("package", "model", "install"),
    [("timm", "resnet18", "pip install 'timm"), ("open_clip", "ViT-S-32", "pip install 'open_clip_torch")],
)
def test_a_package_that_is_missing_is_named_with_how_to_install_it(package, model, install, monkeypatch):
    importing = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == package:
            raise ImportError(f"No module named {name!r}")
        return importing(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr("importlib.import_module", without)
    with pytest.raises(InputError, match=rf"image.encoder '{package}'.*cannot be imported.*{install}.*'vit_b_16'"):
        build_backbone(ImageConfig(encoder=package, model=model))


def as_batches_are(pixel_3HW: Tensor) -> Tensor:
    """Take ImageNet's statistics out of colours in [0, 1]."""
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((pixel_3HW - mean) / std)[None]


def test_timm_gives_its_own_features_for_its_own_statistics():
    timm = pytest.importorskip("timm")
    first = ImageConfig(encoder="timm", model="vit_tiny_patch16_224", size_px=32)
    kinds: list[tuple[str, Any]] = [("logits", None), ("0.5", "mean"), ("0.5", "cls"), ("blocks.11", "flatten")]
    backbone = build_backbone(first, *[dataclasses.replace(first, layer=a, pooling=b) for a, b in kinds])
    net, pixel_3HW = cast("Any", backbone.net), torch.rand(3, 32, 32)
    last, logits, mean, cls, flat = backbone.all_layers(as_batches_are(pixel_3HW))
    own_B3HW = ((pixel_3HW - 0.5) / 0.5)[None]  # the statistics of this model
    torch.testing.assert_close(logits, net(own_B3HW), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        last, net.forward_head(net.forward_features(own_B3HW), pre_logits=True), rtol=1e-4, atol=1e-5
    )
    token_BTC = by_hooks(net, own_B3HW, ["blocks.5", "blocks.11"])
    torch.testing.assert_close(mean, token_BTC["blocks.5"][:, 1:].mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(cls, token_BTC["blocks.5"][:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(flat, token_BTC["blocks.11"].flatten(1), rtol=1e-4, atol=1e-5)
    expected = timm.data.create_transform((3, 32, 32), is_training=False, crop_pct=0.9, interpolation="bicubic")
    assert str(backbone.original.transform).splitlines()[:3] == str(expected).splitlines()[:3]
    assert (backbone.size_px, backbone.original.is_sized) == (32, True)


def test_timm_keeps_channels_last_and_has_blocks_in_other_networks():
    pytest.importorskip("timm")
    first = ImageConfig(encoder="timm", model="convnext_atto", size_px=64, layer="0.5")
    backbone = build_backbone(first, dataclasses.replace(first, layer="stages.2.blocks.1"))
    found = backbone.all_layers(pictures(64))
    assert [tuple(feature_BF.shape) for feature_BF in found] == [(2, 160), (2, 160)]
    assert torch.equal(*found)  # the sixth of 2 + 2 + 6 + 2 blocks


def test_timm_weights_come_from_a_file(tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(5)
    net = timm.create_model("resnet18", pretrained=False).eval()
    torch.save(net.state_dict(), tmp_path / "w.pth")
    given = ImageConfig(encoder="timm", model="resnet18", size_px=64, weights=str(tmp_path / "w.pth"), layer="logits")
    torch.testing.assert_close(build_backbone(given)(pictures(64)), net(pictures(64)))
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"timm could not make image.model 'resnet18' with image.weights '.*w.pth'"):
        build_backbone(given)


def test_open_clip_gives_the_joint_embedding_at_unit_length(tmp_path):
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(5)
    model = open_clip.create_model("ViT-S-32", force_image_size=64).eval()
    torch.save(model.state_dict(), tmp_path / "w.pt")
    first = ImageConfig(encoder="open_clip", model="ViT-S-32", size_px=64, weights=str(tmp_path / "w.pt"))
    others = [dataclasses.replace(first, layer="1", pooling=pooling) for pooling in ("cls", "mean")]
    backbone, pixel_3HW = build_backbone(first, *others), torch.rand(3, 64, 64)
    last, cls, mean = backbone.all_layers(as_batches_are(pixel_3HW))
    own = [torch.tensor(values).reshape(3, 1, 1) for values in (model.visual.image_mean, model.visual.image_std)]
    own_B3HW = ((pixel_3HW - own[0]) / own[1])[None]
    torch.testing.assert_close(last, F.normalize(model.encode_image(own_B3HW), dim=1), rtol=1e-3, atol=1e-4)
    name = "transformer.resblocks.11"
    token_BTC = by_hooks(model.visual, own_B3HW, [name])[name]
    torch.testing.assert_close(cls, token_BTC[:, 0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(mean, token_BTC[:, 1:].mean(1), rtol=1e-3, atol=1e-3)
    assert "Random" not in str(backbone.original.transform)
    with pytest.raises(InputError, match="'logits', but 'open_clip ViT-S-32' has no classifier"):
        build_backbone(dataclasses.replace(first, layer="logits"))


@pytest.mark.parametrize(
    ("encoder", "settings", "message"),
    [
        ("timm", {"model": "resnet1"}, r"image.model 'resnet1' is unknown to timm.*for example .*resnet1"),
        ("timm", {"model": "resnet18", "weights": "gone.pth"}, r"'gone.pth' is not a file.*'none', 'hub'"),
        ("open_clip", {"model": "ViT-H14"}, r"image.model 'ViT-H14' is unknown.*for example .*ViT-H-14"),
        ("open_clip", {"model": "ViT-H-14", "weights": "laion"}, r"'laion' is not a file.*laion2b_s32b_b79k"),
    ],
)
def test_models_and_weights_that_are_not_there_are_refused(encoder, settings, message):
    pytest.importorskip(encoder)
    with pytest.raises(InputError, match=message):
        build_backbone(ImageConfig(encoder=encoder, **settings))
