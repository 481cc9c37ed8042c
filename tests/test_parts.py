"""eegvision.parts: batches too large for a GPU's memory. The memory is played by a hook that counts rows."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from eegvision import checkpoint, parts, processes, resume
from eegvision.config import RunConfig
from eegvision.encoders.joint import JointModel
from eegvision.vocab import InputError
from planted import CODEBOOK, CONFIG, assert_same_tensors, built, one_thread, run, stored  # noqa: F401

# No BatchNorm and no dropout, but a learned temperature.
SMOOTH = CONFIG.with_overrides(
    CODEBOOK | {"eeg.encoder": "eeg-project", "eeg.filters": None, "eeg.dropout": 0.0, "data.crops": None}
)


def limited(config: RunConfig, most: int, *, training: bool = True) -> tuple[JointModel, list[int]]:
    """Return a model whose EEG encoder takes at most so many rows at a time, and the list of what it was given."""
    model, tried = built(config), []
    assert model.eeg is not None

    def hook(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if module.training == training:
            tried.append(len(args[0]))
            if len(args[0]) > most:
                raise torch.OutOfMemoryError(f"CUDA out of memory for {len(args[0])} rows\nGPU 0 has a total of ...")

    model.eeg.register_forward_pre_hook(hook)
    return model, tried


def in_parts(folder: Path, n_parts: int) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "parts.json").write_text(json.dumps({"parts": n_parts}))
    return folder


@pytest.mark.parametrize("n_parts", [2, 3, 4])
def test_the_gradient_is_that_of_the_whole_batch(tmp_path, n_parts):
    config = SMOOTH.with_overrides({"train.batch_size": 64, "train.max_passes": 1})  # one step from the same weights
    whole, cut = built(config), built(config)
    ours, theirs = (
        run(tmp_path / "whole", config, model=whole),
        run(in_parts(tmp_path / "cut", n_parts), config, model=cut),
    )
    assert theirs.history[0]["train/loss"] == pytest.approx(ours.history[0]["train/loss"], rel=1e-6)
    for (name, one), other in zip(whole.named_parameters(), cut.parameters(), strict=True):
        assert one.grad is not None, name
        assert other.grad is not None, name
        assert one.grad.abs().max() > 0, name
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_full_memory_halves_what_is_encoded_at_once_and_training_goes_on(tmp_path, caplog, dropout):
    config = CONFIG.with_overrides({"eeg.dropout": dropout, "train.max_passes": 2})
    model, tried = limited(config, 4)
    reports = []
    with caplog.at_level(logging.WARNING):
        run(tmp_path / "limited", config, model=model, report=reports.append)
    assert tried[:3] == [16, 8, 4]  # of a size that was too large there is no second try
    assert set(tried[2:]) == {4}
    assert [done.parts for done in reports] == [4, 4]
    path = checkpoint.latest(tmp_path / "limited" / "last")
    assert path is not None
    assert checkpoint.record(path)["parts"] == 4
    said = [message for message in caplog.messages if "memory" in message]
    assert ["in 2 parts instead of 1" in said[0], "in 4 parts instead of 2" in said[1]] == [True, True]
    assert len(said) == 2
    # What was tried in vain left nothing behind: BatchNorm, dropout and moments are as with four parts from the start.
    run(in_parts(tmp_path / "cut", 4), config)
    assert_same_tensors(stored(tmp_path / "limited"), stored(tmp_path / "cut"))


def test_the_next_attempt_begins_with_the_parts_that_were_found(tmp_path):
    run(tmp_path, CONFIG.with_overrides({"train.max_passes": 1}), model=limited(CONFIG, 8)[0])
    shrunk = checkpoint.latest(tmp_path / "last")
    assert shrunk is not None
    (shrunk / "manifest.json").unlink()  # so that the pass is made again
    model, tried = limited(CONFIG, 8)
    run(tmp_path, CONFIG.with_overrides({"train.max_passes": 1}), model=model)
    assert set(tried) == {8}


def test_running_statistics_move_once_for_each_part(tmp_path):
    config = CONFIG.with_overrides({"train.max_passes": 1, "train.batch_size": 32})  # two steps
    run(in_parts(tmp_path, 4), config)
    counts = [n for name, n in stored(tmp_path)["model"].items() if name.endswith("num_batches_tracked")]
    assert counts
    assert all(count == 2 * 4 for count in counts)


def test_validation_in_parts_measures_the_same(tmp_path):
    config = SMOOTH.with_overrides({"train.max_passes": 1})
    model, tried = limited(config, 5, training=False)
    cut, whole = run(tmp_path / "cut", config, model=model), run(tmp_path / "whole", config)
    assert tried[:3] == [16, 8, 4]
    assert sum(tried[2:]) == 24  # segments
    for name in ("val/loss", "val/top1", "val/median_rank", "val/class_top1"):
        assert cut.history[0][name] == pytest.approx(whole.history[0][name], rel=1e-6), name


def test_a_gpu_that_is_too_small_for_two_segments_is_said_and_final(tmp_path):
    model, tried = limited(CONFIG, 1)
    with pytest.raises(
        parts.GpuOutOfMemoryError, match=r"batch of 16 segments taken in 8 parts; lower .* 2 rows$"
    ) as told:
        run(tmp_path, model=model)
    assert isinstance(told.value, InputError)  # which no retry mends
    assert tried == [16, 8, 4, 2]


def test_an_optimiser_without_room_is_not_retried(tmp_path, monkeypatch):
    def step(_self: torch.optim.Adam) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    with pytest.raises(parts.GpuOutOfMemoryError, match="not the optimiser's moments"):
        run(tmp_path)


def test_of_several_processes_one_ends_the_attempt_for_all(tmp_path, monkeypatch):
    attempt = resume.claim(tmp_path)
    monkeypatch.setattr(processes, "world", lambda: 2)
    state = SimpleNamespace(folder=tmp_path, attempt=attempt, parts=1)

    def full() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(parts.NeedsMoreParts, match="batches of 16 segments are encoded in 2 parts instead of 1"):
        parts.fitted(state, 16, full)  # type: ignore[arg-type]
    assert json.loads((tmp_path / "parts.json").read_text()) == {"parts": 2, "attempt": attempt}
    resume.claim(tmp_path)
    with pytest.raises(resume.Superseded):
        parts.fitted(state, 16, full)  # type: ignore[arg-type]
    assert json.loads((tmp_path / "parts.json").read_text())["parts"] == 2


def test_workers_are_started_again_until_batches_fit(tmp_path, monkeypatch):
    import ray.train.torch
    from ray.train import UserCallback, WorkerGroupError
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
    from ray.tune.integration import ray_train

    from eegvision import distributed

    ends = [parts.NeedsMoreParts("2"), parts.NeedsMoreParts("4"), parts.GpuOutOfMemoryError("too small")]
    monkeypatch.setattr(ray_train, "TuneReportCallback", UserCallback)

    class Trainer:
        def __init__(self, *_args, **_settings) -> None:
            pass

        def fit(self) -> None:
            failure = UserExceptionWithTraceback(ends.pop(0), traceback_str="")
            raise WorkerGroupError("workers failed", {0: RuntimeError("connection closed by peer"), 1: failure})

    monkeypatch.setattr(ray.train.torch, "TorchTrainer", Trainer)
    with pytest.raises(parts.GpuOutOfMemoryError, match="too small"):
        distributed.fit_on_workers(CONFIG, tmp_path, distributed.Placement(workers=2))
    assert ends == []
