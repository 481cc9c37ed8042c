"""eegvision.sweep and eegvision.watching: what is recorded of trials, beside Ray; whole sweeps run in tests/ray."""

import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eegvision import checkpoint, history, watching
from eegvision.config import RunConfig, SweepConfig
from eegvision.history import History
from eegvision.study import _p_of_sweep
from eegvision.sweep import _Limiter, _new_tuner, _newest_state
from eegvision.tracking import Tracker
from eegvision.trials import TrialRow, read_trial, write_end
from eegvision.vocab import TryAgainError
from eegvision.watching import Watching

Open = Callable[..., Watching]


@pytest.fixture
def folder(tmp_path) -> Path:
    """A sweep's folder with two trials begun; the driver was killed while it wrote down the second."""
    for number, trial in enumerate(("aaaa", "bbbb"), 1):
        (tmp_path / "killed" / "trials" / trial).mkdir(parents=True)
        content = json.dumps({"number": number, "suggested": {"optim.lr": number / 100}})
        (tmp_path / "killed" / "trials" / trial / "trial.json").write_text(content)
    return tmp_path / "killed"


@pytest.fixture
def said() -> list[str]:
    """The lines a person reads."""
    return []


@pytest.fixture
def begin(folder, tmp_path, said) -> Iterator[Open]:
    """Make drivers that watch the folder, one after the other; nothing listens at the tracker's address."""
    opened: list[Any] = []

    def start(sweep: SweepConfig | None = None) -> Watching:
        while opened:
            opened.pop()()
        tracker = Tracker(tmp_path / "spool", "lost", "http://127.0.0.1:9")
        log = History(folder).__enter__()
        opened.append(lambda: (log.__exit__(), tracker.close(timeout_s=0.1)))
        tracker.start(folder.name, name=folder.name)
        log.write(
            "begin" if log.is_new else "resume", identity="i", host="a", pid=1, owner=1 + len(history.read(folder)),
            metric="val/top1", mode="max", trials=2, gpus=0.0,
        )  # fmt: skip
        return Watching(
            base=RunConfig(), sweep=sweep or SweepConfig(trials=2), folder=folder, tracker=tracker, log=log,
            chance=None, say=said.append,
        )  # fmt: skip

    yield start
    while opened:
        opened.pop()()


def store(folder: Path, trial: str, scores: list[float], attempt: int = 1) -> dict[str, Any]:
    """Leave a trial's checkpoint of its last pass, and return what is reported of that."""
    made = [{"val/top1": score, "seconds": 1800.0, "segments_per_s": 50.0} for score in scores]
    own = folder / "trials" / trial
    path = checkpoint.save(own / "last", f"pass-{len(made):06d}", {}, {"history": made})
    (own / "attempts").mkdir(exist_ok=True)
    (own / "attempts" / f"{attempt:06d}").touch()
    return {
        "pass": len(made), "objective": max(scores), **made[-1], "attempt": attempt, "host": "a", "pid": 100 + attempt,
        "checkpoint": str(path.relative_to(own)), "checkpoint_sha256": checkpoint.digest(path),
    }  # fmt: skip


def events(folder: Path, do: str) -> list[history.Event]:
    return [event for event in history.read(folder) if event["do"] == do]


@pytest.mark.parametrize("is_tracked", [True, False])
def test_a_trial_lost_with_its_driver_is_removed_whether_or_not_the_tracker_heard_of_it(
    folder, begin, tmp_path, is_tracked
):
    live = begin()
    live.expect({"aaaa"})
    live.started("aaaa", {"optim.lr": 0.01})
    if is_tracked:
        live.tracker.start("killed/bbbb", name="killed/bbbb")
    live.reported("aaaa", store(folder, "aaaa", [0.5]))
    live.ended("aaaa")
    live.close([read_trial(folder / "trials" / "aaaa", RunConfig())])
    live.tracker.close(timeout_s=0.1)
    ends = [json.loads(line) for line in (tmp_path / "spool" / "events.jsonl").read_text().splitlines()]
    assert [path.name for path in (folder / "trials").iterdir()] == ["aaaa"]
    finished = {event["key"]: event["status"] for event in ends if event["do"] == "finish"}
    assert finished == {"killed/aaaa": "FINISHED"} | ({"killed/bbbb": "KILLED"} if is_tracked else {})


