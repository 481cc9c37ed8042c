"""eegvision.evaluate.clusters: by a naive walk, by chance, planted; neighbours by hand; refusals."""

from typing import Any

import numpy as np
import pytest

from eegvision.evaluate.clusters import both_neighbours, channel_neighbours, cluster_test, time_neighbours
from eegvision.ingest import simulate
from eegvision.vocab import InputError


def naive_clusters(t_X: np.ndarray, threshold: float, edge_E2: np.ndarray) -> list[tuple[frozenset[int], float]]:
    """Clusters by walking from place to place."""
    near = {x: {b for a, b in edge_E2 if a == x} | {a for a, b in edge_E2 if b == x} for x in range(len(t_X))}
    left, found = {x for x in range(len(t_X)) if abs(t_X[x]) > threshold}, []
    while left:
        start = left.pop()
        members, to_visit = {start}, [start]
        while to_visit:
            x = to_visit.pop()
            for y in near[x] & left:
                if t_X[y] * t_X[start] > 0:
                    left.remove(y)
                    members.add(y)
                    to_visit.append(y)
        found.append((frozenset(members), float(sum(t_X[x] for x in members))))
    return found


def test_clusters_t_and_every_pattern_of_signs_are_those_of_a_naive_walk():
    rng = np.random.default_rng(3)
    edge_E2 = both_neighbours(np.array([[0, 1], [1, 2], [0, 3]]), 4, time_neighbours(5), 5)
    value_NX = rng.standard_normal((14, 20)) + 0.8 * (np.arange(20) % 5 == 2)
    unit_N = np.repeat(np.arange(7), 2)
    found = cluster_test(value_NX, unit_N, edge_E2, place_p=0.2, n_permutations=128)
    mean_UX = value_NX.reshape(7, 2, 20).mean(axis=1)

    def t_of(value_UX: np.ndarray) -> np.ndarray:
        return value_UX.mean(axis=0) / (value_UX.std(axis=0, ddof=1) / 7**0.5)

    np.testing.assert_allclose(found.t_X, t_of(mean_UX))
    expected = naive_clusters(t_of(mean_UX), found.threshold, edge_E2)
    assert len(expected) >= 2
    heaviest = []
    for pattern in range(64):  # up to the opposite of all
        sign_U1 = np.array([[-1.0 if pattern >> u & 1 else 1.0] for u in range(7)])
        clusters = naive_clusters(t_of(sign_U1 * mean_UX), found.threshold, edge_E2)
        heaviest.append(max((abs(mass) for _, mass in clusters), default=0.0))
    assert found.n_permutations == 63
    assert len(found.mass_K) == len(expected)
    for members, mass in expected:
        number = found.cluster_X[min(members)]
        assert members == set(np.flatnonzero(found.cluster_X == number))
        assert found.mass_K[number] == pytest.approx(mass)
        p = np.mean([weight >= abs(mass) - 1e-9 for weight in heaviest])
        assert found.p_K[number] == pytest.approx(p)
        np.testing.assert_array_equal(found.p_X[list(members)], found.p_K[number])
    outside_X = found.cluster_X < 0
    assert outside_X.any()
    assert (found.p_X[outside_X] == 1).all()


def smooth(rng: np.random.Generator, n_units: int, n_places: int) -> np.ndarray:
    """Noise in which neighbours are alike."""
    white = rng.standard_normal((n_units, n_places + 4))
    return np.sum([white[:, shift : shift + n_places] for shift in range(5)], axis=0) / 5**0.5


def test_under_the_null_a_cluster_is_claimed_as_seldom_as_said():
    rng, edge_E2, n_runs = np.random.default_rng(0), time_neighbours(30), 400
    n_false = sum(
        cluster_test(smooth(rng, 12, 30), np.arange(12), edge_E2, n_permutations=199, seed=run).p_X.min() <= 0.05
        for run in range(n_runs)
    )
    # 99.9 % of a binomial of 400 and 0.05; uncorrected, 240 of these runs would claim something
    assert 8 <= n_false <= 35


def test_a_planted_cluster_is_found_and_units_not_segments_are_what_counts():
    rng, edge_E2 = np.random.default_rng(1), time_neighbours(30)
    value_UX = smooth(rng, 20, 30)
    value_UX[:, 10:18] -= 1.2
    found = cluster_test(value_UX, np.arange(20), edge_E2, seed=1)
    assert found.p_X[12:16].max() < 0.01
    assert found.mass_K[found.cluster_X[13]] < 0
    assert found.p_X[:6].min() > 0.05
    again = cluster_test(value_UX, np.arange(20), edge_E2, seed=1)
    np.testing.assert_array_equal(again.p_K, found.p_K)
    # Each unit's segments once or several times: nothing new is known.
    count_U = np.arange(20) % 4 + 1
    repeated = cluster_test(np.repeat(value_UX, count_U, axis=0), np.repeat(np.arange(20), count_U), edge_E2, seed=1)
    np.testing.assert_allclose(repeated.t_X, found.t_X)
    np.testing.assert_array_equal(repeated.p_K, found.p_K)


