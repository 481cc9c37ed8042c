"""eegvision.analyses.gaussian: means and variances against the textbook's, covariances against what values came of."""

import numpy as np
import pytest
import torch

from eegvision.analyses import gaussian, interpolated
from eegvision.analyses.gaussian import Covariance, Posterior, fitted
from eegvision.analyses.interpolated import _Design, _Known

SHAPE = 14, 17


def every_place(n_scales: int, shape: tuple[int, int] = SHAPE) -> torch.Tensor:
    return torch.as_tensor(np.argwhere(np.ones((n_scales, *shape))))


def some_places(n: int, n_scales: int = 2, seed: int = 0, shape: tuple[int, int] = SHAPE) -> torch.Tensor:
    every_X3 = every_place(n_scales, shape)
    return every_X3[np.random.default_rng(seed).choice(len(every_X3), n, replace=False)]


def strength(n_scales: int = 2, shape: tuple[int, int] = SHAPE) -> torch.Tensor:
    return torch.as_tensor(0.2 + np.random.default_rng(5).random((n_scales, *shape)))


def a_covariance() -> Covariance:
    """As fitted to noise that two scales have in common in part."""
    at_P3 = some_places(120)
    value_PN = torch.as_tensor(np.random.default_rng(1).normal(size=(120, 2))).cumsum(dim=0) / 5
    return fitted(at_P3, value_PN, strength(), (3, 9), np.random.default_rng(2))


def test_mean_and_variance_are_those_of_the_textbook():
    covariance, at_P3, other_A3 = a_covariance(), some_places(50), some_places(30, seed=9)
    value_PN = torch.as_tensor(np.random.default_rng(3).normal(size=(50, 2)))
    posterior = Posterior(covariance, at_P3, value_PN)
    cov_PP = covariance.between(at_P3, at_P3) + covariance.jitter_S[at_P3[:, 0]].diag()
    across_AP = covariance.between(other_A3, at_P3)
    torch.testing.assert_close(posterior.mean_at(other_A3), (across_AP @ cov_PP.inverse() @ value_PN).T)
    told_PA = posterior.told_by(other_A3)
    torch.testing.assert_close(told_PA.T @ told_PA, across_AP @ cov_PP.inverse() @ across_AP.T)
    torch.testing.assert_close(
        posterior.white_PN.square().sum(dim=0), (value_PN * (cov_PP.inverse() @ value_PN)).sum(0)
    )


def test_covariances_are_symmetric_positive_and_the_same_at_a_pixel():
    covariance, at_X3 = a_covariance(), every_place(2)
    cov_XX = covariance.between(at_X3, at_X3)
    torch.testing.assert_close(cov_XX, cov_XX.T)
    assert torch.linalg.eigvalsh(cov_XX).min() > -1e-9 * cov_XX.diagonal().max()
    pixel_Q2 = at_X3[: SHAPE[0] * SHAPE[1], 1:]
    found_QSS = covariance.at_pixels(pixel_Q2)
    wanted_SQSQ = cov_XX.view(2, len(pixel_Q2), 2, len(pixel_Q2))
    torch.testing.assert_close(found_QSS, wanted_SQSQ.diagonal(dim1=1, dim2=3).permute(2, 0, 1))


