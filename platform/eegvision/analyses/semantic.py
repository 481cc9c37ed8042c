"""What embeddings know of meaning: similarities ordered by category, maps in two dimensions, retinotopic triplets.

Axes: N embeddings, D embedding, K concepts, S segments of one image, U subjects, C EEG channels, A axes, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eegvision.evaluate.nulls import permutations_within
from eegvision.vocab import InputError


@dataclass(frozen=True, kw_only=True, eq=False)
class SemanticSimilarity:
    """Similarities of concepts, those of one category side by side.

    Attributes:
        similarity_KK: float64 cosines, rows EEG and columns images (or whatever else was compared).
        concepts: names of rows and columns.
        categories: of each concept, in contiguous runs.
        within, between: mean similarity of two different concepts of one category, and of two categories.
        p: of `within - between` when concepts trade categories; its least value is 1 / (1 + n_permutations).
    """

    similarity_KK: np.ndarray
    concepts: tuple[str, ...]
    categories: tuple[str, ...]
    within: float
    between: float
    p: float

    @property
    def runs(self) -> list[tuple[str, int, int]]:
        """(category, first row, row after the last) of every category, in order: where lines are drawn."""
        starts = [k for k, name in enumerate(self.categories) if k == 0 or name != self.categories[k - 1]]
        stops = [*starts[1:], len(self.categories)]
        return [(self.categories[start], start, stop) for start, stop in zip(starts, stops, strict=True)]


def semantic_similarity(
    row_ND: np.ndarray,
    row_concept_N: Sequence[str],
    column_ND: np.ndarray,
    column_concept_N: Sequence[str],
    category_of: Mapping[str, str],
    *,
    n_permutations: int = 10_000,
    seed: int = 0,
) -> SemanticSimilarity:
    """Return the cosines between the mean embeddings of concepts, ordered by category, and whether categories show.

        m_k = mean over the embeddings of concept k, each of unit length;   similarity_jk = m_j · m'_k / (|m_j| |m'_k|)
        t = mean_{j≠k, one category} similarity_jk - mean_{two categories} similarity_jk
        p = (1 + #{π : t(π) >= t}) / (1 + n_permutations)             π moves concepts, rows and columns together

    The diagonal is left out of t: that an EEG finds its own image is another question (`evaluate.retrieval`).
    Source: Song et al., ICLR 2024 (NICE), semantic similarity analysis; the test is ours.

    Args:
        row_ND, row_concept_N: embeddings and the concept of each, usually of EEG.
        column_ND, column_concept_N: likewise, usually of images, of the same concepts; the same again for EEG by EEG.
        category_of: category of each concept, in the order in which both are to appear: categories by their first
            concept, concepts within them. Concepts without embeddings are left out.
    Raises:
        InputError: embeddings and concepts do not fit together, a concept has no category or is on one side alone, an
            embedding is zero or not finite, or there are not two categories of which one has two concepts.
    """
    concepts = [name for name in category_of if name in set(row_concept_N)]
    order = list(dict.fromkeys(category_of[name] for name in concepts))
    concepts.sort(key=lambda name: order.index(category_of[name]))  # stable: concepts keep their order within
    categories = [category_of[name] for name in concepts]
    row_KD = _means(row_ND, row_concept_N, concepts, "row")
    column_KD = _means(column_ND, column_concept_N, concepts, "column")
    if row_KD.shape != column_KD.shape:
        raise InputError(
            f"rows have {row_KD.shape[1]} dimensions and columns {column_KD.shape[1]}; compare embeddings of one model"
        )
    similarity_KK = row_KD @ column_KD.T
    code_K = np.array([order.index(name) for name in categories], dtype=np.int64)
    if len(order) < 2 or len(order) == len(concepts):
        raise InputError(
            f"{len(concepts)} concepts in {len(order)} categories cannot show whether concepts of one category are "
            "alike; give at least two categories, one of them with two concepts"
        )
    is_pair_KK = ~np.eye(len(concepts), dtype=bool)
    is_one_KK = (code_K[:, None] == code_K) & is_pair_KK
    within, between = similarity_KK[is_one_KK].mean(), similarity_KK[is_pair_KK & ~is_one_KK].mean()
    # Under a permutation numbers of pairs stay, so t grows with the sum within categories alone.
    reached = similarity_KK[is_one_KK].sum()
    reached -= 1e-9 * max(1.0, abs(reached))  # equal sums in another order must count as equal
    n_as_good = 0
    for _, permutation_RK in permutations_within(np.zeros(len(concepts)), n_permutations, seed):
        for code_k in code_K[permutation_RK]:
            n_as_good += similarity_KK[(code_k[:, None] == code_k) & is_pair_KK].sum() >= reached
    return SemanticSimilarity(
        similarity_KK=similarity_KK,
        concepts=tuple(concepts),
        categories=tuple(categories),
        within=float(within),
        between=float(between),
        p=(1 + int(n_as_good)) / (1 + n_permutations),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class EmbeddingMap:
    """Embeddings drawn in few dimensions.

    Attributes:
        position_NA: float64; the axes are uncorrelated, the first varies most, and the mean is 0.
        share_A: the part of all squared distance (PCA: of the variance) that each axis keeps.
    """

    position_NA: np.ndarray
    share_A: np.ndarray


def pca_map(embedding_ND: np.ndarray, n_axes: int = 2) -> EmbeddingMap:
    """Return embeddings on their first principal axes.

        X - mean = U Σ Vᵀ,   position = U Σ,   share_a = σ_a² / Σ_b σ_b²

    The direction of an axis, which the data leave open, is the one in which the embedding farthest out is positive.

    Raises:
        InputError: embeddings are not [N, D] and finite, are all equal, or have fewer than n_axes dimensions to show.
    """
    embedding_ND = _finite(embedding_ND, "embeddings")
    n_most = min(embedding_ND.shape)
    _require_axes(n_axes, n_most, f"{embedding_ND.shape[0]} embeddings of {embedding_ND.shape[1]} dimensions")
    centred_ND = embedding_ND - embedding_ND.mean(axis=0)
    left_NR, sigma_R, _ = np.linalg.svd(centred_ND, full_matrices=False)
    return _oriented(left_NR[:, :n_axes] * sigma_R[:n_axes], sigma_R**2)


def mds_map(distance_NN: np.ndarray, n_axes: int = 2) -> EmbeddingMap:
    """Return positions whose distances are near given ones: classical scaling.

        B = -1/2 J d² J,  J = I - 1/N,   B = E Λ Eᵀ,   position = E_a sqrt(λ_a),   share_a = λ_a / Σ_b |λ_b|

    Exact where the distances are Euclidean and of as few dimensions; an axis of negative λ is drawn as 0. With the
    Euclidean distances of embeddings it is `pca_map`; 1 minus the cosine is a common choice, or distances of
    similarity matrices. Directions as in `pca_map`. Source: Torgerson 1952, Psychometrika 17, 401.

    Raises:
        InputError: distances are not [N, N], finite, symmetric and zero on the diagonal, are all zero, or there are
            too few.
    """
    distance_NN = _finite(distance_NN, "distances")
    n = len(distance_NN)
    atol = 1e-6 * float(np.abs(distance_NN).max(initial=0))
    is_square = distance_NN.shape == (n, n)
    if not is_square or not np.allclose(distance_NN, distance_NN.T, atol=atol) or (np.diag(distance_NN) > atol).any():
        raise InputError(
            f"distances of shape {distance_NN.shape} are no symmetric [N, N] with zeros on the diagonal; "
            "give 1 - similarity, or average it with its transpose"
        )
    _require_axes(n_axes, n, f"{n} points")
    squared_NN = ((distance_NN + distance_NN.T) / 2) ** 2
    mean_N = squared_NN.mean(axis=0)
    lambda_N, axis_NN = np.linalg.eigh(-(squared_NN - mean_N - mean_N[:, None] + mean_N.mean()) / 2)
    lambda_N, axis_NN = lambda_N[::-1], axis_NN[:, ::-1]
    found = _oriented(axis_NN[:, :n_axes] * np.sqrt(np.maximum(lambda_N[:n_axes], 0)), np.abs(lambda_N))
    return EmbeddingMap(position_NA=found.position_NA, share_A=np.where(lambda_N[:n_axes] > 0, found.share_A, 0.0))


@dataclass(frozen=True, kw_only=True, eq=False)
class RetinotopicTriplet:
    """A picture, where its meaning to the brain lies in it, and where on the head: a row of the paper's Figure 8.

    Attributes:
        image_id: of the picture.
        image_3HW: the picture, as given.
        saliency_HW: float64, mean over subjects, in [0, 1].
        importance_C: float64, mean over subjects of the channels' importance, in the unit of F.
        standard_error_C: of that mean, over subjects; NaN with one.
        n_subjects: U.
    """

    image_id: str
    image_3HW: np.ndarray
    saliency_HW: np.ndarray
    importance_C: np.ndarray
    standard_error_C: np.ndarray
    n_subjects: int

    @property
    def centre(self) -> tuple[float, float]:
        """(row, column) of the saliency's centre of mass in pixels; that of the picture where saliency is flat."""
        height, width = self.saliency_HW.shape
        weight_HW = self.saliency_HW if self.saliency_HW.any() else np.ones((height, width))
        row = weight_HW.sum(axis=1) @ np.arange(height)
        column = weight_HW.sum(axis=0) @ np.arange(width)
        return float(row / weight_HW.sum()), float(column / weight_HW.sum())


def retinotopic_triplet(
    image_id: str,
    image_3HW: np.ndarray,
    saliency_SHW: np.ndarray,
    importance_SC: np.ndarray,
    subject_S: Sequence[str],
) -> RetinotopicTriplet:
    """Return a picture beside its saliency and its channels' importance, averaged over subjects.

        x̄ = mean_u mean_{s of u} x_s,    standard error = sd_u / sqrt(U) with U - 1;    saliency min-max after the mean

    Every subject counts alike, however many segments it has. Source: Palazzo et al., Section 7.4.1 and Figure 8.

    Args:
        image_id, image_3HW: the picture.
        saliency_SHW: Σ_σ S_σ(x, y) of each segment, not normalised (normalised maps would count alike however weak).
        importance_SC: I_c of each segment.
        subject_S: whose segment it is.
    Raises:
        InputError: shapes do not fit together, there is no segment, or a value is not finite.
    """
    image_3HW, importance_SC = np.asarray(image_3HW), _finite(importance_SC, "importance of channels")
    saliency_SHW = np.asarray(saliency_SHW, dtype=np.float64)
    n = len(subject_S)
    if (
        n == 0
        or saliency_SHW.ndim != 3
        or saliency_SHW.shape[1:] != image_3HW.shape[1:]
        or not n == len(saliency_SHW) == len(importance_SC)
    ):
        raise InputError(
            f"image {image_id!r}: a picture of {image_3HW.shape}, saliency of {saliency_SHW.shape}, importance of "
            f"{importance_SC.shape} and {n} subjects do not fit together; give [3, H, W], [S, H, W], [S, C] and S names"
        )
    if not np.isfinite(saliency_SHW).all():
        raise InputError(f"image {image_id!r}: saliency is not finite; leave segments with NaN or infinity out")
    subjects, row_S = np.unique(np.asarray(subject_S), return_inverse=True)
    share_US = (row_S == np.arange(len(subjects))[:, None]).astype(np.float64)
    share_US /= share_US.sum(axis=1, keepdims=True)
    saliency_HW = np.einsum("us,shw->hw", share_US, saliency_SHW) / len(subjects)
    spread = np.ptp(saliency_HW)
    importance_UC = share_US @ importance_SC
    is_one = len(subjects) == 1
    sd_C = np.full(importance_UC.shape[1], np.nan) if is_one else importance_UC.std(axis=0, ddof=1)
    return RetinotopicTriplet(
        image_id=image_id,
        image_3HW=image_3HW,
        saliency_HW=(saliency_HW - saliency_HW.min()) / spread if spread > 0 else np.zeros_like(saliency_HW),
        importance_C=importance_UC.mean(axis=0),
        standard_error_C=sd_C / len(subjects) ** 0.5,
        n_subjects=len(subjects),
    )


def _means(embedding_ND: np.ndarray, concept_N: Sequence[str], concepts: Sequence[str], side: str) -> np.ndarray:
    """Return the direction of the mean of each concept's directions, [K, D]."""
    embedding_ND = _finite(embedding_ND, f"{side} embeddings")
    if len(concept_N) != len(embedding_ND):
        raise InputError(f"{len(embedding_ND)} {side} embeddings have {len(concept_N)} concepts; give each its own")
    number_of = {name: number for number, name in enumerate(concepts)}
    present = set(concept_N)
    if unknown := sorted(present - number_of.keys()):
        raise InputError(
            f"concept {unknown[0]!r} of a {side} has no category, or no embedding among the rows; "
            "add it to both, or leave its embeddings out"
        )
    if absent := sorted(number_of.keys() - present):
        raise InputError(f"concept {absent[0]!r} has no {side} embedding; give one, or leave it out of the others")
    length_N1 = np.linalg.norm(embedding_ND, axis=1, keepdims=True)
    if not length_N1.all():
        raise InputError(f"{side} embedding {int(length_N1.argmin())} is zero and has no direction; leave it out")
    sum_KD = np.zeros((len(concepts), embedding_ND.shape[1]))
    np.add.at(sum_KD, [number_of[name] for name in concept_N], embedding_ND / length_N1)
    length_K1 = np.linalg.norm(sum_KD, axis=1, keepdims=True)
    if not length_K1.all():
        raise InputError(f"the {side} embeddings of {concepts[int(length_K1.argmin())]!r} cancel out; leave it out")
    return sum_KD / length_K1


def _finite(value: np.ndarray, what: str) -> np.ndarray:
    value = np.asarray(value, dtype=np.float64)
    if value.ndim != 2 or not np.isfinite(value).all():
        raise InputError(f"{what} of shape {value.shape} given; expected two axes and finite values")
    return value


def _require_axes(n_axes: int, n_most: int, what: str) -> None:
    if not 1 <= n_axes <= n_most:
        raise InputError(f"{n_axes} axes asked of {what}; there are at most {n_most}, and at least 1 must be shown")


def _oriented(position_NA: np.ndarray, strength_R: np.ndarray) -> EmbeddingMap:
    """Return positions, axes turned so that the point farthest out is positive, with each axis's share."""
    total = strength_R.sum()
    if not total > 0:
        raise InputError("all points are equal, so there is nothing to draw; give embeddings that differ")
    farthest_A = np.abs(position_NA).argmax(axis=0)
    sign_A = np.where(position_NA[farthest_A, np.arange(position_NA.shape[1])] < 0, -1.0, 1.0)
    return EmbeddingMap(position_NA=position_NA * sign_A, share_A=strength_R[: position_NA.shape[1]] / total)
