"""Linear layers by the faster of the libraries that PyTorch brings.

On a CPU PyTorch gives float32 products to MKL. oneDNN, which it has besides and compiled graphs call, was faster for
the products with a weight: on two Zen 4 cores 1.13 times forward and 1.09 times for the gradient of the input, at every
size of these models. The gradient of the weight stays with MKL, which transposes without a copy and rounds less in sums
over many rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import flop_registry, register_flop_formula

from mae_dfer_kernels import column_sums
from mae_dfer_kernels.calls import autocast_dtype, is_plain, plain_autograd_needed, transformed, without_autocast

from .casts import current

_onednn = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None

if _onednn is not None and _onednn not in flop_registry:

    @register_flop_formula(_onednn)
    def _onednn_flops(x_shape: Any, weight_shape: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return 2 * math.prod(x_shape) * int(weight_shape[0])


class Linear(nn.Linear):
    """An `nn.Linear` by :func:`linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, current(self.weight), None if self.bias is None else current(self.bias))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`torch.nn.functional.linear`: x (…, C), weight (O, C), bias (O,) → (…, O)."""
    if _sums_by_kernel(x) and not plain_autograd_needed() and is_plain(x) and is_plain(weight):
        dtype = autocast_dtype(x)  # products are PyTorch's; the gradient of the bias is by a kernel of ours
        return _Linear.apply(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
    if not _for_onednn(x, weight) or autocast_dtype(x) != x.dtype:
        return F.linear(x, weight, bias)
    return product(x, weight, bias) if plain_autograd_needed() else _Linear.apply(x, weight, bias)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """:func:`linear` for where no gradient is taken of it, in the dtype that both have."""
    if _for_onednn(x, weight):
        result: Tensor = _onednn(x, weight, bias, "none", [], "")  # type: ignore[misc]
        return result
    return F.linear(x, weight, bias)


def _sums_by_kernel(x: Tensor) -> bool:
    return x.is_cuda


def _for_onednn(x: Tensor, weight: Tensor) -> bool:
    if torch.compiler.is_compiling() or _onednn is None or not torch.backends.mkldnn.enabled:
        return False
    if not x.is_cpu or x.dtype != torch.float32 or weight.dtype != torch.float32 or x.numel() == 0:
        return False
    return is_plain(x) and is_plain(weight) and not transformed()


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        if torch.is_grad_enabled():
            inputs = (x, weight) if bias is None else (x, weight, bias)
            found = differentiable_gradient(F.linear, inputs, ctx.needs_input_grad[: len(inputs)], grad)
            return found if bias is not None else (*found, None)
        return (
            product(grad, weight.t()) if wants_x else None,
            weight_gradient(grad, x) if wants_weight else None,
            bias_gradient(grad) if wants_bias else None,
        )


def weight_gradient(grad: Tensor, rows: Tensor) -> Tensor:
    """Σ grad ⊗ row over all rows: (…, O), (…, C) → (O, C)."""
    return grad.reshape(-1, grad.shape[-1]).t() @ rows.reshape(-1, rows.shape[-1])


def bias_gradient(grad: Tensor) -> Tensor:
    """Σ grad over all rows: (…, O) → (O,)."""
    return column_sums(grad)


def differentiable_gradient(
    call: Callable[..., Tensor], inputs: tuple[Tensor, ...], wanted: tuple[bool, ...], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradient by plain PyTorch, for whoever differentiates it once more."""
    # Of views: the gradient of a weight is to go by this call alone, not by what an input was made of with it before.
    inputs = tuple(tensor.view_as(tensor) for tensor in inputs)
    chosen = [tensor for tensor, wants in zip(inputs, wanted, strict=True) if wants]
    with without_autocast(grad.device.type):
        found = iter(torch.autograd.grad(call(*inputs), chosen, grad, create_graph=True))
    return tuple(next(found) if wants else None for wants in wanted)
