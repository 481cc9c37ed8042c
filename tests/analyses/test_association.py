"""eegvision.analyses.association: the definition by direct ablation, by hand, any share of the work, refusals."""

import dataclasses
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eegvision.analyses.association import (
    Association,
    Layer,
    Link,
    association,
    find_layers,
    map_effects,
    mean_error,
    network_of,
    pooled,
    strongest,
)
from eegvision.config import ALWAYS_FROZEN, EegConfig, ImageConfig, ImageEncoderName, LossConfig, LossName, RunConfig
from eegvision.encoders.frozen import Backbone
from eegvision.encoders.image import layers_of
from eegvision.encoders.joint import JointModel, build_joint
from eegvision.vocab import InputError

N_CHANS, N_TIMES, DIM = 3, 80, 8


def model_of(net: nn.Module | None = None, *, loss: LossName = "info_nce", **image: Any) -> JointModel:
    """A joint model at random, in evaluation mode: a linear EEG encoder and, if given, this image encoder."""
    config = RunConfig(
        eeg=EegConfig(encoder="tsconv", embed_dim=DIM, filters=4, dropout=0.0),
        image=ImageConfig(embed_dim=DIM, **image),
        loss=LossConfig(name=loss),
    )
    torch.manual_seed(0)
    model = build_joint(config, N_CHANS, N_TIMES, 250.0, n_features=128)
    # One that answers to every channel, which deep ones at random hardly do.
    model.eeg = nn.Sequential(nn.Flatten(), nn.Linear(N_CHANS * N_TIMES, DIM))
    if net is not None:
        model.image = net
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after training: no map is like another
            module.get_buffer("running_mean").normal_(0, 0.1)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
    return model.eval()


def alexnet_like() -> nn.Module:
    torch.manual_seed(1)
    stages = [
        nn.Conv2d(3, 8, 5, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2),
        nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Dropout(), nn.Linear(48, 10), nn.ReLU(inplace=True), nn.Linear(10, DIM),
    ]  # fmt: skip
    return nn.Sequential(*stages)


def densenet_like() -> nn.Module:
    from torchvision.models import DenseNet

    torch.manual_seed(1)
    return DenseNet(growth_rate=4, block_config=(2, 2, 1, 1), num_init_features=8, bn_size=2, num_classes=DIM)


