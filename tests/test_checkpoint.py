"""eegvision.checkpoint: what comes back, what damage does, what a failed write leaves, what is refused."""

import json
import logging
import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from eegvision import checkpoint
from eegvision.checkpoint import CheckpointError

STATE = {"passes": 3, "history": [{"val/top1": 0.25}], "name": "μV"}
# Three and a half blocks of 4 KiB, so that a cut falls at block ends, inside the header and in the middle of data.
TENSORS = {"model": {"weight": torch.arange(3584, dtype=torch.float32), "step": torch.tensor(7)}}


def save(root: Path, number: int, **options) -> Path:
    return checkpoint.save(root, f"pass-{number}", TENSORS, STATE | {"passes": number}, **options)


def refuses(path: Path) -> bool:
    try:
        checkpoint.load(path)
    except CheckpointError:
        return True
    return False


def test_what_was_saved_comes_back(tmp_path):
    tensors = {
        "model": {"half": torch.randn(3, 2).bfloat16(), "flag": torch.tensor([True, False]), "none": torch.zeros(0, 4)},
        "optimiser": {"a.weight:step": torch.tensor(3.0), "rng": torch.get_rng_state()},
        "empty": {},
    }
    path = checkpoint.save(tmp_path / "last", "pass-3", tensors, STATE)
    assert path == tmp_path / "last" / "pass-3"
    loaded, state = checkpoint.load(path)
    assert state == STATE
    assert {group: set(named) for group, named in loaded.items()} == {g: set(named) for g, named in tensors.items()}
    for group, named in tensors.items():
        for name, tensor in named.items():
            assert loaded[group][name].dtype == tensor.dtype
            assert torch.equal(loaded[group][name], tensor)


def test_views_and_shared_storage_come_back_as_they_looked(tmp_path):
    whole = torch.arange(24.0).reshape(2, 3, 2, 2)
    named = {
        "whole": whole,
        "tied": whole,
        "row": whole[1],
        "transposed": whole.transpose(0, 1),
        "channels_last": whole.to(memory_format=torch.channels_last),
        "expanded": torch.ones(1).expand(5),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    loaded, _ = checkpoint.load(checkpoint.save(tmp_path, "pass-1", {"model": named}, {}))
    for name, tensor in named.items():
        assert torch.equal(loaded["model"][name], tensor), name


def test_further_files_are_stored_and_hashed(tmp_path):
    path = save(tmp_path, 1, files={"predictions.npz": b"rank 1"})
    assert (path / "predictions.npz").read_bytes() == b"rank 1"
    (path / "predictions.npz").write_bytes(b"rank 2")
    with pytest.raises(CheckpointError, match=r"predictions\.npz has changed"):
        checkpoint.load(path)


def test_folders_are_for_the_owner_alone(tmp_path):
    path = save(tmp_path / "last", 1)
    assert [oct(folder.stat().st_mode & 0o777) for folder in (path, path.parent)] == ["0o700", "0o700"]


def test_the_oldest_go_and_order_is_by_number(tmp_path):
    for number in (8, 9, 10, 11):
        save(tmp_path, number, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pass-10", "pass-11"]
    assert checkpoint.latest(tmp_path) == tmp_path / "pass-11"
    # Clocks jump: what was touched last is not what is newest.
    os.utime(tmp_path / "pass-10", (2e9, 2e9))
    assert checkpoint.latest(tmp_path) == tmp_path / "pass-11"


def test_the_one_just_written_stays_even_when_its_number_is_the_lowest(tmp_path):
    save(tmp_path, 5)
    assert save(tmp_path, 4, keep=1).is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["pass-4"]


def test_the_same_name_is_replaced(tmp_path):
    save(tmp_path, 1)
    checkpoint.save(tmp_path, "pass-1", {"other": {"x": torch.ones(1)}}, {"second": True})
    tensors, state = checkpoint.load(tmp_path / "pass-1")
    assert list(tensors) == ["other"]
    assert state == {"second": True}
    assert [path.name for path in tmp_path.iterdir()] == ["pass-1"]


def test_nothing_there_is_none(tmp_path):
    assert checkpoint.latest(tmp_path / "absent") is None
    (tmp_path / "unrelated").mkdir()
    assert checkpoint.latest(tmp_path) is None


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "manifest.json"])
def test_no_truncated_file_is_ever_loaded(tmp_path, name):
    path = save(tmp_path, 1)
    content = (path / name).read_bytes()
    for size in {*range(0, len(content), 4096), len(content) // 2, len(content) - 1}:
        (path / name).write_bytes(content[:size])
        assert refuses(path), size
    (path / name).write_bytes(content)
    assert not refuses(path)


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "manifest.json"])
def test_no_flipped_bit_is_ever_loaded(tmp_path, name):
    path = save(tmp_path, 1)
    content = (path / name).read_bytes()
    for position in {*np.random.default_rng(0).integers(0, 8 * len(content), 300).tolist(), 0, 8 * len(content) - 1}:
        flipped = bytearray(content)
        flipped[position // 8] ^= 1 << position % 8
        (path / name).write_bytes(flipped)
        assert refuses(path), position


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "manifest.json"])
def test_a_missing_file_is_named(tmp_path, name):
    path = save(tmp_path, 1)
    (path / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        checkpoint.load(path)


def test_latest_falls_back_past_damage_and_says_what_was_wrong(tmp_path, caplog):
    for number in (1, 2, 3):
        save(tmp_path, number, keep=3)
    content = (tmp_path / "pass-3" / "model.safetensors").read_bytes()
    (tmp_path / "pass-3" / "model.safetensors").write_bytes(content[:4096])
    (tmp_path / "pass-2" / "manifest.json").unlink()
    with caplog.at_level(logging.WARNING):
        assert checkpoint.latest(tmp_path) == tmp_path / "pass-1"
    warnings = [record.getMessage() for record in caplog.records]
    assert "pass-3/model.safetensors has 4096 bytes" in warnings[0]
    assert "pass-2/manifest.json is missing" in warnings[1]


def test_a_newer_format_is_refused_by_its_number(tmp_path):
    path = save(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"format": 2}))
    with pytest.raises(CheckpointError, match="has format 2; this version reads 1"):
        checkpoint.load(path)


