"""The optimiser of a training, and its learning rate."""

from __future__ import annotations

import inspect
import math

import torch
from torch import nn

from eegvision.config import OptimConfig


def build_optimiser(config: OptimConfig, model: nn.Module, device: torch.device) -> torch.optim.Adam:
    """Return Adam, or AdamW, over the weights of a model that are trained, fused where the device has that."""
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.name]
    return _uncompiled(kind)(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        weight_decay=config.weight_decay,
        fused=device.type in ("cpu", "cuda"),
    )


def _uncompiled(kind: type[torch.optim.Adam]) -> type[torch.optim.Adam]:
    """Return an optimiser that is never part of a compiled program.

    Used as they are, torch's import its compiler when they are made, two seconds of every process that trains.
    """
    apart = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
    plain = {name: inspect.unwrap(getattr(kind, name)) for name in apart}
    return type(kind.__name__, (kind,), plain | {"step": torch.no_grad()(inspect.unwrap(kind.step))})


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
