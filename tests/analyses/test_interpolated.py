"""eegvision.analyses.interpolated: what few exact values make of maps whose every pixel is known."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from eegvision.analyses import gaussian
from eegvision.analyses import interpolated as module
from eegvision.analyses.gaussian import Posterior
from eegvision.analyses.interpolated import interpolated
from eegvision.vocab import InputError

N_PX = 112


class Known:
    """Maps that are known, and which of their places were asked for."""

    def __init__(self, map_NSHW: np.ndarray, scales_px: tuple[int, ...]) -> None:
        self.map_NSHW, self.scales_px = map_NSHW, scales_px
        self.asked: list[tuple[int, int, int]] = []

    def drop(self, place_P2: np.ndarray, scale_px: int) -> np.ndarray:
        assert len(place_P2) > 0
        self.asked += [(scale_px, int(row), int(column)) for row, column in place_P2]
        return self.map_NSHW[:, self.scales_px.index(scale_px), place_P2[:, 0], place_P2[:, 1]]

    def found(self, fidelity: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the maps, and the correlation of their sums with the known ones."""
        shape = self.map_NSHW.shape[2:]
        found_NSHW = interpolated(
            self.drop, (shape[0], shape[1]), self.scales_px, fidelity, lambda maps: np.ones(maps.shape[:2])
        )
        assert len(set(self.asked)) == len(self.asked)
        sums = [maps.sum(axis=1, dtype=np.float64).reshape(len(maps), -1) for maps in (found_NSHW, self.map_NSHW)]
        return found_NSHW, np.array([np.corrcoef(left, right)[0, 1] for left, right in zip(*sums, strict=True)])


def blobs(*, width_px: float, seed: int = 0, n_px: int = N_PX) -> np.ndarray:
    """Smooth noise of standard deviation 1."""
    smooth_HW = gaussian_filter(np.random.default_rng(seed).normal(size=(n_px, n_px)), width_px)
    return smooth_HW / smooth_HW.std()


def an_object(sharpness_px: float = 8) -> np.ndarray:
    """A bump of standard deviation about 0.3 left of the middle, 0 elsewhere."""
    rows, columns = np.indices((N_PX, N_PX))
    return np.exp(-((rows - 60) ** 2 + (columns - 40) ** 2) / (2 * (2 * sharpness_px) ** 2))


@pytest.mark.parametrize("fidelity", [0.9, 0.98, 0.99, 0.999])
@pytest.mark.parametrize("width_px", [6, 12])
def test_the_fidelity_that_is_asked_for_is_reached_by_few_places(fidelity, width_px):
    map_NSHW = np.stack([[blobs(width_px=width_px, seed=n), 0.3 * blobs(width_px=4, seed=n + 9)] for n in range(2)])
    known = Known(map_NSHW, (3, 9))
    found_NSHW, r_N = known.found(fidelity)
    assert (r_N >= fidelity - 0.002).all()
    assert len(known.asked) < 0.5 * found_NSHW[0].size


def test_two_rounds_in_a_row_find_that_it_is_enough(monkeypatch):
    errors: list[float] = []

    class Design(module._Design):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            errors.append(self.error)

    monkeypatch.setattr(module, "_Design", Design)
    Known(np.stack([[blobs(width_px=5), 0.3 * blobs(width_px=4, seed=9)]]), (3, 9)).found(0.98)
    is_enough = [error <= 1 - 0.98**2 for error in errors]
    assert is_enough[-2:] == [True, True]
    assert [True, True] not in [is_enough[k : k + 2] for k in range(len(is_enough) - 2)]


def test_places_are_where_the_map_is_rough():
    rough_HW = an_object() * (1 + 0.5 * blobs(width_px=2.5))
    known = Known(rough_HW[None, None], (3,))
    _, r_N = known.found(0.995)
    assert r_N[0] > 0.99
    place_P2 = np.array(known.asked)[:, 1:]
    is_near_P = np.hypot(place_P2[:, 0] - 60, place_P2[:, 1] - 40) < 40
    near_share = np.pi * 40**2 / N_PX**2
    assert is_near_P.mean() > 1.4 * near_share


def test_scales_that_add_nothing_get_the_first_grid_only():
    known = Known(np.stack([an_object(), 1e-3 * blobs(width_px=3)])[None], (65, 3))
    known.found(0.99)
    assert sum(scale_px == 3 for scale_px, _, _ in known.asked) == 49
    assert sum(scale_px == 65 for scale_px, _, _ in known.asked) > 49


@pytest.mark.parametrize("is_smooth", [False, True])
def test_stripes_of_strides_are_not_evaluated_pixel_by_pixel(is_smooth, monkeypatch):
    rows, columns = np.indices((N_PX, N_PX))
    stripes_HW = 0.0 if is_smooth else 0.15 * (rows % 2) - 0.1 * (columns % 4 == 1)
    map_11HW = (an_object() * (1 + stripes_HW))[None, None]
    known = Known(map_11HW, (3,))
    found_NSHW, r_N = known.found(0.999)
    monkeypatch.setattr(gaussian, "_PERIOD_PX", 2 * N_PX)  # none
    monkeypatch.setattr(gaussian, "_EDGE_PX", ())
    plain = Known(map_11HW, (3,))
    plain_NSHW, plain_r_N = plain.found(0.999)
    if is_smooth:
        assert len(known.asked) < 1.1 * len(plain.asked)
        np.testing.assert_allclose(found_NSHW, plain_NSHW, atol=0.02)
        return
    assert r_N[0] > 0.999
    assert plain_r_N[0] < r_N[0]
    assert len(known.asked) < 0.02 * N_PX**2
    assert len(plain.asked) > 2 * len(known.asked)
    as_good = Known(map_11HW, (3,))
    _, as_good_r_N = as_good.found(0.9999)
    assert as_good_r_N[0] == pytest.approx(r_N[0], abs=5e-5)
    assert len(as_good.asked) > 3 * len(known.asked)


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (3, 3), (5, 5), (8, 8), (9, 9), (13, 13), (16, 20)])
def test_every_pixel_in_the_end(shape):
    map_NSHW = np.random.default_rng(0).normal(size=(2, 2, *shape))
    known = Known(map_NSHW, (1, 3))
    found_NSHW, _ = (
        known.found(1 - 1e-12)
        if min(shape) > 1
        else (interpolated(known.drop, shape, (1, 3), 0.99, lambda maps: np.ones(maps.shape[:2])), None)
    )
    np.testing.assert_allclose(found_NSHW, map_NSHW, atol=1e-5)
    assert len(known.asked) == 2 * shape[0] * shape[1]


