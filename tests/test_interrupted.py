"""Trainings that are told to end, or killed, in the middle of a pass; and what Tune is told of one that diverges.

Run as a program, this file trains beside its main thread, as in a process of Ray: `test_interrupted.py FOLDER`.
"""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from eegvision import checkpoint, distributed, train
from eegvision.config import RunConfig
from eegvision.train import Stopped
from eegvision.vocab import InputError
from planted import (
    CONFIG,
    Interrupted,
    assert_same_tensors,
    built,
    one_thread,  # noqa: F401
    planted,
    run,
    stop_after,
    stored,
    timeless,
    with_eeg,
)

# Everything that has a state or is random: dropout, running statistics, moments, schedule, random negatives, crops.
RANDOM = CONFIG.with_overrides(
    {
        "loss.name": "triplet",
        "eeg.dropout": 0.5,
        "optim.name": "adamw",
        "optim.weight_decay": 0.1,
        "optim.schedule": "cosine",
        "optim.warmup": 0.2,
        "data.crops": "ten",
        "train.max_passes": 3,
    }
)
N_STEPS = 4  # of a pass


def after(step: int, *, of_pass: int):
    """Ask for an end during a step; the loop asks once before each pass and before each of its steps."""
    asked = iter([False] * ((of_pass - 1) * (1 + N_STEPS) + step) + [True])
    return lambda: next(asked)


def newest(folder: Path) -> str:
    path = checkpoint.latest(folder / "last")
    assert path is not None
    return path.name


