"""Where an effect is beyond chance: clusters of neighbouring channels, points in time, or both.

Axes: N segments, X places (channels, points in time or both), U independent units, E pairs of neighbours, K clusters,
P permutations.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import ConvexHull, QhullError
from scipy.special import stdtrit

from eegvision.vocab import InputError

_LONG_EDGE = 2.0  # times the median distance of neighbours: a line across the open bottom of a cap
_CELLS = 2**20  # of permutations x places that are labelled at a time


@dataclass(frozen=True, kw_only=True, eq=False)
class Clusters:
    """Neighbouring places with effects of one sign, and how often chance makes one as heavy.

    `t_X` is each place's t; `cluster_X` the number of its cluster, -1 for none; `mass_K` the sum of t
    over a cluster, `p_K` its p-value, corrected for all places. `p_X` is that of each place's cluster, 1 where it is
    in none. It is the cluster that is beyond chance, not each place in it, nor its border.
    """

    t_X: np.ndarray
    threshold: float
    cluster_X: np.ndarray
    mass_K: np.ndarray
    p_K: np.ndarray
    p_X: np.ndarray
    n_units: int
    n_permutations: int


def cluster_test(
    value_NX: np.ndarray,
    unit_N: np.ndarray,
    edge_E2: np.ndarray,
    *,
    place_p: float = 0.05,
    n_permutations: int = 2000,
    seed: int = 0,
) -> Clusters:
    """Are there places where the mean over units is not 0? Cluster mass under flips of whole units' signs, two-sided.

        t_x = m_x / sqrt(s_x^2 / U);   clusters: connected places with |t| above its place_p quantile and of one sign
        mass_k = sum of t over the cluster;     p_k = (1 + #{flips : the largest |mass| >= |mass_k|}) / (1 + flips)

    It holds its level for all places together if, without an effect, a unit's values are as likely with the opposite
    sign: differences of conditions, importance for the own less that for another picture, margins of views. With
    2^U <= `n_permutations` every pattern of signs is taken and p is exact.
    Source: Maris & Oostenveld 2007, J. Neurosci. Methods 164, 177.

    Args:
        value_NX: effect of each segment at each place, float64; averaged over each unit's segments.
        unit_N: what is a sample of others like it: subjects, pictures, or classes where pictures of one go together.
        edge_E2: pairs of neighbours, from `channel_neighbours`, `time_neighbours` or `both_neighbours`.
        place_p: two-sided p from which on a place can be in a cluster; it decides what is found, not the level.
        n_permutations: random flips.
        seed: of the flips.
    Raises:
        InputError: shapes disagree, a value is not finite, fewer than two units, or a neighbour that is no place.
    """
    value_NX, unit_N, edge_E2 = np.asarray(value_NX, dtype=np.float64), np.asarray(unit_N), np.asarray(edge_E2)
    _check_test(value_NX, unit_N, edge_E2, place_p, n_permutations)
    _, index_N, count_U = np.unique(unit_N, return_inverse=True, return_counts=True)
    n_units, n_places = len(count_U), value_NX.shape[1]
    if n_units < 2:
        raise InputError(f"{n_units} unit; clusters are tested over at least two subjects or pictures")
    mean_UX = np.zeros((n_units, n_places))
    np.add.at(mean_UX, index_N, value_NX)
    mean_UX /= count_U[:, None]
    threshold = float(-stdtrit(n_units - 1, place_p / 2))
    t_X = _t(np.ones((1, n_units)), mean_UX)[0]
    cluster_1X, mass_K, _ = _clusters(t_X[None], threshold, edge_E2)
    signs = _signs(n_units, n_places, n_permutations, seed)
    heaviest_P = np.concatenate([_heaviest(_t(sign_PU, mean_UX), threshold, edge_E2) for sign_PU in signs])
    # Sums in another order differ in the last digits; what should be equal must count as equal.
    n_as_heavy_K = (heaviest_P[:, None] >= np.abs(mass_K) * (1 - 1e-9)).sum(axis=0)
    p_K = (1 + n_as_heavy_K) / (1 + len(heaviest_P))
    return Clusters(
        t_X=t_X,
        threshold=threshold,
        cluster_X=cluster_1X[0],
        mass_K=mass_K,
        p_K=p_K,
        p_X=np.append(p_K, 1.0)[cluster_1X[0]],
        n_units=n_units,
        n_permutations=len(heaviest_P),
    )


def _check_test(
    value_NX: np.ndarray, unit_N: np.ndarray, edge_E2: np.ndarray, place_p: float, n_permutations: int
) -> None:
    if value_NX.ndim != 2 or 0 in value_NX.shape or unit_N.shape != value_NX.shape[:1]:
        raise InputError(f"values of shape {value_NX.shape} and units of shape {unit_N.shape}; expected [N, X] and [N]")
    if not np.isfinite(value_NX).all():
        n, x = np.argwhere(~np.isfinite(value_NX))[0]
        raise InputError(f"the value of segment {n} at place {x} is not finite; leave the segment out")
    n_places = value_NX.shape[1]
    if edge_E2.size and (edge_E2.ndim != 2 or edge_E2.shape[1] != 2 or edge_E2.min() < 0 or edge_E2.max() >= n_places):
        raise InputError(
            f"neighbours of shape {edge_E2.shape} for {n_places} places; expected pairs [E, 2] of 0 to {n_places - 1}"
        )
    if not 0 < place_p < 1 or n_permutations < 1:
        raise InputError(
            f"place_p {place_p:g} and {n_permutations} permutations; expected a p in (0, 1) and one at least"
        )


def _signs(n_units: int, n_places: int, n_permutations: int, seed: int) -> Iterable[np.ndarray]:
    """Yield chunks of patterns of signs [P, U]: all but the observed where they are few enough, else random ones."""
    size = max(1, _CELLS // max(n_units, n_places))
    # A pattern and its opposite make the same clusters, so half of them stand for all, and 0 is the observed one.
    if 2**n_units <= n_permutations:
        number_P = np.arange(1, 2 ** (n_units - 1))
        for start in range(0, len(number_P), size):
            yield 1.0 - 2.0 * (number_P[start : start + size, None] >> np.arange(n_units) & 1)
        return
    generator = np.random.default_rng(seed)
    for start in range(0, n_permutations, size):
        yield 1.0 - 2.0 * (generator.random((min(size, n_permutations - start), n_units)) < 0.5)


def _t(sign_PU: np.ndarray, mean_UX: np.ndarray) -> np.ndarray:
    """Return t of every place under every pattern; 0 where all units are 0."""
    n_units = len(mean_UX)
    mean_PX = sign_PU @ mean_UX / n_units
    # Squares do not change with signs, so one product per pattern is enough.
    square_PX = np.maximum((mean_UX**2).sum(axis=0) - n_units * mean_PX**2, 0) / (n_units - 1)
    error_PX = np.sqrt(np.maximum(square_PX, 1e-24 * (mean_UX**2).mean(axis=0)) / n_units)
    return np.divide(mean_PX, error_PX, out=np.zeros_like(mean_PX), where=error_PX > 0)


def _clusters(t_PX: np.ndarray, threshold: float, edge_E2: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each place's cluster [P, X] (-1 none), numbered through all rows, and each cluster's mass and row [K]."""
    n_rows, n_places = t_PX.shape
    side_PX = np.where(np.abs(t_PX) > threshold, np.sign(t_PX), 0).astype(np.int8)
    edge_E2 = edge_E2.reshape(-1, 2)
    row, edge = np.nonzero((side_PX[:, edge_E2[:, 0]] == side_PX[:, edge_E2[:, 1]]) & (side_PX[:, edge_E2[:, 0]] != 0))
    # One graph holds all rows, which no edge connects; places outside of clusters are components of one.
    one, other = (row * n_places + edge_E2[edge, end] for end in (0, 1))
    n_cells = t_PX.size
    graph = coo_array((np.ones(len(one), dtype=np.int8), (one, other)), shape=(n_cells, n_cells))
    _, component_n = connected_components(graph.tocsr(), directed=False)
    cell_n = np.flatnonzero(side_PX)
    _, first_K, cluster_n = np.unique(component_n[cell_n], return_index=True, return_inverse=True)
    label_n = np.full(n_cells, -1)
    label_n[cell_n] = cluster_n
    mass_K = np.bincount(cluster_n, weights=t_PX.ravel()[cell_n], minlength=len(first_K))
    return label_n.reshape(n_rows, n_places), mass_K, cell_n[first_K] // n_places


def _heaviest(t_PX: np.ndarray, threshold: float, edge_E2: np.ndarray) -> np.ndarray:
    """Return the largest |mass| of each row, 0 where it has no cluster."""
    _, mass_K, row_K = _clusters(t_PX, threshold, edge_E2)
    heaviest_P = np.zeros(len(t_PX))
    np.maximum.at(heaviest_P, row_K, np.abs(mass_K))
    return heaviest_P


def channel_neighbours(positions_m: Sequence[tuple[float, float, float]]) -> np.ndarray:
    """Return pairs of neighbouring electrodes, [E, 2], each pair once.

    Electrodes are moved onto the sphere that fits them best; neighbours share an edge of their convex hull, which is
    the Delaunay triangulation of the sphere (Brown 1979, Inf. Process. Lett. 9, 223). Edges longer than twice the
    median run across the open bottom of the cap and are left out.

    Raises:
        InputError: fewer than four electrodes, unknown or equal positions, or all in one plane.
    """
    place_C3 = np.asarray(positions_m, dtype=np.float64)
    remedy = "ingest with 10-05 channel names or a montage, or give the pairs of neighbours yourself"
    if place_C3.ndim != 2 or place_C3.shape[1:] != (3,) or len(place_C3) < 4 or not np.isfinite(place_C3).all():
        raise InputError(f"neighbours need finite positions of four channels at least; got {place_C3.shape}; {remedy}")
    # |p - c|^2 = r^2 is linear in (2 c, r^2 - |c|^2)
    solved, *_ = np.linalg.lstsq(np.column_stack([place_C3, np.ones(len(place_C3))]), (place_C3**2).sum(axis=1))
    outward_C3 = place_C3 - solved[:3] / 2
    outward_C3 /= np.maximum(np.linalg.norm(outward_C3, axis=1, keepdims=True), 1e-12)
    try:
        hull = ConvexHull(outward_C3)
    except QhullError as error:
        raise InputError(f"the {len(place_C3)} electrodes do not lie around a head; {remedy}") from error
    if len(hull.vertices) < len(place_C3):
        raise InputError(f"two of the {len(place_C3)} electrodes are at one place; {remedy}")
    corner_F3 = np.sort(hull.simplices, axis=1)
    edge_E2 = np.unique(np.concatenate([corner_F3[:, pair] for pair in ([0, 1], [0, 2], [1, 2])]), axis=0)
    length_E = np.linalg.norm(outward_C3[edge_E2[:, 0]] - outward_C3[edge_E2[:, 1]], axis=1)
    return edge_E2[length_E <= _LONG_EDGE * np.median(length_E)]


def time_neighbours(n_times: int) -> np.ndarray:
    """Return pairs of successive points in time, [n_times - 1, 2]."""
    return np.column_stack([np.arange(n_times - 1), np.arange(1, n_times)])


def both_neighbours(edge_E2: np.ndarray, n_chans: int, step_F2: np.ndarray, n_times: int) -> np.ndarray:
    """Return pairs of neighbours for channels x times, flattened channel by channel: x = channel * n_times + time.

    Neighbouring channels (`edge_E2`) at one time, and neighbouring times (`step_F2`) of one channel.
    """
    within = np.arange(n_chans)[:, None, None] * n_times + step_F2.reshape(-1, 2)
    across = edge_E2.reshape(-1, 2)[:, None, :] * n_times + np.arange(n_times)[:, None]
    return np.concatenate([within.reshape(-1, 2), across.reshape(-1, 2)])
