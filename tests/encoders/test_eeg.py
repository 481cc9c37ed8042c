"""eegvision.encoders.eeg: one contract for all encoders, then Palazzo's and TSConv against their definitions."""

import importlib.util
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from eegvision import checkpoint
from eegvision.config import EegConfig, EegEncoderName, ImageConfig, RunConfig
from eegvision.encoders.eeg import build_eeg_encoder
from eegvision.encoders.joint import JointModel, build_joint
from eegvision.vocab import InputError

HAS_ZOO = importlib.util.find_spec("braindecode") is not None


def small(encoder: EegEncoderName, **settings: Any) -> EegConfig:
    return EegConfig(encoder=encoder, embed_dim=12, **settings)


CONFIGS = {
    "palazzo-gru-shared": small("palazzo-gru", hidden=16),
    "palazzo-gru-mixed": small("palazzo-gru", hidden=16, channels="mixed"),
    "palazzo-lstm-shared": small("palazzo-lstm", hidden=16),
    "palazzo-lstm-mixed": small("palazzo-lstm", hidden=16, channels="mixed"),
    "palazzo-gru-layer": small("palazzo-gru", hidden=16, subjects="layer"),
    "tsconv": small("tsconv", filters=5),
    "tsconv-layer": small("tsconv", filters=5, subjects="layer"),
    "nice-sa": small("nice-sa", filters=5),
    "nice-sa-released": small("nice-sa", filters=5, variant="released"),
    "nice-ga": small("nice-ga", filters=5),
    "nice-ga-released": small("nice-ga", filters=5, variant="released"),
    "nice-shallow": small("nice-shallow"),
    "nice-deep": small("nice-deep"),
    "nice-eegnet": small("nice-eegnet"),
    "atm-s": small("atm-s", filters=5),
    "atm-s-released": small("atm-s", filters=5, variant="released"),
    "atm-s-token": small("atm-s", filters=5, subjects="token"),
    "eeg-project": small("eeg-project"),
    "eeg-channelnet": small("eeg-channelnet", blocks=1),
    "eeg-channelnet-released": small("eeg-channelnet", blocks=1, variant="released"),
    "perceivelab-lstm": small("perceivelab-lstm", hidden=16),
    "simple-conv": small("simple-conv", hidden=16, dropout_radius=0.7),
    "braindecode-eegnet": small("braindecode-eegnet"),
    "braindecode-shallow": small("braindecode-shallow"),
    "braindecode-deep4": small("braindecode-deep4"),
    "braindecode-conformer": small("braindecode-conformer"),
}
# Channels and samples each is tried with, the least it takes first; other tests use the second.
SIZES = {
    "nice-sa": [(2, 75), (4, 88), (7, 101)],
    "nice-ga": [(2, 75), (4, 88), (7, 101)],
    "nice-deep": [(1, 151), (4, 160), (7, 203)],
    "nice-eegnet": [(1, 95), (4, 100), (7, 120)],
    "eeg-project": [(1, 1), (4, 88), (7, 101)],
    "eeg-channelnet": [(14, 13), (15, 76), (17, 101)],
    "simple-conv": [(1, 1), (4, 88), (7, 101)],
    "braindecode-eegnet": [(1, 32), (4, 88), (7, 101)],
    "braindecode-shallow": [(2, 99), (4, 120), (7, 133)],
    "braindecode-deep4": [(2, 12), (4, 450), (7, 88)],
    "braindecode-conformer": [(1, 99), (4, 120), (7, 133)],
}
SUBTRACTED = dict.fromkeys(("tsconv", "nice-sa", "nice-ga", "atm-s"), "encode.1.bias") | {
    "nice-eegnet": "encode.0.bias"
}
BOUND = [name for name in CONFIGS if not name.startswith(("palazzo", "perceivelab"))]
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def each(names):
    """Parametrise over named configurations, leaving out braindecode's where it is not installed."""
    missing = pytest.mark.skipif(not HAS_ZOO, reason="braindecode is not installed")
    params = [pytest.param(n, id=n, marks=missing if n.startswith("braindecode") else ()) for n in names]
    return pytest.mark.parametrize("name", params)


