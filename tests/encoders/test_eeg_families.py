"""EEG encoders other than Palazzo's and TSConv, each against its definition, its published sizes and its refusals."""

import itertools
import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from eegvision.config import EegConfig, EegEncoderName
from eegvision.encoders.eeg import build_eeg_encoder
from eegvision.encoders.subjects import rows_of
from eegvision.vocab import InputError


def build(encoder: EegEncoderName, n_chans: int, n_times: int, *, embed_dim: int = 12, **settings: Any) -> Any:
    torch.manual_seed(0)
    extra = {"positions_m": settings.pop("positions_m", places(n_chans)), "n_subjects": settings.pop("n_subjects", 0)}
    return build_eeg_encoder(
        EegConfig(encoder=encoder, embed_dim=embed_dim, **settings), n_chans, n_times, 250.0, **extra
    )


def places(n_chans, seed=7):
    generator = torch.Generator().manual_seed(seed)
    return [tuple(row) for row in (0.1 * torch.randn(n_chans, 3, generator=generator)).tolist()]


def segments(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def randomise(module):
    """Give every parameter another random value, so that none is at the 0 or 1 where it would hide."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module


def n_parameters(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


def outputs_of(encoder, eeg_BCT, modules):
    """Return the shape that each of these modules gives, without the batch."""
    shapes = []
    hooks = [m.register_forward_hook(lambda _m, _in, out: shapes.append(tuple(out.shape[1:]))) for m in modules]
    encoder.eval()(eeg_BCT)
    for hook in hooks:
        hook.remove()
    return shapes


def assert_same(actual, expected, atol=1e-5):
    np.testing.assert_allclose(actual.detach().numpy(), expected.detach().numpy(), rtol=1e-4, atol=atol)


TSCONV, PROJECTION_768 = 103_680, 1_698_816


@pytest.mark.parametrize(
    ("name", "before", "encode", "flat"),
    [
        ("nice-sa", 2 * 250 + 3 * (63 * 63 + 63 + 2 * 63), TSCONV, 1440),
        ("nice-ga", 250 * 250 + 3 * 250, TSCONV, 1440),
        ("nice-shallow", 0, 40 * 26 + 40 * (40 * 63 + 1) + 80, 1440),
        ("nice-deep", 0, 25 * 11 + 25 * (25 * 63 + 1) + 50 * 251 + 100 * 501 + 200 * 1001 + 2 * 375, 1400),
        ("nice-eegnet", 0, 8 * 65 + 16 + 16 * (8 * 63 + 1) + 32 + 16 * (16 * 16 + 1) + 32, 1248),
    ],
)
def test_nices_networks_have_the_published_sizes(name, before, encode, flat):
    encoder = build(name, 63, 250, embed_dim=768)
    assert n_parameters(encoder.before) == before
    assert n_parameters(encoder.encode) == encode
    assert encoder.enter.in_features == flat
    projection = PROJECTION_768 + (flat - 1440) * 768
    assert n_parameters(encoder) == before + encode + projection


def test_atm_s_has_the_published_sizes():
    encoder = build("atm-s", 63, 250, embed_dim=1024)
    layer = encoder.before
    assert (layer.query.out_features, layer.n_heads, layer.inner.out_features) == (4 * 62, 4, 256)
    assert n_parameters(encoder) - n_parameters(layer) == 2_630_912  # TSConv at D = 1024
    attention = 3 * (250 * 248 + 248) + 248 * 250 + 250
    assert n_parameters(layer) == 62_750 + 250 + attention + 250 * 256 + 256 + 256 * 250 + 250 + 3 * 500
    assert encoder.enter.in_features == 1440


@pytest.mark.parametrize(
    ("n_chans", "n_times", "total"), [(17, 250, 5_404_672), (63, 250, 17_180_672), (271, 201, 56_830_976)]
)
def test_eeg_project_has_the_published_number_of_parameters(n_chans, n_times, total):
    assert n_parameters(build("eeg-project", n_chans, n_times, embed_dim=1024)) == total


def test_the_residual_projection_equals_its_definition():
    encoder = randomise(build("eeg-project", 3, 5)).eval()
    eeg_BCT = segments(2, 3, 5)
    x_BD = eeg_BCT.reshape(2, 15) @ encoder.enter.weight.T + encoder.enter.bias
    y_BD = x_BD + F.gelu(x_BD) @ encoder.residual[1].weight.T + encoder.residual[1].bias
    y_BD = (y_BD - y_BD.mean(1, keepdim=True)) / (y_BD.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    assert_same(encoder(eeg_BCT), y_BD * encoder.norm.weight + encoder.norm.bias)


@pytest.mark.parametrize(
    ("name", "widths"),
    [
        ("nice-shallow", [226, 226, 36]),
        ("nice-deep", [241, 241, 120, 111, 55, 46, 23, 14, 7]),
        ("nice-eegnet", [187, 187, 93, 78]),
    ],
)
def test_widths_inside_nices_comparison_networks(name, widths):
    encoder = build(name, 63, 250)
    shrinking = [m for m in encoder.encode if isinstance(m, nn.Conv2d | nn.AvgPool2d | nn.MaxPool2d)]
    assert [shape[-1] for shape in outputs_of(encoder, segments(1, 63, 250), shrinking)] == widths


@pytest.mark.parametrize("name", ["nice-sa", "nice-ga", "nice-deep"])
def test_nices_networks_start_as_published_and_atm_s_as_torch_does(name):
    for encoder, is_nice in ((build(name, 16, 250), True), (build("atm-s", 16, 250), False)):
        for layer in encoder.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear) and layer.weight.numel() > 2000:
                assert (abs(layer.weight.std().item() - 0.02) < 0.002) == is_nice
        norms = [m.weight for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
        assert all((weight.std().item() > 0) == is_nice for weight in norms)


def self_attention(layer, eeg_BCT, *, mixes):
    """Return NICE-SA's layer in evaluation, one segment and one pair of channels at a time."""
    rows = []
    for eeg_CT in eeg_BCT:
        normed_CT = F.layer_norm(eeg_CT, eeg_CT.shape[1:], layer.norm.weight, layer.norm.bias)
        query_TC, key_TC = layer.query(normed_CT.T), layer.key(normed_CT.T)
        n_chans, n_times = eeg_CT.shape
        mixed_CT = torch.zeros_like(eeg_CT)
        for c in range(n_chans):
            scores = torch.stack([query_TC[:, c] @ key_TC[:, m] / math.sqrt(n_times // 30) for m in range(n_chans)])
            share_C = torch.exp(scores - scores.max()) / torch.exp(scores - scores.max()).sum()
            mixed_CT[c] = sum(share_C[m] * normed_CT[m] for m in range(n_chans)) if mixes else normed_CT[c]
        rows.append(eeg_CT + layer.project(mixed_CT.T).T)
    return torch.stack(rows)


@pytest.mark.parametrize("variant", ["published", "released"])
def test_self_attention_equals_its_definition(variant):
    layer = randomise(build("nice-sa", 5, 250, variant=variant).before).eval()
    eeg_BCT = segments(2, 5, 250)
    assert_same(layer(eeg_BCT), self_attention(layer, eeg_BCT, mixes=variant == "published"), atol=1e-4)


def test_released_self_attention_leaves_queries_and_keys_without_a_gradient():
    for variant, has_gradient in (("published", True), ("released", False)):
        layer = randomise(build("nice-sa", 5, 90, variant=variant).before).eval()
        (layer(segments(4, 5, 90)) * segments(4, 5, 90, seed=2)).sum().backward()
        unit = layer.project[0].weight.grad.abs().max()
        for part in (layer.query, layer.key):
            assert (part[0].weight.grad.abs().max() > 1e-3 * unit) == has_gradient
            assert has_gradient or part[0].weight.grad.abs().max() < 1e-5 * unit  # what rounding leaves


@pytest.mark.parametrize("variant", ["published", "released"])
def test_graph_attention_equals_its_definition(variant):
    layer = randomise(build("nice-ga", 4, 80, variant=variant).before).eval()
    eeg_BCT = segments(3, 4, 80)
    expected = []
    for row, eeg_CT in enumerate(eeg_BCT):
        own_CT = eeg_CT @ layer.weight.weight.T
        mixed_CT = own_CT.clone()
        if variant == "published" or row == 0:
            for i in range(4):
                scores = torch.stack([layer.to_T @ own_CT[i] + layer.from_T @ own_CT[j] for j in range(4)])
                scores = torch.where(scores > 0, scores, 0.2 * scores)
                mixed_CT[i] = torch.softmax(scores, 0) @ own_CT
        expected.append(eeg_CT + mixed_CT + layer.bias_T)
    assert_same(layer(eeg_BCT), torch.stack(expected), atol=1e-4)


def test_released_graph_attention_mixes_only_the_first_segment_of_a_batch():
    for variant, is_same in (("published", True), ("released", False)):
        encoder = build("nice-ga", 4, 80, variant=variant).eval()
        eeg_BCT = 5 * segments(3, 4, 80)
        first, later = encoder(eeg_BCT)[0], encoder(eeg_BCT.roll(1, 0))[1]
        assert torch.allclose(first, later, atol=1e-6) == is_same


@pytest.mark.parametrize("name", ["nice-sa", "nice-ga"])
def test_attention_over_channels_refuses_a_single_one(name):
    with pytest.raises(InputError, match=rf"'{name}' needs at least 2 channels; the segments have 1; choose 'tsconv'"):
        build(name, 1, 88)


@pytest.mark.parametrize("variant", ["published", "released"])
def test_atms_layer_equals_torchs_transformer_layer(variant):
    """At a length that four heads divide, the layer is the post-norm one of torch, which then takes its weights."""
    layer = build("atm-s", 5, 76, variant=variant).before.eval()
    reference = nn.TransformerEncoderLayer(76, 4, 256, activation="gelu", batch_first=True).eval()
    attention = reference.self_attn
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([x.weight for x in (layer.query, layer.key, layer.value)]))
        attention.in_proj_bias.copy_(torch.cat([x.bias for x in (layer.query, layer.key, layer.value)]))
    for mine, theirs in (
        (layer.attended, attention.out_proj),
        (layer.inner, reference.linear1),
        (layer.outer, reference.linear2),
        (layer.norm_1, reference.norm1),
        (layer.norm_2, reference.norm2),
    ):
        theirs.load_state_dict(mine.state_dict())
    eeg_BCT = segments(2, 5, 76)
    tokens = torch.cat([layer.tokens_S1T.expand(2, 1, 76), layer.embed(eeg_BCT)], 1)
    expected_BNT = layer.norm_3(reference(tokens))
    # Published: the channels. Released: the first five tokens, so the subject's and all channels but the last.
    assert_same(layer(eeg_BCT), expected_BNT[:, 1:] if variant == "published" else expected_BNT[:, :5])


def test_channelnet_has_the_published_sizes():
    encoder = build("eeg-channelnet", 128, 440, embed_dim=40, variant="released")
    assert n_parameters(encoder) == 4_949_938 + 541_040
    assert n_parameters(encoder.head) == 500 * 1000 + 1000 + 1000 * 40 + 40
    eeg_BCT = segments(1, 128, 440)
    assert outputs_of(encoder, eeg_BCT, encoder.temporal) == [(10, 128, 220)] * 4
    assert outputs_of(encoder, eeg_BCT, encoder.spatial) == [(50, 64, 220)] * 4
    steps = [(200, 31, 109), (200, 15, 54), (200, 7, 26), (200, 3, 12), (50, 1, 10)]
    assert outputs_of(encoder, eeg_BCT, [*encoder.deeper[1::2], encoder.deeper[-1]]) == steps
    kernels = [unit[2].kernel_size for unit in encoder.spatial]
    assert kernels == [(128, 1), (64, 1), (42, 1), (32, 1)]
    assert [unit[2].padding[0] for unit in encoder.spatial] == [63, 31, 20, 15]
    assert [(unit[2].dilation[1], unit[2].padding[1]) for unit in encoder.temporal] == [
        (1, 16),
        (2, 32),
        (4, 64),
        (8, 128),
    ]


def test_channelnets_published_head_is_one_linear_map():
    assert type(build("eeg-channelnet", 14, 13, blocks=1).head) is nn.Linear
    assert [type(m) for m in build("eeg-channelnet", 14, 13, blocks=1, variant="released").head] == [
        nn.Linear,
        nn.ReLU,
        nn.Linear,
    ]


def test_channelnets_units_and_residual_blocks_equal_their_definition():
    encoder = randomise(build("eeg-channelnet", 14, 20, blocks=1)).eval()
    eeg_BCT = segments(2, 14, 20)

    def norm(maps, layer):
        scale, shift = (x[:, None, None] for x in (layer.weight, layer.bias))
        return maps / math.sqrt(1 + layer.eps) * scale + shift  # running statistics are still 0 and 1

    def unit(maps, layers, **geometry):
        return F.conv2d(F.relu(norm(maps, layers[0])), layers[2].weight, layers[2].bias, **geometry)

    maps = eeg_BCT[:, None]
    maps = torch.cat(
        [
            unit(maps, layers, stride=(1, 2), padding=(0, 16 * step), dilation=(1, step))
            for layers, step in zip(encoder.temporal, (1, 2, 4, 8), strict=True)
        ],
        1,
    )
    rows = (14, 7, 4, 3)
    maps = torch.cat(
        [
            unit(maps, layers, stride=(2, 1), padding=((n - 1) // 2, 0))
            for layers, n in zip(encoder.spatial, rows, strict=True)
        ],
        1,
    )
    conv_1, norm_1, _, conv_2, norm_2 = encoder.deeper[0].branch
    inner = F.relu(norm(F.conv2d(maps, conv_1.weight, padding=1), norm_1))
    maps = F.relu(maps + norm(F.conv2d(inner, conv_2.weight, padding=1), norm_2))
    maps = unit(unit(maps, encoder.deeper[1], stride=2), encoder.deeper[2])
    expected = maps.reshape(2, -1) @ encoder.head.weight.T + encoder.head.bias
    scale = expected.abs().max().item()
    assert_same(encoder(eeg_BCT) / scale, expected / scale, atol=1e-4)


@pytest.mark.parametrize(("n_chans", "n_times", "blocks"), [(126, 125, 4), (127, 125, 4), (63, 250, 3), (17, 100, 1)])
def test_channelnet_takes_smaller_montages_with_fewer_blocks(n_chans, n_times, blocks):
    assert build("eeg-channelnet", n_chans, n_times, blocks=blocks)(segments(2, n_chans, n_times)).shape == (2, 12)


@pytest.mark.parametrize(
    ("n_chans", "n_times", "message"),
    [
        (125, 440, r"eeg.blocks 4 needs at least 126 channels and 125 samples; .* 125 channels .*set eeg.blocks to 3"),
        (128, 124, r"have 128 channels and 124 samples \(0.496 s at 250 Hz\); set eeg.blocks to 3"),
        (5, 440, "choose another encoder, for example 'tsconv'"),
    ],
)
def test_channelnet_refuses_what_is_too_small_and_names_the_remedy(n_chans, n_times, message):
    with pytest.raises(InputError, match=message):
        build("eeg-channelnet", n_chans, n_times)


def test_perceivelabs_lstm_has_the_published_sizes_and_equals_its_definition():
    encoder = build("perceivelab-lstm", 128, 440, embed_dim=40)
    assert n_parameters(encoder.recurrent) == 4 * 128 * (128 + 128 + 2)
    assert n_parameters(encoder.output, encoder.head) == 128 * 128 + 128 + 128 * 40 + 40
    eeg_BCT = segments(2, 128, 6)
    hidden = cell = torch.zeros(2, 128)
    lstm = encoder.recurrent
    for t in range(6):
        gates = eeg_BCT[..., t] @ lstm.weight_ih_l0.T + lstm.bias_ih_l0 + hidden @ lstm.weight_hh_l0.T + lstm.bias_hh_l0
        take, keep, new, give = gates.chunk(4, 1)
        cell = keep.sigmoid() * cell + take.sigmoid() * new.tanh()
        hidden = give.sigmoid() * cell.tanh()
    assert_same(encoder(eeg_BCT), encoder.head(F.relu(encoder.output(hidden))))


def test_simple_conv_has_the_sizes_of_the_benchmark():
    encoder = build("simple-conv", 63, 120, embed_dim=1536)
    assert encoder.merge_OE.shape == (270, 2000)
    assert [layer[0].weight.shape for layer in encoder.layers] == [(320, 270, 3)] + [(320, 320, 3)] * 3
    assert [layer[0].dilation for layer in encoder.layers] == [(1,), (2,), (4,), (8,)]
    assert [type(gate) for gate in encoder.gates] == [nn.Identity, nn.Sequential] * 2
    assert (encoder.last[-1].out_channels, encoder.over_time.in_features) == (512, 120)
    assert encoder.head.weight.shape == (1536, 512)


def test_simple_conv_equals_its_definition():
    positions_m = places(3)
    encoder = randomise(build("simple-conv", 3, 30, hidden=16, positions_m=positions_m)).eval()
    eeg_BCT = segments(2, 3, 30)
    place = np.array(positions_m)
    place = (place - place.min(0)) / (place.max(0) - place.min(0))
    features = []
    for p in place:
        phases = [2 * np.pi / 1.4 * (p + 0.2) @ k for k in itertools.product(range(10), repeat=3)]
        features.append([*np.cos(phases), *np.sin(phases)])
    scores_OC = encoder.merge_OE @ torch.tensor(np.array(features), dtype=torch.float32).T
    x = torch.einsum("oc,bct->bot", scores_OC.softmax(1), eeg_BCT)
    x = F.conv1d(x, encoder.first.weight, encoder.first.bias)
    for layer, dilation in enumerate((1, 2, 4, 8)):
        conv, norm, _ = encoder.layers[layer]
        y = F.conv1d(x, conv.weight, conv.bias, padding=dilation, dilation=dilation)
        y = F.gelu(y / math.sqrt(1 + norm.eps) * norm.weight[:, None] + norm.bias[:, None])
        x = y if layer == 0 else x + y
        if layer in (1, 3):
            gate = encoder.gates[layer][0]
            value, opening = F.conv1d(x, gate.weight, gate.bias, padding=1).chunk(2, 1)
            x = value * opening.sigmoid()
    x = encoder.last[2](F.gelu(encoder.last[0](x)))
    expected = encoder.head(x @ encoder.over_time.weight[0] + encoder.over_time.bias)
    scale = expected.abs().max().item()
    assert_same(encoder(eeg_BCT) / scale, expected / scale, atol=1e-4)


def test_simple_convs_weights_belong_to_places():
    positions_m, order = places(4), [2, 0, 3, 1]
    encoder = build("simple-conv", 4, 30, hidden=16, positions_m=positions_m).eval()
    other = build("simple-conv", 4, 30, hidden=16, positions_m=[positions_m[c] for c in order]).eval()
    other.load_state_dict(encoder.state_dict())
    eeg_BCT = segments(2, 4, 30)
    assert_same(other(eeg_BCT[:, order]), encoder(eeg_BCT))
    wider = build("simple-conv", 9, 30, hidden=16, positions_m=places(9, seed=3)).eval()
    wider.load_state_dict(encoder.state_dict())
    assert wider(segments(2, 9, 30)).shape == (2, 12)


def test_simple_conv_leaves_out_what_is_near_a_random_point_in_training():
    encoder = build("simple-conv", 4, 30, hidden=16, dropout_radius=3.0)
    merge_OC = encoder._merge_OC()
    assert not merge_OC.any()
    assert encoder(segments(2, 4, 30)).isfinite().all()
    near = build("simple-conv", 40, 30, hidden=16, dropout_radius=0.5)
    torch.manual_seed(1)
    merge_OC = near._merge_OC()
    torch.manual_seed(1)
    centre = torch.rand(3)
    is_out_C = (near.place_C3 - centre).norm(dim=1) <= 0.5
    assert 0 < is_out_C.sum() < 40
    assert torch.equal(merge_OC.any(0), ~is_out_C)
    assert_same(merge_OC.sum(1), torch.ones(270))
    assert near.eval()._merge_OC().all()


def test_simple_conv_places_a_flat_or_single_electrode_in_the_middle():
    flat = build("simple-conv", 3, 10, hidden=8, positions_m=[(0.0, 0.0, 0.1), (0.1, 0.0, 0.1), (0.2, 0.0, 0.1)])
    assert_same(flat.place_C3, torch.tensor([[0, 0.5, 0.5], [0.5, 0.5, 0.5], [1, 0.5, 0.5]]))


@pytest.mark.parametrize(
    ("positions_m", "message"),
    [
        ((), "position of each of the 4 channels and the data set has none; ingest it with 10-05 channel names"),
        (places(3), "each of the 4 channels and the data set has positions of 3"),
        ([*places(3), (0.0, math.nan, 0.0)], "needs finite positions"),
    ],
)
def test_simple_conv_refuses_to_do_without_positions(positions_m, message):
    with pytest.raises(InputError, match=message):
        build("simple-conv", 4, 30, positions_m=positions_m)


def test_a_subject_without_a_row_gets_the_mean_of_all_rows():
    table_S = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    assert rows_of(table_S, torch.tensor([1, -1, 0])).tolist() == [[3, 6], [2, 4], [1, 2]]
    assert rows_of(table_S, None).tolist() == [[2, 4]]


def test_a_layer_per_subject_starts_as_the_shared_encoder_and_maps_each_subjects_channels():
    shared = build("tsconv", 4, 80, filters=5).eval()
    own = build("tsconv", 4, 80, filters=5, subjects="layer", n_subjects=3).eval()
    eeg_BCT, subject_B = segments(3, 4, 80), torch.tensor([2, 0, -1])
    assert_same(own(eeg_BCT, subject_B), shared(eeg_BCT))
    with torch.no_grad():
        own.maps_SCC.copy_(segments(3, 4, 4, seed=4))
    mean_CC = own.maps_SCC.mean(0)
    mapped_BCT = torch.stack([own.maps_SCC[2] @ eeg_BCT[0], own.maps_SCC[0] @ eeg_BCT[1], mean_CC @ eeg_BCT[2]])
    assert_same(own(eeg_BCT, subject_B), shared(mapped_BCT))
    assert_same(own(eeg_BCT), shared(mean_CC @ eeg_BCT))


def test_a_token_per_subject_reaches_the_embedding_of_that_subject_alone():
    encoder = build("atm-s", 4, 80, filters=5, subjects="token", n_subjects=3).eval()
    eeg_BCT, subject_B = segments(3, 4, 80), torch.tensor([2, 0, 1])
    before = encoder(eeg_BCT, subject_B)
    with torch.no_grad():
        encoder.before.tokens_S1T[2] += 5
    change_B = (encoder(eeg_BCT, subject_B) - before).abs().amax(1)
    assert change_B[0] > 1e-3
    assert change_B[1:].max() < 1e-6


def test_a_setting_for_subjects_needs_subjects():
    with pytest.raises(InputError, match=r"eeg\.subjects is 'layer', but whose segments these are is not known"):
        build("tsconv", 4, 80, subjects="layer")


def test_braindecode_says_how_to_install_it_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "braindecode", None)
    monkeypatch.setitem(sys.modules, "braindecode.models", None)
    with pytest.raises(InputError, match=r"'braindecode-eegnet' comes from braindecode.*pip install 'braindecode>=1.8"):
        build("braindecode-eegnet", 4, 88)


@pytest.mark.parametrize("name", ["braindecode-shallow", "braindecode-deep4"])
def test_braindecodes_spatial_networks_refuse_a_single_channel(name):
    with pytest.raises(InputError, match=rf"'{name}' needs at least 2 channels.*choose 'braindecode-eegnet'"):
        build(name, 1, 500)


@pytest.mark.parametrize(
    ("name", "n_chans", "n_times", "total"),
    [
        ("braindecode-eegnet", 63, 250, 16_576),
        ("braindecode-shallow", 63, 250, 158_368),
        ("braindecode-deep4", 128, 441, 275 + 80_000 + 12_500 + 50_000 + 200_000 + 750 + 25_728),
        ("braindecode-conformer", 63, 250, 347_264),
    ],
)
def test_braindecodes_networks_have_the_sizes_of_version_1_8(name, n_chans, n_times, total):
    pytest.importorskip("braindecode", exc_type=ImportError)
    assert n_parameters(build(name, n_chans, n_times, embed_dim=128)) == total


def test_deep4_says_when_its_kernels_were_shortened(caplog):
    pytest.importorskip("braindecode", exc_type=ImportError)
    build("braindecode-deep4", 4, 500)
    assert not caplog.records
    build("braindecode-deep4", 4, 250)
    assert "braindecode-deep4: n_times (250) is smaller" in caplog.text
