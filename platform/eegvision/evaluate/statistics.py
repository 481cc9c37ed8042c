"""Is a score above chance, and how sure are we? Presentations of one image are never treated as independent.

Axes: Q queries, N gallery images, M images, S subjects, R random draws, U units (images), K classes.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy.special import betainc, betaincinv, ndtr, ndtri, stdtrit

from eegvision.evaluate.nulls import hit_pairs, hits_under, permutations_within
from eegvision.evaluate.retrieval import row_chunks
from eegvision.vocab import InputError


def chance_topk(n: int, k: int) -> float:
    """Top-k accuracy of a random order of n gallery items: min(k, n) / n.

    Raises:
        InputError: n < 1 or k < 1.
    """
    if n < 1 or k < 1:
        raise InputError(f"a gallery of {n} and k = {k} have no chance level; both must be at least 1")
    return min(k, n) / n


def binomial_p(hits: int, n: int, chance: float) -> float:
    """Probability of at least `hits` successes in n independent trials at the chance level.

        P(X >= h) = I_chance(h, n - h + 1)        regularised incomplete beta function, exact

    Only for independent queries (one per image); `permutation_p` is for repeated presentations.

    Raises:
        InputError: hits outside 0..n, or chance outside [0, 1].
    """
    if not 0 <= hits <= n or not 0 <= chance <= 1:
        raise InputError(f"{hits} hits of {n} at chance {chance}: hits must lie in 0..n and chance in [0, 1]")
    return 1.0 if hits == 0 else float(betainc(hits, n - hits + 1, chance))


def significance_line(n: int, chance: float, alpha: float = 0.05, comparisons: int = 1) -> float:
    """Smallest share of n queries right that guessing reaches with probability alpha / comparisons at most.

        line = min{h : P(X >= h) <= alpha / comparisons} / n        X ~ Binomial(n, chance)

    The line to draw beside a score. Dividing by the number of comparisons (Bonferroni) is exact enough for a drawing;
    `nulls.sweep_permutation` is sharper. As `binomial_p`, only for independent queries. Infinite where even n of n
    right would not be enough.

    Raises:
        InputError: n < 1, comparisons < 1, or chance or alpha out of range.
    """
    if n < 1 or comparisons < 1 or not 0 <= chance <= 1 or not 0 < alpha < 1:
        raise InputError(
            f"no line for n = {n}, chance {chance}, alpha {alpha} and {comparisons} comparisons; "
            "n and comparisons start at 1, chance lies in [0, 1] and alpha in (0, 1)"
        )
    hits = np.arange(1, n + 1)
    is_enough = betainc(hits, n - hits + 1, chance) <= alpha / comparisons
    return float(hits[is_enough.argmax()] / n) if is_enough.any() else float("inf")


def proportion_interval(
    hits: int, n: int, *, level: float = 0.95, method: Literal["clopper-pearson", "wilson"] = "clopper-pearson"
) -> tuple[float, float]:
    """Interval of a proportion from n independent trials.

        Clopper-Pearson: the p at which P(X >= hits) or P(X <= hits) is (1 - level)/2; covers at least `level` always
        Wilson: {p : |hits/n - p| <= z sqrt(p (1 - p)/n)}; shorter, covers `level` on average over p

    Only for independent queries; `bootstrap_interval` is for repeated presentations. Sources: Clopper & Pearson 1934,
    Biometrika 26, 404; Wilson 1927, JASA 22, 209.

    Raises:
        InputError: n < 1, hits outside 0..n, level outside (0, 1) or an unknown method.
    """
    if n < 1 or not 0 <= hits <= n or not 0 < level < 1:
        raise InputError(f"{hits} hits of {n} at level {level}: hits must lie in 0..n, n start at 1, level in (0, 1)")
    tail = (1 - level) / 2
    if method == "clopper-pearson":
        low = 0.0 if hits == 0 else float(betaincinv(hits, n - hits + 1, tail))
        high = 1.0 if hits == n else float(betaincinv(hits + 1, n - hits, 1 - tail))
        return low, high
    if method != "wilson":
        raise InputError(f"method is {method!r}; expected 'clopper-pearson' or 'wilson'")
    z2 = float(ndtri(tail)) ** 2
    centre = (hits + z2 / 2) / (n + z2)
    half = (z2 * (hits * (n - hits) / n + z2 / 4)) ** 0.5 / (n + z2)
    # At the ends the formula gives 0 and 1 but for rounding.
    return (0.0 if hits == 0 else centre - half), (1.0 if hits == n else centre + half)


def permutation_p(
    score_QN: np.ndarray,
    target_Q: np.ndarray,
    k: int,
    *,
    stratum_N: np.ndarray | None = None,
    n_permutations: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Top-k accuracy and its p-value when images trade identities.

        a(π) = mean_q [rank of π(target_q) among row q <= k]        π a random permutation of the N gallery images
        p = (1 + #{π : a(π) >= a(identity)}) / (1 + n_permutations)

    All segments of one image move together, so repeated presentations of an image add no false certainty.
    The +1 counts the observed order itself and keeps p valid (Phipson & Smyth 2010, SAGMB 9, 39).

    Args:
        score_QN: higher is more similar, without NaN; ties as in `retrieval.ranks`.
        target_Q: gallery column of each query's image.
        k: ranks that count as a hit.
        stratum_N: images trade only within a stratum (block, session, category), so that what the strata alone tell
            is no evidence; None for all with all.
        n_permutations: random permutations; the smallest possible p is 1 / (1 + n_permutations).
        seed: of the permutations.
    Returns:
        (observed top-k accuracy, p).
    Raises:
        InputError: no queries, k or a target out of range, NaN in the scores.
    """
    image_H, column_H = hit_pairs(score_QN, target_Q, k)
    n_queries, n_gallery = np.shape(score_QN)
    stratum_N = np.zeros(n_gallery, dtype=np.int64) if stratum_N is None else np.asarray(stratum_N)
    if stratum_N.shape != (n_gallery,):
        raise InputError(f"{n_gallery} gallery images need one stratum each; got {stratum_N.shape}")
    observed = np.count_nonzero(image_H == column_H)
    n_as_good = sum(
        np.count_nonzero(hits_under(image_H, column_H, permutation_RN) >= observed)
        for _, permutation_RN in permutations_within(stratum_N, n_permutations, seed)
    )
    return observed / n_queries, (1 + int(n_as_good)) / (1 + n_permutations)