def assert_same_runs(one: Path, other: Path) -> None:
    for side in ("last", "best"):
        assert_same_tensors(stored(one, side), stored(other, side))
    first, second = (checkpoint.latest(folder / "last") for folder in (one, other))
    assert first is not None
    assert second is not None
    assert timeless(checkpoint.record(first)["history"]) == timeless(checkpoint.record(second)["history"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder, before = tmp_path_factory.mktemp("whole"), torch.get_num_threads()
    torch.set_num_threads(1)  # as in each test: sums over threads come in another order
    run(folder, RANDOM)
    torch.set_num_threads(before)
    return folder


@pytest.mark.parametrize("steps", [(1,), (2,), (4,), (1, 2)])
def test_a_run_stopped_within_a_pass_equals_one_that_was_not_bit_for_bit(tmp_path, whole, steps):
    with pytest.raises(Stopped, match=f"step {steps[0]} of pass 2"):
        run(tmp_path, RANDOM, should_stop=after(steps[0], of_pass=2))
    assert newest(tmp_path) == f"pass-000001-step-00000{steps[0]}"
    for more in steps[1:]:
        with pytest.raises(Stopped):
            run(tmp_path, RANDOM, should_stop=after(more, of_pass=1))
    reports = []
    result = run(tmp_path, RANDOM, report=reports.append)
    assert [done.number for done in reports] == [1, 2, 3]
    assert_same_runs(tmp_path, whole)
    seconds = [metrics["seconds"] for metrics in result.history]
    assert all(math.isfinite(value) and value > 0 for value in seconds)


def test_a_stop_in_the_first_pass_and_one_between_passes_lose_nothing(tmp_path, whole):
    with pytest.raises(Stopped):
        run(tmp_path, RANDOM, should_stop=after(3, of_pass=1))
    asked = []
    with pytest.raises(Stopped, match="after pass 1"):
        run(tmp_path, RANDOM, report=asked.append, should_stop=lambda: bool(asked))
    assert newest(tmp_path) == "pass-000001"
    run(tmp_path, RANDOM)
    assert_same_runs(tmp_path, whole)


class Killed(Exception):  # noqa: N818
    """As SIGKILL: nothing is stored on the way out."""


def killed_at(monkeypatch, step: int) -> list[int]:
    """Let the n-th step from now end the process; return the list of those that are taken."""
    taken: list[int] = []
    original = train.train_step

    def train_step(*args, **names):
        if len(taken) == step:
            raise Killed
        taken.append(names["index"])
        return original(*args, **names)

    monkeypatch.setattr(train, "train_step", train_step)
    return taken


def test_a_kill_costs_no_more_than_what_came_after_the_last_save(tmp_path, whole, monkeypatch):
    often = RANDOM.with_overrides({"train.save_minutes": 1e-9})  # after every step
    killed_at(monkeypatch, N_STEPS + 3)
    with pytest.raises(Killed):
        run(tmp_path, often)
    monkeypatch.undo()
    assert [path.name for path in checkpoint.by_age(tmp_path / "last")] == [
        "pass-000001", "pass-000001-step-000002", "pass-000001-step-000003",
    ]  # fmt: skip
    taken = killed_at(monkeypatch, 99)
    run(tmp_path, often)
    assert taken == [3, 0, 1, 2, 3]
    assert_same_runs(tmp_path, whole)


def test_without_a_period_only_whole_passes_are_stored(tmp_path, monkeypatch):
    killed_at(monkeypatch, N_STEPS + 3)
    with pytest.raises(Killed):
        run(tmp_path, RANDOM.with_overrides({"train.save_minutes": None}))
    assert [path.name for path in checkpoint.by_age(tmp_path / "last")] == ["pass-000001"]


def test_a_damaged_position_costs_the_steps_since_the_one_before(tmp_path, whole, monkeypatch):
    often = RANDOM.with_overrides({"train.save_minutes": 1e-9})
    killed_at(monkeypatch, N_STEPS + 3)
    with pytest.raises(Killed):
        run(tmp_path, often)
    monkeypatch.undo()
    (tmp_path / "last" / newest(tmp_path) / "optimiser.safetensors").write_bytes(b"")
    assert newest(tmp_path) == "pass-000001-step-000002"
    run(tmp_path, RANDOM)
    assert_same_runs(tmp_path, whole)


def test_how_often_to_save_does_not_make_another_run():
    assert RANDOM.with_overrides({"train.save_minutes": 1.0}).fingerprint() == RANDOM.fingerprint()
    with pytest.raises(InputError, match=r"train\.save_minutes is 0\.0; expected above 0"):
        RANDOM.with_overrides({"train.save_minutes": 0.0})


# ---- SIGTERM


def test_in_the_main_thread_the_signal_waits_for_the_position(tmp_path, whole):
    # As in a job, where the signal is an interruption (exit code 75).
    def interrupt(_number, _frame) -> None:
        raise KeyboardInterrupt

    ending, calls = distributed.Ending(), iter(range(99))

    def is_asked() -> bool:
        if next(calls) == 8:  # during the third step of pass 2
            os.kill(os.getpid(), signal.SIGTERM)
        return ending.is_asked()

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt), ending.awaited():
            run(tmp_path, RANDOM, should_stop=is_asked)
        assert signal.getsignal(signal.SIGTERM) is interrupt
    finally:
        signal.signal(signal.SIGTERM, before)
    assert newest(tmp_path) == "pass-000001-step-000003"
    run(tmp_path, RANDOM)
    assert_same_runs(tmp_path, whole)


def test_beside_the_main_thread_the_process_ends_once_the_position_is_stored(tmp_path, whole):
    command = [sys.executable, "-W", "error", __file__, str(tmp_path)]
    ended = subprocess.run(command, timeout=120, capture_output=True, text=True, check=False)
    assert ended.returncode == 1, ended.stderr
    assert newest(tmp_path) == "pass-000001-step-000003"
    run(tmp_path, RANDOM)
    assert_same_runs(tmp_path, whole)


def test_a_report_that_waits_for_its_driver_holds_nothing_back():
    ending, waits, goes_on = distributed.Ending(), threading.Event(), threading.Event()

    def report() -> None:
        waits.set()
        goes_on.wait(60)

    thread = threading.Thread(target=ending.resting, args=(report,))
    thread.start()
    waits.wait(60)
    began = time.monotonic()
    ending.hold_back()  # what happens when the process ends
    goes_on.set()
    thread.join()
    assert time.monotonic() - began < distributed.GRACE_S / 2
    assert ending.is_asked()


def be_a_process_of_ray(folder: Path) -> None:
    """Ray's handler ends the main thread; the training in the other one sends the signal in pass 2."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    calls = iter(range(99))

    def loop() -> None:
        with distributed.Ending().awaited() as ending:

            def is_asked() -> bool:
                if next(calls) == 8:
                    os.kill(os.getpid(), signal.SIGTERM)
                    while not ending.is_asked():
                        time.sleep(0.01)
                return ending.is_asked()

            run(folder, RANDOM, should_stop=is_asked)

    threading.Thread(target=loop, daemon=True).start()
    while True:
        time.sleep(0.05)


# ---- a trial that diverges


@pytest.mark.parametrize(("metric", "worst"), [("val/top1", 0.0), ("val/loss", 1e9)])
@pytest.mark.parametrize("n_good", [0, 2])
def test_tune_gets_a_finite_value_from_a_trial_that_diverges(tmp_path, monkeypatch, metric, worst, n_good):
    from eegvision import sweep, trials  # not for the process of Ray below: seconds of imports

    config = CONFIG.with_overrides({"train.metric": metric, "train.max_bad_steps": 2})
    told: list[dict[str, float]] = []
    monkeypatch.setattr(sweep.tune, "report", told.append)

    def fit_here(config: RunConfig, folder: Path, report, *, cpus: float):  # noqa: ARG001
        if n_good:
            with pytest.raises(Interrupted):
                run(folder, config, report=stop_after(n_good))
        run(folder, config, store=with_eeg(planted(), slice(0, 64), math.nan))

    monkeypatch.setattr(distributed, "fit_here", fit_here)
    sweep.run_trial(config, tmp_path, distributed.Placement())
    history = trials.history_of(tmp_path)
    assert len(history) == n_good
    best = min if metric == "val/loss" else max
    assert [(done["pass"], done["objective"]) for done in told] == [
        (n_good, best((metrics[metric] for metrics in history), default=worst))
    ]
    assert math.isfinite(told[0]["objective"])
    end = json.loads((tmp_path / "end.json").read_text())
    assert end["status"] == "diverged"
    assert f"pass {n_good + 1}, step 2: loss nan" in end["message"]
    assert "segments with values that are not finite: seg-" in end["message"]


def test_only_what_is_not_finite_is_named_where_it_is_known(tmp_path):
    store = with_eeg(planted(), slice(0, 64), 1.0)
    store = with_eeg(store, [3, 40], math.nan)
    config = CONFIG.with_overrides({"train.max_bad_steps": 1, "train.batch_size": 64})
    with pytest.raises(train.TrainingDiverged) as told:
        run(tmp_path, config, store=store, model=built(config))
    named = str(told.value).partition("not finite: ")[2].partition(". Lower")[0].split(", ")
    assert sorted(named) == ["seg-3", "seg-40"]


if __name__ == "__main__":
    be_a_process_of_ray(Path(sys.argv[1]))
