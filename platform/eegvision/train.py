"""Training: one loop for one process and for N, from the first batch to the best checkpoint.

Joint models and the arms with one encoder go the same way; only what is asked of them differs (`objective`, and
`validate`). What a pass leaves in its folder is in `resume`.

Everything random is a function of (seed, pass, step, rank), and the learning rate of the step, so the position in
the run is all the generator and scheduler state there is: a resumed run equals one that was never interrupted.
N processes hold one slice each of every global batch and compute the loss over the whole of it, so that N equal 1
up to rounding. A batch too large for the GPU is encoded in parts (`parts`), which is stored and reported.
Axes: B batch, D embedding, R rows of one rank, Q queries, M images, K best gallery items or classes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from eegvision import parts, processes, telemetry
from eegvision.config import RunConfig, TrainConfig
from eegvision.encoders.joint import JointModel, Pairs
from eegvision.evaluate import retrieval
from eegvision.losses import classification
from eegvision.objective import batch_loss
from eegvision.optim import build_optimiser, learning_rate
from eegvision.resume import Stored, Tally, TrainState, data_facts, resume, save
from eegvision.vocab import InputError

if TYPE_CHECKING:  # the loop runs without Ray, which `stream` imports
    from eegvision.stream import Batch, Batches

# Gallery images kept per query in the stored predictions.
_N_KEPT = 10
# Segments named when a run diverges.
_N_NAMED = 16
# What a process wishes for after a step; where wishes differ, the highest is done.
_GO_ON, _SAVE, _STOP = 0, 1, 2


class TrainingDiverged(RuntimeError):  # noqa: N818
    """Losses or gradients are no longer finite; the message names pass, step and segments."""


class Stopped(KeyboardInterrupt):
    """`should_stop` asked for an end; the position is stored, and the same call goes on from there."""


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
    attempt: int
    """Number of the attempt at this run, from 1; see `resume.claim`."""
    parts: int
    """Into how many parts the rows of a batch were cut, because the GPU was too small for them at once."""
    fell_back: bool
    """Whether this attempt had to pass over a damaged checkpoint; said once, in its first report."""
    last: Stored | None
    """The newest checkpoint; known to the first process alone, as `best_stored`."""
    best_stored: Stored | None
    """The checkpoint of the best pass, where it is whole."""


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """A finished run."""

    best_pass: int
    best_metrics: dict[str, float]
    passes: int
    history: tuple[dict[str, float], ...]
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimiser step; `loss` and `grad_norm` (before clipping) are not finite where it was skipped."""

    loss: float
    grad_norm: float
    is_bad: bool
    wish: int
    """The highest of all processes."""


class StepTaker(Protocol):
    """Takes one optimiser step, as `train_step` does."""

    def __call__(
        self, config: RunConfig, state: TrainState, batch: Batch, *, number: int, index: int, n_steps: int, wish: int
    ) -> Step: ...


