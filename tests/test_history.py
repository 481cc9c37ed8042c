"""eegvision.history: a log that a crash cannot spoil, and a checker that finds each way in which a sweep goes wrong."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from eegvision.history import NAME, History, check, read, slow_hosts


def make_pass(folder: Path, trial: str, number: int, score: float, attempt: int, **more: Any) -> dict[str, Any]:
    """A pass that lies in the trial's folder, as it is reported."""
    own = folder / "trials" / trial
    path = f"last/pass-{number:06d}"
    (own / path).mkdir(parents=True, exist_ok=True)
    (own / path / "manifest.json").write_text(f"{trial} {number}")
    (own / "attempts").mkdir(exist_ok=True)
    (own / "attempts" / f"{attempt:06d}").touch()
    metrics = {"val/top1": score, "seconds": 1.0 + number, "segments_per_s": 100.0}
    sha256 = hashlib.sha256(f"{trial} {number}".encode()).hexdigest()
    return {
        "id": trial, "pass": number, "metrics": metrics, "attempt": attempt, "host": "a", "pid": 10 + attempt,
        "checkpoint": path, "checkpoint_sha256": sha256, **more,
    }  # fmt: skip


def write_good(folder: Path) -> None:
    """Two trials: the first loses a process, the driver is killed in the second, whose last pass is reported again."""
    driver: dict[str, Any] = {"identity": "i", "code": "c", "host": "a", "pid": 1, "metric": "val/top1", "mode": "max"}
    driver |= {"trials": 2, "gpus": 0.0}
    (folder / "table.txt").write_text("table")
    sha256 = hashlib.sha256(b"table").hexdigest()
    with History(folder) as log:
        log.write("begin", **driver, owner=1)
        log.write("trial", id="x", number=1, suggested={})
        log.write("attempt", id="x", attempt=1)
        log.write("pass", **make_pass(folder, "x", 1, 0.5, attempt=1))
        log.write("lost", id="x", attempt=1, reason="killed: its process was ended")
        log.write("attempt", id="x", attempt=2)
        log.write("pass", **make_pass(folder, "x", 1, 0.5, attempt=2))
        log.write("pass", **make_pass(folder, "x", 2, 0.25, attempt=2))
        log.write("end", id="x", status="finished", message="", score=0.5, best_pass=1)
        log.write("trial", id="y", number=2, suggested={})
        log.write("attempt", id="y", attempt=1)
        log.write("pass", **make_pass(folder, "y", 1, 0.75, attempt=1))
    with History(folder) as log:
        log.write("resume", **driver, owner=2)
        log.write("attempt", id="y", attempt=2)
        log.write("pass", **make_pass(folder, "y", 1, 0.75, attempt=2))
        log.write("end", id="y", status="stopped early", message="", score=0.75, best_pass=1)
        log.write("best", id="y", number=2, metric="val/top1", value=0.75)
        log.write("artifact", path="table.txt", sha256=sha256, bytes=5)
        log.write("finished", reason="")


@pytest.fixture
def run(tmp_path) -> Path:
    write_good(tmp_path)
    return tmp_path


def rewrite(folder: Path, change: Any) -> None:
    """Put a changed log in the place of the good one; `n` counts its lines again."""
    events = change(read(folder))
    lines = [json.dumps(event | {"n": number}) for number, event in enumerate(events, start=1)]
    (folder / NAME).write_text("\n".join(lines) + "\n")


def without(at: int) -> Any:
    return lambda events: events[:at] + events[at + 1 :]


def twice(at: int) -> Any:
    return lambda events: events[: at + 1] + events[at:]


def changed(at: int, **values: Any) -> Any:
    return lambda events: [*events[:at], events[at] | values, *events[at + 1 :]]


METRICS = {"val/top1": 0.25, "seconds": 1.0}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (without(8), "trial 1 has no end, and the sweep is finished"),
        (twice(8), "trial 1 ends twice"),
        (changed(7, **{"pass": 3}), "trial 1: pass 3 follows pass 1"),
        (changed(6, metrics=METRICS), "trial 1: pass 1 was made twice with different results: val/top1 0.5, then 0.25"),
        (changed(16, value=0.5), "trial 2 is named the best with val/top1 0.5, but the best of all ends is 0.75"),
        (changed(16, id="x"), "trial 2 is named the best with val/top1 0.75, but the best of all ends is 0.75"),
        (changed(8, score=0.4), "trial 1 ended with val/top1 0.4, but the best of its passes is 0.5"),
        (changed(6, attempt=1, pid=11), "trial 1 was started anew, but attempt 1 of before made pass 1"),
        (changed(7, attempt=1, pid=11), "trial 1: attempt 1 made pass 2 after attempt 2 had begun"),
        (changed(7, pid=99), "trial 1: two processes made passes as attempt 2"),
        (changed(7, attempt=3, pid=13), "trial 1 has passes of attempt 3, which never took its number in"),
        (without(4), "trial 1 was started again while it ran"),
        (without(12), "trial 2 was started again while it ran"),
        (without(2), "trial 1 was started for time 2 after time 0"),
        (without(9), "number 10 (attempt) is of the trial y, which never began"),
        (changed(12, owner=1), "a (process 1) wrote as owner 1 after owner 1: two processes held this run at a time"),
        (changed(12, identity="j"), "number 13 goes on with another sweep than the one that was begun"),
        (changed(0, trials=3), "3 trials were planned, and 2 are in the log"),
        (lambda events: [*events, events[10]], "number 20 (attempt) comes after the sweep was finished"),
        (without(16), "the sweep is finished and names no best trial"),
    ],
)
def test_each_fault_is_told_by_name(run, change, problem):
    assert check(run) == []
    rewrite(run, change)
    assert any(problem in found for found in check(run)), check(run)


