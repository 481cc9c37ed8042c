"""eegvision.report.tables: tables and cards by hand, chance beside every score."""

import dataclasses

import pandas as pd
import pytest

from eegvision.report import tables
from report.trials import CHANCE, GOOD, MANIFEST, POOR, TRIALS, Row


def table(trials, metric="val/top1"):
    p = {2: 0.0004, 1: 0.684}
    return tables.sweep_table(trials, metric=metric, chance=CHANCE, n_segments=16, n_images=40, p=p)


def test_the_table_ranks_trials_beside_what_guessing_scores_and_seldom_scores():
    # Of 40 pictures at chance 1/4, P(X >= 16) = 0.026 and P(X >= 17) = 0.012: with three trials the line is 42.5 %
    assert table(TRIALS).splitlines()[:7] == [
        "rank  trial  status         passes  top-1 %       p  top-5 %  class %     time  dim  loss        lr",
        "---------------------------------------------------------------------------------------------------",
        "   1      2  finished            3     50.0  <0.001     95.0     75.0     1:15   64  info_nce  5e-4",
        "   2      1  stopped early       1     25.0   0.684     90.0     50.0  1:01:40  128  triplet   1e-3",
        "   -      3  failed              0        -       -        -        -     1:15  128  triplet   1e-3",
        "             chance                    25.0            100.0     50.0",
        "             line                      42.5                -     70.0",
    ]


def test_the_table_says_what_n_is_what_p_is_not_and_why_a_trial_failed():
    text = " ".join(table(TRIALS).split())
    assert "16 validation segments of 40 pictures; best first by val/top1" in text
    assert "line: what guessing reaches in 5 % of sweeps of 3 trials; p: pictures trade identities, corrected" in text
    assert "were chosen on these very pictures: only the test set can confirm them" in text
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
    tables.write_csv(TRIALS, tmp_path / "trials.csv", chance=CHANCE)
    rows = pd.read_csv(tmp_path / "trials.csv")
    assert rows["trial"].tolist() == [2, 1, 3]
    assert rows["val/top1"].tolist()[:2] == [0.5, 0.25]
    assert rows["chance val/top1"].tolist() == [0.25] * 3
    assert rows["loss.name"].tolist() == ["info_nce", "triplet", "triplet"]
    assert rows["message"].tolist()[2] == "the disk is full"


def test_a_card_tells_what_the_data_are_and_names_no_subject():
    card = tables.dataset_card(MANIFEST, segments_in={"train": 12, "val": 4}, notes=["classes share blocks"])
    for line in (
        "# Data set demo",
        r"| licence | CC0 \| public domain |",
        "| pictures | 4 in 2 classes |",
        "| subjects | 2 |",
        "| channels | 2 (Oz, Pz) |",
        "| window | 40 to 440 ms after onset (100 samples) |",
        "| order audit | amber |",
        "1. cut: from sample 10",
        "2. subjects: 2 kept",
        "- too short: 3",
        "| val | 4 |",
        "- classes share blocks",
        "cat, dog",
    ):
        assert line in card.splitlines()
    assert "marker" not in card
    assert "flat" not in card  # none was dropped for it


VOLTS = {"unit_before": "V", "unit_after": "V"}


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ({"step": "cut events", "from_s": -0.2, "to_s": 0.0, "samples": 51, **VOLTS},
         "cut events: -0.2 to 0 s, 51 samples"),
        (
            {"step": "mvnn-epochs", "fitted_on": "training segments", "unit_before": "V", "unit_after": "whitened"},
            "mvnn-epochs: V → whitened, fitted on training segments",
        ),
        (
            {"step": "resample", "from_hz": 1000.0, "to_hz": 250.0, "by": "SciPy, Fourier", "what": "down", **VOLTS},
            "resample: 1000 to 250 Hz, by SciPy, Fourier",
        ),
        (
            {"step": "resample", "new_hz": 250, "what": "up: the new samples add no information"},
            "resample: 250 Hz, the new samples add no information",
        ),
        ({"step": "band-pass", "low_hz": None, "high_hz": 40.0, "basis": "file name"},
         "band-pass: up to 40 Hz, known from the file name"),
        ({"step": "band-pass", "low_hz": 0.1, "high_hz": None}, "band-pass: from 0.1 Hz"),
        ({"step": "notch", "at_hz": [50.0, 100.0], "taps": 1}, "notch: at 50, 100 Hz, 1 tap"),
        ({"step": "cut", "start_sample": 20, "stop_sample": 460}, "cut: sample 20 to 460"),
        ({"step": "source", "files": 1, "formats": [".fif"], "kind": "epochs"}, "source: 1 file, .fif, epochs"),
        ({"step": "source", "files": 2, "subjects": ["marker-a"]}, "source: 2 files, 1 subject"),
        ({"step": "channels", "kept": ["Oz", "Pz"]}, "channels: kept Oz, Pz"),
        ({"step": "channels", "kept": list("ABCDEFG")}, "channels: 7 kept"),
        ({"step": "split", "rows": {"train": 72, "val": 18}, "rows_in_file": 90},
         "split: rows (train 72, val 18), 90 rows in file"),
        ({"step": "unit", "basis": "assumed: microvolts"}, "unit (assumed: microvolts)"),
        ({"step": "rows", "min_samples": 450, "max_samples": 600, "on_bad": "drop"},
         "rows: 450 to 600 samples, faulty ones left out"),
        ({"step": "clamp", "limit": 20.0, **VOLTS}, "clamp: limit 20"),
        ({"step": "average"}, "average"),
    ],
)  # fmt: skip
def test_a_step_is_said_in_words_with_units_and_without_what_did_not_change(step, said):
    assert tables.steps(dataclasses.replace(MANIFEST, steps=(step,))) == [said]