def sizes(name):
    return SIZES.get(CONFIGS[name].encoder, [(1, 75), (4, 88), (7, 101)])


def positions(n_chans):
    generator = torch.Generator().manual_seed(7)
    return [tuple(row) for row in (0.1 * torch.randn(n_chans, 3, generator=generator)).tolist()]


def build(config, n_chans, n_times, seed=0) -> Any:
    torch.manual_seed(seed)
    extra = {"positions_m": positions(n_chans), "n_subjects": 3}
    return build_eeg_encoder(config, n_chans, n_times, 250.0, **extra)


def build_settled(config, n_chans, n_times) -> Any:
    """Return an encoder in evaluation mode whose running statistics are those of one batch."""
    encoder = build(config, n_chans, n_times)
    for norm in encoder.modules():
        if isinstance(norm, BATCH_NORMS):
            norm.momentum = 1.0
    encoder(segments(n_chans, n_times, n_rows=8, seed=5))
    return encoder.eval()


def segments(n_chans, n_times, n_rows=3, seed=1):
    return torch.randn(n_rows, n_chans, n_times, generator=torch.Generator().manual_seed(seed))


def assert_same(actual, expected, atol=1e-5):
    np.testing.assert_allclose(actual.detach().numpy(), expected.detach().numpy(), rtol=1e-5, atol=atol)


def test_every_name_is_in_the_contract():
    assert {config.encoder for config in CONFIGS.values()} == set(get_args(EegEncoderName))


@each(CONFIGS)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_gives_one_finite_float32_row_per_segment(name, which):
    n_chans, n_times = sizes(name)[which]
    encoder = build(CONFIGS[name], n_chans, n_times)
    for n_rows in (1, 3):
        embedding_BD = encoder.eval()(segments(n_chans, n_times, n_rows))
        assert embedding_BD.shape == (n_rows, 12)
        assert embedding_BD.dtype == torch.float32
        assert torch.isfinite(embedding_BD).all()


@each([name for name in CONFIGS if name != "nice-sa-released"])
def test_a_gradient_reaches_every_parameter(name):
    n_chans, n_times = sizes(name)[1]
    encoder = build(CONFIGS[name], n_chans, n_times)
    # Not the plain sum of squares, which a last LayerNorm of weight 1 and bias 0 holds constant.
    (encoder(segments(n_chans, n_times)) * torch.randn(3, 12)).sum().backward()
    without = [path for path, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    # The bias of a convolution whose BatchNorm subtracts it again: exactly 0, where layer by layer it is rounding.
    assert all(path.endswith(SUBTRACTED.get(CONFIGS[name].encoder, "-")) for path in without)
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters())


@each([name for name in CONFIGS if name != "nice-ga-released"])
def test_segments_of_a_batch_do_not_mix_in_evaluation(name):
    n_chans, n_times = sizes(name)[1]
    encoder = build_settled(CONFIGS[name], n_chans, n_times)
    eeg_BCT = segments(n_chans, n_times)
    assert_same(encoder(eeg_BCT)[1:2], encoder(eeg_BCT[1:2]), atol=2e-5)


@each(CONFIGS)
def test_embedding_depends_on_every_channel(name):
    n_chans, n_times = sizes(name)[1]
    encoder = build_settled(CONFIGS[name], n_chans, n_times)
    eeg_BCT = segments(n_chans, n_times, n_rows=1)
    for channel in range(n_chans):
        changed_BCT = eeg_BCT.clone()
        changed_BCT[:, channel] *= -1
        assert (encoder(changed_BCT) - encoder(eeg_BCT)).abs().max() > 1e-3


