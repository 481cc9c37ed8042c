"""Recipes and evaluations from end to end on a local Ray: trained once, opened once, scored with circumstances."""

import json
from typing import Any

import pyarrow.parquet as pq
import pytest

from eegvision import grid, ledger, runs, study
from eegvision.assess.scores import Question
from eegvision.config import RunConfig
from eegvision.recipes import nice, palazzo, targets
from eegvision.vocab import InputError, RunInUseError

pytestmark = pytest.mark.usefixtures("ray_local", "tiny_dataset")

BASE = RunConfig().with_overrides(
    {
        "data.dataset": "tiny",
        "data.val_fraction": 0.25,
        "data.test_fraction": 0.25,
        "train.max_passes": 1,
        "train.batch_size": 32,
        "train.metric": "val/class_top1",
        "eeg.encoder": "tsconv",
        "image.size_px": 32,
        "image.embed_dim": 16,
        "eeg.embed_dim": 16,
    }
)
ZERO_SHOT = {
    "data.split": "concept-disjoint",
    "data.repetitions": 0,
    "loss.name": "info_nce",
    "train.metric": "val/loss",
    "image.frozen": True,
    "train.batch_size": 16,
}


def numbers(*values: float | None) -> list[float]:
    assert None not in values
    return [value for value in values if value is not None]


@pytest.fixture
def lines_before() -> int:
    return len(ledger.openings())


def test_palazzos_tables_come_from_one_call_that_opens_the_test_set_once(lines_before):
    said: list[str] = []
    options: dict[str, Any] = {"images": ("small",), "eegs": ("tsconv",), "n_seeds": 2, "say": said.append}
    made = palazzo.run("palazzo-test", BASE, parts=("I", "II", "III"), **options)
    assert [table.title.partition(".")[0] for table in made] == ["Table I", "Table II", "Table III"]
    assert [list(table.rows) for table in made] == [["small + tsconv"], ["small"], ["tsconv"]]
    for table in made:
        for cell in next(iter(table.rows.values()))[:2]:
            assert cell.n_seeds == 2
            low, value, high = numbers(cell.low, cell.value, cell.high)
            assert low <= value <= high
            assert cell.chance == pytest.approx(0.2)
    joint = made[0].rows["small + tsconv"]
    assert (made[1].rows["small"][1].value, made[2].rows["tsconv"][1].value) == (joint[1].value, joint[0].value)
    opened = ledger.openings()[lines_before:]
    assert [len(opening.models) for opening in opened] == [6]

    n_said = len(said)
    again = palazzo.run("palazzo-test", BASE, parts=("I", "II", "III"), **options)
    assert [table.to_dict() for table in again] == [table.to_dict() for table in made]
    assert not [line for line in said[n_said:] if "trainings done" in line or line.startswith("scored")]
    assert len(ledger.openings()) == lines_before + 1

    with pytest.raises(RunInUseError, match="the settings of this run have changed"):
        palazzo.run("palazzo-test", BASE.with_overrides({"optim.lr": 0.1}), parts=("I",), **options)


def test_nices_table_leaves_each_subject_out_and_names_its_gallery():
    base = BASE.with_overrides(ZERO_SHOT)
    made = nice.run("nice-test", base, eegs=("eeg-project",), n_seeds=1, say=lambda _: None)
    assert [len(table.columns) for table in made] == [4, 4]
    assert all("8-way, gallery exact-image" in table.caption for table in made)
    folder = runs.named_folder("runs", "nice-test")
    configs = {
        path.name.partition(".zero-shot")[0]: json.loads(path.read_text())["config"]["data"]
        for path in (folder / "evaluations").glob("*.json")
    }
    assert configs["within.eeg-project.sub-01-s0"]["subjects"] == ["sub-01"]
    assert configs["across.eeg-project.sub-01-s0"]["held_out"] == "sub-01"


