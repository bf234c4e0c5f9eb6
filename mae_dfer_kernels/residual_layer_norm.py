"""The residual addition and the LayerNorm after it, in one pass over memory.

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
    check_companion,
    check_eps,
    check_groups,
    check_like,
    check_parameter,
    check_result_dtype,
    check_row_scale,
    check_rows,
    check_shape,
    group_shape,
)
from mae_dfer_kernels.calls import Operator, call, call_without_gradient
from mae_dfer_kernels.reference import residual_layer_norm as reference

_LIBRARY = torch.library.Library("mae_dfer_kernels", "FRAGMENT")
_LIBRARY.define(
    "residual_layer_norm(Tensor x, Tensor update, Tensor? row_scale, Tensor weight, Tensor bias, float eps, "
    "ScalarType out_dtype, str backend) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_LIBRARY.define(
    "residual_layer_norm_backward(Tensor? grad_sum, Tensor grad_normed, Tensor total, Tensor? row_scale, "
    "Tensor weight, float eps, ScalarType update_dtype, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _run_forward(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *inputs, backend = rest
    result: tuple[Tensor, Tensor] = backends.run("residual_layer_norm", "forward", backend, (x,), x, *inputs)
    return result


def _run_backward(grad_sum: Tensor | None, *rest: Any, share: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *inputs, backend = rest
    result: tuple[Tensor, Tensor, Tensor, Tensor] = backends.run(
        "residual_layer_norm", "backward", backend, (inputs[1],), grad_sum, *inputs, share
    )
    return result


def _run_backward_apart(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _run_backward(*arguments, share=False)


# What is registered checks its arguments: whoever calls it comes past the public function's checks.
def _forward(
    x: Tensor,
    update: Tensor,
    row_scale: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    out_dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor]:
    _check_forward(x, update, row_scale, weight, bias, out_dtype)
    return _run_forward(x, update, row_scale, weight, bias, eps, out_dtype, backend)


def _backward(
    grad_sum: Tensor | None,
    grad_normed: Tensor,
    total: Tensor,
    row_scale: Tensor | None,
    weight: Tensor,
    eps: float,
    update_dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_backward(grad_sum, grad_normed, total, row_scale, weight, update_dtype)
    # A registered operator may not return one tensor twice.
    return _run_backward_apart(grad_sum, grad_normed, total, row_scale, weight, eps, update_dtype, backend)


def _forward_fake(
    x: Tensor,
    update: Tensor,
    row_scale: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    out_dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor]:
    _check_forward(x, update, row_scale, weight, bias, out_dtype)
    return x.new_empty(x.shape), x.new_empty(x.shape, dtype=out_dtype)


def _backward_fake(
    grad_sum: Tensor | None,
    grad_normed: Tensor,
    total: Tensor,
    row_scale: Tensor | None,
    weight: Tensor,
    eps: float,
    update_dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_backward(grad_sum, grad_normed, total, row_scale, weight, update_dtype)
    return (
        total.new_empty(total.shape),
        total.new_empty(total.shape, dtype=update_dtype),
        weight.new_empty(weight.shape),
        weight.new_empty(weight.shape),
    )


_LIBRARY.impl("residual_layer_norm", _forward, "CompositeExplicitAutograd")
_LIBRARY.impl("residual_layer_norm_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("mae_dfer_kernels::residual_layer_norm", _forward_fake, lib=_LIBRARY)
torch.library.register_fake("mae_dfer_kernels::residual_layer_norm_backward", _backward_fake, lib=_LIBRARY)

_forward_op = torch.ops.mae_dfer_kernels.residual_layer_norm.default
_backward_op = torch.ops.mae_dfer_kernels.residual_layer_norm_backward.default


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, update, row_scale, weight, _, eps, _, backend = inputs
    # The sum is kept by whoever reads it next, and the rest of what the backward needs is recomputed from it.
    ctx.save_for_backward(output[0], row_scale, weight)
    ctx.options = (eps, update.dtype, backend)
    ctx.set_materialize_grads(False)


def _gradient(
    ctx: Any, grad_sum: Tensor | None, grad_normed: Tensor | None, share: bool = False
) -> tuple[Tensor | None, ...]:
    total, row_scale, weight = ctx.saved_tensors
    eps, update_dtype, backend = ctx.options
    if grad_normed is None:
        grad_normed = torch.zeros_like(total)
    arguments = (grad_sum, grad_normed, total, row_scale, weight, eps, update_dtype)
    if torch.is_grad_enabled():
        # Someone will differentiate the gradient; the kernels have no second derivative, plain PyTorch has.
        gradients = reference.backward(*arguments, share)
    else:
        run = _run_backward if share else _run_backward_apart
        gradients = call_without_gradient(_backward_op, run, (*arguments, backend))
    grad_x, grad_update, grad_weight, grad_bias = gradients
    return grad_x, grad_update, None, grad_weight, grad_bias, None, None, None


# Compiled graphs and direct calls of the operator differentiate through this registration.
torch.library.register_autograd(
    "mae_dfer_kernels::residual_layer_norm", _gradient, setup_context=_setup_context, lib=_LIBRARY
)


class _ResidualLayerNorm(torch.autograd.Function):
    """The same gradient for eager calls, at less cost a call than the registration above."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        output: tuple[Tensor, Tensor] = call_without_gradient(_forward_op, _run_forward, inputs)
        _setup_context(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, grad_sum: Tensor | None, grad_normed: Tensor | None) -> tuple[Tensor | None, ...]:
        # As the gradients of a sum, the first two may be one tensor.
        return _gradient(ctx, grad_sum, grad_normed, share=True)


