"""eegvision.encoders.joint: what each loss learns, unit lengths, frozen features, arms, checkpoints, Table I."""

import dataclasses
import math
import shutil
from typing import Any

import numpy as np
import pytest
import torch

from eegvision import checkpoint
from eegvision.checkpoint import CheckpointError
from eegvision.config import EegConfig, ImageConfig, LossConfig, RunConfig
from eegvision.encoders.eeg import build_eeg_encoder
from eegvision.encoders.joint import JointModel, build_joint
from eegvision.losses import classification, info_nce, siglip, triplet
from eegvision.vocab import InputError

N_CHANS, N_TIMES = 3, 80


def config_of(**loss: Any) -> RunConfig:
    return RunConfig(
        eeg=EegConfig(encoder="tsconv", embed_dim=8, filters=4, dropout=0.0),
        image=ImageConfig(embed_dim=8, size_px=16),
        loss=LossConfig(**loss),
    )


def build(config: RunConfig, seed: int = 0, *, n_features: int = 0, n_classes: int = 0) -> JointModel:
    torch.manual_seed(seed)
    return build_joint(config, N_CHANS, N_TIMES, 250.0, n_features=n_features, n_classes=n_classes)


def arm_of(side: str) -> RunConfig:
    if side == "eeg":
        return RunConfig(eeg=config_of().eeg, loss=LossConfig(name="eeg-classes"))
    return RunConfig(image=config_of().image, loss=LossConfig(name="image-classes"))


def frozen(**image: Any) -> RunConfig:
    return RunConfig(
        eeg=EegConfig(encoder="tsconv", embed_dim=8, filters=4, dropout=0.0),
        image=ImageConfig(embed_dim=8, **image),
        loss=LossConfig(name="info_nce"),
    )


