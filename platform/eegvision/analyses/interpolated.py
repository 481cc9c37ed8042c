"""Saliency maps from few exact values: a Gaussian process over all sizes of square, which says where to look next.

Axes: N EEG segments, S scales, H height, W width, R rows and C columns of a sample; P places that are known, each a
(scale, row, column); Q pixels at which the error is judged, M places that might be evaluated, K of them that will.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.interpolate import make_interp_spline
from scipy.ndimage import gaussian_filter
from torch import Tensor

from eegvision.analyses.gaussian import TINY, Covariance, Posterior, fitted
from eegvision.vocab import InputError

Drop = Callable[[np.ndarray, int], np.ndarray]
"""From places [P, 2] (row, column) and the side of the square to S_σ [N, P]."""

# Every scale begins with a grid, 45 px apart in a picture of 224, and some places near those of the grid, without which
# nothing would tell how rough maps are.
_FIRST_LINES = 6
_N_NEAR, _NEAR_PX = 13, 3.0

# Maps are rough where they are strong, and around: here, or at another size.
_BLURS = ((6.0, 0.7), (24.0, 0.3))  # px and share of each
_POWER = 0.7
_SHARED = 0.5
_LEAST_STRENGTH = 0.03

# What a covariance leaves open is more than it says where few places decide on it: up to twice as much for 400, hardly
# more for 2,000 (trained ResNet-18, AlexNet, DenseNet-161).
_CAUTION_PLACES = 200
_PRIOR_PLACES = 10  # count as predicted with the error expected, beside those of the last round

# From so many places on a round also does every size at some pixels, which tell what is wrong with the sum of maps: a
# share of what it adds, but at least so many pixels. Those of the last rounds count, and others as expected.
_CHECKED_FROM, _CHECKED_SHARE, _LEAST_CHECKED, _CHECKED_ROUNDS, _PRIOR_CHECKS = 500, 0.1, 6, 2, 30

_SAMPLE_LINES = 24  # rows and columns at which maps are looked at before they are final
# At least and at most; and judged over places known, candidates over places wanted.
_N_JUDGED, _JUDGED_EACH = (200, 500), 0.5
_N_CANDIDATES, _CANDIDATES_EACH = (400, 1200), 4
_LEAST_OF_SCALE = 0.08  # of the candidates
_ANYWHERE = 0.3  # of pixels judged and of candidates; the others where maps are strong

# What a round adds: at least, at most, and over the places that are known.
_ADDED, _LEAST_ADDED, _MOST_ADDED = (32, 49), 0.1, 0.6
_WHOLE_SHARE = 0.6  # a scale of which so much is known is done at every pixel, since neighbours cost less
_MOST_PLACES = 10_000  # their covariance takes 0.8 GB, twice


@dataclass(frozen=True, kw_only=True)
class Fast:
    """How far the fast engine goes.

    Attributes:
        fidelity: correlation of the map with the exact one at which places are enough by their own estimate, in
            (0, 1). What was reached is in `Saliency.agreement`.
    """

    fidelity: float = 0.99

    def __post_init__(self) -> None:
        if not 0 < self.fidelity < 1:
            raise InputError(f"fidelity is {self.fidelity}; expected a correlation in (0, 1), such as 0.99")


@torch.no_grad()
def interpolated(
    drop: Drop,
    shape: tuple[int, int],
    scales_px: Sequence[int],
    fidelity: float,
    weights: Callable[[np.ndarray], np.ndarray],
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """Return S_σ at every pixel, the mean of a Gaussian process given the values of `drop` at some.

        1 - r² = mean_p Var(Σ_σ w_σ S_σ(p) | values) / var_p Σ_σ w_σ S_σ(p)     enough in all segments

    Its covariance is the one under which the values are most likely (`gaussian.fitted`). Places are chosen one by one,
    each where a value takes most from the error of the sum of maps, so that all sizes compete, until half of it is
    left; then they are evaluated, the covariance is fitted anew, and its errors are corrected by how far these values
    were from what was predicted, those of single maps and those of their sum. Two rounds in a row have to find that it
    is enough; at about 10,000 places it ends in any case.

    Args:
        drop: exact values.
        shape: H and W.
        fidelity: r that is to be reached.
        weights: from maps [N, S, R, C] to the weight of each in the sum, [N, S].
        device: where matrices are computed, in float64; on the CPU if it has none, as Apple's GPUs.
    Returns:
        float32 [N, S, H, W].
    Raises:
        InputError: a value is not finite.
    """
    device = torch.device(device if torch.device(device).type == "cuda" else "cpu")
    known, rng = _Known(drop, shape, tuple(scales_px)), np.random.default_rng(0)
    allowed, was_enough = 1 - fidelity**2, False
    strength_SHW = np.ones((len(scales_px), *shape))
    while known.at_P3.size:
        posterior = known.posterior(strength_SHW, rng, device)
        drop_NSRC = known.sample_NSRC(posterior)
        strength_SHW = _strength(drop_NSRC, known)
        if not known.n_rounds:
            known.add(_near_the_known(known, strength_SHW, rng), np.zeros((0, 2), dtype=int))
            continue
        design = _Design(posterior, known, _shares(drop_NSRC, weights), rng)
        is_enough = design.error <= allowed
        if (is_enough and (was_enough or design.error == 0)) or len(known.at_P3) >= _MOST_PLACES:
            return known.maps_NSHW(posterior).astype(np.float32)
        was_enough = is_enough
        known.add(design.chosen(max(allowed, design.error / 2)), design.judged_Q2)
    return known.exact_NSHW.astype(np.float32)


class _Known:
    """The exact values so far.

    Attributes:
        n_rounds: how often places were added.
        exact_NSHW: S_σ where it is known, `is_known_SHW`.
        sample: rows and columns at which maps are looked at before they are final.
    """

    def __init__(self, drop: Drop, shape: tuple[int, int], scales_px: tuple[int, ...]) -> None:
        self._drop, self.shape, self.scales_px = drop, shape, scales_px
        self.n_rounds = 0
        self._place_P5 = np.zeros((0, 5), dtype=int)
        self.is_known_SHW = np.zeros((len(scales_px), *shape), dtype=bool)
        self.sample, self._first = ([_lines(n, most) for n in shape] for most in (_SAMPLE_LINES, _FIRST_LINES))
        grid_P2 = np.stack(np.meshgrid(*self._first, indexing="ij"), axis=-1).reshape(-1, 2)
        for scale in range(len(scales_px)):
            self._evaluate(scale, grid_P2)

    @property
    def at_P3(self) -> np.ndarray:
        """Scale, row and column of places in maps that are not whole, in the order of evaluation."""
        return self._place_P5[:, :3]

    @property
    def round_P(self) -> np.ndarray:
        """When each was evaluated."""
        return self._place_P5[:, 3]

    @property
    def check_P(self) -> np.ndarray:
        """Number of the pixel of which all sizes were evaluated in that round; -1 for places that were chosen."""
        return self._place_P5[:, 4]

    def add(self, at_K3: np.ndarray, pixel_Q2: np.ndarray) -> None:
        """Evaluate S_σ there, everywhere where little is missing, and at some pixels of which nothing is known."""
        self.n_rounds += 1
        for scale in np.unique(at_K3[:, 0]):
            self._evaluate(scale, at_K3[at_K3[:, 0] == scale, 1:])
        if len(self.at_P3) < _CHECKED_FROM:
            return
        (open_O,) = np.nonzero(~self.is_known_SHW.all(axis=(1, 2)))
        new_Q2 = pixel_Q2[~self.is_known_SHW[open_O[:, None], *pixel_Q2.T].any(axis=0)]
        n_checked = max(_LEAST_CHECKED, round(_CHECKED_SHARE * len(at_K3) / len(open_O)))
        for scale in open_O.tolist() if len(new_Q2) else ():
            self._evaluate(scale, new_Q2[:n_checked], is_check=True)

    def posterior(self, strength_SHW: np.ndarray, rng: np.random.Generator, device: torch.device) -> Posterior:
        """Return the process given the values less the mean of the first grid."""
        at_P3 = torch.as_tensor(self.at_P3, device=device)
        value_NP = self.exact_NSHW[(slice(None), *self.at_P3.T)] - self._mean_NS()[:, self.at_P3[:, 0]]
        value_PN = torch.as_tensor(value_NP.T, device=device)
        covariance = fitted(at_P3, value_PN, torch.as_tensor(strength_SHW, device=device), self.scales_px, rng)
        return Posterior(covariance, at_P3, value_PN)

    def sample_NSRC(self, posterior: Posterior) -> np.ndarray:
        """Return maps at some rows and columns."""
        every = np.arange(len(self.scales_px))
        at_SRC3 = np.stack(np.meshgrid(every, *self.sample, indexing="ij"), axis=-1)
        mean_NX = posterior.mean_at(torch.as_tensor(at_SRC3.reshape(-1, 3), device=posterior.at_P3.device))
        return self._with_exact(mean_NX.cpu().numpy().reshape(-1, *at_SRC3.shape[:3]), np.ix_(*self.sample))

    def maps_NSHW(self, posterior: Posterior) -> np.ndarray:
        """Return maps at every pixel."""
        return self._with_exact(posterior.maps_NSHW().cpu().numpy(), (slice(None), slice(None)))

    def _with_exact(self, mean_NSRC: np.ndarray, cut: tuple[Any, ...]) -> np.ndarray:
        exact_NSRC, is_known_SRC = self.exact_NSHW[:, :, *cut], self.is_known_SHW[:, *cut]
        return np.where(is_known_SRC, exact_NSRC, mean_NSRC + self._mean_NS()[:, :, None, None])

    def _mean_NS(self) -> np.ndarray:
        return self.exact_NSHW[:, :, *np.ix_(*self._first)].mean(axis=(2, 3))

    def _evaluate(self, scale: int, place_P2: np.ndarray, is_check: bool = False) -> None:
        is_known_HW = self.is_known_SHW[scale]
        if is_known_HW.sum() + len(place_P2) > _WHOLE_SHARE * is_known_HW.size:
            place_P2 = np.argwhere(~is_known_HW)
        value_NP = self._drop(place_P2, self.scales_px[scale])
        if not np.isfinite(value_NP).all():
            row, column = place_P2[np.argwhere(~np.isfinite(value_NP))[0, 1]]
            raise InputError(
                f"the score without the square of {self.scales_px[scale]} px at row {row}, column {column} is not "
                "finite; the weights of the model are broken, or overflow in this arithmetic"
            )
        if not self.is_known_SHW.any():
            self.exact_NSHW = np.zeros((len(value_NP), *self.is_known_SHW.shape))
        is_known_HW[tuple(place_P2.T)] = True
        self.exact_NSHW[(slice(None), scale, *place_P2.T)] = value_NP
        n = len(place_P2)
        check_P = np.arange(n) if is_check else np.full(n, -1)
        added_P5 = np.column_stack([np.full(n, scale), place_P2, np.full(n, self.n_rounds), check_P])
        self._place_P5 = np.concatenate([self._place_P5, added_P5])
        if is_known_HW.all():
            self._place_P5 = self._place_P5[self._place_P5[:, 0] != scale]


class _Design:
    """What is left unknown of the sum of maps, and which places would tell most of it.

    Attributes:
        error: expected mean square error of the sum over its variance, of the segment where it is largest.
        judged_Q2: pixels at which that was judged.
    """

    def __init__(self, posterior: Posterior, known: _Known, share_NS: np.ndarray, rng: np.random.Generator) -> None:
        covariance, device = posterior.covariance, posterior.at_P3.device
        weight_NS = torch.as_tensor(share_NS, device=device) * _off(posterior, known).sqrt()
        weight_NS = weight_NS * _off_together(posterior, known, weight_NS) ** 0.5
        n_known = len(known.at_P3)
        self._n_added = [
            min(max(n, int(share * n_known)), _MOST_PLACES - n_known)
            for n, share in zip(_ADDED, (_LEAST_ADDED, _MOST_ADDED), strict=True)
        ]
        judged_Q2, self._share_Q = _judged(covariance, int(np.clip(_JUDGED_EACH * n_known, *_N_JUDGED)), rng)
        n_scales, n_judged = len(known.scales_px), len(judged_Q2)
        scale_X = torch.arange(n_scales, device=device).repeat_interleave(n_judged)
        at_X3 = torch.cat([scale_X[:, None], judged_Q2.repeat(n_scales, 1)], dim=1)  # X: scales times pixels
        told_PSQ = posterior.told_by(at_X3).view(-1, n_scales, n_judged)
        left_QSS = covariance.at_pixels(judged_Q2) - torch.einsum("psq,ptq->qst", told_PSQ, told_PSQ)
        error_NQ = torch.einsum("ns,qst,nt->nq", weight_NS, left_QSS, weight_NS).clamp(min=0)
        error_N = error_NQ @ self._share_Q
        worst = int(error_N.argmax())
        self.error, self._error_Q, weight_S = float(error_N[worst]), error_NQ[worst], weight_NS[worst]
        part_S = torch.einsum("s,qss,q->s", weight_S**2, left_QSS, self._share_Q).clamp(min=0)
        n_candidates = int(np.clip(_CANDIDATES_EACH * self._n_added[1], *_N_CANDIDATES))
        self.judged_Q2 = judged_Q2.cpu().numpy()
        self._at_M3 = _candidates(covariance, known, n_candidates, part_S.cpu().numpy(), rng)
        at_M3 = torch.as_tensor(self._at_M3, device=device)
        told_PM = posterior.told_by(at_M3)
        across_SQM = covariance.between(at_X3, at_M3).view(n_scales, n_judged, -1)
        self._across_QM = torch.einsum("s,sqm->qm", weight_S, across_SQM)
        self._across_QM -= torch.einsum("s,psq->pq", weight_S, told_PSQ).T @ told_PM
        self._left_MM = covariance.between(at_M3, at_M3) - told_PM.T @ told_PM
        self._left_MM.diagonal().add_(covariance.jitter_S[at_M3[:, 0]])

    def chosen(self, goal: float) -> np.ndarray:
        """Return the places that take most from the error, one after the other, until it is as small as `goal`.

        A value at m takes Σ_q share_q Cov(sum(q), m)² / Var(m) from it. What those that were chosen already tell is
        taken from covariances only where they are needed.
        """
        n = len(self._at_M3)
        least, most = (min(n, n_added) for n_added in self._n_added)
        gain_M, left_M = self._share_Q @ self._across_QM**2, self._left_MM.diagonal().clone()
        error_Q, is_free_M = self._error_Q.clone(), torch.ones_like(left_M, dtype=torch.bool)
        told_KM, told_KQ = left_M.new_zeros(most, n), left_M.new_zeros(most, len(error_Q))
        picked: list[int] = []
        while len(picked) < most and (len(picked) < least or float(self._share_Q @ error_Q) > goal):
            k, pick = len(picked), int(torch.where(is_free_M, gain_M / left_M.clamp(min=TINY), -1).argmax())
            root = left_M[pick].clamp(min=TINY).sqrt()
            told_M = (self._left_MM[pick] - told_KM[:k, pick] @ told_KM[:k]) / root
            told_Q = (self._across_QM[:, pick] - told_KM[:k, pick] @ told_KQ[:k]) / root
            share_Q = self._share_Q * told_Q
            across_M = share_Q @ self._across_QM - (told_KQ[:k] @ share_Q) @ told_KM[:k]
            gain_M = (gain_M + told_M * (told_M * (share_Q @ told_Q) - 2 * across_M)).clamp(min=0)
            left_M, error_Q = (left_M - told_M**2).clamp(min=0), (error_Q - told_Q**2).clamp(min=0)
            told_KM[k], told_KQ[k], is_free_M[pick] = told_M, told_Q, False
            picked.append(pick)
        return self._at_M3[picked]


def _off(posterior: Posterior, known: _Known) -> Tensor:
    """Return the mean square error to be expected over what the covariance says, [N, S].

    Values are held against what those before them said: all of them for how large the maps of a segment are, those of
    the last round for how far off a scale is.
    """
    square_PN = posterior.white_PN.square()
    size_N = square_PN.mean(dim=0)
    off_P = (square_PN / size_N.clamp(min=TINY)).mean(dim=1).cpu().numpy()
    is_last_P, n_scales = known.round_P == known.round_P.max(), len(known.scales_px)
    scale_P = known.at_P3[is_last_P, 0]
    sum_S, n_S = np.bincount(scale_P, off_P[is_last_P], n_scales), np.bincount(scale_P, minlength=n_scales)
    off_S = torch.as_tensor((sum_S + _PRIOR_PLACES) / (n_S + _PRIOR_PLACES), device=size_N.device)
    return (1 + _CAUTION_PLACES / len(square_PN)) * size_N[:, None] * off_S


def _off_together(posterior: Posterior, known: _Known, weight_NS: Tensor) -> float:
    """Return the mean square error of the weighted sum over what was to be expected, but at least 1.

    Both are of pixels that the last rounds checked, given all values of the rounds before them.
    """
    n, off = _PRIOR_CHECKS, float(_PRIOR_CHECKS)
    is_check_P = known.check_P >= 0
    for one in np.unique(known.round_P[is_check_P])[-_CHECKED_ROUNDS:]:
        is_now_P = known.round_P == one
        (row_C,), (column_L,) = np.nonzero(is_now_P & is_check_P), np.nonzero(is_now_P)
        check_C = torch.as_tensor(known.check_P[row_C], device=weight_NS.device)
        is_same_CC = (check_C[:, None] == check_C).to(weight_NS.dtype)
        lower_CL, weight_NC = posterior.lower_PP[row_C][:, column_L], weight_NS[:, known.at_P3[row_C, 0]]
        missed_NC = weight_NC * (lower_CL @ posterior.white_PN[column_L]).T
        found_N = ((missed_NC @ is_same_CC) * missed_NC).sum(dim=1)
        expected_N = ((weight_NC @ (is_same_CC * (lower_CL @ lower_CL.T))) * weight_NC).sum(dim=1)
        n_checks = len(check_C.unique())
        n, off = n + n_checks, off + n_checks * float((found_N / expected_N.clamp(min=TINY)).mean())
    return max(1.0, off / n)


def _strength(drop_NSRC: np.ndarray, known: _Known) -> np.ndarray:
    """Return how strong maps are around each pixel, at most about 1 for each scale, [S, H, W]."""
    power_SHW = (drop_NSRC**2).mean(axis=0)
    for axis, (n, lines) in enumerate(zip(known.shape, known.sample, strict=True), start=1):
        power_SHW = make_interp_spline(lines, power_SHW, k=min(1, len(lines) - 1), axis=axis)(np.arange(n))
    power_SHW = np.sum([share * gaussian_filter(power_SHW, px, axes=(1, 2)) for px, share in _BLURS], axis=0)
    most_S11 = power_SHW.max(axis=(1, 2), keepdims=True)
    power_SHW = power_SHW / np.where(most_S11 > 0, most_S11, 1)
    power_SHW = (1 - _SHARED) * power_SHW + _SHARED * power_SHW.mean(axis=0)
    return np.sqrt(power_SHW**_POWER + _LEAST_STRENGTH**2)


def _shares(drop_NSRC: np.ndarray, weights: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return the weight of each scale over the standard deviation of the sum of maps, [N, S]."""
    weight_NS = weights(drop_NSRC)
    total_NRC = np.einsum("nsrc,ns->nrc", drop_NSRC, weight_NS)
    rounding_N = np.finfo(np.float32).eps * np.abs(total_NRC).max(axis=(1, 2)) + np.finfo(np.float32).tiny
    return weight_NS / np.maximum(total_NRC.std(axis=(1, 2)), rounding_N)[:, None]


