"""How a public function calls its registered operator: by the shortest way that the call allows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

# Names that PyTorch does not promise to keep are asked for once, here; without them calls are slower, or transforms
# end in PyTorch's own error. The first is what its library of custom operators enters to call one whose gradient is
# dealt with.
_below_autograd = getattr(torch._C, "_AutoDispatchBelowAutograd", contextlib.nullcontext)
_in_transform: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)
_forward_mode: Any = forward_ad if hasattr(forward_ad, "_current_level") else SimpleNamespace(_current_level=-1)


def short_cut(op: Any) -> Any:
    """The registered operator without the Python layer of its overload object, which costs a microsecond."""
    return getattr(op, "_op", op)


def call(
    op: Any,
    function: type[torch.autograd.Function],
    plain: Callable[..., Any],
    tensors: tuple[Tensor, ...],
    inputs: tuple[Any, ...],
) -> Any:
    """``op(*inputs)``, differentiable in ``tensors``; the last input is the backend.

    The gradient that is registered with the operator serves compiled graphs. In eager mode its way through the
    dispatcher costs more than a small call's arithmetic: ``function`` is cheaper, and where no gradient is wanted the
    operator is called as if there were no autograd. Still it is the dispatcher that calls it, so that whoever watches
    there (counters, profilers, fake tensors) sees it.

    Under `torch.func`'s transforms and in forward-mode differentiation, of which the kernels and their registration
    know nothing, ``plain`` stands in: PyTorch for the same inputs without the backend.
    """
    if torch.compiler.is_compiling():
        return op(*inputs)
    if transformed():
        return plain(*inputs[:-1])
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor.requires_grad:
                return function.apply(*inputs)
    with _below_autograd():
        return short_cut(op)(*inputs)


def transformed() -> bool:
    """Whether a transform of `torch.func` or forward-mode differentiation is under way."""
    return _in_transform() or _forward_mode._current_level >= 0


def plain_autograd_needed() -> bool:
    """Whether an autograd function would be in the way: of a compiler, of a transform of `torch.func`, of forward-mode
    differentiation. And whether it would be for nothing, since no gradient is wanted."""
    return torch.compiler.is_compiling() or not torch.is_grad_enabled() or transformed()


def call_without_gradient(op: Any, inputs: tuple[Any, ...]) -> Any:
    """``op(*inputs)`` inside an autograd function, which takes care of the gradient."""
    with _below_autograd():
        return short_cut(op)(*inputs)


def without_autocast(device_type: str) -> contextlib.AbstractContextManager[Any]:
    """Inside, operators take the dtypes they are given; of device types that know no autocast, too."""
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The dtype that a matrix product of ``x`` has: autocast's where it is on, else its own."""
    device_type = x.device.type
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return x.dtype
