"""eegvision.encoders.linear_runs and the shortcuts of SimpleConv, against the published layers one after another."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from eegvision.config import EegConfig, EegEncoderName
from eegvision.encoders.eeg import build_eeg_encoder
from eegvision.encoders.linear_runs import window_moments

TSCONV: tuple[EegEncoderName, ...] = ("tsconv", "nice-sa", "nice-ga", "atm-s")
IN_ORDER: tuple[EegEncoderName, ...] = ("nice-shallow", "nice-deep", "nice-eegnet")
EVERY = (*TSCONV, *IN_ORDER, "simple-conv")
# Channels and samples: the least there is, lengths that strides of 5 and 2 do not divide, and one of each that they do.
SIZES = {"nice-deep": [(1, 151), (4, 160), (7, 203)], "nice-eegnet": [(1, 95), (4, 100), (7, 121)]}
PAIRS = [(name, *size) for name in EVERY for size in SIZES.get(name, [(2, 75), (4, 88), (7, 103)])]


def build(name: EegEncoderName, n_chans: int, n_times: int, **settings: Any) -> Any:
    torch.manual_seed(0)
    places = [tuple(row) for row in torch.randn(n_chans, 3).tolist()]
    own: dict[str, Any] = {"hidden": 16} if name == "simple-conv" else {}
    config = EegConfig(encoder=name, embed_dim=12, **own | settings)
    encoder = build_eeg_encoder(config, n_chans, n_times, 250.0, positions_m=places)
    for path, parameter in encoder.named_parameters():  # biases and scales that hide nothing by being 0 or 1
        if path.endswith("bias") or parameter.ndim == 1:
            nn.init.normal_(parameter, 1.0, 0.5)
    return encoder


def published(encoder: Any, eeg_BCT: torch.Tensor) -> torch.Tensor:
    """Return the embedding [B, D] by the layers in the order in which their papers and programs have them."""
    if encoder.name == "simple-conv":
        x = encoder.first(encoder._merge_OC() @ eeg_BCT)
        for layer, gate in zip(encoder.layers, encoder.gates, strict=True):
            y = layer(x)
            x = gate(x + y if x.shape[1] == y.shape[1] else y)
        return encoder.head(encoder.over_time(encoder.last(x)).squeeze(2))
    maps = encoder.before(eeg_BCT).unsqueeze(1)
    layers = list(encoder.encode)
    if encoder.name in TSCONV:
        maps = F.conv2d(maps, layers[1].weight, layers[1].bias)
        maps = F.avg_pool2d(maps, (1, 51), stride=(1, 5))
        layers = layers[2:]
    for layer in layers:
        maps = layer(maps)
    return encoder.project(maps)


def segments(n_rows, n_chans, n_times, dtype=torch.float64):
    """Return segments that drift, as EEG does: neighbouring samples nearly alike, means far from zero."""
    generator = torch.Generator().manual_seed(1)
    return 0.3 * torch.randn(n_rows, n_chans, n_times, generator=generator, dtype=torch.float64).cumsum(2).to(dtype)


def seen(encode, encoder, eeg_BCT):
    """Return embedding, gradients and buffers of a training step with dropout, by name."""
    eeg_BCT = eeg_BCT.clone().requires_grad_()
    torch.manual_seed(3)
    embedding_BD = encode(encoder, eeg_BCT)
    embedding_BD.backward(torch.randn(embedding_BD.shape, dtype=torch.float64).to(embedding_BD.dtype))
    return (
        {"embedding": embedding_BD.detach(), "segments": eeg_BCT.grad}
        | {path: parameter.grad for path, parameter in encoder.named_parameters()}
        | dict(encoder.named_buffers())
    )


def call(encoder, eeg_BCT):
    return encoder(eeg_BCT)


def assert_alike(found, expected, relative):
    """Compare each array relative to its largest value, and what is rounding to the largest of all."""
    assert found.keys() == expected.keys()
    largest = max(x.abs().max().item() for x in expected.values())
    for path, value in expected.items():
        scale = max(value.abs().max().item(), 1e-2 * largest)
        error = (found[path].double() - value.double()).abs().max().item()
        assert error <= relative * scale, (path, error / scale)


@pytest.mark.parametrize(("name", "n_chans", "n_times"), PAIRS)
def test_a_training_step_is_that_of_the_published_layers(name, n_chans, n_times):
    encoder = build(name, n_chans, n_times).double()
    eeg_BCT, other = segments(5, n_chans, n_times), copy.deepcopy(encoder)
    assert_alike(seen(call, encoder, eeg_BCT), seen(published, other, eeg_BCT), 1e-10)


@pytest.mark.parametrize(("name", "n_chans", "n_times"), PAIRS)
def test_an_embedding_in_evaluation_is_that_of_the_published_layers(name, n_chans, n_times):
    encoder = build(name, n_chans, n_times).double()
    encoder(segments(8, n_chans, n_times))  # moves the running statistics
    encoder.eval()
    eeg_BCT = segments(3, n_chans, n_times)
    assert_alike(seen(call, encoder, eeg_BCT), seen(published, copy.deepcopy(encoder), eeg_BCT), 1e-10)


# Of two values that differ by rounding alone, max pooling may take another one in float64, as in nice-deep.
@pytest.mark.parametrize("name", [name for name in EVERY if name != "nice-deep"])
def test_in_float32_a_step_is_within_a_hundred_thousandth_of_float64(name):
    n_chans, n_times = 7, 203
    encoder = build(name, n_chans, n_times)
    eeg_BCT = segments(5, n_chans, n_times, torch.float32)
    exact = seen(published, copy.deepcopy(encoder).double().eval(), eeg_BCT.double())
    assert_alike(seen(call, encoder.eval(), eeg_BCT), exact, 1e-5)


def test_filters_that_take_differences_of_smooth_signals_keep_their_statistics():
    """w' Cov w then cancels all but a millionth of itself, which float32 would lose."""
    encoder = build("tsconv", 4, 203)
    with torch.no_grad():
        weight = encoder.encode[1].weight
        weight.copy_(torch.linspace(-1, 1, 25).cos().diff(n=2, append=torch.zeros(2)).expand_as(weight))
        weight -= weight.mean(3, keepdim=True)
    norm, eeg_BCT = encoder.encode[2], segments(5, 4, 203, torch.float32)
    norm.momentum = 1.0
    encoder(eeg_BCT)
    maps = F.conv2d(eeg_BCT[:, None].double(), weight.double(), encoder.encode[1].bias.double())
    maps = F.avg_pool2d(maps, (1, 51), stride=(1, 5))
    torch.testing.assert_close(norm.running_var.double(), maps.var((0, 2, 3)), rtol=1e-4, atol=0)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_move_as_torch_moves_them(momentum):
    encoder = build("nice-eegnet", 3, 100).double()
    encoder.encode[1].momentum = momentum
    other = copy.deepcopy(encoder)
    for _ in range(3):
        encoder(segments(4, 3, 100))
        published(other, segments(4, 3, 100))
    assert encoder.encode[1].num_batches_tracked == 3
    expected = dict(other.encode[1].named_buffers())
    assert_alike(dict(encoder.encode[1].named_buffers()), expected, 1e-12)


