"""eegvision.resume and checkpoint: attempts at one training that were taken for dead, and what they may still do."""

import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from eegvision import checkpoint, resume
from eegvision.checkpoint import CheckpointError
from eegvision.resume import Superseded
from eegvision.train import PassReport
from eegvision.vocab import RunInUseError, TryAgainError
from planted import CONFIG, Interrupted, assert_same_tensors, one_thread, planted, run, stop_after, stored  # noqa: F401


def files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_no_two_attempts_have_one_number(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        claimed = list(pool.map(resume.claim, [tmp_path] * 200))
    assert sorted(claimed) == list(range(1, 201))
    assert json.loads((tmp_path / "attempts" / "000200").read_text())["pid"] == os.getpid()


def test_an_attempt_that_was_replaced_may_not_write_when_it_comes_back(tmp_path):
    after_b: dict[str, str] = {}

    def cut_off(done: PassReport) -> None:
        if done.number == 2:  # and while A hears nothing, B goes on to the end
            run(tmp_path)
            after_b.update(files(tmp_path))

    with pytest.raises(Superseded, match=rf"attempt 1 at {tmp_path} was replaced by attempt 2 on .*pid {os.getpid()}"):
        run(tmp_path, report=cut_off)
    assert after_b == files(tmp_path)
    run(tmp_path.with_name("whole"))
    for side in ("last", "best"):
        assert_same_tensors(stored(tmp_path, side), stored(tmp_path.with_name("whole"), side))


class Meanwhile(dict):
    """Tensors during whose writing something else happens."""

    def __init__(self, root: Path, happens) -> None:
        super().__init__(x=torch.ones(9))
        self.root, self.happens = root, happens

    def items(self):
        if list(self.root.glob(".writing-*")):
            self.happens()
        return super().items()


@pytest.mark.parametrize("sweeps", [False, True])
def test_an_attempt_that_is_replaced_while_it_writes_renames_nothing(tmp_path, sweeps):
    root, first = tmp_path / "last", resume.claim(tmp_path)

    def replaced() -> None:
        resume.claim(tmp_path)
        if sweeps:  # as its successor does before it writes
            for half_written in root.glob(".writing-*"):
                shutil.rmtree(half_written)

    with pytest.raises(Superseded):
        checkpoint.save(
            root,
            "pass-000001",
            {"model": Meanwhile(root, replaced)},
            {},
            owner=first,
            require_owner=lambda: resume.require_newest(tmp_path, first),
        )
    assert list(root.iterdir()) == []


def test_only_what_no_later_attempt_can_own_is_swept_up(tmp_path):
    for owner in (1, 2, 3):
        (tmp_path / f".writing-{owner:06d}-abc").mkdir()
    checkpoint.save(tmp_path, "pass-1", {}, {}, owner=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".writing-000003-abc", "pass-1"]


def test_a_start_that_is_refused_stops_nobody(tmp_path):
    def mistaken(_done: PassReport) -> None:
        with pytest.raises(RunInUseError):
            run(tmp_path, CONFIG.with_overrides({"optim.lr": 0.5}))
        with pytest.raises(RunInUseError):
            run(tmp_path, store=planted(name="other"))

    assert run(tmp_path, report=mistaken).passes == 4
    assert [path.name for path in (tmp_path / "attempts").iterdir()] == ["000001"]


def test_a_report_says_which_attempt_stored_what(tmp_path):
    reports: list[PassReport] = []

    def told(done: PassReport) -> None:
        assert done.last is not None
        assert done.best_stored is not None
        for checkpoint_of in (done.last, done.best_stored):
            manifest = tmp_path / checkpoint_of.path / "manifest.json"
            assert checkpoint_of.sha256 == hashlib.sha256(manifest.read_bytes()).hexdigest()
        assert done.last.path == f"last/pass-{done.number:06d}"
        reports.append(done)
        if len(reports) == 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(tmp_path, report=told)
    (tmp_path / "last" / "pass-000003" / "model.safetensors").write_bytes(b"")
    result = run(tmp_path, report=told)
    assert [(done.attempt, done.number, done.fell_back) for done in reports] == [
        (1, 1, False), (1, 2, False), (1, 3, False), (2, 2, True), (2, 3, False), (2, 4, False),
    ]  # fmt: skip
    last, best = reports[-1].last, reports[-1].best_stored
    assert last is not None
    assert best is not None
    assert best.path == f"best/pass-{result.best_pass:06d}"
    record = checkpoint.record(tmp_path / last.path)
    assert (record["attempt"], record["parts"], record["passes"]) == (2, 1, 4)


def test_a_best_checkpoint_that_is_damaged_is_not_named(tmp_path):
    reports: list[PassReport] = []
    with pytest.raises(Interrupted):
        run(tmp_path, report=stop_after(2))
    for path in (tmp_path / "best").glob("*/model.safetensors"):
        path.write_bytes(b"")
    run(tmp_path, report=reports.append)
    assert (reports[0].number, reports[0].best_stored, reports[0].fell_back) == (2, None, True)


def test_the_record_alone_is_checked_too(tmp_path):
    path = checkpoint.save(tmp_path, "pass-1", {"model": {"x": torch.ones(9)}}, {"passes": 1})
    (path / "model.safetensors").write_bytes(b"")
    assert checkpoint.record(path) == {"passes": 1}
    (path / "state.json").write_bytes(b"{}")
    with pytest.raises(CheckpointError, match=r"state\.json has 2 bytes"):
        checkpoint.record(path)


def test_what_a_full_disk_refuses_can_be_tried_again(tmp_path):
    with pytest.raises(TryAgainError):
        checkpoint.save(tmp_path, "pass-1", {"model": {"w": torch.zeros(1).expand(10**15)}}, {})


def test_what_an_earlier_version_stored_is_refused_and_kept(tmp_path):
    # The history of a pass, but nothing of the one under way.
    path = checkpoint.save(tmp_path / "last", "pass-000001", {"model": {}}, {"passes": 1, "history": [{}]})
    with pytest.raises(RunInUseError, match=rf"{path} was stored by an earlier version of eegvision"):
        run(tmp_path)
    assert [found.name for found in tmp_path.iterdir()] == ["last"]
