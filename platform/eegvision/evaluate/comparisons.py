"""Is one configuration better than another on the same queries, and how much of it is the seed?

Axes: Q queries, J clusters (usually images), M configurations, S seeds, U units (images, subjects), R random draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import bdtr, stdtrit

from eegvision.evaluate.nulls import MaxStatistic, max_statistic
from eegvision.evaluate.retrieval import row_chunks
from eegvision.evaluate.statistics import bootstrap_interval, twoway_interval
from eegvision.vocab import InputError


@dataclass(frozen=True, kw_only=True)
class PairedComparison:
    """Mean of A minus mean of B on the same queries, its interval and p-values against no difference.

    `p` flips signs of whole images; `p_mcnemar` is None unless the values are 0 or 1 and each image is one query.
    """

    difference: float
    low: float
    high: float
    level: float
    p: float
    p_mcnemar: float | None
    n_queries: int
    n_images: int


def compare_pair(
    a_Q: np.ndarray,
    b_Q: np.ndarray,
    image_Q: np.ndarray,
    *,
    subject_Q: np.ndarray | None = None,
    level: float = 0.95,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> PairedComparison:
    """Compare two configurations on the same queries: mean difference, bootstrap interval, sign-flip p, McNemar's p.

    The interval draws images again, or with `subject_Q` subjects and images (`statistics.twoway_interval`). The p-value
    is that of `sign_flip` over images: it speaks of these subjects, the two-way interval of others like them.

    Args:
        a_Q, b_Q: hits (0 or 1), reciprocal ranks or any other score of each query.
        image_Q: which image each query shows.
        subject_Q: whose query it is (or which seed's), where that is to count as a sample.
        level: coverage of the interval.
        n_resamples: draws for the interval and for the p-value.
        seed: of both.
    Raises:
        InputError: shapes disagree, NaN, fewer than two images (or subjects).
    """
    a_Q, b_Q = np.asarray(a_Q, dtype=np.float64), np.asarray(b_Q, dtype=np.float64)
    if a_Q.shape != b_Q.shape:
        raise InputError(f"A has shape {a_Q.shape} and B {b_Q.shape}; compare them on the same queries")
    difference_Q = a_Q - b_Q
    options = {"level": level, "n_resamples": n_resamples, "seed": seed}
    if subject_Q is None:
        low, high = bootstrap_interval(difference_Q, image_Q, **options, small_sample=True)
    else:
        low, high = twoway_interval(difference_Q, subject_Q, image_Q, **options)
    n_images = len(np.unique(image_Q))
    is_binary = np.isin(a_Q, (0, 1)).all() and np.isin(b_Q, (0, 1)).all()
    return PairedComparison(
        difference=float(difference_Q.mean()),
        low=low,
        high=high,
        level=level,
        p=float(sign_flip(difference_Q[:, None], image_Q, n_permutations=n_resamples, seed=seed).p_M[0]),
        p_mcnemar=mcnemar_p(a_Q, b_Q) if is_binary and n_images == len(a_Q) else None,
        n_queries=len(a_Q),
        n_images=n_images,
    )


def mcnemar_p(a_Q: np.ndarray, b_Q: np.ndarray) -> float:
    """Exact two-sided McNemar test: of the queries only one of two got right, how many were A's?

        p = min(1, 2 P(X <= min(b, c)))        X ~ Binomial(b + c, 1/2); b only A right, c only B right

    Only for independent queries, one per image.

    Raises:
        InputError: shapes disagree or a value is neither 0 nor 1.
    """
    a_Q, b_Q = np.asarray(a_Q), np.asarray(b_Q)
    if a_Q.ndim != 1 or a_Q.shape != b_Q.shape or not (np.isin(a_Q, (0, 1)).all() and np.isin(b_Q, (0, 1)).all()):
        raise InputError(f"expected hits of 0 or 1 for the same queries; got shapes {a_Q.shape} and {b_Q.shape}")
    n_a, n_b = int(np.count_nonzero(a_Q > b_Q)), int(np.count_nonzero(a_Q < b_Q))
    return 1.0 if n_a + n_b == 0 else min(1.0, 2 * float(bdtr(min(n_a, n_b), n_a + n_b, 0.5)))


def sign_flip(
    difference_QM: np.ndarray, cluster_Q: np.ndarray, *, n_permutations: int = 10_000, seed: int = 0
) -> MaxStatistic:
    """Two-sided test of M differences from zero when whole clusters change sign, corrected for looking at M.

        t_m(ε) = |Σ_j ε_j d_jm| / sqrt(Σ_j d_jm²)        d_jm = Σ of cluster j's differences, ε_j = ±1, one ε for all m

    Under the null A and B are exchangeable within an image. With a baseline as B this is the paired comparison of
    every configuration with it. The root makes differences of unequal spread comparable; no ε changes it. A column
    without any difference has t = 0. With 2^J <= n_permutations every sign pattern is taken and the p-values are exact.

    Args:
        difference_QM: A minus B for each query and comparison, e.g. hits of M configurations minus the baseline's.
        cluster_Q: what flips as a whole, usually the image; the subject where subjects are the sample.
        n_permutations: random sign patterns.
        seed: of the patterns.
    Returns:
        `MaxStatistic` with t as statistics.
    Raises:
        InputError: shapes disagree, no query or comparison, NaN.
    """
    difference_QM, cluster_Q = np.asarray(difference_QM, dtype=np.float64), np.asarray(cluster_Q)
    if difference_QM.ndim != 2 or 0 in difference_QM.shape or cluster_Q.shape != difference_QM.shape[:1]:
        raise InputError(
            f"differences of shape {difference_QM.shape} and clusters of shape {cluster_Q.shape}; "
            "expected queries x comparisons and one cluster per query"
        )
    clusters_J, index_Q = np.unique(cluster_Q, return_inverse=True)
    n_clusters = len(clusters_J)
    if n_clusters < 2 or n_permutations < 1:
        raise InputError(
            f"{n_permutations} sign patterns of {n_clusters} clusters; expected at least one pattern and two clusters"
        )
    sum_JM = np.zeros((n_clusters, difference_QM.shape[1]))
    np.add.at(sum_JM, index_Q, difference_QM)
    root_M = np.sqrt((sum_JM**2).sum(axis=0))
    scaled_JM = sum_JM / np.where(root_M > 0, root_M, 1)
    # A pattern and its opposite give the same t, so half of them stand for all, and 0 is the observed one.
    patterns = np.arange(1, 2 ** (n_clusters - 1)) if 2**n_clusters <= n_permutations else None
    n_drawn = n_permutations if patterns is None else len(patterns)
    generator = np.random.default_rng(seed)
    null_RM = np.empty((n_drawn, sum_JM.shape[1]))
    for rows in row_chunks(n_drawn, n_clusters):
        if patterns is None:
            is_flipped_RJ = generator.random((rows.stop - rows.start, n_clusters)) < 0.5
        else:
            is_flipped_RJ = (patterns[rows, None] >> np.arange(n_clusters)) & 1
        null_RM[rows] = np.abs((1 - 2.0 * is_flipped_RJ) @ scaled_JM)
    return max_statistic(np.abs(scaled_JM.sum(axis=0)), null_RM)


@dataclass(frozen=True, kw_only=True)
class SeedComponents:
    """How much of the uncertainty of a mean score is the seed, how much the units, how much neither alone.

    The three variances are of one score; `standard_error` is of the mean over all seeds and units, `seed_share` the
    part of its square that more seeds would remove. `low` and `high` are the interval at `level`.
    """

    mean: float
    seed_variance: float
    unit_variance: float
    residual_variance: float
    standard_error: float
    seed_share: float
    low: float
    high: float
    level: float
    n_seeds: int
    n_units: int


def seed_components(score_SU: np.ndarray, *, level: float = 0.95) -> SeedComponents:
    """Variance components of scores of the same units under several seeds, seeds and units both a sample.

        y_su = μ + a_s + b_u + e_su        mean squares MS_s, MS_u, MS_e of the two-way layout without replication
        σ_s² = (MS_s - MS_e)/U,  σ_u² = (MS_u - MS_e)/S,  σ_e² = MS_e        each at least 0
        SE² = σ_s²/S + σ_u²/U + σ_e²/(S U)

    The interval is μ ± t_df SE with Satterthwaite's df from the mean squares. A unit is an image (mean of its queries'
    hits) or a subject (its accuracy). Source: Searle, Casella & McCulloch 1992, Variance components, ch. 4.

    Args:
        score_SU: one row per seed, one column per unit, without gaps.
        level: coverage, in (0, 1).
    Raises:
        InputError: fewer than two seeds or units, a value that is not finite, or level out of range.
    """
    score_SU = np.asarray(score_SU, dtype=np.float64)
    if score_SU.ndim != 2 or min(score_SU.shape) < 2 or not np.isfinite(score_SU).all() or not 0 < level < 1:
        raise InputError(
            f"scores of shape {score_SU.shape} at level {level}: expected seeds x units, at least two of each, "
            "all finite, and a level in (0, 1)"
        )
    n_seeds, n_units = score_SU.shape
    mean = score_SU.mean()
    by_seed_S, by_unit_U = score_SU.mean(axis=1) - mean, score_SU.mean(axis=0) - mean
    seed_square = n_units * (by_seed_S**2).sum() / (n_seeds - 1)
    unit_square = n_seeds * (by_unit_U**2).sum() / (n_units - 1)
    residual_SU = score_SU - mean - by_seed_S[:, None] - by_unit_U
    residual_df = (n_seeds - 1) * (n_units - 1)
    residual = (residual_SU**2).sum() / residual_df
    seed_variance = max(0.0, (seed_square - residual) / n_units)
    unit_variance = max(0.0, (unit_square - residual) / n_seeds)
    variance = seed_variance / n_seeds + unit_variance / n_units + residual / (n_seeds * n_units)
    spread = seed_square**2 / (n_seeds - 1) + unit_square**2 / (n_units - 1) + residual**2 / residual_df
    df = (variance * n_seeds * n_units) ** 2 / spread if spread > 0 else 1.0
    half = -float(stdtrit(max(df, 1.0), (1 - level) / 2)) * variance**0.5
    return SeedComponents(
        mean=float(mean),
        seed_variance=float(seed_variance),
        unit_variance=float(unit_variance),
        residual_variance=float(residual),
        standard_error=float(variance**0.5),
        seed_share=float(seed_variance / n_seeds / variance) if variance > 0 else 0.0,
        low=float(mean - half),
        high=float(mean + half),
        level=level,
        n_seeds=n_seeds,
        n_units=n_units,
    )
