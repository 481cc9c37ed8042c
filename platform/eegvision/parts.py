"""A batch that is too large for a GPU's memory, encoded in parts.

Losses compare all pairs of a batch, so the batch cannot simply be halved. But what fills the memory are the encoders'
activations, not the embeddings: rows go through the network part by part, each part's activations are made once more
on the way back (gradient checkpointing), and the loss is one over all rows. The gradient is that of the whole batch,
but for BatchNorm, whose statistics are those of each part, and for other dropout masks.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from eegvision import processes
from eegvision.encoders.joint import JointModel, Pairs
from eegvision.resume import TrainState, save_parts
from eegvision.vocab import InputError

# A sixteenth of a batch; what does not fit then wants other settings.
_MOST = 16

_log = logging.getLogger(__name__)

T = TypeVar("T")


class GpuOutOfMemoryError(InputError):
    """The GPU's memory is too small for this training, however its batches are cut."""


class NeedsMoreParts(RuntimeError):  # noqa: N818
    """The GPU's memory was full on one of several processes; the next attempt cuts batches into more parts."""


class InParts(nn.Module):
    """A model as training calls it: activations of one part of a batch at a time are in memory."""

    def __init__(self, model: JointModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, eeg_BCT: Tensor | None, image_BX: Tensor | None, subject_B: Tensor | None, parts: int
    ) -> Pairs | Tensor:
        """Return what `JointModel` does; in one part it is nothing but that.

        BatchNorm's running statistics move once per part, and once more on the way back: put the latter right.
        """
        if parts == 1:
            return self.model(eeg_BCT, image_BX, subject_B)
        columns = [_cut(rows, parts) for rows in (eeg_BCT, image_BX, subject_B)]
        outputs = [checkpoint(self.model, *rows, use_reentrant=False) for rows in zip(*columns, strict=True)]
        if isinstance(outputs[0], Tensor):
            return torch.cat(outputs)
        eegs, images = (torch.cat(side) for side in list(zip(*outputs, strict=True))[:2])
        return cast("Pairs", outputs[0])._replace(eeg_BD=eegs, image_BD=images)


def _cut(rows: Tensor | None, parts: int) -> list[Tensor | None]:
    return [None] * parts if rows is None else list(rows.tensor_split(parts))


def pieces(rows: Tensor, parts: int) -> tuple[Tensor, ...]:
    """Cut rows that are only evaluated into at most `parts` parts, none of them empty."""
    return rows.split(max(1, -(-len(rows) // parts)))


def fitted(state: TrainState, n_rows: int, work: Callable[[], T]) -> T:
    """Return `work()`; while a GPU's memory is too small for it, cut batches into twice as many parts and try again.

    Args:
        state: of the run, whose `parts` work goes by.
        n_rows: rows of a batch on this process.
        work: leaves everything as it was where it raises torch.OutOfMemoryError.
    Raises:
        GpuOutOfMemoryError: parts are as small as they can be.
        NeedsMoreParts: there are several processes, of which the others know nothing and wait for this one.
    """
    while True:
        try:
            return work()
        except torch.OutOfMemoryError as error:
            said = first_line(error)
        # Only here are the error, and with it the tensors its traceback holds, gone.
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        before = state.parts
        save_parts(state, _more(before, n_rows, said))
        cut = f"batches of {n_rows} segments are encoded in {state.parts} parts instead of {before}"
        if processes.world() > 1:
            raise NeedsMoreParts(f"a GPU's memory is full; from the next attempt on {cut}")
        _log.warning("the GPU's memory is full; from now on %s: the loss is still that of the whole batch", cut)


def first_line(error: BaseException) -> str:
    """Return what an error says, without the GPU's statistics below it."""
    return str(error).strip().partition("\n")[0]


def _more(parts: int, n_rows: int, said: str) -> int:
    if 2 * parts > _MOST or n_rows // (2 * parts) < 2:  # a BatchNorm needs two rows
        each = f"in {parts} parts" if parts > 1 else "at once"
        raise GpuOutOfMemoryError(
            f"the GPU's memory is full even with a batch of {n_rows} segments taken {each}; lower train.batch_size, "
            f"choose smaller encoders, or give each training a whole GPU. The GPU said: {said}"
        )
    return 2 * parts
