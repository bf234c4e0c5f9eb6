"""A LayerNorm that gives what it makes in the dtype of the product after it, in one pass over memory.

The kernels are those of the residual + LayerNorm, with nothing to add.

Letters: G groups, M rows a group, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mae_dfer_kernels import backends
from mae_dfer_kernels.arguments import (
    check_affine,
    check_backend,
    check_eps,
    check_groups,
    check_like,
    check_parameter,
    check_result_dtype,
    check_rows,
    group_shape,
)
from mae_dfer_kernels.calls import Operator, call, call_without_gradient
from mae_dfer_kernels.reference import residual_layer_norm as reference

_LIBRARY = torch.library.Library("mae_dfer_kernels", "FRAGMENT")
_LIBRARY.define(
    "layer_norm(Tensor x, Tensor weight, Tensor bias, float eps, ScalarType out_dtype, str backend) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_LIBRARY.define(
    "layer_norm_backward(Tensor? grad_sum, Tensor grad_normed, Tensor x, Tensor weight, float eps, str backend) "
    "-> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _run_forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float, out_dtype: torch.dtype, backend: str) -> Tensor:
    inputs = (x, None, None, weight, bias, eps, out_dtype)
    normed: Tensor = backends.run("layer_norm", "forward", backend, (x,), *inputs)[1]
    return normed


def _run_backward(
    grad_sum: Tensor | None, grad_normed: Tensor, x: Tensor, weight: Tensor, eps: float, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    # That of the update that there is not would be the first gradient, and so none is made.
    inputs = (grad_sum, grad_normed, x, None, weight, eps, x.dtype, True)
    grad_x, _, grad_weight, grad_bias = backends.run("layer_norm", "backward", backend, (x,), *inputs)
    return grad_x, grad_weight, grad_bias


# What is registered checks its arguments: whoever calls it comes past the public function's checks.
def _forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float, out_dtype: torch.dtype, backend: str) -> Tensor:
    _check_forward(x, weight, bias, out_dtype)
    return _run_forward(x, weight, bias, eps, out_dtype, backend)


def _backward(
    grad_sum: Tensor | None, grad_normed: Tensor, x: Tensor, weight: Tensor, eps: float, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    _check_backward(grad_sum, grad_normed, x, weight)
    return _run_backward(grad_sum, grad_normed, x, weight, eps, backend)


def _forward_fake(x: Tensor, weight: Tensor, bias: Tensor, eps: float, out_dtype: torch.dtype, backend: str) -> Tensor:
    _check_forward(x, weight, bias, out_dtype)
    return x.new_empty(x.shape, dtype=out_dtype)


def _backward_fake(
    grad_sum: Tensor | None, grad_normed: Tensor, x: Tensor, weight: Tensor, eps: float, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    _check_backward(grad_sum, grad_normed, x, weight)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape)


_LIBRARY.impl("layer_norm", _forward, "CompositeExplicitAutograd")
_LIBRARY.impl("layer_norm_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("mae_dfer_kernels::layer_norm", _forward_fake, lib=_LIBRARY)
torch.library.register_fake("mae_dfer_kernels::layer_norm_backward", _backward_fake, lib=_LIBRARY)

_forward_op = torch.ops.mae_dfer_kernels.layer_norm.default
_backward_op = torch.ops.mae_dfer_kernels.layer_norm_backward.default


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, eps, _, backend = inputs
    ctx.save_for_backward(x, weight)
    ctx.options = (eps, backend)


def _gradient(ctx: Any, grad_normed: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    eps, backend = ctx.options
    if torch.is_grad_enabled():
        # Someone will differentiate the gradient; the kernels have no second derivative, plain PyTorch has.
        gradients = reference.backward(None, grad_normed, x, None, weight, eps, x.dtype, True)
        grad_x, grad_weight, grad_bias = gradients[0], *gradients[2:]
    else:
        inputs = (None, grad_normed, x, weight, eps, backend)
        grad_x, grad_weight, grad_bias = call_without_gradient(_backward_op, _run_backward, inputs)
    return grad_x, grad_weight, grad_bias, None, None, None


# Compiled graphs and direct calls of the operator differentiate through this registration.
torch.library.register_autograd("mae_dfer_kernels::layer_norm", _gradient, setup_context=_setup_context, lib=_LIBRARY)


class _LayerNorm(torch.autograd.Function):
    """The same gradient for eager calls, at less cost a call than the registration above."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        output: Tensor = call_without_gradient(_forward_op, _run_forward, inputs)
        _setup_context(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, grad_normed: Tensor) -> tuple[Tensor | None, ...]:
        return _gradient(ctx, grad_normed)


