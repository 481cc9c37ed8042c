"""Everything declared loads: each job shows its help at once, each search space draws valid configurations."""

import subprocess
import sys
from pathlib import Path

import pytest

from eegvision.config import RunConfig
from eegvision.space import check_space, load_space

ROOT = Path(__file__).parent.parent
JOBS = sorted(path for path in (ROOT / "jobs").glob("[!_]*.py") if path.name != "local.py")
SPACES = sorted((ROOT / "search_spaces").glob("*.py"))


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.stem)
def test_a_job_shows_its_help_without_its_heavy_imports(job):
    words = [sys.executable, "-X", "importtime", str(job), "--help"]
    shown = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    assert "usage:" in shown.stdout
    imported = {line.rpartition("|")[2].strip() for line in shown.stderr.splitlines()}
    assert "eegvision.config" in imported
    assert not {"torch", "ray", "mlflow", "optuna", "mne", "matplotlib"} & imported


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_a_search_space_draws_valid_configurations(path):
    space = load_space(path)
    check_space(space, RunConfig().with_overrides(space.base), draws=40)
    assert space.points, "known configurations go first"


def test_palazzo_begins_with_the_eight_pairs_of_table_1():
    space = load_space(ROOT / "search_spaces" / "palazzo.py")
    base = RunConfig().with_overrides(space.base)
    configs = [base.with_overrides({**point, "image.embed_dim": point["eeg.embed_dim"]}) for point in space.points]
    pairs = {(config.image.encoder, config.eeg.encoder) for config in configs}
    images = ("alexnet", "inception_v3", "resnet101", "densenet161")
    assert pairs == {(image, eeg) for image in images for eeg in ("palazzo-lstm", "palazzo-gru")}
    for config in configs:
        assert (config.loss.name, config.optim.name, config.optim.lr) == ("triplet", "adam", 1e-3)
        assert (config.train.batch_size, config.train.max_passes, config.eeg.embed_dim) == (16, 100, 128)


def test_bad_input_ends_a_job_with_one_line_and_code_2(tmp_path):
    ended = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "sweep.py"), "--dataset", "nowhere"],
        env={"EEGVISION_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith("error: there is no data set 'nowhere'")
    assert ended.stderr.count("\n") == 1
