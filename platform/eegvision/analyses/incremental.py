"""Encode many copies of one picture that differ in a small place: only what depends on that place is computed again.

A change spreads through a network as a rectangle that grows with the receptive field. `PatchedTensor` is a batch of
maps that are all equal to one clean map outside a rectangle; convolutions, pooling and operations on single places are
done on the rectangle alone, from a margin of the clean map around it. Whatever else a network does first puts the maps
together in full, so every network gives its own result, and the local ones sooner. Exact but for the order in which
floating-point sums are taken. Source of the idea: Nakandala, Kumar & Papakonstantinou 2019, SIGMOD (Krypton).

Axes: B batch, C maps, H height, W width, D embedding; h, w those of the rectangle.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Rect(NamedTuple):
    """Rows `top` to `bottom` and columns `left` to `right` of a map, both ends exclusive."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def cut(self) -> tuple[Any, slice, slice]:
        """Index of the rectangle in a map's last two axes."""
        return ..., slice(self.top, self.bottom), slice(self.left, self.right)

    def within(self, other: Rect) -> Rect:
        """Return this rectangle in coordinates whose origin is the top left of the other."""
        return Rect(self.top - other.top, self.bottom - other.top, self.left - other.left, self.right - other.left)

    def joined(self, other: Rect) -> Rect:
        """Return the smallest rectangle that holds both."""
        return Rect(
            min(self.top, other.top),
            max(self.bottom, other.bottom),
            min(self.left, other.left),
            max(self.right, other.right),
        )


class CleanPass:
    """One picture and what a network makes of it, remembered so that later passes need not do it again.

    Passes are told apart by nothing but the order of their operations, so one object serves one network and picture.
    """

    def __init__(self, image_13HW: Tensor) -> None:
        self.image_13HW = image_13HW
        self._results: list[Tensor] = []
        self._next = 0

    def encode(self, encode: Callable[[Tensor], Tensor], window_B3hw: Tensor, rect: Rect) -> Tensor:
        """Return `encode` of the picture with each window put in its place, [B, D].

        Args:
            encode: from [B, 3, H, W] to [B, D]; every picture must be treated alike and apart from the others.
        """
        self._next = 0
        height, width = self.image_13HW.shape[-2:]
        if rect == Rect(0, height, 0, width):
            return encode(window_B3hw)
        embedding_BD = encode(PatchedTensor(self.image_13HW, window_B3hw, rect, self))
        return embedding_BD.whole() if isinstance(embedding_BD, PatchedTensor) else embedding_BD

    def result(self, compute: Callable[[], Tensor]) -> Tensor:
        """Return what the next operation gives for the clean picture."""
        if self._next == len(self._results):
            self._results.append(compute())
        self._next += 1
        return self._results[self._next - 1]