def label_permutation_p(
    predicted_Q: np.ndarray,
    label_Q: np.ndarray,
    unit_Q: np.ndarray,
    *,
    stratum_Q: np.ndarray | None = None,
    n_permutations: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Accuracy of a classifier and its p-value when units trade labels, within strata where given.

        a(π) = mean_q [prediction_q = label of π(unit_q)]        p as in `permutation_p`

    A unit is what was labelled as a whole, usually the image: all its segments share a label and move together. With
    blocks as strata, a classifier that only knows the block scores no better than its permutations.

    Args:
        predicted_Q, label_Q: predicted and true class.
        unit_Q: which unit each segment belongs to (any integers or names).
        stratum_Q: stratum of each segment; None for one stratum.
        n_permutations, seed: of the permutations.
    Returns:
        (observed accuracy, p).
    Raises:
        InputError: no segments, shapes disagree, or a unit with two labels or in two strata.
    """
    predicted_Q, label_Q, unit_Q = np.asarray(predicted_Q), np.asarray(label_Q), np.asarray(unit_Q)
    stratum_Q = np.zeros(label_Q.shape, dtype=np.int64) if stratum_Q is None else np.asarray(stratum_Q)
    if predicted_Q.ndim != 1 or not predicted_Q.shape == label_Q.shape == unit_Q.shape == stratum_Q.shape:
        raise InputError(
            "expected one prediction, label, unit and stratum per segment; got shapes "
            f"{predicted_Q.shape}, {label_Q.shape}, {unit_Q.shape} and {stratum_Q.shape}"
        )
    if predicted_Q.size == 0:
        raise InputError("there are no predictions; give at least one segment")
    unit_U, first_U, unit_Q = np.unique(unit_Q, return_index=True, return_inverse=True)
    for what, value_Q in (("label", label_Q), ("stratum", stratum_Q)):
        is_other_Q = value_Q != value_Q[first_U][unit_Q]
        if is_other_Q.any():
            unit = unit_U[unit_Q[is_other_Q]].tolist()[0]
            raise InputError(f"unit {unit!r} has more than one {what}; only what shares it can be moved as a whole")
    class_K, code_U = np.unique(label_Q[first_U], return_inverse=True)
    is_known_Q = np.isin(predicted_Q, class_K)
    count_UK = np.zeros((len(unit_U), len(class_K)), dtype=np.int64)
    np.add.at(count_UK, (unit_Q[is_known_Q], np.searchsorted(class_K, predicted_Q[is_known_Q])), 1)
    row_U = np.arange(len(unit_U))
    observed = count_UK[row_U, code_U].sum()
    n_as_good = sum(
        np.count_nonzero(count_UK[row_U, code_U[permutation_RU]].sum(axis=1) >= observed)
        for _, permutation_RU in permutations_within(stratum_Q[first_U], n_permutations, seed)
    )
    return float(observed / len(label_Q)), (1 + int(n_as_good)) / (1 + n_permutations)


def bootstrap_interval(
    hits_Q: np.ndarray,
    image_Q: np.ndarray,
    *,
    level: float = 0.95,
    n_resamples: int = 10_000,
    seed: int = 0,
    small_sample: bool = False,
) -> tuple[float, float]:
    """Percentile interval of a mean over queries when whole images are drawn again, with all their queries.

        m* = Σ_j s_j / Σ_j c_j        j over M images drawn with replacement; s, c = sum and number of an image's hits

    The plain percentiles of M images are too narrow by about sqrt(1 - 1/M) and by z in place of t. `small_sample` takes
    wider ones, z -> t_{M-1} sqrt(M / (M - 1)), which matters below some 50 images (Hesterberg 2015, Am. Stat. 69, 371).

    Args:
        hits_Q: one number per query, usually 0 or 1; differences of two configurations for a paired interval.
        image_Q: which image each query shows (any integers).
        level: coverage, in (0, 1).
        n_resamples: draws.
        seed: of the draws.
        small_sample: widen as above.
    Returns:
        (low, high): the (1 - level)/2 and (1 + level)/2 quantiles of m*, or the wider ones.
    Raises:
        InputError: fewer than two images (nothing to draw from), shapes disagree, or level is out of range.
    """
    hits_Q, [(images_M, index_Q)] = _checked_values(hits_Q, image_Q)
    n_images = len(images_M)
    _check_draws(level, n_resamples, images=n_images)
    sum_M, count_M = np.bincount(index_Q, weights=hits_Q), np.bincount(index_Q)
    generator = np.random.default_rng(seed)
    mean_R = np.empty(n_resamples)
    for rows in row_chunks(n_resamples, 8 * n_images):
        drawn_RM = _times_drawn(generator, n_images, rows.stop - rows.start)
        mean_R[rows] = (drawn_RM @ sum_M) / (drawn_RM @ count_M)
    tail = (1 - level) / 2
    if small_sample:
        tail = float(ndtr(stdtrit(n_images - 1, tail) * (n_images / (n_images - 1)) ** 0.5))
    return _quantiles(mean_R, tail)


def twoway_interval(
    hits_Q: np.ndarray,
    subject_Q: np.ndarray,
    image_Q: np.ndarray,
    *,
    level: float = 0.95,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Interval of a mean over queries when both subjects and images are a sample: they are drawn again independently.

        m* = Σ_sm u_s w_m h_sm / Σ_sm u_s w_m c_sm        u, w multinomial; h, c = sum and number of hits of a cell

    This is the pigeonhole bootstrap (Owen 2007, Ann. Appl. Stat. 1, 386). Its variance counts what is neither subject
    nor image about three times, and its percentiles are too narrow for ten subjects. So the quantiles are taken at
    Φ(±z'), which keeps them within what was drawn:

        z' = t_df sqrt(V / Var(m*)),  V = V_s S/(S-1) + V_m M/(M-1) - V_sm,  df = V² / (A²/(S-1) + B²/(M-1))

    with V_s, V_m, V_sm the sums of squared residuals by subject, image and cell over n², A and B the first two terms
    of V (variance: Cameron, Gelbach & Miller 2011, J. Bus. Econ. Stat. 29, 238; df: Satterthwaite), V >= max(A, B).
    Seeds in place of subjects, or differences in place of hits, work alike. Below five subjects the draws are too few
    different ones for the interval to be more than a rough guide.

    Raises:
        InputError: fewer than two subjects or images, shapes disagree, level out of range, or so few shared images that
            a draw can be empty.
    """
    hits_Q, [(subjects_S, row_Q), (images_M, column_Q)] = _checked_values(hits_Q, subject_Q, image_Q)
    n_subjects, n_images = len(subjects_S), len(images_M)
    _check_draws(level, n_resamples, subjects=n_subjects, images=n_images)
    cell_Q, shape = row_Q * n_images + column_Q, (n_subjects, n_images)
    sum_SM = np.bincount(cell_Q, weights=hits_Q, minlength=n_subjects * n_images).reshape(shape)
    count_SM = np.bincount(cell_Q, minlength=n_subjects * n_images).reshape(shape)
    generator = np.random.default_rng(seed)
    mean_R = np.empty(n_resamples)
    for rows in row_chunks(n_resamples, 8 * (n_subjects + n_images)):
        size = rows.stop - rows.start
        drawn_RS, drawn_RM = _times_drawn(generator, n_subjects, size), _times_drawn(generator, n_images, size)
        drawn_R = ((drawn_RS @ count_SM) * drawn_RM).sum(axis=1)
        if not drawn_R.all():
            raise InputError(
                f"{n_subjects} subjects and {n_images} images share so few queries that a draw of them was empty; "
                "use `bootstrap_interval` with one of the two"
            )
        mean_R[rows] = ((drawn_RS @ sum_SM) * drawn_RM).sum(axis=1) / drawn_R
    residual_SM = (sum_SM - hits_Q.mean() * count_SM) / len(hits_Q)
    by_subject = (residual_SM.sum(axis=1) ** 2).sum() * n_subjects / (n_subjects - 1)
    by_image = (residual_SM.sum(axis=0) ** 2).sum() * n_images / (n_images - 1)
    variance = max(by_subject + by_image - (residual_SM**2).sum(), by_subject, by_image)
    drawn_variance = mean_R.var()
    if drawn_variance == 0 or variance == 0:
        return _quantiles(mean_R, (1 - level) / 2)
    df = variance**2 / (by_subject**2 / (n_subjects - 1) + by_image**2 / (n_images - 1))
    z = -float(stdtrit(df, (1 - level) / 2)) * (variance / drawn_variance) ** 0.5
    return _quantiles(mean_R, float(ndtr(-z)))


def _times_drawn(generator: np.random.Generator, n: int, n_resamples: int) -> np.ndarray:
    """How often each of n items comes up in n draws with replacement, float64 [n_resamples, n]."""
    # One count over all resamples: several times faster than drawing from a multinomial.
    drawn = generator.integers(0, n, (n_resamples, n)) + n * np.arange(n_resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=n_resamples * n).reshape(n_resamples, n).astype(np.float64)


def _quantiles(value_R: np.ndarray, tail: float) -> tuple[float, float]:
    low, high = np.quantile(value_R, [tail, 1 - tail])
    return float(low), float(high)


def _check_draws(level: float, n_resamples: int, **n_by_factor: int) -> None:
    if min(n_by_factor.values()) < 2 or not 0 < level < 1 or n_resamples < 1:
        counts = " and ".join(f"{n} {factor}" for factor, n in n_by_factor.items())
        factors = " and ".join(f"at least two {factor}" for factor in n_by_factor)
        raise InputError(
            f"an interval at level {level} from {n_resamples} draws of {counts} is not possible; "
            f"it takes {factors}, a level in (0, 1) and one draw"
        )


def _checked_values(
    value_Q: np.ndarray, *factors: np.ndarray
) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """Return the values as float64 and, for each factor, its levels and the level's number of each query."""
    value_Q = np.asarray(value_Q, dtype=np.float64)
    if value_Q.ndim != 1 or np.isnan(value_Q).any() or any(np.shape(factor) != value_Q.shape for factor in factors):
        shapes = " and ".join(str(np.shape(factor)) for factor in factors)
        raise InputError(
            f"expected one value and one of each factor per query; got shapes {value_Q.shape} and {shapes}, or NaN"
        )
    return value_Q, [np.unique(factor, return_inverse=True) for factor in factors]
