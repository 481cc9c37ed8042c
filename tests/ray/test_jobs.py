"""The jobs as a user runs them: submitted to a head, killed, repeated, refused; what they leave behind."""

import importlib
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

import generators
from eegvision import checkpoint
from eegvision.cli import parse, run_job
from eegvision.config import RunConfig, SweepConfig
from eegvision.distributed import fit_here
from eegvision.history import check as checks
from eegvision.ingest import assemble, simulate
from eegvision.study import run_study
from eegvision.vocab import InputError

ROOT = Path(__file__).parent.parent.parent
SMALL = ["--train.batch-size", "32", "--image.size-px", "32", "--data.val-fraction", "0.25"]
SPACE = '''
"""Small models for tests."""
BASE = {"train.max_passes": 6, "data.crops": "centre"}
POINTS = [{"optim.lr": 1e-3, "eeg.encoder": "tsconv"}]

def space(trial):
    fixed = {"eeg.embed_dim": 16, "image.embed_dim": 16, "loss.name": "info_nce"}
    trial.suggest_float("optim.lr", 1e-4, 1e-2, log=True)
    if trial.suggest_categorical("eeg.encoder", ["tsconv", "palazzo-gru"]) == "palazzo-gru":
        fixed |= {"eeg.channels": "mixed", "eeg.hidden": 16}
    return fixed
'''


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home with the data set `tiny` and a small search space."""
    home = tmp_path_factory.mktemp("home")
    assemble.write(home / "datasets" / "tiny", simulate.simulate(simulate.PRESETS["tiny"], "tiny"))
    (home / "space.py").write_text(SPACE)
    return home


def command(home: Path, *flags: str, job: str = "sweep") -> list[str]:
    space = ["--space", str(home / "space.py")] if job == "sweep" else []
    return ["python", f"jobs/{job}.py", *space, *SMALL, *flags]


def environment(home: Path) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{own['PATH']}"
    return own | {"EEGVISION_HOME": str(home), "PATH": path, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0",
                  "RAY_worker_niceness": "0"}  # fmt: skip


def run(home: Path, *words: str, timeout: float = 400) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, cwd=ROOT, env=environment(home), capture_output=True, text=True, timeout=timeout, check=False
    )


def sweep_here(home: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """`jobs/sweep.py` in this process, for what only shows or refuses: the imports would be most of its time."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setenv("EEGVISION_HOME", str(home))
        patch.setattr(signal, "signal", lambda *_: None)
        patch.syspath_prepend(str(ROOT / "jobs"))
        job: Any = importlib.import_module("sweep")
        try:
            code = run_job(job.Options, job.main, defaults=job.base_of, argv=flags)
        except SystemExit as ended:
            code = int(ended.code or 0)
        del sys.modules["sweep"]
    return subprocess.CompletedProcess(flags, code, out.getvalue(), err.getvalue())


def tracked(home: Path) -> dict[str, dict[str, str]]:
    """Tags of every run in the tracking store, by key."""
    with sqlite3.connect(home / "mlflow.db") as store:
        runs: dict[str, dict[str, str]] = {}
        for run_id, key, value in store.execute("select run_uuid, key, value from tags"):
            runs.setdefault(run_id, {})[key] = value
        for run_id, status in store.execute("select run_uuid, status from runs"):
            runs[run_id]["status"] = status
    keys = [tags["eegvision.key"] for tags in runs.values()]
    assert len(set(keys)) == len(keys), "a resumed sweep must go on with its runs"
    return {tags["eegvision.key"]: tags for tags in runs.values()}


def history(trial: Path) -> list[dict[str, float]]:
    newest = checkpoint.latest(trial / "last")
    assert newest is not None
    return checkpoint.load(newest)[1]["history"]


