"""A Gaussian process over maps of several scales: the covariance that few values make likely, the mean, the unknown.

Axes: N EEG segments, S scales, H height, W width, P known places, each a (scale, row, column); A and B any places;
Q pixels; J kernels; L distances in pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.fft import next_fast_len
from torch import Tensor

# Lengths over which maps change: smooth parts; rough ones, as rough along both axes; and those that are rough along one
# axis and smooth along the other, which is what edges of squares meet in networks that compute on grids.
_SMOOTH_PX = (6, 12, 24, 48, 96)
_ROUGH_PX = (3, 6, 12, 24)
_EDGE_PX = (1, 3, 8)
_ALONG_PX = (12, 32)
_PERIOD_PX = 4  # networks halve the picture twice in their first layers
_COARSE_FROM_PX = 24  # how alike scales are is one number for lengths from here, and one for those below

_N_FITTED, _N_PAIRED = 250, 150  # places of one scale, or of each of two, that decide on the covariance
_N_STEPS, _STEP = 40, 0.7
_ALIKE = (0.0, 0.25, 0.5, 0.7, 0.85, 0.95)
_LEAST_PART = 1e-4
_JITTER = 1e-6
_N_ROWS = 512  # of a covariance computed at a time, which bounds memory

TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True, kw_only=True, eq=False)
class Covariance:
    """Cov(S_σ(p), S_σ'(p')) = plain_σσ'(|p - p'|) + a_σ(p) a_σ'(p') local_σσ'(|p - p'|).

    Attributes:
        plain_SSHW, local_SSHW: for every pair of scales and distance in rows and columns.
        strength_SHW: a.
        jitter_S: added to the variance of values, for the sake of rounding.
    """

    plain_SSHW: Tensor
    local_SSHW: Tensor
    strength_SHW: Tensor
    jitter_S: Tensor

    def between(self, left_A3: Tensor, right_B3: Tensor) -> Tensor:
        """Return the covariance of values at places, [A, B]."""
        n_scales, height, width = self.strength_SHW.shape
        found_AB = self.plain_SSHW.new_empty(len(left_A3), len(right_B3))
        strength_A, strength_B = (self.strength_SHW[tuple(at.T)] for at in (left_A3, right_B3))
        for start in range(0, len(left_A3), _N_ROWS):
            part = slice(start, start + _N_ROWS)
            scale_a1, row_a1, column_a1 = left_A3[part, :, None].unbind(1)
            scale_B, row_B, column_B = right_B3.unbind(1)
            index_aB = (scale_a1 * n_scales + scale_B) * height + (row_a1 - row_B).abs()
            index_aB = index_aB * width + (column_a1 - column_B).abs()
            local_aB = self.local_SSHW.take(index_aB).mul_(strength_B).mul_(strength_A[part, None])
            found_AB[part] = local_aB.add_(self.plain_SSHW.take(index_aB))
        return found_AB

    def at_pixels(self, place_Q2: Tensor) -> Tensor:
        """Return the covariance of scales at each pixel (row, column), [Q, S, S]."""
        strength_QS = self.strength_SHW[:, place_Q2[:, 0], place_Q2[:, 1]].T
        local_SS = self.local_SSHW[:, :, 0, 0]
        return self.plain_SSHW[:, :, 0, 0] + local_SS * strength_QS[:, :, None] * strength_QS[:, None]


class Posterior:
    """The process given values at some places.

    Attributes:
        lower_PP: L of the covariance of values, L Lᵀ.
        white_PN: L⁻¹ y, each value held against what those before it said, over the error that was to be expected.
    """

    def __init__(self, covariance: Covariance, at_P3: Tensor, value_PN: Tensor) -> None:
        self.covariance, self.at_P3 = covariance, at_P3
        cov_PP = covariance.between(at_P3, at_P3)
        cov_PP.diagonal().add_(covariance.jitter_S[at_P3[:, 0]].clamp(min=TINY))
        self.lower_PP = torch.linalg.cholesky(cov_PP)
        self.white_PN = torch.linalg.solve_triangular(self.lower_PP, value_PN, upper=False)
        self._alpha_PN = torch.linalg.solve_triangular(self.lower_PP.T, self.white_PN, upper=True)

    def told_by(self, at_A3: Tensor) -> Tensor:
        """Return T [P, A] with Cov(A, B | values) = Cov(A, B) - T_Aᵀ T_B."""
        return torch.linalg.solve_triangular(self.lower_PP, self.covariance.between(self.at_P3, at_A3), upper=False)

    def mean_at(self, at_A3: Tensor) -> Tensor:
        """Return the mean at these places, [N, A]."""
        return (self.covariance.between(at_A3, self.at_P3) @ self._alpha_PN).T

    def maps_NSHW(self) -> Tensor:
        """Return the mean at every pixel and scale."""
        strength_SHW = self.covariance.strength_SHW
        alpha_NSHW = self._alpha_PN.new_zeros(self._alpha_PN.shape[1], *strength_SHW.shape)
        scale_P, row_P, column_P = self.at_P3.T
        alpha_NSHW[:, scale_P, row_P, column_P] = self._alpha_PN.T
        local_NSHW = _convolved(alpha_NSHW * strength_SHW, self.covariance.local_SSHW)
        return _convolved(alpha_NSHW, self.covariance.plain_SSHW) + local_NSHW * strength_SHW


def fitted(
    at_P3: Tensor, value_PN: Tensor, strength_SHW: Tensor, scales_px: Sequence[int], rng: np.random.Generator
) -> Covariance:
    """Return the covariance under which values at places are most likely.

        Cov(S_σ(p), S_σ'(p')) = Σ_j (v_jσ v_jσ')^½ ρ_jσσ' a_j,σ(p) a_j,σ'(p') k_jσσ'(p - p')

    v_jσ, of fixed kernels k_j, are found for each scale by itself; ρ, of the kernels over long and over short
    distances, for each pair of neighbours, and of scales further apart it is the product of those between. Some places,
    chosen by `rng`, decide. a_j is 1 or the strength of the map.
    """
    n_scales, height, width = strength_SHW.shape
    first_JSSL, second_JSSL, is_local_J, is_coarse_J = _kernels(max(height, width), scales_px, at_P3.device)
    strength_P = strength_SHW[tuple(at_P3.T)]

    def kernels_at(index: np.ndarray) -> Tensor:
        row_pp, column_pp = ((at_P3[index, None, axis] - at_P3[None, index, axis]).abs() for axis in (1, 2))
        rows, columns = ((slice(None), at_P3[index, None, 0], at_P3[index, 0], far) for far in (row_pp, column_pp))
        found_Jpp = first_JSSL[rows] * second_JSSL[columns] + second_JSSL[rows] * first_JSSL[columns]
        return torch.where(is_local_J[:, None, None], strength_P[index, None] * strength_P[index], 1) * found_Jpp

    unit_S, variance_SJ = value_PN.new_zeros(n_scales), value_PN.new_zeros(n_scales, len(first_JSSL))
    scale_P, some = at_P3[:, 0].cpu().numpy(), []
    for scale in range(n_scales):
        some.append(rng.permutation(np.flatnonzero(scale_P == scale)))
        unit_S[scale] = value_PN[some[-1]].square().mean().sqrt() if len(some[-1]) else 0
        if unit_S[scale] > 0:
            index = some[-1][:_N_FITTED]
            variance_SJ[scale] = _variances(kernels_at(index), value_PN[index])
    alike_2SS = value_PN.new_ones(2, n_scales, n_scales)
    for left, right in itertools.pairwise(range(n_scales)):
        alike = 0.0, 0.0
        if min(unit_S[left], unit_S[right]) > 0:
            index = _paired(at_P3.cpu().numpy(), some[left], some[right])
            scale_p = at_P3[index, 0]
            root_Jp1 = variance_SJ[scale_p].sqrt().T[:, :, None]
            kernel_Jpp = kernels_at(index) * root_Jp1 * root_Jp1.mT
            parts = kernel_Jpp[~is_coarse_J].sum(dim=0), kernel_Jpp[is_coarse_J].sum(dim=0)
            alike = _alikeness(parts, scale_p, value_PN[index] / unit_S[scale_p, None])
        for part_SS, value in zip(alike_2SS, alike, strict=True):
            part_SS[right, :right] = part_SS[:right, right] = value * part_SS[left, :right]
    root_JS = variance_SJ.T.sqrt() * unit_S
    variance_JSS = root_JS[:, :, None] * root_JS[:, None] * alike_2SS[is_coarse_J.long()]
    plain_SSHW, local_SSHW = (
        torch.einsum(
            "jst,jsth,jstw->sthw", variance_JSS[in_J], first_JSSL[in_J, ..., :height], second_JSSL[in_J, ..., :width]
        )
        + torch.einsum(
            "jst,jsth,jstw->sthw", variance_JSS[in_J], second_JSSL[in_J, ..., :height], first_JSSL[in_J, ..., :width]
        )
        for in_J in (~is_local_J, is_local_J)
    )
    return Covariance(
        plain_SSHW=plain_SSHW, local_SSHW=local_SSHW, strength_SHW=strength_SHW, jitter_S=_JITTER * unit_S**2
    )


def _paired(at_P3: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return some places of two scales, first those of pixels known at both, which tell most of how alike they are."""
    pixel_P = at_P3[:, 1] * (at_P3[:, 2].max() + 1) + at_P3[:, 2]
    found = []
    for own, other in ((left, right), (right, left)):
        is_alone = ~np.isin(pixel_P[own], pixel_P[other])
        found.append(own[np.argsort(is_alone, kind="stable")][:_N_PAIRED])
    return np.concatenate(found)


