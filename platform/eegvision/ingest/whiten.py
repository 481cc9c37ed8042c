"""Scaling fitted on training segments: z-score, robust, multivariate noise normalisation (MVNN). Arrays in, arrays out.

Everything is computed in float64 over chunks of rows, so that a session larger than memory allows can be mapped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from eegvision.vocab import InputError

Scale = Literal["none", "zscore", "robust", "mvnn-epochs", "mvnn-time"]
SCALES: tuple[Scale, ...] = get_args(Scale)

_CHUNK_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True, eq=False)
class Scaling:
    """x <- weight (x - offset) for every sample; `weight_CC` is diagonal unless it whitens."""

    offset_C: np.ndarray
    weight_CC: np.ndarray


def fit(
    eeg_NCT: np.ndarray, is_train_N: np.ndarray, condition_N: np.ndarray, scale: Scale, channels: Sequence[str]
) -> Scaling:
    """Fit a scaling on the training segments of one session.

        zscore:  x <- (x - mean_c) / std_c            mean, population std over training segments and samples
        robust:  x <- (x - median_c) / (q75_c - q25_c)
        mvnn-*:  x <- Sigma^(-1/2) x                  Sigma: mean of shrunk covariances of the noise

    mvnn-epochs: a covariance over the samples of every segment, mean over the repetitions of a condition, then over
    conditions. mvnn-time: a covariance over the repetitions of a condition at every sample, mean over samples, then
    over conditions; those with one repetition have none and are left out. Source: Guggenmos, Sterzer & Cichy 2018,
    NeuroImage 173, 434-447; shrinkage as in `mean_shrunk_covariance`.

    Raises:
        InputError: there is no training segment, a channel that is constant or not finite in them, no repetition for
            mvnn-time, or channels that depend on one another in spite of the shrinkage.
    """
    rows_M = np.flatnonzero(is_train_N)
    if len(rows_M) == 0:
        raise InputError(f"{scale} is fitted on training segments, and this session has none; use scale 'none'")
    center_C, spread_C = _moments(eeg_NCT, rows_M) if scale != "robust" else _quartiles(eeg_NCT, rows_M)
    _refuse_useless(center_C, spread_C, channels, scale)
    if scale in ("zscore", "robust"):
        return Scaling(offset_C=center_C, weight_CC=np.diag(1 / spread_C))
    covariance = _mvnn_epochs if scale == "mvnn-epochs" else _mvnn_time
    sigma_CC = covariance(eeg_NCT, rows_M, np.asarray(condition_N)[rows_M])
    return Scaling(offset_C=np.zeros(len(channels)), weight_CC=_inverse_square_root(sigma_CC))


def apply(scaling: Scaling, eeg_NCT: np.ndarray) -> np.ndarray:
    """Return the scaled segments, in the precision they came in."""
    out_NCT = np.empty(eeg_NCT.shape, eeg_NCT.dtype)
    is_diagonal = not np.count_nonzero(scaling.weight_CC - np.diag(np.diag(scaling.weight_CC)))
    for rows in chunks(len(eeg_NCT), eeg_NCT[:1].size):
        centred_NCT = eeg_NCT[rows].astype(np.float64) - scaling.offset_C[:, None]
        if is_diagonal:
            out_NCT[rows] = np.diag(scaling.weight_CC)[:, None] * centred_NCT
        else:
            out_NCT[rows] = scaling.weight_CC @ centred_NCT
    return out_NCT


def mean_shrunk_covariance(x_BCS: np.ndarray, weight_B: np.ndarray) -> np.ndarray:
    """Return sum_b weight_b Sigma_b, Sigma_b the Ledoit-Wolf shrunk covariance of x_b over its samples S.

        Sigma_b = D [(1 - s) Z Z' / S + s mu I] D      D = diag(std_c), Z = D^-1 (x_b - mean), mu = tr(Z Z' / S) / C

    with the shrinkage s of Ledoit & Wolf 2004, Journal of Multivariate Analysis 88, 365-411, on the standardised
    channels, as scikit-learn's linear discriminant analysis does with shrinkage "auto". No Sigma_b is ever stored.
    """
    n_chans, n_samples = x_BCS.shape[1:]
    total_CC = np.zeros((n_chans, n_chans))
    for rows in chunks(len(x_BCS), n_chans * n_samples):
        x = x_BCS[rows].astype(np.float64)
        mean_BC = x.mean(axis=-1)
        x -= mean_BC[..., None]
        var_BC = (x**2).mean(axis=-1)
        # Variance that is only rounding: such a channel is left as it is.
        eps = n_samples * np.finfo(np.float64).eps
        std_BC = np.sqrt(np.where(var_BC <= eps * var_BC + (eps * mean_BC) ** 2, 1.0, var_BC))
        shrinkage_B, mu_B = _shrinkage(x / std_BC[..., None])
        w_B = weight_B[rows]
        total_CC[np.diag_indices(n_chans)] += (w_B * shrinkage_B * mu_B) @ std_BC**2
        x *= np.sqrt(w_B * (1 - shrinkage_B) / n_samples)[:, None, None]
        flat_CX = x.transpose(1, 0, 2).reshape(n_chans, -1)
        total_CC += flat_CX @ flat_CX.T
    return total_CC


def chunks(n_rows: int, values_per_row: int) -> Iterator[slice]:
    """Yield slices of rows that take about 64 MiB as float64."""
    step = max(1, _CHUNK_BYTES // (8 * max(1, values_per_row)))
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def _shrinkage(z_BCS: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the shrinkage of every covariance and its target mu; z has mean 0 over samples."""
    n_chans, n_samples = z_BCS.shape[1:]
    square_BCS = z_BCS**2
    # ||Z Z'|| = ||Z' Z||: the smaller of the two
    gram = z_BCS @ z_BCS.swapaxes(1, 2) if n_chans <= n_samples else z_BCS.swapaxes(1, 2) @ z_BCS
    norm_B = (gram**2).sum(axis=(1, 2)) / n_samples**2
    trace_B = square_BCS.sum(axis=(1, 2)) / n_samples
    mu_B = trace_B / n_chans
    fourth_B = (square_BCS.sum(axis=1) ** 2).sum(axis=-1)
    delta_B = (norm_B - 2 * mu_B * trace_B + n_chans * mu_B**2) / n_chans
    beta_B = np.minimum((fourth_B / n_samples - norm_B) / (n_chans * n_samples), delta_B)
    is_shrunk_B = (beta_B != 0) & (n_chans > 1)
    return np.divide(beta_B, delta_B, out=np.zeros_like(mu_B), where=is_shrunk_B), mu_B


