"""The gradients of a linear layer's weight and bias, in the dtype that these have.

Letters: M rows, I inputs and O outputs of the layer.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mae_dfer_kernels import backends
from mae_dfer_kernels.arguments import check_backend, check_companion, check_result_dtype, check_vectors
from mae_dfer_kernels.calls import call_without_gradient, kernels_step_aside
from mae_dfer_kernels.reference import weight_gradient as reference

_LIBRARY = torch.library.Library("mae_dfer_kernels", "FRAGMENT")
_LIBRARY.define(
    "weight_gradient(Tensor grad, Tensor rows, ScalarType? out_dtype, bool bias, str backend) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _run(
    grad: Tensor, rows: Tensor, out_dtype: torch.dtype | None, bias: bool, backend: str
) -> tuple[Tensor, Tensor]:
    inputs = (grad, rows, out_dtype or grad.dtype, bias)
    result: tuple[Tensor, Tensor] = backends.run("weight_gradient", "backward", backend, (grad,), *inputs)
    return result


# What is registered checks its arguments: whoever calls it comes past the public function's checks.
def _registered(
    grad: Tensor, rows: Tensor, out_dtype: torch.dtype | None, bias: bool, backend: str
) -> tuple[Tensor, Tensor]:
    _check_matrices(grad, rows, out_dtype)
    return _run(grad, rows, out_dtype, bias, backend)


def _fake(
    grad: Tensor, rows: Tensor, out_dtype: torch.dtype | None, bias: bool, backend: str
) -> tuple[Tensor, Tensor]:
    _check_matrices(grad, rows, out_dtype)
    outputs, dtype = grad.shape[1], out_dtype or grad.dtype
    return grad.new_empty((outputs, rows.shape[1]), dtype=dtype), grad.new_empty(outputs if bias else 0, dtype=dtype)


_LIBRARY.impl("weight_gradient", _registered, "CompositeExplicitAutograd")
torch.library.register_fake("mae_dfer_kernels::weight_gradient", _fake, lib=_LIBRARY)

_op = torch.ops.mae_dfer_kernels.weight_gradient.default


def weight_gradient(
    grad: Tensor, rows: Tensor, *, out_dtype: torch.dtype | None = None, bias: bool = True, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Σ grad ⊗ row and Σ grad over all rows: the gradients of weight and bias of ``linear(rows, weight, bias)``.

    ``cpu`` gives the same bits every time, whatever the number of threads. Where the result is to be differentiated
    itself, plain PyTorch computes it.

    Args:
        grad: (…, O), the gradient of the layer's output: float64, float32, bfloat16 or float16. Rows may have any
            stride.
        rows: (…, I), the layer's input, in the dtype of ``grad``.
        out_dtype: that of the results, by default that of ``grad``. Where a layer's parameters are wider than what is
            multiplied, as under autocast, theirs spares a rounding.
        bias: whether the second result is wanted; if not, it is empty.
        backend: ``eager``, ``cpu`` (float32, and bfloat16 where the processor multiplies it), or ``auto`` for the one
            that was faster where it was measured.

    Returns:
        (O, I) and (O,), contiguous, summed in float32 (float64 for float64). ``eager`` rounds to the dtype of ``grad``
        before it converts to ``out_dtype``.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument's value, shape or device does not fit; the message names it.
        BackendUnavailable: the backend that was asked for cannot run this call.
    """
    _check(grad, rows, out_dtype)
    if not isinstance(bias, bool):
        raise TypeError(f"bias must be a bool, got {type(bias).__name__}")
    check_backend(backend)
    resolved = backends.choose("weight_gradient", backend, grad)
    grad, rows = (tensor.reshape(math.prod(tensor.shape[:-1]), tensor.shape[-1]) for tensor in (grad, rows))
    if kernels_step_aside(grad, rows):
        return reference.backward(grad, rows, out_dtype or grad.dtype, bias)
    result: tuple[Tensor, Tensor] = call_without_gradient(_op, _run, (grad, rows, out_dtype, bias, resolved))
    return result


def _check(grad: Any, rows: Any, out_dtype: Any) -> None:
    check_vectors("grad", grad)
    check_companion("rows", rows, "grad", grad)
    check_vectors("rows", rows)
    if rows.shape[:-1] != grad.shape[:-1]:
        raise ValueError(f"grad and rows must have shapes (…, O) and (…, I), got {(*grad.shape,)} and {(*rows.shape,)}")
    if rows.dtype != grad.dtype:
        raise TypeError(f"rows must have the dtype of grad, {grad.dtype}, got {rows.dtype}")
    if out_dtype is not None:
        check_result_dtype("out_dtype", out_dtype, grad)


def _check_matrices(grad: Tensor, rows: Tensor, out_dtype: torch.dtype | None) -> None:
    """What the registered function is given: (M, O) and (M, I)."""
    _check(grad, rows, out_dtype)
    if grad.dim() != 2:
        raise ValueError(f"grad must have shape (M, O), got {tuple(grad.shape)}")
