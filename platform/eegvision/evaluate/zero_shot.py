"""Zero-shot retrieval as it is reported: galleries, one evaluation, and its result with all its circumstances.

Axes: Q queries, N gallery items, D embedding, I images a class centre is made of, U distinct values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from eegvision.evaluate.retrieval import (
    Normalise,
    assignment,
    average_precision,
    chance_average_precision,
    chance_first_right,
    check_vectors,
    csls,
    first_right_ranks,
    kway_accuracy,
    median_rank,
    row_chunks,
    similarity,
    topk_accuracy,
)
from eegvision.evaluate.statistics import significance_line
from eegvision.vocab import InputError

GalleryKind = Literal["exact-image", "class-centre", "class-centre-without-stimulus", "text"]
Transductive = Literal["none", "csls", "hungarian"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Gallery:
    """What queries are compared with. `label_N` is what a query's target names; several items may share one."""

    kind: GalleryKind
    feature_ND: np.ndarray
    ids_N: np.ndarray
    label_N: np.ndarray

    def __post_init__(self) -> None:
        check_vectors(self.feature_ND, "gallery item")
        n_items = len(self.feature_ND)
        if self.kind not in get_args(GalleryKind):
            raise InputError(f"gallery kind is {self.kind!r}; expected one of {', '.join(get_args(GalleryKind))}")
        if np.shape(self.ids_N) != (n_items,) or np.shape(self.label_N) != (n_items,):
            raise InputError(
                f"{n_items} gallery features need as many ids and labels; "
                f"got {np.shape(self.ids_N)} and {np.shape(self.label_N)}"
            )
        if len(np.unique(self.ids_N)) != n_items:
            raise InputError("gallery ids repeat; give each item one id, and use labels for items that count as alike")


def image_gallery(feature_ND: np.ndarray, image_ids: np.ndarray, *, label_N: np.ndarray | None = None) -> Gallery:
    """Gallery of the images themselves; right is the very image, or with labels every image of the query's label."""
    ids_N = np.asarray(image_ids)
    return Gallery(
        kind="exact-image",
        feature_ND=np.asarray(feature_ND),
        ids_N=ids_N,
        label_N=ids_N if label_N is None else np.asarray(label_N),
    )


def text_gallery(feature_ND: np.ndarray, concepts: np.ndarray) -> Gallery:
    """Gallery of one text feature per concept; a query's target is its concept."""
    ids_N = np.asarray(concepts)
    return Gallery(kind="text", feature_ND=np.asarray(feature_ND), ids_N=ids_N, label_N=ids_N)


def centre_gallery(
    feature_ID: np.ndarray, concept_I: np.ndarray, *, is_stimulus_I: np.ndarray | None = None
) -> Gallery:
    """Gallery of one centre per concept, the plain mean of the features of its images; concepts in sorted order.

        g_k = mean{f_i : concept_i = k, not stimulus_i}

    Centres are not brought to unit length here: `normalise` of `retrieve` does that ("both"), or does not ("query",
    as NICE was evaluated). Published centres leave the shown image out; with it inside, the target is in the gallery.

    Args:
        feature_ID: features of the images, usually of unit length.
        concept_I: concept of each image.
        is_stimulus_I: images that were shown and are left out; None keeps every image.
    Raises:
        InputError: shapes disagree, or a concept has no image but the stimulus.
    """
    feature_ID, concept_I = check_vectors(feature_ID, "image"), np.asarray(concept_I)
    n_images = len(feature_ID)
    is_kept_I = np.ones(n_images, bool) if is_stimulus_I is None else ~np.asarray(is_stimulus_I, dtype=bool)
    if concept_I.shape != (n_images,) or is_kept_I.shape != (n_images,):
        raise InputError(f"{n_images} features need one concept and one stimulus mark each; got {concept_I.shape}")
    concept_K, index_I = np.unique(concept_I, return_inverse=True)
    count_K = np.bincount(index_I[is_kept_I], minlength=len(concept_K))
    if (count_K == 0).any():
        raise InputError(
            f"concept {concept_K[count_K == 0].tolist()[0]!r} has no image besides the stimulus; "
            "add images of it or keep the stimulus (is_stimulus_I=None)"
        )
    order_I = np.argsort(index_I[is_kept_I], kind="stable")
    starts_K = np.concatenate([[0], np.cumsum(count_K)[:-1]])
    sum_KD = np.add.reduceat(feature_ID[is_kept_I][order_I].astype(np.float64), starts_K, axis=0)
    kind: GalleryKind = "class-centre" if is_stimulus_I is None else "class-centre-without-stimulus"
    return Gallery(kind=kind, feature_ND=sum_KD / count_K[:, None], ids_N=concept_K, label_N=concept_K)


