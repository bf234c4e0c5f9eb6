"""The representative-token exchange by the compiled library.

Letters: B clips, G groups of M rows (G / B groups a clip), C channels, K representative tokens a clip, J = H·K.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mae_dfer_kernels import native
from mae_dfer_kernels.arguments import compute_dtype
from mae_dfer_kernels.native.rows import address, dense, describe, rows_contiguous


def unavailable(x: Tensor, pairs: int) -> str | None:
    """Why the `cpu` backend cannot run this call, or None if it can."""
    if native.LOAD_ERROR is not None:
        return native.LOAD_ERROR
    if not x.is_cpu:
        return f"it takes tensors on the CPU, and x is on {x.device}"
    return None


def multiplies_bf16(channels: int) -> bool:
    """Whether keys and values in bfloat16 are multiplied as that, not widened; as `takes_pairs` in exchange_bf16.h."""
    return channels % 16 == 0 and native.multiplies_bf16()


def forward(
    x: Tensor,
    keys: Tensor,
    key_bias: Tensor,
    values: Tensor,
    out_bias: Tensor,
    row_scale: Tensor | None,
    update: Tensor | None,
    update_scale: Tensor | None,
    num_heads: int,
    eps: float,
    operand_dtype: torch.dtype,
    front: int,
) -> Tensor:
    """The `cpu` backend's forward; ``x`` and ``update`` (G, M, C) of any strides, the result (G, front + M, C)
    contiguous, with what is in front left to be filled. Operands of products are rounded to bfloat16 where keys and
    values have been and the instruction set multiplies it; else they are in the dtype computed in."""
    native.check_place("x", x)
    x, update = rows_contiguous(x), None if update is None else rows_contiguous(update)
    groups, rows, channels = x.shape
    out = x.new_empty(groups, front + rows, channels)
    bf16_operands, inputs = _dense_inputs(x, keys, key_bias, values, out_bias, row_scale, update_scale)
    native.library().exchange_forward(
        _shape(x, keys, num_heads), describe(x), _described(update), *map(address, inputs),
        out.data_ptr(), front, bf16_operands, eps, torch.get_num_threads(),
    )  # fmt: skip
    return out


def backward(
    grad_out: Tensor,
    x: Tensor,
    keys: Tensor,
    key_bias: Tensor,
    values: Tensor,
    out_bias: Tensor,
    row_scale: Tensor | None,
    update: Tensor | None,
    update_scale: Tensor | None,
    num_heads: int,
    eps: float,
    operand_dtype: torch.dtype,
) -> tuple[Tensor, ...]:
    """The `cpu` backend's backward; gradients of ``x``, ``keys``, ``key_bias``, ``values``, ``out_bias`` and, where it
    is given, ``update``."""
    native.check_place("x", x)
    x, grad_out = rows_contiguous(x), rows_contiguous(grad_out)
    update = None if update is None else rows_contiguous(update)
    pairs, channels = keys.shape[1:]
    shape = _shape(x, keys, num_heads)
    compute = compute_dtype(x)
    bf16_operands, inputs = _dense_inputs(x, keys, key_bias, values, out_bias, row_scale, update_scale)
    grad_x = x.new_empty(x.shape)
    grad_update = None if update is None else update.new_empty(x.shape)
    # Sums of each chunk of a clip's rows, added up in their order: the same bits on any number of threads.
    chunks, width = native.library().exchange_sums(shape)
    sums = x.new_empty((keys.shape[0], chunks, 2 * pairs + 1, width), dtype=compute)
    key_bias_sums = x.new_empty((keys.shape[0], chunks, pairs), dtype=compute)
    native.library().exchange_backward(
        shape, describe(grad_out), describe(x), _described(update), *map(address, inputs),
        grad_x.data_ptr(), address(grad_update), sums.data_ptr(), key_bias_sums.data_ptr(),
        bf16_operands, eps, torch.get_num_threads(),
    )  # fmt: skip
    return (
        grad_x,
        sums[:, :, :pairs, :channels].sum(dim=1).to(keys.dtype),
        key_bias_sums.sum(dim=1).to(key_bias.dtype),
        sums[:, :, pairs : 2 * pairs, :channels].sum(dim=1).to(values.dtype),
        sums[:, :, 2 * pairs, :channels].sum(dim=(0, 1)).to(out_bias.dtype),
        *(() if grad_update is None else (grad_update,)),
    )


def _dense_inputs(
    x: Tensor, keys: Tensor, key_bias: Tensor, values: Tensor, *others: Tensor | None
) -> tuple[bool, list[Tensor | None]]:
    """Whether keys and values are handed over in bfloat16; and all of these, in the dtype computed in but for them."""
    compute = compute_dtype(x)
    both = keys.dtype == values.dtype == torch.bfloat16
    matrix = torch.bfloat16 if both else compute
    rest = (dense(tensor, compute) for tensor in others)
    return both, [dense(keys, matrix), dense(key_bias, compute), dense(values, matrix), *rest]


def _described(update: Tensor | None) -> tuple[int, int, int, int] | None:
    return None if update is None else describe(update)


def _shape(x: Tensor, keys: Tensor, num_heads: int) -> tuple[int, int, int, int, int, int]:
    groups, rows, channels = x.shape
    return keys.shape[0], groups, rows, channels, num_heads, keys.shape[1] // num_heads
