"""Training: one loop for one process and for N, from the first batch to the best checkpoint.

    FOLDER/last/pass-000007/   the newest two passes: model, optimiser, history, what data and configuration
    FOLDER/best/pass-000004/   the best pass by `train.metric`: model and `predictions.npz`

Everything random is a function of (seed, pass, step, rank), and the learning rate of the step, so the position in
the run is all the generator and scheduler state there is: a resumed run equals one that was never interrupted.
N processes hold one slice each of every global batch and compute the loss over the whole of it, so that N equal 1
up to rounding. Axes: B batch, D embedding, R rows of one rank, Q queries, M images, K best gallery items.
"""

from __future__ import annotations

import dataclasses
import io
import logging
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from eegvision import checkpoint, processes
from eegvision.config import LossConfig, OptimConfig, RunConfig, TrainConfig
from eegvision.evaluate import retrieval
from eegvision.losses import info_nce, siglip, triplet
from eegvision.vocab import InputError, RunInUseError

if TYPE_CHECKING:  # the loop runs without Ray, which `stream` imports
    from eegvision.encoders.joint import JointModel
    from eegvision.stream import Batch, Batches, Store

_log = logging.getLogger(__name__)

# Gallery images kept per query in the stored predictions.
_N_KEPT = 10


class TrainingDiverged(RuntimeError):  # noqa: N818
    """Losses or gradients are no longer finite; the message names pass, step and segments."""


