"""A GPU where there is none: tensors that say they are on cuda, lie in the computer's memory, and meet none that do.

What a GPU would refuse (operands on two devices, values read by NumPy) is refused here too, and everything else is
computed as on a CPU. So a path that passes has every tensor in its place; of kernels, streams and speed that says
nothing. `torch.vmap` and `torch.compile` are not seen through.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

_CPU, _CUDA = torch.device("cpu"), torch.device("cuda", 0)
_MEMORY_BYTES = 80_000_000_000
_BACKWARD: set[Any] = {Tensor.backward, torch.autograd.backward, torch.autograd.grad}
# These take tensors of two devices on a GPU as well.
_BETWEEN: set[Any] = {
    Tensor.to, Tensor.copy_, torch._foreach_copy_, Tensor.type_as, Tensor.__getitem__, Tensor.__setitem__,
    Tensor.data.__set__, Tensor.grad.__set__, torch._has_compatible_shallow_copy_type,  # pyrefly: ignore
}  # fmt: skip
# These take the name of a device and give it back.
_NAMES: set[Any] = {torch.device, torch._C._nn._parse_to}
_METADATA = ("__get__", "size", "dim", "numel", "is_floating_point")


class OnGpu(Tensor):
    """A tensor that says it is on the GPU."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied = self.detach().clone()
        return nn.Parameter(copied, self.requires_grad) if isinstance(self, nn.Parameter) else copied


class _Mode(TorchFunctionMode):
    """Sees every call of torch, also those without any tensor that is on the GPU."""

    is_backward = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for kind in types:
            if kind is not Tensor and not issubclass(kind, (OnGpu, nn.Parameter)):  # with rules of its own
                with nullcontext() if getattr(func, "__name__", "") in _METADATA else self:
                    return kind.__torch_function__(func, types, args, kwargs)
        if func not in _BACKWARD:
            return _call(func, args, kwargs)
        before, _Mode.is_backward = _Mode.is_backward, True
        try:
            return _call(func, args, kwargs)
        finally:
            _Mode.is_backward = before


def _call(func: Any, args: Any, kwargs: Any) -> Any:
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    is_there = any(isinstance(value, OnGpu) for value in tensors)
    if func in _NAMES:
        return func(*args, **kwargs)
    if func == Tensor.device.__get__:  # pyrefly: ignore
        return _CUDA if is_there else _CPU
    if func == Tensor.is_cuda.__get__:  # pyrefly: ignore
        return is_there
    if is_there:
        _refuse(func, args, tensors)
    asked = [value for value in (*args, kwargs.get("device")) if _is_device(value)]
    if asked:
        is_there = torch.device(asked[0]).type == "cuda"
        args = tuple(_CPU if _is_device(value) else value for value in args)
        kwargs = {name: _CPU if _is_device(value) else value for name, value in kwargs.items()}
    elif func is Tensor.to and isinstance(args[1], Tensor):
        is_there = isinstance(args[1], OnGpu)
    elif func is Tensor.cpu:
        is_there = False
    with torch._C.DisableTorchFunctionSubclass():
        result = func(*args, **kwargs)
    kind = OnGpu if is_there else Tensor
    return tree_map(lambda value: _as(value, kind) if isinstance(value, Tensor) else value, result)


def _refuse(func: Any, args: Any, tensors: list[Tensor]) -> None:
    if func in (Tensor.numpy, Tensor.__array__):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")
    if func in (Tensor.__getitem__, Tensor.__setitem__) and not isinstance(args[0], OnGpu):
        raise RuntimeError("a tensor on the CPU is indexed by one on the GPU")
    # The backward pass gets its gradients as plain tensors.
    on_cpu = [tuple(value.shape) for value in tensors if not isinstance(value, OnGpu) and value.ndim]
    if on_cpu and func not in _BETWEEN and not _Mode.is_backward:
        raise RuntimeError(f"{getattr(func, '__name__', func)}: tensors on the GPU meet some on the CPU, {on_cpu}")


def _is_device(value: Any) -> bool:
    return isinstance(value, torch.device) or (isinstance(value, str) and value.split(":")[0] in ("cpu", "cuda"))


def _as(value: Tensor, kind: type[Tensor]) -> Tensor:
    is_right = isinstance(value, OnGpu) == (kind is OnGpu)
    return value if is_right else value.as_subclass(kind)


class _Autocast(torch.autocast):
    """What the GPU would compute in short numbers, the CPU does."""

    def __init__(self, device_type: str, dtype: Any = None, enabled: bool = True, cache_enabled: Any = None) -> None:
        assert device_type == "cuda"
        super().__init__("cpu", dtype, enabled, cache_enabled)


@contextmanager
def simulated_gpu() -> Iterator[None]:
    """Have torch find one GPU, with bf16, and everything that is moved to it be there."""
    run = threading.Thread.run

    def run_there(thread: threading.Thread) -> None:
        with _Mode():  # a mode is a thread's own
            run(thread)

    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    with pytest.MonkeyPatch.context() as patch, _Mode():
        patch.setattr(threading.Thread, "run", run_there)
        patch.setattr(torch, "autocast", _Autocast)
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
        patch.setattr(torch.cuda, "mem_get_info", lambda _=None: (_MEMORY_BYTES, _MEMORY_BYTES))
        patch.setattr(torch.cuda, "current_device", lambda: 0)
        patch.setattr(torch.backends.cudnn, "is_acceptable", lambda _: False)
        patch.setattr(torch.cuda, "default_generators", (torch.default_generator,))
        patch.setattr(Tensor, "pin_memory", lambda self: self)
        patch.setattr(torch.optim.Optimizer, "_accelerator_graph_capture_health_check", lambda _: None)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            yield
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(overwrites)
