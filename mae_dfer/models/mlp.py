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
from .linear import bias_gradient, linear, product, weight_gradient
from .recompute import differentiable_gradients, normalise, normalise_gradient, plain_norm
from .residual import Residual


def norm_mlp(stream: Residual, norm: nn.LayerNorm, fc1: nn.Linear, fc2: nn.Linear) -> tuple[Tensor, Tensor]:
    """The stream's sum, and ``fc2(gelu(fc1(norm(sum))))`` with the exact (erf) GELU, in autocast's dtype if it is on.

    Kept for the backward are the sum and what ``fc1`` returns, not the outputs of ``norm`` and GELU.
    """
    if plain_autograd_needed():
        total, hidden = stream.norm_linear(norm, current(fc1.weight), current(fc1.bias))
        return total, linear(F.gelu(hidden), current(fc2.weight), current(fc2.bias))
    dtype = autocast_dtype(stream.x)
    linears = (current(tensor).to(dtype) for tensor in (fc1.weight, fc1.bias, fc2.weight, fc2.bias))
    return _NormMlp.apply(*stream, norm.eps, norm.weight, norm.bias, *linears)


def _mlp_of_norm(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, *rest: Tensor, eps: float
) -> Tensor:
    bias, out_weight, out_bias = rest
    hidden = F.linear(plain_norm(x, norm_weight, norm_bias, eps, weight.dtype), weight, bias)
    return F.linear(F.gelu(hidden), out_weight, out_bias)


class _NormMlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, update: Tensor | None, factors: Tensor | None, eps: float, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        norm_weight, norm_bias, weight, bias, out_weight, out_bias = parameters
        with without_autocast(x.device.type):
            total, normed = normalise(x, update, factors, norm_weight, norm_bias, eps, weight.dtype)
            hidden = product(normed, weight, bias)
            out = product(F.gelu(hidden), out_weight, out_bias)
        ctx.save_for_backward(total, factors, hidden, *parameters)
        ctx.eps, ctx.update_dtype = eps, None if update is None else update.dtype
        ctx.set_materialize_grads(False)
        return total, out

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor | None, grad_out: Tensor | None) -> tuple[Tensor | None, ...]:
        total, factors, hidden, *parameters = ctx.saved_tensors
        norm_weight, norm_bias, weight, _, out_weight, _ = parameters
        wants_weight, _, wants_out_weight, wants_out_bias = ctx.needs_input_grad[6:]
        if grad_out is None:
            grad_out = total.new_zeros((*total.shape[:-1], out_weight.shape[0]), dtype=out_weight.dtype)
        if torch.is_grad_enabled():
            return differentiable_gradients(ctx, _mlp_of_norm, grad_total, grad_out, total, factors, parameters)
        grad_weight = grad_out_weight = None
        with without_autocast(total.device.type):
            grad_hidden, activated, grad_bias = gelu_gradient(product(grad_out, out_weight.t()), hidden)
            if wants_out_weight:
                grad_out_weight = weight_gradient(grad_out, activated)
            del activated
            if wants_weight:
                normed = layer_norm(total, norm_weight, norm_bias, eps=ctx.eps, out_dtype=weight.dtype)
                grad_weight = weight_gradient(grad_hidden, normed)
                del normed
            grad_normed = product(grad_hidden, weight.t())
            through = normalise_gradient(ctx, grad_total, grad_normed, total, factors, norm_weight)
        grad_out_bias = bias_gradient(grad_out) if wants_out_bias else None
        return *through, grad_weight, grad_bias, grad_out_weight, grad_out_bias
