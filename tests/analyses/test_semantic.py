"""eegvision.analyses.semantic: planted categories, worked by hand, exact scalings, averages over subjects, refusals."""

import itertools
from typing import Any

import numpy as np
import pytest

from eegvision.analyses.semantic import mds_map, pca_map, retinotopic_triplet, semantic_similarity
from eegvision.vocab import InputError

CATEGORY_OF = {"cat": "animal", "saw": "tool", "dog": "animal", "axe": "tool", "cow": "animal"}


def embeddings(strength: float, seed: int = 0, repeats: int = 4) -> tuple[np.ndarray, list[str]]:
    """Embeddings of the five concepts, in random order: their category's direction, their own, and noise."""
    rng = np.random.default_rng(seed)
    direction = {name: np.random.default_rng(number).normal(size=40) for number, name in enumerate(("animal", "tool"))}
    own = {name: np.random.default_rng(number + 9).normal(size=40) for number, name in enumerate(CATEGORY_OF)}
    names = rng.permutation(np.repeat(list(CATEGORY_OF), repeats)).tolist()
    row_ND = [strength * direction[CATEGORY_OF[name]] + own[name] + 0.3 * rng.normal(size=40) for name in names]
    return np.array(row_ND), names


def test_similarities_by_hand_are_cosines_of_mean_directions_ordered_by_category():
    row_ND = np.array([[2.0, 0], [0, 3], [0, 1], [5, 0], [7, 7]])
    names = ["cat", "saw", "dog", "cat", "dog"]
    found = semantic_similarity(row_ND, names, row_ND, names, CATEGORY_OF, n_permutations=9)
    assert found.concepts == ("cat", "dog", "saw")  # axe and cow have no embeddings
    assert found.categories == ("animal", "animal", "tool")
    assert found.runs == [("animal", 0, 2), ("tool", 2, 3)]
    dog = np.array([0.5**0.5, 1 + 0.5**0.5]) / np.hypot(
        0.5**0.5, 1 + 0.5**0.5
    )  # of unit vectors, whatever their length
    np.testing.assert_allclose(found.similarity_KK, [[1, dog[0], 0], [dog[0], 1, dog[1]], [0, dog[1], 1]], atol=1e-12)
    assert found.within == pytest.approx(dog[0])
    assert found.between == pytest.approx(dog[1] / 2)


def test_rows_and_columns_keep_their_sides():
    rows, columns = np.eye(3), np.array([[1.0, 1, 0], [0, 1, 1], [0, 0, 1]])
    names = ["cat", "dog", "saw"]
    found = semantic_similarity(rows, names, columns[::-1], names[::-1], CATEGORY_OF, n_permutations=1)
    np.testing.assert_allclose(
        found.similarity_KK, (columns / np.linalg.norm(columns, axis=1, keepdims=True)).T, atol=1e-12
    )


def test_p_counts_every_way_of_trading_categories():
    row_ND, names = embeddings(0.4)
    other_ND, other_names = embeddings(0.4, seed=1)
    found = semantic_similarity(row_ND, names, other_ND, other_names, CATEGORY_OF, n_permutations=5000)
    animals = [k for k, name in enumerate(found.categories) if name == "animal"]

    def contrast(chosen):
        kinds = np.isin(np.arange(5), chosen)
        is_one = (kinds[:, None] == kinds) & ~np.eye(5, dtype=bool)
        is_two = kinds[:, None] != kinds
        return found.similarity_KK[is_one].mean() - found.similarity_KK[is_two].mean()

    assert found.within - found.between == pytest.approx(contrast(animals))
    exact = np.mean([contrast(chosen) >= contrast(animals) - 1e-12 for chosen in itertools.combinations(range(5), 3)])
    assert found.p == pytest.approx(exact, abs=0.03)