@pytest.mark.parametrize("name", ["tsconv", "nice-eegnet"])
def test_a_frozen_normalisation_keeps_its_statistics_in_training(name):
    encoder = build(name, 4, 103).double()
    norm = encoder.encode[2 if name == "tsconv" else 1].eval()
    norm.running_mean += 0.5
    other = copy.deepcopy(encoder)
    assert_alike(seen(call, encoder, segments(5, 4, 103)), seen(published, other, segments(5, 4, 103)), 1e-10)
    assert norm.num_batches_tracked == 0


@pytest.mark.parametrize(
    ("n_times", "n_taps", "stride"), [(64, 25, 5), (25, 25, 5), (29, 25, 5), (30, 8, 1), (8, 8, 1)]
)
def test_window_moments_are_those_of_all_windows(n_times, n_taps, stride):
    rows_BCT = segments(3, 2, n_times)
    windows_NK = rows_BCT.unfold(2, n_taps, stride).reshape(-1, n_taps)
    mean_K, cov_KK, n = window_moments(rows_BCT, n_taps, stride)
    assert n == len(windows_NK)
    torch.testing.assert_close(mean_K, windows_NK.mean(0))
    torch.testing.assert_close(cov_KK, torch.cov(windows_NK.T, correction=0))


@pytest.mark.parametrize("name", [*TSCONV, *IN_ORDER])
def test_a_hook_on_a_layer_sees_what_the_layer_gives(name):
    encoder = build(name, 4, 203).eval()
    expected, shapes = encoder(segments(2, 4, 203, torch.float32)), []
    for layer in encoder.encode:
        layer.register_forward_hook(lambda _layer, _inputs, maps: shapes.append(maps.shape))
    torch.testing.assert_close(encoder(segments(2, 4, 203, torch.float32)), expected, rtol=1e-4, atol=1e-5)
    assert len(shapes) == len(encoder.encode)