def test_without_any_effect_there_is_no_cluster_and_one_without_spread_is_certain():
    nothing = cluster_test(np.zeros((6, 3)), np.arange(6), time_neighbours(3))
    assert (nothing.t_X.tolist(), nothing.mass_K.tolist(), nothing.p_X.tolist()) == ([0, 0, 0], [], [1, 1, 1])
    # One of six units is on the other side: 14 of the 64 patterns of signs are as uneven or more.
    one_side = cluster_test(np.array([[1.0]] * 5 + [[-1.0]]), np.arange(6), np.empty((0, 2), dtype=int), place_p=0.2)
    np.testing.assert_allclose((one_side.t_X, one_side.p_X), ([2.0], [14 / 64]))
    certain = cluster_test(np.ones((6, 3)), np.arange(6), time_neighbours(3))
    assert np.isfinite(certain.t_X).all()
    np.testing.assert_allclose(certain.p_X, 1 / 32)  # every pattern of six signs, up to the opposite


def test_neighbours_on_an_octahedron_and_on_a_cap():
    corners = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]]) * 0.1
    off_centre = corners + np.array([0.01, -0.02, 0.04])
    found = {tuple(pair) for pair in channel_neighbours(off_centre.tolist())}
    assert found == {(a, b) for a in range(6) for b in range(a + 1, 6) if b != a + 1 or a % 2}
    cap = simulate._choose_channels(128)
    edge_E2 = channel_neighbours(cap.position_C3.tolist())
    distance_E = np.linalg.norm(cap.position_C3[edge_E2[:, 0]] - cap.position_C3[edge_E2[:, 1]], axis=1)
    assert distance_E.max() < 0.08
    degree_C = np.bincount(edge_E2.ravel(), minlength=128)
    assert degree_C.min() >= 2
    assert 5 <= degree_C.mean() <= 6
    named = {frozenset((cap.channels[a], cap.channels[b])) for a, b in edge_E2}
    assert frozenset(("O1", "O2")) not in named
    assert frozenset(("Fp1", "Oz")) not in named


def test_neighbours_of_channels_and_times_by_hand():
    assert time_neighbours(3).tolist() == [[0, 1], [1, 2]]
    both = both_neighbours(np.array([[0, 1]]), 2, time_neighbours(3), 3)
    assert {tuple(pair) for pair in both} == {(0, 1), (1, 2), (3, 4), (4, 5), (0, 3), (1, 4), (2, 5)}
    apart = both_neighbours(np.empty((0, 2), dtype=int), 2, np.array([[0, 1]]), 3)
    assert {tuple(pair) for pair in apart} == {(0, 1), (3, 4)}


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([(0, 0, 0.1), (0.1, 0, 0), (0, 0.1, 0)], "four channels at least"),
        ([(0, 0, float("nan"))] * 5, "finite positions"),
        ([(0, 0, 0), (0.1, 0, 0), (0, 0.1, 0), (0.1, 0.1, 0)], "around a head|at one place"),
        (
            [(0, 0, 0.1), (0, 0, -0.1), (0.1, 0, 0), (-0.1, 0, 0), (0, 0.1, 0), (0, -0.1, 0), (0, 0, 0.1)],
            "at one place",
        ),
    ],
)
def test_positions_without_neighbours_are_refused(positions, message):
    with pytest.raises(InputError, match=message):
        channel_neighbours(positions)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value_NX": np.ones((4, 3))}, r"values of shape \(4, 3\) and units of shape \(5,\)"),
        ({"value_NX": np.array([[0.0, np.nan, 0.0]] * 5)}, "segment 0 at place 1 is not finite"),
        ({"unit_N": np.zeros(5)}, "1 unit"),
        ({"edge_E2": np.array([[0, 3]])}, "pairs .* of 0 to 2"),
        ({"place_p": 0.0}, "place_p 0"),
    ],
)
def test_values_that_cannot_be_tested_are_refused(change, message):
    given: dict[str, Any] = {
        "value_NX": np.ones((5, 3)),
        "unit_N": np.arange(5),
        "edge_E2": time_neighbours(3),
        **change,
    }
    with pytest.raises(InputError, match=message):
        cluster_test(**given)