@dataclass(frozen=True, kw_only=True)
class PassReport:
    """What is known after a pass, once its checkpoint is on disk."""

    number: int
    """The pass, from 1."""
    metrics: dict[str, float]
    """All finite; names as in `fit`."""
    best: bool
    """Whether no earlier pass was as good."""
    objective: float
    """Best value of `train.metric` so far."""
    seconds: float
    """Duration of the pass with its validation."""


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """A finished run."""

    best_pass: int
    best_metrics: dict[str, float]
    passes: int
    history: tuple[dict[str, float], ...]
    folder: Path


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


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimiser step; `loss` and `grad_norm` (before clipping) are not finite where it was skipped."""

    loss: float
    grad_norm: float
    is_bad: bool


def fit(
    config: RunConfig,
    model: JointModel,
    train: Batches,
    val: Batches,
    *,
    device: torch.device | str,
    folder: Path,
    report: Callable[[PassReport], None],
) -> FitResult:
    """Train `model` in place until `max_passes` or `patience` is reached, going on from what `folder` holds.

    After each pass: validate, write the checkpoint, then call `report` (on every process). A resumed run first
    reports its last pass again, because the interruption may have come before that report arrived.

    Metrics: `train/loss`, `train/grad_norm` (means over good steps), `train/lr` (last step), `train/bad_steps`,
    `val/loss`, `val/top1`, `val/top5`, `val/median_rank`, `val/class_top1` (where classes are known),
    `segments_per_s` (training, all processes), `seconds`.

    Raises:
        InputError: validation shows one image only, the metric needs classes the data do not have, bf16 on a CPU.
        RunInUseError: `folder` holds a run of another configuration or data set; names what differs.
        TrainingDiverged: too many bad steps in a row, or a validation metric that is not finite.
        CheckpointError: a checkpoint could not be written.
    """
    config, device = config.resolved(), torch.device(device)
    _check(config.train, val, device)
    facts = _data_facts(config, train.store)
    state = _start(config, model, device)
    _resume(state, folder, config, facts)
    if state.passes:
        report(_pass_report(config, state))

    while not _is_finished(config.train, state):
        number, started = state.passes + 1, time.monotonic()
        torch.manual_seed(_seed(config.seed, number, processes.rank()))  # dropout; CUDA's generator too

        steps = []
        for index, batch in enumerate(train.passes(number)):
            steps.append(train_step(config, state, batch, number=number, index=index, n_steps=len(train)))
        trained_s = time.monotonic() - started

        metrics, predictions = validate(config, model, val, device)
        metrics |= _summary(steps, number)
        metrics["train/lr"] = state.optimiser.param_groups[0]["lr"]
        metrics["segments_per_s"] = len(train) * config.train.batch_size / trained_s
        metrics["seconds"] = time.monotonic() - started
        metrics = processes.from_first(metrics, device)  # so that every process stops at the same pass

        is_best = _is_better(config.train, metrics, state)
        state.passes = number
        state.history.append(metrics)
        if is_best:
            state.best_pass = number
        _save(state, folder, config, facts, predictions if is_best else None)
        report(_pass_report(config, state))

    best_metrics = state.history[state.best_pass - 1]
    return FitResult(
        best_pass=state.best_pass,
        best_metrics=best_metrics,
        passes=state.passes,
        history=tuple(state.history),
        folder=folder,
    )


def train_step(config: RunConfig, state: TrainState, batch: Batch, *, number: int, index: int, n_steps: int) -> Step:
    """Take optimiser step `index` of pass `number`, or skip it where loss or gradient is not finite.

    N processes give the gradient of one. Each computes the same loss L of the gathered embeddings E = (E_1 .. E_N).
    The gradient that reaches rank r's slice is summed over ranks, N dL/dE_r, since each rank's copy of L depends on
    it; backward through the encoder gives N dL/dE_r dE_r/dw; and averaging over ranks leaves Σ_r dL/dE_r dE_r/dw,
    which is dL/dw. For what acts after the gathering (temperature, bias) every rank has dL/dw, and so has the mean.
    """
    for group in state.optimiser.param_groups:
        group["lr"] = learning_rate(config.optim, (number - 1) * n_steps + index, config.train.max_passes * n_steps)
    _copy(state.buffers, state.spares)

    with _autocast(config.train, batch.eeg_BCT.device):
        eeg_RD, image_RD, scale, bias = state.network(
            batch.eeg_BCT, _laid_out(config.train, batch.image_B3HW), batch.subject_B
        )
    loss = batch_loss(
        config.loss,
        processes.gather(eeg_RD),
        processes.gather(image_RD),
        scale=scale,
        bias=bias,
        image_ids_B=processes.gather(batch.image_B),
        seed=_seed(config.seed, number, index),
    )
    state.optimiser.zero_grad()
    loss.backward()
    grads = [parameter.grad for parameter in state.model.parameters() if parameter.grad is not None]
    grad_norm = get_total_norm(grads)

    loss_value, norm_value = torch.stack([loss.detach(), grad_norm]).tolist()  # the one wait for the device
    is_bad = processes.is_any(not (math.isfinite(loss_value) and math.isfinite(norm_value)), loss.device)
    if is_bad:
        _copy(state.spares, state.buffers)
        state.bad_in_a_row += 1
        if state.bad_in_a_row >= config.train.max_bad_steps:
            rows = processes.gather(batch.row_B).tolist()
            raise TrainingDiverged(
                f"pass {number}, step {index + 1}: loss {loss_value}, gradient norm {norm_value}; "
                f"{state.bad_in_a_row} bad steps in a row (train.max_bad_steps); segments (rows) {rows}. "
                "Lower optim.lr, set optim.clip_norm, or look at these segments"
            )
    else:
        if config.optim.clip_norm is not None:
            clip_grads_with_norm_(state.model.parameters(), config.optim.clip_norm, grad_norm)
        state.optimiser.step()
        state.bad_in_a_row = 0
    return Step(loss=loss_value, grad_norm=norm_value, is_bad=is_bad)


def batch_loss(
    config: LossConfig, eeg_BD: Tensor, image_BD: Tensor, *, scale: Tensor, bias: Tensor, image_ids_B: Tensor, seed: int
) -> Tensor:
    """Return the configured loss of one (global) batch; `seed` draws the triplets' negatives."""
    if config.name == "triplet":
        assert config.margin is not None
        assert config.negatives is not None
        return triplet(
            eeg_BD,
            image_BD,
            image_ids_B=image_ids_B,
            margin=config.margin,
            negatives=config.negatives,
            generator=torch.Generator().manual_seed(seed),
        )
    if config.name == "info_nce":
        return info_nce(eeg_BD, image_BD, scale=scale, image_ids_B=image_ids_B)
    return siglip(eeg_BD, image_BD, scale=scale, bias=bias, image_ids_B=image_ids_B)


def learning_rate(config: OptimConfig, step: int, n_steps: int) -> float:
    """Learning rate of step 0 <= step < n_steps, from the step alone.

    warm-up of w = floor(warmup * n) steps:  lr (step + 1) / w        then constant, or
    cosine:  lr (1 + cos(π (step - w) / (n - 1 - w))) / 2            zero at the last step
    """
    n_warm = int(config.warmup * n_steps)
    if step < n_warm:
        return config.lr * (step + 1) / n_warm
    if config.schedule == "constant":
        return config.lr
    return config.lr * (1 + math.cos(math.pi * (step - n_warm) / max(1, n_steps - 1 - n_warm))) / 2


