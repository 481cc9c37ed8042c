"""eegvision.report: tables and cards by hand, chance on every figure, numbers beside it, the same file twice."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pytest

from eegvision import report
from eegvision.config import RunConfig
from eegvision.ingest.shards import Manifest, Shard
from eegvision.vocab import Montage

CHANCE = {"val/top1": 0.25, "val/top5": 1.0, "val/class_top1": 0.5}
HISTORY = [
    {"train/loss": 2.0, "val/loss": 2.0, "val/top1": 0.25, "val/top5": 0.9, "val/class_top1": 0.5},
    {"train/loss": 1.0, "val/loss": 1.5, "val/top1": 0.5, "val/top5": 0.95, "val/class_top1": 0.75},
    {"train/loss": 0.5, "val/loss": 1.25, "val/top1": 0.3, "val/top5": 1.0, "val/class_top1": 0.6},
]
MANIFEST = Manifest(
    name="demo",
    dialect="simulated",
    licence="CC0 | public domain",
    montage=Montage(channels=("Oz", "Pz")),
    sfreq_hz=250.0,
    t_min_s=0.04,
    n_times=100,
    unit="uV",
    steps=({"step": "cut", "start_sample": 10}, {"step": "subjects", "kept": ["marker-a", "marker-b"]}),
    classes=("cat", "dog"),
    n_segments=16,
    n_images=4,
    subjects=("marker-a", "marker-b"),
    dropped={"too short": 3, "flat": 0},
    shards=(Shard(path="segments/part-00000.parquet", rows=16, sha256="0" * 64),),
    fingerprint="abc123abc123",
)


@dataclass(frozen=True, kw_only=True)
class Row:
    number: int
    settings: Mapping[str, object] = field(default_factory=dict)
    status: str = "finished"
    history: tuple[dict[str, float], ...] = tuple(HISTORY)
    seconds: float = 75.0
    message: str = ""

    @property
    def config(self):
        return RunConfig().with_overrides(self.settings)

    @property
    def passes(self):
        return len(self.history)

    @property
    def metrics(self):
        return max(self.history, key=lambda done: done["val/top1"], default={})


GOOD = Row(number=2, settings={"loss.name": "info_nce", "eeg.embed_dim": 64, "image.embed_dim": 64, "optim.lr": 5e-4})
POOR = Row(number=1, status="stopped early", history=(HISTORY[0],), seconds=3700.0)
DEAD = Row(number=3, status="failed", history=(), message="the disk is full")
TRIALS = [GOOD, POOR, DEAD]


def table(trials, metric="val/top1"):
    return report.sweep_table(trials, metric=metric, chance=CHANCE, n_segments=16, n_images=4)


def read_csv(files):
    return pd.read_csv(next(file for file in files if file.suffix == ".csv"))


def read_svg(files):
    return next(file for file in files if file.suffix == ".svg").read_text()


def test_the_table_ranks_trials_beside_chance_by_hand():
    # top-1 of 2 in 4 pictures at chance 1/4: p = 1 - 0.75^4 - 4 * 0.25 * 0.75^3 = 0.262; of 1 in 4: 1 - 0.75^4 = 0.684
    assert table(TRIALS).splitlines()[:6] == [
        "rank  trial  status         passes  top-1 %      p  top-5 %  class %     time  dim  loss        lr",
        "--------------------------------------------------------------------------------------------------",
        "   1      2  finished            3     50.0  0.262     95.0     75.0     1:15   64  info_nce  5e-4",
        "   2      1  stopped early       1     25.0  0.684     90.0     50.0  1:01:40  128  triplet   1e-3",
        "   -      3  failed              0        -      -        -        -     1:15  128  triplet   1e-3",
        "             chance                    25.0           100.0     50.0",
    ]


def test_the_table_says_what_n_is_what_p_is_not_and_why_a_trial_failed():
    text = " ".join(table(TRIALS).split())
    assert "16 validation segments of 4 pictures; best first by val/top1" in text
    assert "the first of 3 was chosen on these very pictures, so only the test set can confirm it" in text
    assert "trial 3 failed: the disk is full" in text
    assert "loss" in table(TRIALS, metric="val/loss").splitlines()[0]


def test_the_table_leaves_out_what_follows_from_a_choice_and_what_does_not_fit():
    assert "temperature" not in table(TRIALS)  # info_nce's own, not chosen
    settings = {
        "eeg.encoder": "tsconv", "eeg.dropout": 0.25, "eeg.filters": 20, "image.encoder": "resnet18",
        "optim.name": "adamw", "optim.weight_decay": 0.05, "optim.warmup": 0.1, "optim.beta1": 0.8,
        "train.batch_size": 64, "seed": 7,
    }  # fmt: skip
    text = table([Row(number=10_000, settings=settings), POOR])
    assert max(map(len, text.splitlines())) <= 120
    head, last = text.splitlines()[0], text.splitlines()[-1]
    assert {"eeg", "image"} <= set(head.split())
    assert last.startswith("also varied: ")
    assert last.endswith("seed")


def test_a_sweep_of_one_trial_has_no_settings_to_compare():
    assert table([GOOD]).splitlines()[0].split()[-1] == "time"


def test_the_csv_of_a_sweep_holds_metrics_chance_and_settings(tmp_path):
    report.write_csv(TRIALS, tmp_path / "trials.csv", chance=CHANCE)
    rows = pd.read_csv(tmp_path / "trials.csv")
    assert rows["trial"].tolist() == [2, 1, 3]
    assert rows["val/top1"].tolist()[:2] == [0.5, 0.25]
    assert rows["chance val/top1"].tolist() == [0.25] * 3
    assert rows["loss.name"].tolist() == ["info_nce", "triplet", "triplet"]
    assert rows["message"].tolist()[2] == "the disk is full"


def test_a_card_tells_what_the_data_are_and_names_no_subject():
    card = report.dataset_card(MANIFEST, segments_in={"train": 12, "val": 4}, notes=["classes share blocks"])
    for line in (
        "# Data set demo",
        r"| licence | CC0 \| public domain |",
        "| pictures | 4 in 2 classes |",
        "| subjects | 2 |",
        "| channels | 2 (Oz, Pz) |",
        "| window | 40 to 440 ms after onset (100 samples) |",
        "1. cut: start_sample 10",
        "2. subjects: kept (2)",
        "- too short: 3",
        "| val | 4 |",
        "- classes share blocks",
        "cat, dog",
    ):
        assert line in card.splitlines()
    assert "marker" not in card
    assert "flat" not in card  # none was dropped for it


@pytest.mark.parametrize(("metric", "best"), [("val/top1", 2), ("val/loss", 3)])
def test_learning_curves_mark_the_best_pass_and_chance(tmp_path, metric, best):
    files = report.learning_curves(HISTORY, tmp_path / "figures" / "curves", chance=CHANCE, metric=metric)
    assert [file.name for file in files] == ["curves.svg", "curves.pdf", "curves.png", "curves.csv"]
    assert all(file.stat().st_size > 0 for file in files)
    assert read_csv(files)["val/top1"].tolist() == [0.25, 0.5, 0.3]
    assert f"best pass ({best})" in read_svg(files)
    for label in ("top-1 (chance 25 %)", "top-5 (chance 100 %)", "class of top-1 (chance 50 %)"):
        assert label in read_svg(files)


def test_sweep_curves_count_the_outcomes_and_draw_chance(tmp_path):
    files = report.sweep_curves(TRIALS, tmp_path / "sweep", chance=CHANCE)
    for label in ("best (trial 2)", "finished (1)", "stopped early (1)", "failed or diverged (1)", "chance 25 %"):
        assert label in read_svg(files)
    assert read_csv(files)[["trial", "pass", "val/top1"]].to_numpy().tolist() == [
        [2, 1, 0.25], [2, 2, 0.5], [2, 3, 0.3], [1, 1, 0.25],
    ]  # fmt: skip


def test_a_confusion_matrix_by_hand(tmp_path):
    label_Q, retrieved_Q = np.array([0, 0, 0, 1, -1]), np.array([0, 0, 1, 0, 1])
    files = report.confusion(label_Q, retrieved_Q, ["cat", "dog"], tmp_path / "confusion", chance=0.5)
    assert read_csv(files).to_numpy().tolist() == [["cat", 2, 1], ["dog", 1, 0]]
    assert "Right class 50.0 %, chance 50.0 % (n = 4 segments)" in read_svg(files)


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
    files = report.retrieval_examples(
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
    first, second = (report.sweep_curves(TRIALS, tmp_path / name, chance=CHANCE) for name in ("a", "b"))
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]
