"""Multi-head self-attention inside regions, straight from the packed projection.

Letters: R regions, S tokens a region, H heads, D channels a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mae_dfer_kernels import backends
from mae_dfer_kernels.arguments import (
    check_backend,
    check_companion,
    check_heads,
    check_number,
    check_shape,
    check_tensor,
)
from mae_dfer_kernels.calls import Operator, call, call_without_gradient
from mae_dfer_kernels.reference import region_attention as reference

_LIBRARY = torch.library.Library("mae_dfer_kernels", "DEF")
# `seed` is a SymInt so that torch.compile can keep one graph while the seed changes from step to step.
_OPTIONS = "int num_heads, float scale, float dropout_p, SymInt seed, str backend"
_LIBRARY.define(f"region_attention(Tensor qkv, {_OPTIONS}) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
_LIBRARY.define(
    f"region_attention_backward(Tensor grad_out, Tensor qkv, {_OPTIONS}) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _run_forward(qkv: Tensor, num_heads: int, scale: float, dropout_p: float, seed: int, backend: str) -> Tensor:
    result: Tensor = backends.run(
        "region_attention", "forward", backend, (qkv, num_heads), qkv, num_heads, scale, dropout_p, seed
    )
    return result


def _run_backward(
    grad_out: Tensor, qkv: Tensor, num_heads: int, scale: float, dropout_p: float, seed: int, backend: str
) -> Tensor:
    result: Tensor = backends.run(
        "region_attention", "backward", backend, (qkv, num_heads), grad_out, qkv, num_heads, scale, dropout_p, seed
    )
    return result


# What is registered checks its arguments: whoever calls it comes past the public function's checks.
def _forward(qkv: Tensor, num_heads: int, scale: float, dropout_p: float, seed: int, backend: str) -> Tensor:
    _check_qkv(qkv, num_heads)
    if dropout_p != 0.0:
        _check_dropout(dropout_p, seed)
    return _run_forward(qkv, num_heads, scale, dropout_p, seed, backend)


def _backward(
    grad_out: Tensor, qkv: Tensor, num_heads: int, scale: float, dropout_p: float, seed: int, backend: str
) -> Tensor:
    _check_grad_out(grad_out, qkv, num_heads)
    if dropout_p != 0.0:
        _check_dropout(dropout_p, seed)
    return _run_backward(grad_out, qkv, num_heads, scale, dropout_p, seed, backend)


def _forward_fake(qkv: Tensor, num_heads: int, *options: Any) -> Tensor:
    _check_qkv(qkv, num_heads)
    return qkv.new_empty((qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3))


def _backward_fake(grad_out: Tensor, qkv: Tensor, num_heads: int, *options: Any) -> Tensor:
    _check_grad_out(grad_out, qkv, num_heads)
    return qkv.new_empty(qkv.shape)


_LIBRARY.impl("region_attention", _forward, "CompositeExplicitAutograd")
_LIBRARY.impl("region_attention_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("mae_dfer_kernels::region_attention", _forward_fake, lib=_LIBRARY)
torch.library.register_fake("mae_dfer_kernels::region_attention_backward", _backward_fake, lib=_LIBRARY)

_forward_op = torch.ops.mae_dfer_kernels.region_attention.default
_backward_op = torch.ops.mae_dfer_kernels.region_attention_backward.default


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    qkv, *options = inputs
    ctx.save_for_backward(qkv)
    ctx.options = tuple(options)


def _gradient(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    (qkv,) = ctx.saved_tensors
    if torch.is_grad_enabled():
        # Someone will differentiate the gradient; the kernels have no second derivative, plain PyTorch has.
        num_heads, scale, dropout_p, seed, _ = ctx.options
        out = reference.region_attention(qkv, num_heads, scale, dropout_p, seed)
        return torch.autograd.grad(out, qkv, grad_out, create_graph=True) + (None,) * 5
    grad_qkv = call_without_gradient(_backward_op, _run_backward, (grad_out, qkv, *ctx.options))
    return grad_qkv, None, None, None, None, None


# Compiled graphs and direct calls of the operator differentiate through this registration.
torch.library.register_autograd(
    "mae_dfer_kernels::region_attention", _gradient, setup_context=_setup_context, lib=_LIBRARY
)


class _RegionAttention(torch.autograd.Function):
    """The same gradient for eager calls, at less cost a call than the registration above."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, *options: Any) -> Tensor:
        _setup_context(ctx, (qkv, *options), qkv)
        output: Tensor = call_without_gradient(_forward_op, _run_forward, (qkv, *options))
        return output

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        return _gradient(ctx, grad_out)