def test_targets_compares_each_factor_on_the_same_pictures():
    base = BASE.with_overrides(ZERO_SHOT)
    factors = targets.Factors(layers=("last", "0.5"), blurs_px=(0.0,), channels=("all",), normalised=("both",))
    effects, combinations = targets.run("targets-test", base, factors=factors, n_seeds=1, say=lambda _: None)
    assert list(effects.rows) == ["layers: 0.5 against last"]
    first, second = numbers(*(combinations.rows[f"{layer}, 0.0, all, both"][0].value for layer in ("last", "0.5")))
    assert effects.rows["layers: 0.5 against last"][0].value == pytest.approx(second - first)


def test_a_second_model_of_a_run_is_not_scored_on_the_test_set_unless_the_ledger_says_why(lines_before):
    name = "opened-test"
    folder = runs.named_folder("runs", name)
    cells = [grid.Cell(key=f"s{seed}", config=BASE.with_overrides({"seed": seed})) for seed in range(2)]
    with runs.sole_owner(folder):
        rows = grid.fit_all(cells, folder, say=lambda _: None)
    assert [row.status for row in rows.values()] == ["finished", "finished"]

    def score(trial: int, side: str = "test", again: str | None = None):
        question = Question(protocol="zero-shot")
        return study.evaluate_run(name, question, trial=trial, side=side, again=again, say=lambda _: None)  # type: ignore[arg-type]

    assert score(2, "val")["opening"] is None
    first = score(1)
    assert first["opening"]["line"] == lines_before + 1
    assert score(1) == first
    with pytest.raises(InputError, match=r"was opened for other models of 'opened-test'.*--again"):
        score(2)
    assert len(ledger.openings()) == lines_before + 1
    second = score(2, again="the first one had a bug")
    assert second["opening"]["number"] == first["opening"]["number"] + 1
    assert ledger.openings()[-1].purpose.endswith("again, because the first one had a bug")

    rows_of_all = [row for row in first["rows"] if row["group_name"] == "all"]
    assert {row["metric"] for row in rows_of_all} >= {"top-1", "top-3", "top-5", "median rank", "mAP", "2-way"}
    wanted = {"split", "selection", "gallery", "normalise", "repetitions", "n_channels", "transductive", "n_queries"}
    assert all(wanted <= row.keys() for row in first["rows"])
    predictions = pq.read_table(folder / "evaluations" / first["predictions"])
    asked = zip(predictions["rank"].to_pylist(), predictions["gallery"].to_pylist(), strict=True)
    ranks = [rank for rank, gallery in asked if gallery == "exact-image"]
    top1 = next(row["value"] for row in rows_of_all if row["metric"] == "top-1" and row["gallery"] == "exact-image")
    assert sum(rank <= 1 for rank in ranks) / len(ranks) == pytest.approx(top1)


def test_what_failed_is_named_and_tried_again_and_the_rest_goes_on():
    folder = runs.named_folder("runs", "failing-test")
    good, bad = BASE, BASE.with_overrides({"train.batch_size": 4000})

    def fit(second: RunConfig):
        cells = [grid.Cell(key="good", config=good), grid.Cell(key="bad", config=second)]
        with runs.sole_owner(folder):
            return grid.fit_all(cells, folder, say=lambda _: None)

    rows = fit(bad)
    assert (rows["good"].status, rows["bad"].status) == ("finished", "refused")
    assert "batch_size 4000 is larger than the training set" in grid.failures(rows)[0]
    rows = fit(BASE.with_overrides({"train.batch_size": 16}))
    assert [row.status for row in rows.values()] == ["finished", "finished"]


@pytest.mark.parametrize(
    ("trial", "message"), [(9, "has no trial 9; it has 1"), (None, "is not finished, so it has no best trial yet")]
)
def test_a_trial_that_is_not_there_is_named(trial, message):
    name = "missing-test"
    folder = runs.named_folder("runs", name)
    (folder / "trials" / "a").mkdir(parents=True, exist_ok=True)
    (folder / "trials" / "a" / "trial.json").write_text(json.dumps({"number": 1, "suggested": {}}))
    with pytest.raises(InputError, match=message):
        study.evaluate_run(name, Question(), trial=trial, side="val", again=None, say=print)
    with pytest.raises(InputError, match="there is no run with trials"):
        study.evaluate_run("nowhere", Question(), trial=1, side="val", again=None, say=print)
