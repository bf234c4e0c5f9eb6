"""What the backward of a linear layer after a GELU needs of the GELU's input, in one pass over memory.

Letters: M rows, C channels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mae_dfer_kernels import backends
from mae_dfer_kernels.arguments import alike, check_backend, check_companion, check_vectors
from mae_dfer_kernels.calls import call_without_gradient, kernels_step_aside
from mae_dfer_kernels.reference import gelu_gradient as reference

_LIBRARY = torch.library.Library("mae_dfer_kernels", "FRAGMENT")
_LIBRARY.define(
    "gelu_gradient(Tensor grad, Tensor x, str backend) -> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _run(grad: Tensor, x: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    result: tuple[Tensor, Tensor, Tensor] = backends.run("gelu_gradient", "backward", backend, (x,), grad, x)
    return result


# What is registered checks its arguments: whoever calls it comes past the public function's checks.
def _registered(grad: Tensor, x: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    _check_rows(grad, x)
    return _run(grad, x, backend)


def _fake(grad: Tensor, x: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    _check_rows(grad, x)
    return x.new_empty(x.shape), x.new_empty(x.shape), x.new_empty(x.shape[-1:])


_LIBRARY.impl("gelu_gradient", _registered, "CompositeExplicitAutograd")
torch.library.register_fake("mae_dfer_kernels::gelu_gradient", _fake, lib=_LIBRARY)

_op = torch.ops.mae_dfer_kernels.gelu_gradient.default


def gelu_gradient(grad: Tensor, x: Tensor, *, backend: str = "auto") -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of the exact (erf) GELU, its value, and the gradient's sums over all rows.

    For the backward of ``linear(gelu(linear(·)))`` that keeps ``x`` alone: the gradient of ``x``, what the second
    layer's weights are multiplied with, and the gradient of the first layer's bias. Two calls give the same bits,
    whatever the number of threads. Where the result is to be differentiated itself, plain PyTorch computes it.

    Args:
        grad: (…, C), the gradient of ``gelu(x)``, in the dtype of ``x``. Rows may have any stride.
        x: (…, C): float64, float32, bfloat16 or float16.
        backend: ``eager``, ``cpu``, ``triton``, or ``auto`` for the fastest that can run this call.

    Returns:
        ``grad · gelu'(x)`` and ``gelu(x)``, both of the shape of ``x`` and contiguous, and the sums (C,) of the first;
        all in the dtype of ``x``, computed and summed in float32 (float64 for float64).

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument's value, shape or device does not fit; the message names it.
        BackendUnavailable: the backend that was asked for cannot run this call.
    """
    _check(grad, x)
    check_backend(backend)
    resolved = backends.choose("gelu_gradient", backend, x)
    rows = (math.prod(x.shape[:-1]), x.shape[-1])
    if kernels_step_aside(grad, x):
        grad_x, gelu_x, sums = reference.backward(grad.reshape(rows), x.reshape(rows))
    else:
        grad_x, gelu_x, sums = call_without_gradient(_op, _run, (grad.reshape(rows), x.reshape(rows), resolved))
    return grad_x.view(x.shape), gelu_x.view(x.shape), sums


def _check(grad: Tensor, x: Tensor) -> None:
    check_vectors("x", x)
    if not alike(grad, x):
        check_companion("grad", grad, "x", x)
        if grad.dtype != x.dtype:
            raise TypeError(f"grad must have the dtype of x, {x.dtype}, got {grad.dtype}")
    if grad.shape != x.shape:
        raise ValueError(f"grad must have the shape of x, {tuple(x.shape)}, got {tuple(grad.shape)}")


def _check_rows(grad: Tensor, x: Tensor) -> None:
    """What the registered function is given: (M, C)."""
    _check(grad, x)
    if x.dim() != 2:
        raise ValueError(f"x must have shape (M, C), got {tuple(x.shape)}")