_OPERATOR = Operator(_forward_op, _run_forward, _RegionAttention, reference.forward)


def region_attention(
    qkv: Tensor,
    num_heads: int,
    *,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """Multi-head self-attention inside each region: ``softmax(scale · Q Kᵀ) V`` for every region and head.

    MAE-DFER (arXiv 2307.02227), local intra-region self-attention. No permutes and no copies: the kernels
    read q, k and v where the projection wrote them, and write what the output projection reads. The backward
    recomputes the probabilities, so that only ``qkv`` is kept. Two calls give the same bits, whatever the
    number of threads.

    Args:
        qkv: (R, S, 3*H*D), float64, float32, bfloat16 or float16; ``[q | k | v]`` along the last axis, each
            (H, D) inside. Regions and tokens may have any stride; a last axis that is not contiguous is
            copied first.
        num_heads: H.
        scale: what multiplies the scores; D**-0.5 by default.
        dropout_p: probability, in [0, 1), with which an attention probability is dropped; those kept are
            scaled by 1 / (1 - dropout_p).
        seed: key of the dropout mask, in [0, 2**63); needed where ``dropout_p > 0``. One seed gives one mask,
            the same on every backend (`mae_dfer_kernels.reference.dropout.dropout_keep_mask`), so draw a new one each
            step.
        backend: ``eager``, ``cpu``, ``triton``, ``cuda``, or ``auto`` for the fastest that can run this call.

    Returns:
        (R, S, H*D), contiguous, in the dtype of ``qkv``. Under autocast too: the projection has already
        chosen the dtype. Sums are accumulated in float32 (float64 for float64); ``eager`` works in the dtype
        itself.

    Raises:
        TypeError: an argument has the wrong type, or ``qkv`` a dtype that is not listed.
        ValueError: an argument's value or shape does not fit; the message names it.
        BackendUnavailable: the backend that was asked for cannot run this call.
    """
    head_dim = _check_qkv(qkv, num_heads)
    scale = head_dim**-0.5 if scale is None else check_number("scale", scale)
    dropout_p, seed = _check_dropout(dropout_p, seed)
    check_backend(backend)
    resolved = backends.choose("region_attention", backend, qkv, num_heads)
    inputs = (qkv, num_heads, scale, dropout_p, seed, resolved)
    output: Tensor = call(_OPERATOR, (qkv,), inputs)
    return output


def _check_qkv(qkv: Tensor, num_heads: int) -> int:
    """Returns D."""
    check_tensor("qkv", qkv)
    check_heads(num_heads)
    shape = qkv.shape
    if len(shape) != 3:
        raise ValueError(f"qkv must have 3 dimensions (R, S, 3*H*D), got shape {tuple(shape)}")
    width = shape[2]
    if width == 0 or width % (3 * num_heads) != 0:
        raise ValueError(
            f"qkv's last dimension must be a positive multiple of 3*num_heads = {3 * num_heads}, got {width}"
        )
    return width // (3 * num_heads)


def _check_grad_out(grad_out: Tensor, qkv: Tensor, num_heads: int) -> None:
    head_dim = _check_qkv(qkv, num_heads)
    check_companion("grad_out", grad_out, "qkv", qkv)
    check_shape("grad_out", grad_out, "(R, S, H*D)", (*qkv.shape[:2], num_heads * head_dim))
    if grad_out.dtype != qkv.dtype:
        raise TypeError(f"grad_out must have the dtype of qkv, {qkv.dtype}, got {grad_out.dtype}")


def _check_dropout(dropout_p: float, seed: int | None) -> tuple[float, int]:
    if seed is None and type(dropout_p) is float and dropout_p == 0.0:
        return 0.0, 0  # what is asked for most
    dropout_p = check_number("dropout_p", dropout_p)
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p must be in [0, 1), got {dropout_p}")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, (int, torch.SymInt))):
        raise TypeError(f"seed must be an int or None, got {type(seed).__name__}")
    if seed is not None and not 0 <= seed < 2**63:
        raise ValueError(f"seed must be in [0, 2**63), got {seed}")
    if dropout_p == 0.0:
        return 0.0, 0
    if seed is None:
        raise ValueError("seed must be given where dropout_p > 0: it is the key of the dropout mask")
    return dropout_p, seed
