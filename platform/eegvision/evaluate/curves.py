"""Retrieval accuracy against the number of repetitions averaged, with what guessing would have scored beside it.

Axes: Q segments, I images, N gallery items, P points of the curve, R permutations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from eegvision.evaluate.nulls import hit_pairs, hits_under, permutations_within
from eegvision.evaluate.retrieval import ranks
from eegvision.evaluate.statistics import bootstrap_interval, chance_topk
from eegvision.vocab import InputError

# Averaging copies the chosen segments; images are taken in groups of at most so many values.
_VALUES = 2**24


@dataclass(frozen=True, kw_only=True, eq=False)
class RepetitionCurve:
    """Top-k accuracy for each number of averaged repetitions, `counts_P`.

    `accuracy_P` is the mean over `n_draws` random subsets, `draw_sd_P` their standard deviation (NaN of one draw).
    `low_P` and `high_P` bound it at `level` when images are drawn again. `null_mean_P` and `null_high_P` are the mean
    and the (1 + level)/2 quantile of the same score when images trade identities, `p_P` is its one-sided p-value.
    """

    top_k: int
    counts_P: np.ndarray
    accuracy_P: np.ndarray
    draw_sd_P: np.ndarray
    low_P: np.ndarray
    high_P: np.ndarray
    null_mean_P: np.ndarray
    null_high_P: np.ndarray
    p_P: np.ndarray
    chance: float
    level: float
    n_images: int
    n_gallery: int
    n_draws: int

    def to_rows(self) -> list[dict[str, Any]]:
        """One row per number of repetitions, ready for a table."""
        columns = ("accuracy", "draw_sd", "low", "high", "null_mean", "null_high", "p")
        circumstances = {
            "metric": f"top-{self.top_k}",
            "chance": self.chance,
            "level": self.level,
            "n_images": self.n_images,
            "n_gallery": self.n_gallery,
            "n_draws": self.n_draws,
        }
        return [
            {"repetitions": int(count), **{name: float(getattr(self, f"{name}_P")[point]) for name in columns}}
            | circumstances
            for point, count in enumerate(self.counts_P)
        ]


def average_repetitions(segment_IR: np.ndarray) -> np.ndarray:
    """Mean over axis 1, the plain average of the repetitions of each image, in at least float32."""
    return segment_IR.mean(axis=1, dtype=np.promote_types(segment_IR.dtype, np.float32))


def repetition_curve(
    segment_Q: np.ndarray,
    image_Q: np.ndarray,
    target_Q: np.ndarray,
    score: Callable[[np.ndarray], np.ndarray],
    *,
    counts: Iterable[int],
    top_k: int = 1,
    average: Callable[[np.ndarray], np.ndarray] = average_repetitions,
    n_draws: int = 20,
    n_permutations: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> RepetitionCurve:
    """Average n random repetitions of each image, score, and repeat for each n and many draws.

        a(n) = mean_d mean_i [rank of image i with the average of d_i(n) <= k]        d_i(n) = n of its repetitions

    Subsets are drawn without replacement; within a draw that of n lies inside that of every larger n, so points of one
    curve compare like with like. Under the null the averaged queries trade images as wholes, the same permutation in
    all draws: the noise stays as small as averaging made it and only the pairing is lost.

    Args:
        segment_Q: one entry per segment on axis 0, of any shape: EEG, an embedding, or its scores against the gallery.
        image_Q: which image each segment shows; every image is one query of the curve.
        target_Q: gallery column that is right for each segment, the same for all segments of an image.
        score: from averaged images [I, ...] to scores [I, N]; for EEG it encodes, for scores it returns its argument.
        counts: numbers of repetitions, each from 1 to the fewest any image has.
        top_k: ranks that count as a hit.
        average: from [I, n, ...] to [I, ...].
        n_draws: random subsets per count.
        n_permutations: for the null.
        level: of the interval and the null's quantile.
        seed: of subsets, permutations and resamples.
    Raises:
        InputError: shapes disagree, an image with two targets, a count out of range, fewer than two images.
    """
    segment_Q, counts_P = np.asarray(segment_Q), np.array(sorted(set(counts)))
    index_Q, target_I = _images_of(segment_Q, np.asarray(image_Q), np.asarray(target_Q), counts_P)
    if n_draws < 1 or n_permutations < 1:
        raise InputError(f"{n_draws} draws and {n_permutations} permutations; expected at least one of each")
    n_images = len(target_I)
    hit_PDI, pairs_P, n_gallery = _drawn_hits(
        segment_Q, index_Q, target_I, score, counts_P, top_k, average, n_draws, np.random.default_rng(seed)
    )
    n_hits_P = hit_PDI.sum(axis=(1, 2))
    null_PR = np.empty((len(counts_P), n_permutations), dtype=np.int64)
    for rows, permutation_RN in permutations_within(np.zeros(n_gallery, dtype=np.int64), n_permutations, seed):
        for point, pair in enumerate(pairs_P):
            null_PR[point, rows] = hits_under(*pair, permutation_RN)
    bounds_P2 = np.array(
        [
            bootstrap_interval(hit_I, np.arange(n_images), level=level, seed=seed, small_sample=True)
            for hit_I in hit_PDI.mean(axis=1)
        ]
    )
    n_scored = n_draws * n_images
    return RepetitionCurve(
        top_k=top_k,
        counts_P=counts_P,
        accuracy_P=n_hits_P / n_scored,
        draw_sd_P=hit_PDI.mean(axis=2).std(axis=1, ddof=1) if n_draws > 1 else np.full(len(counts_P), np.nan),
        low_P=bounds_P2[:, 0],
        high_P=bounds_P2[:, 1],
        null_mean_P=null_PR.mean(axis=1) / n_scored,
        null_high_P=np.quantile(null_PR, (1 + level) / 2, axis=1) / n_scored,
        p_P=(1 + (null_PR >= n_hits_P[:, None]).sum(axis=1)) / (1 + n_permutations),
        chance=chance_topk(n_gallery, top_k),
        level=level,
        n_images=n_images,
        n_gallery=n_gallery,
        n_draws=n_draws,
    )


def _images_of(
    segment_Q: np.ndarray, image_Q: np.ndarray, target_Q: np.ndarray, counts_P: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return each segment's image number and each image's target; raise `InputError` where counts cannot be drawn."""
    if segment_Q.ndim == 0 or not (segment_Q.shape[:1] == image_Q.shape == target_Q.shape) or image_Q.size == 0:
        raise InputError(
            "expected one image and one target per segment; "
            f"got shapes {segment_Q.shape}, {image_Q.shape} and {target_Q.shape}"
        )
    images_I, first_I, index_Q, n_I = np.unique(image_Q, return_index=True, return_inverse=True, return_counts=True)
    target_I = target_Q[first_I]
    is_other_Q = target_Q != target_I[index_Q]
    if is_other_Q.any():
        image = image_Q[is_other_Q].tolist()[0]
        raise InputError(f"image {image!r} has more than one target; give the gallery column of the image itself")
    if counts_P.size == 0 or counts_P[0] < 1 or counts_P[-1] > n_I.min():
        raise InputError(
            f"counts {counts_P.tolist()}: expected at least one, each in 1..{n_I.min()}, "
            f"the repetitions of image {images_I.tolist()[n_I.argmin()]!r}"
        )
    return index_Q, target_I


