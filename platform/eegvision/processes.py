"""N processes that train as one: what they share, and nothing of training itself.

Everything works alike without a process group, where there is one process and nothing to exchange. A tensor that
was summed or gathered depends on every process's input, so its gradient is summed over processes on the way back.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if world() > 1 else 0


def gather(row_R: Tensor, sizes: list[int] | None = None) -> Tensor:
    """Join the rows of all processes in rank order, differentiably.

    Args:
        row_R: this process's rows, any further axes.
        sizes: how many rows each process has; by default as many as this one.
    """
    if world() == 1:
        return row_R
    sizes = sizes or [len(row_R)] * world()
    start = sum(sizes[: rank()])
    everyone = row_R.new_zeros(sum(sizes), *row_R.shape[1:])
    everyone[start : start + len(row_R)] = row_R
    return _GlobalSum.apply(everyone)


def gather_by_key(key_R: Tensor, row_R: Tensor) -> tuple[Tensor, Tensor]:
    """Join keyed rows of all processes, of which each may have any number, and sort them by key."""
    sizes = gather(torch.tensor([len(key_R)], device=key_R.device)).tolist()
    keys, order = gather(key_R, sizes).sort()
    return keys, gather(row_R, sizes)[order]


def is_any(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on some process. Returns once all have asked, so it is a barrier too."""
    return bool(highest([int(flag)], device)[0])


def highest(numbers: list[int], device: torch.device) -> list[int]:
    """Return each number's largest value over processes, in one message; a barrier too."""
    if world() == 1:
        return numbers
    values = torch.tensor(numbers, device=device)
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return values.tolist()


def from_first(numbers: dict[str, float], device: torch.device) -> dict[str, float]:
    """Return rank 0's values, for decisions that must be the same everywhere; the names must agree already."""
    if world() == 1:
        return numbers
    values = torch.tensor(list(numbers.values()), dtype=torch.float64, device=device)
    dist.broadcast(values, src=0)
    return dict(zip(numbers, values.tolist(), strict=True))


def share_batch_norm(model: nn.Module, device: torch.device) -> None:
    """Let every BatchNorm of a model take its statistics from the batches of all processes, in place."""
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(parent, name, GlobalBatchNorm(child))


class GlobalBatchNorm(nn.Module):
    """BatchNorm over the batches of all processes, for devices where torch's SyncBatchNorm does not run (CPU).

    Takes over the parameters, buffers and names of the layer it replaces, so checkpoints do not change. The mean is
    summed over processes first and the squared deviations from it second: two messages, but no cancellation.
    """

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__()
        assert norm.track_running_stats, "every BatchNorm of our encoders keeps running statistics"
        self.eps, self.momentum = norm.eps, norm.momentum
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean: Tensor
        self.running_var: Tensor
        self.num_batches_tracked: Tensor
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(norm, name))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        axes, shape = [0, *range(2, x.ndim)], [1, -1] + [1] * (x.ndim - 2)
        precise = x.float()
        n_here = torch.full((1,), float(x.numel() // x.shape[1]), device=x.device)
        total = _GlobalSum.apply(torch.cat([precise.sum(axes), n_here]))
        n, mean = total[-1], total[:-1] / total[-1]
        centred = precise - mean.view(shape)
        var = _GlobalSum.apply((centred * centred).sum(axes)) / n
        with torch.no_grad():
            self.num_batches_tracked += 1
            weight = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean.detach(), weight)
            self.running_var.lerp_(var.detach() * n / (n - 1), weight)
        normalised = centred * torch.rsqrt(var + self.eps).view(shape)
        if self.weight is not None:
            normalised = normalised * self.weight.view(shape) + self.bias.view(shape)
        return normalised.to(x.dtype)


class _GlobalSum(torch.autograd.Function):
    """Sum over processes, and of gradients on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:  # noqa: ARG004
        total = grad_outputs[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total