def test_a_trial_ray_has_forgotten_goes_on_in_the_next_one_with_the_same_settings(folder, begin, tmp_path):
    live = begin()
    live.expect({"aaaa", "bbbb"})
    live.started("bbbb", {"optim.lr": 0.02})
    live.reported("bbbb", store(folder, "bbbb", [0.25]))
    live = begin()  # the driver was killed, and Ray's state lost
    assert live.waiting() == [{"optim.lr": 0.01}, {"optim.lr": 0.02}]
    live.started("cccc", {"optim.lr": 0.02})
    live.reported("cccc", store(folder, "cccc", [0.25, 0.5], attempt=2))
    live.ended("cccc")
    assert not (folder / "trials" / "bbbb").exists()
    row = read_trial(folder / "trials" / "cccc", RunConfig())
    assert (row.number, row.passes, row.attempts, row.status) == (2, 2, 2, "stopped early")
    assert history.check(folder) == []
    assert live.known == {"cccc"}
    live.tracker.close(timeout_s=0.1)
    tracked = [json.loads(line) for line in (tmp_path / "spool" / "events.jsonl").read_text().splitlines()]
    ends = {event["key"]: event["status"] for event in tracked if event["do"] == "finish"}
    assert ends == {"killed/bbbb": "KILLED", "killed/cccc": "FINISHED"}


def test_a_rename_that_was_cut_short_is_made_good(folder, begin):
    live = begin()
    live.expect({"aaaa", "bbbb"})
    live.started("bbbb", {"optim.lr": 0.02})
    live.log.write("trial", id="cccc", number=2, suggested={"optim.lr": 0.02}, was="bbbb")  # and then it was killed
    live = begin()
    assert live.known | {"aaaa", "cccc"} == {"aaaa", "cccc"}
    assert (folder / "trials" / "cccc" / "trial.json").exists()
    live.expect({"cccc"})
    live.started("cccc", {"optim.lr": 0.02})
    assert [event["attempt"] for event in events(folder, "attempt")] == [1, 2]
    assert history.check(folder) == []


def test_passes_made_while_no_driver_listened_are_logged_from_the_checkpoint(folder, begin):
    live = begin()
    live.started("aaaa", {"optim.lr": 0.01})
    live.reported("aaaa", store(folder, "aaaa", [0.5]))
    live = begin()
    live.expect({"aaaa"})
    live.started("aaaa", {"optim.lr": 0.01})
    live.reported("aaaa", store(folder, "aaaa", [0.5, 0.25, 0.75], attempt=2))
    for late in ([1.0], [1.0, 0.0]):  # reports that came too late: the trial was stopped
        store(folder, "aaaa", [0.5, 0.25, 0.75, *late], attempt=2)
    live.ended("aaaa")
    assert [event["pass"] for event in events(folder, "pass")] == [1, 2, 3, 4, 5]
    (end,) = events(folder, "end")
    assert (end["score"], end["best_pass"], end["status"]) == (1.0, 4, "stopped early")
    assert history.check(folder) == []


@pytest.mark.parametrize(("n_passes", "status"), [(99, "stopped early"), (100, "finished")])
def test_a_trial_that_made_all_its_passes_was_not_stopped_early(n_passes, status, folder, begin):
    """Tune's scheduler holds trials against each other after their last pass too."""
    live = begin()
    live.started("aaaa", {"optim.lr": 0.01})
    live.reported("aaaa", store(folder, "aaaa", [0.5] * n_passes))
    live.ended("aaaa")
    assert read_trial(folder / "trials" / "aaaa", RunConfig()).status == status
    assert history.check(folder) == []