def inception_like() -> nn.Module:
    from torchvision.models.inception import BasicConv2d, InceptionA

    torch.manual_seed(1)
    return nn.Sequential(
        BasicConv2d(3, 8, kernel_size=3, stride=2),
        InceptionA(8, pool_features=4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(228, DIM),
    )


class Tokens(nn.Module):
    """A layer of tokens [B, T, F] behind patches, and one of maps [B, H, W, F] as in Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.block = nn.Conv2d(3, 6, 8, 8), nn.Linear(6, 5)
        self.square, self.norm, self.head = nn.Unflatten(1, (4, 4)), nn.LayerNorm(5), nn.Linear(5, DIM)

    def forward(self, image_B3HW: Tensor) -> Tensor:
        token_BTF = self.block(self.patches(image_B3HW).flatten(2).transpose(1, 2))
        return self.head(self.norm(self.square(token_BTF)).mean((1, 2)))


def tokens() -> nn.Module:
    torch.manual_seed(1)
    return Tokens()


def pair(side_px: int = 32, n_segments: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """One image, its segments [B, C, T], and their copies with noise in place of one channel, [B, C, C, T]."""
    generator = torch.Generator().manual_seed(5)
    image_3HW = torch.randn(3, side_px, side_px, generator=generator)
    eeg_BCT = torch.randn(n_segments, N_CHANS, N_TIMES, generator=generator)
    removed_BCCT = eeg_BCT[:, None].repeat(1, N_CHANS, 1, 1)
    for c in range(N_CHANS):
        removed_BCCT[:, c, c] = torch.randn(n_segments, N_TIMES, generator=generator)
    return image_3HW, eeg_BCT, removed_BCCT


@torch.no_grad()
def changes(model: JointModel, eeg_BCT: Tensor, removed_BCCT: Tensor) -> Tensor:
    removed_BCD = model.encode_eeg(removed_BCCT.flatten(0, 1)).unflatten(0, (-1, N_CHANS))
    return (model.encode_eeg(eeg_BCT)[:, None] - removed_BCD)[:, None]


@torch.no_grad()
def by_definition(model: JointModel, net: nn.Module, layer: Layer, image_3HW: Tensor, eeg_1CT, removed_1CCT):
    """Eq. 8 and 9, every compatibility from a pass of its own, map after map: A_c,f."""
    eegs = torch.cat([eeg_1CT, removed_1CCT[0]])  # e, e_-1, .., e_-C
    images = image_3HW.expand(len(eegs), -1, -1, -1)
    whole = model.compatibility(eegs, images)
    importance_C = whole[0] - whole[1:]
    result_CF = torch.zeros(N_CHANS, layer.n_maps)
    for feature in range(layer.n_maps):

        def suppress(_, __, output, feature=feature):
            output = output.clone()
            if layer.axis == 1:
                output[:, feature] = 0
            else:
                output[..., feature] = 0
            return output

        handle = net.get_submodule(layer.name).register_forward_hook(suppress, prepend=True)
        without = model.compatibility(eegs, images)
        handle.remove()
        result_CF[:, feature] = importance_C - (without[0] - without[1:])
    return result_CF.numpy()


FROZEN: dict[str, Any] = {"encoder": "resnet18", "size_px": 32, "frozen": True, "layer": "layer2.0"}
# Network, image settings, layers, and which of these lets no pass of one image become one of many.
CASES = {
    "small": (None, {"size_px": 16}, None, ""),
    "unnormalised": (None, {"size_px": 16, "loss": "triplet"}, None, ""),
    "alexnet": (alexnet_like, {"size_px": 32}, ["0", "1", "4", "9"], ""),
    "resnet18": (None, {"encoder": "resnet18", "size_px": 32}, ["layer1.0.bn2"], ""),
    "resnet18-skip": (None, {"encoder": "resnet18", "size_px": 32}, ["layer2.0.downsample"], "layer2.0.downsample"),
    "densenet": (
        densenet_like,
        {"size_px": 32},
        ["features.relu0", "features.denseblock1.denselayer1", "features.denseblock1", "features.denseblock2"],
        "features.denseblock1.denselayer1",
    ),
    "inception": (inception_like, {"size_px": 16}, ["0", "1.branch1x1", "1"], "1.branch1x1"),
    "tokens": (tokens, {"size_px": 32}, ["patches", "block", "square"], ""),
    "frozen": (None, FROZEN, ["relu", "layer2.0"], ""),
}


@pytest.mark.parametrize(("build", "options", "names", "apart"), CASES.values(), ids=CASES)
def test_equals_the_definition_by_direct_ablation_of_every_map(build, options, names, apart):
    model = model_of(build and build(), **options)
    image_3HW, eeg_1CT, removed_1CCT = pair(options["size_px"])
    layers = find_layers(model, image_3HW, names)
    assert names is None or [layer.name for layer in layers] == names
    assert [layer.name for layer in layers if not layer.can_branch] == ([apart] if apart else [])
    found = association(model, image_3HW, changes(model, eeg_1CT, removed_1CCT), layers, batch_size=50)
    net, _ = network_of(model)
    for number, layer in enumerate(layers):
        expected_CF = by_definition(model, net, layer, image_3HW, eeg_1CT, removed_1CCT)
        largest = np.abs(expected_CF).max()
        assert largest > 1e-3
        np.testing.assert_allclose(found.map_KCF[number][0], expected_CF, rtol=0, atol=1e-3 * largest)
        mean_C = expected_CF.mean(axis=1)
        np.testing.assert_allclose(found.layer_UKCL[0, 0, :, number], mean_C, rtol=0, atol=1e-3 * np.abs(mean_C).max())


def by_hand() -> tuple[JointModel, tuple[Layer, ...]]:
    """θ is the mean of each colour's map, φ the mean of each channel, so map f goes with channel f alone."""
    model = model_of(loss="triplet", size_px=16)
    model.config = RunConfig(image=ImageConfig(embed_dim=3, size_px=16), eeg=EegConfig(embed_dim=3))
    model.image = nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.eeg = nn.Sequential(nn.AdaptiveAvgPool1d(1), nn.Flatten())
    return model.eval(), find_layers(model, torch.ones(3, 16, 16), ["0"])


def test_by_hand_each_map_goes_with_its_channel_in_every_interval():
    model, layers = by_hand()
    image_3HW = torch.tensor([2.0, 3.0, -4.0]).reshape(3, 1, 1).expand(3, 16, 16)
    first_CD, second_CD = torch.diag(torch.tensor([1.0, 10.0, 0.5])), torch.diag(torch.tensor([0.0, 1.0, 0.0]))
    found = association(model, image_3HW, torch.stack([first_CD, second_CD])[None], layers)
    np.testing.assert_allclose(found.map_KCF[0], [np.diag([2.0, 30.0, -2.0]), np.diag([0.0, 3.0, 0.0])], atol=1e-6)
    np.testing.assert_allclose(found.layer_UKCL[0, :, :, 0], np.array([[2, 30, -2], [0, 3, 0]]) / 3, atol=1e-6)
    np.testing.assert_allclose(found.by_interval()[0], [[30 / 9], [3 / 9]], rtol=1e-6)
    channels = ("Oz", "Pz", "Cz")
    links = strongest(found, channels, n=3)
    assert [(link.channel, link.feature) for link in links] == [("Pz", 1), ("Oz", 0), ("Pz", 0)]  # then equal zeros
    assert [link.value for link in links] == pytest.approx([30, 2, 0], abs=1e-5)
    assert strongest(found, channels, n=1, interval=1)[0] == Link(layer="0", feature=1, channel="Pz", value=3.0)
    assert [link.feature for link in strongest(found, channels, channel="Cz")] == [0, 1, 2]


def test_links_are_sought_across_layers_or_in_one():
    rng = np.random.default_rng(0)
    layers = tuple(Layer(name=name, n_maps=n, axis=1, can_branch=True) for name, n in (("a", 4), ("b", 7)))
    map_KCF = (rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 7)))
    found = Association(layers=layers, n_pairs_U=np.ones(1), layer_UKCL=np.zeros((1, 2, 3, 2)), map_KCF=map_KCF)
    for layer in (None, "a", "b"):
        expected = sorted(
            (
                (map_CF[1, c, f], name, f, f"E{c}")
                for name, map_CF in zip("ab", map_KCF, strict=True)
                for c in range(3)
                for f in range(map_CF.shape[2])
                if layer in (None, name)
            ),
            reverse=True,
        )
        links = strongest(found, ["E0", "E1", "E2"], n=100, interval=1, layer=layer)
        assert [(link.value, link.layer, link.feature, link.channel) for link in links] == expected


