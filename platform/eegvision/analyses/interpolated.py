"""Saliency maps from few exact values: a grid for each size of square, made finer where the sum of maps needs it.

Axes: N EEG segments, S scales, P places, H height, W width; R rows and C columns of a grid, O those left out of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import make_interp_spline

from eegvision.vocab import InputError

Drop = Callable[[np.ndarray, int, int], np.ndarray]
"""From places [P, 2] (row, column), the side of the square and the usual distance of places to S_σ [N, P]."""

# Even, so that every second row can be left out with the outermost staying; 6 steps are 37 px in a picture of 224.
_FIRST_STEPS = 6

# Mean squared error of a spline over that of one through every second row (or column) at the rows left out: 0.07 to
# 0.49, mostly 0.2, for squares of 3 to 65 px on a trained AlexNet at 224 px, 6 to 48 steps. The upper end, because
# where squares of several sizes err alike the sum errs more.
_ERROR_SHARE = 0.5


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
    """Return S_σ at every pixel, cubic splines through the values of `drop` on one grid for each scale.

        r² = 1 - 0.5 Σ_σ w_σ² (q_σ,rows + q_σ,columns) / var(Σ_σ w_σ S_σ)     enough in all segments, or all pixels done

    q is the mean squared error, at every second row, of the spline through the others: leaving out costs no
    evaluations. The rows or columns that are doubled next are those of the scale that promise most for each evaluation.

    Args:
        drop: exact values.
        shape: H and W.
        fidelity: r that is to be reached.
        weights: from maps [N, S, H, W] to the weight of each in the sum, [N, S].
    Returns:
        float32 [N, S, H, W].
    """
    grids = [_Grid.first(drop, shape, scale_px) for scale_px in scales_px]
    drop_NSHW = np.stack([grid.map_NHW() for grid in grids], axis=1)
    while True:
        weight_NS = weights(drop_NSHW)
        variance_N = np.einsum("nshw,ns->nhw", drop_NSHW, weight_NS, dtype=np.float64).var(axis=(1, 2))
        left_out_NSA = np.stack([grid.left_out_NA() for grid in grids], axis=1) * weight_NS[:, :, None] ** 2
        error_NSA = _ERROR_SHARE * left_out_NSA / np.maximum(variance_N, np.finfo(np.float32).tiny)[:, None, None]
        if (1 - error_NSA.sum(axis=(1, 2)) >= fidelity**2).all():
            return drop_NSHW
        missing_SA = np.array([[grid.n_missing(axis) for axis in (0, 1)] for grid in grids])
        if not missing_SA.any():
            return drop_NSHW
        worth_SA = np.where(missing_SA > 0, error_NSA.max(axis=0) / np.maximum(missing_SA, 1), -1)
        best, axis = np.unravel_index(worth_SA.argmax(), worth_SA.shape)
        grids[best] = grids[best].doubled(drop, int(axis))
        drop_NSHW[:, best] = grids[best].map_NHW()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Grid:
    """Exact S_σ of one scale at the crossings of some rows and columns, the outermost among them."""

    scale_px: int
    shape: tuple[int, int]
    steps: tuple[int, int]
    value_NRC: np.ndarray

    @staticmethod
    def first(drop: Drop, shape: tuple[int, int], scale_px: int) -> _Grid:
        steps = (_FIRST_STEPS, _FIRST_STEPS)
        rows, columns = (_lines(n, n_steps) for n, n_steps in zip(shape, steps, strict=True))
        value_NP = drop(_crossings(rows, columns), scale_px, max(1, max(shape) // _FIRST_STEPS))
        value_NRC = value_NP.reshape(-1, len(rows), len(columns))
        return _Grid(scale_px=scale_px, shape=shape, steps=steps, value_NRC=value_NRC)

    def lines(self, axis: int) -> np.ndarray:
        """Return the rows (axis 0) or columns (axis 1) of the picture that the grid has."""
        return _lines(self.shape[axis], self.steps[axis])

    def n_missing(self, axis: int) -> int:
        """Evaluations that twice as many steps would take."""
        n_new = len(_lines(self.shape[axis], 2 * self.steps[axis])) - len(self.lines(axis))
        return n_new * len(self.lines(1 - axis))

    def doubled(self, drop: Drop, axis: int) -> _Grid:
        """Return the grid with a line between any two of this axis that are not neighbours."""
        steps = (self.steps[0] * (2 - axis), self.steps[1] * (1 + axis))
        old, new, across = self.lines(axis), _lines(self.shape[axis], steps[axis]), self.lines(1 - axis)
        added = np.setdiff1d(new, old)
        place_P2 = _crossings(added, across) if axis == 0 else _crossings(across, added)
        spacing_px = max(1, round(max(n / step for n, step in zip(self.shape, steps, strict=True))))
        shape = (-1, len(added), len(across)) if axis == 0 else (-1, len(across), len(added))
        added_NRC = drop(place_P2, self.scale_px, spacing_px).reshape(shape)
        both_NRC = np.concatenate([self.value_NRC, added_NRC], axis=1 + axis)
        order = np.argsort(np.concatenate([old, added]))
        value_NRC = np.take(both_NRC, order, axis=1 + axis)
        return _Grid(scale_px=self.scale_px, shape=self.shape, steps=steps, value_NRC=value_NRC)

    def left_out_NA(self) -> np.ndarray:
        """Return the mean squared error at every second row, and column, of splines without them; 0 where all are."""
        errors = []
        for axis in (0, 1):
            lines = self.lines(axis)
            out = np.arange(1, len(lines) - 1, 2)
            if len(lines) == self.shape[axis] or len(out) == 0:
                errors.append(np.zeros(len(self.value_NRC)))
                continue
            kept = np.setdiff1d(np.arange(len(lines)), out)
            value_NLX = np.moveaxis(self.value_NRC, 1 + axis, 1).astype(np.float64)
            found_NOX = _spline(lines[kept], lines[out]) @ value_NLX[:, kept]
            errors.append(((found_NOX - value_NLX[:, out]) ** 2).mean(axis=(1, 2)))
        return np.stack(errors, axis=1)

    def map_NHW(self) -> np.ndarray:
        """Return the cubic spline through the values, at every pixel, float32."""
        row_HR, column_WC = (_spline(self.lines(axis), np.arange(self.shape[axis])) for axis in (0, 1))
        return (row_HR @ self.value_NRC.astype(np.float64) @ column_WC.T).astype(np.float32)


def _lines(n: int, steps: int) -> np.ndarray:
    """Return steps + 1 of n lines, about equally far apart, with both ends; all of them where there are no more."""
    return np.unique(np.linspace(0, n - 1, steps + 1).round().astype(int))


def _crossings(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)


def _spline(at_R: np.ndarray, to: np.ndarray) -> np.ndarray:
    """Return the matrix from values at some lines to those of the spline through them at others."""
    if len(at_R) == 1:
        return np.ones((len(to), 1))
    return make_interp_spline(at_R, np.eye(len(at_R)), k=min(3, len(at_R) - 1))(to)