@each(CONFIGS)
def test_order_of_channels_matters(name):
    n_chans, n_times = sizes(name)[1]
    encoder = build_settled(CONFIGS[name], n_chans, n_times)
    eeg_BCT = segments(n_chans, n_times)
    assert (encoder(eeg_BCT.flip(1)) - encoder(eeg_BCT)).abs().max() > 1e-3


@each(CONFIGS)
def test_saved_weights_give_the_same_embeddings(name, tmp_path):
    n_chans, n_times = sizes(name)[1]
    encoder = build(CONFIGS[name], n_chans, n_times)
    encoder(segments(n_chans, n_times))  # in training mode: moves the running statistics
    torch.save(encoder.state_dict(), tmp_path / "weights.pth")
    other = build(CONFIGS[name], n_chans, n_times, seed=9)
    eeg_BCT = segments(n_chans, n_times, seed=2)
    assert (other.eval()(eeg_BCT) - encoder.eval()(eeg_BCT)).abs().max() > 1e-3
    other.load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True))
    assert torch.equal(other.eval()(eeg_BCT), encoder.eval()(eeg_BCT))


@each(CONFIGS)
def test_a_joint_model_comes_back_from_its_checkpoint(name, tmp_path):
    n_chans, n_times = sizes(name)[1]
    config = RunConfig(eeg=CONFIGS[name], image=ImageConfig(embed_dim=12, size_px=16))
    torch.manual_seed(0)
    model = build_joint(config, n_chans, n_times, 250.0, positions_m=positions(n_chans), subjects=["a", "b", "c"])
    model.encode_eeg(segments(n_chans, n_times))
    state = {"config": config.to_dict(), "data": model.data}
    loaded = JointModel.load(checkpoint.save(tmp_path, "pass-000001", {"model": model.state_dict()}, state))
    eeg_BCT, subject_B = segments(n_chans, n_times, seed=2), loaded.subject_rows(["c", "new", "a"])
    assert subject_B.tolist() == [2, -1, 0]
    assert torch.equal(loaded.encode_eeg(eeg_BCT, subject_B), model.eval().encode_eeg(eeg_BCT, subject_B))


@pytest.mark.parametrize(("subjects", "knows"), [(None, False), ("layer", True), ("token", True)])
def test_a_joint_model_uses_subjects_where_it_learns_something_for_each(subjects, knows):
    config = RunConfig(eeg=small("atm-s", filters=5, subjects=subjects), image=ImageConfig(embed_dim=12, size_px=16))
    torch.manual_seed(0)
    model = build_joint(config, 4, 80, 250.0, subjects=["a", "b"]).eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if path.endswith(("maps_SCC", "tokens_S1T")):
                parameter.add_(torch.randn_like(parameter))
    eeg_BCT, image_B3HW, subject_B = (
        segments(4, 80, n_rows=1).repeat(2, 1, 1),
        torch.zeros(2, 3, 16, 16),
        torch.tensor([0, 1]),
    )
    eeg_BD, image_BD, _, _ = model(eeg_BCT, image_B3HW, subject_B)
    assert ((eeg_BD[0] - eeg_BD[1]).abs().max() > 1e-3) == knows
    assert_same(model.compatibility(eeg_BCT, image_B3HW, subject_B), (eeg_BD * image_BD).sum(1))
    assert_same(model.encode_eeg(eeg_BCT, subject_B), eeg_BD)


