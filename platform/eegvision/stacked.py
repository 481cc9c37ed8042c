"""K trainings of one family as one network: their weights stacked, their steps taken at once.

A step is that of `train.train_step` for each of them: the forward pass goes through `torch.vmap`, losses that differ in
numbers alone as well, and Adam moves all weights as one matrix [K, P]. What each training owns (weights, buffers,
moments) become views of its row, so that its validation and its checkpoints need not know.

Equal to K steps alone up to rounding, draws of dropout included; on a GPU these are others than alone, since the
fused kernel there draws in an order of its own.
Axes: K trainings, P weights of one, B batch, D embedding.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from eegvision.config import LossConfig, RunConfig
from eegvision.encoders.joint import MAX_LOG_SCALE, Pairs
from eegvision.objective import batch_loss
from eegvision.optim import learning_rate
from eegvision.resume import TrainState
from eegvision.train import Step, autocast, mixed_seed

if TYPE_CHECKING:  # the loop runs without Ray, which `stream` imports
    from eegvision.stream import Batch

# EEG encoders all of whose layers can be stacked, and draw nothing but what `_Dropout` draws.
ENCODERS = ("tsconv", "nice-sa", "nice-ga", "nice-shallow", "nice-deep", "nice-eegnet")

_EPS = 1e-8  # of torch's Adam


def family(config: RunConfig) -> tuple[Any, ...] | None:
    """Return what trainings must have in common to be stacked; None where a training cannot be, whatever the others.

    They may differ in seed, loss, temperature, learning rate and schedule, weight decay, betas, clipping, patience
    and number of passes. They must share data, encoders, the sizes of batches, the scalars that are learned, and the
    kind of optimiser. Pictures must be frozen features: an image network fills the device by itself.
    """
    config = config.resolved()
    loss, train = config.loss, config.train
    if config.eeg.encoder not in ENCODERS or config.eeg.subjects or not config.image.is_frozen or loss.arm != "joint":
        return None
    learned = loss.learn_temperature, loss.name == "siglip" and loss.learn_temperature
    form = loss.normalise_eeg, loss.normalise_image, loss.scale, *learned
    return config.eeg, config.image, config.data, form, train.batch_size, train.precision, config.optim.name


@dataclass(frozen=True, kw_only=True)
class Request:
    """One training's next step, as `train_step` takes it."""

    config: RunConfig
    state: TrainState
    batch: Batch
    number: int
    index: int
    n_steps: int
    wish: int

    @property
    def rate(self) -> float:
        """Learning rate of the step."""
        n_before = (self.number - 1) * self.n_steps + self.index
        return learning_rate(self.config.optim, n_before, self.config.train.max_passes * self.n_steps)

    @property
    def seed(self) -> int:
        """Seed of all that the step draws."""
        return mixed_seed(self.config.seed, self.number, self.index)

    def has_batch_of(self, other: Request) -> bool:
        """Return whether both see the same rows, members of one family as they are."""
        mine, theirs = ((one.config.seed, one.number, one.index) for one in (self, other))
        return mine == theirs