def test_planted_categories_show_and_absent_ones_do_not():
    rng = np.random.default_rng(0)
    category_of = {f"{category}{n}": category for category in "abcd" for n in range(8)}
    centre = {category: rng.normal(size=30) for category in "abcd"}
    names = list(category_of)
    ps = []
    for strength in (1.0, 0.0):
        row_ND = np.stack([strength * centre[category_of[name]] + rng.normal(size=30) for name in names])
        column_ND = np.stack([strength * centre[category_of[name]] + rng.normal(size=30) for name in names])
        found = semantic_similarity(row_ND, names, column_ND, names, category_of, n_permutations=999)
        ps.append(found.p)
        if strength:
            assert found.within > found.between + 0.2
    assert ps[0] == 1 / 1000
    assert ps[1] > 0.05


def test_order_of_embeddings_does_not_matter():
    row_ND, names = embeddings(1.0)
    backwards = semantic_similarity(row_ND[::-1], names[::-1], row_ND, names, CATEGORY_OF, n_permutations=50)
    forwards = semantic_similarity(row_ND, names, row_ND, names, CATEGORY_OF, n_permutations=50)
    np.testing.assert_allclose(backwards.similarity_KK, forwards.similarity_KK, atol=1e-12)
    assert backwards.p == forwards.p


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row_concept_N": ["cat", "dog"]}, "3 row embeddings have 2 concepts"),
        ({"row_concept_N": ["cat", "dog", "elk"]}, r"concept 'elk' of a row has no category"),
        ({"column_concept_N": ["cat", "dog", "axe"]}, r"concept 'axe' of a column has no category, or no embedding"),
        ({"column_concept_N": ["cat", "dog", "dog"]}, r"concept 'saw' has no column embedding"),
        ({"row_ND": np.diag([1.0, 0, 1])}, "row embedding 1 is zero"),
        ({"row_ND": np.diag([1.0, np.nan, 1])}, "finite"),
        ({"column_ND": np.eye(3, 4)}, "rows have 3 dimensions and columns 4"),
        ({"category_of": dict.fromkeys(CATEGORY_OF, "thing")}, "3 concepts in 1 categories.*at least two"),
        ({"category_of": {name: name for name in CATEGORY_OF}}, "3 concepts in 3 categories.*two concepts"),
    ],
)
def test_refuses_concepts_that_do_not_fit_together(change, message):
    names = ["cat", "dog", "saw"]
    given: dict[str, Any] = {
        "row_ND": np.eye(3), "row_concept_N": names, "column_ND": np.eye(3), "column_concept_N": names,
        "category_of": CATEGORY_OF,
    }  # fmt: skip
    with pytest.raises(InputError, match=message):
        semantic_similarity(**(given | change))


