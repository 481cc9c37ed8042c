"""What a run changes as it goes, and how it lies in the run's folder: going on from there, adding a pass.

    FOLDER/last/pass-000007/              the newest two: model, optimiser, history, what data and configuration
    FOLDER/last/pass-000007-step-000130/  the same after seven passes and 130 steps of the eighth, the newest two
    FOLDER/best/pass-000004/              the best pass by `train.metric`: model and `predictions.npz`
    FOLDER/attempts/000002                who went on for the second time: host and process
    FOLDER/parts.json                     into how many parts batches are cut, where a GPU was too small for them

Whoever begins or goes on takes the next attempt number. An attempt that was taken for dead (its machine cut off from
the network, its driver killed) may come back; it is refused as soon as it wants to store something.
"""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import os
import shutil
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from eegvision import checkpoint, processes, runs
from eegvision.checkpoint import CheckpointError
from eegvision.config import RunConfig
from eegvision.overrides import changes_results
from eegvision.vocab import RunInUseError

if TYPE_CHECKING:  # the loop runs without Ray, which `stream` imports
    from eegvision.encoders.joint import JointModel
    from eegvision.stream import Store

_log = logging.getLogger(__name__)


class Superseded(RuntimeError):  # noqa: N818
    """A later attempt has taken over this training's folder, so this one may store nothing more."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A checkpoint of a training: its path in the training's folder, and the SHA-256 of its manifest."""

    path: str
    sha256: str


@dataclass(kw_only=True)
class Tally:
    """What is known of the pass that has begun."""

    steps: int = 0
    """Steps taken, bad ones included."""
    good: int = 0
    loss: float = 0.0
    """Sum over good steps, as `grad_norm`."""
    grad_norm: float = 0.0
    seconds: float = 0.0
    """Time spent on these steps."""

    def add(self, loss: float, grad_norm: float, *, is_bad: bool) -> None:
        """Count a step."""
        self.steps += 1
        if not is_bad:
            self.good += 1
            self.loss += loss
            self.grad_norm += grad_norm


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
    tally: Tally = field(default_factory=Tally)
    """Of the pass under way."""
    folder: Path
    attempt: int = 0
    """Number of this attempt at the run, from 1."""
    parts: int = 1
    """Into how many parts the rows of a batch are cut for encoding."""
    fell_back: bool = False
    """Whether this attempt had to pass over a damaged checkpoint, until that is reported."""
    last: Stored | None = None
    """The newest checkpoint, on rank 0."""
    best: Stored | None = None
    """The checkpoint of the best pass, on rank 0, where it is whole."""


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


def claim(folder: Path) -> int:
    """Take the next attempt number of a training's folder; from now on no earlier attempt can store anything here."""
    attempts = folder / "attempts"
    attempts.mkdir(parents=True, exist_ok=True, mode=0o700)
    number = _newest_attempt(attempts)
    while True:
        number += 1
        try:
            with (attempts / f"{number:06d}").open("x") as file:
                json.dump({"host": socket.gethostname(), "pid": os.getpid()}, file)
                file.flush()
                os.fsync(file.fileno())
        except FileExistsError:  # another process was quicker
            continue
        return number


def require_newest(folder: Path, attempt: int) -> None:
    """Return if no later attempt has claimed the folder.

    Raises:
        Superseded: one has; says which and where it runs.
    """
    attempts = folder / "attempts"
    # A network file system may show a directory as it was half a minute ago, unless one has just changed it.
    look = attempts / f".look-{attempt:06d}"
    look.touch()
    look.unlink(missing_ok=True)
    if (newest := _newest_attempt(attempts)) > attempt:
        try:
            owner = json.loads((attempts / f"{newest:06d}").read_text())
            where = f"{owner['host']} (pid {owner['pid']})"
        except (OSError, ValueError, KeyError):
            where = "another process"
        raise Superseded(
            f"attempt {attempt} at {folder} was replaced by attempt {newest} on {where}; nothing was written. "
            "The later attempt goes on from what was stored before"
        )


def _newest_attempt(attempts: Path) -> int:
    return max((int(path.name) for path in attempts.iterdir() if path.name.isdigit()), default=0)


def resume(state: TrainState, config: RunConfig, facts: dict[str, Any]) -> None:
    """Claim the run's folder and put its newest whole checkpoint into the state, if there is one.

    Every process does this.
    """
    folder, device = state.folder, next(state.model.parameters()).device
    _refuse_another_run(folder, config, facts)  # before the claim, so that a mistaken start stops nobody
    attempt = claim(folder) if processes.rank() == 0 else 0
    agreed = processes.from_first({"attempt": attempt, "parts": _read_parts(folder)}, device)
    state.attempt, state.parts = int(agreed["attempt"]), int(agreed["parts"])

    if last := _agreed_path(state, folder / "last", device):
        tensors, record = checkpoint.load(last)
        state.model.load_state_dict(tensors["model"])
        _load_optimiser(state, tensors["optimiser"])
        state.passes, state.bad_in_a_row = record["passes"], record["bad_in_a_row"]
        state.best_pass, state.history = record["best_pass"], record["history"]
        state.tally = Tally(**record["tally"])
        state.last = _stored(last, folder)
        _log.info("attempt %d goes on from %s", state.attempt, last)
    if processes.rank() == 0:
        # Of later positions only remains are left: damaged, or of a pass that was cut short between its two files.
        for remains in checkpoint.by_age(folder / "last") + checkpoint.by_age(folder / "best"):
            if _position(remains) > (state.passes, state.tally.steps):
                shutil.rmtree(remains)
    best = _agreed_path(state, folder / "best", device)
    if best and _position(best)[0] == state.best_pass:
        state.best = _stored(best, folder)


