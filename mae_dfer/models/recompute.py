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

from mae_dfer_kernels import residual_layer_norm
from mae_dfer_kernels.calls import autocast_dtype, plain_autograd_needed, transformed, without_autocast
from mae_dfer_kernels.residual_layer_norm import residual_layer_norm_gradient

from .linear import bias_gradient, differentiable_gradient, linear, product, weight_gradient


def norm_linear(x: Tensor, norm: nn.LayerNorm, weight: Tensor, bias: Tensor) -> Tensor:
    """``linear(norm(x))``: x (…, C), weight (O, C), bias (O,) → (…, O), in autocast's dtype where it is on."""
    if plain_autograd_needed():
        return linear(norm(x), weight, bias)
    dtype = autocast_dtype(x)
    return _NormLinear.apply(x, norm.weight, norm.bias, norm.eps, weight.to(dtype), bias.to(dtype))


def residual_norm_linear(
    x: Tensor, update: Tensor, factors: Tensor | None, norm: nn.LayerNorm, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """``total = x + factors · update`` and ``linear(norm(total))``, as :func:`norm_linear`.

    x and update (…, S, C); factors of the shape of x's first axes (without S and C) or fewer of them, None for 1.
    """
    dtype = autocast_dtype(x)
    if plain_autograd_needed():
        total, normed = residual_layer_norm(
            x, update, norm.weight, norm.bias, row_scale=factors, eps=norm.eps, out_dtype=dtype
        )
        return total, linear(normed, weight, bias)
    parameters = (norm.weight, norm.bias, weight.to(dtype), bias.to(dtype))
    return _ResidualNormLinear.apply(x, update, factors, norm.eps, *parameters)


def gelu_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``linear(gelu(x))`` with the exact (erf) GELU; shapes and dtype as for :func:`norm_linear`."""
    if plain_autograd_needed():
        return linear(F.gelu(x), weight, bias)
    dtype = autocast_dtype(x)
    return _GeluLinear.apply(x.to(dtype), weight.to(dtype), bias.to(dtype))


def _linear_of_norm(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    normed = F.layer_norm(x.to(norm_weight.dtype), norm_weight.shape, norm_weight, norm_bias, eps)
    return F.linear(normed.to(weight.dtype), weight, bias)


class _NormLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float, weight: Tensor, bias: Tensor
    ) -> Tensor:
        with without_autocast(x.device.type):
            normed, mean, inverse = _normalise(x, norm_weight, norm_bias, eps)
            out = product(normed.to(weight.dtype), weight, bias)
        ctx.save_for_backward(x, norm_weight, norm_bias, weight, bias, mean, inverse)
        ctx.eps = eps
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, norm_weight, norm_bias, weight, bias, mean, inverse = ctx.saved_tensors
        wants_x, *wants_norm = ctx.needs_input_grad[:3]
        wants_weight, wants_bias = ctx.needs_input_grad[4:]
        if torch.is_grad_enabled():
            wanted = (wants_x, *wants_norm, wants_weight, wants_bias)
            call = functools.partial(_linear_of_norm, eps=ctx.eps)
            found = differentiable_gradient(call, (x, norm_weight, norm_bias, weight, bias), wanted, grad)
            return *found[:3], None, *found[3:]
        grad_x = grad_norm_weight = grad_norm_bias = grad_weight = None
        with without_autocast(x.device.type):
            if wants_weight:
                normed, _, _ = _normalise(x, norm_weight, norm_bias, ctx.eps)
                grad_weight = weight_gradient(grad, normed.to(weight.dtype))
                del normed
            if wants_x or any(wants_norm):
                wide, grad_normed = x.to(mean.dtype), product(grad, weight.t())
                grad_x, grad_norm_weight, grad_norm_bias = torch.ops.aten.native_layer_norm_backward(
                    grad_normed.to(wide.dtype), wide, norm_weight.shape, mean, inverse, norm_weight, norm_bias,
                    [wants_x, *wants_norm],
                )  # fmt: skip
                grad_x = grad_x.to(x.dtype) if wants_x else None
        grad_bias = bias_gradient(grad) if wants_bias else None
        return grad_x, grad_norm_weight, grad_norm_bias, None, grad_weight, grad_bias


class _ResidualNormLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        update: Tensor,
        factors: Tensor | None,
        eps: float,
        norm_weight: Tensor,
        norm_bias: Tensor,
        weight: Tensor,
        bias: Tensor,
    ) -> tuple[Tensor, Tensor]:
        with without_autocast(x.device.type):
            total, normed = residual_layer_norm(
                x, update, norm_weight, norm_bias, row_scale=factors, eps=eps, out_dtype=weight.dtype
            )
            out = product(normed, weight, bias)
        ctx.save_for_backward(total, factors, norm_weight, norm_bias, weight, bias)
        ctx.eps, ctx.update_dtype = eps, update.dtype
        ctx.set_materialize_grads(False)
        return total, out

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor | None, grad_out: Tensor | None) -> tuple[Tensor | None, ...]:
        total, factors, norm_weight, norm_bias, weight, bias = ctx.saved_tensors
        wants_weight, wants_bias = ctx.needs_input_grad[6:]
        if grad_out is None:
            grad_out = total.new_zeros((*total.shape[:-1], weight.shape[0]), dtype=weight.dtype)
        if torch.is_grad_enabled():
            return _ResidualNormLinear._differentiable(ctx, grad_total, grad_out)
        grad_weight = None
        with without_autocast(total.device.type):
            if wants_weight:
                normed, _, _ = _normalise(total, norm_weight, norm_bias, ctx.eps)
                grad_weight = weight_gradient(grad_out, normed.to(weight.dtype))
                del normed
            gradients = residual_layer_norm_gradient(
                grad_total, product(grad_out, weight.t()), total, factors, norm_weight, ctx.eps, ctx.update_dtype
            )
        grad_x, grad_update, grad_norm_weight, grad_norm_bias = gradients
        grad_bias = bias_gradient(grad_out) if wants_bias else None
        return grad_x, grad_update, None, None, grad_norm_weight, grad_norm_bias, grad_weight, grad_bias

    @staticmethod
    def _differentiable(ctx: Any, grad_total: Tensor | None, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        total, factors, *parameters = ctx.saved_tensors
        call = functools.partial(_linear_of_norm, eps=ctx.eps)
        wanted = (True, *ctx.needs_input_grad[4:])
        through_norm, *found = differentiable_gradient(call, (total, *parameters), wanted, grad_out)
        assert through_norm is not None
        grad_x = through_norm if grad_total is None else through_norm + grad_total
        grad_update = grad_x if factors is None else grad_x * spread(factors, grad_x)
        return grad_x, grad_update.to(ctx.update_dtype), None, None, *found


def spread(factors: Tensor, rows: Tensor) -> Tensor:
    """Factors of the first axes, for all elements of ``rows``."""
    return factors.view(factors.shape + (1,) * (rows.ndim - factors.ndim))


def _normalise(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """LayerNorm of the last axis in the dtype of its parameters, and the mean and 1 / deviation for its gradient."""
    result: tuple[Tensor, Tensor, Tensor] = torch.native_layer_norm(x.to(weight.dtype), weight.shape, weight, bias, eps)
    return result


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
            grad_weight = weight_gradient(grad, F.gelu(x)) if wants_weight else None
            grad_x = torch.ops.aten.gelu_backward(product(grad, weight.t()), x) if wants_x else None
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
