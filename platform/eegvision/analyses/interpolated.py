"""Saliency maps from few exact values: grids for each size of square, made finer where the sum of maps needs it.

Axes: N EEG segments, S scales, P places, H height, W width; R rows and C columns of a grid, r and c its cells;
F features, L places of the finer grids.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import make_interp_spline
from scipy.ndimage import gaussian_filter, uniform_filter

from eegvision.vocab import InputError

Drop = Callable[[np.ndarray, int, int], np.ndarray]
"""From places [P, 2] (row, column), the side of the square and the usual distance of places to S_σ [N, P]."""

# Steps of the coarsest grid, which is refined everywhere: 7 x 7 places, 37 px apart in a picture of 224.
_FIRST_STEPS = 3

# How far around a cell added places tell of its error, in lines; and at least and at most how many places of the mean
# of the grid count with them.
_REACH = 3
_PRIOR_PLACES = (0.25, 30.0)

# Networks halve the picture twice in their first layers. 2 leaves a little more to evaluate, 8 fits ResNet-18 worse.
_PERIOD_PX = 4
_SMOOTHED_PX = 4.0  # takes the stripes out of the maps that say how strong stripes are
# Coarser grids miss more than stripes; of each coefficient there are to be some places; and what is left out is to be
# predicted so much better with stripes, or maps without get some.
_STRIPES_FROM_PX = 12
_PLACES_EACH = 6
_LEFT_OUT_SHARE = 0.9
_RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
_N_FOLDS = 5


@dataclass(frozen=True, kw_only=True)
class Fast:
    """How far the fast engine goes.

    Attributes:
        fidelity: correlation of the map with the exact one at which grids are fine enough by their own estimate, in
            (0, 1). What was reached is in `Saliency.agreement`.
    """

    fidelity: float = 0.99

    def __post_init__(self) -> None:
        if not 0 < self.fidelity < 1:
            raise InputError(f"fidelity is {self.fidelity}; expected a correlation in (0, 1), such as 0.99")


def interpolated(
    drop: Drop,
    shape: tuple[int, int],
    scales_px: Sequence[int],
    fidelity: float,
    weights: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Return S_σ at every pixel, cubic splines through the values of `drop` on a grid for each scale, locally finer.

        S_σ = spline + stripes,   r² = 1 - Σ_σ w_σ² Σ_cells a d² / var(Σ_σ w_σ S_σ)     enough in all segments

    d² is by how much, squared, the places around a cell were off the spline before they were added, a the cell's share
    of the picture: no evaluation is spent on deciding. What is refined next are the cells, of any scale, that promise
    most for each evaluation. Stripes are what the strides of a network put on maps (`_Pyramid.fit_stripes`).

    Args:
        drop: exact values.
        shape: H and W.
        fidelity: r that is to be reached.
        weights: from maps [N, S, H, W] to the weight of each in the sum, [N, S].
    Returns:
        float32 [N, S, H, W].
    """
    pyramids = [_Pyramid(drop, shape, scale_px) for scale_px in scales_px]
    while True:
        drop_NSHW = np.stack([pyramid.map_NHW() for pyramid in pyramids], axis=1)
        for scale, pyramid in enumerate(pyramids):
            near = slice(max(0, scale - 1), scale + 2)
            pyramid.fit_stripes(drop_NSHW[:, near])
            drop_NSHW[:, scale] = pyramid.map_NHW()
        weight_NS = weights(drop_NSHW)
        total_NHW = np.einsum("nshw,ns->nhw", drop_NSHW, weight_NS, dtype=np.float64)
        rounding_N = (np.finfo(np.float32).eps * np.abs(total_NHW).max(axis=(1, 2))) ** 2 + np.finfo(np.float32).tiny
        share_NS = weight_NS**2 / np.maximum(total_NHW.var(axis=(1, 2)), rounding_N)[:, None]
        parts = [
            (scale, level, error_Nrc * share_NS[:, scale, None, None], n_missing_rc)
            for scale, pyramid in enumerate(pyramids)
            for level, error_Nrc, n_missing_rc in pyramid.errors()
        ]
        if sum((error_Nrc.sum(axis=(1, 2)) for _, _, error_Nrc, _ in parts), np.zeros(1)).max() <= 1 - fidelity**2:
            return drop_NSHW
        for scale, level, cell_rc in _worst(parts, 1 - fidelity**2):
            pyramids[scale].refine(level, cell_rc)