class PatchedTensor(Tensor):
    """B maps [B, ..., H, W], the clean map [1, ..., H, W] everywhere but in a rectangle, where they are the windows.

    To the code of a network it is a tensor of this shape. In-place operations replace what it holds.
    """

    clean: Tensor
    window: Tensor
    rect: Rect
    run: CleanPass

    @staticmethod
    def __new__(cls, clean: Tensor, window: Tensor, rect: Rect, run: CleanPass) -> PatchedTensor:
        shape = (*window.shape[:-2], *clean.shape[-2:])
        new = Tensor._make_wrapper_subclass(cls, shape, dtype=window.dtype, device=window.device)
        new.clean, new.window, new.rect, new.run = clean, window, rect, run
        return new

    def whole(self) -> Tensor:
        """Return the maps as an ordinary tensor."""
        height, width = self.clean.shape[-2:]
        return self.piece(Rect(0, height, 0, width), 0.0)

    def piece(self, rect: Rect, fill: float) -> Tensor:
        """Return a rectangle of the maps that holds all that differs, or none of it; `fill` beyond the edges."""
        if rect == self.rect:
            return self.window
        height, width = self.clean.shape[-2:]
        n_batch = self.window.shape[0]
        shape = (n_batch, *self.window.shape[1:-2], rect.bottom - rect.top, rect.right - rect.left)
        is_channels_last = self.window.ndim == 4 and self.window.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if is_channels_last else torch.contiguous_format
        out = torch.empty(shape, dtype=self.window.dtype, device=self.window.device, memory_format=layout)
        inside = Rect(max(0, rect.top), min(height, rect.bottom), max(0, rect.left), min(width, rect.right))
        if inside != rect:
            out.fill_(fill)
        out[inside.within(rect).cut] = self.clean[inside.cut]
        seen = Rect(
            max(rect.top, self.rect.top),
            min(rect.bottom, self.rect.bottom),
            max(rect.left, self.rect.left),
            min(rect.right, self.rect.right),
        )
        if seen.top < seen.bottom and seen.left < seen.right:
            out[seen.within(rect).cut] = self.window[seen.within(self.rect).cut]
        return out

    def become(self, other: Tensor) -> PatchedTensor:
        """Hold what the other does, as after an operation in place; an ordinary tensor differs everywhere."""
        if isinstance(other, PatchedTensor):
            self.clean, self.window, self.rect = other.clean, other.window, other.rect
        else:
            height, width = self.clean.shape[-2:]
            self.window, self.rect = other, Rect(0, height, 0, width)
        return self

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        is_in_place = bool(kwargs.get("inplace")) or name in _IN_PLACE_OPERATORS
        is_in_place |= name.endswith("_") and not name.endswith("__")
        func = _OUT_OF_PLACE.get(func, func)
        rule = _RULES.get(func)
        result = rule(func, *args, **kwargs) if rule is not None else None
        if result is None:
            # A whole map may be the clean one, which is kept for the next pass and so never written to.
            if "inplace" in kwargs:
                kwargs["inplace"] = False
            ordinary = [_whole(value) for value in args]
            result = func(*ordinary, **{key: _whole(value) for key, value in kwargs.items()})
            result = ordinary[0] if name == "__setitem__" else result
        return args[0].become(result) if is_in_place and isinstance(args[0], PatchedTensor) else result

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # pyrefly: ignore
        raise AssertionError(f"{func} was reached without __torch_function__: the tensor has no values of its own")


def _whole(value: Any) -> Any:
    if isinstance(value, PatchedTensor):
        return value.whole()
    if isinstance(value, list | tuple):
        return type(value)(_whole(part) for part in value)
    return value


# Rules: the result of an operation as a PatchedTensor, or None where it has to be done on whole maps. Which of the two
# must depend on the operation alone and never on the rectangle, or `CleanPass` would lose count.


def _pointwise(func: Callable[..., Tensor], maps: Any, *args: Any, **kwargs: Any) -> PatchedTensor | None:
    """Return an operation that treats every place alike and by itself; what else it takes has no places."""
    if not isinstance(maps, PatchedTensor) or kwargs.get("training"):
        return None
    # A network that writes in place may do so to windows, which saves large tensors; the clean map is kept as it is.
    kept = {**kwargs, "inplace": False} if "inplace" in kwargs else kwargs
    clean = maps.run.result(lambda: func(maps.clean, *args, **kept))
    return PatchedTensor(clean, func(maps.window, *args, **kwargs), maps.rect, maps.run)


def _binary(func: Callable[..., Tensor], left: Any, right: Any, **kwargs: Any) -> PatchedTensor | None:
    """Return an operation of two maps place by place, or of a map and something that has no places and no batch."""
    both = [value for value in (left, right) if isinstance(value, PatchedTensor)]
    first = both[0]
    if any(not _is_constant(value, first) for value in (left, right) if not isinstance(value, PatchedTensor)):
        return None
    if any(value.shape != first.shape for value in both):
        return None
    rect = first.rect.joined(both[-1].rect)
    cleans = [value.clean if isinstance(value, PatchedTensor) else value for value in (left, right)]
    windows = [value.piece(rect, 0.0) if isinstance(value, PatchedTensor) else value for value in (left, right)]
    return PatchedTensor(first.run.result(lambda: func(*cleans, **kwargs)), func(*windows, **kwargs), rect, first.run)


