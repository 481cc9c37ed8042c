"""eegvision.audits: a model of a random and one of a block design, from training to verdict; what is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from eegvision import grid, runs
from eegvision.audits import Budget, record
from eegvision.config import RunConfig
from eegvision.ingest import assemble, simulate
from eegvision.vocab import InputError

SIMULATION = simulate.Simulation(
    n_subjects=1, n_classes=4, images_per_class=28, repetitions=2, blocks_per_class=4, snr=6.0,
    n_chans=8, n_times=88, sfreq_hz=200.0, image_px=32, viewers=0,
)  # fmt: skip
SETTINGS: dict[str, Any] = {
    "data.val_fraction": 0.3, "eeg.encoder": "tsconv", "eeg.embed_dim": 32, "image.embed_dim": 32, "optim.lr": 3e-3,
    "image.size_px": 32, "loss.name": "info_nce", "train.batch_size": 16, "train.max_passes": 14,
}  # fmt: skip


def trained(home: Path, name: str, **changes: Any) -> Path:
    """Train one configuration on data of a design, as a run of that name."""
    assemble.write(home / "datasets" / name, simulate.simulate(dataclasses.replace(SIMULATION, **changes), name))
    config = RunConfig().with_overrides(SETTINGS | {"data.dataset": name})
    folder = runs.named_folder("runs", name)
    grid.fit_all([grid.Cell(key="model", config=config)], folder, say=lambda _: None)
    (folder / "best.json").write_text(json.dumps({"trial": "model", "number": 1}))
    return folder


@pytest.mark.usefixtures("ray_local")
def test_a_random_design_is_supported_and_the_same_command_again_trains_nothing(session_home):
    folder = trained(session_home, "audited-random")
    result = record.run_audit("audited-random", trial=None, budget=Budget(seeds=1), say=lambda _: None)
    by_name = {control.name: control for control in result.controls}
    assert result.verdict == "supported", record.table(result)
    claim, shuffled = by_name["claim"], by_name["shuffled-pairs"]
    assert claim.low is not None
    assert shuffled.value is not None
    assert shuffled.value < claim.low
    assert by_name["leave-block-out"].verdict == "supported"
    assert by_name["fresh-weights"].verdict == "supported"
    assert "begin 0 s after onset" in by_name["pre-stimulus"].reason

    stored = json.loads((folder / "audit.json").read_text())
    assert stored["verdict"] == "supported"
    assert stored["dataset"]["name"] == "audited-random"
    assert stored["metric"] == "val/class_top1"
    assert len(stored["controls"]) == len(result.controls)
    said: list[str] = []
    again = record.run_audit("audited-random", trial=None, budget=Budget(seeds=1), say=said.append)
    assert again.controls == result.controls
    assert not any("trainings done" in line for line in said)


@pytest.mark.usefixtures("ray_local")
def test_a_block_design_is_unsupported_and_time_is_named(session_home):
    trained(session_home, "audited-block", design="block")
    result = record.run_audit("audited-block", trial=1, budget=Budget(seeds=1), say=lambda _: None)
    by_name = {control.name: control for control in result.controls}
    assert result.verdict == "unsupported"
    assert by_name["order"].verdict == "unsupported"
    assert by_name["shuffled-in-blocks"].verdict == "unsupported"
    assert "Order of presentation" in result.reason


@pytest.mark.usefixtures("ray_local")
def test_what_is_at_chance_is_unsupported_without_training_controls(session_home):
    folder = trained(session_home, "audited-nothing", snr=0.0)
    result = record.run_audit("audited-nothing", trial=None, budget=Budget(seeds=1, passes=1), say=lambda _: None)
    assert result.verdict == "unsupported"
    assert "not above chance" in {control.name: control for control in result.controls}["shuffled-pairs"].reason
    trainings = [path.name for work in (folder / "audit").iterdir() for path in (work / "trials").iterdir()]
    assert trainings == ["claim-seed1"]
    (session_home / "datasets" / "audited-nothing").rename(session_home / "datasets" / "moved")
    trained_on = session_home / "datasets" / "tiny-instead"
    assemble.write(trained_on, simulate.simulate(SIMULATION, "audited-nothing"))
    trained_on.rename(session_home / "datasets" / "audited-nothing")
    with pytest.raises(InputError, match=r"was trained on data \w+, and 'audited-nothing' is now \w+"):
        record.run_audit("audited-nothing", trial=None, budget=Budget(), say=lambda _: None)


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(InputError, match="seeds is 0; expected at least 1"):
        Budget(seeds=0)
