"""What guessing would have scored: permutations within strata, and the maximum over many configurations.

Axes: R permutations, M configurations, N gallery images, Q queries, H (image, column) pairs that would be hits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from eegvision.evaluate.retrieval import check_scores, row_chunks
from eegvision.vocab import InputError

# Below so many image-column cells a permutation is scored by N look-ups in a table, above by one comparison per pair.
_TABLE_CELLS = 2**22


@dataclass(frozen=True, kw_only=True, eq=False)
class MaxStatistic:
    """Configurations compared with guessing on the same queries; p-values one-sided, larger statistics better.

    `p_M` is each configuration alone; `single_step_M` and `step_down_M` hold the chance of even one false claim
    among all of them below alpha (`max_statistic`).
    """

    statistic_M: np.ndarray
    p_M: np.ndarray
    single_step_M: np.ndarray
    step_down_M: np.ndarray
    n_permutations: int


def max_statistic(observed_M: np.ndarray, null_RM: np.ndarray) -> MaxStatistic:
    """Correct for having looked at M configurations, using how their scores go together under the null.

        single step:  p_m = (1 + #{r : max_j t_rj >= t_m}) / (1 + R)
        step down:    p_(i) = max_{h <= i} (1 + #{r : max_{j in (h)..(M)} t_rj >= t_(h)}) / (1 + R),  t_(1) >= t_(2) ..

    Row r of the null must hold all configurations under one and the same permutation. Step-down is never larger
    than single step and controls the family-wise error just as well, because each configuration's null scores are
    the same whichever others are truly better.
    Source: Westfall & Young 1993, Resampling-based multiple testing, ch. 2.

    Args:
        observed_M: one statistic per configuration, on a common scale (equal k and gallery size).
        null_RM: the same statistics under R permutations.
    Raises:
        InputError: shapes disagree, there is no permutation, or a value is not finite.
    """
    observed_M, null_RM = np.asarray(observed_M, dtype=np.float64), np.asarray(null_RM)
    n_permutations = len(null_RM)
    if observed_M.ndim != 1 or 0 in null_RM.shape or null_RM.shape[1:] != observed_M.shape:
        raise InputError(f"null statistics of shape {null_RM.shape} do not fit {observed_M.shape} observed ones")
    if not (np.isfinite(observed_M).all() and np.isfinite(null_RM).all()):
        raise InputError("a statistic is not finite; leave configurations without a score out")
    # Sums in another order differ in the last digits; what should be equal must count as equal.
    reached_M = observed_M - 1e-9 * np.maximum(1, np.abs(observed_M))
    order_M = np.argsort(-observed_M, kind="stable")
    n_alone_M, n_single_M, n_step_M = (np.zeros(len(observed_M), dtype=np.int64) for _ in range(3))
    for rows in row_chunks(*null_RM.shape):
        sorted_RM = null_RM[rows][:, order_M]
        largest_left_RM = np.maximum.accumulate(sorted_RM[:, ::-1], axis=1)[:, ::-1]
        n_alone_M += (sorted_RM >= reached_M[order_M]).sum(axis=0)
        n_single_M += (largest_left_RM[:, :1] >= reached_M[order_M]).sum(axis=0)
        n_step_M += (largest_left_RM >= reached_M[order_M]).sum(axis=0)
    back_M = np.argsort(order_M)
    alone_M, single_M, step_M = ((1 + n_M) / (1 + n_permutations) for n_M in (n_alone_M, n_single_M, n_step_M))
    return MaxStatistic(
        statistic_M=observed_M,
        p_M=alone_M[back_M],
        single_step_M=single_M[back_M],
        step_down_M=np.maximum.accumulate(step_M)[back_M],
        n_permutations=n_permutations,
    )


def sweep_permutation(
    scores: Iterable[np.ndarray],
    target_Q: np.ndarray,
    k: int,
    *,
    stratum_N: np.ndarray | None = None,
    n_permutations: int = 10_000,
    seed: int = 0,
) -> MaxStatistic:
    """Top-k accuracy of every configuration of a sweep against guessing, corrected for the whole sweep.

    The images trade identities as in `statistics.permutation_p`, the same permutation for all configurations, so
    configurations that make the same mistakes cost little. Score matrices are taken one by one and not kept.

    Args:
        scores: one [Q, N] matrix per configuration, the same queries and gallery in all; higher is more similar.
        target_Q: gallery column of each query's image.
        k: ranks that count as a hit.
        stratum_N: images trade only within a stratum (block, category); None for all with all.
        n_permutations, seed: of the permutations.
    Returns:
        `MaxStatistic` with top-k accuracies as statistics.
    Raises:
        InputError: no configuration, shapes that differ, k or a target out of range, NaN in the scores.
    """
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    shape: tuple[int, ...] = ()
    for score_QN in scores:
        score_QN = np.asarray(score_QN)
        if shape and score_QN.shape != shape:
            raise InputError(
                f"configuration {len(pairs)} has scores of shape {score_QN.shape} and those before it {shape}; "
                "compare configurations on the same queries and gallery"
            )
        pairs.append(hit_pairs(score_QN, target_Q, k))
        shape = score_QN.shape
    if not pairs:
        raise InputError("there is no configuration to compare; give at least one score matrix")
    n_queries, n_gallery = shape
    stratum_N = np.zeros(n_gallery, dtype=np.int64) if stratum_N is None else np.asarray(stratum_N)
    if stratum_N.shape != (n_gallery,):
        raise InputError(f"{n_gallery} gallery images need one stratum each; got {stratum_N.shape}")
    null_RM = np.empty((n_permutations, len(pairs)), dtype=np.int64)
    for rows, permutation_RN in permutations_within(stratum_N, n_permutations, seed):
        for number, pair in enumerate(pairs):
            null_RM[rows, number] = hits_under(*pair, permutation_RN)
    observed_M = np.array([np.count_nonzero(image_H == column_H) for image_H, column_H in pairs])
    return max_statistic(observed_M / n_queries, null_RM / n_queries)


def answer_permutation(
    answer_MQ: np.ndarray, image_Q: np.ndarray, key_N: np.ndarray, *, n_permutations: int = 10_000, seed: int = 0
) -> MaxStatistic:
    """Share of right answers of every configuration against guessing, corrected for all of them, without any scores.

        a_m(π) = mean_q [answer_mq = key of π(image_q)]        π a random permutation of the images, one for all m

    With the images themselves as keys this is top-1 retrieval; with their classes it is classification.

    Args:
        answer_MQ: what each of M configurations answered to each query.
        image_Q: which image each query shows, 0 to N - 1.
        key_N: the right answer for each image.
        n_permutations, seed: of the permutations.
    Returns:
        `MaxStatistic` with shares of right answers as statistics.
    Raises:
        InputError: shapes disagree, or an image has no key.
    """
    answer_MQ, image_Q, key_N = np.asarray(answer_MQ), np.asarray(image_Q), np.asarray(key_N)
    if answer_MQ.ndim != 2 or 0 in answer_MQ.shape or image_Q.shape != answer_MQ.shape[1:]:
        raise InputError(
            f"answers of shape {answer_MQ.shape} for images of shape {image_Q.shape}; "
            "expected configurations x queries, and one image for each query"
        )
    n_images = len(key_N)
    if image_Q.min() < 0 or image_Q.max() >= n_images:
        raise InputError(f"images {image_Q.min()} to {image_Q.max()}, but {n_images} keys; give a key for each")
    keys_K, key_N = np.unique(key_N, return_inverse=True)
    column_MQ = np.searchsorted(keys_K, answer_MQ).clip(max=len(keys_K) - 1)
    is_key_MQ = keys_K[column_MQ] == answer_MQ  # any other answer is never right
    count_MNK = [
        np.bincount((image_Q * len(keys_K) + column_Q)[is_key_Q], minlength=n_images * len(keys_K)).reshape(
            n_images, -1
        )
        for column_Q, is_key_Q in zip(column_MQ, is_key_MQ, strict=True)
    ]
    row_N = np.arange(n_images)
    null_RM = np.empty((n_permutations, len(count_MNK)), dtype=np.int64)
    for rows, permutation_RN in permutations_within(np.zeros(n_images, dtype=np.int64), n_permutations, seed):
        for number, count_NK in enumerate(count_MNK):
            null_RM[rows, number] = count_NK[row_N, key_N[permutation_RN]].sum(axis=1)
    observed_M = np.array([count_NK[row_N, key_N].sum() for count_NK in count_MNK])
    return max_statistic(observed_M / len(image_Q), null_RM / len(image_Q))


def permutations_within(stratum_N: np.ndarray, n_permutations: int, seed: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield (rows, permutations): each moves items only to places of their own stratum, uniformly.

    Chunks of at most 2^21 numbers; the numbers depend on the seed alone, not on the chunks.

    Raises:
        InputError: no item, or fewer than one permutation.
    """
    stratum_N = np.asarray(stratum_N)
    if stratum_N.ndim != 1 or stratum_N.size == 0 or n_permutations < 1:
        raise InputError(
            f"{n_permutations} permutations of items with strata of shape {stratum_N.shape}: need at least one"
        )
    _, code_N = np.unique(stratum_N, return_inverse=True)
    place_N = np.argsort(code_N, kind="stable")
    generator = np.random.default_rng(seed)
    for rows in row_chunks(n_permutations, 8 * len(code_N)):  # eight bytes a number, not one as a score compared
        # Sorting stratum + a uniform number lists each stratum's items in random order, where its places are.
        item_RN = np.argsort(code_N + generator.random((rows.stop - rows.start, len(code_N))), axis=1)
        permutation_RN = np.empty_like(item_RN)
        permutation_RN[:, place_N] = item_RN
        yield rows, permutation_RN


def hit_pairs(score_QN: np.ndarray, target_Q: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Every (target image, gallery column) of a query that would be a top-k hit were that column its target.

    About k per query, so a permutation is scored without ranking anything again.

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
    if not 1 <= k <= n_gallery:
        raise InputError(f"k = {k}; expected k in 1..{n_gallery}")
    images, columns = [], []
    for rows in row_chunks(n_queries, 8 * n_gallery):
        row_H, column_H = _top_columns(score_QN[rows], k)
        images.append(target_Q[rows][row_H])
        columns.append(column_H)
    return np.concatenate(images), np.concatenate(columns)


def hits_under(image_H: np.ndarray, column_H: np.ndarray, permutation_RN: np.ndarray) -> np.ndarray:
    """Count the pairs (i, c) with permutation(i) = c, for each permutation."""
    n_permutations, n_gallery = permutation_RN.shape
    if n_gallery**2 <= _TABLE_CELLS and len(image_H) >= n_gallery // 4:
        cell_H = image_H.astype(np.int64) * n_gallery + column_H
        table = np.bincount(cell_H, minlength=n_gallery**2)
        return table[permutation_RN + n_gallery * np.arange(n_gallery)].sum(axis=1)
    hits_R = np.empty(n_permutations, dtype=np.int64)
    for rows in row_chunks(n_permutations, 8 * len(image_H)):
        hits_R[rows] = np.count_nonzero(permutation_RN[rows][:, image_H] == column_H, axis=1)
    return hits_R


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