class Stack:
    """The weights of some trainings of one family, for as long as these take their steps together."""

    def __init__(self, requests: Sequence[Request]) -> None:
        """Take over the weights, buffers and moments of the trainings that ask; what they hold becomes views."""
        states = [request.state for request in requests]
        models = [state.model for state in states]
        weights = dict(models[0].named_parameters())
        device = next(iter(weights.values())).device
        self._generators = [torch.Generator(device) for _ in states]
        self._template = _template(models[0], self._generators, requests[0].batch)
        n_weights = sum(weight.numel() for weight in weights.values())
        self._weight_KP, self._mean_KP, self._square_KP = torch.zeros(3, len(states), n_weights, device=device)
        self._step_K1 = torch.zeros(len(states), 1, device=device)
        self._is_bounded = "log_scale" in weights and models[0].config.loss.resolved().scale == "exp"
        self._weights: dict[str, Tensor] = {}
        start = 0
        for name, weight in weights.items():
            assert weight.requires_grad, f"{name} is not trained"
            stacked, mean, square = (
                _shaped(array_KP[:, start : start + weight.numel()], weight.shape)
                for array_KP in (self._weight_KP, self._mean_KP, self._square_KP)
            )
            for k, state in enumerate(states):
                own = {"step": self._step_K1[k, 0], "exp_avg": mean[k], "exp_avg_sq": square[k]}
                _hand_over(state, name, stacked[k], own)
            self._weights[name] = stacked.detach().requires_grad_()
            start += weight.numel()
        self._buffers = {
            name: torch.stack([m.get_buffer(name) for m in models]) for name, _ in models[0].named_buffers()
        }
        for name, stacked in self._buffers.items():
            for k, model in enumerate(models):
                model.get_buffer(name).data = stacked[k]

    def step(self, requests: Sequence[Request]) -> list[Step]:
        """Take a step for each training, in the order of the stack, or skip it where loss or gradient is not finite."""
        for generator, request in zip(self._generators, requests, strict=True):
            generator.manual_seed(request.seed ^ 1)  # as the first of N processes does
        before = {name: buffer.clone() for name, buffer in self._buffers.items()}
        if self._is_bounded:  # as the model does; it does not know the stack's as a weight of its own
            self._weights["log_scale"].detach().clamp_(max=MAX_LOG_SCALE)
        loss_K = self._losses(requests)
        gradients = torch.autograd.grad(loss_K.sum(), list(self._weights.values()))
        gradient_KP = torch.cat([gradient.reshape(len(requests), -1) for gradient in gradients], 1)
        norm_K = gradient_KP.norm(dim=1)
        losses, norms = torch.stack([loss_K.detach(), norm_K]).tolist()  # the one wait for the device
        is_good = [math.isfinite(loss) and math.isfinite(norm) for loss, norm in zip(losses, norms, strict=True)]
        good = [k for k, is_one in enumerate(is_good) if is_one]
        if len(good) < len(requests):
            for name, buffer in self._buffers.items():
                for k in set(range(len(requests))).difference(good):
                    buffer[k].copy_(before[name][k])
        if good:
            self._move(requests, gradient_KP, norm_K, good)
        for request, is_one in zip(requests, is_good, strict=True):
            request.state.bad_in_a_row = 0 if is_one else request.state.bad_in_a_row + 1
        return [
            Step(loss=loss, grad_norm=norm, is_bad=not is_one, wish=request.wish)
            for loss, norm, is_one, request in zip(losses, norms, is_good, requests, strict=True)
        ]

    def _losses(self, requests: Sequence[Request]) -> Tensor:
        batches = [request.batch for request in requests]
        axis = None if all(request.has_batch_of(requests[0]) for request in requests) else 0
        eeg, image, image_ids, label = (
            getattr(batches[0], name) if axis is None else torch.stack([getattr(batch, name) for batch in batches])
            for name in ("eeg_BCT", "image_BX", "image_B", "label_B")
        )

        def embed(weights: dict[str, Tensor], buffers: dict[str, Tensor], eeg_BCT: Tensor, image_BF: Tensor) -> Any:
            return functional_call(self._template, (weights, buffers), (eeg_BCT, image_BF))

        with autocast(requests[0].config.train, eeg.device):
            pairs = vmap(embed, in_dims=(0, 0, axis, axis))(self._weights, self._buffers, eeg, image)
        losses: dict[int, Tensor] = {}
        for kind in dict.fromkeys(_kind(request.config.loss) for request in requests):
            own = [k for k, request in enumerate(requests) if _kind(request.config.loss) == kind]
            if kind is None:  # draws or compares by value, which cannot be stacked
                for k in own:
                    losses[k] = _loss(requests[k], Pairs(*(part[k] for part in pairs)))
                continue
            config, seed = requests[own[0]].config.loss, 0  # nothing is drawn

            def contrast(pairs: Pairs, ids_B: Tensor, label_B: Tensor, config=config, seed=seed) -> Tensor:
                return batch_loss(config, pairs, image_ids_B=ids_B, label_B=label_B, seed=seed)

            some = pairs if len(own) == len(requests) else Pairs(*(part[own] for part in pairs))
            ids, labels = (part if axis is None else part[own] for part in (image_ids, label))
            losses |= dict(zip(own, vmap(contrast, in_dims=(0, axis, axis))(some, ids, labels), strict=True))
        return torch.stack([losses[k] for k in range(len(requests))])

    @torch.no_grad()
    def _move(self, requests: Sequence[Request], gradient_KP: Tensor, norm_K: Tensor, good: list[int]) -> None:
        """Take Adam's step with the weights of those whose gradient is finite, G of K.

            m' = b1 m + (1 - b1) g;   v' = b2 v + (1 - b2) g^2
            w' = w - lr m' / (1 - b1^t) / (sqrt(v' / (1 - b2^t)) + eps)

        where g has the weight decay in it (adam), or w is shrunk by it before (adamw), and g is clipped before both.
        """
        is_whole = len(good) == len(requests)
        arrays = self._weight_KP, self._mean_KP, self._square_KP
        weight_GP, mean_GP, square_GP = (array if is_whole else array[good] for array in arrays)
        gradient_GP, norm_G = (gradient_KP, norm_K) if is_whole else (gradient_KP[good], norm_K[good])
        self._step_K1[good] += 1
        some = [requests[k] for k in good]
        optims = [request.config.optim for request in some]

        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64, device=gradient_GP.device)[:, None]

        rate, decay = column([request.rate for request in some]), column([optim.weight_decay for optim in optims])
        beta1, beta2 = column([optim.beta1 for optim in optims]), column([optim.beta2 for optim in optims])
        steps = self._step_K1[good].double()
        if any(optim.clip_norm is not None for optim in optims):
            most = column([math.inf if optim.clip_norm is None else optim.clip_norm for optim in optims])
            gradient_GP = gradient_GP * (most / (norm_G[:, None] + 1e-6)).clamp(max=1).float()
        if any(optim.weight_decay for optim in optims):
            if optims[0].name == "adamw":
                weight_GP.mul_((1 - rate * decay).float())
            else:
                gradient_GP = gradient_GP + decay.float() * weight_GP
        mean_GP.lerp_(gradient_GP, (1 - beta1).float().expand_as(gradient_GP))
        square_GP.mul_(beta2.float()).addcmul_(gradient_GP, gradient_GP * (1 - beta2).float())
        below_GP = (square_GP.sqrt() * (1 - beta2**steps).rsqrt().float()).add_(_EPS)
        weight_GP.addcdiv_(mean_GP * (-rate / (1 - beta1**steps)).float(), below_GP)
        if not is_whole:
            for array_KP, moved_GP in zip(arrays, (weight_GP, mean_GP, square_GP), strict=True):
                array_KP[good] = moved_GP