def _agreed_path(state: TrainState, root: Path, device: torch.device) -> Path | None:
    """Return the checkpoint that rank 0 finds: shared storage may show the others an older state."""
    found: dict[str, float] = {"passes": -1, "steps": 0, "fell_back": 0}
    if processes.rank() == 0 and (there := checkpoint.by_age(root)):
        path = checkpoint.latest(root)
        found["fell_back"] = int(path != there[-1])
        if path:
            found["passes"], found["steps"] = _position(path)
    agreed = {name: int(value) for name, value in processes.from_first(found, device).items()}
    state.fell_back = state.fell_back or bool(agreed["fell_back"])
    return root / _name(agreed["passes"], agreed["steps"]) if agreed["passes"] >= 0 else None


def _name(passes: int, steps: int) -> str:
    return f"pass-{passes:06d}" + (f"-step-{steps:06d}" if steps else "")


def _position(path: Path) -> tuple[int, int]:
    """Return how many whole passes, and steps of the next one, a checkpoint comes after."""
    passes, _, steps = path.name.removeprefix("pass-").partition("-step-")
    return int(passes), int(steps or 0)


def _stored(path: Path, folder: Path) -> Stored | None:
    if processes.rank() != 0:
        return None
    return Stored(path=str(path.relative_to(folder)), sha256=checkpoint.digest(path))


def _refuse_another_run(folder: Path, config: RunConfig, facts: dict[str, Any]) -> None:
    for side in ("best", "last"):
        for path in reversed(checkpoint.by_age(folder / side)):
            try:
                record = checkpoint.record(path)
            except CheckpointError:
                continue
            if "tally" not in record:
                raise RunInUseError(
                    f"{path} was stored by an earlier version of eegvision, from which this one cannot go on; "
                    "choose another name for this run, or finish it with that version"
                )
            if differing := _differences(record, config, facts):
                raise RunInUseError(
                    f"{folder} holds another run: {'; '.join(differing)}. "
                    "Choose another name for this run, or repeat the other's settings to go on with it"
                )
            break


def _differences(record: dict[str, Any], config: RunConfig, facts: dict[str, Any]) -> list[str]:
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
    return differing


def save(
    state: TrainState, config: RunConfig, facts: dict[str, Any], predictions: dict[str, np.ndarray] | None = None
) -> None:
    """Write the position (and, given predictions, the best pass) on rank 0; return on every rank once it is on disk.

    The best goes first: should the process die in between, resuming drops it and makes the pass again.

    Raises:
        Superseded: a later attempt has claimed the folder; nothing was written.
        NotWritten: a checkpoint could not be written.
    """
    if processes.rank() == 0:
        record = {
            "config": config.to_dict(),
            "data": facts,
            "attempt": state.attempt,
            "parts": state.parts,
            "passes": state.passes,
            "tally": dataclasses.asdict(state.tally),
            "bad_in_a_row": state.bad_in_a_row,
            "best_pass": state.best_pass,
            "history": state.history,
        }
        model, name = state.model.state_dict(), _name(state.passes, state.tally.steps)
        if predictions is not None:
            archive = io.BytesIO()
            np.savez(archive, allow_pickle=False, **predictions)
            state.best = _write(state, "best", name, {"model": model}, record, {"predictions.npz": archive.getvalue()})
        tensors = {"model": model, "optimiser": _optimiser_tensors(state)}
        if state.tally.steps:
            _forget_positions(state)
        state.last = _write(state, "last", name, tensors, record, {}, keep=3 if state.tally.steps else 2)
    processes.is_any(False, next(state.model.parameters()).device)  # nobody goes on before rank 0 has written


def _write(
    state: TrainState,
    side: str,
    name: str,
    tensors: dict[str, dict[str, Tensor]],
    record: dict[str, Any],
    files: dict[str, bytes],
    keep: int = 2,
) -> Stored | None:
    path = checkpoint.save(
        state.folder / side,
        name,
        tensors,
        record,
        keep,
        files=files,
        owner=state.attempt,
        require_owner=lambda: require_newest(state.folder, state.attempt),
    )
    return _stored(path, state.folder)


def _forget_positions(state: TrainState) -> None:
    """Remove positions within the pass but the newest, so that the next one does not push out the last whole pass."""
    require_newest(state.folder, state.attempt)
    within = [path for path in checkpoint.by_age(state.folder / "last") if _position(path)[1]]
    for old in within[:-1]:
        shutil.rmtree(old)


def save_parts(state: TrainState, parts: int) -> None:
    """Note into how many parts batches are cut, for this attempt and those after it.

    Raises:
        Superseded: a later attempt has claimed the folder; nothing was written.
    """
    require_newest(state.folder, state.attempt)
    runs.write_whole(state.folder / "parts.json", json.dumps({"parts": parts, "attempt": state.attempt}))
    state.parts = parts


def _read_parts(folder: Path) -> int:
    path = folder / "parts.json"
    return json.loads(path.read_text())["parts"] if path.exists() else 1


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
