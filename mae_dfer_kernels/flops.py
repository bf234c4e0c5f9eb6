"""FLOP formulas of the operators, for `torch.utils.flop_counter.FlopCounterMode`.

Convention, the one torch uses for its own scaled dot-product attention: a multiply-accumulate counts as two,
the softmax as nothing. The forward of an attention is two matmuls (Q Kᵀ and P V), its backward five: the scores
again, then dP, dV, dQ and dK. Every backend recomputes the scores in its backward, so the count is what is executed.

Importing this also gives torch's counter the formula of the attention that torch itself runs on CPUs, which it lacks:
a model that calls `scaled_dot_product_attention` would seem to do less there than on a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import (
    flop_registry,
    register_flop_formula,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)


def region_attention_matmul_flops(qkv_shape: Any, num_heads: int) -> int:
    """FLOPs of one of its matmuls: 2·R·H·S·S·D."""
    regions, tokens, width = qkv_shape
    head_dim = width // (3 * num_heads)
    return int(2 * regions * num_heads * tokens * tokens * head_dim)


@register_flop_formula(torch.ops.mae_dfer_kernels.region_attention)
def _region_attention_flops(
    qkv_shape: Any, num_heads: int, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    return 2 * region_attention_matmul_flops(qkv_shape, num_heads)


@register_flop_formula(torch.ops.mae_dfer_kernels.region_attention_backward)
def _region_attention_backward_flops(
    grad_out_shape: Any, qkv_shape: Any, num_heads: int, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    return 5 * region_attention_matmul_flops(qkv_shape, num_heads)


def exchange_matmul_flops(x_shape: Any, keys_shape: Any) -> int:
    """FLOPs of one of its matmuls: 2·G·M·C·J."""
    groups, rows, channels = x_shape
    return int(2 * groups * rows * channels * keys_shape[1])


@register_flop_formula(torch.ops.mae_dfer_kernels.exchange_rows)
def _exchange_flops(x_shape: Any, keys_shape: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return 2 * exchange_matmul_flops(x_shape, keys_shape)


@register_flop_formula(torch.ops.mae_dfer_kernels.exchange_rows_backward)
def _exchange_backward_flops(
    grad_out_shape: Any, x_shape: Any, keys_shape: Any, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    return 5 * exchange_matmul_flops(x_shape, keys_shape)


@register_flop_formula(torch.ops.mae_dfer_kernels.weight_gradient)
def _weight_gradient_flops(
    grad_shape: Any, rows_shape: Any, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    return 2 * int(grad_shape[0]) * int(grad_shape[1]) * int(rows_shape[1])


@register_flop_formula([
    torch.ops.mae_dfer_kernels.column_sums, torch.ops.mae_dfer_kernels.gelu_gradient,
    torch.ops.mae_dfer_kernels.layer_norm, torch.ops.mae_dfer_kernels.layer_norm_backward,
    torch.ops.mae_dfer_kernels.residual_layer_norm, torch.ops.mae_dfer_kernels.residual_layer_norm_backward,
])  # fmt: skip
def _no_flops(*args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """Nothing, as for torch's own LayerNorm, GELU, sums and additions: there is no matmul in them."""
    return 0


def _torch_cpu_attention_flops(
    query_shape: Any, key_shape: Any, value_shape: Any, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    return int(sdpa_flop_count(query_shape, key_shape, value_shape))


def _torch_cpu_attention_backward_flops(
    grad_out_shape: Any, query_shape: Any, key_shape: Any, value_shape: Any, *args: Any, out_shape: Any = None,
    **kwargs: Any,
) -> int:  # fmt: skip
    return int(sdpa_backward_flop_count(grad_out_shape, query_shape, key_shape, value_shape))


for _name, _formula in (
    ("_scaled_dot_product_flash_attention_for_cpu", _torch_cpu_attention_flops),
    ("_scaled_dot_product_flash_attention_for_cpu_backward", _torch_cpu_attention_backward_flops),
):
    _op = getattr(torch.ops.aten, _name, None)
    if _op is not None and _op not in flop_registry:
        register_flop_formula(_op)(_formula)