def _is_constant(value: Any, maps: Tensor) -> bool:
    """Say whether a value cannot depend on the picture; with one picture in a batch its shape alone would not tell."""
    if not isinstance(value, Tensor):
        return isinstance(value, int | float)
    has_no_places = all(n == 1 for n in value.shape[-2:])
    has_no_batch = value.ndim < maps.ndim or (value.shape[0] == 1 and isinstance(value, torch.nn.Parameter))
    return has_no_places and has_no_batch


def _cat(func: Callable[..., Tensor], tensors: Any, dim: int = 0) -> PatchedTensor | None:
    if dim != 1 or not all(isinstance(maps, PatchedTensor) and maps.ndim == 4 for maps in tensors):
        return None
    run, rect = tensors[0].run, tensors[0].rect
    for maps in tensors[1:]:
        rect = rect.joined(maps.rect)
    clean = run.result(lambda: func([maps.clean for maps in tensors], dim))
    return PatchedTensor(clean, func([maps.piece(rect, 0.0) for maps in tensors], dim), rect, run)


def _getitem(func: Callable[..., Tensor], maps: Any, index: Any) -> PatchedTensor | None:
    is_of_maps = isinstance(index, tuple) and len(index) <= maps.ndim - 2 and index[0] == slice(None)
    is_plain = is_of_maps and all(isinstance(part, int | slice) for part in index)
    return _pointwise(func, maps, index) if is_plain else None


def _unsqueeze(func: Callable[..., Tensor], maps: Any, dim: int) -> PatchedTensor | None:
    return _pointwise(func, maps, dim) if 1 <= dim <= maps.ndim - 2 else None


