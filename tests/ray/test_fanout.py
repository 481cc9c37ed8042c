"""eegvision.fanout on a local Ray: every item once, lost processes made good, errors as they are, nothing left over."""

import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import ray

from eegvision import fanout
from eegvision.ingest import assemble, shards, simulate
from eegvision.vocab import InputError

pytestmark = pytest.mark.usefixtures("ray_local")


def square(number: int) -> int:
    return number * number


def once_killed(number: int, folder: Path) -> int:
    """Ends its process the first time it is called with 3."""
    mark = folder / f"called-{number}"
    if number == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def always_killed(number: int) -> int:
    """Ends its process whenever it is called with 3."""
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def refuses(number: int, folder: Path) -> int:
    if number == 2:
        raise InputError("item 2 is bad; mend it")
    time.sleep(0.2)
    (folder / f"done-{number}").touch()
    return number


def test_every_item_is_worked_on_once():
    assert sorted(fanout.spread(square, range(20))) == [n * n for n in range(20)]
    assert list(fanout.spread(square, [])) == []


def test_an_item_whose_process_is_lost_is_done_again(tmp_path):
    assert sorted(fanout.spread(partial(once_killed, folder=tmp_path), range(6))) == list(range(6))
    assert (tmp_path / "called-3").exists()


def test_an_item_whose_process_is_lost_every_time_does_not_stop_the_others():
    found = list(fanout.spread(always_killed, range(6), lost=lambda number, reason: f"{number} {reason}"))
    lost = [text for text in found if isinstance(text, str)]
    assert sorted(number for number in found if isinstance(number, int)) == [0, 1, 2, 4, 5]
    assert lost == ["3 killed: its process was ended from outside, or crashed"]
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        list(fanout.spread(always_killed, [3]))


def test_bad_input_ends_the_rest_and_arrives_as_it_is(tmp_path):
    with pytest.raises(InputError, match=r"^item 2 is bad; mend it$") as caught:
        list(fanout.spread(partial(refuses, folder=tmp_path), range(50)))
    assert type(caught.value) is InputError
    time.sleep(1.0)
    assert len(list(tmp_path.iterdir())) < 20


def test_an_item_larger_than_the_machine_still_gets_its_try():
    assert list(fanout.spread(square, [3], peak_bytes=lambda _: 1 << 50)) == [9]


def test_parts_read_by_several_processes_make_the_same_data_set(tmp_path, tiny_dataset):
    recording = simulate.simulate(simulate.PRESETS["tiny"], "tiny")
    manifest = assemble.write(tmp_path / "d", recording, each=fanout.spread, rows_per_shard=100)
    assert manifest == shards.read_manifest(tiny_dataset)


def test_progress_tells_rate_and_time_left_of_what_this_call_did(monkeypatch):
    clock = iter([0.0, 1.0, 10.0, 100.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    lines: list[str] = []
    progress = fanout.Progress(1000, "segment", lines.append, before=500)
    progress.at(550)  # too early to say anything
    progress.at(600, also=" (3 of 8 parts)")
    progress.at(1000)
    assert lines == [
        "[00:10] |############--------| 600 of 1,000 segments (3 of 8 parts), 10 segments/s, about 40 s left",
        "[01:40] |####################| 1,000 of 1,000 segments, 5 segments/s",
    ]
