"""Linear layers by the fastest library that is there.

On a CPU PyTorch gives float32 products to MKL. oneDNN, which it has besides and compiled graphs call, was faster for
the products with a weight: on two Zen 4 cores 1.13 times forward and 1.09 times for the gradient of the input, at every
size of these models. For the gradients of weight and bias there is `mae_dfer_kernels.weight_gradient`, which was faster
than both there and knows where to leave the product to PyTorch.

Under autocast layers cast their weights themselves, so that the gradient of a weight is made in the weight's own dtype.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import flop_registry, register_flop_formula

from mae_dfer_kernels import column_sums, weight_gradient
from mae_dfer_kernels.calls import (
    autocast_dtype,
    autocast_enabled,
    is_plain,
    plain_autograd_needed,
    transformed,
    without_autocast,
)

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
    """`torch.nn.functional.linear`: x (…, C), weight (O, C), bias (O,) → (…, O), in autocast's dtype if it is on."""
    if not plain_autograd_needed() and _gradients_by_kernels(x, weight) and is_plain(x) and is_plain(weight):
        return _Linear.apply(x.to(autocast_dtype(x)), weight, bias)
    if _for_onednn(x, weight) and autocast_dtype(x) == x.dtype:
        return product(x, weight, bias)
    return F.linear(x, weight, bias)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``gelu(linear(x, weight, bias))``: where no gradient will be asked for in one pass, if oneDNN is there."""
    if not torch.is_grad_enabled() and _for_onednn(x, weight, bf16=True):
        weight, low_bias = in_dtype_of(x, weight, bias)
        result: Tensor = _onednn(x, weight, low_bias, "gelu", [], "none")  # type: ignore[misc]
        return result
    return F.gelu(linear(x, weight, bias))


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """:func:`linear` for where no gradient is taken of it, in the dtype that both have."""
    if _for_onednn(x, weight):
        result: Tensor = _onednn(x, weight, bias, "none", [], "")  # type: ignore[misc]
        return result
    return F.linear(x, weight, bias)


def _gradients_by_kernels(x: Tensor, weight: Tensor) -> bool:
    """Whether there is something to gain, on a GPU sums for the bias, on a CPU products too; and nothing to complain
    of: without autocast, PyTorch refuses dtypes that differ."""
    dtype = autocast_dtype(x)
    if weight.dtype != dtype and not (autocast_enabled(x.device.type) and weight.dtype == torch.float32):
        return False
    return x.is_cuda or (x.is_cpu and dtype in (torch.float32, torch.bfloat16))


def _for_onednn(x: Tensor, weight: Tensor, *, bf16: bool = False) -> bool:
    if torch.compiler.is_compiling() or _onednn is None or not torch.backends.mkldnn.enabled:
        return False
    if not x.is_cpu or x.numel() == 0 or not (x.dtype == torch.float32 or (bf16 and x.dtype == torch.bfloat16)):
        return False
    if weight.dtype != torch.float32 and weight.dtype != x.dtype:
        return False
    if x.dtype == torch.bfloat16 and not _onednn_has_bf16():
        return False
    return is_plain(x) and is_plain(weight) and not transformed()


@functools.cache
def _onednn_has_bf16() -> bool:
    known = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return known is not None and bool(known())


def in_dtype_of(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """A layer's weight and bias in the dtype of its input."""
    return weight.to(x.dtype), None if bias is None else bias.to(x.dtype)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, *in_dtype_of(x, weight, bias))


class _Linear(torch.autograd.Function):
    """Of x in the dtype that is multiplied in; weight and bias may be wider, and so are their gradients then."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        low_weight, low_bias = in_dtype_of(x, weight, bias)
        ctx.save_for_backward(x, weight, bias, low_weight)
        with without_autocast(x.device.type):
            return product(x, low_weight, low_bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, low_weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        if torch.is_grad_enabled():
            inputs = (x, weight) if bias is None else (x, weight, bias)
            found = differentiable_gradient(_linear, inputs, ctx.needs_input_grad[: len(inputs)], grad)
            return found if bias is not None else (*found, None)
        with without_autocast(x.device.type):
            of_parameters = parameter_gradients(grad, x if wants_weight else None, weight.dtype, wants_bias)
            return (product(grad, low_weight.t()) if wants_x else None, *of_parameters)


def parameter_gradients(
    grad: Tensor, rows: Tensor | None, dtype: torch.dtype, wants_bias: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of a linear layer's weight (O, C) and bias (O,) in ``dtype``, from that of its output (…, O) and from
    its input, the rows (…, C): None where the weight wants none."""
    if rows is not None and grad.is_cpu:
        both = weight_gradient(grad, rows, out_dtype=dtype, bias=wants_bias)
        return both[0], both[1] if wants_bias else None
    of_bias = column_sums(grad).to(dtype) if wants_bias else None
    if rows is None:
        return None, of_bias
    return (grad.reshape(-1, grad.shape[-1]).t() @ rows.reshape(-1, rows.shape[-1])).to(dtype), of_bias


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