def _conv(
    func: Callable[..., Tensor],
    maps: Any,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> PatchedTensor | None:
    if not isinstance(maps, PatchedTensor) or isinstance(weight, PatchedTensor) or isinstance(padding, str):
        return None
    grid = _Grid.of(weight.shape[-2:], stride, padding, dilation)
    return _local(maps, grid, lambda piece, pad: func(piece, weight, bias, stride, pad, dilation, groups), 0.0)


def _max_pool(
    func: Callable[..., Tensor],
    maps: PatchedTensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> PatchedTensor | None:
    if return_indices:
        return None
    grid = _Grid.of(kernel_size, stride or kernel_size, padding, dilation)

    def pool(piece: Tensor, pad: Any) -> Tensor:
        return func(piece, kernel_size, stride, pad, dilation, ceil_mode)

    return _local(maps, grid, pool, -math.inf)


def _avg_pool(
    func: Callable[..., Tensor],
    maps: PatchedTensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> PatchedTensor | None:
    if ceil_mode or not (count_include_pad or padding == 0):
        return None  # places at the edge would be averages over fewer
    grid = _Grid.of(kernel_size, stride or kernel_size, padding, 1)

    def pool(piece: Tensor, pad: Any) -> Tensor:
        return func(piece, kernel_size, stride, pad, ceil_mode, count_include_pad, divisor_override)

    return _local(maps, grid, pool, 0.0)


class _Grid(NamedTuple):
    """Which places an operation looks at, as (rows, columns); `reach` is dilation x (kernel - 1)."""

    reach: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    @staticmethod
    def of(kernel: Any, stride: Any, padding: Any, dilation: Any) -> _Grid:
        kernel, stride, padding, dilation = (_pair(value) for value in (kernel, stride, padding, dilation))
        reach = tuple(step * (n - 1) for step, n in zip(dilation, kernel, strict=True))
        return _Grid((reach[0], reach[1]), stride, padding)

    def touched(self, begin: int, end: int, n_out: int, axis: int) -> tuple[int, int]:
        """Return the first and last + 1 of the outputs that look at inputs `begin` to `end`; at least one."""
        reach, stride, padding = self.reach[axis], self.stride[axis], self.padding[axis]
        first = min(max(0, -((reach - begin - padding) // stride)), n_out - 1)
        return first, max(first + 1, min(n_out, (end - 1 + padding) // stride + 1))

    def seen(self, begin: int, end: int, axis: int) -> tuple[int, int]:
        """Return the first and last + 1 of the inputs that outputs `begin` to `end` look at, also beyond the edges."""
        start = begin * self.stride[axis] - self.padding[axis]
        return start, start + (end - begin - 1) * self.stride[axis] + self.reach[axis] + 1


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return (value[0], value[-1])


def _local(maps: PatchedTensor, grid: _Grid, compute: Callable[[Tensor, Any], Tensor], fill: float) -> PatchedTensor:
    """Return an operation on neighbourhoods; `compute` takes maps and a padding, `fill` is what it pads with."""
    clean = maps.run.result(lambda: compute(maps.clean, grid.padding))
    rect, (height, width) = maps.rect, maps.clean.shape[-2:]
    n_rows, n_columns = clean.shape[-2:]
    if rect == (0, height, 0, width):
        return PatchedTensor(clean, compute(maps.window, grid.padding), Rect(0, n_rows, 0, n_columns), maps.run)
    out = Rect(*grid.touched(rect.top, rect.bottom, n_rows, 0), *grid.touched(rect.left, rect.right, n_columns, 1))
    needed = Rect(*grid.seen(out.top, out.bottom, 0), *grid.seen(out.left, out.right, 1))
    return PatchedTensor(clean, compute(maps.piece(needed, fill), (0, 0)), out, maps.run)


# What is asked of a tensor without its values.
_METADATA = {
    *(getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device", "requires_grad", "is_cuda")),
    Tensor.size,
    Tensor.dim,
    Tensor.numel,
    Tensor.is_floating_point,
    torch.is_floating_point,
}
_IN_PLACE_OPERATORS = {"__iadd__", "__isub__", "__imul__", "__itruediv__", "__setitem__"}
_OUT_OF_PLACE = {
    Tensor.__iadd__: torch.add,
    Tensor.add_: torch.add,
    Tensor.__isub__: torch.sub,
    Tensor.__imul__: torch.mul,
    Tensor.mul_: torch.mul,
    Tensor.relu_: torch.relu,
    torch.relu_: torch.relu,
}
_POINTWISE = (
    torch.relu, F.relu, F.relu6, F.gelu, F.silu, F.elu, F.leaky_relu, F.hardtanh, F.hardswish, F.hardsigmoid,
    F.dropout, F.batch_norm, torch.sigmoid, Tensor.sigmoid, torch.tanh, Tensor.tanh, torch.clone, Tensor.clone,
    Tensor.contiguous, Tensor.float, Tensor.detach,
)  # fmt: skip
_BINARY = (
    torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, torch.sub, Tensor.sub, Tensor.__sub__, Tensor.__rsub__,
    torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.div, Tensor.div, Tensor.__truediv__,
)  # fmt: skip
_RULES: dict[Any, Callable[..., PatchedTensor | None]] = {
    **dict.fromkeys(_POINTWISE, _pointwise),
    **dict.fromkeys(_BINARY, _binary),
    torch.cat: _cat,
    Tensor.__getitem__: _getitem,
    torch.unsqueeze: _unsqueeze,
    Tensor.unsqueeze: _unsqueeze,
    F.conv2d: _conv,
    torch.max_pool2d: _max_pool,
    F.max_pool2d: _max_pool,
    F.avg_pool2d: _avg_pool,
}
