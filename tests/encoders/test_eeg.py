"""eegvision.encoders.eeg: one contract for all encoders, then each against its own definition."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from eegvision.config import EegConfig
from eegvision.encoders.eeg import build_eeg_encoder
from eegvision.vocab import InputError

CONFIGS = {
    "palazzo-gru-shared": EegConfig(encoder="palazzo-gru", embed_dim=12, hidden=16),
    "palazzo-gru-mixed": EegConfig(encoder="palazzo-gru", embed_dim=12, hidden=16, channels="mixed"),
    "palazzo-lstm-shared": EegConfig(encoder="palazzo-lstm", embed_dim=12, hidden=16),
    "palazzo-lstm-mixed": EegConfig(encoder="palazzo-lstm", embed_dim=12, hidden=16, channels="mixed"),
    "tsconv": EegConfig(encoder="tsconv", embed_dim=12, filters=5),
}
every_encoder = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
every_palazzo = pytest.mark.parametrize("config", list(CONFIGS.values())[:4], ids=list(CONFIGS)[:4])


def build(config, n_chans, n_times, seed=0) -> Any:
    torch.manual_seed(seed)
    return build_eeg_encoder(config, n_chans, n_times, 250.0)


def build_settled(config, n_chans, n_times) -> Any:
    """Return an encoder in evaluation mode whose running statistics are those of one batch."""
    encoder = build(config, n_chans, n_times)
    for norm in encoder.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 1.0
    encoder(segments(n_chans, n_times, n_rows=8, seed=5))
    return encoder.eval()


def segments(n_chans, n_times, n_rows=3, seed=1):
    return torch.randn(n_rows, n_chans, n_times, generator=torch.Generator().manual_seed(seed))


def assert_same(actual, expected, atol=1e-5):
    np.testing.assert_allclose(actual.detach().numpy(), expected.detach().numpy(), rtol=1e-5, atol=atol)


@every_encoder
@pytest.mark.parametrize(("n_chans", "n_times"), [(1, 75), (4, 88), (7, 101)])
def test_gives_one_finite_float32_row_per_segment(config, n_chans, n_times):
    encoder = build(config, n_chans, n_times)
    for n_rows in (1, 3):
        embedding_BD = encoder.eval()(segments(n_chans, n_times, n_rows))
        assert embedding_BD.shape == (n_rows, 12)
        assert embedding_BD.dtype == torch.float32
        assert torch.isfinite(embedding_BD).all()


@every_encoder
def test_a_gradient_reaches_every_parameter(config):
    encoder = build(config, 4, 88)
    encoder(segments(4, 88)).square().sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()] == []


@every_encoder
def test_segments_of_a_batch_do_not_mix_in_evaluation(config):
    encoder = build_settled(config, 4, 88)
    eeg_BCT = segments(4, 88)
    assert_same(encoder(eeg_BCT)[1:2], encoder(eeg_BCT[1:2]))


@every_encoder
def test_embedding_depends_on_every_channel(config):
    encoder = build_settled(config, 4, 88)
    eeg_BCT = segments(4, 88, n_rows=1)
    for channel in range(4):
        changed_BCT = eeg_BCT.clone()
        changed_BCT[:, channel] *= -1
        assert (encoder(changed_BCT) - encoder(eeg_BCT)).abs().max() > 1e-3


@every_encoder
def test_order_of_channels_matters(config):
    encoder = build_settled(config, 4, 88)
    eeg_BCT = segments(4, 88)
    assert (encoder(eeg_BCT.flip(1)) - encoder(eeg_BCT)).abs().max() > 1e-3


@every_encoder
def test_saved_weights_give_the_same_embeddings(config, tmp_path):
    encoder = build(config, 4, 88)
    encoder(segments(4, 88))  # in training mode: moves the running statistics
    torch.save(encoder.state_dict(), tmp_path / "weights.pth")
    other = build(config, 4, 88, seed=9)
    eeg_BCT = segments(4, 88, seed=2)
    assert (other.eval()(eeg_BCT) - encoder.eval()(eeg_BCT)).abs().max() > 1e-3
    other.load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True))
    assert torch.equal(other.eval()(eeg_BCT), encoder.eval()(eeg_BCT))


@every_encoder
def test_the_seed_decides_the_weights(config):
    first, same, other = (build(config, 4, 88, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@every_encoder
def test_memory_layout_does_not_change_results(config):
    encoder = build_settled(config, 4, 88)
    expected = encoder(segments(4, 88))
    assert_same(encoder.to(memory_format=torch.channels_last)(segments(4, 88)), expected)


@every_encoder
def test_learns_to_tell_two_patterns_apart(config):
    encoder = nn.Sequential(build(config, 2, 75), nn.Linear(12, 1))
    generator = torch.Generator().manual_seed(3)
    is_second_B = torch.arange(16) % 2 == 1
    optimiser = torch.optim.Adam(encoder.parameters(), 3e-3)

    def batch():
        eeg_BCT = torch.randn(16, 2, 75, generator=generator)
        eeg_BCT[:, 0, 40:70] += torch.where(is_second_B, 3.0, -3.0)[:, None]
        return eeg_BCT

    for _ in range(20):
        loss = F.binary_cross_entropy_with_logits(encoder(batch())[:, 0], is_second_B.float())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    n_right = ((encoder.eval()(batch())[:, 0] > 0) == is_second_B).sum()
    assert n_right >= 14  # of 16; p = .002 by chance


@every_encoder
def test_refuses_another_number_of_channels(config):
    with pytest.raises(InputError, match=r"\(3, 5, 88\).*encoder of 4 channels.*\[B, 4, T\]"):
        build(config, 4, 88)(segments(5, 88))


@every_palazzo
@pytest.mark.parametrize("n_times", [1, 5, 300])
def test_palazzo_takes_any_length(config, n_times):
    assert build(config, 4, 88)(segments(4, n_times)).shape == (3, 12)


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


def test_tsconv_refuses_another_length_than_it_was_built_for():
    with pytest.raises(InputError, match=r"segments of 88 samples and got 90.*any length"):
        build(CONFIGS["tsconv"], 4, 88)(segments(4, 90))
