"""What the backward of a linear layer after a GELU needs, by the compiled library.

Letters: M rows, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mae_dfer_kernels import native
from mae_dfer_kernels.arguments import compute_dtype
from mae_dfer_kernels.native.rows import describe, rows_contiguous


def unavailable(x: Tensor) -> str | None:
    """Why the `cpu` backend cannot run this call, or None if it can."""
    if native.LOAD_ERROR is not None:
        return native.LOAD_ERROR
    if not x.is_cpu:
        return f"it takes tensors on the CPU, and x is on {x.device}"
    return None


def backward(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The `cpu` backend; ``grad`` and ``x`` (M, C) of any strides, the results contiguous."""
    native.check_place("x", x)
    rows, channels = x.shape
    grad_x, gelu_x = x.new_empty(rows, channels), x.new_empty(rows, channels)
    chunks = native.library().gelu_gradient_chunks(rows)
    # One row of sums a chunk, added up in their order: the same bits on any number of threads.
    partial_sums = x.new_empty((chunks, channels), dtype=compute_dtype(x))
    grad, x = rows_contiguous(grad)[None], rows_contiguous(x)[None]
    native.library().gelu_gradient(
        describe(grad), describe(x), grad_x.data_ptr(), gelu_x.data_ptr(), partial_sums.data_ptr(),
        rows, channels, torch.get_num_threads(),
    )  # fmt: skip
    return grad_x, gelu_x, partial_sums.sum(dim=0).to(x.dtype)