def batch(n_rows: int = 4, side_px: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    eeg_BCT = torch.randn(n_rows, N_CHANS, N_TIMES, generator=generator)
    return eeg_BCT, torch.randn(n_rows, 3, side_px, side_px, generator=generator)


def loss_of(model: JointModel, eeg_BCT: torch.Tensor, image_B3HW: torch.Tensor) -> torch.Tensor:
    eeg_BD, image_BD, scale, bias = model(eeg_BCT, image_B3HW)
    name = model.config.loss.name
    if name == "triplet":
        return triplet(eeg_BD, image_BD, margin=1e3)  # every hinge open
    return (
        info_nce(eeg_BD, image_BD, scale=scale)
        if name == "info_nce"
        else siglip(eeg_BD, image_BD, scale=scale, bias=bias)
    )


def save(model: JointModel, folder, **data: Any):
    state = {"config": model.config.to_dict(), "data": model.data | data}
    return checkpoint.save(folder, "pass-000001", {"model": model.state_dict()}, state)


@pytest.mark.parametrize(
    ("loss", "learned", "scale", "bias"),
    [
        ({"name": "triplet"}, set(), 1, 0),
        ({"name": "info_nce"}, {"log_scale"}, 1 / 0.07, 0),
        ({"name": "info_nce", "learn_temperature": False, "temperature": 0.002}, set(), 500, 0),
        ({"name": "siglip"}, {"log_scale", "bias"}, 10, -10),
        ({"name": "siglip", "learn_temperature": False, "temperature": 0.5}, set(), 2, -10),
        # as ATM's and UBP's code has it: 2.659 and 2.73, both learned
        ({"name": "info_nce", "scale": "raw"}, {"log_scale"}, 2.6593, 0),
        ({"name": "info_nce", "scale": "softplus"}, {"log_scale"}, 2.7269, 0),
        ({"name": "siglip", "scale": "softplus", "learn_temperature": False}, set(), math.log(11), -10),
    ],
)
def test_scale_and_bias_are_parameters_where_the_loss_learns_them(loss, learned, scale, bias):
    model = build(config_of(**loss))
    scalars = {"log_scale", "bias"}
    assert scalars & dict(model.named_parameters()).keys() == learned
    assert scalars & dict(model.named_buffers()).keys() == scalars - learned
    assert scalars <= model.state_dict().keys()
    assert [x.item() for x in model(*batch())[2:]] == pytest.approx([scale, bias], rel=1e-4)
    assert model.scale.item() == pytest.approx(scale, rel=1e-4)


def without_gradient(model):
    """Return parameters without a gradient; 0 is none too, but for TSConv's first bias, which BatchNorm subtracts."""
    return [
        name
        for name, p in model.named_parameters()
        if p.grad is None or not (p.grad.any() or name == "eeg.encode.1.bias")
    ]


@pytest.mark.parametrize("name", ["triplet", "info_nce", "siglip"])
def test_every_parameter_gets_a_gradient(name):
    # Distributed training refuses a parameter without one.
    model = build(config_of(name=name))
    loss_of(model, *batch()).backward()
    assert without_gradient(model) == []


def test_learned_scale_stays_at_most_100_and_can_come_back():
    model = build(config_of(name="info_nce"))
    with torch.no_grad():
        model.log_scale.fill_(9.0)
    scale = model(*batch())[2]
    assert scale.item() == pytest.approx(100)
    scale.backward()
    assert model.log_scale.grad == pytest.approx(100)
    torch.optim.SGD([model.log_scale], lr=1e-3).step()
    assert model(*batch())[2].item() == pytest.approx(100 * math.exp(-0.1), rel=1e-4)


def test_refuses_to_learn_a_temperature_below_the_limit():
    with pytest.raises(InputError, match=r"loss.temperature 0.005 .*above 0.01.*loss.learn_temperature to false"):
        build(config_of(name="info_nce", temperature=0.005))


@pytest.mark.parametrize("form", ["raw", "softplus"])
def test_only_the_exponential_is_held_below_100(form):
    model = build(config_of(name="info_nce", scale=form, temperature=0.005))
    with torch.no_grad():
        model.log_scale.fill_(200.0)
    assert model(*batch()).scale.item() == pytest.approx(200)


def test_refuses_a_raw_scale_that_is_not_above_zero():
    with pytest.raises(InputError, match=r"temperature 2 with loss.scale 'raw' begins at a factor of -0.69"):
        build(config_of(name="info_nce", scale="raw", temperature=2.0))


@pytest.mark.parametrize(("eeg", "image"), [(False, False), (True, False), (False, True), (True, True)])
def test_each_side_has_unit_length_where_configured(eeg, image):
    model = build(config_of(normalise_eeg=eeg, normalise_image=image)).eval()
    eeg_BCT, image_B3HW = batch()
    for is_unit, embedding_BD in ((eeg, model.encode_eeg(eeg_BCT)), (image, model.encode_image(image_B3HW))):
        assert bool((embedding_BD.norm(dim=1) - 1).abs().max() < 1e-5) == is_unit


def test_compatibility_is_the_dot_product_of_the_embeddings():
    model = build(config_of()).eval()
    eeg_BD, image_BD, _, _ = model(*batch())
    expected_B = [(e @ v).item() for e, v in zip(eeg_BD, image_BD, strict=True)]
    np.testing.assert_allclose(model.compatibility(*batch()).detach(), expected_B, rtol=1e-4, atol=1e-5)


def test_embeddings_are_float32_under_bfloat16_arithmetic():
    model = build(config_of(name="info_nce"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(*batch())
    assert {x.dtype for x in outputs} == {torch.float32}
    assert outputs[0].norm(dim=1).tolist() == pytest.approx([1] * 4, abs=1e-5)


def test_the_seed_decides_the_weights():
    first, same, other = (build(config_of(), seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_refuses_images_it_cannot_use():
    model = build(config_of())
    with pytest.raises(InputError, match=r"\(2, 1, 16, 16\) given; expected \[B, 3, H, W\]"):
        model.encode_image(torch.zeros(2, 1, 16, 16))
    with pytest.raises(InputError, match="images of 12 px are too small for 'small'"):
        model.encode_image(torch.zeros(2, 3, 30, 12))


def test_accepts_images_of_other_sizes():
    assert build(config_of()).eval().encode_image(torch.zeros(2, 3, 40, 56)).shape == (2, 8)


# ---- frozen features


def test_frozen_features_go_through_a_map_to_the_embedding():
    model = build(frozen(encoder="random-codebook"), n_features=5)
    feature_BF = torch.randn(4, 5)
    image_BD = model.encode_image(feature_BF)
    assert isinstance(model.image, torch.nn.Linear)
    torch.testing.assert_close(image_BD, torch.nn.functional.normalize(model.image(feature_BF), dim=1))
    loss_of(model, batch()[0], feature_BF).backward()
    assert without_gradient(model) == []


def test_pixels_reach_frozen_features_through_a_network_that_is_no_part_of_the_model():
    config = frozen(encoder="small", frozen=True, size_px=16)
    model = build(config, n_features=96 * 4 * 4).eval()
    names = set(model.state_dict())
    image_B3HW = batch()[1].requires_grad_()
    image_BD = model.encode_image(image_B3HW)
    feature_BF = model.backbone(image_B3HW)
    assert feature_BF.shape == (4, 96 * 4 * 4)
    torch.testing.assert_close(image_BD, model.encode_image(feature_BF))
    assert set(model.state_dict()) == names == {"image.weight", "image.bias"} | {n for n in names if n[:3] != "ima"}
    assert not any(parameter.requires_grad for parameter in model.backbone.parameters())
    # Saliency and activation maximisation ask what the picture does.
    (gradient,) = torch.autograd.grad(image_BD[:, 0].sum(), image_B3HW)
    assert gradient.flatten(1).any(dim=1).all()
    assert not model.train().backbone.training


def test_refuses_images_that_frozen_features_cannot_come_from():
    model = build(frozen(encoder="random-codebook"), n_features=5)
    with pytest.raises(InputError, match="images have 4 features; the model takes 5"):
        model.encode_image(torch.zeros(2, 4))
    with pytest.raises(InputError, match=r"\(2, 5, 1\) given; expected \[B, 3, H, W\], or features \[B, 5\]"):
        model.encode_image(torch.zeros(2, 5, 1))
    with pytest.raises(InputError, match=r"'random-codebook' come from no network.*give features"):
        model.encode_image(torch.zeros(2, 3, 64, 64))
    with pytest.raises(InputError, match="'random-codebook' is frozen; give build_joint the size of its features"):
        build(frozen(encoder="random-codebook"))
    with pytest.raises(InputError, match=r"\(2, 5\) given; expected \[B, 3, H, W\]$"):
        build(config_of()).encode_image(torch.zeros(2, 5))


# ---- one encoder alone


@pytest.mark.parametrize("side", ["eeg", "image"])
def test_an_arm_is_one_encoder_and_a_linear_classifier(side, tmp_path):
    model = build(arm_of(side), n_classes=3)
    eeg_BCT, image_B3HW = batch()
    inputs = (eeg_BCT, None) if side == "eeg" else (None, image_B3HW)
    logit_BK = model(*inputs)
    assert logit_BK.shape == (4, 3)
    embedding_BD = model.encode_eeg(eeg_BCT) if side == "eeg" else model.encode_image(image_B3HW)
    assert model.classifier is not None
    torch.testing.assert_close(logit_BK, embedding_BD @ model.classifier.weight.T + model.classifier.bias)

    classification(logit_BK, torch.tensor([0, 1, 2, -1])).backward()
    assert without_gradient(model) == []
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {side, "classifier"}

    loaded = JointModel.load(save(model, tmp_path, classes=["cat", "dog", "fish"]))
    assert (loaded.data["n_classes"], loaded.config) == (3, model.config)
    assert torch.equal(loaded(*inputs), model.eval()(*inputs))


def test_an_arm_refuses_what_it_has_no_encoder_for():
    eeg_BCT, image_B3HW = batch()
    with pytest.raises(InputError, match="'eeg-classes' has no image encoder"):
        build(arm_of("eeg"), n_classes=2).encode_image(image_B3HW)
    with pytest.raises(InputError, match="'image-classes' has no EEG encoder"):
        build(arm_of("image"), n_classes=2).compatibility(eeg_BCT, image_B3HW)
    with pytest.raises(InputError, match="a joint model has no classifier"):
        build(config_of()).classify(torch.zeros(2, 8))
    with pytest.raises(
        InputError, match="'eeg-classes' tells classes apart, but the data set has 1; it needs at least 2"
    ):
        build(arm_of("eeg"), n_classes=1)


# ---- checkpoints


@pytest.mark.parametrize("encoder", ["random-codebook", "small"])
def test_a_loaded_model_with_frozen_features_is_the_saved_one(encoder, tmp_path):
    network = {} if encoder == "random-codebook" else {"frozen": True, "size_px": 16, "projector": "residual"}
    model = build(frozen(encoder=encoder, **network), n_features=1536).eval()
    loaded = JointModel.load(save(model, tmp_path))
    assert loaded.data["n_features"] == 1536
    feature_BF = torch.randn(4, 1536)
    assert torch.equal(loaded.encode_image(feature_BF), model.encode_image(feature_BF))


def test_checkpoints_from_before_frozen_features_and_arms_are_read(tmp_path):
    model = build(config_of(name="info_nce"))
    old = {name: value for name, value in model.data.items() if name not in ("n_features", "n_classes")}
    state = {"config": model.config.to_dict(), "data": old}
    loaded = JointModel.load(checkpoint.save(tmp_path, "pass-000001", {"model": model.state_dict()}, state))
    assert torch.equal(loaded.compatibility(*batch()), model.eval().compatibility(*batch()))


@pytest.mark.parametrize("name", ["triplet", "info_nce", "siglip"])
def test_a_loaded_model_is_the_saved_one(name, tmp_path):
    model = build(config_of(name=name))
    loss_of(model, *batch()).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    loaded = JointModel.load(save(model, tmp_path, channels=["Cz", "Pz", "Oz"], classes=["cat", "dog"]))
    assert not loaded.training
    assert loaded.config == model.config
    assert loaded.data["channels"] == ["Cz", "Pz", "Oz"]
    assert loaded.data["classes"] == ["cat", "dog"]
    assert (loaded.data["n_chans"], loaded.data["n_times"], loaded.data["sfreq_hz"]) == (N_CHANS, N_TIMES, 250.0)
    for mine, theirs in zip(model.eval()(*batch()), loaded(*batch()), strict=True):
        assert torch.equal(mine, theirs)


def test_loading_needs_neither_the_first_weights_nor_a_network(tmp_path):
    first = build(config_of())
    image_only = {name.removeprefix("image."): x for name, x in first.state_dict().items() if name.startswith("image.")}
    torch.save(image_only, tmp_path / "first.pth")
    config = config_of().with_overrides({"image.weights": str(tmp_path / "first.pth")})
    folder = save(build(config, seed=3), tmp_path / "run")
    (tmp_path / "first.pth").unlink()
    assert JointModel.load(folder).config == config


def test_refuses_a_checkpoint_with_other_parts(tmp_path):
    model = build(config_of())
    state = {"config": model.config.to_dict(), "data": model.data}
    tensors = {name: x for name, x in model.state_dict().items() if name != "eeg.norm.bias"}
    folder = checkpoint.save(tmp_path, "pass-000001", {"model": tensors}, state)
    with pytest.raises(InputError, match=r"another version of eegvision.*\n.*eeg.norm.bias"):
        JointModel.load(folder)


def test_a_damaged_checkpoint_is_not_loaded(tmp_path):
    folder = save(build(config_of()), tmp_path)
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors has changed"):
        JointModel.load(folder)


# Each network of either side; the pairs between them differ in nothing that could fail.
@pytest.mark.parametrize(
    ("image_encoder", "recurrents"),
    [
        ("alexnet", ("palazzo-lstm", "palazzo-gru")),
        ("inception_v3", ("palazzo-gru",)),
        ("resnet101", ("palazzo-lstm",)),
        ("densenet161", ("palazzo-gru",)),
    ],
)
def test_table_1_pairs_train_a_step_and_reload_at_full_size(image_encoder, recurrents, tmp_path):
    """Palazzo Table I: 128 channels x 440 samples at 1 kHz, 224 px (Inception 299)."""
    torch.manual_seed(0)
    config = RunConfig(eeg=EegConfig(encoder="palazzo-lstm"), image=ImageConfig(encoder=image_encoder))
    side_px = config.image.input_px
    assert side_px == (299 if image_encoder == "inception_v3" else 224)
    eeg_BCT, image_B3HW = torch.randn(2, 128, 440), torch.randn(2, 3, side_px, side_px)
    model = build_joint(config, 128, 440, 1000.0)
    for recurrent in recurrents:
        # The same image network serves both pairs: building and training it is most of the time.
        config = dataclasses.replace(config, eeg=EegConfig(encoder=recurrent))
        model = JointModel(config, build_eeg_encoder(config.eeg, 128, 440, 1000.0), model.image, model.data)
        before = {name: x.clone() for name, x in model.named_parameters()}
        loss = loss_of(model, eeg_BCT, image_B3HW)
        assert torch.isfinite(loss)
        loss.backward()
        torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.999)).step()
        # With two rows the gradients of the last biases cancel, so only weights are looked at.
        assert [name for name, x in model.named_parameters() if x.ndim > 1 and torch.equal(x, before[name])] == []

        folder = save(model, tmp_path)
        loaded = JointModel.load(folder)
        shutil.rmtree(folder)
        state = model.state_dict()
        assert all(torch.equal(x, state[name]) for name, x in loaded.state_dict().items())
        # Small inputs, which every network here takes, are enough to see that the same function came back.
        small_eeg_BCT, small_image_B3HW = eeg_BCT[..., :20], image_B3HW[..., :80, :80]
        mine, theirs = (m.compatibility(small_eeg_BCT, small_image_B3HW) for m in (model.eval(), loaded))
        assert torch.equal(mine, theirs)
        model.train()