def test_a_flat_map_needs_no_more_than_the_first_grids():
    known = Known(np.full((1, 2, 40, 40), 0.5), (3, 5))
    found_NSHW = interpolated(known.drop, (40, 40), (3, 5), 0.99, lambda maps: np.ones(maps.shape[:2]))
    np.testing.assert_allclose(found_NSHW, 0.5, atol=1e-6)
    assert len(known.asked) == 2 * 49


def test_what_is_given_for_one_segment_does_not_depend_on_a_copy_of_it():
    map_HW = an_object() * (1 + 0.3 * blobs(width_px=3))
    once, twice = Known(map_HW[None, None], (3,)), Known(np.stack([map_HW, map_HW])[:, None], (3,))
    one_NSHW, _ = once.found(0.99)
    two_NSHW, _ = twice.found(0.99)
    assert once.asked == twice.asked
    np.testing.assert_allclose(two_NSHW, np.repeat(one_NSHW, 2, axis=0), atol=1e-5)


def test_what_does_not_fit_into_memory_is_not_asked_for(monkeypatch):
    monkeypatch.setattr(module, "_MOST_PLACES", 300)
    known = Known(blobs(width_px=1)[None, None], (3,))
    _, r_N = known.found(0.99)
    assert len(known.asked) == 300
    assert 0 < r_N[0] < 0.9


def test_pixels_that_are_checked_say_how_far_off_the_error_of_the_sum_is(monkeypatch):
    for name, value in {"_CHECKED_FROM": 0, "_LEAST_CHECKED": 12, "_PRIOR_CHECKS": 30, "_CHECKED_ROUNDS": 2}.items():
        monkeypatch.setattr(module, name, value)
    map_NSHW = np.stack([np.stack([blobs(width_px=2, seed=n)] * 2) for n in range(3)])
    known, rng = module._Known(Known(map_NSHW, (3, 5)).drop, (N_PX, N_PX), (3, 5)), np.random.default_rng(0)
    for row in (1, 3, 7):
        pixel_Q2 = rng.integers(0, N_PX, (40, 2))
        is_new_Q = ~known.is_known_SHW[:, *pixel_Q2.T].any(axis=0)
        known.add(np.array([[0, row, row], [1, row, 9]]), pixel_Q2)
        np.testing.assert_array_equal(known.at_P3[-12:, 1:], pixel_Q2[is_new_Q][:12])
        checked_P = known.check_P[known.round_P == known.n_rounds]
        np.testing.assert_array_equal(np.bincount(checked_P[checked_P >= 0]), [2] * 12, "both sizes of each pixel")
    posterior = known.posterior(np.ones((2, N_PX, N_PX)), rng, torch.device("cpu"))
    weight_NS = torch.tensor([[1.0, 0.5], [2.0, 1.0], [0.3, 3.0]], dtype=torch.float64)

    covariance, value_PN = posterior.covariance, posterior.lower_PP @ posterior.white_PN
    ratios = []
    for n_round in (2, 3):  # the last of three
        n_before = np.count_nonzero(known.round_P < n_round)
        before = Posterior(covariance, posterior.at_P3[:n_before], value_PN[:n_before])
        found_N, expected_N = np.zeros(3), np.zeros(3)
        for check in range(12):
            index = np.flatnonzero((known.round_P == n_round) & (known.check_P == check))
            at_S3 = posterior.at_P3[index]
            told_PS = before.told_by(at_S3)
            left_SS = covariance.between(at_S3, at_S3) - told_PS.T @ told_PS
            missed_NS = value_PN[index].T - before.mean_at(at_S3)
            found_N += (weight_NS * missed_NS).sum(dim=1).square().numpy()
            expected_N += torch.einsum("ns,st,nt->n", weight_NS, left_SS, weight_NS).numpy()
        ratios.append((found_N / expected_N).mean())
    wanted = (30 + 12 * sum(ratios)) / 54
    assert module._off_together(posterior, known, weight_NS) == pytest.approx(max(1, wanted), rel=1e-3)
    posterior.white_PN.mul_(3)  # values that are further off than the covariance says
    wanted = (30 + 9 * 12 * sum(ratios)) / 54
    assert wanted > 1.5
    assert module._off_together(posterior, known, weight_NS) == pytest.approx(wanted, rel=1e-3)


def test_a_score_that_is_no_number_is_refused_with_the_place():
    map_NSHW = np.ones((1, 2, 40, 40))
    map_NSHW[0, 1, 39, 0] = np.nan
    with pytest.raises(InputError, match="square of 5 px at row 39, column 0 is not finite; the weights"):
        Known(map_NSHW, (3, 5)).found(0.99)
