"""Statistics of groups against permutations: the machinery of the order audit, which knows nothing of EEG or time.

A statistic gives a number s for every group g. Values are drawn anew within strata, and groups are combined by

    z_g = (s_g - mean of the null) / sd of the null
    Z = sum_g z_g / sqrt(sum_gh overlap_gh)        overlap_gh = |M_g & M_h| / sqrt(|M_g| |M_h|),  M_g: its pictures

so that groups with the same pictures, whose statistics may err alike, do not count as independent witnesses.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

Statistic = Callable[[np.ndarray], np.ndarray]  # class of every presentation -> a number for every group

# Together below one error in a thousand, also where the null is skewed.
MIN_Z = 4.0
_MAX_P = 0.001


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A statistic against its null: means over groups weighted by their presentations, Z and p.

    p is the share of single groups' null z that reach Z; `least_p` is the smallest that so many draws can give.
    """

    value: float
    expected: float
    z: float
    p: float
    least_p: float
    sd_G: np.ndarray

    @property
    def is_no_accident(self) -> bool:
        return self.z >= MIN_Z and self.p <= max(_MAX_P, self.least_p)


def shuffles(values_U: np.ndarray, stratum_U: np.ndarray, rng: np.random.Generator) -> Callable[[], np.ndarray]:
    """Return a function that gives the values of units in another random order within their strata."""
    order = np.argsort(stratum_U, kind="stable")
    edges = np.flatnonzero(np.diff(stratum_U[order], prepend=-1, append=-1))
    spans = [slice(a, b) for a, b in itertools.pairwise(edges) if b - a > 1]

    def draw() -> np.ndarray:
        sorted_U = values_U[order]
        for span in spans:
            rng.shuffle(sorted_U[span])
        shuffled_U = np.empty_like(sorted_U)
        shuffled_U[order] = sorted_U
        return shuffled_U

    return draw


