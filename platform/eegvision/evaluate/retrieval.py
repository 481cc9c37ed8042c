"""Retrieval scores: rank the gallery for every query and count. Arrays in, numbers out; `zero_shot` puts them together.

Axes: Q queries, N gallery items, D embedding.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from eegvision.vocab import InputError

Normalise = Literal["both", "query", "gallery", "none"]

# Comparing scores makes a few boolean arrays of one byte per score; rows are taken in chunks of so many scores.
_CHUNK = 2**24


def ranks(score_QN: np.ndarray, target_Q: np.ndarray) -> np.ndarray:
    """Rank of each query's target among the gallery, 1 the best, the average rank for ties.

        r_q = 1 + #{n : s_qn > s_qt} + (#{n : s_qn = s_qt} - 1) / 2        t = target_q

    So a model that gives everything the same score has rank (N + 1) / 2, not 1.

    Args:
        score_QN: higher is more similar; any real dtype, without NaN.
        target_Q: column of the right gallery item of each query.
    Returns:
        float64 of shape (Q,), in [1, N]; multiples of one half.
    Raises:
        InputError: shapes disagree, a target is no column, or a score is NaN (every comparison with NaN is false,
            so it would count as a perfect rank).
    """
    score_QN, target_Q = np.asarray(score_QN), np.asarray(target_Q)
    check_scores(score_QN)
    n_queries, n_gallery = score_QN.shape
    if target_Q.shape != (n_queries,):
        raise InputError(
            f"target_Q has shape {target_Q.shape}; expected one gallery column for each of {n_queries} rows"
        )
    if target_Q.size and not (target_Q.min() >= 0 and target_Q.max() < n_gallery):
        raise InputError(f"targets run from {target_Q.min()} to {target_Q.max()}; the gallery has {n_gallery} columns")
    rank_Q = np.empty(n_queries)
    for rows in row_chunks(n_queries, n_gallery):
        chunk_QN = score_QN[rows]
        own_Q1 = np.take_along_axis(chunk_QN, target_Q[rows, None], axis=1)
        n_better_Q = np.count_nonzero(chunk_QN > own_Q1, axis=1)
        n_equal_Q = np.count_nonzero(chunk_QN == own_Q1, axis=1)
        rank_Q[rows] = 1 + n_better_Q + (n_equal_Q - 1) / 2
    return rank_Q


def topk_accuracy(ranks_Q: np.ndarray, k: int) -> float:
    """Share of queries whose target has rank k or better. Chance is k / N.

    Raises:
        InputError: there are no queries or k < 1.
    """
    ranks_Q = _checked_ranks(ranks_Q)
    if k < 1:
        raise InputError(f"k is {k}; expected at least 1")
    return float(np.mean(ranks_Q <= k))


def median_rank(ranks_Q: np.ndarray) -> float:
    """Median rank over queries. Chance is (N + 1) / 2.

    Raises:
        InputError: there are no queries.
    """
    return float(np.median(_checked_ranks(ranks_Q)))


def kway_accuracy(ranks_Q: np.ndarray, n_gallery: int, k: int) -> float:
    """Expected accuracy of choosing the target among itself and k - 1 random others of the gallery.

        P(correct | r) = C(N - r, k - 1) / C(N - 1, k - 1)        the k - 1 others all rank below r

    exactly, in place of drawing candidates; averaged over queries. A half-integer rank (a tie) gets the mean of its
    two neighbours. That is exact for a tie of two, and for any tie when k = 2; for larger ties it is a lower bound,
    because P is convex in r. Chance is 1 / k; k = N gives top-1 accuracy.

    Args:
        ranks_Q: average ranks from `ranks`.
        n_gallery: N, at least the largest rank.
        k: number of candidates, 2 <= k <= N.
    Raises:
        InputError: there are no queries, or k or a rank is out of range.
    """
    ranks_Q = _checked_ranks(ranks_Q)
    if not 2 <= k <= n_gallery:
        raise InputError(f"k is {k}; expected at least 2 and at most the gallery's size {n_gallery}")
    if ranks_Q.min() < 1 or ranks_Q.max() > n_gallery:
        raise InputError(f"ranks run from {ranks_Q.min()} to {ranks_Q.max()}; expected 1 to {n_gallery}")

    def probability(whole_rank_Q: np.ndarray) -> np.ndarray:
        # C(N - r, k - 1) / C(N - 1, k - 1) as a product of k - 1 ratios, zero as soon as fewer than k - 1 rank below.
        product_Q = np.ones(len(whole_rank_Q))
        for i in range(k - 1):
            product_Q *= np.maximum(n_gallery - whole_rank_Q - i, 0) / (n_gallery - 1 - i)
        return product_Q

    return float(np.mean((probability(np.floor(ranks_Q)) + probability(np.ceil(ranks_Q))) / 2))


def class_top1(score_QN: np.ndarray, label_N: np.ndarray, label_Q: np.ndarray) -> float:
    """Share of queries whose best-scored gallery item has the query's class.

    Where several items share the best score, a query counts with the share of them that have its class.
    Chance for one query is the share of the gallery that has its class.

    Raises:
        InputError: there are no queries, shapes disagree, or a score is NaN.
    """
    score_QN, label_N, label_Q = np.asarray(score_QN), np.asarray(label_N), np.asarray(label_Q)
    check_scores(score_QN)
    n_queries, n_gallery = score_QN.shape
    if label_N.shape != (n_gallery,) or label_Q.shape != (n_queries,) or n_queries == 0:
        raise InputError(
            f"scores of shape {score_QN.shape} need as many gallery and query labels, and at least one query; "
            f"got {label_N.shape} and {label_Q.shape}"
        )
    right_Q = np.empty(n_queries)
    for rows in row_chunks(n_queries, n_gallery):
        is_best_QN = score_QN[rows] == score_QN[rows].max(axis=1, keepdims=True)
        is_right_QN = is_best_QN & (label_N[None, :] == label_Q[rows, None])
        right_Q[rows] = np.count_nonzero(is_right_QN, axis=1) / np.count_nonzero(is_best_QN, axis=1)
    return float(right_Q.mean())


def first_right_ranks(score_QN: np.ndarray, is_right_QN: np.ndarray) -> np.ndarray:
    """Rank of the best of a query's right gallery items, expected over random orders within ties.

        r_q = 1 + g + w / (t + 1)        g wrong items above the best right one, w wrong and t right ones level with it

    With one right item this is the average rank of `ranks`. The other right items never push a rank down.

    Raises:
        InputError: shapes disagree, a query has no right item, or a score is NaN.
    """
    score_QN, is_right_QN = np.asarray(score_QN), _checked_right(score_QN, is_right_QN)
    rank_Q = np.empty(len(score_QN))
    for rows in row_chunks(len(score_QN), 8 * score_QN.shape[1]):
        score, is_right = score_QN[rows], is_right_QN[rows]
        best_Q1 = _masked_to_lowest(score, is_right).max(axis=1, keepdims=True)
        is_level = score == best_Q1
        n_above_Q = np.count_nonzero((score > best_Q1) & ~is_right, axis=1)
        n_wrong_Q = np.count_nonzero(is_level & ~is_right, axis=1)
        rank_Q[rows] = 1 + n_above_Q + n_wrong_Q / (np.count_nonzero(is_level & is_right, axis=1) + 1)
    return rank_Q


def average_precision(score_QN: np.ndarray, is_right_QN: np.ndarray) -> np.ndarray:
    """Average precision of each query; its mean over queries is mAP.

        AP_q = (1 / m_q) Σ_{i right} r_right(i) / r(i)

    r(i) is the average rank of item i among all, r_right(i) its average rank among the m_q right ones. With one right
    item this is 1 / rank, so mAP is then the mean reciprocal rank. `chance_average_precision` gives the level of
    a random order.

    Returns:
        float64 of shape (Q,), in (0, 1].
    Raises:
        InputError: shapes disagree, a query has no right item, or a score is NaN.
    """
    score_QN, is_right_QN = np.asarray(score_QN), _checked_right(score_QN, is_right_QN)
    precision_Q = np.empty(len(score_QN))
    for rows in row_chunks(len(score_QN), 8 * score_QN.shape[1]):
        # Ascending values are sorted many times faster than places; only the right items' places are needed.
        for query, sorted_N in enumerate(np.sort(score_QN[rows], axis=1), rows.start):
            own_M = np.sort(score_QN[query][is_right_QN[query]])
            precision_Q[query] = np.mean(_places(own_M, own_M) / _places(sorted_N, own_M))
    return precision_Q


def chance_first_right(n: int, n_right: int, k: int) -> float:
    """Probability that a random order of n items has one of the right ones in its first k places.

        P = 1 - C(n - m, k) / C(n, k)        k / n for one right item

    Raises:
        InputError: not 1 <= n_right <= n, or k < 1.
    """
    if not 1 <= n_right <= n or k < 1:
        raise InputError(f"{n_right} right items of {n} and k = {k}: expected 1 to {n} right items and k of at least 1")
    places = np.arange(min(k, n))
    return float(1 - np.prod(np.maximum(n - n_right - places, 0) / (n - places)))


def chance_average_precision(n: int, n_right: int) -> float:
    """Expected average precision of a random order of n items of which m are right.

        E[AP] = (1/n) [H_n + (m - 1)/(n - 1) (n - H_n)]        H_n = 1 + 1/2 + ... + 1/n

    Derived from E[r_right(i) | r(i) = r] = 1 + (m - 1)(r - 1)/(n - 1), r uniform in 1..n.

    Raises:
        InputError: not 1 <= n_right <= n.
    """
    if not 1 <= n_right <= n:
        raise InputError(f"{n_right} right items of {n}: expected 1 to {n}")
    harmonic = float(np.sum(1 / np.arange(1, n + 1)))
    return (harmonic + (n_right - 1) / max(1, n - 1) * (n - harmonic)) / n


def similarity(query_QD: np.ndarray, gallery_ND: np.ndarray, *, normalise: Normalise) -> np.ndarray:
    """Score every gallery item for every query: s = q · g, each side first brought to unit length where named.

    "both" is the cosine. "query" leaves the gallery's lengths in, as NICE scores its class centres: the centre of
    a tight class is longer and wins more often. Normalising queries alone never changes a rank.

    Returns:
        (Q, N), float32 or wider.
    Raises:
        InputError: dimensions disagree, or a vector is not finite or (where normalised) has length zero.
    """
    query_QD, gallery_ND = check_vectors(query_QD, "query"), check_vectors(gallery_ND, "gallery item")
    if query_QD.shape[1] != gallery_ND.shape[1]:
        raise InputError(
            f"queries have {query_QD.shape[1]} dimensions and the gallery {gallery_ND.shape[1]}; "
            "encode both sides with one model"
        )
    if normalise not in get_args(Normalise):
        raise InputError(f"normalise is {normalise!r}; expected one of {', '.join(get_args(Normalise))}")
    if normalise in ("both", "query"):
        query_QD = _unit(query_QD, "query")
    if normalise in ("both", "gallery"):
        gallery_ND = _unit(gallery_ND, "gallery item")
    return query_QD @ gallery_ND.T


def csls(score_QN: np.ndarray, n_neighbours: int = 10) -> np.ndarray:
    """Cross-domain similarity local scaling: lower the scores of gallery items that are near to every query.

        s'_qn = 2 s_qn - mean of the K best of row q - mean of the K best of column n

    Transductive: a query's score depends on the other queries. Source: Conneau et al. 2018, ICLR, eq. 3.

    Raises:
        InputError: n_neighbours < 1, or a score is NaN.
    """
    score_QN = np.asarray(score_QN)
    check_scores(score_QN)
    if n_neighbours < 1:
        raise InputError(f"n_neighbours is {n_neighbours}; expected at least 1")

    def best_mean(score: np.ndarray) -> np.ndarray:
        k = min(n_neighbours, score.shape[1])
        return np.partition(score, score.shape[1] - k, axis=1)[:, -k:].mean(axis=1)

    return 2 * score_QN - best_mean(score_QN)[:, None] - best_mean(score_QN.T)[None, :]


def assignment(score_QN: np.ndarray) -> np.ndarray:
    """Gallery column of each query when every column may be taken once and the total score is greatest (Hungarian).

    Transductive: it uses the knowledge that no two queries show the same item.

    Raises:
        InputError: more queries than gallery items, or a score is not finite.
    """
    from scipy.optimize import linear_sum_assignment  # half a second that no training needs

    score_QN = np.asarray(score_QN)
    check_scores(score_QN)
    if score_QN.shape[0] > score_QN.shape[1] or not np.isfinite(score_QN).all():
        raise InputError(
            f"scores of shape {score_QN.shape} cannot be assigned one to one; average the repetitions of an image "
            "so that there are no more queries than gallery items, and give finite scores"
        )
    return linear_sum_assignment(score_QN, maximize=True)[1]


def row_chunks(n_rows: int, n_columns: int) -> list[slice]:
    """Cut rows into slices of at most 2^24 scores each (one row at least)."""
    size = max(1, _CHUNK // max(1, n_columns))
    return [slice(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]


def check_scores(score_QN: np.ndarray) -> None:
    """Raise `InputError` unless the scores are a matrix with at least one column and no NaN."""
    if score_QN.ndim != 2 or score_QN.shape[1] == 0:
        raise InputError(
            f"scores have shape {score_QN.shape}; expected queries x gallery with a gallery of at least one"
        )
    for rows in row_chunks(*score_QN.shape):
        if np.isnan(score_QN[rows]).any():
            query = rows.start + int(np.isnan(score_QN[rows]).any(axis=1).argmax())
            raise InputError(f"the scores of query {query} contain NaN; check the embeddings it was made from")


def check_vectors(vector_ND: np.ndarray, what: str) -> np.ndarray:
    """Return the rows as at least float32; raise `InputError` unless there is one and all are finite."""
    vector_ND = np.asarray(vector_ND)
    if vector_ND.ndim != 2 or 0 in vector_ND.shape:
        raise InputError(f"expected one row per {what} and at least one; got shape {vector_ND.shape}")
    is_finite_N = np.isfinite(vector_ND).all(axis=1)
    if not is_finite_N.all():
        raise InputError(f"{what} {int(is_finite_N.argmin())} is not finite; check what it was encoded from")
    return vector_ND.astype(np.promote_types(vector_ND.dtype, np.float32), copy=False)


def _checked_ranks(ranks_Q: np.ndarray) -> np.ndarray:
    ranks_Q = np.asarray(ranks_Q, dtype=np.float64)
    if ranks_Q.ndim != 1 or ranks_Q.size == 0 or np.isnan(ranks_Q).any():
        raise InputError(f"expected one rank per query and at least one query; got shape {ranks_Q.shape} or NaN in it")
    return ranks_Q


def _checked_right(score_QN: np.ndarray, is_right_QN: np.ndarray) -> np.ndarray:
    score_QN, is_right_QN = np.asarray(score_QN), np.asarray(is_right_QN, dtype=bool)
    check_scores(score_QN)
    if is_right_QN.shape != score_QN.shape or not is_right_QN.any(axis=1).all():
        raise InputError(
            f"scores of shape {score_QN.shape} need marks of the same shape with at least one right item in each row; "
            f"got {is_right_QN.shape}"
        )
    return is_right_QN


def _places(sorted_N: np.ndarray, value_M: np.ndarray) -> np.ndarray:
    """Average rank of values among those sorted in ascending order, of which they are some; 1 the largest."""
    n_below_M = np.searchsorted(sorted_N, value_M, side="left")
    n_not_above_M = np.searchsorted(sorted_N, value_M, side="right")
    return len(sorted_N) - (n_below_M + n_not_above_M - 1) / 2


def _masked_to_lowest(score_QN: np.ndarray, is_kept_QN: np.ndarray) -> np.ndarray:
    lowest = -np.inf if np.issubdtype(score_QN.dtype, np.floating) else np.iinfo(score_QN.dtype).min
    return np.where(is_kept_QN, score_QN, np.array(lowest, dtype=score_QN.dtype))


def _unit(vector_ND: np.ndarray, what: str) -> np.ndarray:
    length_N1 = np.linalg.norm(vector_ND, axis=1, keepdims=True)
    if not length_N1.all():
        raise InputError(f"{what} {int(length_N1[:, 0].argmin())} has length zero and cannot be normalised")
    return vector_ND / length_N1
