"""Sweeps whose trials meet in one process: their trials are those of a sweep of single ones, also after its death."""

import json
import threading
import time
from pathlib import Path

import pytest
import ray

from eegvision import distributed, history, runs, study, trials
from eegvision.config import RunConfig, SweepConfig
from eegvision.distributed import Placement, fit_here
from eegvision.space import load_space

SPACE = '''
"""Six learning rates."""
BASE = {
    "data.dataset": "tiny", "data.val_fraction": 0.25, "eeg.encoder": "tsconv", "eeg.embed_dim": 16,
    "image.encoder": "small", "image.frozen": True, "image.size_px": 32, "image.embed_dim": 16, "loss.name": "info_nce",
    "train.batch_size": 32, "train.max_passes": 4, "train.metric": "val/loss",
}
POINTS = [{"optim.lr": lr} for lr in (1e-3, 2e-3, 3e-3, 4e-3, 5e-3, 6e-3)]

def space(trial):
    trial.suggest_float("optim.lr", 1e-4, 1e-2, log=True)
'''


def sweep_of(folder: Path, name: str, **placed) -> list[trials.TrialRow]:
    path = folder / "space.py"
    path.write_text(SPACE)
    space = load_space(path)
    base = RunConfig().with_overrides(space.base)
    settings = SweepConfig(trials=6, **placed)
    return study.run_study(base, settings, name=name, space=space, say=lambda _: None)


def losses(run: Path) -> dict[float, list[float]]:
    """Training losses of every trial of a run, by learning rate."""
    folders = [path.parent for path in (run / "trials").glob("*/trial.json")]
    rate = {folder: json.loads((folder / "trial.json").read_text())["suggested"]["optim.lr"] for folder in folders}
    return {rate[folder]: [done["train/loss"] for done in trials.history_of(folder)] for folder in folders}


@pytest.fixture
def alone(tiny_dataset: Path, tmp_path: Path) -> dict[float, list[float]]:
    """What each training is by itself."""
    assert tiny_dataset.name == "tiny"
    path = tmp_path / "space.py"
    path.write_text(SPACE)
    space = load_space(path)
    base = RunConfig().with_overrides(space.base)
    found = {}
    for point in space.points:
        done = fit_here(base.with_overrides(point), tmp_path / "alone" / str(point["optim.lr"]), lambda _: None)
        found[point["optim.lr"]] = [metrics["train/loss"] for metrics in done.history]
    return found


@pytest.mark.usefixtures("ray_local", "without_figures")
def test_trials_that_meet_are_those_alone_and_who_is_stopped_early_makes_room(alone, tmp_path):
    rows = sweep_of(tmp_path, "leaving", together=3, max_concurrent=3, min_passes=1, keep_one_in=2)
    assert {row.status for row in rows} <= {"finished", "stopped early"}
    assert "stopped early" in {row.status for row in rows}
    found = losses(runs.named_folder("runs", "leaving"))
    assert found.keys() == alone.keys()
    for rate, values in found.items():
        assert values == pytest.approx(alone[rate][: len(values)], rel=1e-3), rate
    assert history.check(runs.named_folder("runs", "leaving")) == []


@pytest.mark.usefixtures("ray_local", "without_figures")
def test_a_room_that_dies_is_opened_again_and_its_trials_go_on(alone, tmp_path):
    run = runs.named_folder("runs", "dying")

    def kill() -> None:
        while not any(event["do"] == "pass" and event["pass"] == 2 for event in history.read(run)):
            time.sleep(0.05)
        ray.kill(ray.get_actor("dying 0"), no_restart=False)

    killer = threading.Thread(target=kill)
    killer.start()
    rows = sweep_of(tmp_path, "dying", together=6, max_concurrent=6, min_passes=4)
    killer.join(60)
    assert [row.passes for row in rows] == [4] * 6
    assert any(event["do"] == "lost" for event in history.read(run))
    for rate, values in losses(run).items():
        assert values == pytest.approx(alone[rate], rel=1e-3), rate
    assert history.check(run) == []


@pytest.mark.usefixtures("ray_local", "tiny_dataset")
def test_who_is_asked_for_no_more_leaves_its_place(tmp_path):
    path = tmp_path / "space.py"
    path.write_text(SPACE)
    config = RunConfig().with_overrides(load_space(path).base)
    rooms = distributed.open_rooms("left", 1, 2, Placement())
    settings = config.to_dict()
    first = ray.get(rooms[0].next.remote("gone", settings, str(tmp_path / "one")))
    assert first["pass"] == 1
    assert ray.get(rooms[0].size.remote()) == 1
    rooms[0].leave.remote("gone")
    # Its place is taken by another attempt at the same training, which goes on after the stored pass.
    again = ray.get(rooms[0].next.remote("new", settings, str(tmp_path / "one")))
    assert (again["pass"], again["attempt"]) == (1, 2)
    passes = []
    while (told := ray.get(rooms[0].next.remote("new", settings, str(tmp_path / "one")))) is not None:
        passes.append(told["pass"])
    assert passes == [2, 3, 4]
    assert ray.get(rooms[0].size.remote()) == 0


@pytest.mark.usefixtures("ray_local", "tiny_dataset")
def test_what_a_training_dies_of_reaches_its_trial(tmp_path):
    path = tmp_path / "space.py"
    path.write_text(SPACE)
    wild = RunConfig().with_overrides({**load_space(path).base, "optim.lr": 1e30, "train.max_bad_steps": 2})
    rooms = distributed.open_rooms("wild", 1, 2, Placement())
    with pytest.raises(distributed.train.TrainingDiverged, match="bad steps in a row"):
        distributed.fit_in_room(wild, tmp_path / "wild", lambda _: None, name="wild", count=len(rooms))
