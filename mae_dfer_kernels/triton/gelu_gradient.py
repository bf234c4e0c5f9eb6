"""What the backward of a linear layer after a GELU needs, by Triton.

Letters: M rows, C channels. float32, bfloat16 and float16; computed in float32; no atomic additions, so that two runs
agree bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mae_dfer_kernels.gpu import on_device
from mae_dfer_kernels.triton import device
from mae_dfer_kernels.triton.column_sums import add_partial_sums
from mae_dfer_kernels.triton.device import compile_options, with_dense_rows

if device.IMPORT_ERROR is None:
    from mae_dfer_kernels.triton import gelu_gradient_rows as kernels

# Elements of a tile, of which a thread keeps 8: one load of 16 bytes from each input in bfloat16, two in float32.
_TILE = 2048
_MAX_COLUMNS = 256
NUM_WARPS = 8
# Four programs a multiprocessor of an H100, where all run at once (40 registers in bfloat16, 54 in float32). To ask
# a device for its number would make the last bits of the sums depend on it.
_PROGRAMS = 512


def unavailable(x: Tensor) -> str | None:
    """Why these kernels cannot run on ``x`` (…, C), or None if they can."""
    reason = device.unavailable(x.device)
    if reason is not None:
        return reason
    if x.dtype == torch.float64:
        return "x is float64; cast it to float32, bfloat16 or float16, or take backend 'eager'"
    if x.numel() // max(x.shape[-1], 1) >= 2**31:
        return "x has 2**31 rows or more; split the batch"
    return None


def settings(channels: int) -> dict[str, int]:
    """The kernel's constants for rows of ``channels`` channels."""
    columns = min(1 << (channels - 1).bit_length(), _MAX_COLUMNS)
    return {"C": channels, "ROWS": _TILE // columns, "COLUMNS": columns}


def backward(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The `triton` backend; ``grad`` and ``x`` (M, C) of any strides, the results contiguous."""
    num_rows, channels = x.shape
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    gelu_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if num_rows == 0:
        return grad_x, gelu_x, x.new_zeros(channels)
    grad, x = with_dense_rows(grad), with_dense_rows(x)
    chosen = settings(channels)
    blocks = -(-channels // chosen["COLUMNS"])
    splits = min(-(-num_rows // chosen["ROWS"]), max(_PROGRAMS // blocks, 1))
    partial_sums = torch.empty((splits, 1, channels), dtype=torch.float32, device=x.device)
    with on_device(x.device):
        kernels.gelu_gradient_rows[(blocks, splits)](
            grad, x, grad_x, gelu_x, partial_sums, grad.stride(0), x.stride(0), num_rows,
            **chosen, **compile_options(NUM_WARPS),
        )  # fmt: skip
    return grad_x, gelu_x, add_partial_sums(partial_sums, x.dtype)[0]
