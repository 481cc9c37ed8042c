"""Do analyses find what was planted? Scores of maps, channels, intervals and associations against a known truth.

Every score comes with its values when pictures are drawn again; the same draws for every model of the same pictures, so
that differences of models are paired.

Axes: M pictures, C channels, K intervals, D embedding, F feature maps, Q all pictures that selectivity is told from,
L low-level properties, R draws of pictures, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from eegvision.evaluate.saliency import nss, shuffled_auc
from eegvision.vocab import InputError

N_DRAWS = 500
_DEAD = 1e-10  # variance of a feature map's response below which it says nothing


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """A score of all pictures, and of each draw of as many of them."""

    value: float
    drawn_R: np.ndarray

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the bounds of the score when pictures are drawn again (percentiles)."""
        low, high = np.quantile(self.drawn_R, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def less(self, other: Found) -> Found:
        """Return how much higher this is than the score of another model on the same pictures."""
        return Found(value=self.value - other.value, drawn_R=self.drawn_R - other.drawn_R)


def mean_of(found: Sequence[Found]) -> Found:
    """Return the mean over data sets, whose pictures are drawn each by themselves."""
    return Found(
        value=float(np.mean([one.value for one in found])), drawn_R=np.mean([one.drawn_R for one in found], axis=0)
    )


def drawn(score: Callable[[np.ndarray], float], n_pictures: int, seed: int) -> Found:
    """Return a score of all pictures and of draws of them.

    Args:
        score: from how often each picture counts, [M], to the score.
        seed: of the draws; models that are compared must share it.
    """
    rng = np.random.default_rng([seed, n_pictures])
    count_RM = rng.multinomial(n_pictures, np.full(n_pictures, 1 / n_pictures), size=N_DRAWS)
    return Found(value=score(np.ones(n_pictures)), drawn_R=np.array([score(count_M) for count_M in count_RM]))


def rank_correlation(left_X: np.ndarray, right_X: np.ndarray) -> float:
    """Return Spearman's correlation; 0 where either is constant."""
    left_X, right_X = (rankdata(value_X) - (len(value_X) + 1) / 2 for value_X in (left_X, right_X))
    size = np.sqrt((left_X**2).sum() * (right_X**2).sum())
    return float(left_X @ right_X / size) if size > 0 else 0.0


def object_scores(map_of: Mapping[str, np.ndarray], mask_of: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return s-AUC and mean NSS of every map, [M] each, the pixels of its object as fixations, others' as negatives.

    Raises:
        InputError: fewer than two pictures, one without a mask, or an empty mask.
    """
    pixels = {name: np.argwhere(mask_of[name]) for name in map_of}
    if len(pixels) < 2 or not all(map(len, pixels.values())):
        raise InputError(f"{len(pixels)} pictures, or one of them without an object; give at least two with theirs")
    aucs, means = [], []
    for name, map_HW in map_of.items():
        others = np.concatenate([own for other, own in pixels.items() if other != name])
        aucs.append(shuffled_auc(map_HW, pixels[name], others))
        means.append(nss(map_HW, pixels[name]).mean())
    return np.array(aucs), np.array(means)


def mean_score(value_M: np.ndarray, seed: int) -> Found:
    """Return the mean over pictures."""
    return drawn(lambda count_M: float(count_M @ value_M / count_M.sum()), len(value_M), seed)


def channel_score(importance_MC: np.ndarray, projection_C: np.ndarray, seed: int) -> Found:
    """Return the rank correlation over channels of the mean importance with what sources project to them."""
    return drawn(lambda count_M: rank_correlation(count_M @ importance_MC, projection_C), len(importance_MC), seed)


def interval_score(importance_M: np.ndarray, before_M: np.ndarray, seed: int) -> Found:
    """Return the probability that an interval contributes more to one picture than the time before to another one.

    P = mean over m, n of [a_m > b_n] + [a_m = b_n] / 2
    """
    above_MM = (importance_M[:, None] > before_M) + 0.5 * (importance_M[:, None] == before_M)
    n = len(importance_M)
    return drawn(lambda count_M: float(count_M @ above_MM @ count_M / count_M.sum() ** 2), n, seed)


def class_selectivity(response_QF: np.ndarray, label_Q: np.ndarray, low_QL: np.ndarray) -> np.ndarray:
    """Return how much more of a feature map's response the class explains than low-level properties do, [F].

        s_f = (u_class - u_low) / (u_class + u_low)
        u_class = R²(class, low) - R²(low),     u_low = R²(class, low) - R²(class)

    1: the class alone; -1: low-level properties alone; NaN for a map whose response does not vary. What both explain
    counts for neither. R² is that of linear regression with an intercept.
    """
    class_QK = (label_Q[:, None] == np.unique(label_Q)).astype(np.float64)
    low_QL = np.column_stack([low_QL, np.ones(len(low_QL))])
    both = _explained(np.column_stack([class_QK, low_QL]), response_QF)
    unique_class_F = both - _explained(low_QL, response_QF)
    unique_low_F = both - _explained(class_QK, response_QF)
    total_F = np.maximum(unique_class_F + unique_low_F, 1e-12)
    return np.where(response_QF.var(axis=0) > _DEAD, (unique_class_F - unique_low_F) / total_F, np.nan)


def _explained(cause_QX: np.ndarray, response_QF: np.ndarray) -> np.ndarray:
    left_QF = response_QF - cause_QX @ np.linalg.lstsq(cause_QX, response_QF, rcond=None)[0]
    return 1 - left_QF.var(axis=0) / np.maximum(response_QF.var(axis=0), _DEAD)


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerEffects:
    """A layer's maps: Δθ of every picture, [M, F, D], and `class_selectivity` [F]."""

    name: str
    effect_MFD: np.ndarray
    selectivity_F: np.ndarray


def association_scores(
    eeg_MKCD: np.ndarray, layers: Sequence[LayerEffects], contrast_C: np.ndarray, seed: int
) -> tuple[Found, Found]:
    """Return how feature maps that carry the class go with the late interval, and with the late sources' electrodes.

        A_c,f = mean_m Δφ_c(m) · (Δθ_f(m) - mean_n Δθ_f(n))         Palazzo et al., Eq. 9, of this picture, not of all

    The first score is the rank correlation, over the maps of a layer, of their selectivity with A of the late less A of
    the early interval (sums over channels, each divided by its mean size over maps). The second is that, over channels,
    of the mean of A weighed by selectivity (standardised within the layer; A of each map in units of the layer's rms)
    with `contrast_C`. Both are averaged over layers; 0 where associations say nothing.

    Args:
        eeg_MKCD: Δφ_c of every picture, mean over its segments: of the whole segment, of an early and a late interval.
        layers: with the same pictures; maps without selectivity are left out.
        contrast_C: what late sources project to each channel less what early ones do.
        seed: of the draws, as in `drawn`.
    Raises:
        InputError: no layer has three maps that respond.
    """
    M = len(eeg_MKCD)
    parts = []
    for layer in layers:
        is_alive_F = np.isfinite(layer.selectivity_F) & (np.abs(layer.effect_MFD).sum(axis=(0, 2)) > 0)
        if np.count_nonzero(is_alive_F) >= 3:
            effect_MFD, select_F = layer.effect_MFD[:, is_alive_F], layer.selectivity_F[is_alive_F]
            parts.append((np.einsum("mkcd,mfd->mkcf", eeg_MKCD, effect_MFD), effect_MFD, select_F))
    if not parts:
        raise InputError("no layer has three feature maps that respond; the network is dead, or layers are too few")

    def by_layer(count_M: np.ndarray) -> list[np.ndarray]:
        share_M = count_M / count_M.sum()
        eeg_KCD = np.tensordot(share_M, eeg_MKCD, axes=1)
        return [
            np.tensordot(share_M, both_MKCF, axes=1) - eeg_KCD @ np.tensordot(share_M, effect_MFD, axes=1).T
            for both_MKCF, effect_MFD, _ in parts
        ]

    def late_score(count_M: np.ndarray) -> float:
        return float(
            np.mean(
                [
                    rank_correlation(select_F, _sized(A_KCF[2].sum(axis=0)) - _sized(A_KCF[1].sum(axis=0)))
                    for A_KCF, (*_, select_F) in zip(by_layer(count_M), parts, strict=True)
                ]
            )
        )

    def scalp_score(count_M: np.ndarray) -> float:
        maps_LC = []
        for A_KCF, (*_, select_F) in zip(by_layer(count_M), parts, strict=True):
            weight_F = (select_F - select_F.mean()) / max(select_F.std(), 1e-12)
            rms = np.sqrt((A_KCF[0] ** 2).mean())
            maps_LC.append(A_KCF[0] @ weight_F / (len(weight_F) * (rms if rms > 0 else 1.0)))
        return rank_correlation(np.mean(maps_LC, axis=0), contrast_C)

    return drawn(late_score, M, seed), drawn(scalp_score, M, seed)


def _sized(value_F: np.ndarray) -> np.ndarray:
    size = np.abs(value_F).mean()
    return value_F / size if size > 0 else value_F