def fit(
    config: RunConfig,
    model: JointModel,
    train: Batches,
    val: Batches,
    *,
    device: torch.device | str,
    folder: Path,
    report: Callable[[PassReport], None],
    should_stop: Callable[[], bool] = lambda: False,
    take_step: StepTaker | None = None,
) -> FitResult:
    """Train `model` in place until `max_passes` or `patience` is reached, going on from what `folder` holds.

    After each pass: validate, write the checkpoint, then call `report` (on every process). A resumed run first
    reports its last pass again, because the interruption may have come before that report arrived. A run that was
    interrupted within a pass goes on after the step that was stored last (`save_minutes`, `should_stop`).

    Where a GPU's memory is too small for a batch, its rows are encoded in 2, 4, 8 or 16 parts, and the step is taken
    again. Of several processes the others cannot know, so that the attempt ends and the next one cuts the batches.

    Metrics: `train/loss`, `train/grad_norm` (means over good steps), `train/lr` (last step), `train/bad_steps`,
    `segments_per_s` (training, all processes), `seconds`, and those of `validate`.

    Args:
        should_stop: asked before each step, so it must be quick; once it says yes on some process, the position after
            that step is stored and `Stopped` is raised. During validation nobody asks.
        take_step: takes the place of `train_step`; see `together`.

    Raises:
        InputError: validation shows one image only, metric or loss need classes the data do not have, the loss needs
            a margin or texts and there are none, bf16 on a CPU.
        RunInUseError: `folder` holds a run of another configuration or data set; names what differs.
        TrainingDiverged: too many bad steps in a row, or a validation metric that is not finite.
        NotWritten: a checkpoint could not be written.
        Superseded: a later attempt has taken over `folder`.
        GpuOutOfMemoryError: the GPU is too small, also for a sixteenth of a batch.
        NeedsMoreParts: another attempt is needed, which cuts batches into more parts (several processes only).
        Stopped: as asked for.
    """
    config, device = config.resolved(), torch.device(device)
    _check(config, val, device)
    facts = data_facts(config, train.store, model)
    state = _start(config, model, device, folder)
    n_rows = config.train.batch_size // processes.world()
    with telemetry.at(training=folder.name):
        resume(state, config, facts)
        if state.passes:
            _tell(report, config, state)

        while not _is_finished(config.train, state):
            if processes.is_any(should_stop(), device):
                raise Stopped(f"stopped after pass {state.passes}")
            number = state.passes + 1
            with telemetry.at(pass_number=number):
                _take_steps(config, state, train, facts, should_stop, take_step or train_step)
                began = time.monotonic()
                metrics, predictions = parts.fitted(
                    state, n_rows, lambda: validate(config, model, val, device, state.parts)
                )
                metrics |= _summary(config, state.tally, number, len(train))
                metrics["seconds"] = state.tally.seconds + time.monotonic() - began
                metrics = processes.from_first(metrics, device)  # so that every process stops at the same pass

                is_best = _is_better(config, metrics, state)
                state.passes, state.tally = number, Tally()
                state.history.append(metrics)
                if is_best:
                    state.best_pass = number
                save(state, config, facts, predictions if is_best else None)
                _tell(report, config, state)

    best_metrics = state.history[state.best_pass - 1]
    return FitResult(
        best_pass=state.best_pass,
        best_metrics=best_metrics,
        passes=state.passes,
        history=tuple(state.history),
        folder=folder,
    )


def _take_steps(
    config: RunConfig,
    state: TrainState,
    train: Batches,
    facts: dict[str, Any],
    should_stop: Callable[[], bool],
    take_step: StepTaker,
) -> None:
    """Take the steps that the pass under way still owes, and store the position now and then and when asked to stop."""
    number, n_steps = state.passes + 1, len(train)
    began = counted = time.monotonic()
    period_s = math.inf if config.train.save_minutes is None else 60 * config.train.save_minutes
    for index, batch in enumerate(train.passes(number, state.tally.steps), start=state.tally.steps):
        wish = _STOP if should_stop() else _SAVE if time.monotonic() - began > period_s else _GO_ON
        step = parts.fitted(
            state,
            len(batch.row_B),
            lambda batch=batch, index=index, wish=wish: take_step(
                config, state, batch, number=number, index=index, n_steps=n_steps, wish=wish
            ),
        )
        state.tally.add(step.loss, step.grad_norm, is_bad=step.is_bad)
        if state.bad_in_a_row >= config.train.max_bad_steps:
            raise _divergence(state, step, batch, train)
        if step.wish != _GO_ON:
            now = time.monotonic()
            state.tally.seconds += now - counted
            save(state, config, facts)
            began = counted = time.monotonic()
        if step.wish == _STOP:
            raise Stopped(f"stopped after step {index + 1} of pass {number}")
    state.tally.seconds += time.monotonic() - counted