def _plain(x: Tensor, *rest: Any) -> Tensor:
    return reference.forward(x, None, None, *rest)[1]


_OPERATOR = Operator(_forward_op, _run_forward, _LayerNorm, _plain)


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-6,
    out_dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> Tensor:
    """``LayerNorm(x)``: `residual_layer_norm` without an update.

    ``x`` is read and the result written once, in the dtype of the matmul after it; the backward recomputes mean and
    variance. Two calls give the same bits, whatever the number of threads.

    Args:
        x: (…, M, C): float64, float32, bfloat16 or float16. Rows may have any stride.
        weight: (C,), of the dtype of ``x`` or float32.
        bias: (C,), of the dtype of ``weight``.
        eps: what is added to the variance.
        out_dtype: dtype of the result; None: that of ``x``.
        backend: ``eager``, ``cpu``, ``triton``, ``cuda``, or ``auto`` for the fastest that can run this call.

    Returns:
        Of the shape of ``x``, contiguous. Statistics are in float32 (float64 for float64).

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument's value, shape or device does not fit; the message names it.
        BackendUnavailable: the backend that was asked for cannot run this call.
    """
    check_rows("x", x)
    check_affine(x, weight, bias)
    out_dtype = x.dtype if out_dtype is None else out_dtype
    check_result_dtype("out_dtype", out_dtype, x)
    eps = check_eps(eps)
    check_backend(backend)
    resolved = backends.choose("layer_norm", backend, x)
    shape = x.shape
    if len(shape) != 3:
        # Reshaping copies where two leading axes cannot be walked with one stride.
        x = x.reshape(group_shape(shape))
    normed: Tensor = call(_OPERATOR, (x, weight, bias), (x, weight, bias, eps, out_dtype, resolved))
    return normed if len(shape) == 3 else normed.view(shape)


def layer_norm_gradient(
    grad_sum: Tensor | None, grad_normed: Tensor, x: Tensor, weight: Tensor, eps: float, backend: str = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `layer_norm`, for autograd functions of which it is a part.

    Args:
        grad_sum: what ``x``, of whose shape it is, has of a gradient besides, to be added; None for zero.
        grad_normed: of the shape of ``x``.
        x, weight, eps, backend: what the forward was given.

    Returns:
        Gradients of ``x``, of ``weight`` and of ``bias``. They cannot be differentiated.
    """
    rows = group_shape(x.shape)
    grad_sum = None if grad_sum is None else grad_sum.reshape(rows)
    resolved = backends.choose("layer_norm", backend, x)
    inputs = (grad_sum, grad_normed.reshape(rows), x.reshape(rows), weight, eps, resolved)
    grad_x, grad_weight, grad_bias = call_without_gradient(_backward_op, _run_backward, inputs)
    return grad_x.view(x.shape), grad_weight, grad_bias


def _check_forward(x: Tensor, weight: Tensor, bias: Tensor, out_dtype: torch.dtype) -> None:
    check_groups("x", x)
    check_affine(x, weight, bias)
    check_result_dtype("out_dtype", out_dtype, x)


def _check_backward(grad_sum: Tensor | None, grad_normed: Tensor, x: Tensor, weight: Tensor) -> None:
    check_groups("x", x)
    check_like("grad_normed", grad_normed, "x", x)
    if grad_sum is not None:
        check_like("grad_sum", grad_sum, "x", x)
    check_parameter("weight", weight, "x", x, "(C,)", x.shape[-1:])
