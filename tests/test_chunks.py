"""eegvision.fanout.compute in one process: a file per chunk, whole or not there; a call goes on where one ended."""

import errno
import json
import os
import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_equal

from eegvision.fanout import Chunk, Results, compute, results
from eegvision.fanout.chunks import Failed, Worker, Written
from eegvision.vocab import InputError, RunInUseError, TryAgainError

pytestmark = pytest.mark.usefixtures("without_ray")

IDENTITY = {"analysis": "squares", "settings": {"scales": [3, 5]}}
CHUNKS = [Chunk(key=f"n{number:02}", item=number, size=number + 1) for number in range(6)]

Function = Callable[[int], Mapping[str, np.ndarray]]


def squares(number: int) -> dict[str, np.ndarray]:
    """Arrays of every kind, names that np.savez would refuse among them."""
    return {
        "square": np.float32(number) ** 2 + np.zeros((2, 3), np.float32),
        "file": np.array(["röntgen", f"{number}"]),
        "empty": np.zeros((0, 4), np.int16),
        "turned": np.arange(6).reshape(2, 3).T,
    }


def run(folder: Path, function: Function = squares, say: Callable[[str], Any] = str, **changed: Any) -> Results:
    given: dict[str, Any] = {"chunks": CHUNKS, "identity": IDENTITY, "unit": "picture"} | changed
    return compute(lambda: function, given.pop("chunks"), folder, say=say, **given)


def counting(seen: list[int], number: int) -> dict[str, np.ndarray]:
    seen.append(number)
    return squares(number)


def test_what_the_function_returned_is_read_again(tmp_path):
    done = run(tmp_path / "a")
    assert done == results(tmp_path / "a")
    assert (done.keys, done.missing) == (tuple(chunk.key for chunk in CHUNKS), ())
    for chunk in CHUNKS:
        found, expected = done.read(chunk.key), squares(chunk.item)
        assert found.keys() == expected.keys()
        for name in found:
            assert found[name].dtype == expected[name].dtype
            np.testing.assert_array_equal(found[name], expected[name], strict=True)


def test_files_depend_on_nothing_but_the_chunk(tmp_path):
    run(tmp_path / "a")
    run(tmp_path / "b", chunks=CHUNKS[::-1])
    for chunk in CHUNKS:
        name = f"chunks/{chunk.key}.npz"
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("last", [0, 2, 5])
def test_an_interrupted_call_keeps_what_is_finished_and_the_next_does_the_rest(tmp_path, last):
    def interrupted(number: int) -> dict[str, np.ndarray]:
        if number == last:
            raise KeyboardInterrupt
        return squares(number)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, interrupted)
    assert results(tmp_path).keys == tuple(chunk.key for chunk in CHUNKS[:last])
    assert results(tmp_path).missing == tuple(chunk.key for chunk in CHUNKS[last:])
    seen: list[int] = []
    lines: list[str] = []
    assert run(tmp_path, partial(counting, seen), lines.append).missing == ()
    assert seen == list(range(last, 6))
    n_before = sum(chunk.size for chunk in CHUNKS[:last])
    assert lines[0].endswith(f"{n_before} of 21 pictures were finished") == (last > 0)


def test_finished_work_needs_no_model(tmp_path):
    run(tmp_path)
    lines: list[str] = []
    refused: Any = None  # calling it would raise
    compute(refused, CHUNKS, tmp_path, identity=IDENTITY, unit="picture", say=lines.append)
    assert lines == [f"21 pictures were finished before: {tmp_path}"]


