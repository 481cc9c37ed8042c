"""What a run changes as it goes, and how it lies in the run's folder: going on from there, adding a pass.

FOLDER/last/pass-000007/   the newest two passes: model, optimiser, history, what data and configuration
FOLDER/best/pass-000004/   the best pass by `train.metric`: model and `predictions.npz`
"""

from __future__ import annotations

import io
import logging
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from eegvision import checkpoint, processes
from eegvision.config import RunConfig
from eegvision.overrides import changes_results
from eegvision.vocab import RunInUseError

if TYPE_CHECKING:  # the loop runs without Ray, which `stream` imports
    from eegvision.encoders.joint import JointModel
    from eegvision.stream import Store

_log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class TrainState:
    """What a run changes as it goes."""

    model: JointModel
    network: nn.Module
    """The model as training calls it: itself, or wrapped to average gradients over processes."""
    optimiser: torch.optim.Optimizer
    buffers: list[list[Tensor]]
    """The model's buffers (BatchNorm's running statistics), grouped by type."""
    spares: list[list[Tensor]]
    """Copies of them from before the current step, to undo it."""
    passes: int = 0
    """Whole passes done."""
    bad_in_a_row: int = 0
    """Steps skipped since the last good one."""
    best_pass: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


def data_facts(config: RunConfig, store: Store, model: JointModel) -> dict[str, Any]:
    """Return what only the data know: needed to build the model again, and to notice other data on resume."""
    manifest = store.manifest
    return {
        "name": manifest.name,
        "fingerprint": manifest.fingerprint,
        "n_chans": manifest.n_chans,
        "n_times": manifest.n_times,
        "sfreq_hz": manifest.sfreq_hz,
        "channels": list(manifest.channels),
        "classes": list(manifest.classes),
        "positions_m": [list(place) for place in manifest.montage.positions_m],
        # Names of people stay where the data are, unless the model has something of its own for each.
        "subjects": list(store.trained_subjects) if config.eeg.subjects else [],
        "n_features": model.data["n_features"],
        "n_classes": model.data["n_classes"],
        "split": config.data.split,
        "split_notes": list(store.split.notes),
    }


def resume(state: TrainState, folder: Path, config: RunConfig, facts: dict[str, Any]) -> None:
    """Put the newest whole checkpoint of `folder` into the state, if there is one; every process does this."""
    device = next(state.model.parameters()).device
    last, best = (_agreed_path(folder / name, device) for name in ("last", "best"))
    for path in filter(None, (best, last)):
        tensors, record = checkpoint.load(path)
        _refuse_another_run(record, config, facts, folder)
        if path == last:
            state.model.load_state_dict(tensors["model"])
            _load_optimiser(state, tensors["optimiser"])
            state.passes, state.bad_in_a_row = record["passes"], record["bad_in_a_row"]
            state.best_pass, state.history = record["best_pass"], record["history"]
            _log.info("going on after pass %d from %s", state.passes, path)
    if processes.rank() == 0:
        # Of later passes only remains are left: damaged, or of a pass that was cut short between its two files.
        for remains in [*(folder / "last").glob("pass-*"), *(folder / "best").glob("pass-*")]:
            if _pass_number(remains) > state.passes:
                shutil.rmtree(remains)


def _agreed_path(root: Path, device: torch.device) -> Path | None:
    """Return the checkpoint that rank 0 finds: shared storage may show the others an older state."""
    path = checkpoint.latest(root) if processes.rank() == 0 else None
    number = int(processes.from_first({"pass": _pass_number(path) if path else 0}, device)["pass"])
    return root / _pass_name(number) if number else None


def _pass_name(number: int) -> str:
    return f"pass-{number:06d}"


def _pass_number(path: Path) -> int:
    return int(path.name.removeprefix("pass-"))


def _refuse_another_run(record: dict[str, Any], config: RunConfig, facts: dict[str, Any], folder: Path) -> None:
    there, here = RunConfig.from_dict(record["config"]), config
    differing = []
    if there.fingerprint() != here.fingerprint():
        old, new = there.flat(), here.flat()
        differing += [
            f"{path} is {old.get(path)!r} there and {new.get(path)!r} here"
            for path in sorted(old | new)
            if old.get(path) != new.get(path) and changes_results(config, path)
        ]
    if record["data"]["fingerprint"] != facts["fingerprint"]:
        differing.append(
            f"the data set is {record['data']['name']!r} ({record['data']['fingerprint'][:12]}) there "
            f"and {facts['name']!r} ({facts['fingerprint'][:12]}) here"
        )
    if differing:
        raise RunInUseError(
            f"{folder} holds another run: {'; '.join(differing)}. "
            "Choose another name for this run, or repeat the other's settings to go on with it"
        )


def save(
    state: TrainState,
    folder: Path,
    config: RunConfig,
    facts: dict[str, Any],
    predictions: dict[str, np.ndarray] | None,
) -> None:
    """Write the pass (and, given predictions, the best pass) on rank 0; return on every rank once it is on disk.

    The best goes first: should the process die in between, resuming drops it and makes the pass again.
    """
    if processes.rank() == 0:
        record = {
            "config": config.to_dict(),
            "data": facts,
            "passes": state.passes,
            "bad_in_a_row": state.bad_in_a_row,
            "best_pass": state.best_pass,
            "history": state.history,
        }
        model, name = state.model.state_dict(), _pass_name(state.passes)
        if predictions is not None:
            archive = io.BytesIO()
            np.savez(archive, allow_pickle=False, **predictions)
            files = {"predictions.npz": archive.getvalue()}
            checkpoint.save(folder / "best", name, {"model": model}, record, files=files)
        checkpoint.save(folder / "last", name, {"model": model, "optimiser": _optimiser_tensors(state)}, record)
    processes.is_any(False, next(state.model.parameters()).device)  # nobody goes on before rank 0 has written


def _optimiser_tensors(state: TrainState) -> dict[str, Tensor]:
    """Name the optimiser's tensors after the parameters they belong to; all else in it comes from the config."""
    return {
        f"{name}:{key}": value
        for name, parameter in state.model.named_parameters()
        for key, value in state.optimiser.state.get(parameter, {}).items()
    }


def _load_optimiser(state: TrainState, tensors: dict[str, Tensor]) -> None:
    parameters = dict(state.model.named_parameters())
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition(":")
        parameter = parameters[name]
        # Moments take the memory layout of their parameter: fused kernels walk both in storage order.
        moment = torch.empty_like(parameter) if tensor.shape == parameter.shape else torch.empty_like(tensor)
        state.optimiser.state[parameter][key] = moment.to(parameter.device).copy_(tensor)
