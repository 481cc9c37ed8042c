"""Does a saliency map say where people looked? s-AUC, NSS and CC against fixations, and what people themselves reach.

Axes: H W pixels, N fixations of one image, X fixations of others, M images; the 2 of a place is (row, column).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.stats import rankdata

from eegvision.evaluate.statistics import bootstrap_interval
from eegvision.vocab import InputError

Metric = Literal["s-auc", "nss", "cc"]
METRICS: tuple[Metric, ...] = get_args(Metric)


def nss(saliency_HW: np.ndarray, fixation_N2: np.ndarray) -> np.ndarray:
    """Normalised scanpath saliency, one value for each fixation.

        NSS_i = (S[r_i, c_i] - mean(S)) / std(S)        mean and population SD over all pixels

    Source: Peters, Iyer, Itti & Koch 2005, Vision Research 45, 2397.

    Args:
        saliency_HW: a map in any unit; a S + b with a > 0 scores the same.
        fixation_N2: integer pixels, origin top left.
    Returns:
        float64 [N], in standard deviations of the map; 0 everywhere for a constant map.
    Raises:
        InputError: the map is not finite, there are no fixations, or one lies outside the map.
    """
    saliency_HW = _checked_map(saliency_HW)
    at_N = saliency_HW[_checked_places(fixation_N2, saliency_HW.shape)]
    return (at_N - saliency_HW.mean()) / _spread(saliency_HW)


def cc(saliency_HW: np.ndarray, density_HW: np.ndarray) -> float:
    """Pearson correlation of a map with the density of fixations; 0 where either is constant.

    Raises:
        InputError: a map is not finite, or their shapes differ.
    """
    saliency_HW, density_HW = _checked_map(saliency_HW), _checked_map(density_HW)
    if saliency_HW.shape != density_HW.shape:
        raise InputError(f"a map of {saliency_HW.shape} and a density of {density_HW.shape} pixels; resize one of them")
    left_HW, right_HW = ((a - a.mean()) / _spread(a) for a in (saliency_HW, density_HW))
    return float((left_HW * right_HW).mean())


def shuffled_auc(saliency_HW: np.ndarray, fixation_N2: np.ndarray, other_X2: np.ndarray) -> float:
    """Probability that a map is higher at a fixation of its image than at one of other images.

        s-AUC = mean over i, j of [S_i > S_j] + [S_i = S_j] / 2        i fixations of the image, j of the others

    Looking at the centre, which people do whatever they see, gains nothing. Borji, Sihite & Itti (2013, IEEE TIP 22,
    55) draw as many of the other fixations as there are own ones, a hundred times, and average; this is the limit of
    that, with no draw. Source of the metric: Zhang, Tong, Marks, Shan & Cottrell 2008, J. Vision 8(7):32.

    Args:
        saliency_HW, fixation_N2: as in `nss`.
        other_X2: fixations on other images, in pixels of this map.
    Returns:
        0.5 for a constant map.
    Raises:
        InputError: as `nss`.
    """
    saliency_HW = _checked_map(saliency_HW)
    own_N = saliency_HW[_checked_places(fixation_N2, saliency_HW.shape)]
    other_X = saliency_HW[_checked_places(other_X2, saliency_HW.shape)]
    rank_N = rankdata(np.concatenate([own_N, other_X]))[: len(own_N)]
    return float((rank_N.mean() - (len(own_N) + 1) / 2) / len(other_X))


def fixation_density(fixation_N2: np.ndarray, shape: tuple[int, int], sigma_px: float) -> np.ndarray:
    """Return the density of fixations, a Gaussian of this width around each; float64 [H, W] with sum 1.

    Where a Gaussian is cut by the edge its rest is mirrored, so that every fixation counts alike. One degree of visual
    angle is the usual width (Le Meur & Baccino 2013).

    Raises:
        InputError: no fixations, one outside the picture, or a width that is not positive.
    """
    if not sigma_px > 0:
        raise InputError(f"sigma_px is {sigma_px}; give a positive width, usually that of one degree of visual angle")
    count_HW = np.zeros(shape)
    np.add.at(count_HW, _checked_places(fixation_N2, shape), 1.0)
    density_HW = gaussian_filter(count_HW, sigma_px, mode="reflect")
    return density_HW / density_HW.sum()


def in_crop(place_N2: np.ndarray, picture_shape: tuple[int, int], size_px: int, resize: float = 1.1) -> np.ndarray:
    """Return places of a picture as pixels of its central crop, the one that models see, without those outside it.

        r' = floor((r - (H - s) / 2) · q / s) - round((q - size) / 2),   s = min(H, W),  q = round(resize · size)

    Args:
        place_N2: (row, column) in pixels of the picture, fractions allowed.
        picture_shape: height and width of the picture as it was shown.
        size_px: side of the model's images.
        resize: side of the resized picture over that of the crop.
    Returns:
        int64, at most N rows.
    Raises:
        InputError: a place outside the picture.
    """
    place_N2 = np.asarray(place_N2, dtype=np.float64).reshape(-1, 2)
    _checked_places(place_N2, picture_shape)
    side, resized = min(picture_shape), round(resize * size_px)
    corner_2 = (np.array(picture_shape) - side) / 2
    pixel_N2 = np.floor((place_N2 - corner_2) * resized / side).astype(np.int64) - round((resized - size_px) / 2)
    return pixel_N2[((pixel_N2 >= 0) & (pixel_N2 < size_px)).all(axis=1)]


@dataclass(frozen=True, kw_only=True, eq=False)
class SaliencyScores:
    """Scores of the maps of M images, one each; `n_fixations_M` says from how many fixations.

    `auc_M` is s-AUC, `nss_M` the mean over an image's fixations, `cc_M` against their density of width `sigma_px`.
    """

    image_ids: tuple[str, ...]
    auc_M: np.ndarray
    nss_M: np.ndarray
    cc_M: np.ndarray
    n_fixations_M: np.ndarray
    sigma_px: float

    def of(self, metric: Metric) -> np.ndarray:
        """Return the M values of a metric."""
        return {"s-auc": self.auc_M, "nss": self.nss_M, "cc": self.cc_M}[metric]

    def interval(self, metric: Metric, *, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
        """Return the interval of a metric's mean over images, drawn again (`statistics.bootstrap_interval`).

        Raises:
            InputError: fewer than two images.
        """
        image_M = np.arange(len(self.image_ids))
        return bootstrap_interval(self.of(metric), image_M, level=level, seed=seed, small_sample=True)

    def to_rows(self) -> list[dict[str, Any]]:
        """One row for the mean over images (image None), then one for each image."""
        means = {metric: float(self.of(metric).mean()) for metric in METRICS}
        rows = [{"image": None, **means, "n_fixations": int(self.n_fixations_M.sum())}]
        return rows + [
            {"image": name, **{metric: float(self.of(metric)[m]) for metric in METRICS}, "n_fixations": int(n)}
            for m, (name, n) in enumerate(zip(self.image_ids, self.n_fixations_M, strict=True))
        ]


def score_maps(
    map_of: Mapping[str, np.ndarray], fixation_of: Mapping[str, np.ndarray], sigma_px: float
) -> SaliencyScores:
    """Score one map for each image against the fixations on it; negatives of s-AUC are those on all other images.

    Args:
        map_of: image id -> map [H, W], the same shape for all.
        fixation_of: image id -> integer pixels [N, 2] of the map, all viewers together; ids without a map are only
            negatives.
        sigma_px: width of the density that CC compares with.
    Raises:
        InputError: fewer than two images with fixations, an image with a map but without fixations, shapes differ, or
            as in the metrics.
    """
    others = _Others(fixation_of)
    _require_fixations(map_of, fixation_of)
    rows = [
        _score(saliency_HW, np.asarray(fixation_of[name]), others.than(name), sigma_px)
        for name, saliency_HW in map_of.items()
    ]
    return _scores(map_of, rows, fixation_of, sigma_px)


def human_ceiling(
    fixation_of: Mapping[str, Mapping[str, np.ndarray]],
    shape: tuple[int, int],
    sigma_px: float,
    *,
    method: Literal["itself", "one-viewer-out"] = "itself",
) -> SaliencyScores:
    """Score the density of fixations as if it were a map: what a perfect detector could reach.

    `itself` compares it with the fixations it was made of, as Palazzo et al. do; no detector that does not know these
    can reach it. `one-viewer-out` makes the map of all viewers but one and scores it on that one, averaged over
    viewers: what one person tells about the next.

    Args:
        fixation_of: image id -> viewer -> integer pixels [N, 2].
        shape: height and width of the images.
        sigma_px: width of the Gaussian, also of the density that CC compares with.
    Raises:
        InputError: an unknown method, an image with fewer than two viewers to leave one out, or as `score_maps`.
    """
    pooled = {name: np.concatenate([*by_viewer.values()]) for name, by_viewer in fixation_of.items() if by_viewer}
    if method == "itself":
        density_of = {name: fixation_density(place_N2, shape, sigma_px) for name, place_N2 in pooled.items()}
        return score_maps(density_of, pooled, sigma_px)
    if method != "one-viewer-out":
        raise InputError(f"method is {method!r}; expected 'itself' or 'one-viewer-out'")
    others, rows = _Others(pooled), []
    for name, by_viewer in fixation_of.items():
        if len(by_viewer) < 2:
            raise InputError(f"image {name!r} has {len(by_viewer)} viewers; leave it out, or take the method 'itself'")
        scores = []
        for viewer, own_N2 in by_viewer.items():
            rest_N2 = np.concatenate([place_N2 for other, place_N2 in by_viewer.items() if other != viewer])
            scores.append(_score(fixation_density(rest_N2, shape, sigma_px), own_N2, others.than(name), sigma_px))
        rows.append(tuple(np.mean(scores, axis=0)))
    return _scores(fixation_of, rows, pooled, sigma_px)


class _Others:
    """The fixations of all images but one, as a view of one array of them all."""

    def __init__(self, fixation_of: Mapping[str, np.ndarray]) -> None:
        if len(fixation_of) < 2:
            raise InputError(f"{len(fixation_of)} images with fixations; s-AUC takes those of at least one other image")
        self._start = dict(zip(fixation_of, np.cumsum([0] + [len(a) for a in fixation_of.values()]), strict=False))
        self._length = {name: len(place_N2) for name, place_N2 in fixation_of.items()}
        self._every_X2 = np.concatenate([np.asarray(place_N2).reshape(-1, 2) for place_N2 in fixation_of.values()])

    def than(self, name: str) -> np.ndarray:
        start = self._start[name]
        return np.delete(self._every_X2, slice(start, start + self._length[name]), axis=0)


def _score(
    saliency_HW: np.ndarray, fixation_N2: np.ndarray, other_X2: np.ndarray, sigma_px: float
) -> tuple[float, float, float]:
    density_HW = fixation_density(fixation_N2, np.shape(saliency_HW), sigma_px)
    scanpath_N = nss(saliency_HW, fixation_N2)
    return shuffled_auc(saliency_HW, fixation_N2, other_X2), float(scanpath_N.mean()), cc(saliency_HW, density_HW)


def _scores(
    names: Mapping[str, Any],
    rows: list[tuple[float, float, float]],
    fixation_of: Mapping[str, np.ndarray],
    sigma_px: float,
) -> SaliencyScores:
    auc_M, nss_M, cc_M = np.array(rows, dtype=np.float64).reshape(-1, 3).T
    n_fixations_M = np.array([len(fixation_of[name]) for name in names])
    return SaliencyScores(
        image_ids=tuple(names), auc_M=auc_M, nss_M=nss_M, cc_M=cc_M, n_fixations_M=n_fixations_M, sigma_px=sigma_px
    )


def _require_fixations(map_of: Mapping[str, np.ndarray], fixation_of: Mapping[str, np.ndarray]) -> None:
    without = [name for name in map_of if len(fixation_of.get(name, ())) == 0]
    if without or not map_of:
        raise InputError(
            f"{len(without)} of {len(map_of)} maps are of images without fixations, such as {without[:3]}; "
            "score only images that were looked at (a crop may leave fixations out)"
        )


def _checked_map(map_HW: np.ndarray) -> np.ndarray:
    map_HW = np.asarray(map_HW, dtype=np.float64)
    if map_HW.ndim != 2 or map_HW.size == 0 or not np.isfinite(map_HW).all():
        raise InputError(f"a map of shape {map_HW.shape}, or with values that are not finite; expected [H, W]")
    return map_HW


def _checked_places(place_N2: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and columns, as an index into a map."""
    place_N2 = np.asarray(place_N2)
    if place_N2.ndim != 2 or place_N2.shape[1] != 2 or len(place_N2) == 0:
        raise InputError(f"fixations of shape {place_N2.shape}; expected at least one (row, column), [N, 2]")
    is_inside_N = ((place_N2 >= 0) & (place_N2 < np.array(shape))).all(axis=1)
    if not is_inside_N.all():
        first = int(np.flatnonzero(~is_inside_N)[0])
        row, column = place_N2[first].tolist()
        raise InputError(
            f"fixation {first} at (row {row}, column {column}) lies outside the {shape[0]}x{shape[1]} map; rescale "
            "fixations to the map's size (`in_crop`), or swap the columns if they are stored as (x, y)"
        )
    row_N, column_N = place_N2.astype(np.int64).T
    return row_N, column_N


def _spread(map_HW: np.ndarray) -> float:
    """Return the population SD, infinite for a map whose differences are rounding."""
    spread = float(map_HW.std())
    return spread if spread > 1e-12 * np.abs(map_HW).max() else np.inf