def _kind(loss: LossConfig) -> tuple[Any, ...] | None:
    """Return what losses must have in common to be computed at once; the temperature is in what the model gives."""
    if loss.name not in ("info_nce", "siglip") or loss.text_weight:
        return None
    return loss.name, loss.direction, loss.duplicates, loss.mse_weight, loss.centre_weight


def _loss(request: Request, pairs: Pairs) -> Tensor:
    batch, config = request.batch, request.config.loss
    text_BF = batch.text_BF if config.text_weight else None
    return batch_loss(
        config, pairs, image_ids_B=batch.image_B, label_B=batch.label_B, text_BF=text_BF, seed=request.seed
    )


def _shaped(part_KN: Tensor, shape: torch.Size) -> Tensor:
    """Return a view of columns as K arrays of this shape."""
    return part_KN.unflatten(1, shape) if shape else part_KN[:, 0]


@torch.no_grad()
def _hand_over(state: TrainState, name: str, row: Tensor, moments: dict[str, Tensor]) -> None:
    """Move a weight and its moments to where the stack wants them."""
    weight = state.model.get_parameter(name)
    for key, value in state.optimiser.state.get(weight, {}).items():
        moments[key].copy_(value)
    state.optimiser.state[weight] = moments
    weight.data = row.copy_(weight)


def _template(model: nn.Module, generators: list[torch.Generator], batch: Batch) -> nn.Module:
    """Return a model without weights of its own, whose dropout draws for every training by itself.

    One forward pass shows in which order alone it would draw: that in which its input lies in memory.
    """
    template = copy.deepcopy(model).train()
    for parent in list(template.modules()):
        for name, child in parent.named_children():
            if type(child) in (nn.Dropout, nn.Dropout2d):
                setattr(parent, name, _Dropout(cast("nn.Dropout", child), generators))
    with torch.no_grad():
        template(batch.eeg_BCT, batch.image_BX)
    return template.to("meta")


class _Dropout(nn.Module):
    """Dropout of values, or of whole maps, each training's from a generator of its own."""

    def __init__(self, layer: nn.Dropout | nn.Dropout2d, generators: list[torch.Generator]) -> None:
        super().__init__()
        self.p, self.of_maps, self.generators = layer.p, isinstance(layer, nn.Dropout2d), generators
        self.order: list[int] = []
        """Axes of the input, the one first along which memory jumps farthest."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        return cast("Tensor", _Draw.apply(input, self)) if self.p else input

    def draw(self, value_K: Tensor) -> Tensor:
        """Draw factors 0 or 1 / (1 - p) for the input of each training."""
        if self.of_maps:
            shape, order = [*value_K.shape[1:3], *[1] * (value_K.ndim - 3)], list(range(value_K.ndim - 1))
        else:
            shape, order = list(value_K.shape[1:]), self.order
        lying = [shape[axis] for axis in order]
        masks = [value_K.new_empty(lying).bernoulli_(1 - self.p, generator=own) for own in self.generators]
        places = [1 + order.index(axis) for axis in range(len(order))]
        return torch.stack(masks).div_(1 - self.p).permute(0, *places)


class _Draw(torch.autograd.Function):
    """Multiplies by masks that `torch.vmap` alone could only draw from one generator for all."""

    @staticmethod
    def forward(value: Tensor, layer: _Dropout) -> Tensor:
        layer.order = sorted(range(value.ndim), key=lambda axis: -value.stride(axis))
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Tensor, int]:
        value, layer = args
        n = info.batch_size
        value_K = value.expand(n, *value.shape) if in_dims[0] is None else value.movedim(in_dims[0], 0)
        return value_K * layer.draw(value_K), 0
