"""Linear layers after a LayerNorm or a GELU that do not keep what they multiply: the backward computes it again.

For the gradient of its weights a linear layer needs its input, and so autograd keeps the outputs of LayerNorm and GELU
beside their inputs, which are kept anyway: six of about twenty activations of a block. Both cost little to repeat.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mae_dfer_kernels import gelu_gradient, layer_norm, residual_layer_norm
from mae_dfer_kernels.calls import autocast_dtype, plain_autograd_needed, transformed, without_autocast
from mae_dfer_kernels.layer_norm import layer_norm_gradient
from mae_dfer_kernels.residual_layer_norm import residual_layer_norm_gradient

from .linear import bias_gradient, differentiable_gradient, linear, product, weight_gradient


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
        total, normed = _normalise(x, update, factors, norm.weight, norm.bias, norm.eps, dtype)
        return total, linear(normed, weight, bias)
    parameters = (norm.weight, norm.bias, weight.to(dtype), bias.to(dtype))
    return _NormLinear.apply(x, update, factors, norm.eps, *parameters)


def gelu_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``linear(gelu(x))`` with the exact (erf) GELU; shapes and dtype as for :func:`norm_linear`."""
    if plain_autograd_needed():
        return linear(F.gelu(x), weight, bias)
    dtype = autocast_dtype(x)
    return _GeluLinear.apply(x.to(dtype), weight.to(dtype), bias.to(dtype))


def _normalise(
    x: Tensor,
    update: Tensor | None,
    factors: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    if update is None:
        return x, layer_norm(x, weight, bias, eps=eps, out_dtype=out_dtype)
    return residual_layer_norm(x, update, weight, bias, row_scale=factors, eps=eps, out_dtype=out_dtype)


def _linear_of_norm(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    normed = F.layer_norm(x.to(norm_weight.dtype), norm_weight.shape, norm_weight, norm_bias, eps)
    return F.linear(normed.to(weight.dtype), weight, bias)


class _NormLinear(torch.autograd.Function):
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
        with without_autocast(x.device.type):
            total, normed = _normalise(x, update, factors, norm_weight, norm_bias, eps, weight.dtype)
            out = product(normed, weight, bias)
        ctx.save_for_backward(total, factors, norm_weight, norm_bias, weight, bias)
        ctx.eps, ctx.update_dtype = eps, None if update is None else update.dtype
        ctx.set_materialize_grads(False)
        return total, out

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor | None, grad_out: Tensor | None) -> tuple[Tensor | None, ...]:
        total, factors, norm_weight, norm_bias, weight, bias = ctx.saved_tensors
        wants_weight, wants_bias = ctx.needs_input_grad[6:]
        if grad_out is None:
            grad_out = total.new_zeros((*total.shape[:-1], weight.shape[0]), dtype=weight.dtype)
        if torch.is_grad_enabled():
            return _NormLinear._differentiable(ctx, grad_total, grad_out)
        grad_weight = grad_update = None
        with without_autocast(total.device.type):
            if wants_weight:
                normed = layer_norm(total, norm_weight, norm_bias, eps=ctx.eps, out_dtype=weight.dtype)
                grad_weight = weight_gradient(grad_out, normed)
                del normed
            grad_normed = product(grad_out, weight.t())
            if ctx.update_dtype is None:
                grad_x, *grad_norm = layer_norm_gradient(grad_total, grad_normed, total, norm_weight, ctx.eps)
            else:
                grad_x, grad_update, *grad_norm = residual_layer_norm_gradient(
                    grad_total, grad_normed, total, factors, norm_weight, ctx.eps, ctx.update_dtype
                )
        grad_bias = bias_gradient(grad_out) if wants_bias else None
        return grad_x, grad_update, None, None, *grad_norm, grad_weight, grad_bias

    @staticmethod
    def _differentiable(ctx: Any, grad_total: Tensor | None, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        total, factors, *parameters = ctx.saved_tensors
        call = functools.partial(_linear_of_norm, eps=ctx.eps)
        wanted = (True, *ctx.needs_input_grad[4:])
        through_norm, *found = differentiable_gradient(call, (total, *parameters), wanted, grad_out)
        assert through_norm is not None
        grad_x = through_norm if grad_total is None else through_norm + grad_total
        if ctx.update_dtype is None:
            return grad_x, None, None, None, *found
        grad_update = grad_x if factors is None else grad_x * spread(factors, grad_x)
        return grad_x, grad_update.to(ctx.update_dtype), None, None, *found


def spread(factors: Tensor, rows: Tensor) -> Tensor:
    """Factors of the first axes, for all elements of ``rows``."""
    return factors.view(factors.shape + (1,) * (rows.ndim - factors.ndim))


def _linear_of_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(F.gelu(x), weight, bias)


class _GeluLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        with without_autocast(x.device.type):
            return product(F.gelu(x), weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        if torch.is_grad_enabled():
            return differentiable_gradient(_linear_of_gelu, ctx.saved_tensors, ctx.needs_input_grad, grad)
        with without_autocast(x.device.type):
            if wants_x:
                grad_x, activated, _ = gelu_gradient(product(grad, weight.t()), x)
            else:
                grad_x, activated = None, F.gelu(x)
            grad_weight = weight_gradient(grad, activated) if wants_weight else None
        return grad_x, grad_weight, bias_gradient(grad) if wants_bias else None


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
