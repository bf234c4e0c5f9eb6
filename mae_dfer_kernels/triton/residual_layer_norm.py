"""Residual + LayerNorm by Triton, and its gradient.

Letters: G groups, M rows a group, C channels. float32, bfloat16 and float16 in any mixture; sums and statistics in
float32; no atomic additions, so that two runs agree bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mae_dfer_kernels.gpu import on_device
from mae_dfer_kernels.triton import device
from mae_dfer_kernels.triton.column_sums import add_partial_sums
from mae_dfer_kernels.triton.device import compile_options, with_dense_rows

if device.IMPORT_ERROR is None:
    from mae_dfer_kernels.triton import residual_layer_norm_rows as kernels

MAX_CHANNELS = 8192
# Elements of a tile, of which a thread keeps 32: with the programs below the fastest backward of those tried on an H100
# without spilled registers. The forward does not care.
_TILE = 2048
# Programs of the backward, each of which leaves one row of partial sums: a few for every multiprocessor.
_BACKWARD_PROGRAMS = 1056


def unavailable(x: Tensor) -> str | None:
    """Why these kernels cannot run on ``x`` (…, M, C), or None if they can."""
    reason = device.unavailable(x.device)
    if reason is not None:
        return reason
    if x.dtype == torch.float64:
        return "x is float64; cast it to float32, bfloat16 or float16, or take backend 'eager'"
    if x.shape[-1] > MAX_CHANNELS:
        return f"C = {x.shape[-1]} channels; rows of at most {MAX_CHANNELS} fit the registers"
    if x.numel() // max(x.shape[-1], 1) >= 2**31:
        return "x has 2**31 rows or more; split the batch"
    return None


def settings(channels: int) -> dict[str, int]:
    """Tile sizes, and warps, for rows of ``channels`` channels."""
    block = 1 << max(channels - 1, 1).bit_length()
    rows = max(1, _TILE // block)
    return {"C": channels, "BLOCK": block, "ROWS": min(rows, 16), "num_warps": min(max(block * rows // 1024, 1), 16)}


def forward(
    x: Tensor,
    update: Tensor | None,
    row_scale: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    out_dtype: torch.dtype,
) -> tuple[Tensor | None, Tensor]:
    """The `triton` backend's forward; ``x`` and ``update`` (G, M, C) of any strides, the results contiguous. Without
    an update no sum is made, since it is ``x``."""
    total = None if update is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    normed = torch.empty(x.shape, dtype=out_dtype, device=x.device)
    if x.numel() == 0:
        return total, normed
    x = with_dense_rows(x)
    added = x if update is None else with_dense_rows(update)
    num_rows = x.shape[0] * x.shape[1]
    chosen, options = _split(settings(x.shape[2]))
    with on_device(x.device):
        kernels.forward_rows[(-(-num_rows // chosen["ROWS"]),)](
            x, added, weight if row_scale is None else row_scale, weight.contiguous(), bias.contiguous(),
            normed if total is None else total, normed, x.stride(0), x.stride(1), added.stride(0), added.stride(1),
            num_rows, x.shape[1], eps, HAS_UPDATE=update is not None, SCALED=row_scale is not None, **chosen, **options,
        )  # fmt: skip
    return total, normed


def backward(
    grad_sum: Tensor | None,
    grad_normed: Tensor,
    total: Tensor,
    row_scale: Tensor | None,
    weight: Tensor,
    eps: float,
    update_dtype: torch.dtype,
    share: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The `triton` backend's backward; gradients of ``x``, ``update``, ``weight`` and ``bias``, contiguous; the first
    two one tensor where they are equal and may ``share`` it."""
    grad_x = torch.empty(total.shape, dtype=total.dtype, device=total.device)
    shared = share and row_scale is None and update_dtype == total.dtype
    grad_update = grad_x if shared else torch.empty(total.shape, dtype=update_dtype, device=total.device)
    if total.numel() == 0:
        return grad_x, grad_update, torch.zeros_like(weight), torch.zeros_like(weight)
    total, grad_normed = with_dense_rows(total), with_dense_rows(grad_normed)
    given = grad_normed if grad_sum is None else with_dense_rows(grad_sum)
    num_rows = total.shape[0] * total.shape[1]
    chosen, options = _split(settings(total.shape[2]))
    programs = min(-(-num_rows // chosen["ROWS"]), _BACKWARD_PROGRAMS)
    partial_sums = torch.empty((programs, 2, total.shape[2]), dtype=torch.float32, device=total.device)
    with on_device(total.device):
        kernels.backward_rows[(programs,)](
            given, grad_normed, total, weight if row_scale is None else row_scale, weight.contiguous(),
            grad_x, grad_update, partial_sums, given.stride(0), given.stride(1), grad_normed.stride(0),
            grad_normed.stride(1), total.stride(0), total.stride(1), num_rows, total.shape[1], eps,
            SCALED=row_scale is not None, HAS_GRAD_SUM=grad_sum is not None, SHARED=shared, **chosen, **options,
        )  # fmt: skip
    grad_weight, grad_bias = add_partial_sums(partial_sums, weight.dtype)
    return grad_x, grad_update, grad_weight, grad_bias


def _split(chosen: dict[str, int]) -> tuple[dict[str, int], dict[str, Any]]:
    return {name: value for name, value in chosen.items() if name != "num_warps"}, compile_options(chosen["num_warps"])