def test_a_submitted_sweep_ends_with_a_ranked_table_and_tracked_runs(home):
    words = command(home, "--dataset", "tiny", "--name", "submitted", "--trials", "3", "--min-passes", "2")
    ended = run(home, sys.executable, "jobs/local.py", "--", *words)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for expected in ("ray job submit -- python jobs/sweep.py", "3/3 trials done", "rank  trial  status", "chance"):
        assert expected in ended.stdout
    runs = tracked(home)
    children = [key for key in runs if key.startswith("submitted/")]
    assert len(children) == 3
    assert {runs[key]["mlflow.parentRunId"] for key in children} == {_run_id(home, "submitted")}
    assert {runs[key]["status"] for key in [*children, "submitted"]} == {"FINISHED"}
    table = (home / "runs" / "submitted" / "table.txt").read_text()
    assert table in ended.stdout
    assert checks(home / "runs" / "submitted") == []

    again = sweep_here(home, *words[2:])
    assert again.returncode == 0, again.stderr
    assert "is finished" in again.stdout
    assert table in again.stdout

    other = sweep_here(home, *words[2:], "--optim.weight-decay", "0.5")
    assert other.returncode == 2
    assert "optim.weight_decay was 0.0, now 0.5" in other.stderr

    # What was written does not change unnoticed.
    (home / "runs" / "submitted" / "best.json").write_text('{"trial": "another"}')
    checked = sweep_here(home, *words[2:], "--check", "True")
    assert (checked.returncode, checked.stdout) == (1, "submitted: best.json has changed since it was written\n")


def _run_id(home: Path, key: str) -> str:
    with sqlite3.connect(home / "mlflow.db") as store:
        query = "select run_uuid from tags where key = 'eegvision.key' and value = ?"
        return store.execute(query, (key,)).fetchone()[0]


def test_a_sweep_whose_driver_was_killed_goes_on_with_the_same_command(home):
    flags = ["--trials", "3", "--keep-one-in", "6", "--train.max-passes", "10"]
    words = command(home, "--dataset", "tiny", "--name", "killed", *flags)
    folder = home / "runs" / "killed"
    driver = subprocess.Popen(
        [sys.executable, *words[1:]],
        cwd=ROOT, env=environment(home), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    until = time.monotonic() + 300
    while not _is_midway(folder):
        assert driver.poll() is None, "the sweep ended before it could be killed"
        assert time.monotonic() < until
        time.sleep(0.05)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    before = {trial.name: history(trial) for trial in (folder / "trials").iterdir() if (trial / "last").exists()}
    _end_session(driver.pid)

    resumed = run(home, sys.executable, *words[1:])
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "going on with the interrupted sweep" in resumed.stdout
    trials = {trial.name: history(trial) for trial in (folder / "trials").iterdir()}
    assert len(trials) == 3
    for name in before.keys() & trials.keys():
        # Pass by pass the same, to the last digit and to the time it took: none was made twice.
        assert trials[name][: len(before[name])] == before[name]
        status = json.loads((folder / "trials" / name / "end.json").read_text())["status"]
        assert (len(trials[name]), status) == (10, "finished") or status == "stopped early"
    assert checks(folder) == []
    best = json.loads((folder / "best.json").read_text())["trial"]
    top = max(max(done["val/top1"] for done in passes) for passes in trials.values())
    assert max(done["val/top1"] for done in trials[best]) == top
    runs = {key: tags["status"] for key, tags in tracked(home).items() if key.startswith("killed")}
    assert runs.pop("killed") == "FINISHED"
    # One more only if the driver died in the two seconds before Ray had stored that a trial had begun.
    finished = {key.removeprefix("killed/") for key, status in runs.items() if status == "FINISHED"}
    assert finished == set(trials)
    assert {runs[key] for key in runs if key.removeprefix("killed/") not in finished} <= {"KILLED"}


def _is_midway(folder: Path) -> bool:
    """Whether some trial has finished and another is some passes on its way."""
    ended = {path.parent for path in folder.glob("trials/*/end.json")}
    under_way = [path for path in folder.glob("trials/*/last/pass-*") if path.parent.parent not in ended]
    return bool(ended) and any(_pass(path) >= 2 for path in under_way)


def _pass(checkpoint_folder: Path) -> int:
    return int(checkpoint_folder.name.removeprefix("pass-"))


def _end_session(leader: int) -> None:
    """End what a killed driver leaves behind: its private Ray, and nothing else."""
    time_limit = time.monotonic() + 20
    while time.monotonic() < time_limit:
        left = subprocess.run(["pkill", "-KILL", "-s", str(leader)], check=False).returncode
        if left != 0:
            return
        time.sleep(0.2)


@pytest.mark.usefixtures("tiny_dataset", "ray_local", "without_figures")
def test_two_workers_train_to_the_curve_of_one(session_home, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "jobs"))
    job: Any = importlib.import_module("train")
    flags = ["--data.dataset", "tiny", "--loss.name", "info_nce", "--train.max-passes", "3", "--eeg.hidden", "16"]
    options = parse(job.Options, [*SMALL, *flags, "--eeg.channels", "mixed", "--workers", "2", "--name", "workers"])
    del sys.modules["train"]
    alone = fit_here(options.run, tmp_path, lambda _: None).history
    job.main(options)
    assert "1/1 trials done" in capsys.readouterr().out
    (trial,) = (session_home / "runs" / "workers" / "trials").iterdir()
    for one, two in zip(alone, history(trial), strict=True):
        assert two["train/loss"] == pytest.approx(one["train/loss"], rel=1e-4)
        assert two["val/loss"] == pytest.approx(one["val/loss"], rel=1e-4)