@each(CONFIGS)
def test_the_seed_decides_the_weights(name):
    first, same, other = (build(CONFIGS[name], *sizes(name)[1], seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


@each(CONFIGS)
def test_the_seed_decides_what_training_drops_and_evaluation_drops_nothing(name):
    encoder, eeg_BCT = build(CONFIGS[name], *sizes(name)[1]), segments(*sizes(name)[1])
    embeddings = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        embeddings.append(encoder(eeg_BCT))
    first, same, other = embeddings
    assert torch.equal(first, same)
    has_dropout = CONFIGS[name].encoder not in ("palazzo-gru", "palazzo-lstm", "perceivelab-lstm")
    assert torch.equal(first, other) != has_dropout
    assert torch.equal(encoder.eval()(eeg_BCT), encoder(eeg_BCT))


# The Conformer of braindecode has dropout of its own before its last layer, which no setting reaches.
@each([name for name in BOUND if name != "braindecode-conformer"])
def test_without_dropout_training_repeats(name):
    resolved = CONFIGS[name].resolved()
    rates = [rate for rate in ("dropout", "channel_dropout", "dropout_radius") if getattr(resolved, rate) is not None]
    still = RunConfig(eeg=resolved, image=ImageConfig(embed_dim=12)).with_overrides({f"eeg.{r}": 0.0 for r in rates})
    encoder = build(still.eeg, *sizes(name)[1])
    eeg_BCT = segments(*sizes(name)[1])
    assert torch.equal(encoder(eeg_BCT), encoder(eeg_BCT))


@each(CONFIGS)
def test_memory_layout_does_not_change_results(name):
    encoder = build_settled(CONFIGS[name], *sizes(name)[1])
    expected = encoder(segments(*sizes(name)[1]))
    assert_same(encoder.to(memory_format=torch.channels_last)(segments(*sizes(name)[1])), expected, atol=2e-5)


@each(CONFIGS)
def test_holds_no_double_precision_and_runs_in_bfloat16(name):
    encoder = build_settled(CONFIGS[name], *sizes(name)[1])
    kinds = {x.dtype for x in [*encoder.parameters(), *encoder.buffers()]}
    assert kinds <= {torch.float32, torch.int64}  # int64 counts the batches of BatchNorm
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            embedding_BD = encoder(segments(*sizes(name)[1]))
    except RuntimeError as error:  # of oneDNN, whose recurrent layers take bfloat16 on CPUs with AVX-512 alone
        if "primitive descriptor" not in str(error):
            raise
        pytest.skip("this CPU runs no recurrent layer in bfloat16; training in it is for GPUs")
    assert embedding_BD.dtype in (torch.bfloat16, torch.float32)


@each(["palazzo-gru-mixed", "tsconv-layer", "nice-sa", "nice-ga", "atm-s-token", "eeg-project", "simple-conv"])
def test_compiles_in_one_piece(name):
    encoder, eeg_BCT = build_settled(CONFIGS[name], *sizes(name)[1]), segments(*sizes(name)[1])
    torch.compiler.reset()
    with torch._dynamo.config.patch(allow_rnn=True):
        compiled: Any = torch.compile(encoder, backend="eager", fullgraph=True)
        assert_same(compiled(eeg_BCT), encoder(eeg_BCT))


@each([name for name in CONFIGS if not name.startswith("eeg-channelnet")])  # which takes ten seconds
def test_learns_to_tell_two_patterns_apart(name):
    n_chans, n_times = sizes(name)[1] if CONFIGS[name].encoder in SIZES else (2, 75)
    encoder = nn.Sequential(build(CONFIGS[name], n_chans, n_times), nn.Linear(12, 1))
    generator = torch.Generator().manual_seed(3)
    is_second_B = torch.arange(16) % 2 == 1
    optimiser = torch.optim.Adam(encoder.parameters(), 3e-3)

    def batch():
        eeg_BCT = torch.randn(16, n_chans, n_times, generator=generator)
        eeg_BCT[:, 0, 40:70] += torch.where(is_second_B, 3.0, -3.0)[:, None]
        return eeg_BCT

    for _ in range(30):
        loss = F.binary_cross_entropy_with_logits(encoder(batch())[:, 0], is_second_B.float())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    n_right = ((encoder.eval()(batch())[:, 0] > 0) == is_second_B).sum()
    assert n_right >= 14  # of 16; p = .002 by chance


@each(CONFIGS)
def test_refuses_another_number_of_channels(name):
    n_chans, n_times = sizes(name)[1]
    message = rf"\(3, {n_chans + 1}, {n_times}\).*encoder of {n_chans} channels.*\[B, {n_chans}, T\]"
    with pytest.raises(InputError, match=message):
        build(CONFIGS[name], n_chans, n_times)(segments(n_chans + 1, n_times))


@each(BOUND)
def test_refuses_another_length_than_it_was_built_for(name):
    n_chans, n_times = sizes(name)[1]
    message = rf"'{CONFIGS[name].encoder}'.*segments of {n_times} samples and got {n_times + 2}.*any length"
    with pytest.raises(InputError, match=message):
        build(CONFIGS[name], n_chans, n_times)(segments(n_chans, n_times + 2))


@each([name for name in BOUND if CONFIGS[name].encoder not in ("eeg-project", "simple-conv")])
def test_refuses_segments_that_are_too_short_and_says_how_long_they_must_be(name):
    n_chans, n_times = sizes(name)[0]
    with pytest.raises(InputError, match=rf"'{CONFIGS[name].encoder}'.* {n_times} samples.* {n_times - 1} .*Hz"):
        build(CONFIGS[name], n_chans, n_times - 1)


@each([name for name in CONFIGS if name not in BOUND])
@pytest.mark.parametrize("n_times", [1, 5, 300])
def test_recurrent_encoders_take_any_length(name, n_times):
    assert build(CONFIGS[name], 4, 88)(segments(4, n_times)).shape == (3, 12)


PALAZZO = {name: CONFIGS[name] for name in list(CONFIGS)[:4]}
every_palazzo = pytest.mark.parametrize("config", PALAZZO.values(), ids=PALAZZO.keys())


def by_definition(encoder, eeg_BCT):
    """Return Palazzo's embeddings in training mode, channel by channel, with every step written out."""
    n_rows, n_chans, n_times = eeg_BCT.shape
    maps = eeg_BCT.reshape(n_rows * n_chans, 1, n_times) if encoder.is_shared else eeg_BCT
    for (conv, norm, _), dilation in zip(encoder.temporal, (1, 2, 4, 8), strict=True):
        maps = F.conv1d(F.pad(maps, (dilation, dilation)), conv.weight[:, :, 0], dilation=dilation)
        mean, std = maps.mean((0, 2), keepdim=True), (maps.var((0, 2), correction=0, keepdim=True) + 1e-5).sqrt()
        maps = F.elu((maps - mean) / std * norm.weight[:, None] + norm.bias[:, None])
    if encoder.is_shared:
        maps = torch.einsum("fc,bcft->bft", encoder.merge_F1C[:, 0], maps.reshape(n_rows, n_chans, 128, n_times))
    states = encoder.recurrent(maps.transpose(1, 2))[0]
    return encoder.head(states[:, -1])


@every_palazzo
def test_palazzo_equals_its_definition(config):
    encoder = build(config, 4, 30)
    for norm in encoder.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
    eeg_BCT = segments(4, 30)
    assert_same(encoder(eeg_BCT), by_definition(encoder, eeg_BCT), atol=1e-4)


def test_palazzo_has_the_published_sizes():
    encoder = build(EegConfig(encoder="palazzo-lstm"), 128, 440)
    assert [conv.weight.shape[0] for conv, _, _ in encoder.temporal] == [32, 64, 96, 128]
    assert [conv.weight.shape[1] for conv, _, _ in encoder.temporal] == [1, 32, 64, 96]
    assert {conv.kernel_size for conv, _, _ in encoder.temporal} == {(1, 3)}
    assert (encoder.recurrent.input_size, encoder.recurrent.hidden_size) == (128, 256)
    assert encoder.head.weight.shape == (128, 256)
    assert encoder.merge_F1C.numel() == 128 * 128


def test_palazzo_names_choose_the_recurrent_layer():
    for name, kind in (("palazzo-lstm", nn.LSTM), ("palazzo-gru", nn.GRU)):
        assert type(build(EegConfig(encoder=name), 2, 10).recurrent) is kind


def test_shared_filters_follow_their_weights_when_channels_are_reordered():
    encoder = build(CONFIGS["palazzo-gru-shared"], 4, 30).eval()
    eeg_BCT, order = segments(4, 30), torch.tensor([2, 0, 3, 1])
    expected = encoder(eeg_BCT)
    with torch.no_grad():
        encoder.merge_F1C.copy_(encoder.merge_F1C[..., order])
    assert_same(encoder(eeg_BCT[:, order]), expected)


def n_parameters(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


@pytest.mark.parametrize(("embed_dim", "total"), [(768, 1_802_496), (1024, 2_630_912)])
def test_tsconv_has_the_published_number_of_parameters(embed_dim, total):
    encoder = build(EegConfig(encoder="tsconv", embed_dim=embed_dim), 63, 250)
    assert n_parameters(encoder) == total
    assert n_parameters(encoder.encode) == 103_680
    if embed_dim == 768:
        assert n_parameters(encoder.enter, encoder.residual, encoder.norm) == 1_698_816


@pytest.mark.parametrize(("n_chans", "n_times", "flat"), [(63, 250, 1440), (17, 100, 240), (2, 75, 40), (2, 79, 40)])
def test_tsconv_flattens_to_the_published_width(n_chans, n_times, flat):
    assert build(EegConfig(encoder="tsconv"), n_chans, n_times).enter.in_features == flat


@pytest.mark.parametrize("n_times", [75, 79, 80, 123])
def test_tsconv_equals_the_published_order_of_layers(n_times):
    encoder = build(CONFIGS["tsconv"], 4, n_times)
    nn.init.normal_(encoder.encode[1].bias)
    encoder.eval()
    _, temporal, norm_1, _, spatial, norm_2, _, _, mix = encoder.encode
    eeg_BCT = segments(4, n_times)
    maps = F.conv2d(eeg_BCT[:, None], temporal.weight, temporal.bias)
    maps = F.elu(norm_1(F.avg_pool2d(maps, (1, 51), stride=(1, 5))))
    maps = mix(F.elu(norm_2(spatial(maps))))
    flat = maps.squeeze(2).permute(0, 2, 1).reshape(3, -1)  # time-major, feature-minor
    x = encoder.enter(flat)
    assert_same(encoder(eeg_BCT), encoder.norm(x + encoder.residual[1](F.gelu(x))))


def test_tsconv_starts_as_published():
    encoder = build(EegConfig(encoder="tsconv", embed_dim=256), 16, 250)
    for layer in (encoder.encode[1], encoder.encode[4], encoder.enter, encoder.residual[1]):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.12)
        assert abs(layer.weight.mean().item()) < 0.003
    for norm in (encoder.encode[2], encoder.encode[5]):
        assert norm.weight.mean().item() == pytest.approx(1, abs=0.02)
        assert norm.weight.std().item() == pytest.approx(0.02, rel=0.5)
        assert not norm.bias.any()


def test_tsconv_settings_apply():
    encoder = build(EegConfig(encoder="tsconv", filters=7, dropout=0.25), 4, 88)
    assert [m.p for m in encoder.modules() if isinstance(m, nn.Dropout)] == [0.25, 0.25]
    assert [m.out_channels for m in encoder.modules() if isinstance(m, nn.Conv2d)] == [7, 7, 7]


def test_tsconv_without_dropout_repeats_in_training():
    eeg_BCT = segments(4, 88)
    for dropout, is_equal in ((0.0, True), (0.5, False)):
        encoder = build(EegConfig(encoder="tsconv", dropout=dropout), 4, 88)
        assert torch.equal(encoder(eeg_BCT), encoder(eeg_BCT)) == is_equal


def test_tsconv_refuses_segments_that_are_too_short_and_says_how_long_they_must_be():
    with pytest.raises(InputError, match=r"'tsconv'.*at least 75 samples.*have 74 \(0.296 s at 250 Hz\).*palazzo"):
        build(CONFIGS["tsconv"], 4, 74)
