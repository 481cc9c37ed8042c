"""eegvision.sweep: what is recorded of trials, beside Ray; whole sweeps run in tests/ray."""

import json
from pathlib import Path

import pytest

from eegvision.config import RunConfig, SweepConfig
from eegvision.sweep import TrialRow, Watching
from eegvision.tracking import Tracker


@pytest.fixture
def folder(tmp_path) -> Path:
    """A sweep's folder with two trials begun; the driver was killed while it wrote down the second."""
    for number, trial in enumerate(("aaaa", "bbbb"), 1):
        (tmp_path / "killed" / "trials" / trial).mkdir(parents=True)
        content = json.dumps({"number": number, "suggested": {}})
        (tmp_path / "killed" / "trials" / trial / "trial.json").write_text(content)
    return tmp_path / "killed"


@pytest.mark.parametrize("is_tracked", [True, False])
def test_a_trial_lost_with_its_driver_is_removed_whether_or_not_the_tracker_heard_of_it(folder, tmp_path, is_tracked):
    kept = TrialRow(
        trial_id="aaaa", number=1, status="finished", config=RunConfig(), passes=0, best_pass=0, metrics={}, history=(),
        seconds=0.0, folder=folder / "trials" / "aaaa",
    )  # fmt: skip
    tracker = Tracker(tmp_path / "spool", "lost", "http://127.0.0.1:9")  # nothing listens: all stays in the spool
    for name in ("killed", "killed/aaaa", *(["killed/bbbb"] if is_tracked else [])):
        tracker.start(name, name=name)
    Watching(RunConfig(), SweepConfig(), folder, tracker, None, print).close([kept])
    tracker.close(timeout_s=0.1)
    ends = [json.loads(line) for line in (tmp_path / "spool" / "events.jsonl").read_text().splitlines()]
    assert [path.name for path in (folder / "trials").iterdir()] == ["aaaa"]
    finished = {event["key"]: event["status"] for event in ends if event["do"] == "finish"}
    assert finished == {"killed/aaaa": "FINISHED"} | ({"killed/bbbb": "KILLED"} if is_tracked else {})
