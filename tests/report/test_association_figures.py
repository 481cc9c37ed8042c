"""eegvision.report.association_figures: layers, links, similarities and maps show the numbers they were given."""

from typing import Any

import numpy as np
import pytest

from eegvision.analyses.association import Link
from eegvision.analyses.semantic import SemanticSimilarity
from eegvision.report import association_figures
from eegvision.report.association_figures import LayerRow
from eegvision.vocab import InputError
from report.heads import cap, check_files, picture, read_csv, read_svg, same_svg

CAP = cap(16)
INTERVALS = ("0 to 80 ms", "80 to 160 ms")


def layer_row(n=0, n_visuals=2, **changed):
    given: dict[str, Any] = {
        "layer": f"features.{n}",
        "n_maps": 64,
        "visuals": tuple((10 * n + k, picture(k)) for k in range(n_visuals)),
        "value_C": np.arange(16.0) + n,
        "interval_names": INTERVALS,
        "interval_K": np.array([0.1, -0.02]) / (n + 1),
        "interval_error_K": np.array([0.01, 0.02]),
    }
    return LayerRow(**{**given, **changed})


def test_layers_keep_the_values_of_channels_and_intervals(tmp_path):
    rows = [layer_row(0), layer_row(1, n_visuals=7), layer_row(2, n_visuals=0, interval_error_K=None)]
    files = association_figures.layers_figure(rows, CAP.positions_m, tmp_path / "layers", channels=CAP.channels)
    check_files(files, "layers")
    found = read_csv(files)
    assert found["layer"].tolist() == ["features.0", "features.1", "features.2"]
    assert found[list(CAP.channels)].to_numpy() == pytest.approx(np.stack([row.value_C for row in rows]))
    assert found[list(INTERVALS)].to_numpy() == pytest.approx(np.stack([row.interval_K for row in rows]))
    assert found["0 to 80 ms, standard error"].isna().tolist() == [False, False, True]
    text = read_svg(files)
    assert text.count("<image") == 2 + 5 + 3 + 1  # pictures (five at most), heads, colour bar
    for words in ("features.1", "64 maps", "ms after onset", "14"):
        assert words in text


def test_one_layer_without_pictures_can_be_drawn_and_is_the_same_twice(tmp_path):
    row = layer_row(n_visuals=0, interval_names=("whole",), interval_K=np.array([0.1]), interval_error_K=None)
    first, second = (association_figures.layers_figure([row], CAP.positions_m, tmp_path / name) for name in ("a", "b"))
    assert same_svg(first, second)


def test_layers_that_do_not_fit_are_refused(tmp_path):
    for rows, message in (
        ([], "at least one"),
        ([layer_row(), layer_row(1, interval_names=("a", "b"))], "same channels and intervals"),
        ([layer_row(interval_K=np.zeros(3))], "do not fit each other"),
        ([layer_row(visuals=((0, picture(0) / 255),))], "map 0 of layer 'features.0' is float64"),
    ):
        with pytest.raises(InputError, match=message):
            association_figures.layers_figure(rows, CAP.positions_m, tmp_path / "layers")
    with pytest.raises(InputError, match="10-05 channel names or a montage"):
        association_figures.layers_figure([layer_row()], (), tmp_path / "layers")


@pytest.mark.parametrize("n", [1, 12])
def test_links_stay_in_order(tmp_path, n):
    links = [Link(layer=f"layer{k % 9}", feature=k, channel="Oz", value=0.5 - 0.1 * k) for k in range(n)]
    files = association_figures.strongest_figure(links, tmp_path / "links")
    check_files(files, "links")
    found = read_csv(files)
    assert found["feature"].tolist() == list(range(n))
    assert found["value"].tolist() == pytest.approx([link.value for link in links])
    assert f"map {n - 1} – Oz" in read_svg(files)
    with pytest.raises(InputError, match="no links"):
        association_figures.strongest_figure([], tmp_path / "links")


@pytest.mark.parametrize("n", [6, 80])
def test_similarity_has_its_matrix_and_its_categories(tmp_path, n):
    value_KK = np.random.default_rng(0).uniform(-0.5, 0.5, (n, n))
    concepts = tuple(f"concept {k}" for k in range(n))
    similarity = SemanticSimilarity(
        similarity_KK=value_KK, concepts=concepts, categories=("animal",) * 3 + ("tool",) * (n - 3), within=0.31,
        between=-0.04, p=0.0001,
    )  # fmt: skip
    files = association_figures.similarity_figure(similarity, tmp_path / "similarity")
    check_files(files, "similarity")
    found = read_csv(files)
    assert found[list(concepts)].to_numpy() == pytest.approx(value_KK)
    assert found["category"].tolist() == list(similarity.categories)
    text = read_svg(files)
    assert "Cosine 0.31 within a category, −0.04 between two (p &lt; 0.001)" in text
    assert ("concept 5" in text) == (n <= 60)
    for words in ("animal", "tool", "EEG", "pictures", "cosine"):
        assert words in text


def test_a_map_names_concepts_where_there_is_room(tmp_path):
    position_N2 = np.array([[0.0, 0], [1, 0], [0, 1], [1, 1], [1, 1.0001]])
    names = ["cat", "dog", "saw", "axe", "adze"]
    files = association_figures.embedding_map_figure(
        position_N2, names, ["animal", "animal", "tool", "tool", "tool"], tmp_path / "map"
    )
    check_files(files, "map")
    found = read_csv(files)
    assert found[["first", "second"]].to_numpy() == pytest.approx(position_N2)
    assert found["name"].tolist() == names
    for words in (*names[:3], "animal", "tool"):
        assert words in read_svg(files)


def test_many_points_of_a_concept_are_named_once_and_any_number_of_categories_drawn(tmp_path):
    generator = np.random.default_rng(0)
    names = [f"thing-{k % 10}" for k in range(40)]
    first, second = (
        association_figures.embedding_map_figure(
            generator.permutation(40).reshape(-1, 1) * 0 + np.arange(80.0).reshape(40, 2) % 7, names,
            [f"kind {k % 10}" for k in range(40)], tmp_path / name,
        )
        for name in ("a", "b")
    )  # fmt: skip
    assert same_svg(first, second)
    assert read_svg(first).count(">thing-3<") <= 1
    assert ">kind 9<" in read_svg(first)
    assert len(read_csv(first)) == 40
    for position_N2, message in ((np.zeros((3, 2)), "40 names"), (np.zeros((40, 3)), "shape .40, 3.")):
        with pytest.raises(InputError, match=message):
            association_figures.embedding_map_figure(position_N2, names, names, tmp_path / "c")