@dataclass(frozen=True, kw_only=True, eq=False)
class RetrievalResult:
    """Ranks of the queries of one evaluation, with the circumstances without which they mean nothing.

    `repetitions` presentations were averaged into each query. `rank_Q` is the (best) right item's rank, `n_right_Q`
    how many items are right, `best_ids_QK` the ids of the five best items (fewer in a smaller gallery), best first.
    """

    gallery: GalleryKind
    normalise: Normalise
    transductive: Transductive
    repetitions: int
    n_gallery: int
    query_ids_Q: np.ndarray
    target_Q: np.ndarray
    rank_Q: np.ndarray
    average_precision_Q: np.ndarray
    n_right_Q: np.ndarray
    best_ids_QK: np.ndarray

    @property
    def predictions(self) -> dict[str, list[Any]]:
        """Columns with one entry per query: query_id, target_id, rank, average_precision, top5_ids (a list)."""
        return {
            "query_id": self.query_ids_Q.tolist(),
            "target_id": self.target_Q.tolist(),
            "rank": self.rank_Q.tolist(),
            "average_precision": self.average_precision_Q.tolist(),
            "top5_ids": self.best_ids_QK.tolist(),
        }

    def topk(self, k: int) -> float:
        """Share of queries with a right item in the first k places."""
        return topk_accuracy(self.rank_Q, k)

    def kway(self, k: int) -> float:
        """Expected k-way accuracy, as `kway_accuracy`; refused where a query has several right items."""
        if (self.n_right_Q > 1).any():
            raise InputError("k-way accuracy needs one right item per query; give every gallery item its own label")
        return kway_accuracy(self.rank_Q, self.n_gallery, k)

    def to_rows(
        self,
        group_Q: np.ndarray | None = None,
        *,
        group_name: str = "all",
        alpha: float = 0.05,
        comparisons: int = 1,
    ) -> list[dict[str, Any]]:
        """One row per metric (top-1, top-3, top-5, median rank, mAP): value, chance, line, n and circumstances.

        With `group_Q` (the subject, class or category of each query) the same metrics for each group. Chance is
        that of a random order. `significance_line` is `statistics.significance_line` of the n queries, so it holds
        where each image is one query; None for the metrics that are no proportion.
        """
        group_Q = np.full(len(self.rank_Q), "all") if group_Q is None else np.asarray(group_Q)
        if group_Q.shape != self.rank_Q.shape:
            raise InputError(f"{len(self.rank_Q)} queries need one group each; got {group_Q.shape}")
        rows = []
        for group in np.unique(group_Q).tolist():
            is_in_Q = group_Q == group
            circumstances = {
                "group_name": group_name,
                "group": group,
                "gallery": self.gallery,
                "normalise": self.normalise,
                "transductive": self.transductive,
                "repetitions": self.repetitions,
                "n_queries": int(is_in_Q.sum()),
                "n_gallery": self.n_gallery,
            }
            rows += [
                {"metric": metric, "value": value, "chance": chance, "significance_line": line, **circumstances}
                for metric, value, chance, line in self._metrics(is_in_Q, alpha, comparisons)
            ]
        return rows

    def _metrics(
        self, is_in_Q: np.ndarray, alpha: float, comparisons: int
    ) -> Iterator[tuple[str, float, float, float | None]]:
        rank_Q = self.rank_Q[is_in_Q]
        n_right_U, count_U = np.unique(self.n_right_Q[is_in_Q], return_counts=True)
        share_U = count_U / count_U.sum()

        def chance_topk(k: int) -> float:
            hit_U = [chance_first_right(self.n_gallery, int(n_right), k) for n_right in n_right_U]
            return float(share_U @ np.array(hit_U))

        for k in (1, 3, 5):
            chance = chance_topk(k)
            line = significance_line(len(rank_Q), chance, alpha, comparisons)
            yield f"top-{k}", topk_accuracy(rank_Q, k), chance, line
        # Survival of the first right rank; its median lies midway where exactly half is reached at a rank.
        places = np.arange(self.n_gallery)
        left_UN = np.cumprod(np.maximum(self.n_gallery - n_right_U[:, None] - places, 0) / (self.n_gallery - places), 1)
        reached_N = 1 - share_U @ left_UN
        low, high = np.searchsorted(reached_N, [0.5 - 1e-9, 0.5 + 1e-9]) + 1
        yield "median rank", median_rank(rank_Q), float(low + high) / 2, None
        chance_U = [chance_average_precision(self.n_gallery, int(n_right)) for n_right in n_right_U]
        yield "mAP", float(self.average_precision_Q[is_in_Q].mean()), float(share_U @ np.array(chance_U)), None