def _near_the_known(known: _Known, strength_SHW: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return places near those of the first grid, most where maps are strong, [K, 3]."""
    found = [np.zeros((0, 3), dtype=int)]
    for scale in np.unique(known.at_P3[:, 0]):
        is_known_HW = known.is_known_SHW[scale]
        near_HW = gaussian_filter(is_known_HW.astype(float), _NEAR_PX) * ~is_known_HW * strength_SHW[scale]
        n = min(_N_NEAR, np.count_nonzero(near_HW))
        index_K = rng.choice(near_HW.size, n, replace=False, p=near_HW.ravel() / near_HW.sum())
        found.append(np.column_stack([np.full(n, scale), *np.unravel_index(index_K, known.shape)]))
    return np.concatenate(found)


def _judged(covariance: Covariance, n: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return pixels at which the error is judged, most where maps are strong, and of which share of it each stands."""
    strength_SHW, device = covariance.strength_SHW.cpu().numpy(), covariance.strength_SHW.device
    size_S = covariance.local_SSHW[:, :, 0, 0].diagonal().cpu().numpy()
    density_X = _density(np.einsum("s,shw->hw", size_S, strength_SHW**2).ravel())
    n = min(n, math.ceil(len(density_X) / 2))
    index_Q = rng.choice(len(density_X), n, replace=False, p=density_X)
    share_Q = 1 / (1 - (1 - density_X[index_Q]) ** n)
    place_Q2 = np.column_stack(np.unravel_index(index_Q, strength_SHW.shape[1:]))
    return torch.as_tensor(place_Q2, device=device), torch.as_tensor(share_Q / share_Q.sum(), device=device)


def _candidates(
    covariance: Covariance, known: _Known, n_candidates: int, part_S: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return places that are not known, most at scales with much of the error and where maps are strong, [M, 3]."""
    is_open_S = ~known.is_known_SHW.all(axis=(1, 2))
    share_S = np.maximum(part_S / (part_S.sum() or 1), _LEAST_OF_SCALE) * is_open_S
    found = []
    for scale in np.flatnonzero(is_open_S):
        is_free_X = ~known.is_known_SHW[scale].ravel()
        density_X = _density(covariance.strength_SHW[scale].cpu().numpy().ravel() ** 2) * is_free_X
        n = min(math.ceil(n_candidates * share_S[scale] / share_S.sum()), int(is_free_X.sum()))
        index_M = rng.choice(len(density_X), n, replace=False, p=density_X / density_X.sum())
        found.append(np.column_stack([np.full(n, scale), *np.unravel_index(index_M, known.shape)]))
    return np.concatenate(found)


def _density(power_X: np.ndarray) -> np.ndarray:
    even_X = np.full(len(power_X), 1 / len(power_X))
    return _ANYWHERE * even_X + (1 - _ANYWHERE) * power_X / power_X.sum() if power_X.sum() > 0 else even_X


def _lines(n: int, most: int) -> np.ndarray:
    """Return so many of n lines, about equally far apart, with both ends; all of them where there are no more."""
    return np.unique(np.linspace(0, n - 1, most).round().astype(int))
