"""eegvision.analyses.suppression: exact against Eq. 3-4 written as a loop, fast against exact, refusals."""

import dataclasses
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eegvision.analyses import suppression
from eegvision.analyses.incremental import CleanPass, PatchedTensor, Rect
from eegvision.analyses.interpolated import Fast
from eegvision.analyses.suppression import Arithmetic, ClassLikelihood, Fill, Saliency, saliency_map
from eegvision.config import RunConfig
from eegvision.encoders.frozen import blurred
from eegvision.encoders.image import IMAGENET_MEAN, IMAGENET_STD
from eegvision.encoders.joint import JointModel, build_joint
from eegvision.evaluate.probes import fit_probe
from eegvision.vocab import InputError

N_CHANS, N_TIMES, N_EMBED = 4, 40, 8


@cache
def made(encoder: str, size_px: int, loss: str = "triplet", n_features: int = 0, **image: object) -> JointModel:
    """Return a random model whose batch statistics are those of noise, so that signals keep their size."""
    torch.manual_seed(0)
    settings = {"image.encoder": encoder, "image.size_px": size_px, "image.embed_dim": N_EMBED, "loss.name": loss}
    settings |= {"eeg.embed_dim": N_EMBED} | {f"image.{name}": value for name, value in image.items()}
    config = RunConfig().with_overrides(settings)
    model = build_joint(config, N_CHANS, N_TIMES, 100.0, n_features=n_features, n_classes=3)
    if not n_features:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        with torch.no_grad():
            model.train().encode_image(torch.randn(8, 3, size_px, size_px, generator=seeded(1)))
    return model.eval()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(size_px: int, seed: int = 2) -> Tensor:
    """A bright square on noise."""
    image_3HW = 0.5 * torch.randn(3, size_px, size_px, generator=seeded(seed))
    image_3HW[:, size_px // 4 : size_px // 2, size_px // 2 :] += 2
    return image_3HW


def segments(n: int) -> Tensor:
    return torch.randn(n, N_CHANS, N_TIMES, generator=seeded(3))


@torch.no_grad()
def drops_by_definition(model, eeg_NCT, image_3HW, scale_px, places, fill_3HW) -> np.ndarray:
    """Eq. 3, one picture after the other; [N, P]."""
    n, (height, width) = len(eeg_NCT), image_3HW.shape[1:]

    def compatibility(picture_3HW):
        return model.compatibility(eeg_NCT, picture_3HW[None].expand(n, -1, -1, -1))

    whole_N, drops = compatibility(image_3HW), []
    for row, column in places:
        suppressed_3HW = image_3HW.clone()
        for y in range(row - scale_px // 2, row + scale_px // 2 + 1):
            for x in range(column - scale_px // 2, column + scale_px // 2 + 1):
                if 0 <= y < height and 0 <= x < width:
                    suppressed_3HW[:, y, x] = fill_3HW[:, y, x]
        drops.append(whole_N - compatibility(suppressed_3HW))
    return torch.stack(drops, dim=1).numpy()


def every_place(size_px: int) -> list[tuple[int, int]]:
    return [(row, column) for row in range(size_px) for column in range(size_px)]


def corners_and_more(size_px: int) -> list[tuple[int, int]]:
    end = size_px - 1
    return [(0, 0), (0, end), (end, 0), (end, end), (1, size_px // 2), (size_px // 3, 2 * size_px // 3), (end - 2, 7)]


@pytest.mark.parametrize(("size_px", "loss"), [(16, "triplet"), (17, "info_nce")])
def test_exact_is_the_definition_at_every_pixel_with_embeddings_of_unit_length_or_not(size_px, loss):
    model, image_3HW, eeg_NCT = made("small", size_px, loss), picture(size_px), segments(2)
    found = saliency_map(model, eeg_NCT, image_3HW, scales_px=(3, 9))
    places, zero = every_place(size_px), torch.zeros_like(image_3HW)
    drops = [drops_by_definition(model, eeg_NCT, image_3HW, scale_px, places, zero) for scale_px in (3, 9)]
    wanted_NSHW = np.stack(drops, axis=1).reshape(2, 2, size_px, size_px)
    total_NHW = wanted_NSHW.sum(axis=1)
    np.testing.assert_allclose(found.drop_NSHW, wanted_NSHW, atol=1e-4 * np.ptp(total_NHW, axis=(1, 2)).min())
    low, high = total_NHW.min(axis=(1, 2), keepdims=True), total_NHW.max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(found.map_NHW, (total_NHW - low) / (high - low), atol=1e-4)
    assert (found.map_NHW.min(), found.map_NHW.max()) == (0, 1)
    assert found.n_evaluations == 2 * size_px**2
    assert found.agreement is None


@pytest.mark.parametrize(
    ("encoder", "size_px"),
    [
        ("alexnet", 72),
        ("resnet18", 65),
        ("resnet18", 64),
        ("densenet161", 48),
        ("inception_v3", 107),
        ("vit_b_16", 32),
        ("convnext_tiny", 33),
    ],
)
def test_every_network_gives_what_it_gives_for_the_suppressed_picture(encoder, size_px):
    model, image_3HW, eeg_NCT = made(encoder, size_px), picture(size_px), segments(2)
    places, zero = corners_and_more(size_px), torch.zeros_like(image_3HW)
    run = suppressed(model, eeg_NCT, image_3HW)
    wanted_SNP = [drops_by_definition(model, eeg_NCT, image_3HW, scale_px, places, zero) for scale_px in (5, 33)]
    with torch.no_grad():
        found_SNP = [run.drop(np.array(places), scale_px) for scale_px in (5, 33)]
    np.testing.assert_allclose(found_SNP, wanted_SNP, atol=1e-4 * np.ptp(sum(wanted_SNP), axis=1).min(), rtol=0)


@torch.no_grad()
def suppressed(model: JointModel, eeg_NCT: Tensor, image_3HW: Tensor) -> suppression._Suppressed:
    readout = suppression._readout(model, eeg_NCT, torch.device("cpu"))
    encode, layout = suppression._encoder(model, Arithmetic(), torch.device("cpu"))
    return suppression._Suppressed(encode, readout, image_3HW, torch.zeros_like(image_3HW), 9, layout)


@pytest.mark.parametrize(
    "settings", [{}, {"layer": "layer2.1", "pooling": "max"}, {"blur_px": 2.0, "foveal": 0.5}], ids=str
)
def test_a_frozen_backbone_is_looked_through_as_it_is(settings):
    n_features = 128 if "layer" in settings else 512
    model, image_3HW = made("resnet18", 40, n_features=n_features, frozen=True, **settings), picture(40)
    places, eeg_NCT = corners_and_more(40), segments(1)
    wanted_NP = drops_by_definition(model, eeg_NCT, image_3HW, 9, places, torch.zeros_like(image_3HW))
    with torch.no_grad():
        found_NP = suppressed(model, eeg_NCT, image_3HW).drop(np.array(places), 9)
    np.testing.assert_allclose(found_NP, wanted_NP, atol=1e-4 * np.ptp(wanted_NP), rtol=0)


def test_gradients_go_through_a_backbone_that_a_map_was_made_of():
    model = made("small", 16, frozen=True, n_features=1536, weights="none")
    saliency_map(model, segments(1), picture(16), scales_px=[3])
    image_3HW = picture(16).requires_grad_()
    model.encode_image(image_3HW[None]).sum().backward()
    assert image_3HW.grad is not None
    assert image_3HW.grad.abs().max() > 0


def test_only_what_a_square_changes_is_computed_again():
    model, image_3HW = made("small", 64), picture(64)
    seen = []
    assert model.image is not None
    model.image.get_submodule("features.3").register_forward_hook(lambda *call: seen.append(call[-1]))
    with torch.no_grad():
        CleanPass(image_3HW[None]).encode(model.encode_image, torch.zeros(2, 3, 9, 9), Rect(20, 29, 30, 39))
    assert isinstance(seen[0], PatchedTensor)
    assert seen[0].shape == (2, 32, 16, 16)
    assert seen[0].rect == Rect(4, 9, 7, 11)


class Odd(nn.Module):
    """What the networks do not do but others may: in place, attention over places, gates of the whole picture."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, padding="same")
        self.scale = nn.Parameter(torch.randn(1, 6, 1, 1))

    def forward(self, image_B3HW: Tensor) -> Tensor:
        maps = self.first(image_B3HW)
        gated = maps * maps.mean(dim=(2, 3), keepdim=True).sigmoid()
        kept = maps
        maps.relu_()
        maps += 1
        maps *= self.scale
        maps[:, 0] = 0
        maps = self.second(maps) + 2 * kept + gated
        maps = nn.functional.max_pool2d(maps, 3, 2, 1, ceil_mode=True)
        return nn.functional.avg_pool2d(maps, 3, 2, 1, count_include_pad=False).flatten(1)


@pytest.mark.parametrize("n", [1, 3])
@torch.no_grad()
def test_any_network_gives_its_own_result(n):
    torch.manual_seed(1)
    net, image_3HW, rect = Odd(), picture(33), Rect(27, 33, 3, 7)
    run = CleanPass(image_3HW[None])
    for _ in range(2):  # the second pass uses what the first one kept
        window_B3hw = 3 * torch.randn(n, 3, 6, 4)
        whole_B3HW = image_3HW.repeat(n, 1, 1, 1)
        whole_B3HW[rect.cut] = window_B3hw
        torch.testing.assert_close(run.encode(net, window_B3hw, rect), net(whole_B3HW))


@pytest.fixture
def _squares_are_chosen(monkeypatch):
    """Let the fast engines choose squares of networks that are small enough for all of them."""
    monkeypatch.setattr(suppression, "_CHEAP_FLOP", 0)


def same(left: Saliency, right: Saliency) -> None:
    tolerance = 1e-4 * np.ptp(left.drop_NSHW.sum(axis=1))
    np.testing.assert_allclose(left.drop_NSHW, right.drop_NSHW, atol=tolerance, rtol=0)
    np.testing.assert_allclose(left.map_NHW, right.map_NHW, atol=1e-4)
    assert left.n_evaluations == right.n_evaluations


@pytest.mark.usefixtures("_squares_are_chosen")
@pytest.mark.parametrize("engine", ["exact", "fast"])
def test_maps_do_not_depend_on_the_batch_size(engine):
    found = [
        saliency_map(made("small", 18), segments(2), picture(18), scales_px=(3, 7), engine=engine, batch_size=size)
        for size in (1, 7, 1000)
    ]
    for other in found[1:]:
        same(found[0], other)


def test_segments_together_give_what_each_gives_alone_and_embeddings_what_segments_give():
    model, image_3HW, eeg_NCT = made("small", 16), picture(16), segments(3)
    together = saliency_map(model, model.encode_eeg(eeg_NCT).detach(), image_3HW, scales_px=[5])
    alone = saliency_map(model, eeg_NCT[1:2], image_3HW, scales_px=[5])
    np.testing.assert_allclose(together.drop_NSHW[1:2], alone.drop_NSHW, atol=1e-4 * np.ptp(alone.drop_NSHW))
    np.testing.assert_allclose(
        together.score_N[1], model.compatibility(eeg_NCT[1:2], image_3HW[None]).item(), rtol=1e-4
    )
    assert not np.allclose(together.map_NHW[0], together.map_NHW[1], atol=0.05)


def test_fills_replace_what_is_removed():
    model, image_3HW, eeg_NCT = made("small", 24), picture(24), segments(1)
    black_3HW = -(torch.tensor(IMAGENET_MEAN) / torch.tensor(IMAGENET_STD))[:, None, None].expand(3, 24, 24)
    fills: dict[Fill, Tensor] = {"black": black_3HW, "blur": blurred(image_3HW[None], 24 / 22.4, 0.0)[0]}
    for fill, fill_3HW in fills.items():
        found = saliency_map(model, eeg_NCT, image_3HW, scales_px=[7], fill=fill)
        places = corners_and_more(24)
        wanted_NP = drops_by_definition(model, eeg_NCT, image_3HW, 7, places, fill_3HW)
        found_NP = found.drop_NSHW[:, 0, [row for row, _ in places], [column for _, column in places]]
        np.testing.assert_allclose(found_NP, wanted_NP, atol=1e-4 * np.ptp(wanted_NP), rtol=0)


def test_every_scale_counts_alike_if_asked_to():
    model, image_3HW, eeg_NCT = made("small", 16), picture(16), segments(2)
    found = saliency_map(model, eeg_NCT, image_3HW, scales_px=(1, 9), normalise_scales=True)
    low, high = (extreme(found.drop_NSHW, axis=(2, 3), keepdims=True) for extreme in (np.min, np.max))
    total_NHW = ((found.drop_NSHW - low) / (high - low)).sum(axis=1)
    low, high = (extreme(total_NHW, axis=(1, 2), keepdims=True) for extreme in (np.min, np.max))
    np.testing.assert_allclose(found.map_NHW, (total_NHW - low) / (high - low), atol=1e-5)


def test_several_scores_share_the_encoded_pictures():
    model, image_3HW, eeg_NCT = made("small", 18), picture(18), segments(2)
    cat = ClassLikelihood(weight_DK=np.random.default_rng(1).normal(size=(N_EMBED, 3)), bias_K=np.ones(3), label=0)
    owl = dataclasses.replace(cat, label=2)
    together = saliency_map(model, [owl, eeg_NCT, cat], image_3HW, scales_px=(3, 7))
    alone = [saliency_map(model, score, image_3HW, scales_px=(3, 7)) for score in (owl, eeg_NCT, cat)]
    assert together.n_evaluations == alone[0].n_evaluations == 2 * 18**2
    for name in ("drop_NSHW", "map_NHW", "score_N"):
        each = np.concatenate([getattr(found, name) for found in alone])
        np.testing.assert_allclose(getattr(together, name), each, atol=1e-4 * float(np.ptp(each)), err_msg=name)


def test_a_class_is_mapped_by_the_likelihood_its_probe_gives():
    model, image_3HW = made("small", 16), picture(16)
    rng = np.random.default_rng(5)
    train_ND, label_N = rng.normal(2, 3, (60, N_EMBED)), rng.choice(["cat", "dog", "owl"], 60)
    probe = fit_probe(train_ND, label_N, train_ND, label_N)
    found = saliency_map(model, ClassLikelihood.of_probe(probe, "dog"), image_3HW, scales_px=[5])
    assert found.map_NHW.shape == (1, 16, 16)
    square_3HW = image_3HW.clone()
    square_3HW[:, 4:9, 6:11] = 0
    with torch.no_grad():
        embedding_ND = model.encode_image(torch.stack([image_3HW, square_3HW])).numpy()
    likelihood_N = torch.log_softmax(torch.tensor(probe.class_scores(embedding_ND)), dim=1)[:, 1].numpy()
    assert found.score_N[0] == pytest.approx(likelihood_N[0], abs=1e-5)
    wanted = likelihood_N[0] - likelihood_N[1]
    assert found.drop_NSHW[0, 0, 6, 8] == pytest.approx(wanted, abs=1e-4 * float(np.ptp(found.drop_NSHW)))


@pytest.mark.usefixtures("_squares_are_chosen")
@pytest.mark.parametrize("normalise_scales", [False, True])
def test_fast_reports_the_agreement_it_has(normalise_scales):
    model, image_3HW, eeg_NCT = made("small", 64), picture(64), segments(2)
    settings: Any = {"scales_px": (3, 9, 33), "normalise_scales": normalise_scales}
    exact = saliency_map(model, eeg_NCT, image_3HW, **settings)
    fast = saliency_map(model, eeg_NCT, image_3HW, engine=Fast(fidelity=0.8), n_held_out=100, **settings)
    assert fast.n_evaluations < 0.25 * exact.n_evaluations
    assert fast.agreement is not None
    assert fast.agreement.n == 100
    for n in range(2):
        r = np.corrcoef(fast.map_NHW[n].ravel(), exact.map_NHW[n].ravel())[0, 1]
        assert r > 0.75
        # Of sums with the weights that the fast maps have.
        weight_S = suppression._weights(fast.drop_NSHW, normalise_scales)[n]
        fast_P, exact_P = (np.tensordot(weight_S, maps.drop_NSHW[n], axes=1).ravel() for maps in (fast, exact))
        assert fast.agreement.low_N[n] < np.corrcoef(fast_P, exact_P)[0, 1] < fast.agreement.high_N[n]
    if not normalise_scales:
        error_NHW = fast.drop_NSHW.sum(axis=1) - exact.drop_NSHW.sum(axis=1)
        np.testing.assert_allclose(fast.agreement.rmse_N, (error_NHW**2).mean(axis=(1, 2)) ** 0.5, rtol=0.5)
        largest_N = np.abs(error_NHW).max(axis=(1, 2)) / np.ptp(fast.drop_NSHW.sum(axis=1), axis=(1, 2))
        assert (fast.agreement.max_N <= largest_N * 1.0001).all()
        assert (fast.agreement.max_N > 0.1 * largest_N).all()


@pytest.mark.usefixtures("_squares_are_chosen")
def test_the_reported_agreement_is_right_on_average_and_its_interval_holds_the_truth():
    """Of 100 pixels: r of 30 is so skewed, since few pixels carry much of the error, that 12 draws tell no mean."""
    model, image_3HW, eeg_NCT = made("small", 24), picture(24), segments(1)
    exact_HW = saliency_map(model, eeg_NCT, image_3HW, scales_px=[9]).map_NHW[0]
    excess = []
    for seed in range(12):
        fast = saliency_map(
            model, eeg_NCT, image_3HW, scales_px=[9], engine=Fast(fidelity=0.9), n_held_out=100, seed=seed
        )
        assert fast.agreement is not None
        excess.append(fast.agreement.r_N[0] - np.corrcoef(fast.map_NHW[0].ravel(), exact_HW.ravel())[0, 1])
    assert np.std(excess) > 0
    assert abs(np.mean(excess)) < 3 * np.std(excess) / 12**0.5
    found_P, exact_P = fast.map_NHW[0].ravel(), exact_HW.ravel()
    r = np.corrcoef(found_P, exact_P)[0, 1]
    held = []
    for seed in range(100):
        some = np.random.default_rng(seed).choice(len(exact_P), 100, replace=False)
        agreement = suppression._agreement(found_P[None, some], exact_P[None, some], np.ones(1))
        held.append(agreement.low_N[0] < r < agreement.high_N[0])
    assert np.mean(held) >= 0.8


@pytest.mark.usefixtures("_squares_are_chosen")
def test_fast_goes_on_to_every_pixel_where_nothing_less_will_do():
    model, image_3HW, eeg_NCT = made("small", 16), picture(16), segments(1)
    exact = saliency_map(model, eeg_NCT, image_3HW, scales_px=[1, 3])
    fast = saliency_map(model, eeg_NCT, image_3HW, scales_px=[1, 3], engine=Fast(fidelity=1 - 1e-12))
    np.testing.assert_allclose(fast.drop_NSHW, exact.drop_NSHW, atol=1e-4 * np.ptp(exact.drop_NSHW))
    assert fast.agreement is not None
    assert fast.agreement.r_N[0] == pytest.approx(1, abs=1e-6)
    assert fast.n_evaluations == 2 * 16**2 + 2 * 64


@pytest.mark.usefixtures("_squares_are_chosen")
def test_coarse_does_less_than_fast_and_agrees_less():
    """On a map as smooth as those of trained networks: a random one has edges wherever its pools and strides have.

    Held against every pixel: some hundreds cannot tell errors of which one is 0.8 of the other, nor .980 from .982.
    """
    model, image_3HW, eeg_NCT = made("small", 64), picture(64), segments(1)
    exact, fast, coarse = (
        saliency_map(model, eeg_NCT, image_3HW, scales_px=(33, 65), engine=engine)
        for engine in ("exact", "fast", "coarse")
    )
    assert coarse.n_evaluations < fast.n_evaluations
    fast_rmse, coarse_rmse = (
        np.sqrt(((found.drop_NSHW - exact.drop_NSHW).sum(axis=1) ** 2).mean()) for found in (fast, coarse)
    )
    assert coarse_rmse > 1.1 * fast_rmse
    assert np.corrcoef(coarse.map_NHW.ravel(), exact.map_NHW.ravel())[0, 1] > 0.98


def test_fast_does_every_square_of_a_network_so_small_that_choosing_takes_longer():
    model, image_3HW, eeg_NCT = made("small", 16), picture(16), segments(1)
    exact, fast = (saliency_map(model, eeg_NCT, image_3HW, engine=engine) for engine in ("exact", "fast"))
    np.testing.assert_array_equal(fast.drop_NSHW, exact.drop_NSHW)
    assert fast.agreement is not None
    assert fast.agreement.r_N[0] == pytest.approx(1, abs=1e-6)
    with torch.no_grad():
        assert suppression._is_cheap(made("small", 64), picture(64), 6)
        assert not suppression._is_cheap(made("small", 96), picture(96), 6)
        assert not suppression._is_cheap(made("resnet18", 64), picture(64), 6)


@pytest.mark.parametrize(("encoder", "frozen"), [("small", False), ("resnet18", True)])
def test_the_error_of_short_numbers_is_measured_and_reported(encoder, frozen):
    model = made(encoder, 16, frozen=True, n_features=512) if frozen else made(encoder, 16)
    image_3HW, eeg_NCT = picture(16), segments(2)
    exact = saliency_map(model, eeg_NCT, image_3HW, scales_px=(5, 9))
    short = saliency_map(
        model, eeg_NCT, image_3HW, scales_px=(5, 9), arithmetic=Arithmetic(dtype="bfloat16"), n_held_out=16**2
    )
    assert exact.agreement is None
    assert short.agreement is not None
    error_NHW = np.abs(short.drop_NSHW.sum(axis=1) - exact.drop_NSHW.sum(axis=1))
    range_N = np.ptp(short.drop_NSHW.sum(axis=1), axis=(1, 2))
    np.testing.assert_allclose(short.agreement.max_N, error_NHW.max(axis=(1, 2)) / range_N, rtol=1e-2)
    assert (short.agreement.max_N > 1e-4).all()  # they are short indeed
    assert (short.agreement.r_N > 0.98).all()
    np.testing.assert_array_equal(short.score_N, exact.score_N)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_the_order_of_numbers_in_memory_changes_rounding_alone():
    model, image_3HW, eeg_NCT = made("small", 24), picture(24), segments(1)
    found = [
        saliency_map(model, eeg_NCT, image_3HW, scales_px=[5], arithmetic=Arithmetic(channels_last=is_last))
        for is_last in (True, False)
    ]
    same(*found)
    assert found[1].agreement is None


def test_a_score_that_nothing_changes_has_an_empty_map():
    model, image_3HW = made("small", 16), picture(16)
    for engine in ("exact", "coarse"):
        found = saliency_map(model, torch.zeros(1, N_EMBED), image_3HW, scales_px=[3], engine=engine)
        assert not found.map_NHW.any()


def test_bad_input_is_refused_with_a_remedy():
    model, image_3HW, eeg_NCT = made("small", 16), picture(16), segments(1)
    one_class = ClassLikelihood(weight_DK=np.ones((5, 2)), bias_K=np.zeros(2), label=0)
    cases: list[tuple[Any, dict[str, Any], str]] = [
        ((eeg_NCT, picture(18)), {}, "18 x 18 px given, but the model is for 16 x 16"),
        ((eeg_NCT, image_3HW[None]), {}, r"expected one \[3, H, W\]"),
        ((eeg_NCT, image_3HW * torch.nan), {}, "not finite"),
        ((eeg_NCT[0, 0], image_3HW), {}, r"expected segments \[N, C, T\]"),
        ((torch.ones(2, 5), image_3HW), {}, "5 dimensions given, those of the model have 8"),
        ((one_class, image_3HW), {}, "5 dimensions, those of the model have 8"),
        (([], image_3HW), {}, "no score is given; give EEG segments"),
        ((eeg_NCT, image_3HW), {"scales_px": (3, 4)}, "all odd"),
        ((eeg_NCT, image_3HW), {"scales_px": ()}, "at least one"),
        ((eeg_NCT, image_3HW), {"fill": "white"}, "fill is 'white'"),
        ((eeg_NCT, image_3HW), {"engine": "quick"}, "engine is 'quick'"),
        ((eeg_NCT, image_3HW), {"batch_size": 0}, "batch_size is 0"),
        ((eeg_NCT, image_3HW), {"n_held_out": 4}, "n_held_out 4; give at least 1 picture and 8 pixels"),
    ]
    for arguments, settings, message in cases:
        with pytest.raises(InputError, match=message):
            saliency_map(model, *arguments, **settings)
    with pytest.raises(InputError, match="label 2 make no softmax layer"):
        dataclasses.replace(one_class, label=2)
    with pytest.raises(InputError, match="expected a correlation in"):
        Fast(fidelity=1.5)
    wrong: Any = "float16"
    with pytest.raises(InputError, match="dtype is 'float16'; expected 'float32' or 'bfloat16'"):
        Arithmetic(dtype=wrong)
    training = build_joint(model.config, N_CHANS, N_TIMES, 100.0)
    with pytest.raises(InputError, match=r"call model.eval\(\) first"):
        saliency_map(training, eeg_NCT, image_3HW)
