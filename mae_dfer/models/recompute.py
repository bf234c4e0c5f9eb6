"""Linear layers after a LayerNorm that do not keep what they multiply: the backward computes it again.

For the gradient of its weights a linear layer needs its input, and so autograd keeps the outputs of LayerNorm and GELU
beside their inputs, which are kept anyway: six of about twenty activations of a block. Both cost little to repeat (GELU
in :mod:`.mlp`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mae_dfer_kernels import layer_norm, residual_layer_norm
from mae_dfer_kernels.calls import autocast_dtype, plain_autograd_needed, transformed, without_autocast
from mae_dfer_kernels.layer_norm import layer_norm_gradient
from mae_dfer_kernels.residual_layer_norm import residual_layer_norm_gradient

from .linear import differentiable_gradient, in_dtype_of, linear, parameter_gradients, product


def norm_linear(x: Tensor, norm: nn.LayerNorm, weight: Tensor, bias: Tensor) -> Tensor:
    """``linear(norm(x))``: x (…, S, C), weight (O, C), bias (O,) → (…, S, O), in autocast's dtype where it is on."""
    return residual_norm_linear(x, None, None, norm, weight, bias)[1]


def residual_norm_linear(
    x: Tensor, update: Tensor | None, factors: Tensor | None, norm: nn.LayerNorm, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """``total = x + factors · update`` and ``linear(norm(total))``, as :func:`norm_linear`.

    x and update (…, S, C), None for nothing to add; factors of the shape of x's first axes (without S and C) or fewer
    of them, None for 1. Whoever goes on with ``total``, not with an equal ``x``, spares its gradient an addition.
    """
    dtype = autocast_dtype(x)
    if plain_autograd_needed():
        total, normed = normalise(x, update, factors, norm.weight, norm.bias, norm.eps, dtype)
        return total, linear(normed, weight, bias)
    return _NormLinear.apply(x, update, factors, norm.eps, norm.weight, norm.bias, weight, bias)


def normalise(
    x: Tensor,
    update: Tensor | None,
    factors: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """``x + factors · update``, and its LayerNorm in ``out_dtype``."""
    if update is None:
        return x, layer_norm(x, weight, bias, eps=eps, out_dtype=out_dtype)
    return residual_layer_norm(x, update, weight, bias, row_scale=factors, eps=eps, out_dtype=out_dtype)


def normalise_gradient(
    ctx: Any, grad_total: Tensor | None, grad_normed: Tensor, total: Tensor, factors: Tensor | None, weight: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of `normalise`'s x, update, factors, eps, weight and bias, for an autograd function that keeps ``eps``
    and ``update_dtype`` (None without an update) in ``ctx``; for :func:`differentiable_gradients`, ``dtype`` too."""
    if ctx.update_dtype is None:
        grad_x, *grad_norm = layer_norm_gradient(grad_total, grad_normed, total, weight, ctx.eps)
        return grad_x, None, None, None, *grad_norm
    grad_x, grad_update, *grad_norm = residual_layer_norm_gradient(
        grad_total, grad_normed, total, factors, weight, ctx.eps, ctx.update_dtype
    )
    return grad_x, grad_update, None, None, *grad_norm


def differentiable_gradients(
    ctx: Any,
    call: Callable[..., Tensor],
    grad_total: Tensor | None,
    grad_out: Tensor,
    total: Tensor,
    factors: Tensor | None,
    parameters: Sequence[Tensor],
) -> tuple[Tensor | None, ...]:
    """As `normalise_gradient`, with all that come after: of ``call(total, *parameters, eps=…)`` in plain PyTorch."""
    of_total = any(ctx.needs_input_grad[:2])
    wanted = (of_total, *ctx.needs_input_grad[4:])
    found = differentiable_gradient(
        functools.partial(call, eps=ctx.eps, dtype=ctx.dtype), (total, *parameters), wanted, grad_out
    )
    through_norm, *rest = found
    if through_norm is None:
        return None, None, None, None, *rest
    grad_x = through_norm if grad_total is None else through_norm + grad_total
    if ctx.update_dtype is None:
        return grad_x, None, None, None, *rest
    grad_update = grad_x if factors is None else grad_x * spread(factors, grad_x)
    return grad_x, grad_update.to(ctx.update_dtype), None, None, *rest


def plain_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, out_dtype: torch.dtype) -> Tensor:
    """LayerNorm in the dtype of its parameters, then in ``out_dtype``."""
    return F.layer_norm(x.to(weight.dtype), weight.shape, weight, bias, eps).to(out_dtype)


def _linear_of_norm(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> Tensor:
    return F.linear(plain_norm(x, norm_weight, norm_bias, eps, dtype), weight.to(dtype), bias.to(dtype))


class _NormLinear(torch.autograd.Function):
    """In autocast's dtype; weight and bias may be wider, and so are their gradients then."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        update: Tensor | None,
        factors: Tensor | None,
        eps: float,
        norm_weight: Tensor,
        norm_bias: Tensor,
        weight: Tensor,
        bias: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.eps, ctx.dtype, ctx.update_dtype = eps, autocast_dtype(x), None if update is None else update.dtype
        with without_autocast(x.device.type):
            total, normed = normalise(x, update, factors, norm_weight, norm_bias, eps, ctx.dtype)
            low_weight, low_bias = in_dtype_of(normed, weight, bias)
            out = product(normed, low_weight, low_bias)
        ctx.save_for_backward(total, factors, norm_weight, norm_bias, weight, bias, low_weight)
        ctx.set_materialize_grads(False)
        return total, out

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor | None, grad_out: Tensor | None) -> tuple[Tensor | None, ...]:
        total, factors, norm_weight, norm_bias, weight, bias, low_weight = ctx.saved_tensors
        wants_weight, wants_bias = ctx.needs_input_grad[6:]
        if grad_out is None:
            grad_out = total.new_zeros((*total.shape[:-1], weight.shape[0]), dtype=ctx.dtype)
        if torch.is_grad_enabled():
            parameters = (norm_weight, norm_bias, weight, bias)
            return differentiable_gradients(ctx, _linear_of_norm, grad_total, grad_out, total, factors, parameters)
        with without_autocast(total.device.type):
            normed = None
            if wants_weight:
                normed = layer_norm(total, norm_weight, norm_bias, eps=ctx.eps, out_dtype=ctx.dtype)
            of_parameters = parameter_gradients(grad_out, normed, weight.dtype, wants_bias)
            del normed
            grad_normed = product(grad_out, low_weight.t())
            return *normalise_gradient(ctx, grad_total, grad_normed, total, factors, norm_weight), *of_parameters


def spread(factors: Tensor, rows: Tensor) -> Tensor:
    """Factors of the first axes, for all elements of ``rows``."""
    return factors.view(factors.shape + (1,) * (rows.ndim - factors.ndim))


def with_zero_gradients(x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """``x``, whose gradient brings zeros to ``parameters`` that it does not depend on.

    Without a gradient, DDP waits for them in vain and AdamW leaves out their weight decay.
    """
    if transformed():  # it gives zeros itself
        return x
    return _ZeroGradients.apply(x, *parameters)


class _ZeroGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        zeros = [torch.zeros_like(parameter) for parameter in ctx.saved_tensors]
        return grad, *(zero if wanted else None for zero, wanted in zip(zeros, ctx.needs_input_grad[1:], strict=True))