def test_a_lost_attempt_is_told_and_only_the_last_one_ends_the_trial(folder, begin, said):
    live = begin()
    live.started("aaaa", {"optim.lr": 0.01})
    live.lost("aaaa", "killed: its process was ended", is_final=False)
    live.started("aaaa", {"optim.lr": 0.01})
    live.lost("aaaa", "oom host: the machine ran out of memory", is_final=True)
    row = read_trial(folder / "trials" / "aaaa", RunConfig())
    assert (row.status, row.message) == ("failed", "oom host: the machine ran out of memory")
    assert said[0] == "trial 1 was lost and goes on from its checkpoint (killed: its process was ended)"
    live = begin()  # after an interruption it is tried again
    live.started("aaaa", {"optim.lr": 0.01})
    assert not (folder / "trials" / "aaaa" / "end.json").exists()
    assert history.check(folder) == []


def test_a_full_disk_ends_no_trial_but_the_sweep(folder, begin):
    live = begin()
    live.started("aaaa", {"optim.lr": 0.01})
    live.lost("aaaa", "storage: No space left on device", is_final=True)
    assert isinstance(live.fault, TryAgainError)
    assert "trial 1 could not store its work: No space left" in str(live.fault)
    assert not (folder / "trials" / "aaaa" / "end.json").exists()


def test_a_trial_ends_after_the_pass_that_uses_up_its_time(folder, begin):
    live = begin(SweepConfig(trials=2, trial_hours=0.9))
    live.started("aaaa", {"optim.lr": 0.01})
    first, second = store(folder, "aaaa", [0.5]), store(folder, "aaaa", [0.5, 0.25])
    assert not live.is_over("aaaa", first)
    live.reported("aaaa", first)
    assert not live.is_over("aaaa", first)  # reported again after an interruption
    assert live.is_over("aaaa", second)
    live.reported("aaaa", second)
    live.ended("aaaa")
    row = read_trial(folder / "trials" / "aaaa", RunConfig())
    assert (row.status, row.best_pass, row.message) == ("out of time", 1, "it trained for 1 h (--trial-hours)")


def test_settings_and_best_metrics_are_tracked_when_a_trial_ends_and_not_again_at_the_end(folder, begin, tmp_path):
    live = begin()
    live.expect({"aaaa"})
    live.started("aaaa", {"optim.lr": 0.01})
    live.reported("aaaa", store(folder, "aaaa", [0.5, 0.25]))
    live.ended("aaaa")

    def tracked() -> list[dict[str, Any]]:
        lines = (tmp_path / "spool" / "events.jsonl").read_text().splitlines()
        return [event for line in lines if (event := json.loads(line))["key"] == "killed/aaaa"]

    metrics, settings, end = tracked()[-3:]
    assert (metrics["step"], metrics["values"]) == (1, {"best/top1": 0.5})
    assert (settings["file"], json.loads(settings["text"])["optim"]["lr"]) == ("config.json", 0.01)
    assert (end["do"], end["status"], end["tags"]) == ("finish", "FINISHED", {"eegvision.status": "stopped early"})
    before = tracked()
    live.close([read_trial(folder / "trials" / "aaaa", RunConfig())])
    assert tracked() == before


def test_the_outcome_of_a_trial_is_read_without_its_model(folder):
    own = folder / "trials" / "aaaa"
    made = [{"val/top1": 0.25, "seconds": 1.0}]
    path = checkpoint.save(own / "last", "pass-000001", {"model": {"weight": torch.ones(3)}}, {"history": made})
    (path / "model.safetensors").unlink()
    write_end(own, "finished")
    row = read_trial(own, RunConfig())
    assert (row.passes, row.best_pass, row.metrics) == (1, 1, made[0])