def _mvnn_epochs(eeg_NCT: np.ndarray, rows_M: np.ndarray, condition_M: np.ndarray) -> np.ndarray:
    _, index_M, count_K = np.unique(condition_M, return_inverse=True, return_counts=True)
    weight_M = 1 / (count_K[index_M] * len(count_K))
    total_CC = np.zeros((eeg_NCT.shape[1],) * 2)
    for part in chunks(len(rows_M), eeg_NCT[:1].size):
        total_CC += mean_shrunk_covariance(eeg_NCT[rows_M[part]], weight_M[part])
    return total_CC


def _mvnn_time(eeg_NCT: np.ndarray, rows_M: np.ndarray, condition_M: np.ndarray) -> np.ndarray:
    _, index_M, count_K = np.unique(condition_M, return_inverse=True, return_counts=True)
    n_repeated = int((count_K > 1).sum())
    if n_repeated == 0:
        raise InputError(
            "mvnn-time needs images shown at least twice among a session's training segments, and there are none; "
            "use mvnn-epochs"
        )
    n_chans, n_times = eeg_NCT.shape[1:]
    by_condition = rows_M[np.argsort(index_M, kind="stable")]
    start_K = np.cumsum(count_K) - count_K
    total_CC = np.zeros((n_chans, n_chans))
    for n_reps in np.unique(count_K[count_K > 1]):
        rows_KR = by_condition[start_K[count_K == n_reps][:, None] + np.arange(n_reps)]
        for part in chunks(len(rows_KR), n_reps * n_chans * n_times):
            x_BCR = eeg_NCT[rows_KR[part]].transpose(0, 3, 2, 1).reshape(-1, n_chans, n_reps)
            total_CC += mean_shrunk_covariance(x_BCR, np.full(len(x_BCR), 1 / (n_times * n_repeated)))
    return total_CC


def _inverse_square_root(sigma_CC: np.ndarray) -> np.ndarray:
    value_C, vector_CC = np.linalg.eigh(sigma_CC)
    if value_C[0] <= 1e-12 * value_C[-1]:
        raise InputError(
            f"MVNN cannot whiten these channels: eigenvalues of the covariance run from {value_C[0]:.1e} to "
            f"{value_C[-1]:.1e}; leave out channels that repeat others or are thousands of times weaker"
        )
    return (vector_CC / np.sqrt(value_C)) @ vector_CC.T


def _moments(eeg_NCT: np.ndarray, rows_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    n_values = len(rows_M) * eeg_NCT.shape[2]
    parts = list(chunks(len(rows_M), eeg_NCT[:1].size))
    mean_C = sum(eeg_NCT[rows_M[part]].sum(axis=(0, 2), dtype=np.float64) for part in parts) / n_values
    power_C = np.zeros(eeg_NCT.shape[1])
    for part in parts:
        power_C += ((eeg_NCT[rows_M[part]] - mean_C[:, None]) ** 2).sum(axis=(0, 2))
    return mean_C, np.sqrt(power_C / n_values)


def _quartiles(eeg_NCT: np.ndarray, rows_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    quartile_C3 = np.array([np.percentile(eeg_NCT[rows_M, c], (25, 50, 75)) for c in range(eeg_NCT.shape[1])])
    quartile_C3 = quartile_C3.astype(np.float64)
    return quartile_C3[:, 1], quartile_C3[:, 2] - quartile_C3[:, 0]


def _refuse_useless(center_C: np.ndarray, spread_C: np.ndarray, channels: Sequence[str], scale: Scale) -> None:
    for name, center, spread in zip(channels, center_C, spread_C, strict=True):
        if not np.isfinite([center, spread]).all():
            raise InputError(
                f"channel {name} has NaN or infinite EEG in the session's training segments, so {scale} cannot be "
                "fitted; drop such segments (--on-bad drop)"
            )
        if spread <= 1e-12 * abs(center):  # 0, but for rounding
            raise InputError(
                f"channel {name} is constant in the session's training segments (spread {spread:.1e}), so {scale} "
                "cannot be fitted; leave the channel out (--channels)"
            )
