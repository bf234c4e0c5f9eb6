"""A block's weights in autocast's dtype, all by one kernel.

Autocast casts each weight when it is used: some twenty small kernels a block, and as many for their gradients. To
launch them takes a GPU's processor longer than the GPU takes for many a step.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mae_dfer_kernels.calls import autocast_dtype, is_plain, transformed

_active = threading.local()


@contextmanager
def cast_together(module: nn.Module) -> Iterator[None]:
    """Inside, :func:`current` has the module's weights in autocast's dtype, where that is on and it pays."""
    traced = torch.compiler.is_compiling() or transformed()
    parameters = [] if traced else [parameter for parameter in _weights(module) if _takes(parameter)]
    dtype = autocast_dtype(parameters[0]) if parameters else torch.float32
    if dtype == torch.float32:
        yield
        return
    copies = _Cast.apply(dtype, *parameters)
    before = getattr(_active, "copies", None)
    _active.copies = {id(parameter): copy for parameter, copy in zip(parameters, copies, strict=True)}
    try:
        yield
    finally:
        _active.copies = before


def current(parameter: Tensor) -> Tensor:
    """The parameter, or its copy in autocast's dtype."""
    copies = getattr(_active, "copies", None)
    return parameter if copies is None else copies.get(id(parameter), parameter)


def _weights(module: nn.Module) -> Iterator[Tensor]:
    """Of all but LayerNorms, which compute in float32."""
    if isinstance(module, nn.LayerNorm):
        return
    for parameter in module._parameters.values():
        if parameter is not None:
            yield parameter
    for child in module._modules.values():
        if child is not None:
            yield from _weights(child)


def _takes(parameter: Tensor) -> bool:
    return parameter.is_cuda and parameter.dtype == torch.float32 and is_plain(parameter)


class _Cast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *parameters: Tensor) -> tuple[Tensor, ...]:
        copies = tuple(torch.empty_like(parameter, dtype=dtype) for parameter in parameters)
        torch._foreach_copy_(copies, parameters)
        frozen = (copy for copy, wanted in zip(copies, ctx.needs_input_grad[1:], strict=True) if not wanted)
        ctx.mark_non_differentiable(*frozen)
        ctx.set_materialize_grads(False)
        return copies

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        given = [grad for grad in grads if grad is not None]
        if torch.is_grad_enabled():  # someone will differentiate the gradient
            wide = [grad.float() for grad in given]
        else:
            wide = [torch.empty_like(grad, dtype=torch.float32) for grad in given]
            if given:
                torch._foreach_copy_(wide, given)
        found = iter(wide)
        return None, *(None if grad is None else next(found) for grad in grads)