def test_files_are_held_against_the_log(run):
    (run / "table.txt").write_text("tablE")
    (run / "trials" / "x" / "last" / "pass-000002" / "manifest.json").unlink()
    (run / "trials" / "y" / "last" / "pass-000001" / "manifest.json").write_text("another")
    assert sorted(check(run)) == [
        "table.txt has changed since it was written",
        "trials/x/last/pass-000002/manifest.json cannot be read (No such file or directory), and the log names it",
        "trials/y/last/pass-000001/manifest.json has changed since it was written",
    ]


def test_lines_that_were_taken_out_or_spoiled_are_missed(run):
    lines = (run / NAME).read_text().splitlines(keepends=True)
    (run / NAME).write_text("".join(lines[:3] + lines[4:]))
    assert check(run)[0] == "line 4 is number 5, not 4: lines are missing or were put in"
    (run / NAME).write_text("".join([*lines[:3], lines[3][:40] + "\n", *lines[4:]]))
    assert check(run)[0] == "line 4 cannot be read, and the sweep went on after it"


def test_a_line_that_was_cut_short_costs_nothing_but_itself(run):
    """A driver that is killed while it writes: the next one goes on in a line of its own, with the same number."""
    lines = (run / NAME).read_bytes().splitlines(keepends=True)
    events = read(run)
    for left in (1, 20, len(lines[11]) - 2):
        (run / NAME).write_bytes(b"".join(lines[:11]) + lines[11][:left])
        assert read(run) == events[:11]
        with History(run) as log:
            log.write(**{name: value for name, value in events[12].items() if name not in ("n", "t")})
        assert [event["n"] for event in read(run)] == list(range(1, 13))
        assert check(run) == []


def test_a_trial_may_go_on_under_another_name(tmp_path):
    with History(tmp_path) as log:
        log.write("begin", identity="i", host="a", pid=1, owner=1, metric="val/top1", mode="max", trials=1, gpus=0.0)
        log.write("trial", id="old", number=1, suggested={})
        log.write("attempt", id="old", attempt=1)
        log.write("pass", **make_pass(tmp_path, "old", 1, 0.5, attempt=1))
        log.write("resume", identity="i", host="b", pid=1, owner=2, metric="val/top1", mode="max", trials=1, gpus=0.0)
        log.write("trial", id="new", number=1, suggested={}, was="old")
        (tmp_path / "trials" / "old").rename(tmp_path / "trials" / "new")
        log.write("attempt", id="new", attempt=2)
        log.write("pass", **make_pass(tmp_path, "new", 2, 0.25, attempt=2))
        log.write("end", id="new", status="finished", message="", score=0.5, best_pass=1)
        log.write("best", id="new", number=1, metric="val/top1", value=0.5)
        log.write("finished", reason="")
    assert check(tmp_path) == []


def test_a_run_under_way_is_held_against_what_must_be_true_so_far(run):
    rewrite(run, lambda events: events[:12])
    assert check(run) == []
    assert check(run / "nowhere")[0].startswith(f"{run / 'nowhere'} has no {NAME}")


def test_those_who_look_on_see_every_line_once_it_is_stored(tmp_path):
    seen = []
    with History(tmp_path, see=lambda event: seen.append((event["do"], len(read(tmp_path))))) as log:
        assert log.is_new
        log.write("begin", identity="i")
        log.write("finished", reason="")
    assert seen == [("begin", 1), ("finished", 2)]


def test_a_slow_machine_is_named(tmp_path):
    with History(tmp_path) as log:
        for host, speed in (("fast", 100.0), ("quick", 120.0), ("slow", 40.0), ("new", 1.0)):
            for number in range(1 if host == "new" else 3):
                log.write("pass", id="x", **{"pass": number}, host=host, metrics={"segments_per_s": speed})
    (said,) = slow_hosts(tmp_path)
    assert said.startswith("slow is slow: 40 segments/s in the middle of its passes, the other machines 110")