class _OfViews(_ResidualLayerNorm):
    """Where x and update are views: of one gradient autograd would make two views, and think that it owns each."""

    @staticmethod
    def backward(ctx: Any, grad_sum: Tensor | None, grad_normed: Tensor | None) -> tuple[Tensor | None, ...]:
        return _gradient(ctx, grad_sum, grad_normed)


_OPERATOR = Operator(_forward_op, _run_forward, _ResidualLayerNorm, reference.forward)
_OPERATOR_OF_VIEWS = _OPERATOR._replace(function=_OfViews)


def residual_layer_norm(
    x: Tensor,
    update: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    row_scale: Tensor | None = None,
    eps: float = 1e-6,
    out_dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """A residual addition and the LayerNorm after it: ``sum = x + row_scale · update``, ``normed = LayerNorm(sum)``.

    What stands between two branches of a pre-LayerNorm block (MAE-DFER, arXiv 2307.02227, equations 2 to 8), with
    stochastic depth as a factor on each group of rows and the cast to the next matmul's dtype. Activations are
    read and written once; the backward recomputes mean and variance from the sum. Two calls give the same bits,
    whatever the number of threads.

    Args:
        x: (…, M, C), the residual stream: float64, float32, bfloat16 or float16. Rows may have any stride.
        update: of the shape of ``x``; its dtype may differ, but float64 goes with float64 alone.
        weight: (C,), of the dtype of ``x`` or float32.
        bias: (C,), of the dtype of ``weight``.
        row_scale: factors on ``update``, of the shape of the first axes of ``x`` (without M and C), or fewer of
            them; no gradient flows to it. None: 1.
        eps: what is added to the variance.
        out_dtype: dtype of ``normed``; None: that of ``x``.
        backend: ``eager``, ``cpu``, ``triton``, ``cuda``, or ``auto`` for the fastest that can run this call.

    Returns:
        ``(sum, normed)``, both of the shape of ``x`` and contiguous; the sum in the dtype of ``x``. Statistics are
        those of the sum as stored, in float32 (float64 for float64).

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument's value, shape or device does not fit; the message names it.
        BackendUnavailable: the backend that was asked for cannot run this call.
    """
    check_rows("x", x)
    check_like("update", update, "x", x)
    check_affine(x, weight, bias)
    out_dtype = x.dtype if out_dtype is None else out_dtype
    check_result_dtype("out_dtype", out_dtype, x)
    eps = check_eps(eps)
    scale = check_row_scale(row_scale, "x", x, x.dim() - 2)
    check_backend(backend)
    resolved = backends.choose("residual_layer_norm", backend, x)
    shape, operator = x.shape, _OPERATOR
    if len(shape) != 3:
        # Reshaping copies where two leading axes cannot be walked with one stride.
        rows, operator = group_shape(shape), _OPERATOR_OF_VIEWS
        x, update = x.reshape(rows), update.reshape(rows)
    inputs = (x, update, scale, weight, bias, eps, out_dtype, resolved)
    total, normed = call(operator, (x, update, weight, bias), inputs)
    return (total, normed) if len(shape) == 3 else (total.view(shape), normed.view(shape))


def residual_layer_norm_gradient(
    grad_sum: Tensor | None,
    grad_normed: Tensor,
    total: Tensor,
    row_scale: Tensor | None,
    weight: Tensor,
    eps: float,
    update_dtype: torch.dtype,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of `residual_layer_norm`, for autograd functions of which it is a part.

    Args:
        grad_sum: of the shape of ``total``, or None for zero.
        grad_normed: of the shape of ``total``.
        total: the sum that the forward returned.
        row_scale, weight, eps, backend: what the forward was given.
        update_dtype: the dtype of ``update``.

    Returns:
        Gradients of ``x`` and ``update``, which may be one tensor (return it as it is: of views of it autograd would
        think that it owns each), of ``weight`` and of ``bias``. They cannot be differentiated.
    """
    scale = check_row_scale(row_scale, "total", total, total.dim() - 2)
    rows = group_shape(total.shape)
    grad_sum = None if grad_sum is None else grad_sum.reshape(rows)
    inputs = (grad_sum, grad_normed.reshape(rows), total.reshape(rows), scale, weight, eps, update_dtype)
    resolved = backends.choose("residual_layer_norm", backend, total)
    grad_x, grad_update, grad_weight, grad_bias = call_without_gradient(
        _backward_op, _run_backward, (*inputs, resolved)
    )
    shared, grad_x = grad_update is grad_x, grad_x.view(total.shape)
    return grad_x, grad_x if shared else grad_update.view(total.shape), grad_weight, grad_bias


def _check_groups(name: str, x: Tensor, row_scale: Tensor | None) -> None:
    check_groups(name, x)
    if row_scale is not None:
        check_companion("row_scale", row_scale, name, x)
        check_shape("row_scale", row_scale, "(G,)", x.shape[:1])


def _check_forward(
    x: Tensor, update: Tensor, row_scale: Tensor | None, weight: Tensor, bias: Tensor, out_dtype: torch.dtype
) -> None:
    _check_groups("x", x, row_scale)
    check_like("update", update, "x", x)
    check_affine(x, weight, bias)
    check_result_dtype("out_dtype", out_dtype, x)


def _check_backward(
    grad_sum: Tensor | None,
    grad_normed: Tensor,
    total: Tensor,
    row_scale: Tensor | None,
    weight: Tensor,
    update_dtype: torch.dtype,
) -> None:
    _check_groups("total", total, row_scale)
    check_like("grad_normed", grad_normed, "total", total)
    if grad_sum is not None:
        check_like("grad_sum", grad_sum, "total", total)
    check_parameter("weight", weight, "total", total, "(C,)", total.shape[-1:])
    check_result_dtype("update_dtype", update_dtype, total)