def pictures_trade(
    group_N: np.ndarray, image_N: np.ndarray, label_N: np.ndarray, side_M: np.ndarray, rng: np.random.Generator
) -> Callable[[], np.ndarray]:
    """Return a function that gives every presentation a class after the pictures of a group have traded classes.

    Only pictures of the same published side and about as many presentations trade, so that classes keep their sizes.
    """
    n_images = len(side_M)
    unit_U, first_U, unit_N, count_U = np.unique(
        group_N * n_images + image_N, return_index=True, return_inverse=True, return_counts=True
    )
    often_U = np.round(np.log2(count_U)).astype(np.int64)
    side_U = side_M[unit_U % n_images] + 1
    stratum_U = ((unit_U // n_images) * (side_M.max() + 2) + side_U) * (often_U.max() + 1) + often_U
    draw = shuffles(label_N[first_U], stratum_U, rng)
    return lambda: draw()[unit_N]


def overlaps(group_N: np.ndarray, image_N: np.ndarray, n_groups: int) -> np.ndarray:
    """Return [G, G]: pictures two groups share, over the geometric mean of how many each has (0 where one has none)."""
    from scipy.sparse import csr_array

    pairs = np.unique(np.column_stack([group_N, image_N]), axis=0)
    shape = (n_groups, int(image_N.max(initial=0)) + 1)
    shown_GM = csr_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=shape)
    shared_GG = (shown_GM @ shown_GM.T).toarray()
    root_G = np.sqrt(np.maximum(np.diag(shared_GG), 1))
    return shared_GG / root_G / root_G[:, None]


def against_null(
    statistics: Mapping[str, tuple[Statistic, int]],
    observed_N: np.ndarray,
    draw: Callable[[], np.ndarray],
    group_N: np.ndarray,
    overlap_GG: np.ndarray,
    n_rounds: int,
) -> dict[str, Comparison]:
    """Compare statistics with those after `n_rounds` draws; the sign says whether large (+1) or small (-1) is bad.

    Groups in which no draw changes a statistic, or which have none (NaN), have no say in it.
    """
    null = {name: np.empty((n_rounds, len(overlap_GG))) for name in statistics}
    for number in range(n_rounds):
        drawn_N = draw()
        for name, (statistic, _) in statistics.items():
            null[name][number] = statistic(drawn_N)
    n_G = np.bincount(group_N, minlength=len(overlap_GG))
    tests = {}
    for name, (statistic, sign) in statistics.items():
        observed_G = statistic(observed_N)
        mean_G, sd_G = null[name].mean(axis=0), null[name].std(axis=0, ddof=1)
        has_say_G = np.isfinite(observed_G) & (sd_G > 1e-12)  # False for NaN as well
        weight_G = n_G * np.isfinite(observed_G + mean_G)
        z, p, least_p = 0.0, 1.0, 1.0
        if has_say_G.any():
            variance = overlap_GG[np.ix_(has_say_G, has_say_G)].sum()
            scaled = sign / sd_G[has_say_G]
            z = float(((observed_G - mean_G)[has_say_G] * scaled).sum() / math.sqrt(variance))
            least_p = 1 / (1 + n_rounds * int(has_say_G.sum()))
            p = (1 + int(((null[name] - mean_G)[:, has_say_G] * scaled >= z).sum())) * least_p
        value, expected = (
            float(np.average(np.nan_to_num(v), weights=weight_G)) if weight_G.any() else math.nan
            for v in (observed_G, mean_G)
        )
        tests[name] = Comparison(
            value=value, expected=expected, z=z, p=p, least_p=least_p, sd_G=np.where(has_say_G, sd_G, 0.0)
        )
    return tests


def information(group_N: np.ndarray, bin_N: np.ndarray, is_used_N: np.ndarray, n_groups: int) -> Statistic:
    """I(class; bin) / H(class) in every group, by counting; biased upwards as such, like its null.

        I = H(class) + H(bin) - H(class, bin)        H by relative frequencies in the group

    `bin_N` counts across groups: no bin is in two of them.
    """
    rows = np.flatnonzero(is_used_N)
    group_N, bin_N = group_N[rows], bin_N[rows]
    n_G = np.bincount(group_N, minlength=n_groups).astype(np.float64)
    n_G[n_G == 0] = np.nan

    def entropy(key_N: np.ndarray) -> np.ndarray:
        """Of what `key_N` counts, whose order is that of the groups."""
        sorted_N = np.sort(key_N.astype(np.int32) if key_N.max(initial=0) < 2**31 else key_N)  # half the time
        edges = np.flatnonzero(np.diff(sorted_N, prepend=-1, append=-1))
        count = np.diff(edges)
        group = np.repeat(np.arange(n_groups), np.nan_to_num(n_G).astype(np.int64))[edges[:-1]]
        return np.log(n_G) - np.bincount(group, weights=count * np.log(count), minlength=n_groups) / n_G

    # Numbered anew, so that bins come in the order of their groups.
    bin_N = np.unique(group_N * (int(bin_N.max(initial=0)) + 1) + bin_N, return_inverse=True)[1]
    bin_entropy_G = entropy(bin_N)

    def statistic(label_N: np.ndarray) -> np.ndarray:
        label_N = label_N[rows]
        n_labels = int(label_N.max(initial=0)) + 1
        class_entropy_G = entropy(group_N * n_labels + label_N)
        shared_G = class_entropy_G + bin_entropy_G - entropy(bin_N * n_labels + label_N)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(class_entropy_G > 1e-9, shared_G / class_entropy_G, np.nan)

    return statistic


def lag(group_N: np.ndarray, position_N: np.ndarray, is_used_N: np.ndarray, n_groups: int) -> Statistic:
    """Median number of positions until the next one of the same class, in every group; NaN where none comes twice."""
    rows = np.flatnonzero(is_used_N)
    group_N, position_N = group_N[rows], position_N[rows]
    # One sort serves all: within a class positions are closer than `stride / 2`, across classes they never are.
    stride = 2 * (int(position_N.max(initial=0)) + 1)

    def statistic(label_N: np.ndarray) -> np.ndarray:
        label_N = label_N[rows]
        n_labels = int(label_N.max(initial=0)) + 1
        key_N = np.sort((group_N * n_labels + label_N) * stride + position_N)
        lag_N = np.diff(key_N)
        is_same_N = lag_N < stride // 2
        lag_N, own_group_N = lag_N[is_same_N], key_N[1:][is_same_N] // (stride * n_labels)
        edges = np.searchsorted(own_group_N, np.arange(n_groups + 1)).tolist()
        return np.array([np.median(lag_N[a:b]) if b > a else np.nan for a, b in itertools.pairwise(edges)])

    return statistic


def entropy_bits(count: np.ndarray) -> float:
    """Return the entropy of counts above 0: -sum_k p_k log2 p_k, p_k = n_k / sum n."""
    share = count / count.sum()
    return max(0.0, -float((share * np.log2(share)).sum()))  # never -0.0
