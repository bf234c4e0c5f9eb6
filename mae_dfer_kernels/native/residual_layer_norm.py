"""Residual + LayerNorm by the compiled library.

Letters: G groups, M rows a group, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mae_dfer_kernels import native
from mae_dfer_kernels.arguments import compute_dtype
from mae_dfer_kernels.native.rows import address, dense, describe, describe_if_given, rows_contiguous


def unavailable(x: Tensor) -> str | None:
    """Why the `cpu` backend cannot run this call, or None if it can."""
    if native.LOAD_ERROR is not None:
        return native.LOAD_ERROR
    if not x.is_cpu:
        return f"it takes tensors on the CPU, and x is on {x.device}"
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
    """The `cpu` backend's forward; ``x`` and ``update`` (G, M, C) of any strides, the results contiguous. Without an
    update no sum is made, since it is ``x``."""
    native.check_place("x", x)
    x, update = rows_contiguous(x), None if update is None else rows_contiguous(update)
    groups, rows, channels = x.shape
    total = None if update is None else x.new_empty(groups, rows, channels)
    normed = x.new_empty(groups, rows, channels, dtype=None if out_dtype is x.dtype else out_dtype)
    compute = compute_dtype(x)
    scale, wide_weight, wide_bias = dense(row_scale, compute), dense(weight, compute), dense(bias, compute)
    native.library().residual_layer_norm_forward(
        describe(x), describe_if_given(update, x.dtype), address(scale), address(wide_weight), address(wide_bias),
        address(total), normed.data_ptr(), native.DTYPE_CODES[out_dtype],
        groups, rows, channels, eps, torch.get_num_threads(),
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
    """The `cpu` backend's backward; gradients of ``x``, ``update``, ``weight`` and ``bias``, contiguous; the first two
    one tensor where they are equal and may ``share`` it."""
    native.check_place("total", total)
    grad_normed, total = rows_contiguous(grad_normed), rows_contiguous(total)
    if grad_sum is not None:
        grad_sum = rows_contiguous(grad_sum)
    groups, rows, channels = total.shape
    compute = compute_dtype(total)
    grad_x = total.new_empty(total.shape)
    shared = share and row_scale is None and update_dtype == total.dtype
    grad_update = grad_x if shared else total.new_empty(total.shape, dtype=update_dtype)
    chunks = native.library().residual_layer_norm_chunks(groups, rows)
    # One row of sums a chunk, added up in their order: the same bits on any number of threads.
    partial_sums = total.new_empty((chunks, 2, channels), dtype=compute)
    vectors = [dense(vector, compute) for vector in (row_scale, weight)]
    native.library().residual_layer_norm_backward(
        describe_if_given(grad_sum, total.dtype), describe(grad_normed), describe(total), *map(address, vectors),
        grad_x.data_ptr(), 0 if shared else grad_update.data_ptr(), native.DTYPE_CODES[update_dtype],
        partial_sums.data_ptr(), groups, rows, channels, eps, torch.get_num_threads(),
    )  # fmt: skip
    grad_weight, grad_bias = partial_sums.sum(dim=0).to(weight.dtype).unbind(0)
    return grad_x, grad_update, grad_weight.clone(), grad_bias.clone()
