"""eegvision.evaluate.zero_shot: galleries by hand, circumstances, chance level, export, refusals."""

import io
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eegvision.evaluate.retrieval import Normalise, similarity
from eegvision.evaluate.statistics import significance_line
from eegvision.evaluate.zero_shot import (
    Gallery,
    Transductive,
    centre_gallery,
    image_gallery,
    retrieve,
    text_gallery,
)
from eegvision.vocab import InputError

# Four images of two concepts; the first of each was shown.
FEATURES = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 3.0], [4.0, 0.0]])
CONCEPTS = np.array(["cat", "cat", "cat", "axe"])


def evaluated(query, target, gallery, *, normalise: Normalise = "both", transductive: Transductive = "none"):
    return retrieve(
        np.asarray(query, dtype=float),
        np.asarray(target),
        gallery,
        query_ids=np.arange(len(query)),
        repetitions=4,
        normalise=normalise,
        transductive=transductive,
    )


def test_class_centres_by_hand():
    gallery = centre_gallery(FEATURES, CONCEPTS)
    assert gallery.ids_N.tolist() == ["axe", "cat"]
    np.testing.assert_allclose(gallery.feature_ND, [[4, 0], [1 / 3, 4 / 3]])
    assert gallery.kind == "class-centre"


def test_class_centres_without_the_stimulus_leave_exactly_it_out():
    gallery = centre_gallery(FEATURES, CONCEPTS, is_stimulus_I=np.array([True, False, False, False]))
    np.testing.assert_allclose(gallery.feature_ND, [[4, 0], [0, 2]])
    assert gallery.kind == "class-centre-without-stimulus"
    with pytest.raises(InputError, match="'axe' has no image besides the stimulus"):
        centre_gallery(FEATURES, CONCEPTS, is_stimulus_I=np.array([True, False, False, True]))


def test_centres_at_their_own_length_favour_the_tight_class():
    # Concept 0 is tight (centre of length 1), concept 1 spread by 60 degrees to either side (length 1/2).
    tight, spread = [[1.0, 0.0]] * 2, [[-np.sin(np.pi / 3), 0.5], [np.sin(np.pi / 3), 0.5]]
    gallery = centre_gallery(np.array([*tight, *spread]), np.array([0, 0, 1, 1]))
    np.testing.assert_allclose(np.linalg.norm(gallery.feature_ND, axis=1), [1, 0.5])
    query = [[0.6, 0.8]]
    assert evaluated(query, [1], gallery, normalise="query").topk(1) == 0
    assert evaluated(query, [1], gallery, normalise="both").topk(1) == 1


def test_normalising_queries_alone_never_changes_a_rank():
    rng = np.random.default_rng(0)
    gallery = text_gallery(rng.normal(size=(20, 5)), np.arange(20))
    query, target = rng.normal(size=(50, 5)), rng.integers(0, 20, 50)
    first = evaluated(query, target, gallery, normalise="none")
    second = evaluated(query, target, gallery, normalise="query")
    np.testing.assert_array_equal(first.rank_Q, second.rank_Q)
    assert (first.rank_Q != evaluated(query, target, gallery, normalise="gallery").rank_Q).any()


