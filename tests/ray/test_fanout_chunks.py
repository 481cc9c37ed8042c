"""eegvision.fanout.compute over Ray: the same files whatever the number of workers and whichever of them are lost."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eegvision.fanout import Chunk, Results, compute, results
from eegvision.vocab import InputError

CHUNKS = [Chunk(key=f"n{number:02}", item=number, size=2) for number in range(12)]

Prepare = Callable[[], Callable[[int], dict[str, np.ndarray]]]


def load(folder: Path, behave: Callable[[Path, int], None] | None = None) -> Callable[[int], dict[str, np.ndarray]]:
    """Leave a mark for every model that is loaded, and return the function that leaves one for every call."""
    (folder / f"loaded-{os.getpid()}").touch()

    def work(number: int) -> dict[str, np.ndarray]:
        with (folder / f"called-{number}").open("a") as file:
            file.write(f"{os.getpid()}\n")
        if behave is not None:
            behave(folder, number)
        return {"noise": np.random.default_rng(number).normal(size=(50, number))}

    return work


def n_calls(folder: Path, number: int) -> int:
    return len((folder / f"called-{number}").read_text().splitlines())


def takes_its_time(folder: Path, number: int) -> None:  # noqa: ARG001
    signal.sigtimedwait([], 0.7)


class AcceleratorError(RuntimeError):
    """By this name torch reports that CUDA is of no use any more in a process."""


def is_lost_once(folder: Path, number: int) -> None:
    if number == 5 and n_calls(folder, number) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 8 and n_calls(folder, number) == 1:
        raise AcceleratorError("CUDA error: an illegal memory access was encountered")


def is_bad_at_times(folder: Path, number: int) -> None:  # noqa: ARG001
    if number == 1:
        raise ValueError("odd")
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)


def breaks_the_gpu(folder: Path, number: int) -> None:
    if number == 8:
        raise AcceleratorError("CUDA error: an illegal memory access was encountered")
    if number == 9:
        takes_its_time(folder, number)


def refuses(folder: Path, number: int) -> None:  # noqa: ARG001
    if number == 4:
        raise InputError("picture 4 is bad; mend it")


def run(
    prepare: Prepare, folder: Path, say: Callable[[str], Any] = str, cpus: float = 1.0, gpus: float = 0.0
) -> Results:
    return compute(prepare, CHUNKS, folder, identity={}, unit="picture", say=say, cpus=cpus, gpus=gpus)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "chunks").iterdir()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files that one process without Ray makes."""
    marks, folder = tmp_path_factory.mktemp("marks"), tmp_path_factory.mktemp("alone")
    other = multiprocessing.get_context("spawn").Process(target=run, args=(partial(load, marks), folder))
    other.start()
    other.join()
    assert len(list(marks.glob("loaded-*"))) == 1
    made = contents(folder)
    assert len(made) == len(CHUNKS)
    return made


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    (tmp_path / "marks").mkdir()
    return tmp_path / "marks"


pytestmark = pytest.mark.usefixtures("ray_local")


@pytest.mark.parametrize(("cpus", "n_workers"), [(2.0, 1), (0.5, 4)])
def test_any_number_of_workers_makes_the_same_files_and_each_loads_once(tmp_path, marks, alone, cpus, n_workers):
    done = run(partial(load, marks), tmp_path / "out", cpus=cpus)
    assert done.missing == ()
    assert contents(tmp_path / "out") == alone
    assert 1 <= len(list(marks.glob("loaded-*"))) <= n_workers
    assert all(n_calls(marks, chunk.item) == 1 for chunk in CHUNKS)
    assert done.read("n07")["noise"].shape == (50, 7)


def test_a_lost_worker_costs_the_chunk_it_was_at(tmp_path, marks, alone):
    lines: list[str] = []
    run(partial(load, marks, is_lost_once), tmp_path / "out", lines.append)
    assert contents(tmp_path / "out") == alone
    workers = {chunk.item: (marks / f"called-{chunk.item}").read_text().split() for chunk in CHUNKS}
    lost = {workers[5][0]: 5, workers[8][0]: 8}
    # A worker has two chunks at most: one whose answer was on its way when it ended, or that it had just begun, is done
    # again as well; nothing that another worker did is.
    again = [(number, pids[0]) for number, pids in workers.items() if len(pids) > 1]
    assert {pid for _, pid in again} == lost.keys()
    for pid, number in lost.items():
        own = [one for one, first in again if first == pid]
        assert number in own
        assert len(own) <= 2
        assert all(workers[one][1] != pid for one in own), "another process did it"
    assert max(len(pids) for pids in workers.values()) <= 3
    told = [line for line in lines if "was lost" in line]
    for pid, number in lost.items():
        if number == 5:  # killed: which of its two chunks it was at, nobody can tell
            own = "|".join(f"n{one:02}" for one, first in again if first == pid)
            why = "The actor is dead because its worker"
        else:  # it said itself at which
            own, why = f"n{number:02}", "AcceleratorError: CUDA error: an illegal"
        pattern = rf"a worker was lost at chunk '({own})', others go on \({why}"
        assert any(re.match(pattern, line) for line in told), (pattern, told)


