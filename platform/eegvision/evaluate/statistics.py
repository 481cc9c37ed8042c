"""Is a score above chance, and how sure are we? Presentations of one image are never treated as independent."""

from __future__ import annotations

import numpy as np
from scipy.special import betainc

from eegvision.evaluate.retrieval import check_scores, row_chunks
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


def permutation_p(
    score_QN: np.ndarray, target_Q: np.ndarray, k: int, *, n_permutations: int = 10_000, seed: int = 0
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
        n_permutations: random permutations; the smallest possible p is 1 / (1 + n_permutations).
        seed: of the permutations.
    Returns:
        (observed top-k accuracy, p).
    Raises:
        InputError: no queries, k or a target out of range, NaN in the scores.
    """
    score_QN, target_Q = np.asarray(score_QN), np.asarray(target_Q)
    check_scores(score_QN)
    n_queries, n_gallery = score_QN.shape
    if n_queries == 0 or target_Q.shape != (n_queries,) or target_Q.min() < 0 or target_Q.max() >= n_gallery:
        raise InputError(
            f"{n_queries} queries need one target each among {n_gallery} gallery columns; got {target_Q!r}"
        )
    if not 1 <= k <= n_gallery or n_permutations < 1:
        raise InputError(f"k = {k} and {n_permutations} permutations; expected k in 1..{n_gallery} and at least one")
    # Every (target image, gallery column) that would be a hit were that column the target. About k per query,
    # so a permutation costs k * Q comparisons whatever the gallery's size.
    images, columns = [], []
    for rows in row_chunks(n_queries, n_gallery):
        row_H, column_H = _top_columns(score_QN[rows], k)
        images.append(target_Q[rows][row_H])
        columns.append(column_H)
    image_H, column_H = np.concatenate(images), np.concatenate(columns)
    observed = np.count_nonzero(image_H == column_H)
    generator = np.random.default_rng(seed)
    n_as_good = sum(
        np.count_nonzero(generator.permutation(n_gallery)[image_H] == column_H) >= observed
        for _ in range(n_permutations)
    )
    return observed / n_queries, (1 + int(n_as_good)) / (1 + n_permutations)


def bootstrap_interval(
    hits_Q: np.ndarray, image_Q: np.ndarray, *, level: float = 0.95, n_resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of a mean over queries when whole images are drawn again, with all their queries.

        m* = Σ_j s_j / Σ_j c_j        j over M images drawn with replacement; s, c = sum and number of an image's hits

    Args:
        hits_Q: one number per query, usually 0 or 1.
        image_Q: which image each query shows (any integers).
        level: coverage, in (0, 1).
        n_resamples: draws.
        seed: of the draws.
    Returns:
        (low, high): the (1 - level)/2 and (1 + level)/2 quantiles of m*.
    Raises:
        InputError: fewer than two images (nothing to draw from), shapes disagree, or level is out of range.
    """
    hits_Q, image_Q = np.asarray(hits_Q, dtype=np.float64), np.asarray(image_Q)
    if hits_Q.ndim != 1 or hits_Q.shape != image_Q.shape or np.isnan(hits_Q).any():
        raise InputError(
            f"expected one hit and one image per query; got shapes {hits_Q.shape} and {image_Q.shape}, or NaN"
        )
    images_M, index_Q = np.unique(image_Q, return_inverse=True)
    n_images = len(images_M)
    if n_images < 2 or not 0 < level < 1 or n_resamples < 1:
        raise InputError(
            f"an interval at level {level} from {n_resamples} draws of {n_images} images is not possible; "
            "it takes at least two images, a level in (0, 1) and one draw"
        )
    sum_M, count_M = np.bincount(index_Q, weights=hits_Q), np.bincount(index_Q)
    generator = np.random.default_rng(seed)
    mean_R = np.empty(n_resamples)
    for rows in row_chunks(n_resamples, n_images):
        drawn_RM = generator.multinomial(n_images, np.full(n_images, 1 / n_images), size=rows.stop - rows.start)
        mean_R[rows] = (drawn_RM @ sum_M) / (drawn_RM @ count_M)
    low, high = np.quantile(mean_R, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _top_columns(score_QN: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (row, column) of every item whose average rank is at most k.

    With v the k-th largest score of a row, whatever is above v is in. The t items equal to v come after g better
    ones, share the rank g + (t + 1)/2, and are in together or out together.
    """
    n_gallery = score_QN.shape[1]
    kth_Q1 = np.partition(score_QN, n_gallery - k, axis=1)[:, n_gallery - k, None]
    is_above_QN, is_tied_QN = score_QN > kth_Q1, score_QN == kth_Q1
    tied_rank_Q = is_above_QN.sum(axis=1) + (is_tied_QN.sum(axis=1) + 1) / 2
    row_H, column_H = np.nonzero(is_above_QN | (is_tied_QN & (tied_rank_Q <= k)[:, None]))
    return row_H, column_H
