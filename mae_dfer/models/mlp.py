"""The MLP of a residual stream in one autograd function.

Its backward has the gradient of the hidden activations in hand, and so their sums, which are the gradient of the first
bias, come with it: two functions would read them once more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mae_dfer_kernels import gelu_gradient, layer_norm
from mae_dfer_kernels.calls import autocast_dtype, plain_autograd_needed, without_autocast

from .casts import current
from .linear import in_dtype_of, linear, linear_gelu, parameter_gradients, product
from .recompute import differentiable_gradients, normalise, normalise_gradient, plain_norm
from .residual import Residual


def norm_mlp(stream: Residual, norm: nn.LayerNorm, fc1: nn.Linear, fc2: nn.Linear) -> tuple[Tensor, Tensor]:
    """The stream's sum, and ``fc2(gelu(fc1(norm(sum))))`` with the exact (erf) GELU, in autocast's dtype if it is on.

    Kept for the backward are the sum and what ``fc1`` returns, not the outputs of ``norm`` and GELU.
    """
    if plain_autograd_needed():
        total, normed = normalise(*stream, norm.weight, norm.bias, norm.eps, autocast_dtype(stream.x))
        activated = linear_gelu(normed, current(fc1.weight), current(fc1.bias))
        return total, linear(activated, current(fc2.weight), current(fc2.bias))
    linears = (current(tensor) for tensor in (fc1.weight, fc1.bias, fc2.weight, fc2.bias))
    return _NormMlp.apply(*stream, norm.eps, norm.weight, norm.bias, *linears)


def _mlp_of_norm(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, *linears: Tensor, eps: float, dtype: torch.dtype
) -> Tensor:
    weight, bias, out_weight, out_bias = (tensor.to(dtype) for tensor in linears)
    hidden = F.linear(plain_norm(x, norm_weight, norm_bias, eps, dtype), weight, bias)
    return F.linear(F.gelu(hidden), out_weight, out_bias)


class _NormMlp(torch.autograd.Function):
    """In autocast's dtype; weights and biases may be wider, and so are their gradients then."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, update: Tensor | None, factors: Tensor | None, eps: float, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        norm_weight, norm_bias, weight, bias, out_weight, out_bias = parameters
        ctx.eps, ctx.dtype, ctx.update_dtype = eps, autocast_dtype(x), None if update is None else update.dtype
        with without_autocast(x.device.type):
            total, normed = normalise(x, update, factors, norm_weight, norm_bias, eps, ctx.dtype)
            first, second = in_dtype_of(normed, weight, bias), in_dtype_of(normed, out_weight, out_bias)
            hidden = product(normed, *first)
            out = product(F.gelu(hidden), *second)
        ctx.save_for_backward(total, factors, hidden, first[0], second[0], *parameters)
        ctx.set_materialize_grads(False)
        return total, out

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor | None, grad_out: Tensor | None) -> tuple[Tensor | None, ...]:
        total, factors, hidden, low_weight, low_out_weight, *parameters = ctx.saved_tensors
        norm_weight, norm_bias, weight, bias, out_weight, _ = parameters
        wants_weight, wants_bias, wants_out_weight, wants_out_bias = ctx.needs_input_grad[6:]
        if grad_out is None:
            grad_out = total.new_zeros((*total.shape[:-1], out_weight.shape[0]), dtype=ctx.dtype)
        if torch.is_grad_enabled():
            return differentiable_gradients(ctx, _mlp_of_norm, grad_total, grad_out, total, factors, parameters)
        with without_autocast(total.device.type):
            grad_hidden, activated, grad_bias = gelu_gradient(product(grad_out, low_out_weight.t()), hidden)
            rows = activated if wants_out_weight else None
            of_out = parameter_gradients(grad_out, rows, out_weight.dtype, wants_out_bias)
            del activated, rows
            grad_weight = None
            if wants_weight:
                normed = layer_norm(total, norm_weight, norm_bias, eps=ctx.eps, out_dtype=ctx.dtype)
                grad_weight, _ = parameter_gradients(grad_hidden, normed, weight.dtype, wants_bias=False)
                del normed
            grad_normed = product(grad_hidden, low_weight.t())
            through = normalise_gradient(ctx, grad_total, grad_normed, total, factors, norm_weight)
        return *through, grad_weight, grad_bias.to(bias.dtype) if wants_bias else None, *of_out