def train_step(
    config: RunConfig, state: TrainState, batch: Batch, *, number: int, index: int, n_steps: int, wish: int = _GO_ON
) -> Step:
    """Take optimiser step `index` of pass `number`, or skip it where loss or gradient is not finite.

    N processes give the gradient of one. Each computes the same loss L of the gathered outputs E = (E_1 .. E_N) of the
    encoders (embeddings, or logits where one encoder is trained alone).
    The gradient that reaches rank r's slice is summed over ranks, N dL/dE_r, since each rank's copy of L depends on
    it; backward through the encoder gives N dL/dE_r dE_r/dw; and averaging over ranks leaves Σ_r dL/dE_r dE_r/dw,
    which is dL/dw. For what acts after the gathering (temperature, bias) every rank has dL/dw, and so has the mean.

    `wish` is what this process wants done after the step; the answer holds what all do.

    Raises:
        torch.OutOfMemoryError: the GPU's memory is full; the state is as it was before.
        GpuOutOfMemoryError: it is so without any activations in it.
    """
    for group in state.optimiser.param_groups:
        group["lr"] = learning_rate(config.optim, (number - 1) * n_steps + index, config.train.max_passes * n_steps)
    _copy(state.buffers, state.spares)
    try:
        loss = _backward(config, state, batch, mixed_seed(config.seed, number, index))
        grads = [parameter.grad for parameter in state.model.parameters() if parameter.grad is not None]
        grad_norm = get_total_norm(grads)
    except torch.OutOfMemoryError:
        _copy(state.spares, state.buffers)
        state.optimiser.zero_grad()
        raise

    loss_value, norm_value = torch.stack([loss.detach(), grad_norm]).tolist()  # the one wait for the device
    is_bad_here = not (math.isfinite(loss_value) and math.isfinite(norm_value))
    is_bad, wish = processes.highest([int(is_bad_here), wish], loss.device)
    if is_bad:
        _copy(state.spares, state.buffers)
        state.bad_in_a_row += 1
    else:
        if config.optim.clip_norm is not None:
            clip_grads_with_norm_(state.model.parameters(), config.optim.clip_norm, grad_norm)
        try:
            state.optimiser.step()
        except torch.OutOfMemoryError as error:  # weights may have moved already, and smaller parts would not help
            raise parts.GpuOutOfMemoryError(
                "the GPU's memory holds the weights, but not the optimiser's moments as well; choose smaller encoders, "
                f"or give each training a whole GPU. The GPU said: {parts.first_line(error)}"
            ) from None
        state.bad_in_a_row = 0
    return Step(loss=loss_value, grad_norm=norm_value, is_bad=bool(is_bad), wish=wish)


def _backward(config: RunConfig, state: TrainState, batch: Batch, seed: int) -> Tensor:
    """Compute the loss of a batch and the gradient of all weights."""
    # Dropout. `torch.manual_seed` would do the same for every kind of device there might be, which takes longer.
    _generator(batch.eeg_BCT.device).manual_seed(seed ^ (1 + processes.rank()))
    image_RX = None if batch.image_BX is None else laid_out(config.train, batch.image_BX)
    text_RF = batch.text_BF if config.loss.text_weight else None
    with autocast(config.train, batch.eeg_BCT.device):
        outputs = state.network(batch.eeg_BCT, image_RX, batch.subject_B, state.parts)
    loss = batch_loss(
        config.loss,
        _gathered(outputs),
        image_ids_B=processes.gather(batch.image_B),
        label_B=processes.gather(batch.label_B),
        text_BF=None if text_RF is None else processes.gather(text_RF),
        seed=seed,
    )
    state.optimiser.zero_grad()
    moved = [[buffer.clone() for buffer in group] for group in state.buffers] if state.parts > 1 else []
    loss.backward()
    if moved:  # parts pass through the network twice, and only once may running statistics notice
        _copy(moved, state.buffers)
    return loss


def _divergence(state: TrainState, step: Step, batch: Batch, train: Batches) -> TrainingDiverged:
    """Say what happened, and name the segments that are themselves not finite, or else all of the last batch."""
    is_finite_R = batch.eeg_BCT.flatten(1).isfinite().all(1)
    if batch.image_BX is not None:
        is_finite_R &= batch.image_BX.flatten(1).isfinite().all(1)
    rows, is_finite = processes.gather(batch.row_B).tolist(), processes.gather(is_finite_R.int()).tolist()
    spoiled = [row for row, is_good in zip(rows, is_finite, strict=True) if not is_good]
    named = train.store.segment_id_N[spoiled or rows].tolist()
    some = ", ".join(map(str, named[:_N_NAMED]))
    others = f" and {len(named) - _N_NAMED} more" if len(named) > _N_NAMED else ""
    what = "segments with values that are not finite" if spoiled else "segments of the last of them"
    return TrainingDiverged(
        f"pass {state.passes + 1}, step {state.tally.steps}: loss {step.loss}, gradient norm {step.grad_norm}; "
        f"{state.bad_in_a_row} bad steps in a row (train.max_bad_steps); {what}: {some}{others}. "
        "Lower optim.lr, set optim.clip_norm, or look at these segments"
    )