def test_another_normalisation_is_called():
    class Doubled(nn.BatchNorm2d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 (torch's name)
            return 2 * super().forward(input)

    for name, at in (("tsconv", 2), ("nice-eegnet", 1)):
        encoder = build(name, 4, 203).double().eval()
        plain = encoder(segments(2, 4, 203))
        encoder.encode[at] = Doubled(encoder.encode[at].num_features).double().eval()
        assert not torch.allclose(encoder(segments(2, 4, 203)), plain)
        assert_alike({"": encoder(segments(2, 4, 203))}, {"": published(encoder, segments(2, 4, 203))}, 1e-10)


def test_simple_conv_goes_layer_by_layer_where_widths_agree():
    encoder = build("simple-conv", 4, 30, hidden=270).double()
    assert not encoder._is_first_run_shorter()
    eeg_BCT, other = segments(3, 4, 30), copy.deepcopy(encoder)
    assert_alike(seen(call, encoder, eeg_BCT), seen(published, other, eeg_BCT), 1e-10)


@pytest.mark.parametrize("name", EVERY)
def test_shortcuts_compile_in_one_piece_in_training(name):
    encoder, eeg_BCT = build(name, 4, 203), segments(3, 4, 203, torch.float32)
    torch.compiler.reset()
    other = copy.deepcopy(encoder)
    compiled: Any = torch.compile(encoder, backend="eager", fullgraph=True)
    torch.manual_seed(2)
    found = compiled(eeg_BCT)
    torch.manual_seed(2)
    torch.testing.assert_close(found, other(eeg_BCT), rtol=1e-4, atol=1e-5)
    assert_alike(dict(encoder.named_buffers()), dict(other.named_buffers()), 1e-6)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of unfold's backward pass, only of its speed
@pytest.mark.parametrize("name", ["tsconv", "nice-shallow", "nice-eegnet"])
def test_functional_transforms_give_the_gradient_of_each_segment(name):
    encoder = build(name, 3, 120).double().eval()
    eeg_BCT = segments(2, 3, 120)

    def energy(eeg_CT):
        return encoder(eeg_CT[None]).sin().sum()

    found_BCT = torch.func.vmap(torch.func.grad(energy))(eeg_BCT)
    leaf_BCT = eeg_BCT.clone().requires_grad_()
    published(encoder, leaf_BCT).sin().sum().backward()
    torch.testing.assert_close(found_BCT, leaf_BCT.grad)


@pytest.mark.parametrize("name", EVERY)
def test_autocast_stays_as_close_as_the_published_layers(name):
    encoder = build(name, 4, 203).eval()
    eeg_BCT = segments(3, 4, 203, torch.float32)
    exact_BD = published(encoder, eeg_BCT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        error = (encoder(eeg_BCT).float() - exact_BD).abs().max()
        usual = (published(encoder, eeg_BCT).float() - exact_BD).abs().max()
    assert error <= 2 * usual + 1e-3 * exact_BD.abs().max()
