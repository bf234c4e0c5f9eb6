"""Residual + LayerNorm by the compiled library.

Letters: G groups, M rows a group, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mae_dfer_kernels import native


def unavailable(x: Tensor) -> str | None:
    """Why the `cpu` backend cannot run this call, or None if it can."""
    if native.LOAD_ERROR is not None:
        return native.LOAD_ERROR
    if x.device.type != "cpu":
        return f"it takes tensors on the CPU, and x is on {x.device}"
    return None


def forward(
    x: Tensor,
    update: Tensor,
    row_scale: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """The `cpu` backend's forward; ``x`` and ``update`` (G, M, C) of any strides, the results contiguous."""
    x, update = _rows_contiguous(x), _rows_contiguous(update)
    groups, rows, channels = x.shape
    total, normed = x.new_empty(x.shape), x.new_empty(x.shape, dtype=out_dtype)
    compute = torch.promote_types(x.dtype, torch.float32)
    vectors = [_vector(vector, compute) for vector in (row_scale, weight, bias)]
    native.library().residual_layer_norm_forward(
        _describe(x), _describe(update), *map(_address, vectors),
        total.data_ptr(), normed.data_ptr(), native.DTYPE_CODES[out_dtype],
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The `cpu` backend's backward; gradients of ``x``, ``update``, ``weight`` and ``bias``, contiguous."""
    grad_normed, total = _rows_contiguous(grad_normed), total.contiguous()
    if grad_sum is not None:
        grad_sum = _rows_contiguous(grad_sum)
    groups, rows, channels = total.shape
    compute = torch.promote_types(total.dtype, torch.float32)
    grad_x = torch.empty_like(total)
    grad_update = grad_x.new_empty(total.shape, dtype=update_dtype)
    chunks = native.library().residual_layer_norm_chunks(groups, rows)
    # One row of sums a chunk, added up in their order: the same bits on any number of threads.
    partial_sums = total.new_empty((chunks, 2, channels), dtype=compute)
    vectors = [_vector(vector, compute) for vector in (row_scale, weight)]
    native.library().residual_layer_norm_backward(
        (0, 0, 0, native.DTYPE_CODES[total.dtype]) if grad_sum is None else _describe(grad_sum),
        _describe(grad_normed), total.data_ptr(), native.DTYPE_CODES[total.dtype], *map(_address, vectors),
        grad_x.data_ptr(), grad_update.data_ptr(), native.DTYPE_CODES[update_dtype], partial_sums.data_ptr(),
        groups, rows, channels, eps, torch.get_num_threads(),
    )  # fmt: skip
    grad_weight, grad_bias = partial_sums.sum(dim=0).to(weight.dtype).unbind(0)
    return grad_x, grad_update, grad_weight.clone(), grad_bias.clone()


def _rows_contiguous(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _vector(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype).contiguous()


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _describe(tensor: Tensor) -> tuple[int, int, int, int]:
    return tensor.data_ptr(), tensor.stride(0), tensor.stride(1), native.DTYPE_CODES[tensor.dtype]