def _kernels(n_px: int, scales_px: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the factors of kernels, f and g [J, S, S, L], and what they are.

        k_jσσ'(Δy, Δx) = f(Δy) g(Δx) + g(Δy) f(Δx)        f_σσ'(Δ) = (f(Δ + δ) + f(Δ - δ)) / 2,  δ = (σ - σ') / 2

    A square that moves changes what is at its edges, so that maps of two sizes are alike where edges of these are at
    the same place: each is one process for the upper edge and another for the lower.

    The last two are whether a kernel is taken times the strength of the map, and whether it is coarse, [J].
    """
    distance_L = torch.arange(n_px, dtype=torch.float64, device=device)
    half_S = torch.as_tensor(scales_px, device=device) // 2
    shift_SS1 = (half_S[:, None] - half_S)[:, :, None]

    def edges(kernel: Callable[[Tensor], Tensor]) -> Tensor:
        return (kernel((distance_L + shift_SS1).abs()) + kernel((distance_L - shift_SS1).abs())) / 2

    def smooth(length_px: float, period_px: int = 1) -> Tensor:  # Matérn 5/2, or only every so many pixels
        def kernel(distance: Tensor) -> Tensor:
            d = 5**0.5 * distance / length_px
            return (1 + d + d**2 / 3) * torch.exp(-d) * (distance % period_px == 0)

        return edges(kernel)

    def bent(length_px: float) -> Tensor:  # Matérn 3/2
        return edges(lambda distance: (1 + 3**0.5 * distance / length_px) * torch.exp(-(3**0.5) * distance / length_px))

    one_SSL, white_SSL = edges(torch.ones_like), edges(lambda distance: (distance == 0).double())
    found = [(one_SSL, one_SSL, False, True)]
    found += [(smooth(px), smooth(px), False, px >= _COARSE_FROM_PX) for px in _SMOOTH_PX]
    found += [(bent(px), bent(px), True, px >= _COARSE_FROM_PX) for px in _ROUGH_PX]
    for px in _ALONG_PX:
        along_SSL, stripes_SSL = smooth(px), smooth(px, _PERIOD_PX)
        rough = [edges(lambda distance, px=px: torch.exp(-distance / px)) for px in _EDGE_PX]
        found += [(rough_SSL, along_SSL, True, False) for rough_SSL in [*rough, stripes_SSL]]
        found += [(stripes_SSL, stripes_SSL, True, False)]
    found += [(white_SSL, white_SSL, True, False)]
    first, second, is_local, is_coarse = zip(*found, strict=True)
    return (
        torch.stack(first),
        torch.stack(second) / 2,
        torch.tensor(is_local, device=device),
        torch.tensor(is_coarse, device=device),
    )


def _variances(kernel_JPP: Tensor, value_PN: Tensor) -> Tensor:
    """Return the variance of each kernel under which values are most likely, over the mean square of values, [J].

        v_j <- v_j (mean_n α_nᵀ K_j α_n / tr K⁻¹ K_j)^0.7,   K = Σ_j v_j K_j,  α_n = K⁻¹ y_n

    With 0.5 no step can go wrong (Zhou, Hu, Zhou & Lange, J. Comput. Graph. Stat. 2019); 0.7 gets as far in fewer.
    """
    n_places = kernel_JPP.shape[1]
    size_N = value_PN.square().mean(dim=0).sqrt()
    value_PN = value_PN[:, size_N > 0] / size_N[size_N > 0]
    own_J, flat_JX = torch.einsum("jpp->j", kernel_JPP) / n_places, kernel_JPP.flatten(1)
    variance_J = 1 / (own_J * len(own_J))
    for _ in range(_N_STEPS):
        cov_PP = (variance_J @ flat_JX).view(n_places, n_places)
        cov_PP.diagonal().add_(_JITTER)
        inverse_PP = torch.cholesky_inverse(torch.linalg.cholesky(cov_PP))
        alpha_PN = inverse_PP @ value_PN
        wanted_J = flat_JX @ (alpha_PN @ alpha_PN.T / alpha_PN.shape[1]).flatten()
        variance_J = variance_J * (wanted_J / (flat_JX @ inverse_PP.flatten())) ** _STEP
    part_J = variance_J * own_J
    return torch.where(part_J > _LEAST_PART * part_J.sum(), variance_J, 0)


def _alikeness(parts: tuple[Tensor, Tensor], scale_P: Tensor, value_PN: Tensor) -> tuple[float, float]:
    """Return ρ of the short and of the long parts [P, P] of two scales, in [0, 1), as makes values most likely."""
    is_own_PP = scale_P[:, None] == scale_P
    value_PN = value_PN / value_PN.square().mean(dim=0).sqrt().clamp(min=TINY)
    own_PP = (parts[0] + parts[1]) * is_own_PP
    own_PP.diagonal().add_(_JITTER)
    fine_PP, coarse_PP = (part_PP * ~is_own_PP for part_PP in parts)

    def misfit(alike: tuple[float, float]) -> float:
        lower_PP = torch.linalg.cholesky(own_PP + alike[0] * fine_PP + alike[1] * coarse_PP)
        white_PN = torch.linalg.solve_triangular(lower_PP, value_PN, upper=False)
        return float(white_PN.square().sum() + 2 * white_PN.shape[1] * lower_PP.diagonal().log().sum())

    fine = min(_ALIKE, key=lambda alike: misfit((alike, _ALIKE[-2])))
    coarse = min(_ALIKE, key=lambda alike: misfit((fine, alike)))
    return fine, coarse


def _convolved(value_NSHW: Tensor, kernel_SSHW: Tensor) -> Tensor:
    """Return Σ_s' Σ_p' k_ss'(|p - p'|) value_s'(p'), [N, S, H, W]."""
    n_scales, _, height, width = kernel_SSHW.shape
    size = next_fast_len(2 * height - 1, real=True), next_fast_len(2 * width - 1, real=True)
    around_SSHW = kernel_SSHW.new_zeros(n_scales, n_scales, *size)
    around_SSHW[..., :height, :width] = kernel_SSHW
    around_SSHW[..., size[0] - height + 1 :, :width] = kernel_SSHW[:, :, 1:].flip(2)
    around_SSHW[..., size[1] - width + 1 :] = around_SSHW[..., 1:width].flip(3)
    spectrum_NSHW, kernel_SSHW = torch.fft.rfft2(value_NSHW, s=size), torch.fft.rfft2(around_SSHW)
    found_NSHW = torch.einsum("nthw,sthw->nshw", spectrum_NSHW, kernel_SSHW)
    return torch.fft.irfft2(found_NSHW, s=size)[..., :height, :width]