@pytest.mark.parametrize("name", ["info_nce", "eeg-classes"])
def test_p_values_of_a_sweep_come_from_what_its_trials_answered(tmp_path, name):
    config = RunConfig().with_overrides({"loss.name": name})
    image_Q, label_Q = np.arange(24) % 12, np.arange(24) % 12 % 3
    id_Q = np.array([f"picture-{number:02d}" for number in image_Q])
    rows = []
    for number, share in enumerate((1.0, 0.0), 1):
        is_right_Q = np.arange(24) < 24 * share
        answers = {
            "row_Q": np.arange(24),
            "image_id_Q": id_Q,
            "label_Q": label_Q,
            "predicted_Q": np.where(is_right_Q, label_Q, (label_Q + 1) % 3),
            "top_image_id_QK": np.where(is_right_Q, id_Q, np.roll(id_Q, 1))[:, None],
        }
        archive = io.BytesIO()
        np.savez(archive, allow_pickle=False, **answers)
        own = tmp_path / str(number)
        checkpoint.save(own / "best", "pass-000001", {}, {}, files={"predictions.npz": archive.getvalue()})
        damaged = checkpoint.save(own / "best", "pass-000002", {}, {}, files={"predictions.npz": archive.getvalue()})
        (damaged / "predictions.npz").write_bytes(archive.getvalue()[:-40])
        rows.append(
            TrialRow(
                trial_id=str(number), number=number, status="finished", config=config, passes=1, best_pass=1,
                metrics={"val/top1": share}, history=(), seconds=1.0, folder=own,
            )
        )  # fmt: skip
    p = _p_of_sweep(rows)
    assert p[1] < 0.01
    assert p[2] > 0.5


def test_a_trial_that_says_nothing_for_too_long_is_named_once(folder, begin, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(watching.time, "monotonic", lambda: now[0])
    live = begin(SweepConfig(trials=2, stall_minutes=10.0))
    live.started("aaaa", {"optim.lr": 0.01})
    live.started("bbbb", {"optim.lr": 0.02})

    def wait(seconds: float) -> list[str]:
        """Ask as often as Tune does; return who was named."""
        until, named = now[0] + seconds, []
        while now[0] < until:
            now[0] += 50.0
            named += live.stalled()
        return named

    assert wait(500.0) == []
    live.reported("bbbb", store(folder, "bbbb", [0.5]))
    assert wait(150.0) == ["aaaa"]
    now[0] += 5000.0  # the driver itself did not run: that nobody was heard says nothing
    assert wait(350.0) == []
    live.lost("aaaa", "killed: its process was ended", is_final=False)
    assert events(folder, "lost")[0]["reason"].startswith("stall: nothing was heard of it for 10 min")


def test_rays_newest_state_is_known_whatever_the_clock_says(folder, begin):
    live, tune = begin(), folder / "tune"
    tune.mkdir()

    def write(date: str) -> None:
        for name in (f"experiment_state-{date}.json", f"searcher-state-{date}.pkl"):
            (tune / name).touch()

    assert _newest_state(folder) is None
    live.log.write("state", file=None, there=[])
    write("2026-11-21_12-00-00")
    assert _newest_state(folder) == tune / "experiment_state-2026-11-21_12-00-00.json"
    live.log.write("state", file="experiment_state-2026-11-21_12-00-00.json", there=[
        "experiment_state-2026-11-21_12-00-00.json"
    ])  # fmt: skip
    assert _newest_state(folder) == tune / "experiment_state-2026-11-21_12-00-00.json"
    write("2026-11-20_23-00-00")  # the clock was set back
    assert _newest_state(folder) == tune / "experiment_state-2026-11-20_23-00-00.json"
    assert sorted(path.name for path in tune.iterdir()) == [
        "experiment_state-2026-11-20_23-00-00.json", "searcher-state-2026-11-20_23-00-00.pkl",
    ]  # fmt: skip
    shutil.rmtree(tune)
    assert _newest_state(folder) is None


def test_the_bound_of_trials_at_a_time_is_that_of_now():
    from ray.tune.search.optuna import OptunaSearch

    before, now = (_Limiter(OptunaSearch(metric="m", mode="max"), max_concurrent=count) for count in (4, 2))
    before.live_trials.add("aaaa")
    now.set_state(before.get_state())
    assert (now.max_concurrent, now.live_trials) == (2, {"aaaa"})


def test_a_trial_of_several_workers_gets_a_process_of_its_own(tmp_path):
    """One that waits for its workers cannot be had back for the next trial: Tune would give that one up."""
    for workers in (1, 2):
        sweep = SweepConfig(trials=2, workers_per_trial=workers)
        tuner = _new_tuner(lambda _: None, RunConfig(), sweep, None, tmp_path, 2, [])
        assert tuner._local_tuner is not None
        assert tuner._local_tuner._tune_config.reuse_actors == (workers == 1)
