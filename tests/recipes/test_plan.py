"""eegvision.recipes.plan: scores pooled over seeds, differences on the same pictures, means over subjects."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eegvision.config import RunConfig
from eegvision.recipes.plan import Measure, Scored, arm, gain, of_key, over_subjects, publish, score, seeded
from eegvision.report.grid_tables import Table
from eegvision.trials import TrialRow
from eegvision.vocab import InputError

EEG = Measure(probe_side="eeg")


def scored(folder, right_Q, *, key="a-s0", unit_Q=None, subject="sub-01", grade="green") -> Scored:
    """One training whose probe answered these queries rightly; two queries per picture unless units are given."""
    right_Q = np.asarray(right_Q)
    unit_Q = np.arange(len(right_Q)) // 2 if unit_Q is None else unit_Q
    predictions = folder / f"{key}-{subject}.parquet"
    columns = {
        "probe_side": ["eeg"] * len(right_Q),
        "subject": [subject] * len(right_Q),
        "image_id": [f"picture-{unit}" for unit in unit_Q],
        "label": ["star"] * len(right_Q),
        "predicted": ["star" if is_right else "ring" for is_right in right_Q],
    }
    pq.write_table(pa.table(columns), predictions)
    row = {
        "metric": "accuracy",
        "group_name": "all",
        "probe_side": "eeg",
        "value": float(right_Q.mean()),
        "low": 0.1,
        "high": 0.9,
        "chance": 0.1,
        "significance_line": 0.2,
    }
    record = {"run": "r", "trial": key, "rows": [row], "dataset": {"name": "d", "grade": grade}}
    trial = TrialRow(
        trial_id=key,
        number=1,
        status="finished",
        config=RunConfig(),
        passes=1,
        best_pass=1,
        metrics={},
        history=(),
        seconds=1.0,
        folder=folder / "run" / "trials" / key,
    )
    return Scored(row=trial, record=record, predictions=predictions)


def test_one_seed_keeps_the_interval_over_pictures(tmp_path):
    found = score([scored(tmp_path, [1, 0, 1, 1])], EEG, published=0.9)
    assert (found.value, found.low, found.high) == (0.75, 0.1, 0.9)
    assert (found.published, found.chance, found.line, found.n_seeds) == (0.9, 0.1, 0.2, None)


def test_seeds_widen_the_interval_by_how_much_they_differ(tmp_path):
    rng = np.random.default_rng(0)
    base = rng.random(80) < 0.5
    alike = [scored(tmp_path, base, key=f"a-s{n}") for n in range(4)]
    apart = [scored(tmp_path, rng.random(80) < level, key=f"b-s{n}") for n, level in enumerate((0.2, 0.4, 0.6, 0.8))]
    narrow, wide = score(alike, EEG), score(apart, EEG)
    assert narrow.n_seeds == wide.n_seeds == 4
    assert narrow.low is not None
    assert narrow.high is not None
    assert wide.low is not None
    assert wide.high is not None
    assert narrow.sd == 0
    assert wide.sd is not None
    assert wide.sd > 0.15
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_a_gain_is_found_on_the_same_pictures_and_none_where_there_is_none(tmp_path):
    rng = np.random.default_rng(1)
    hard = rng.random(200)
    theirs = [scored(tmp_path, hard < 0.4, key=f"a-s{n}") for n in range(3)]
    ours = [scored(tmp_path, hard < 0.6, key=f"b-s{n}") for n in range(3)]
    better, p = gain(ours, theirs, EEG)
    assert better.value == pytest.approx(float((hard < 0.6).mean() - (hard < 0.4).mean()))
    assert better.low is not None
    assert better.low > 0
    assert p < 0.01
    nothing, p = gain(theirs, theirs, EEG)
    assert (nothing.value, p) == (0, 1)


def test_models_scored_on_other_pictures_are_not_compared(tmp_path):
    one, other = scored(tmp_path, [1, 0], unit_Q=[0, 1]), scored(tmp_path, [1, 0], key="b-s0", unit_Q=[0, 2])
    with pytest.raises(InputError, match="scored on other pictures"):
        score([one, other], EEG)


def test_the_mean_over_subjects_weighs_each_alike(tmp_path):
    parts = [
        [scored(tmp_path, [n % 2] * 8 + [1] * 8, key=f"{n}-s{seed}", subject=f"sub-{n}") for seed in range(2)]
        for n in range(6)
    ]
    found = over_subjects(parts, EEG)
    assert found.value == pytest.approx(0.75)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0.75 < found.high


@pytest.mark.parametrize("how", ["red data", "audit"])
def test_a_score_the_data_cannot_carry_is_struck_through(tmp_path, how):
    one = scored(tmp_path, [1, 0, 1, 1], grade="red" if how == "red data" else "green")
    run = tmp_path / "run"
    run.mkdir()
    if how == "audit":
        assert not score([one], EEG).is_struck
        (run / "audit.json").write_text(json.dumps({"verdict": "unsupported"}))
    assert score([one], EEG).is_struck


def test_a_score_that_was_not_measured_is_refused(tmp_path):
    with pytest.raises(InputError, match="has no score accuracy"):
        score([scored(tmp_path, [1, 0])], Measure(probe_side="image"))


def test_seeds_are_named_after_their_configuration():
    configs = seeded("joint-small.tsconv", RunConfig(seed=3), 2) | seeded("joint-small", RunConfig(), 1)
    assert {key: config.seed for key, config in configs.items()} == {
        "joint-small.tsconv-s3": 3,
        "joint-small.tsconv-s4": 4,
        "joint-small-s0": 0,
    }
    assert of_key(dict.fromkeys(configs, "x"), "joint-small") == ["x"]  # type: ignore[arg-type]


@pytest.mark.parametrize("which", ["eeg", "image"])
def test_an_arm_has_the_data_optimiser_and_budget_of_the_joint_training(which):
    base = RunConfig().with_overrides(
        {"eeg.encoder": "tsconv", "train.max_passes": 7, "optim.lr": 0.01, "train.metric": "val/top1"}
    )
    alone = arm(base, which)
    assert alone.loss.arm == which
    assert alone.metric == "val/accuracy"
    assert (alone.optim, alone.seed, alone.train.max_passes) == (base.optim, base.seed, 7)
    assert (alone.eeg == base.eeg) is (which == "eeg")


def test_tables_of_several_calls_stay_side_by_side(tmp_path, monkeypatch):
    monkeypatch.setenv("EEGVISION_HOME", str(tmp_path))
    run = tmp_path / "runs" / "r"
    run.mkdir(parents=True)
    said = []
    for title in ("B", "A", "B"):
        publish("r", [Table(title=title, columns=("x",), rows={})], said.append)
    kept = json.loads((run / "tables.json").read_text())["tables"]
    assert [table["title"] for table in kept] == ["A", "B"]
    assert (run / "tables.tex").read_text().count(r"\begin{table}") == 2