@pytest.mark.parametrize("name", ["features.denseblock1", "features.denseblock1.denselayer1"])
def test_how_many_maps_at_a_time_changes_rounding_alone(name):
    model, (image_3HW, _, _) = model_of(densenet_like(), size_px=32), pair()
    layers = find_layers(model, image_3HW, [name])
    [reference_FD] = map_effects(model, image_3HW, layers, batch_size=1)
    assert reference_FD.abs().max() > 1e-3
    for batch_size in (3, 1000):
        [effect_FD] = map_effects(model, image_3HW, layers, batch_size=batch_size)
        torch.testing.assert_close(effect_FD, reference_FD, rtol=0, atol=1e-5)
    other_3HW = image_3HW.flip(2)  # layers were found with another image
    found = find_layers(model, other_3HW, [name])
    assert found == layers


def test_shares_of_pairs_pool_to_the_same_in_any_order():
    model = model_of(size_px=16)
    layers = find_layers(model, pair(16)[0])
    parts = []
    for number in range(4):
        image_3HW, eeg_BCT, removed_BCCT = pair(16, n_segments=number + 1)
        image_3HW = image_3HW.roll(number, 1)
        delta_BKCD = changes(model, eeg_BCT, removed_BCCT).repeat(1, 2, 1, 1) * torch.tensor([1.0, -2]).reshape(2, 1, 1)
        parts.append(association(model, image_3HW, delta_BKCD, layers))
    whole = pooled(parts)
    assert whole.layer_UKCL.shape == (4, 2, N_CHANS, 4)
    assert whole.n_pairs_U.tolist() == [1, 2, 3, 4]
    np.testing.assert_array_equal(whole.layer_UKCL, np.concatenate([part.layer_UKCL for part in parts]))
    for other in (pooled([pooled(parts[:1]), pooled(parts[1:])]), pooled(iter(parts[::-1]))):
        for one_KCF, other_KCF in zip(whole.map_KCF, other.map_KCF, strict=True):
            np.testing.assert_allclose(one_KCF, other_KCF, rtol=0, atol=1e-12)
    for number in range(4):  # the mean over maps and that over pairs give the same, whichever comes first
        np.testing.assert_allclose(
            whole.map_KCF[number].mean(axis=2), whole.by_channel()[0][..., number], rtol=0, atol=1e-8
        )


