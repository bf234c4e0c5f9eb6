"""Sums over rows by Triton: of a matrix, and of the partial sums that other kernels leave.

Letters: M rows, C channels. float32, bfloat16 and float16; summed in float32; no atomic additions, so that two runs
agree bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mae_dfer_kernels.gpu import on_device
from mae_dfer_kernels.triton import device
from mae_dfer_kernels.triton.device import compile_options

if device.IMPORT_ERROR is None:
    from mae_dfer_kernels.triton import column_sums_rows as kernels

# A program has two tiles under way, in shared memory (32 KiB, with 56 registers a thread), and a multiprocessor of an
# H100 up to four programs, which all run at once: more than its share of the bandwidth asks for, with few partial sums.
# To ask a device for its number would make the last bits of the sums depend on it.
_TILE_BYTES = 16384
_MAX_ROW_BYTES = 256
NUM_WARPS = 8
_PROGRAMS = 528
# Of fewer, PyTorch's one kernel is done before two are launched.
_MIN_ROWS = 2048
# Of partial sums, which lie in the cache: 32 bytes a row, so that a few hundred channels occupy the whole GPU.
PARTIAL_TILE = {"ROWS": 512, "COLUMNS": 8}


def unavailable(rows: Tensor) -> str | None:
    """Why these kernels cannot run on ``rows`` (…, C), or None if they can."""
    reason = device.unavailable(rows.device)
    if reason is not None:
        return reason
    if rows.dtype == torch.float64:
        return "rows are float64; cast them to float32, bfloat16 or float16, or take backend 'eager'"
    if rows.numel() // max(rows.shape[-1], 1) >= 2**31:
        return "there are 2**31 rows or more; split the batch"
    return None


def settings(channels: int, itemsize: int) -> dict[str, int]:
    """The constants of `partial_sums` for rows of ``channels`` channels of ``itemsize`` bytes."""
    columns = min(1 << (channels - 1).bit_length(), _MAX_ROW_BYTES // itemsize)
    return {"C": channels, "ROWS": _TILE_BYTES // (columns * itemsize), "COLUMNS": columns}


def forward(rows: Tensor) -> Tensor:
    """The `triton` backend; ``rows`` (M, C) of any strides, of which only those with channels side by side are for
    these kernels."""
    num_rows, channels = rows.shape
    if num_rows < _MIN_ROWS or rows.stride(1) != 1:
        return rows.sum(dim=0)
    chosen = settings(channels, rows.element_size())
    blocks, tiles = -(-channels // chosen["COLUMNS"]), -(-num_rows // chosen["ROWS"])
    # As many tiles for each program: one more for some would leave the others idle meanwhile.
    tiles_each = -(-tiles // max(_PROGRAMS // blocks, 1))
    splits = -(-tiles // tiles_each)
    partial_sums = torch.empty((splits, 1, channels), dtype=torch.float32, device=rows.device)
    with on_device(rows.device):
        kernels.partial_sums[(blocks, splits)](
            rows, partial_sums, rows.stride(0), num_rows, **chosen, **compile_options(NUM_WARPS)
        )
    return add_partial_sums(partial_sums, rows.dtype)[0]


def add_partial_sums(partial_sums: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """The sums over the first axis of ``partial_sums`` (splits, results, C), contiguous float32, with one result or
    two; each a tensor (C,) of its own, as autograd must have them, in ``dtype``. By one launch."""
    num_rows, results, channels = partial_sums.shape
    sums = [torch.empty(channels, dtype=dtype, device=partial_sums.device) for _ in range(results)]
    with on_device(partial_sums.device):
        kernels.add_partial_sums[(-(-channels // PARTIAL_TILE["COLUMNS"]), results)](
            partial_sums, sums[0], sums[-1], num_rows, C=channels, **PARTIAL_TILE, **compile_options(NUM_WARPS)
        )
    return sums