@torch.no_grad()
def validate(
    config: RunConfig, model: JointModel, val: Batches, device: torch.device
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Retrieve, for every validation segment, its image among the distinct validation images.

    The score is the dot product of the embeddings (cosine where the loss normalises them). `val/loss` is the mean of
    the training loss over batches of `batch_size` segments in a seeded order that is the same after every pass; what
    is left of the last batch takes no part in it. Each process encodes its share; metrics come from all embeddings,
    so they do not depend on the number of processes.

    Returns:
        Metrics, and arrays for a confusion matrix: `row_Q` (of the store), `image_id_Q`, `label_Q`, `rank_Q`, and the
        best gallery items of each query, best first: `top_image_id_QK`, `top_label_QK`, `top_score_QK`.
    """
    model.eval()
    row_Q, eeg_QD, image_M, image_MD = _encode_all(config, model, val, device)
    scale, bias = model.log_scale.exp(), model.bias
    model.train()
    store, loss = val.store, config.loss
    image_Q, label_M = store.image_N[row_Q], store.label_M[image_M]
    target_Q = np.searchsorted(image_M, image_Q)

    order = np.random.default_rng(config.seed).permutation(len(row_Q))
    size = min(config.train.batch_size, len(order))
    losses = []
    for index in range(len(order) // size):
        chosen = torch.from_numpy(order[index * size : (index + 1) * size]).to(device)
        images = torch.from_numpy(target_Q).to(device)[chosen]
        seed = _seed(config.seed, 0, index)
        losses.append(
            batch_loss(loss, eeg_QD[chosen], image_MD[images], scale=scale, bias=bias, image_ids_B=images, seed=seed)
        )

    val_loss = float(torch.stack(losses).mean())
    score_QM = np.concatenate([(part_QD @ image_MD.T).cpu().numpy() for part_QD in eeg_QD.split(1024)])
    if not (math.isfinite(val_loss) and np.isfinite(score_QM).all()):
        raise TrainingDiverged("embeddings of the validation set are not finite; lower optim.lr or set optim.clip_norm")
    rank_Q = retrieval.ranks(score_QM, target_Q)
    metrics = {
        "val/loss": val_loss,
        "val/top1": retrieval.topk_accuracy(rank_Q, 1),
        "val/top5": retrieval.topk_accuracy(rank_Q, 5),
        "val/median_rank": retrieval.median_rank(rank_Q),
    }
    label_Q = store.label_N[row_Q]
    if (is_known_Q := label_Q >= 0).any():
        metrics["val/class_top1"] = retrieval.class_top1(score_QM[is_known_Q], label_M, label_Q[is_known_Q])

    top_QK = np.argsort(-score_QM, axis=1, kind="stable")[:, :_N_KEPT]
    predictions = {
        "row_Q": row_Q,
        "image_id_Q": np.asarray(store.image_id_M)[image_Q].astype(str),
        "label_Q": label_Q,
        "rank_Q": rank_Q,
        "top_image_id_QK": np.asarray(store.image_id_M)[image_M[top_QK]].astype(str),
        "top_label_QK": label_M[top_QK],
        "top_score_QK": np.take_along_axis(score_QM, top_QK, axis=1),
    }
    return metrics, predictions


def _seed(*position: int) -> int:
    """Mix a position in the run into one 63-bit seed."""
    return int(np.random.SeedSequence(position).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _check(config: TrainConfig, val: Batches, device: torch.device) -> None:
    if config.precision == "bf16" and device.type == "cpu":
        # Seen here: a convolution whose output is one sample wide returns whatever was in memory.
        raise InputError(
            "train.precision is 'bf16', but on CPUs torch computes some convolutions wrongly in it "
            "(pytorch/pytorch issue 163347); use 'auto', which is bf16 on GPUs and fp32 on CPUs"
        )
    if val.n_images < 2:
        raise InputError(
            f"validation has {val.n_images} image, so nothing can be told apart; raise data.val_fraction, "
            "use more data or another split"
        )
    if config.metric == "val/class_top1" and (val.store.label_N[val.store.split.rows["val"]] < 0).all():
        raise InputError("train.metric is 'val/class_top1', but the data set has no classes; choose 'val/top1'")


def _data_facts(config: RunConfig, store: Store) -> dict[str, Any]:
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
        "split": config.data.split,
        "split_notes": list(store.split.notes),
    }


def _start(config: RunConfig, model: JointModel, device: torch.device) -> TrainState:
    """Place the model, join it to the other processes and make its optimiser."""
    model.to(device)
    if config.train.channels_last:
        model.to(memory_format=torch.channels_last)
    network: nn.Module = model
    if processes.world() > 1:
        processes.share_batch_norm(model, device)
        devices = [device] if device.type == "cuda" else None
        # Running statistics come from the global batch, so they are equal already.
        network = DistributedDataParallel(model, device_ids=devices, forward_sync_buffers=False)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optim.name]
    optimiser = kind(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=config.optim.lr,
        betas=(config.optim.beta1, config.optim.beta2),
        weight_decay=config.optim.weight_decay,
        fused=device.type in ("cpu", "cuda"),
    )
    buffers = [[b for b in model.buffers() if b.dtype == kind] for kind in {b.dtype for b in model.buffers()}]
    spares = [[torch.empty_like(buffer) for buffer in group] for group in buffers]
    return TrainState(model=model, network=network, optimiser=optimiser, buffers=buffers, spares=spares)


def _copy(sources: list[list[Tensor]], targets: list[list[Tensor]]) -> None:
    """Copy groups of tensors of one type each: a few launches on a GPU where a deep network has hundreds of tensors."""
    for source, target in zip(sources, targets, strict=True):
        torch._foreach_copy_(target, source)


def _resume(state: TrainState, folder: Path, config: RunConfig, facts: dict[str, Any]) -> None:
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
            if old.get(path) != new.get(path) and _changes_results(config, path)
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


def _changes_results(config: RunConfig, path: str) -> bool:
    group, _, name = path.rpartition(".")
    fields = dataclasses.fields(getattr(config, group) if group else config)
    return next(field.metadata.get("fingerprint", True) for field in fields if field.name == name)


def _save(
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


def _autocast(config: TrainConfig, device: torch.device) -> torch.autocast:
    """bf16 arithmetic where asked for, or by `auto` where a GPU has it; weights and losses stay in fp32."""
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    is_on = config.precision == "bf16" or (config.precision == "auto" and has_bf16)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_on)


def _laid_out(config: TrainConfig, image_B3HW: Tensor) -> Tensor:
    return image_B3HW.contiguous(memory_format=torch.channels_last) if config.channels_last else image_B3HW


def _encode_all(
    config: RunConfig, model: JointModel, val: Batches, device: torch.device
) -> tuple[np.ndarray, Tensor, np.ndarray, Tensor]:
    """Encode this process's share of the validation segments and images, then join all shares.

    Returns:
        row_Q sorted (rows of the store), eeg_QD, image_M sorted (rows of its images), image_MD.
    """
    no_keys, no_rows = torch.zeros(0, dtype=torch.int64), torch.zeros(0, config.eeg.embed_dim)
    rows, eegs = [no_keys.to(device)], [no_rows.to(device)]
    numbers, images = list(rows), list(eegs)
    with _autocast(config.train, device):
        for batch in val.passes(1):
            rows.append(batch.row_B)
            eegs.append(model.encode_eeg(batch.eeg_BCT, batch.subject_B))
        for index, (image_B3HW, image_B) in enumerate(val.images(config.train.batch_size)):
            if index % processes.world() == processes.rank():
                numbers.append(image_B)
                images.append(model.encode_image(_laid_out(config.train, image_B3HW)))
    row_Q, eeg_QD = processes.gather_by_key(torch.cat(rows), torch.cat(eegs))
    image_M, image_MD = processes.gather_by_key(torch.cat(numbers), torch.cat(images))
    return row_Q.cpu().numpy(), eeg_QD, image_M.cpu().numpy(), image_MD


def _summary(steps: list[Step], number: int) -> dict[str, float]:
    good = [step for step in steps if not step.is_bad]
    if not good:
        raise TrainingDiverged(
            f"pass {number}: none of its {len(steps)} steps had a finite loss and gradient; "
            "lower optim.lr or set optim.clip_norm"
        )
    return {
        "train/loss": math.fsum(step.loss for step in good) / len(good),
        "train/grad_norm": math.fsum(step.grad_norm for step in good) / len(good),
        "train/bad_steps": float(len(steps) - len(good)),
    }


def _is_better(config: TrainConfig, metrics: dict[str, float], state: TrainState) -> bool:
    if not state.best_pass:
        return True
    new, old = metrics[config.metric], state.history[state.best_pass - 1][config.metric]
    return new < old if config.mode == "min" else new > old


def _is_finished(config: TrainConfig, state: TrainState) -> bool:
    is_out_of_patience = config.patience is not None and state.passes - state.best_pass >= config.patience
    return state.passes >= config.max_passes or is_out_of_patience


def _pass_report(config: RunConfig, state: TrainState) -> PassReport:
    metrics = state.history[-1]
    return PassReport(
        number=state.passes,
        metrics=metrics,
        best=state.best_pass == state.passes,
        objective=state.history[state.best_pass - 1][config.train.metric],
        seconds=metrics["seconds"],
    )