def test_errors_are_those_of_images_whose_segments_go_together():
    """By hand: images of means 1, 2 and 6 from 1, 1 and 2 pairs have the mean 15/4."""
    found = Association(
        layers=(), n_pairs_U=np.array([1, 1, 2]), layer_UKCL=np.array([1.0, 2, 6]).reshape(3, 1, 1, 1), map_KCF=()
    )
    for value, error in (found.by_channel(), found.by_interval()):
        assert value.item() == 15 / 4
        squares = (1 - 15 / 4) ** 2 + (2 - 15 / 4) ** 2 + (2 * (6 - 15 / 4)) ** 2
        assert error.item() == pytest.approx(np.sqrt(3 / 2 * squares) / 4, rel=1e-12)
    rng = np.random.default_rng(0)
    value_UX = rng.normal(size=(50, 7))
    mean_X, error_X = mean_error(value_UX, np.full(50, 3))  # of equal counts it is the textbook's
    np.testing.assert_allclose(mean_X, value_UX.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(error_X, value_UX.std(axis=0, ddof=1) / np.sqrt(50), rtol=1e-12)
    assert np.isnan(mean_error(value_UX[:1], np.array([3]))[1]).all()


def test_a_map_that_is_zero_for_an_image_is_worth_exactly_nothing():
    model = model_of(size_px=16)
    norm = network_of(model)[0].get_submodule("features.1")
    with torch.no_grad():
        norm.get_parameter("weight")[3] = 0
        norm.get_parameter("bias")[3] = 0
    image_3HW = pair(16)[0]
    effect_FD = map_effects(model, image_3HW, find_layers(model, image_3HW))[0]
    assert not effect_FD[3].any()
    assert effect_FD.any(1).sum() > 8


@pytest.mark.parametrize(
    ("encoder", "side_px", "n_layers", "first"),
    [
        ("alexnet", 63, 5, ("features.1", 64)),
        ("resnet18", 32, 9, ("relu", 64)),
        ("densenet161", 32, 5, ("features.relu0", 96)),
        ("inception_v3", 75, 16, ("Conv2d_1a_3x3", 32)),
        ("vit_b_16", 32, 12, ("encoder.layers.encoder_layer_0", 768)),
        ("convnext_tiny", 32, 19, ("features.0", 96)),
    ],
)
def test_usual_layers_are_the_first_maps_and_all_blocks_and_a_pass_can_branch_there(encoder, side_px, n_layers, first):
    model, image_3HW = model_of(encoder=encoder, size_px=side_px), pair(side_px)[0]
    layers = find_layers(model, image_3HW)
    assert len(layers) == n_layers
    assert (layers[0].name, layers[0].n_maps) == first
    assert all(layer.can_branch for layer in layers)
    last = layers[-1]
    [effect_FD] = map_effects(model, image_3HW, [last], batch_size=last.n_maps)
    feature = int(effect_FD.norm(dim=1).argmax())
    with torch.no_grad():
        whole_1D = model.encode_image(image_3HW[None])
        handle = (
            network_of(model)[0]
            .get_submodule(last.name)
            .register_forward_hook(
                lambda _, __, maps: (
                    maps.movedim(last.axis, 0).clone().index_fill_(0, torch.tensor(feature), 0).movedim(0, last.axis)
                )
            )
        )
        expected_D = (whole_1D - model.encode_image(image_3HW[None]))[0]
        handle.remove()
    assert expected_D.norm() > 1e-4
    torch.testing.assert_close(effect_FD[feature], expected_D, rtol=0, atol=1e-2 * float(expected_D.abs().max()))


def test_every_encoder_that_can_be_trained_has_usual_layers_and_their_names_come_from_one_table():
    for encoder in set(get_args(ImageEncoderName)) - set(ALWAYS_FROZEN):
        assert layers_of(encoder)


def test_classifier_units_are_no_maps_unless_they_are_asked_for():
    model, image_3HW = model_of(encoder="alexnet", size_px=63), pair(63)[0]
    assert [layer.name for layer in find_layers(model, image_3HW)] == [f"features.{n}" for n in (1, 4, 7, 9, 11)]
    [units] = find_layers(model, image_3HW, ["classifier.2"])
    assert (units.n_maps, units.can_branch) == (4096, True)


def test_refuses_to_guess_where_no_block_is_known_or_none_is_used():
    model, image_3HW = model_of(**(FROZEN | {"layer": "conv1"})), pair()[0]
    model.image = nn.Linear(64, DIM).eval()
    with pytest.raises(InputError, match=r"no block of .*'resnet18' runs before .*layer is 'conv1'.*name earlier"):
        find_layers(model, image_3HW)
    assert [layer.name for layer in find_layers(model, image_3HW, ["conv1"])] == ["conv1"]
    backbone = model.backbone
    assert isinstance(backbone, Backbone)
    backbone.original = dataclasses.replace(backbone.original, blocks="none")
    model.config = model.config.with_overrides({"image.encoder": "timm", "image.model": "own", "image.frozen": None})
    with pytest.raises(InputError, match=r"which layers of timm 'own' are its blocks is not known; name some, among"):
        find_layers(model, image_3HW)


def test_usual_layers_of_frozen_features_end_where_these_are_taken():
    model, image_3HW = model_of(**FROZEN), pair()[0]
    assert [layer.name for layer in find_layers(model, image_3HW)] == ["relu", "layer1.0", "layer1.1", "layer2.0"]
    with pytest.raises(InputError, match=r"'layer3.0' of .*'resnet18' changes nothing.*layer is 'layer2.0'.*earlier"):
        find_layers(model, image_3HW, ["layer3.0"])


def test_a_network_of_timm_has_its_blocks_as_usual_layers():
    pytest.importorskip("timm")
    model = model_of(encoder="timm", model="vit_tiny_patch16_224", size_px=32)
    model.image = nn.Linear(192, DIM)
    layers = find_layers(model.eval(), pair()[0])
    assert [layer.name for layer in layers] == [f"blocks.{n}" for n in range(12)]
    assert {(layer.n_maps, layer.axis, layer.can_branch) for layer in layers} == {(192, -1, True)}


def test_leaves_the_model_as_it_was():
    model, image_3HW = model_of(size_px=16), pair(16)[0]
    before, state = model.encode_image(image_3HW[None]), {k: v.clone() for k, v in model.state_dict().items()}
    map_effects(model, image_3HW, find_layers(model, image_3HW))
    with pytest.raises(InputError):
        find_layers(model, image_3HW, ["features.2", "absent"])
    assert torch.equal(model.encode_image(image_3HW[None]), before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_refuses_layers_that_cannot_be_taken_apart():
    model, image_3HW = model_of(encoder="resnet18", size_px=32), pair()[0]
    with pytest.raises(InputError, match=r"image encoder 'resnet18' has no layer 'layer9'; give one such as layer\d"):
        find_layers(model, image_3HW, ["layer9"])
    with pytest.raises(InputError, match=r"'layer1.0.relu' .*runs 2 times in a pass; name the block"):
        find_layers(model, image_3HW, ["layer1.0.relu"])
    network_of(model)[0].add_module("unused", nn.Identity())
    with pytest.raises(InputError, match=r"'unused' of .* does not run"):
        find_layers(model, image_3HW, ["relu", "unused"])


def test_refuses_images_models_and_differences_that_do_not_fit():
    model, image_3HW = model_of(size_px=16), pair(16)[0]
    layers, delta_BKCD = find_layers(model, image_3HW), torch.zeros(1, 1, N_CHANS, DIM)
    with pytest.raises(InputError, match=r"image of shape \(3, 20, 20\) given to a model of \[3, 16, 16\]; resize"):
        association(model, torch.zeros(3, 20, 20), delta_BKCD, layers)
    with pytest.raises(InputError, match=r"shape \(1, 3, 8\); expected \[B, K, C, 8\]"):
        association(model, image_3HW, delta_BKCD[0], layers)
    with pytest.raises(InputError, match="not finite"):
        association(model, image_3HW, delta_BKCD * float("nan"), layers)
    with pytest.raises(InputError, match="0 layers"):
        association(model, image_3HW, delta_BKCD, [])
    other = dataclasses.replace(layers[0], n_maps=17)
    with pytest.raises(InputError, match=r"'features.2' .*shape \(1, 16, 8, 8\), not 17 maps.*with this model"):
        association(model, image_3HW, delta_BKCD, [other])
    with pytest.raises(InputError, match=r"training mode.*model.eval\(\)"):
        association(model.train(), image_3HW, delta_BKCD, layers)
    codebook = model_of(encoder="random-codebook")
    codebook.image = nn.Identity()
    with pytest.raises(InputError, match="come from no network"):
        find_layers(codebook.eval(), image_3HW)


def test_refuses_what_cannot_be_pooled_or_ranked():
    model, layers = by_hand()
    part = association(model, torch.ones(3, 16, 16), torch.ones(1, 1, 3, 3), layers)
    two = association(model, torch.ones(3, 16, 16), torch.ones(1, 2, 3, 3), layers)
    with pytest.raises(InputError, match=r"cannot be pooled with 1 layers and \(1, 3\)"):
        pooled([part, two])
    with pytest.raises(InputError, match="no associations"):
        pooled([])
    refused: list[tuple[dict[str, Any], str]] = [
        ({"channels": ["Oz"]}, "1 names given for 3 channels"),
        ({"interval": 1}, "interval 1 asked for; there are 1"),
        ({"layer": "1"}, "layer '1' was not looked at; give one such as 0"),
        ({"channel": "oz"}, "channel 'oz' is not in the montage; give one such as .*Oz"),
        ({"n": 0}, "at least 1"),
    ]
    for options, message in refused:
        given: dict[str, Any] = {"channels": ["Oz", "Pz", "Cz"]} | options
        with pytest.raises(InputError, match=message):
            strongest(part, **given)