@pytest.mark.parametrize("n_lost", [1, 10])
def test_a_crash_between_file_and_line_or_within_a_line_costs_that_chunk_alone(tmp_path, n_lost):
    run(tmp_path)
    manifest = tmp_path / "manifest.jsonl"
    whole = manifest.read_text()
    manifest.write_text(whole[:-n_lost])  # the last line broken off
    (tmp_path / "chunks" / ".n03.0123.part").write_bytes(b"PK")
    assert results(tmp_path).missing == ("n05",)
    seen: list[int] = []
    run(tmp_path, partial(counting, seen))
    assert seen == [5]
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert [line["key"] for line in lines[1:]] == [chunk.key for chunk in CHUNKS]
    assert lines[:6] == [json.loads(line) for line in whole.splitlines()[:6]]
    assert sorted(path.name for path in (tmp_path / "chunks").iterdir()) == [f"{chunk.key}.npz" for chunk in CHUNKS]


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
def test_a_file_that_is_gone_or_cut_off_is_made_again(tmp_path, damage):
    before = run(tmp_path)
    damage(tmp_path / "chunks" / "n02.npz")
    assert results(tmp_path).missing == ("n02",)
    seen: list[int] = []
    assert run(tmp_path, partial(counting, seen)) == before
    assert seen == [2]


def test_a_changed_byte_is_noticed_when_the_chunk_is_read(tmp_path):
    done = run(tmp_path)
    path = tmp_path / "chunks" / "n04.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"{path} is damaged.*remove it"):
        done.read("n04")
    done.read("n03")
    path.unlink()
    run(tmp_path).read("n04")


def test_the_next_chunk_is_computed_while_a_file_is_flushed_and_a_third_waits(tmp_path, monkeypatch):
    flushing, disk, flush = threading.Event(), threading.Event(), os.fsync

    def slow(descriptor: int) -> None:
        flushing.set()
        assert disk.wait(30)
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    (tmp_path / "chunks").mkdir()
    worker = Worker(lambda: squares, [(chunk.key, chunk.item) for chunk in CHUNKS], tmp_path)
    assert worker.begin() is None
    with ThreadPoolExecutor(1) as writes, ThreadPoolExecutor(1) as computes:
        worker.compute(4)
        first = writes.submit(worker.write, 4)
        assert flushing.wait(30)
        worker.compute(2)
        third = computes.submit(worker.compute, 1)
        begun: list[Future[Any]] = [first, third]
        assert not wait(begun, timeout=0.2).done
        disk.set()
        answers = [first.result(), *(writes.submit(worker.write, number).result() for number in (2, 1))]
    for number, answer in zip((4, 2, 1), answers, strict=True):
        assert isinstance(answer, Written)
        with np.load(tmp_path / "chunks" / answer.part) as arrays:
            assert_equal(dict(arrays), squares(number))


def test_what_ends_a_process_ends_the_waiting_for_its_chunk(tmp_path):
    def interrupted(number: int) -> dict[str, np.ndarray]:  # noqa: ARG001
        raise KeyboardInterrupt

    (tmp_path / "chunks").mkdir()
    worker = Worker(lambda: interrupted, [("a", 0)], tmp_path)
    worker.begin()
    with pytest.raises(KeyboardInterrupt):
        worker.compute(0)
    assert worker.write(0) == Failed(reason="KeyboardInterrupt", whose="process")


def test_reading_what_is_not_there_says_what_to_run(tmp_path):
    with pytest.raises(InputError, match="holds no results"):
        results(tmp_path)
    done = run(tmp_path)
    with pytest.raises(InputError, match=r"'n99' .* is not finished"):
        done.read("n99")


def test_an_exception_sets_its_chunk_aside_and_the_next_call_tries_it_again(tmp_path):
    def refuses(number: int) -> dict[str, np.ndarray]:
        if number in (1, 4):
            raise ValueError(f"no picture\nnumber {number}")
        return squares(number)

    lines: list[str] = []
    expected = (
        r"^2 of 6 chunks could not be computed "
        r"\('n01': ValueError: no picture / number 1 \(test_chunks.py, line \d+\); "
        rf"'n04': .*\); all others are finished in {tmp_path}, and the same command tries these again$"
    )
    with pytest.raises(RuntimeError, match=expected):
        run(tmp_path, refuses, lines.append)
    assert sum("is set aside" in line for line in lines) == 2
    assert results(tmp_path).missing == ("n01", "n04")
    seen: list[int] = []
    assert run(tmp_path, partial(counting, seen)).missing == ()
    assert seen == [1, 4]


