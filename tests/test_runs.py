"""eegvision.runs: one owner at a time, one meaning per name."""

import multiprocessing
import stat

import pytest

from eegvision.runs import claim, named_folder, sole_owner
from eegvision.vocab import InputError, RunInUseError


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


def test_a_name_keeps_its_first_meaning(tmp_path):
    claim(tmp_path, {"trials": 4, "dataset": "abc"})
    claim(tmp_path, {"dataset": "abc", "trials": 4})
    with pytest.raises(RunInUseError, match=r"dataset was 'abc', now 'xyz'.*another --name"):
        claim(tmp_path, {"trials": 4, "dataset": "xyz"})
