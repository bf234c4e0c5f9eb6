"""How a public function calls its registered operator: by the shortest way that the call allows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

# Names that PyTorch does not promise to keep are asked for once, here; without them calls are slower, or transforms
# end in PyTorch's own error. The first is what its library of custom operators enters to call one whose gradient is
# dealt with.
_below_autograd = getattr(torch._C, "_AutoDispatchBelowAutograd", contextlib.nullcontext)
_in_transform: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)
_forward_mode: Any = forward_ad if hasattr(forward_ad, "_current_level") else SimpleNamespace(_current_level=-1)
# Each says whether someone watches what the dispatcher calls: modes (counters, fake tensors), profilers, tracers.
_WATCHERS = (
    (torch._C, "_len_torch_dispatch_stack"), (torch._C, "_len_torch_function_stack"),
    (torch.autograd, "_profiler_enabled"), (torch._C, "_get_tracing_state"),
)  # fmt: skip
_dispatch_modes, _function_modes, _profiled, _traced = (getattr(*where, lambda: True) for where in _WATCHERS)
# Arguments of these types mean to the dispatcher what they are; subclasses of Tensor want to be asked.
_TENSORS = frozenset((Tensor, torch.nn.Parameter))
_OTHERS = frozenset((type(None), torch.dtype, bool, int, float, str))
_of_old_vmap: Callable[[Any], bool] = getattr(torch._C._functorch, "is_legacy_batchedtensor", lambda _: True)


class Operator(NamedTuple):
    """A registered operator, and what its eager calls take instead of the way through its registration."""

    registered: Any
    """The overload, which `torch.ops` has."""
    run: Callable[..., Any]
    """What it does once its arguments are checked."""
    function: type[torch.autograd.Function]
    """Its gradient for eager calls."""
    plain: Callable[..., Any]
    """Plain PyTorch for the same inputs without the backend, differentiable in every way."""


def call(operator: Operator, tensors: tuple[Tensor, ...], inputs: tuple[Any, ...]) -> Any:
    """``operator`` of checked ``inputs``, differentiable in ``tensors``; the last input is the backend.

    The gradient that is registered with the operator serves compiled graphs. In eager mode its way through the
    dispatcher costs more than a small call's arithmetic, so the operator's autograd function is taken, and where no
    gradient is wanted none.

    Under `torch.func`'s transforms and in forward-mode differentiation, of which the kernels and their registration
    know nothing, ``operator.plain`` stands in.
    """
    if torch.compiler.is_compiling():
        return operator.registered(*inputs)
    if transformed():
        return operator.plain(*inputs[:-1])
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor.requires_grad:
                return operator.function.apply(*inputs)
    return call_without_gradient(operator.registered, operator.run, inputs)


def call_without_gradient(registered: Any, run: Callable[..., Any], inputs: tuple[Any, ...]) -> Any:
    """``run(*inputs)``; by the dispatcher, as ``registered``, where someone would see it there."""
    if torch.compiler.is_compiling():
        return registered(*inputs)
    if not watched():
        for value in inputs:
            if type(value) not in _OTHERS and not is_plain(value):
                break
        else:
            return run(*inputs)
    with _below_autograd():
        return registered(*inputs)


def watched() -> bool:
    """Whether someone might see what the dispatcher calls: a mode, a profiler, a tracer, a transform."""
    return bool(_dispatch_modes() or _profiled() or _function_modes() or _traced() or _in_transform())


def is_plain(value: Any) -> bool:
    """Whether this is a tensor that is what its memory holds: of no subclass, and not, as the dispatcher alone knows,
    the negative of that, zeros without memory, or many tensors of the `vmap` by which autograd batches gradients."""
    return type(value) in _TENSORS and not (value.is_neg() or value._is_zerotensor() or _of_old_vmap(value))


def transformed() -> bool:
    """Whether a transform of `torch.func` or forward-mode differentiation is under way."""
    return _in_transform() or _forward_mode._current_level >= 0


def plain_autograd_needed() -> bool:
    """Whether an autograd function would be in the way: of a compiler, of a transform of `torch.func`, of forward-mode
    differentiation. And whether it would be for nothing, since no gradient is wanted."""
    return torch.compiler.is_compiling() or not torch.is_grad_enabled() or transformed()


def kernels_step_aside(*tensors: Tensor) -> bool:
    """Whether an operator without a gradient of its own is to be plain PyTorch: its result is to be differentiated, or
    the tensors (distributed ones, say) know best how."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return True
    return not torch.compiler.is_compiling() and (transformed() or not all(map(is_plain, tensors)))


def without_autocast(device_type: str) -> contextlib.AbstractContextManager[Any]:
    """Inside, operators take the dtypes they are given; of device types that know no autocast, too."""
    if autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The dtype that a matrix product of ``x`` has: autocast's where it is on, else its own, as float64 always."""
    device_type = x.device.type
    if x.dtype == torch.float64 or not autocast_enabled(device_type):
        return x.dtype
    return torch.get_autocast_dtype(device_type)


def autocast_enabled(device_type: str) -> bool:
    """Whether autocast is on for a type of device."""
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