def test_a_manifest_that_points_elsewhere_is_refused(tmp_path):
    path = save(tmp_path, 1)
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text.replace("state.json", "../pass-1/state.json"))
    with pytest.raises(CheckpointError, match="no plain file name"):
        checkpoint.load(path)


def test_a_pickle_in_a_checkpoint_is_refused_and_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    # Hashes and all: as an attacker who can write the whole folder would make it.
    path = checkpoint.save(tmp_path, "pass-1", {}, {}, files={"model.safetensors": pickle.dumps(Payload())})
    with pytest.raises(CheckpointError, match="no checkpoint of ours"):
        checkpoint.load(path)
    assert not (tmp_path / "ran").exists()


def test_too_little_space_is_said_before_anything_is_written(tmp_path):
    save(tmp_path, 1)
    four_petabytes = torch.zeros(1).expand(10**15)
    with pytest.raises(CheckpointError, match=rf"needs 40000\d+\.\d MB and .* MB are free at {tmp_path}; free some"):
        checkpoint.save(tmp_path, "pass-2", {"model": {"w": four_petabytes}}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["pass-1"]


@pytest.mark.parametrize("limit", [2_000, 10_000, 60_000])
def test_a_disk_that_fills_up_while_writing_leaves_the_earlier_checkpoint(tmp_path, limit):
    save(tmp_path, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))  # writes beyond it fail as on a full disk
    try:
        with pytest.raises(CheckpointError, match=r"pass-2.*too large.*earlier checkpoints are untouched"):
            checkpoint.save(tmp_path, "pass-2", TENSORS, STATE | {"long": "x" * 100_000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["pass-1"]
    assert checkpoint.latest(tmp_path) == tmp_path / "pass-1"


def test_a_killed_writer_leaves_the_earlier_checkpoint_and_the_next_cleans_up(tmp_path):
    # The second group kills its process when `save`, which has written the first by then, asks for its tensors.
    save(tmp_path, 1)
    script = (
        "import os, signal, sys, pathlib, torch\n"
        "from eegvision import checkpoint\n"
        "class Killer(dict):\n"
        "    def items(self):\n"
        "        if any(pathlib.Path(sys.argv[1]).glob('.writing-*')):\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return super().items()\n"
        "tensors = {'a': {'x': torch.ones(9)}, 'b': Killer(x=torch.ones(9))}\n"
        "checkpoint.save(pathlib.Path(sys.argv[1]), 'pass-2', tensors, {})\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert done.returncode == -9
    assert len(list(tmp_path.glob(".writing-*"))) == 1
    assert checkpoint.latest(tmp_path) == tmp_path / "pass-1"
    save(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pass-1", "pass-2"]


def test_nan_is_not_state(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        checkpoint.save(tmp_path, "pass-1", {}, {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []
