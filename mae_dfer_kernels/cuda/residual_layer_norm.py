"""Residual + LayerNorm by the CUDA kernels.

Letters: G groups, M rows a group, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mae_dfer_kernels import native
from mae_dfer_kernels.cuda import device
from mae_dfer_kernels.gpu import on_device
from mae_dfer_kernels.native.rows import address, dense, describe, describe_if_given

MAX_CHANNELS = 2048
# Rows that a block of the backward works on at once, and the most blocks: a few for every multiprocessor.
_ROWS, _BLOCKS = 4, 512


def unavailable(x: Tensor) -> str | None:
    """Why the `cuda` backend cannot run on ``x`` (…, M, C), or None if it can."""
    reason = device.rows_unavailable(x, MAX_CHANNELS)
    if reason is not None:
        return reason
    if x.numel() // x.shape[-1] >= 2**31:
        return "x has 2**31 rows or more; split the batch"
    return None


def forward(
    x: Tensor,
    update: Tensor | None,
    row_scale: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    out_dtype: torch.dtype,
) -> tuple[Tensor | None, Tensor]:
    """The `cuda` backend's forward; ``x`` and ``update`` (G, M, C) of any strides, the results contiguous. Without an
    update no sum is made, since it is ``x``."""
    x, update = device.aligned_rows(x), None if update is None else device.aligned_rows(update)
    total = None if update is None else x.new_empty(x.shape)
    normed = x.new_empty(x.shape, dtype=out_dtype)
    vectors = [_vector(tensor) for tensor in (row_scale, weight, bias)]
    with on_device(x.device):
        device.library().cuda_residual_layer_norm_forward(
            describe(x), describe_if_given(update, x.dtype), *map(address, vectors), address(total), normed.data_ptr(),
            native.DTYPE_CODES[out_dtype], tuple(x.shape), eps, device.stream(x.device),
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
    """The `cuda` backend's backward; gradients of ``x``, ``update``, ``weight`` and ``bias``, contiguous; the first two
    one tensor where they are equal and may ``share`` it."""
    grad_normed, total = device.aligned_rows(grad_normed), device.aligned_rows(total)
    grad_sum = None if grad_sum is None else device.aligned_rows(grad_sum)
    grad_x = total.new_empty(total.shape)
    shared = share and row_scale is None and update_dtype == total.dtype
    grad_update = grad_x if shared else total.new_empty(total.shape, dtype=update_dtype)
    blocks = min(max(-(-total.shape[0] * total.shape[1] // _ROWS), 1), _BLOCKS)
    # One row of sums a block, added up in their order.
    partial_sums = total.new_zeros((blocks, 2, total.shape[2]), dtype=torch.float32)
    scale, wide_weight = _vector(row_scale), _vector(weight)
    with on_device(total.device):
        device.library().cuda_residual_layer_norm_backward(
            describe_if_given(grad_sum, total.dtype), describe(grad_normed), describe(total), address(scale),
            address(wide_weight), grad_x.data_ptr(),
            0 if shared else grad_update.data_ptr(), native.DTYPE_CODES[update_dtype], partial_sums.data_ptr(), blocks,
            tuple(total.shape), eps, device.stream(total.device),
        )  # fmt: skip
    grad_weight, grad_bias = partial_sums.sum(dim=0).to(weight.dtype).unbind(0)
    return grad_x, grad_update, grad_weight.clone(), grad_bias.clone()


def _vector(tensor: Tensor | None) -> Tensor | None:
    """fp32, contiguous and aligned."""
    wide = dense(tensor, torch.float32)
    return None if wide is None else device.aligned_rows(wide)
