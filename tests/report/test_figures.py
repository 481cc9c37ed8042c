"""eegvision.report.figures: chance on every figure, the numbers beside it, the same file twice."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from eegvision.report import figures
from report.trials import CHANCE, HISTORY, MANIFEST, TRIALS, Row


def read_csv(files):
    return pd.read_csv(next(file for file in files if file.suffix == ".csv"))


def read_svg(files):
    return next(file for file in files if file.suffix == ".svg").read_text()


@pytest.mark.parametrize(("metric", "best"), [("val/top1", 2), ("val/loss", 3)])
def test_learning_curves_mark_the_best_pass_and_chance(tmp_path, metric, best):
    files = figures.learning_curves(HISTORY, tmp_path / "figures" / "curves", chance=CHANCE, metric=metric)
    assert [file.name for file in files] == ["curves.svg", "curves.pdf", "curves.png", "curves.csv"]
    assert all(file.stat().st_size > 0 for file in files)
    assert read_csv(files)["val/top1"].tolist() == [0.25, 0.5, 0.3]
    assert f"best pass ({best})" in read_svg(files)
    for label in ("top-1 (chance 25 %)", "top-5 (chance 100 %)", "class of top-1 (chance 50 %)"):
        assert label in read_svg(files)


def test_sweep_curves_count_the_outcomes_and_draw_chance(tmp_path):
    files = figures.sweep_curves(TRIALS, tmp_path / "sweep", chance=CHANCE)
    for label in ("best (trial 2)", "finished (1)", "stopped early (1)", "failed or diverged (1)", "chance 25 %"):
        assert label in read_svg(files)
    assert read_csv(files)[["trial", "pass", "val/top1"]].to_numpy().tolist() == [
        [2, 1, 0.25], [2, 2, 0.5], [2, 3, 0.3], [1, 1, 0.25],
    ]  # fmt: skip


def test_levels_far_above_all_trials_leave_the_figure_its_room(tmp_path):
    low = [Row(number=0, history=({**HISTORY[0], "val/top1": 0.01},))]
    chance = {**CHANCE, "val/top1": 0.001}
    files = figures.sweep_curves(low, tmp_path / "sweep", chance=chance, line={"val/top1": 0.99})
    assert "line 99 %" in read_svg(files)
    long_names = [f"{'a very long name of a class ' * 2}{k}" for k in range(12)]
    figures.confusion(np.arange(12), np.arange(12), long_names, tmp_path / "confusion", chance=1 / 12)


def test_a_confusion_matrix_by_hand(tmp_path):
    label_Q, retrieved_Q = np.array([0, 0, 0, 1, -1]), np.array([0, 0, 1, 0, 1])
    files = figures.confusion(label_Q, retrieved_Q, ["cat", "dog"], tmp_path / "confusion", chance=0.5)
    assert read_csv(files).to_numpy().tolist() == [["cat", 2, 1], ["dog", 1, 0]]
    assert "Right class 50.0 %, chance 50.0 % (n = 4 segments)" in read_svg(files)


def test_nothing_of_a_figure_lies_beyond_its_edge(tmp_path):
    rng, shown_Q = np.random.default_rng(0), np.repeat(np.arange(10), 18)
    said_Q = np.where(rng.random(180) < 0.7, shown_Q, rng.integers(0, 10, 180))
    names = [f"latticed-square{'-x' * (k % 3)}" for k in range(10)]
    for files in (
        figures.confusion(shown_Q, said_Q, names, tmp_path / "confusion", chance=0.1),
        figures.learning_curves(HISTORY, tmp_path / "curves", chance=CHANCE, metric="val/top1"),
        figures.sweep_curves(TRIALS, tmp_path / "sweep", chance=CHANCE),
    ):
        (png,) = [file for file in files if file.suffix == ".png"]
        with Image.open(png) as image:
            pixel_HW = np.asarray(image.convert("L"))
        edges = (pixel_HW[:2], pixel_HW[-2:], pixel_HW[:, :2], pixel_HW[:, -2:])
        assert [int(edge.min()) for edge in edges] == [255] * 4, png.name


def predictions(n_images=4, repeats=3):
    """Every segment retrieves its own picture second; pictures 0 and 1 are cats, 2 and 3 dogs."""
    image_Q = np.repeat(np.arange(n_images), repeats)
    top_QK = (image_Q[:, None] + np.array([1, 0, 2, 3])) % n_images
    ids = np.array([f"image-{i}" for i in range(n_images)])
    return {
        "row_Q": 100 + np.arange(len(image_Q)),
        "image_id_Q": ids[image_Q],
        "label_Q": image_Q // 2,
        "rank_Q": np.full(len(image_Q), 2.0),
        "top_image_id_QK": ids[top_QK],
        "top_label_QK": top_QK // 2,
    }


def test_retrieval_examples_show_distinct_pictures_with_their_own_eeg_and_chance(tmp_path):
    asked = []

    def segment(row):
        asked.append(row)
        return np.zeros((2, 100))

    def picture(image_id):
        return np.full((8, 8, 3), 60 * int(image_id[-1]), dtype=np.uint8)

    found = predictions()
    files = figures.retrieval_examples(
        MANIFEST, found, tmp_path / "examples", picture=picture, segment=segment, chance=CHANCE, n_examples=3
    )
    rows = read_csv(files)
    assert len(set(rows["shown"])) == 3
    assert rows["segment_row"].tolist() == asked
    own = dict(zip(found["row_Q"].tolist(), found["image_id_Q"].tolist(), strict=True))
    assert rows["shown"].tolist() == [own[row] for row in asked]
    assert rows["retrieved_2"].tolist() == rows["shown"].tolist()
    text = read_svg(files)
    assert "retrieved 2nd of 4" in text
    assert "12 validation segments of 4 pictures: top-1 0.0 % (chance 25.0 %), top-5 100.0 % (chance 100.0 %)" in text


def test_the_same_numbers_give_the_same_file(tmp_path):
    first, second = (figures.sweep_curves(TRIALS, tmp_path / name, chance=CHANCE) for name in ("a", "b"))
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]