def _drawn_hits(
    segment_Q: np.ndarray,
    index_Q: np.ndarray,
    target_I: np.ndarray,
    score: Callable[[np.ndarray], np.ndarray],
    counts_P: np.ndarray,
    top_k: int,
    average: Callable[[np.ndarray], np.ndarray],
    n_draws: int,
    generator: np.random.Generator,
) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]], int]:
    """Return hits [P, draws, I], for each point the `nulls.hit_pairs` of all draws, and the gallery's size."""
    n_I = np.bincount(index_Q)
    starts_I = np.cumsum(n_I) - n_I
    hit_PDI = np.empty((len(counts_P), n_draws, len(n_I)), dtype=bool)
    pairs_PD: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in counts_P]
    n_gallery = 0
    for draw in range(n_draws):
        # Segments of each image in a random order of their own; the first n of it are the subset of n.
        order_Q = np.lexsort((generator.random(len(index_Q)), index_Q))
        for point, count in enumerate(counts_P):
            chosen_IR = order_Q[starts_I[:, None] + np.arange(count)]
            score_IN = np.asarray(score(_averaged(segment_Q, chosen_IR, average)))
            hit_PDI[point, draw] = ranks(score_IN, target_I) <= top_k
            pairs_PD[point].append(hit_pairs(score_IN, target_I, top_k))
            n_gallery = score_IN.shape[1]
    pairs_P = [
        (np.concatenate([image_H for image_H, _ in pairs]), np.concatenate([column_H for _, column_H in pairs]))
        for pairs in pairs_PD
    ]
    return hit_PDI, pairs_P, n_gallery


def _averaged(segment_Q: np.ndarray, chosen_IR: np.ndarray, average: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Average the chosen segments of each image, a group of images at a time."""
    n_values = max(1, segment_Q[:1].size * chosen_IR.shape[1])
    size = max(1, _VALUES // n_values)
    groups = [chosen_IR[start : start + size] for start in range(0, len(chosen_IR), size)]
    return np.concatenate([average(segment_Q[group_IR]) for group_IR in groups])