def test_maps_are_the_mean_at_every_pixel():
    at_P3 = some_places(60)
    posterior = Posterior(a_covariance(), at_P3, torch.as_tensor(np.random.default_rng(3).normal(size=(60, 3))))
    wanted_NSHW = posterior.mean_at(every_place(2)).view(3, 2, *SHAPE)
    torch.testing.assert_close(posterior.maps_NSHW(), wanted_NSHW, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("length_px", [3.0, 6.0])
def test_what_is_left_unknown_is_as_large_as_the_covariance_says(length_px):
    shape, at_P3 = (40, 40), some_places(150, 1, shape=(40, 40))
    distance = torch.arange(40, dtype=torch.float64)
    line = torch.exp(-(((distance[:, None] - distance) / length_px) ** 2) / 2) + 1e-8 * torch.eye(40)
    root = torch.linalg.cholesky(line)
    noise_NHW = torch.as_tensor(np.random.default_rng(4).normal(size=(40, 40, 40)))
    map_NX = (root @ noise_NHW @ root.T).flatten(1)
    every_X3, one_SHW = every_place(1, shape), torch.ones(1, *shape, dtype=torch.float64)
    value_PN = map_NX[:, at_P3[:, 1] * 40 + at_P3[:, 2]].T.contiguous()
    covariance = fitted(at_P3, value_PN, one_SHW, (9,), np.random.default_rng(0))
    posterior = Posterior(covariance, at_P3, value_PN)
    left_X = covariance.at_pixels(every_X3[:, 1:])[:, 0, 0] - posterior.told_by(every_X3).square().sum(dim=0)
    error_NX = posterior.mean_at(every_X3) - map_NX
    expected = float(left_X.mean() * posterior.white_PN.square().mean())
    assert 0.5 < float(error_NX.square().mean()) / expected < 2
    assert float(error_NX.square().mean()) < (0.5 if length_px == 3 else 0.05)


@pytest.mark.parametrize("is_alike", [False, True])
def test_scales_tell_of_each_other_as_far_as_they_are_alike(is_alike):
    rng = np.random.default_rng(6)
    shape, some_P3 = (40, 40), some_places(200, 1, shape=(40, 40))
    maps = [gaussian_noise(rng), gaussian_noise(rng)]
    maps[1] = maps[0] if is_alike else maps[1]
    # Of the second scale only the left half is known.
    left_P3 = some_P3[some_P3[:, 2] < 20] + torch.tensor([1, 0, 0])
    at_P3 = torch.cat([some_P3, left_P3])
    value_PN = torch.stack([maps[scale][row, column] for scale, row, column in at_P3])[:, None]
    covariance = fitted(at_P3, value_PN, torch.ones(2, *shape, dtype=torch.float64), (3, 5), rng)
    right_A3 = some_P3[some_P3[:, 2] >= 25] + torch.tensor([1, 0, 0])
    found_A = Posterior(covariance, at_P3, value_PN).mean_at(right_A3)[0]
    wanted_A = torch.stack([maps[1][row, column] for _, row, column in right_A3])
    error = float((found_A - wanted_A).square().mean() / wanted_A.square().mean())
    assert error < 0.2 if is_alike else 0.6 < error < 1.5


def gaussian_noise(rng: np.random.Generator) -> torch.Tensor:
    smooth = torch.exp(-(((torch.arange(40.0)[:, None] - torch.arange(40.0)) / 4) ** 2) / 2).double()
    return smooth @ torch.as_tensor(rng.normal(size=(40, 40))) @ smooth / 7


def test_chosen_places_leave_what_was_promised_and_less_than_others(monkeypatch):
    monkeypatch.setattr(interpolated, "_N_JUDGED", (800, 800))  # half of the pixels
    shape, rng = (40, 40), np.random.default_rng(7)
    map_SHW = np.stack([gaussian_noise(rng).numpy(), 0.3 * gaussian_noise(rng).numpy()])

    def drop(place_P2: np.ndarray, scale_px: int) -> np.ndarray:
        return map_SHW[None, (3, 5).index(scale_px), place_P2[:, 0], place_P2[:, 1]]

    known = _Known(drop, shape, (3, 5))
    posterior = known.posterior(np.ones((2, *shape)), np.random.default_rng(0), torch.device("cpu"))
    share_NS = np.ones((1, 2))
    design = _Design(posterior, known, share_NS, np.random.default_rng(1))
    chosen_K3 = design.chosen(0.58 * design.error)
    assert len({tuple(at) for at in chosen_K3}) == len(chosen_K3)
    assert not known.is_known_SHW[tuple(chosen_K3.T)].any()

    def left_after(more_K3: np.ndarray) -> float:
        at_P3 = torch.cat([posterior.at_P3, torch.as_tensor(more_K3)])
        lower_PP = torch.linalg.cholesky(
            posterior.covariance.between(at_P3, at_P3) + posterior.covariance.jitter_S[at_P3[:, 0]].diag()
        )
        every_X3 = every_place(2, shape)
        told_PX = torch.linalg.solve_triangular(lower_PP, posterior.covariance.between(at_P3, every_X3), upper=False)
        told_PX = told_PX.view(-1, 2, 1600).sum(dim=1)
        return float(
            (posterior.covariance.at_pixels(every_X3[:1600, 1:]).sum(dim=(1, 2)) - told_PX.square().sum(0)).mean()
        )

    before, after = left_after(chosen_K3[:0]), left_after(chosen_K3)
    assert after / before == pytest.approx(0.58, abs=0.06)
    others = [left_after(some_places(len(chosen_K3), 2, seed, shape).numpy()) for seed in range(3)]
    assert after < 0.8 * min(others)


def test_stripes_are_a_kernel_of_their_own():
    first_JSSL, second_JSSL, is_local_J, is_coarse_J = gaussian._kernels(33, (3, 11), torch.device("cpu"))
    assert first_JSSL.shape == second_JSSL.shape == (len(is_local_J), 2, 2, 33)
    first_JL = first_JSSL[:, 1, 1]
    assert not (is_coarse_J & is_local_J & (first_JL[:, 1] < 0.5)).any()
    periodic_J = (first_JL[:, 4] > 0.5) & (first_JL[:, 1:4] == 0).all(dim=1)
    assert int(periodic_J.sum()) == 4


def test_sizes_are_alike_where_their_edges_are():
    first_JSSL, *_ = gaussian._kernels(33, (3, 11), torch.device("cpu"))
    torch.testing.assert_close(first_JSSL, first_JSSL.transpose(1, 2))
    torch.testing.assert_close(first_JSSL[:, 0, 0], first_JSSL[:, 1, 1])
    own_JL, across_JL = first_JSSL[:, 0, 0], first_JSSL[:, 0, 1]
    is_short_J = own_JL[:, 4] < 0.3 * own_JL[:, 0]
    assert is_short_J.sum() >= 5
    assert (across_JL[is_short_J].argmax(dim=1) == 4).all(), "edges of 3 and 11 px are 4 px apart"
    torch.testing.assert_close(across_JL[:, 4], (own_JL[:, 0] + own_JL[:, 8]) / 2)


def test_pixels_known_at_both_sizes_decide_first_how_alike_these_are(monkeypatch):
    monkeypatch.setattr(gaussian, "_N_PAIRED", 3)
    at_P3 = np.array([[0, 1, 1], [0, 2, 5], [0, 7, 7], [0, 5, 2], [1, 9, 9], [1, 7, 7], [1, 5, 2], [1, 5, 3]])
    found = gaussian._paired(at_P3, np.array([0, 1, 3, 2]), np.array([4, 7, 5, 6]))
    assert found.tolist() == [3, 2, 0, 5, 6, 4]


def test_the_edges_of_large_squares_tell_where_those_of_small_ones_are_rough():
    # What a network adds up of the pixels of a square: 5 px and 13 px, whose edges are 4 px apart.
    rng, n_px = np.random.default_rng(8), 56
    pixel_HW = rng.normal(size=(n_px + 12, n_px + 12))
    sums_HW = np.pad(pixel_HW.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))

    def of_squares(side: int) -> np.ndarray:
        box_HW = sums_HW[side:, side:] - sums_HW[side:, :-side] - sums_HW[:-side, side:] + sums_HW[:-side, :-side]
        cut = (len(box_HW) - n_px) // 2
        return box_HW[cut : cut + n_px, cut : cut + n_px] / side

    maps = [torch.as_tensor(of_squares(side)) for side in (5, 13)]
    at_P3 = some_places(900, 2, shape=(n_px, n_px))
    value_PN = torch.stack([maps[scale][row, column] for scale, row, column in at_P3])[:, None]
    one_SHW = torch.ones(2, n_px, n_px, dtype=torch.float64)
    errors = []
    for scales_px in ((5, 13), (5, 5)):  # as they are, and as if edges were at the same places
        covariance = fitted(at_P3, value_PN, one_SHW, scales_px, np.random.default_rng(0))
        found_NSHW = Posterior(covariance, at_P3, value_PN).maps_NSHW()
        errors.append(float((found_NSHW[0] - torch.stack(maps)).square().mean()))
    assert errors[0] < 0.95 * errors[1]