def retrieve(
    query_QD: np.ndarray,
    target_Q: np.ndarray,
    gallery: Gallery,
    *,
    query_ids: np.ndarray,
    repetitions: int,
    normalise: Normalise = "both",
    transductive: Transductive = "none",
) -> RetrievalResult:
    """Rank the gallery for each query by `similarity`; right are the items whose label is the query's target.

    Scores are made 2^21 at a time for any number of queries, except in the transductive modes, which need them all.

    Args:
        query_QD: encoded (and where wanted averaged) EEG.
        target_Q: the gallery label that is right for each query.
        gallery: from `image_gallery`, `centre_gallery` or `text_gallery`.
        query_ids: names for the exported predictions.
        repetitions: presentations averaged into each query, at least 1; only recorded.
        normalise: sides brought to unit length.
        transductive: "csls" rescales the scores (`csls`); "hungarian" moves the item of the one-to-one `assignment`
            to the first place of its query and leaves the order of the others.
    Raises:
        InputError: shapes disagree, a target is not in the gallery, a vector is not finite.
    """
    query_QD, target_Q, query_ids_Q = np.asarray(query_QD), np.asarray(target_Q), np.asarray(query_ids)
    n_queries, n_gallery = len(query_QD), len(gallery.ids_N)
    if n_queries == 0 or target_Q.shape != (n_queries,) or query_ids_Q.shape != (n_queries,) or repetitions < 1:
        raise InputError(
            f"{n_queries} queries, targets of shape {target_Q.shape}, ids of shape {query_ids_Q.shape} and "
            f"{repetitions} repetitions: expected at least one query, one target and one id for each, "
            "and at least one repetition"
        )
    label_K, code_N = np.unique(gallery.label_N, return_inverse=True)
    if (label_K.dtype.kind in "iu") != (target_Q.dtype.kind in "iu"):
        raise InputError(
            f"targets are {target_Q.dtype} and gallery labels {label_K.dtype}; name both by number or both by text"
        )
    code_Q = np.searchsorted(label_K, target_Q).clip(max=len(label_K) - 1)
    if (label_K[code_Q] != target_Q).any():
        missing = target_Q[label_K[code_Q] != target_Q].tolist()[0]
        raise InputError(f"target {missing!r} is not in the gallery of {n_gallery} items; add it or drop its queries")
    n_best = min(5, n_gallery)
    rank_Q, precision_Q = np.empty(n_queries), np.empty(n_queries)
    best_QK = np.empty((n_queries, n_best), dtype=np.int64)
    n_right_Q = np.bincount(code_N)[code_Q]
    for rows, score in _score_chunks(query_QD, gallery.feature_ND, normalise, transductive):
        is_right = code_N[None, :] == code_Q[rows, None]
        rank_Q[rows] = first_right_ranks(score, is_right)
        precision_Q[rows] = average_precision(score, is_right) if n_right_Q.max() > 1 else 1 / rank_Q[rows]
        column = np.argpartition(-score, n_best - 1, axis=1)[:, :n_best]
        order = np.lexsort((column, -np.take_along_axis(score, column, axis=1)), axis=1)
        best_QK[rows] = np.take_along_axis(column, order, axis=1)
    return RetrievalResult(
        gallery=gallery.kind,
        normalise=normalise,
        transductive=transductive,
        repetitions=repetitions,
        n_gallery=n_gallery,
        query_ids_Q=query_ids_Q,
        target_Q=target_Q,
        rank_Q=rank_Q,
        average_precision_Q=precision_Q,
        n_right_Q=n_right_Q,
        best_ids_QK=gallery.ids_N[best_QK],
    )


def _score_chunks(
    query_QD: np.ndarray, gallery_ND: np.ndarray, normalise: Normalise, transductive: Transductive
) -> Iterator[tuple[slice, np.ndarray]]:
    chunks = row_chunks(len(query_QD), 8 * len(gallery_ND))
    if transductive == "none":
        for rows in chunks:
            yield rows, similarity(query_QD[rows], gallery_ND, normalise=normalise)
        return
    if transductive not in get_args(Transductive):
        raise InputError(f"transductive is {transductive!r}; expected one of {', '.join(get_args(Transductive))}")
    score_QN = similarity(query_QD, gallery_ND, normalise=normalise)
    if transductive == "csls":
        score_QN = csls(score_QN)
    else:
        score_QN[np.arange(len(score_QN)), assignment(score_QN)] = np.inf
    for rows in chunks:
        yield rows, score_QN[rows]