def test_bad_chunks_are_set_aside_and_the_rest_is_done(tmp_path, marks, alone):
    with pytest.raises(RuntimeError, match=r"^2 of 12 chunks could not be computed") as caught:
        run(partial(load, marks, is_bad_at_times), tmp_path / "out")
    assert "'n01': ValueError: odd (test_fanout_chunks.py, line " in str(caught.value)
    assert "'n03': its process ended 3 times, the last time: The actor is dead because" in str(caught.value)
    assert n_calls(marks, 1) == 1
    # Once or so the end of its process may be put down to the chunk before it, whose answer was still on its way.
    assert 3 <= n_calls(marks, 3) <= 5
    assert results(tmp_path / "out").missing == ("n01", "n03")
    run(partial(load, marks), tmp_path / "out")
    assert contents(tmp_path / "out") == alone


def test_a_chunk_that_breaks_the_gpu_is_blamed_itself_and_not_what_is_computed_when_it_is_told(tmp_path, marks):
    lines: list[str] = []
    with pytest.raises(RuntimeError, match=r"^1 of 12 chunks could not be computed \('n08': its process ended 3 times"):
        run(partial(load, marks, breaks_the_gpu), tmp_path / "out", lines.append, cpus=2.0)
    told = [line for line in lines if "was lost" in line]
    assert len(told) == 3
    assert all("at chunk 'n08', others go on (AcceleratorError: CUDA error" in line for line in told)
    assert n_calls(marks, 8) == 3


def test_bad_input_stops_at_once_and_finished_chunks_stay(tmp_path, marks):
    with pytest.raises(InputError, match=r"^picture 4 is bad; mend it$"):
        run(partial(load, marks, refuses), tmp_path / "out", cpus=2.0)
    assert results(tmp_path / "out").keys == ("n00", "n01", "n02", "n03")


def test_interrupted_while_it_speaks_the_same_call_goes_on(tmp_path, marks, alone):
    def interrupt(line: str) -> None:
        if found := re.fullmatch(r"\[\d\d:\d\d\] \|#+-+\| (\d+) of 24 pictures, [12] workers?, .* left", line):
            n_units.append(int(found[1]))
            raise KeyboardInterrupt

    n_units: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        run(partial(load, marks, takes_its_time), tmp_path / "out", interrupt)
    assert [2 * len(results(tmp_path / "out").keys)] == n_units
    lines: list[str] = []
    run(partial(load, marks), tmp_path / "out", lines.append)
    assert lines[0].startswith(f"going on in {tmp_path / 'out'}: {n_units[0]} of 24 pictures were finished")
    assert contents(tmp_path / "out") == alone


def no_model() -> Any:
    raise InputError("no checkpoint; train one")


def broken_model() -> Any:
    raise OSError("weights cut off")


def test_workers_that_cannot_start_end_it(tmp_path):
    with pytest.raises(InputError, match=r"^no checkpoint; train one$"):
        run(no_model, tmp_path / "a")
    with pytest.raises(RuntimeError, match=r"no worker could start, in 3 attempts: OSError: weights cut off"):
        run(broken_model, tmp_path / "b")


def test_without_room_it_waits_and_says_for_what(tmp_path, marks):
    lines: list[str] = []

    def interrupt(line: str) -> None:
        lines.append(line)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(partial(load, marks), tmp_path / "out", interrupt, cpus=0.5, gpus=1.0)
    assert lines[0].endswith("waiting: no machine of the cluster has 0.5 CPUs and 1 GPUs, which a worker needs")


NODES = """
import json, sys
from functools import partial
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
sys.path.insert(0, sys.argv[2])
import test_fanout_chunks as here

out, marks = Path(sys.argv[1]), Path(sys.argv[3])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
nodes = []

def say(line):
    # The cluster changes when the line tells that it is the moment: no machine for workers, then one, then another.
    lines.append(line)
    if "no machine of the cluster" in line and not nodes:
        nodes.append(cluster.add_node(num_cpus=2))
    elif " of 24 pictures, " in line and len(nodes) == 1:
        cluster.remove_node(nodes[0])
        nodes.append(cluster.add_node(num_cpus=1))

lines = []
here.run(partial(here.load, marks, here.takes_its_time), out, say)
print(json.dumps(lines), flush=True)
# In this order: a driver that sees its raylet end first ends itself, with 1 and without a word.
ray.shutdown()
cluster.shutdown()
"""


def test_machines_may_come_and_go(tmp_path, marks, alone):
    argv = [sys.executable, "-c", NODES, str(tmp_path / "out"), str(Path(__file__).parent), str(marks)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = kept | {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(argv, env=environment, check=False, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    lines = json.loads(done.stdout.splitlines()[-1])
    assert contents(tmp_path / "out") == alone
    assert any("no machine of the cluster has 1 CPUs" in line for line in lines), lines
    assert any("was lost" in line for line in lines), lines