def test_a_result_by_hand_with_its_circumstances():
    gallery = image_gallery(np.eye(4), np.array(["a", "b", "c", "d"]))
    result = evaluated([[4, 3, 2, 1], [4, 3, 2, 1], [1, 1, 0, 0]], ["a", "d", "b"], gallery, normalise="none")
    np.testing.assert_array_equal(result.rank_Q, [1, 4, 1.5])
    top1, top3, _, median, precision = result.to_rows()
    assert {key: top1[key] for key in ("metric", "value", "chance", "significance_line")} == {
        "metric": "top-1",
        "value": pytest.approx(1 / 3),
        "chance": 0.25,
        "significance_line": significance_line(3, 0.25),
    }
    assert {key: top1[key] for key in ("gallery", "normalise", "transductive", "repetitions")} == {
        "gallery": "exact-image",
        "normalise": "none",
        "transductive": "none",
        "repetitions": 4,
    }
    assert (top1["n_queries"], top1["n_gallery"]) == (3, 4)
    assert (top3["value"], top3["chance"]) == (pytest.approx(2 / 3), 0.75)
    assert (median["value"], median["chance"], median["significance_line"]) == (1.5, 2.5, None)
    assert precision["value"] == pytest.approx((1 + 1 / 4 + 2 / 3) / 3)
    assert precision["chance"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert result.kway(4) == pytest.approx((1 + 0 + 0.5) / 3)


def test_predictions_survive_a_parquet_file():
    gallery = image_gallery(np.eye(7), np.array([f"image-{n}" for n in range(7)]))
    result = evaluated([[7, 6, 5, 4, 3, 2, 1], [1, 2, 3, 4, 5, 6, 7]], ["image-1", "image-0"], gallery)
    file = io.BytesIO()
    pq.write_table(pa.table(result.predictions), file)
    first, second = pq.read_table(file).to_pylist()
    assert first == {
        "query_id": 0,
        "target_id": "image-1",
        "rank": 2,
        "average_precision": 0.5,
        "top5_ids": [f"image-{n}" for n in range(5)],
    }
    assert (second["rank"], second["top5_ids"]) == (7, [f"image-{n}" for n in (6, 5, 4, 3, 2)])


def test_level_items_are_listed_in_the_gallery_s_order():
    gallery = image_gallery(np.ones((4, 1)), np.array(["d", "c", "b", "a"]))
    assert evaluated([[1]], ["a"], gallery).best_ids_QK.tolist() == [["d", "c", "b", "a"]]


def test_groups_are_scored_apart_and_together_make_the_whole():
    rng = np.random.default_rng(0)
    gallery = text_gallery(rng.normal(size=(30, 8)), np.arange(30))
    target, subject = np.tile(np.arange(30), 3), np.repeat(["s1", "s2", "s3"], 30)
    result = evaluated(rng.normal(size=(90, 8)) + gallery.feature_ND[target], target, gallery)
    rows = [row for row in result.to_rows(subject, group_name="subject") if row["metric"] == "top-5"]
    assert [(row["group_name"], row["group"], row["n_queries"]) for row in rows] == [
        ("subject", f"s{n}", 30) for n in (1, 2, 3)
    ]
    assert np.mean([row["value"] for row in rows]) == pytest.approx(result.topk(5))
    assert result.to_rows(subject.astype(object), group_name="subject") == result.to_rows(subject, group_name="subject")
    assert len({row["value"] for row in rows}) > 1
    with pytest.raises(InputError, match="one group each"):
        result.to_rows(subject[:-1])


def test_several_right_items_make_the_best_one_count_and_map_all_of_them():
    gallery = image_gallery(np.eye(4), np.arange(4), label_N=np.array([0, 1, 0, 2]))
    result = evaluated([[1, 4, 2, 3], [1, 4, 2, 3]], [0, 2], gallery, normalise="none")
    np.testing.assert_array_equal(result.rank_Q, [3, 2])
    np.testing.assert_allclose(result.average_precision_Q, [(1 / 3 + 2 / 4) / 2, 1 / 2])
    top1 = result.to_rows()[0]
    assert top1["chance"] == pytest.approx((2 / 4 + 1 / 4) / 2)
    with pytest.raises(InputError, match="one right item per query"):
        result.kway(2)


@pytest.mark.parametrize("n_right", [1, 3])
def test_guessing_scores_the_chance_that_is_stated(n_right):
    rng = np.random.default_rng(0)
    gallery = image_gallery(rng.normal(size=(30, 64)), np.arange(30), label_N=np.arange(30) // n_right)
    result = evaluated(rng.normal(size=(6000, 64)), rng.integers(0, 30 // n_right, 6000), gallery)
    for row in result.to_rows():
        assert row["value"] == pytest.approx(row["chance"], rel=0.07), row["metric"]


def test_a_one_to_one_assignment_is_flagged_and_lifts_the_score():
    rng = np.random.default_rng(0)
    gallery = image_gallery(rng.normal(size=(60, 20)), np.arange(60))
    query = gallery.feature_ND + 1.5 * rng.normal(size=(60, 20))
    plain, lifted, scaled = (
        evaluated(query, np.arange(60), gallery, transductive=mode) for mode in ("none", "hungarian", "csls")
    )
    assert lifted.topk(1) > plain.topk(1)
    assert (scaled.rank_Q != plain.rank_Q).any()
    assert {row["transductive"] for row in lifted.to_rows()} == {"hungarian"}
    # What was assigned comes first; the target of a query wrongly assigned loses one place at most.
    assert (lifted.rank_Q <= plain.rank_Q + 1).all()
    assert len(set(lifted.best_ids_QK[:, 0])) == 60


def test_more_queries_than_one_chunk_are_all_ranked():
    # 2^21 scores are made at a time: 4096 items make chunks of 512 queries.
    rng = np.random.default_rng(0)
    gallery = text_gallery(rng.permutation(4096)[:, None].astype(np.float32), np.arange(4096))
    target = np.arange(600)
    result = evaluated(np.ones((600, 1)), target, gallery, normalise="none")
    np.testing.assert_array_equal(result.rank_Q, 4096 - gallery.feature_ND[target, 0])
    np.testing.assert_array_equal(result.best_ids_QK[599], np.argsort(-gallery.feature_ND[:, 0])[:5])


def test_retrieval_refuses_what_it_cannot_score():
    gallery = image_gallery(np.eye(2), np.array(["a", "b"]))
    with pytest.raises(InputError, match="'c' is not in the gallery of 2 items"):
        evaluated([[1, 0]], ["c"], gallery)
    with pytest.raises(InputError, match="both by number or both by text"):
        evaluated([[1, 0]], [0], gallery)
    with pytest.raises(InputError, match="at least one query"):
        evaluated(np.empty((0, 2)), np.empty(0, dtype=str), gallery)
    with pytest.raises(InputError, match="'sinkhorn'"):
        evaluated([[1, 0]], ["a"], gallery, transductive=cast(Any, "sinkhorn"))
    with pytest.raises(InputError, match="ids repeat"):
        image_gallery(np.eye(2), np.array(["a", "a"]))
    with pytest.raises(InputError, match="as many ids and labels"):
        image_gallery(np.eye(2), np.array(["a"]))
    with pytest.raises(InputError, match="one concept and one stimulus mark"):
        centre_gallery(FEATURES, CONCEPTS[:2])
    with pytest.raises(InputError, match="'images'"):
        Gallery(kind=cast(Any, "images"), feature_ND=np.eye(2), ids_N=np.arange(2), label_N=np.arange(2))


def test_the_centre_of_unit_features_has_the_length_that_tells_how_tight_the_class_is():
    rng = np.random.default_rng(0)
    direction = rng.normal(size=(200, 64))
    feature = direction / np.linalg.norm(direction, axis=1, keepdims=True)
    gallery = centre_gallery(feature, np.arange(200) % 4)
    expected = similarity(feature[::4], feature[::4], normalise="none").mean() ** 0.5
    assert np.linalg.norm(gallery.feature_ND[0]) == pytest.approx(expected)