def test_files_are_ingested_and_shown_again_by_one_command_each(home, tmp_path):
    files = generators.write_perceivelab(tmp_path, images_per_class=5, classes=8, signal=2.0)
    job = (sys.executable, "jobs/ingest.py")
    ingested = run(
        home, *job, "perceivelab", "--out", "pl", "--source", str(files.eeg), "--images", str(files.images),
        "--split-file", str(files.split_all),
    )  # fmt: skip
    assert ingested.returncode == 0, ingested.stderr
    for expected in (
        "128 channels x 440 samples",
        "order audit     red",
        "sweep.py --dataset pl --data.split published",
    ):
        assert expected in ingested.stdout
    shown = run(home, *job, "--inspect", "pl")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout in ingested.stdout
    assert (home / "datasets" / "pl" / "quality.html").exists()
    again = run(home, *job, "perceivelab", "--out", "pl", "--source", str(files.eeg), "--images", str(files.images))
    assert again.returncode == 2
    assert "exists already" in again.stderr


@pytest.mark.usefixtures("tiny_dataset", "ray_local")
@pytest.mark.parametrize(
    ("settings", "sweep", "message"),
    [
        ({"train.batch_size": 4000}, {}, "train.batch_size 4000 is larger than the training set of 128"),
        ({"train.batch_size": 33}, {"workers_per_trial": 2}, "33 cannot be shared equally by 2 workers"),
        ({"data.split": "published"}, {}, "published"),
        ({"data.subjects": ["sub-99"]}, {}, "sub-99"),
        ({}, {"gpus_per_trial": 64.0}, "asks for 64 GPUs .* but the cluster has 0"),
        (
            {},
            {"memory_gb_per_trial": 1e6},
            r"asks for 1e\+06 GB of memory, but no machine of the cluster has more than",
        ),
        ({"data.dataset": "nowhere"}, {}, "no data set 'nowhere'"),
    ],
)
def test_bad_input_is_one_message_before_anything_is_written(session_home, settings, sweep, message):
    run_config = RunConfig().with_overrides({"data.dataset": "tiny", "image.size_px": 32, **settings})
    store = session_home / "mlflow.db"
    before = store.stat().st_mtime_ns if store.exists() else None
    with pytest.raises(InputError, match=message):
        run_study(run_config, SweepConfig(trials=1, **sweep), name="bad", space=None, say=lambda _: None)
    assert not (session_home / "runs" / "bad" / "sweep.json").exists()
    assert (store.stat().st_mtime_ns if store.exists() else None) == before