def test_a_plane_in_many_dimensions_is_found_whole():
    rng = np.random.default_rng(0)
    plane_N2 = rng.normal(size=(50, 2)) * [3.0, 1.0]
    plane_N2 -= plane_N2.mean(axis=0)
    turned_ND = plane_N2 @ np.linalg.qr(rng.normal(size=(20, 2)))[0].T + 5
    distance_NN = np.linalg.norm(plane_N2[:, None] - plane_N2, axis=2)
    for found in (pca_map(turned_ND), mds_map(distance_NN)):
        between_NN = np.linalg.norm(found.position_NA[:, None] - found.position_NA, axis=2)
        np.testing.assert_allclose(between_NN, distance_NN, atol=1e-6)
        assert found.share_A.sum() == pytest.approx(1)
        assert found.share_A[0] > 0.8
        np.testing.assert_allclose(found.position_NA.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(pca_map(turned_ND).position_NA, mds_map(distance_NN).position_NA, atol=1e-6)


def test_axes_have_a_direction_and_their_share_of_the_variance():
    point_ND = np.array([[-4.0, 0, 0], [1, 1, 0], [1, -1, 0], [2, 0, 0]])
    found = pca_map(point_ND)
    np.testing.assert_allclose(np.abs(found.position_NA[:, 0]), np.abs(point_ND[:, 0]), atol=1e-12)
    assert found.position_NA[0, 0] == pytest.approx(4)  # the one farthest out is positive
    np.testing.assert_allclose(found.share_A, [22 / 24, 2 / 24], atol=1e-12)
    np.testing.assert_allclose(pca_map(-point_ND).position_NA[:, 0], found.position_NA[:, 0], atol=1e-12)


def test_distances_of_a_line_lie_on_a_line_and_impossible_ones_are_flattened():
    line_N = np.array([0.0, 1, 5])
    found = mds_map(np.abs(line_N[:, None] - line_N))
    np.testing.assert_allclose(np.sort(found.position_NA[:, 0]), [-2, -1, 3], atol=1e-9)
    np.testing.assert_allclose(found.position_NA[:, 1], 0, atol=1e-6)
    # The middle of a triangle nearer to all corners than can be: one axis is negative.
    distance_NN = np.array([[0, 2, 2, 1], [2, 0, 2, 1], [2, 2, 0, 1], [1, 1, 1, 0.0]])
    triangle = mds_map(distance_NN, 4)
    assert np.isfinite(triangle.position_NA).all()
    assert triangle.share_A[3] == 0
    assert triangle.share_A.sum() < 1


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: pca_map(np.ones((4, 3))), "all points are equal"),
        (lambda: pca_map(np.eye(3), 4), "4 axes asked of 3 embeddings of 3 dimensions"),
        (lambda: pca_map(np.full((3, 2), np.inf)), "finite"),
        (lambda: mds_map(np.ones((3, 3))), "zeros on the diagonal; give 1 - similarity"),
        (lambda: mds_map(np.triu(np.ones((3, 3)), 1)), "no symmetric"),
        (lambda: mds_map(np.zeros((3, 3))), "all points are equal"),
    ],
)
def test_refuses_what_cannot_be_drawn(draw, message):
    with pytest.raises(InputError, match=message):
        draw()


def test_a_triplet_counts_every_subject_alike():
    image_3HW = np.zeros((3, 2, 4))
    saliency_SHW = np.zeros((3, 2, 4))
    saliency_SHW[0, 0, 0], saliency_SHW[1, 0, 0], saliency_SHW[2, 1, 3] = 1, 3, 6  # s1: mean 1 and 3; s2: 6
    importance_SC = np.array([[1.0, 0], [3, 0], [6, 4]])
    found = retinotopic_triplet("cat-1", image_3HW, saliency_SHW, importance_SC, ["s1", "s1", "s2"])
    assert found.n_subjects == 2
    expected_HW = np.zeros((2, 4))
    expected_HW[0, 0], expected_HW[1, 3] = 1 / 3, 1
    np.testing.assert_allclose(found.saliency_HW, expected_HW)
    np.testing.assert_allclose(found.importance_C, [4, 2])
    np.testing.assert_allclose(found.standard_error_C, [2, 2])  # sd of 2 and 6 over sqrt(2)
    assert found.centre == pytest.approx((0.75, 2.25))


def test_a_triplet_of_one_subject_has_no_error_and_a_flat_map_no_centre_of_its_own():
    found = retinotopic_triplet("cat-1", np.zeros((3, 3, 5)), np.full((1, 3, 5), 7.0), np.ones((1, 2)), ["s1"])
    assert np.isnan(found.standard_error_C).all()
    assert not found.saliency_HW.any()
    assert found.centre == (1.0, 2.0)


def test_refuses_a_triplet_whose_parts_do_not_fit():
    image_3HW, saliency_SHW, importance_SC = np.zeros((3, 2, 4)), np.zeros((1, 2, 4)), np.zeros((1, 2))
    for given in (
        (image_3HW, np.zeros((1, 4, 2)), importance_SC, ["s1"]),
        (image_3HW, saliency_SHW, importance_SC, ["s1", "s2"]),
        (image_3HW, saliency_SHW[:0], importance_SC[:0], []),
    ):
        with pytest.raises(InputError, match=r"image 'cat-1': .* do not fit together"):
            retinotopic_triplet("cat-1", *given)
    with pytest.raises(InputError, match="saliency is not finite"):
        retinotopic_triplet("cat-1", image_3HW, saliency_SHW * np.nan, importance_SC, ["s1"])