def test_of_many_chunks_set_aside_a_few_are_told(tmp_path):
    def refuses(number: int) -> dict[str, np.ndarray]:
        raise ValueError(number)

    lines: list[str] = []
    with pytest.raises(RuntimeError, match=r"6 of 6 chunks .*; and 3 more"):
        run(tmp_path, refuses, lines.append)
    assert sum("is set aside" in line for line in lines) == 3


def test_objects_are_no_arrays(tmp_path):
    with pytest.raises(RuntimeError, match="ValueError: Object arrays cannot be saved"):
        run(tmp_path, lambda number: {"a": np.array([number, None])})
    assert list((tmp_path / "chunks").iterdir()) == []


def test_bad_input_stops_at_once_with_its_message(tmp_path):
    def refuses(number: int) -> dict[str, np.ndarray]:
        if number == 2:
            raise InputError("picture 2 is bad; mend it")
        return squares(number)

    with pytest.raises(InputError, match=r"^picture 2 is bad; mend it$"):
        run(tmp_path, refuses)
    assert results(tmp_path).keys == ("n00", "n01")


def test_a_model_that_cannot_be_loaded_is_an_error_as_it_is(tmp_path):
    def prepare() -> Function:
        raise InputError("no checkpoint; train one")

    with pytest.raises(InputError, match=r"^no checkpoint; train one$"):
        compute(prepare, CHUNKS, tmp_path, identity=IDENTITY, unit="picture", say=print)


def test_a_folder_holds_one_thing(tmp_path):
    run(tmp_path)
    other = {"analysis": "squares", "settings": {"scales": [3, 9]}, "seed": None}
    message = r"\(seed was not given, now None; settings\.scales was \[3, 5\], now \[3, 9\]\); give these a folder"
    with pytest.raises(InputError, match=message):
        run(tmp_path, identity=other)
    with pytest.raises(InputError, match=r"cut into other chunks \(6, now 5; 'n05' is in one only\)"):
        run(tmp_path, chunks=CHUNKS[:5])
    assert run(tmp_path, identity={"settings": {"scales": (3, 5)}, "analysis": "squares"}).missing == ()


def test_a_folder_whose_first_line_is_damaged_is_refused(tmp_path):
    run(tmp_path)
    (tmp_path / "manifest.jsonl").write_text("{\n")
    with pytest.raises(InputError, match=r"manifest\.jsonl is damaged in its first line; remove"):
        run(tmp_path)


def test_one_call_at_a_time_computes_into_a_folder(tmp_path):
    def nested(number: int) -> dict[str, np.ndarray]:
        with pytest.raises(RunInUseError, match="is being run by another process"):
            run(tmp_path)
        return squares(number)

    assert run(tmp_path, nested).missing == ()


def test_a_full_disk_is_told_and_costs_nothing_that_is_finished(tmp_path, monkeypatch):
    flush, n_calls = os.fsync, 0

    def full(handle: int) -> None:
        nonlocal n_calls
        if Path(f"/proc/self/fd/{handle}").readlink().parent.name == "chunks":
            n_calls += 1
            if n_calls == 4:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TryAgainError, match=rf"no space is left for {tmp_path} .* give the same command again"):
        run(tmp_path)
    assert results(tmp_path).keys == ("n00", "n01", "n02")
    assert len(list((tmp_path / "chunks").iterdir())) == 3
    assert run(tmp_path).missing == ()


def test_the_lines_tell_clock_bar_count_and_rate(tmp_path, monkeypatch):
    now = 0.0

    def slow(number: int) -> dict[str, np.ndarray]:
        nonlocal now
        now += 40.0
        return squares(number)

    monkeypatch.setattr("time.monotonic", lambda: now)
    lines: list[str] = []
    run(tmp_path, slow, lines.append)
    assert lines[0] == "loading the model ..."
    assert lines[1] == "[00:40] |#-------------------| 1 of 21 pictures, 0.025 pictures/s, about 13 min left"
    assert lines[3] == "[02:00] |######--------------| 6 of 21 pictures, 0.05 pictures/s, about 5 min left"
    assert lines[-2].startswith("[04:00] |####################| 21 of 21 pictures, ")
    assert lines[-1] == f"21 pictures in 04:00: {tmp_path}"
    assert not any(re.search(r"[\r\x1b]", line) for line in lines)
