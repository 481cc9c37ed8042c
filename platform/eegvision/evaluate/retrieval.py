"""Retrieval scores: rank the gallery for every query and count. Arrays in, numbers out."""

from __future__ import annotations

import numpy as np

from eegvision.vocab import InputError

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


def _checked_ranks(ranks_Q: np.ndarray) -> np.ndarray:
    ranks_Q = np.asarray(ranks_Q, dtype=np.float64)
    if ranks_Q.ndim != 1 or ranks_Q.size == 0 or np.isnan(ranks_Q).any():
        raise InputError(f"expected one rank per query and at least one query; got shape {ranks_Q.shape} or NaN in it")
    return ranks_Q
