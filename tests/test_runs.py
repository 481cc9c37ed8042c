"""eegvision.runs: one owner at a time, also where locks do not work; one meaning per name; private folders."""

import errno
import json
import multiprocessing
import os
import stat
import time
from pathlib import Path

import pytest

from eegvision import runs
from eegvision.runs import check_drift, claim, named_folder, note_made_with, sole_owner, write_whole
from eegvision.vocab import InputError, RunInUseError, TryAgainError


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b", "x" * 101])
def test_a_name_that_is_no_folder_is_refused(name):
    with pytest.raises(InputError, match="must be 1 to 100 letters"):
        named_folder("runs", name)


def test_a_run_lives_below_home_and_is_private(tmp_path, monkeypatch):
    monkeypatch.setenv("EEGVISION_HOME", str(tmp_path))
    folder = named_folder("runs", "demo-1.0_x")
    with sole_owner(folder):
        assert folder == tmp_path / "runs" / "demo-1.0_x"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def _try_to_own(folder, results):
    try:
        with sole_owner(folder):
            results.put("owned")
    except RunInUseError as error:
        results.put(str(error))


def test_a_second_process_is_refused_until_the_first_lets_go(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    results = spawn.Queue()

    def attempt():
        other = spawn.Process(target=_try_to_own, args=(tmp_path / "demo", results))
        other.start()
        other.join()
        return results.get(timeout=10)

    with sole_owner(tmp_path / "demo"):
        assert "'demo' is being run by another process (process " in attempt()
    assert attempt() == "owned"


def _race(folder, barrier, results, has_locks):
    """Try to own a folder at the same moment as another process, again and again."""
    if not has_locks:
        runs.fcntl.flock = _no_locks
    runs._BEAT_S, runs._SILENT_S = 0.1, 5.0
    for number in range(50):
        barrier.wait()
        try:
            with sole_owner(folder / f"run-{number}"):
                results.put((number, "owned"))
                barrier.wait()  # the other one has been refused
        except RunInUseError as error:
            results.put((number, str(error)))
            barrier.wait()


def _no_locks(*_):
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.mark.parametrize("has_locks", [True, False])
def test_of_two_that_start_at_the_same_moment_one_is_refused(tmp_path, has_locks):
    spawn = multiprocessing.get_context("spawn")
    results, barrier = spawn.Queue(), spawn.Barrier(2)
    racers = [spawn.Process(target=_race, args=(tmp_path, barrier, results, has_locks)) for _ in range(2)]
    for racer in racers:
        racer.start()
    said = [results.get(timeout=120) for _ in range(100)]
    for racer in racers:
        racer.join()
    for number in range(50):
        mine = sorted(text for n, text in said if n == number)
        assert mine[1] == "owned", mine
        assert "is being run by another process" in mine[0]


def _foreign_owner(folder: Path, beat: int) -> None:
    record = {"host": "gone-away", "pid": 7, "job": "sweep-abc", "since": "2026-11-21 12:00:00", "left": False}
    (folder / ".owners").mkdir(exist_ok=True)
    write_whole(folder / ".owners" / "000003", json.dumps({**record, "beat": beat}))


def test_a_run_whose_machine_vanished_is_taken_over_and_the_count_goes_on(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(runs, "_SILENT_S", 0.2)
    _foreign_owner(tmp_path, beat=40)
    with sole_owner(tmp_path) as number:
        assert number == 4
        assert "taken over from gone-away, which was silent for 0.2 s" in caplog.text
    with sole_owner(tmp_path) as number:  # one that has left is not waited for
        assert number == 5


@pytest.mark.parametrize("locks", ["none", "held by a machine that is gone"])
def test_without_a_lock_to_rely_on_the_sign_of_life_decides(tmp_path, monkeypatch, locks):
    def flock(*_):
        raise OSError(errno.ENOSYS if locks == "none" else errno.EWOULDBLOCK, "refused")

    monkeypatch.setattr(runs.fcntl, "flock", flock)
    monkeypatch.setattr(runs, "_SILENT_S", 0.5)
    _foreign_owner(tmp_path, beat=40)
    with sole_owner(tmp_path) as number:
        assert number == 4
    (tmp_path / ".owners" / "000004").unlink()
    _foreign_owner(tmp_path, beat=40)

    # While it is watched, it moves.
    monkeypatch.setattr(runs.time, "sleep", lambda _: _foreign_owner(tmp_path, beat=41))
    with pytest.raises(RunInUseError, match=r"process 7 on gone-away, job sweep-abc, begun 7 min ago, 2026"):
        sole_owner(tmp_path).__enter__()


def test_an_owner_that_was_replaced_while_it_was_silent_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "_BEAT_S", 0.05)

    def be_replaced() -> None:
        with sole_owner(tmp_path):
            (tmp_path / ".owners" / "000002").write_text(json.dumps({"host": "other", "left": False}))
            for _ in range(400):  # until the interrupt, which does not end a sleep
                time.sleep(0.05)

    with pytest.raises(TryAgainError, match="was taken over by other while this process was silent"):
        be_replaced()
    assert json.loads((tmp_path / ".owners" / "000001").read_text())["left"] is False


def test_a_folder_that_others_could_write_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("EEGVISION_HOME", str(tmp_path / "home"))
    folder = named_folder("runs", "open")
    with sole_owner(folder):
        assert {stat.S_IMODE(path.stat().st_mode) for path in (folder, folder.parent, tmp_path / "home")} == {0o700}
    folder.parent.chmod(0o777)
    with pytest.raises(InputError, match=r"home/runs can be written by anybody.*chmod o-w"), sole_owner(folder):
        pass
    folder.parent.chmod(0o700)
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    with pytest.raises(InputError, match=r"belongs to user \d+, and going on with a run executes what"):
        sole_owner(folder).__enter__()


def test_a_file_is_there_whole_or_as_it_was(tmp_path, monkeypatch):
    write_whole(tmp_path / "a.json", "first")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "a.json", "second")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.json", "first")]


def test_other_code_than_at_the_beginning_is_refused_unless_allowed(tmp_path):
    assert check_drift(tmp_path, {"torch": "2.14"}, allow=False) == []
    note_made_with(tmp_path, {"torch": "2.14", "eegvision": "abc"})
    note_made_with(tmp_path, {"torch": "2.15", "eegvision": "abc"})
    with pytest.raises(InputError, match=r"torch was 2\.14, now 2\.15\).*--allow-drift True"):
        check_drift(tmp_path, {"torch": "2.15", "eegvision": "abc"}, allow=False)
    assert check_drift(tmp_path, {"torch": "2.15", "eegvision": "abc"}, allow=True) == ["torch was 2.14, now 2.15"]


def test_a_name_keeps_its_first_meaning(tmp_path):
    claim(tmp_path, {"trials": 4, "dataset": "abc"})
    claim(tmp_path, {"dataset": "abc", "trials": 4})
    with pytest.raises(RunInUseError, match=r"dataset was 'abc', now 'xyz'.*another --name"):
        claim(tmp_path, {"trials": 4, "dataset": "xyz"})