def _worst(
    parts: list[tuple[int, int, np.ndarray, np.ndarray]], allowed: float
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield scale, level and cells whose refinement promises most, until half of the error or what is allowed is left.

    Half, because what is learned from these cells decides on the others.
    """
    error_X = np.concatenate([error_Nrc.max(axis=0).ravel() for _, _, error_Nrc, _ in parts])
    n_missing_X = np.concatenate([n_missing_rc.ravel() for *_, n_missing_rc in parts])
    order_X = np.argsort(-error_X / np.maximum(n_missing_X, 1), kind="stable")
    left_X = error_X.sum() - np.cumsum(error_X[order_X])
    n_worst = 1 + np.searchsorted(-left_X, -max(error_X.sum() / 2, allowed))
    is_worst_X = np.zeros(len(error_X), dtype=bool)
    is_worst_X[order_X[:n_worst]] = True
    ends = np.cumsum([n_missing_rc.size for *_, n_missing_rc in parts])
    for (scale, level, _, n_missing_rc), is_worst_x in zip(parts, np.split(is_worst_X, ends[:-1]), strict=True):
        if is_worst_x.any():
            yield scale, level, is_worst_x.reshape(n_missing_rc.shape)


@dataclass(kw_only=True, eq=False)
class _Grid:
    """Some rows and columns of a picture, the outermost among them.

    Attributes:
        lines: rows and columns.
        exact_NRC: S_σ at the crossings that were evaluated on this grid, `is_added_RC`.
        off_NRC: squared difference there from the spline through the coarser grid, with the stripes that would be
            found without the place; 0 elsewhere.
        leverage_RC: share of the stripes at each such place that the place itself has decided.
        is_leaf_rc: cells that belong to this grid: not refined, but the coarser cell was.
    """

    lines: tuple[np.ndarray, np.ndarray]
    exact_NRC: np.ndarray
    off_NRC: np.ndarray
    leverage_RC: np.ndarray
    is_added_RC: np.ndarray
    is_leaf_rc: np.ndarray

    @staticmethod
    def empty(lines: tuple[np.ndarray, np.ndarray], n_segments: int) -> _Grid:
        n_rows, n_columns = (len(line) for line in lines)
        return _Grid(
            lines=lines,
            exact_NRC=np.zeros((n_segments, n_rows, n_columns)),
            off_NRC=np.zeros((n_segments, n_rows, n_columns)),
            leverage_RC=np.zeros((n_rows, n_columns)),
            is_added_RC=np.zeros((n_rows, n_columns), dtype=bool),
            is_leaf_rc=np.zeros((n_rows - 1, n_columns - 1), dtype=bool),
        )

    def off_Nrc(self) -> np.ndarray:
        """Return the mean of `off_NRC` over places added around each cell, drawn to the mean of the grid where few.

        How far it is drawn is what the places say of how unlike cells are: among equals, those that came out low by
        chance would be left alone. With a variance of 2 of each place by chance and of u between cells, both over the
        mean squared, 2 / u places of the mean count with those of a cell.
        """
        mean_N11 = self.off_NRC.sum(axis=(1, 2), keepdims=True) / max(1, self.is_added_RC.sum())
        n_rc, sum_Nrc = _around(self.is_added_RC), _around(self.off_NRC / np.where(mean_N11 > 0, mean_N11, 1))
        local_Nrc, is_known_rc = sum_Nrc / np.maximum(n_rc, 1), n_rc >= 1
        # Squares of one variance have twice its square as their own.
        chance_Nrc = 2 * local_Nrc**2 / (n_rc + 2)
        unlike_N = (((local_Nrc - 1) ** 2 - chance_Nrc) * is_known_rc).sum(axis=(1, 2)) / max(1, is_known_rc.sum())
        n_prior_N11 = (2 / np.maximum(unlike_N, 2 / _PRIOR_PLACES[1])).clip(_PRIOR_PLACES[0])[:, None, None]
        return mean_N11 * (sum_Nrc + n_prior_N11) / (n_rc + n_prior_N11)


class _Pyramid:
    """Grids of one size of square, each with twice as many lines as the one before, as far as they are needed."""

    def __init__(self, drop: Drop, shape: tuple[int, int], scale_px: int) -> None:
        self._drop, self.shape, self._scale_px = drop, shape, scale_px
        lines = self._lines(0)
        place_P2 = np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1).reshape(-1, 2)
        value_NP = drop(place_P2, scale_px, max(1, max(shape) // _FIRST_STEPS))
        first = _Grid.empty(lines, len(value_NP))
        first.exact_NRC[:] = value_NP.reshape(first.exact_NRC.shape)
        first.is_leaf_rc[:] = True
        first.is_added_RC[:] = True
        self._grids = [first]
        self._feature_FHW, self._coefficient_NF = np.zeros((0, *shape)), np.zeros((len(value_NP), 0))
        self.refine(0, first.is_leaf_rc.copy())

    def errors(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield of each grid with leaves its level, the squared error expected of them, and how many places they lack.

        The error is the mean over the cell times the cell's share of the picture, [N, r, c].
        """
        height, width = self.shape
        for level, grid in enumerate(self._grids):
            if not grid.is_leaf_rc.any():
                continue
            n_rows, n_columns = (np.diff(line) for line in grid.lines)
            area_rc = np.outer(n_rows, n_columns) / max(1, (height - 1) * (width - 1))
            steps_r, steps_c = (
                np.diff(np.searchsorted(finer, line))
                for line, finer in zip(grid.lines, self._lines(level + 1), strict=True)
            )
            n_missing_rc = np.outer(steps_r + 1, steps_c + 1) - 4
            is_open_rc = grid.is_leaf_rc & (n_missing_rc > 0)
            yield level, grid.off_Nrc() * area_rc * is_open_rc, n_missing_rc

    def refine(self, level: int, cell_rc: np.ndarray) -> None:
        """Evaluate the places that the next grid has within these cells."""
        grid, lines = self._grids[level], self._lines(level + 1)
        if level + 1 == len(self._grids):
            self._grids.append(_Grid.empty(lines, len(grid.exact_NRC)))
        finer = self._grids[level + 1]
        old_R, old_C = (np.searchsorted(new, old) for new, old in zip(lines, grid.lines, strict=True))
        # Of every cell of the finer grid that of the coarser one around it.
        parent_r, parent_c = (
            np.searchsorted(old, np.arange(len(new) - 1), side="right") - 1
            for new, old in zip(lines, (old_R, old_C), strict=True)
        )
        part_rc = cell_rc[np.ix_(parent_r, parent_c)]
        finer.is_leaf_rc |= part_rc
        grid.is_leaf_rc &= ~cell_rc
        is_new_RC = _corners(part_rc) & ~finer.is_added_RC
        is_new_RC[np.ix_(old_R, old_C)] = False
        if not is_new_RC.any():
            return
        rows, columns = np.nonzero(is_new_RC)
        spacing_px = max(1, round(max(n / len(line) for n, line in zip(self.shape, lines, strict=True))))
        place_P2 = np.stack([lines[0][rows], lines[1][columns]], axis=1)
        finer.exact_NRC[:, is_new_RC] = self._drop(place_P2, self._scale_px, spacing_px)
        finer.is_added_RC |= is_new_RC

    def map_NHW(self) -> np.ndarray:
        """Return the spline through the finest grid, and stripes, at every pixel, float32; note how far it was off."""
        off, value_NRC = self._through(
            lambda level: self._grids[level].exact_NRC - self._stripes(self._grids[level].lines)
        )
        for grid, off_NX in zip(self._grids[1:], off, strict=True):
            grid.off_NRC[:, grid.is_added_RC] = (off_NX / (1 - grid.leverage_RC[grid.is_added_RC])) ** 2
        every = (np.arange(self.shape[0]), np.arange(self.shape[1]))
        return (_resampled(value_NRC, self._grids[-1].lines, every) + self._stripes(every)).astype(np.float32)

    def fit_stripes(self, near_NSHW: np.ndarray) -> None:
        """Find what the strides of a network put on the map, by what the splines are off.

            stripes(y, x) = Σ_s A_s(y, x) (α_s,y mod 4 + β_s,x mod 4)

        A square that begins at a stride of the network removes more than one that begins behind it, as if it were
        larger; how much that matters is a smooth field, which the maps A_s of neighbouring sizes span. Of what
        smoothing takes from maps of a trained ResNet-18 this is 0.5 to 0.7, of a DenseNet-161 half. Left alone they
        pass for roughness, to be evaluated pixel by pixel: over 10,000 squares instead of 1,800 for r .99.
        """
        fine = [grid for grid in self._grids[1:] if np.diff(grid.lines[0]).max(initial=0) <= _STRIPES_FROM_PX]
        feature_FHW = _stripe_features(near_NSHW)
        if sum(grid.is_added_RC.sum() for grid in fine) < _PLACES_EACH * len(feature_FHW):
            return
        off_F, _ = self._through(lambda level: _at(feature_FHW, self._grids[level].lines))
        off_N, _ = self._through(lambda level: self._grids[level].exact_NRC)
        first = len(off_N) - len(fine)
        weight = [_trust(grid) for grid in fine]
        feature_LF = np.concatenate([(off * w).T for off, w in zip(off_F[first:], weight, strict=True)])
        wanted_LN = np.concatenate([(off * w).T for off, w in zip(off_N[first:], weight, strict=True)])
        coefficient_FN, leverage_L = _ridge(feature_LF, wanted_LN)
        self._feature_FHW, self._coefficient_NF = feature_FHW, coefficient_FN.T
        ends = np.cumsum([grid.is_added_RC.sum() for grid in fine])
        for grid, leverage_l in zip(fine, np.split(leverage_L, ends[:-1]), strict=True):
            grid.leverage_RC[grid.is_added_RC] = leverage_l

    def _stripes(self, lines: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        return np.tensordot(self._coefficient_NF, _at(self._feature_FHW, lines), axes=1)

    def _through(self, field: Callable[[int], np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
        """Return by how much splines through a field on each grid are off where the next has places, and the last's."""
        value_XRC = field(0)
        off = []
        for level, (coarse, fine) in enumerate(itertools.pairwise(self._grids), start=1):
            value_XRC = _resampled(value_XRC, coarse.lines, fine.lines)
            wanted_XL = field(level)[:, fine.is_added_RC]
            off.append(wanted_XL - value_XRC[:, fine.is_added_RC])
            value_XRC[:, fine.is_added_RC] = wanted_XL
        return off, value_XRC

    def _lines(self, level: int) -> tuple[np.ndarray, np.ndarray]:
        height, width = self.shape
        return _lines(height, _FIRST_STEPS << level), _lines(width, _FIRST_STEPS << level)


def _stripe_features(near_NSHW: np.ndarray) -> np.ndarray:
    """Return what stripes are sums of: smooth maps, each at one of the phases of rows or of columns, [F, H, W]."""
    height, width = near_NSHW.shape[2:]
    phase = np.arange(_PERIOD_PX - 1)[:, None]
    row_KH1 = ((np.arange(height) % _PERIOD_PX == phase) - 1 / _PERIOD_PX)[:, :, None]
    column_K1W = ((np.arange(width) % _PERIOD_PX == phase) - 1 / _PERIOD_PX)[:, None, :]
    features = []
    for map_NHW in near_NSHW.swapaxes(0, 1).astype(np.float64):
        # One map for all segments: the direction in which theirs are largest.
        _, direction_NN = np.linalg.eigh(np.einsum("nhw,mhw->nm", map_NHW, map_NHW))
        smooth_HW = gaussian_filter(np.einsum("n,nhw->hw", direction_NN[:, -1], map_NHW), _SMOOTHED_PX)
        smooth_HW /= float((smooth_HW**2).mean() ** 0.5) or 1.0
        features += [row_KH1 * smooth_HW, column_K1W * smooth_HW]
    return np.concatenate(features)


def _trust(grid: _Grid) -> np.ndarray:
    """Return the weight of each place added, one over how far splines are off around it in the mean over segments."""
    off_1RC = grid.off_NRC.mean(axis=0)
    here = [
        np.minimum(index, n - 1) for index, n in zip(np.nonzero(grid.is_added_RC), grid.is_leaf_rc.shape, strict=True)
    ]
    around_L = (_around(off_1RC) / np.maximum(_around(grid.is_added_RC), 0.25))[here[0], here[1]]
    expected_L = around_L + 0.05 * off_1RC.sum() / grid.is_added_RC.sum()
    return 1 / np.sqrt(np.where(expected_L > 0, expected_L, 1))


def _ridge(feature_LF: np.ndarray, wanted_LN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return coefficients of ridge regression, [F, N], of the penalty that predicts best, and each place's leverage.

    Both are 0 where no penalty predicts better than nothing.
    """
    n_places, n_features = feature_LF.shape
    fold_L = np.arange(n_places) % _N_FOLDS
    unit_FF = np.eye(n_features) * max((feature_LF**2).sum() / n_features, np.finfo(np.float64).tiny)

    def fit(is_in_L: np.ndarray, ridge: float) -> tuple[np.ndarray, np.ndarray]:
        some_LF = feature_LF[is_in_L]
        inverse_FL = np.linalg.solve(some_LF.T @ some_LF + ridge * unit_FF, some_LF.T)
        return inverse_FL @ wanted_LN[is_in_L], np.einsum("lf,fl->l", some_LF, inverse_FL)

    best = _LEFT_OUT_SHARE * (wanted_LN**2).sum()
    found = np.zeros((n_features, wanted_LN.shape[1])), np.zeros(n_places)
    for ridge in _RIDGES:
        left_out = [
            wanted_LN[fold_L == k] - feature_LF[fold_L == k] @ fit(fold_L != k, ridge)[0] for k in range(_N_FOLDS)
        ]
        error = sum((part**2).sum() for part in left_out)
        if error < best:
            best, found = error, fit(np.ones(n_places, dtype=bool), ridge)
    return found


def _lines(n: int, steps: int) -> np.ndarray:
    """Return steps + 1 of n lines, about equally far apart, with both ends; all of them where there are no more."""
    return np.unique(np.linspace(0, n - 1, steps + 1).round().astype(int))


def _corners(cell_rc: np.ndarray) -> np.ndarray:
    """Return which crossings of a grid are corners of these cells, [R, C]."""
    corner_RC = np.zeros((cell_rc.shape[0] + 1, cell_rc.shape[1] + 1), dtype=bool)
    for rows, columns in itertools.product((slice(None, -1), slice(1, None)), repeat=2):
        corner_RC[rows, columns] |= cell_rc
    return corner_RC


def _around(value_RC: np.ndarray) -> np.ndarray:
    """Return the sum over the crossings near each cell of a grid, [..., r, c]."""
    sum_RC = uniform_filter(value_RC.astype(np.float64), _REACH, mode="constant", axes=(-2, -1)) * _REACH**2
    sum_RC = sum_RC.clip(0)  # running sums leave rounding behind
    return (sum_RC[..., :-1, :-1] + sum_RC[..., 1:, :-1] + sum_RC[..., :-1, 1:] + sum_RC[..., 1:, 1:]) / 4


def _resampled(
    value_NRC: np.ndarray, lines: tuple[np.ndarray, np.ndarray], to: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """Return the cubic spline through values on some rows and columns at others."""
    row_HR, column_WC = (_spline(line, other) for line, other in zip(lines, to, strict=True))
    return row_HR @ value_NRC @ column_WC.T


def _at(value_XHW: np.ndarray, lines: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return value_XHW[:, lines[0][:, None], lines[1]]


def _spline(at_R: np.ndarray, to: np.ndarray) -> np.ndarray:
    """Return the matrix from values at some lines to those of the spline through them at others."""
    if len(at_R) == 1:
        return np.ones((len(to), 1))
    return make_interp_spline(at_R, np.eye(len(at_R)), k=min(3, len(at_R) - 1))(to)