@torch.no_grad()
def validate(
    config: RunConfig, model: JointModel, val: Batches, device: torch.device, n_parts: int = 1
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Ask a joint model for the image of every validation segment, and a classifier for the class.

    Each process encodes its share; metrics come from all embeddings, so they do not depend on the number of processes.
    Nor do they on `n_parts`, into which batches are cut for encoding.

    Joint: each segment's image is retrieved among the distinct validation images; the score is the dot product of the
    embeddings (cosine where the loss normalises both). `val/top1`, `val/top5`, `val/median_rank`, `val/class_top1`
    (where classes are known), and `val/loss`, the mean of the training loss over batches of `batch_size` segments in a
    seeded order that is the same after every pass; what is left of the last batch takes no part in it.

    One encoder: `val/accuracy`, the share of right classes, and `val/loss`, the mean cross-entropy, over the segments
    (of `eeg-classes`) or the distinct images (of `image-classes`) that have a class.

    Returns:
        Metrics, and arrays: `row_Q` (of the store; for an image the first segment that shows it), `image_id_Q`,
        `label_Q`, and from a classifier `predicted_Q`; from a joint model `rank_Q` and the best gallery items of each
        query, best first: `top_image_id_QK`, `top_label_QK`, `top_score_QK`.
    """
    model.eval()
    asked = _retrieved if model.classifier is None else _classified
    metrics, predictions = asked(config, model, val, device, n_parts)
    model.train()
    row_Q = predictions["row_Q"]
    shown = {
        "image_id_Q": np.asarray(val.store.image_id_M)[val.store.image_N[row_Q]].astype(str),
        "label_Q": val.store.label_N[row_Q],
    }
    return metrics, shown | predictions


def _retrieved(
    config: RunConfig, model: JointModel, val: Batches, device: torch.device, n_parts: int
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    row_Q, eeg_QD, text_QF = _encode_segments(config, model, val, device, n_parts)
    image_M, image_MD = _encode_images(config, model, val, device, n_parts)
    store = val.store
    label_Q, label_M = store.label_N[row_Q], store.label_M[image_M]
    target_Q = np.searchsorted(image_M, store.image_N[row_Q])

    order = np.random.default_rng(config.seed).permutation(len(row_Q))
    size = min(config.train.batch_size, len(order))
    losses = []
    for index in range(len(order) // size):
        chosen = torch.from_numpy(order[index * size : (index + 1) * size]).to(device)
        images = torch.from_numpy(target_Q).to(device)[chosen]
        losses.append(
            batch_loss(
                config.loss,
                Pairs(eeg_QD[chosen], image_MD[images], model.scale, model.bias),
                image_ids_B=images,
                label_B=torch.from_numpy(label_Q).to(device)[chosen],
                text_BF=None if text_QF is None else text_QF[chosen],
                seed=mixed_seed(config.seed, 0, index),
            )
        )

    val_loss = float(torch.stack(losses).mean())
    score_QM = np.concatenate([(part_QD @ image_MD.T).cpu().numpy() for part_QD in eeg_QD.split(1024)])
    _require_finite(val_loss, score_QM)
    rank_Q = retrieval.ranks(score_QM, target_Q)
    metrics = {
        "val/loss": val_loss,
        "val/top1": retrieval.topk_accuracy(rank_Q, 1),
        "val/top5": retrieval.topk_accuracy(rank_Q, 5),
        "val/median_rank": retrieval.median_rank(rank_Q),
    }
    if (is_known_Q := label_Q >= 0).any():
        metrics["val/class_top1"] = retrieval.class_top1(score_QM[is_known_Q], label_M, label_Q[is_known_Q])

    top_QK = np.argsort(-score_QM, axis=1, kind="stable")[:, :_N_KEPT]
    predictions = {
        "row_Q": row_Q,
        "rank_Q": rank_Q,
        "top_image_id_QK": np.asarray(store.image_id_M)[image_M[top_QK]].astype(str),
        "top_label_QK": label_M[top_QK],
        "top_score_QK": np.take_along_axis(score_QM, top_QK, axis=1),
    }
    return metrics, predictions


def _classified(
    config: RunConfig, model: JointModel, val: Batches, device: torch.device, n_parts: int
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    store = val.store
    if model.image is None:
        row_Q, embedding_QD, _ = _encode_segments(config, model, val, device, n_parts)
    else:
        image_M, embedding_QD = _encode_images(config, model, val, device, n_parts)
        rows = store.split.rows["val"]
        first_M = np.unique(store.image_N[rows], return_index=True)[1]
        row_Q = rows[first_M]
        assert np.array_equal(store.image_N[row_Q], image_M)
    logit_QK, label_Q = model.classify(embedding_QD), store.label_N[row_Q]
    val_loss = float(classification(logit_QK, torch.from_numpy(label_Q).to(device)))
    _require_finite(val_loss, logit_QK.cpu().numpy())
    predicted_Q = logit_QK.argmax(1).cpu().numpy()
    accuracy = float(np.mean((predicted_Q == label_Q)[label_Q >= 0]))
    return {"val/loss": val_loss, "val/accuracy": accuracy}, {"row_Q": row_Q, "predicted_Q": predicted_Q}


def _require_finite(val_loss: float, score_QM: np.ndarray) -> None:
    if not (math.isfinite(val_loss) and np.isfinite(score_QM).all()):
        raise TrainingDiverged("embeddings of the validation set are not finite; lower optim.lr or set optim.clip_norm")


def mixed_seed(*position: int) -> int:
    """Mix a position in the run into one 63-bit seed."""
    return int(np.random.SeedSequence(position).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _check(config: RunConfig, val: Batches, device: torch.device) -> None:
    if config.train.precision == "bf16" and device.type == "cpu":
        # Seen here: a convolution whose output is one sample wide returns whatever was in memory.
        raise InputError(
            "train.precision is 'bf16', but on CPUs torch computes some convolutions wrongly in it "
            "(pytorch/pytorch issue 163347); use 'auto', which is bf16 on GPUs and fp32 on CPUs"
        )
    loss, store = config.loss, val.store
    trained, validated = (np.unique(store.label_N[store.split.rows[side]]) for side in ("train", "val"))
    trained, validated = trained[trained >= 0], validated[validated >= 0]
    if loss.arm != "joint" and len(trained) < 2:
        raise InputError(
            f"loss.name {loss.name!r} tells classes apart, but the training set has {len(trained)}; it needs at least "
            "2: use more data, another split, or a loss that needs no classes"
        )
    if loss.arm != "joint" and not np.isin(validated, trained).any():
        raise InputError(
            f"loss.name {loss.name!r} can only name classes it was trained on, and validation shows none of them; "
            f"data.split is {config.data.split!r}, choose one that keeps classes on both sides, such as 'by-image'"
        )
    if loss.arm == "joint" and val.n_images < 2:
        raise InputError(
            f"validation has {val.n_images} image, so nothing can be told apart; raise data.val_fraction, "
            "use more data or another split"
        )
    if config.metric == "val/class_top1" and not len(validated):
        raise InputError("train.metric is 'val/class_top1', but the data set has no classes; choose 'val/top1'")
    if loss.centre_weight and not len(trained):
        raise InputError("loss.centre_weight needs classes, but the data set has none; leave it out")


def _generator(device: torch.device) -> torch.Generator:
    """Return the generator that layers on this device draw from."""
    if device.type != "cuda":
        return torch.default_generator
    return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]


def _start(config: RunConfig, model: JointModel, device: torch.device, folder: Path) -> TrainState:
    """Place the model, join it to the other processes and make its optimiser."""
    model.to(device)
    if config.train.channels_last:
        model.to(memory_format=torch.channels_last)
    network: nn.Module = parts.InParts(model)
    if processes.world() > 1:
        processes.share_batch_norm(model, device)
        devices = [device] if device.type == "cuda" else None
        # Running statistics come from the global batch, so they are equal already.
        network = DistributedDataParallel(network, device_ids=devices, forward_sync_buffers=False)
    optimiser = build_optimiser(config.optim, model, device)
    buffers = [[b for b in model.buffers() if b.dtype == kind] for kind in {b.dtype for b in model.buffers()}]
    spares = [[torch.empty_like(buffer) for buffer in group] for group in buffers]
    return TrainState(model=model, network=network, optimiser=optimiser, buffers=buffers, spares=spares, folder=folder)


def _copy(sources: list[list[Tensor]], targets: list[list[Tensor]]) -> None:
    """Copy groups of tensors of one type each: a few launches on a GPU where a deep network has hundreds of tensors."""
    for source, target in zip(sources, targets, strict=True):
        torch._foreach_copy_(target, source)


def autocast(config: TrainConfig, device: torch.device) -> torch.autocast:
    """bf16 arithmetic where asked for, or by `auto` where a GPU has it; weights and losses stay in fp32."""
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    is_on = config.precision == "bf16" or (config.precision == "auto" and has_bf16)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_on)


def laid_out(config: TrainConfig, image_BX: Tensor) -> Tensor:
    is_picture = image_BX.ndim == 4
    return image_BX.contiguous(memory_format=torch.channels_last) if config.channels_last and is_picture else image_BX


def _gathered(outputs: Pairs | Tensor) -> Pairs | Tensor:
    """Join what the model gave for each process's rows."""
    if isinstance(outputs, Tensor):
        return processes.gather(outputs)
    return outputs._replace(eeg_BD=processes.gather(outputs.eeg_BD), image_BD=processes.gather(outputs.image_BD))


def _encode_segments(
    config: RunConfig, model: JointModel, val: Batches, device: torch.device, n_parts: int
) -> tuple[np.ndarray, Tensor, Tensor | None]:
    """Encode this process's share of the validation segments, then join all shares.

    Returns:
        row_Q sorted (rows of the store), eeg_QD, and text_QF where the loss needs texts.
    """
    rows = [torch.zeros(0, dtype=torch.int64, device=device)]
    eegs = [torch.zeros(0, config.eeg.embed_dim, device=device)]
    texts = list(eegs)
    with autocast(config.train, device):
        for batch in val.passes(1):
            rows.append(batch.row_B)
            some = zip(parts.pieces(batch.eeg_BCT, n_parts), parts.pieces(batch.subject_B, n_parts), strict=True)
            eegs += [model.encode_eeg(eeg_BCT, subject_B) for eeg_BCT, subject_B in some]
            if config.loss.text_weight and batch.text_BF is not None:
                texts.append(batch.text_BF)
    row_Q, eeg_QD = processes.gather_by_key(torch.cat(rows), torch.cat(eegs))
    text_QF = processes.gather_by_key(torch.cat(rows), torch.cat(texts))[1] if config.loss.text_weight else None
    return row_Q.cpu().numpy(), eeg_QD, text_QF


def _encode_images(
    config: RunConfig, model: JointModel, val: Batches, device: torch.device, n_parts: int
) -> tuple[np.ndarray, Tensor]:
    """Encode this process's share of the distinct validation images, then join: image_M sorted, image_MD."""
    numbers = [torch.zeros(0, dtype=torch.int64, device=device)]
    images = [torch.zeros(0, config.image.embed_dim, device=device)]
    with autocast(config.train, device):
        for index, (image_BX, image_B) in enumerate(val.images(config.train.batch_size)):
            if index % processes.world() == processes.rank():
                numbers.append(image_B)
                images += [model.encode_image(laid_out(config.train, x)) for x in parts.pieces(image_BX, n_parts)]
    image_M, image_MD = processes.gather_by_key(torch.cat(numbers), torch.cat(images))
    return image_M.cpu().numpy(), image_MD


def _summary(config: RunConfig, tally: Tally, number: int, n_steps: int) -> dict[str, float]:
    if not tally.good:
        raise TrainingDiverged(
            f"pass {number}: none of its {tally.steps} steps had a finite loss and gradient; "
            "lower optim.lr or set optim.clip_norm"
        )
    return {
        "train/loss": tally.loss / tally.good,
        "train/grad_norm": tally.grad_norm / tally.good,
        "train/bad_steps": float(tally.steps - tally.good),
        "train/lr": learning_rate(config.optim, number * n_steps - 1, config.train.max_passes * n_steps),
        "segments_per_s": n_steps * config.train.batch_size / tally.seconds,
    }


def _is_better(config: RunConfig, metrics: dict[str, float], state: TrainState) -> bool:
    if not state.best_pass:
        return True
    new, old = metrics[config.metric], state.history[state.best_pass - 1][config.metric]
    return new < old if config.mode == "min" else new > old


def _is_finished(config: TrainConfig, state: TrainState) -> bool:
    is_out_of_patience = config.patience is not None and state.passes - state.best_pass >= config.patience
    return state.passes >= config.max_passes or is_out_of_patience


def _tell(report: Callable[[PassReport], None], config: RunConfig, state: TrainState) -> None:
    metrics = state.history[-1]
    done = PassReport(
        number=state.passes,
        metrics=metrics,
        best=state.best_pass == state.passes,
        objective=state.history[state.best_pass - 1][config.metric],
        seconds=metrics["seconds"],
        attempt=state.attempt,
        parts=state.parts,
        fell_back=state.fell_back,
        last=state.last,
        best_stored=state.best,
    )
    state.fell_back = False
    report(done)
