"""The representative-token exchange by Triton, and its gradient.

Letters: B clips, G groups of M rows (G / B groups a clip), C channels, H heads, K representative tokens a clip,
J = H·K. float32, bfloat16 and float16; sums, statistics and softmax in float32; no atomic additions, so that two runs
agree bit for bit. Operands of matrix products are rounded to ``operand_dtype``, whatever the dtypes of ``x`` and of the
keys: where that is of 16 bits, the tensor cores' rate is worth more than digits that autocast or the residual stream
does not keep.

The backward is two kernels. The first owns rows and leaves P and dS, J numbers a row each; the second owns pairs and
channels, and sums over the rows of a clip. For that it reads the inputs again and normalises them again: to have the
first kernel write u for a batched matmul would move one more activation through memory.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mae_dfer_kernels.gpu import on_device
from mae_dfer_kernels.triton import device
from mae_dfer_kernels.triton.device import compile_options, is_hopper_or_newer, with_dense_rows

if device.IMPORT_ERROR is None:
    from mae_dfer_kernels.triton import exchange_rows as kernels

# HP·KP, H and K rounded up, is then at most 1024.
MAX_PAIRS = 512
# Programs of the last kernel: fewer, and the rows of a clip are split among several.
_PAIRS_PROGRAMS = 256


class Tile(NamedTuple):
    """Settings of a kernel: `rows` rows, `chunk` channels a step; `pairs` columns where a program owns but some.

    With 16-bit operands and up to 64 columns, the fastest on an H100 (B = 32 of the base model) of those that spill no
    registers on compute capability 8.0, 9.0 and 10.0. The others are chosen from compiled code, not yet from timings:
    of the settings free of spilled registers, those with most rows, so that keys and values are read seldom. Above 512
    columns, and in float32 above 256, `exchange_backward_rows` spills. Shared memory stays under the 99 KiB that the
    smallest of the supported GPUs gives a program.
    """

    rows: int
    chunk: int
    num_warps: int
    pairs: int = 0
    num_stages: int = 2


def unavailable(x: Tensor, pairs: int) -> str | None:
    """Why these kernels cannot run ``pairs`` = J pairs of a clip on ``x`` (…, C), or None if they can."""
    reason = device.unavailable(x.device)
    if reason is not None:
        return reason
    if x.dtype == torch.float64:
        return "x is float64; cast it to float32, bfloat16 or float16, or take backend 'eager'"
    if pairs > MAX_PAIRS:
        return f"J = {pairs} pairs of a head and a representative token; the scores of at most {MAX_PAIRS} fit a tile"
    if x.numel() // max(x.shape[-1], 1) >= 2**31:
        return "x has 2**31 rows or more; split the batch"
    return None


def padded(count: int) -> int:
    """The power of two that is not less."""
    return 1 << (count - 1).bit_length()


def layout(channels: int, pairs: int, num_heads: int) -> dict[str, int]:
    """The compile-time sizes of every kernel; a matrix product needs 16 columns."""
    tokens = pairs // num_heads
    token_columns = padded(tokens)
    heads = max(padded(num_heads), 16 // token_columns)
    return {"C": channels, "H": num_heads, "K": tokens, "HP": heads, "KP": token_columns}


def tile_forward(columns: int, itemsize: int, stream_itemsize: int, updated: bool = False) -> Tile:
    """Settings of `exchange_forward` for HP·KP ``columns``, operands of ``itemsize`` bytes and rows of others;
    ``updated``: with an update."""
    if itemsize == 4 and columns <= 64:
        return Tile(32, 32, num_warps=8, num_stages=3 if updated else 2)
    if itemsize == 4:
        return Tile(16, _narrow(columns), num_warps=8)
    if columns <= 64:
        rows, num_warps = (64, 4) if stream_itemsize == 2 else (32, 8)
        return Tile(rows, 64, num_warps, num_stages=3)
    if columns <= 256:
        return Tile(64, 64 if columns <= 128 else 32, num_warps=8)
    return Tile(16, 32 if columns <= 512 else 16, num_warps=8)


def tile_backward_rows(
    columns: int, itemsize: int, stream_itemsize: int, new: bool = True, updated: bool = False
) -> Tile:
    """Settings of `exchange_backward_rows`; ``new``: `is_hopper_or_newer`, ``updated`` as above."""
    if itemsize == 4:
        return Tile(16, _narrow(columns), num_warps=8)
    if columns <= 64 and not new:
        return Tile(64, 32, num_warps=8)
    if columns <= 64:
        # Of 64 rows with an update, a third stage has no room.
        rows, num_stages = (64, 2 if updated else 3) if stream_itemsize == 2 else (32, 3)
        return Tile(rows, 64, num_warps=4, num_stages=num_stages)
    return Tile(32, 32, num_warps=8) if columns <= 256 else Tile(16, 16, num_warps=8)


def tile_backward_pairs(
    columns: int, itemsize: int, stream_itemsize: int, new: bool = True, updated: bool = False
) -> Tile:
    """Settings of `exchange_backward_pairs`; ``new`` and ``updated`` as above."""
    pairs = min(columns, 64)
    if itemsize == 4:
        return Tile(16, 32, num_warps=8, pairs=pairs)
    if not new:
        return Tile(16 if updated and stream_itemsize == 4 else 32, 64, num_warps=4, pairs=pairs)
    if stream_itemsize == 2:
        return Tile(64, 64, num_warps=4, pairs=pairs, num_stages=2 if updated else 3)
    return Tile(32, 128, num_warps=4, pairs=pairs)


def _narrow(columns: int) -> int:
    """float32 channels of a step, such that the keys' share of shared memory stays under 99 KiB."""
    return 16 if columns <= 512 else 8


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
    """The `triton` backend's forward; ``x`` and ``update`` (G, M, C) of any strides, the result (G, front + M, C)
    contiguous, with what is in front left to be filled."""
    out = torch.empty((x.shape[0], front + x.shape[1], x.shape[2]), dtype=x.dtype, device=x.device)
    if x.numel() == 0:
        return out
    x, *added = _stream(x, update, update_scale)
    keys, values = (tensor.to(operand_dtype).contiguous() for tensor in (keys, values))
    key_bias, out_bias = key_bias.contiguous(), out_bias.contiguous()
    clips, clip_rows = keys.shape[0], x.shape[0] * x.shape[1] // keys.shape[0]
    sizes = layout(x.shape[2], keys.shape[1], num_heads)
    tile = tile_forward(sizes["HP"] * sizes["KP"], keys.element_size(), x.element_size(), update is not None)
    with on_device(x.device):
        kernels.exchange_forward[(clips * -(-clip_rows // tile.rows),)](
            x, *added, keys, key_bias, values, out_bias, _scale(row_scale, out_bias), out, *_strides(x, added[0]),
            clip_rows, x.shape[1], eps, FRONT=front, **sizes,
            **constants(tile, *_present(row_scale, update, update_scale)), **options(tile),
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
    """The `triton` backend's backward; gradients of ``x``, ``keys``, ``key_bias``, ``values``, ``out_bias`` and, where
    it is given, ``update``."""
    streams = (x,) if update is None else (x, update)
    grad_x, *grad_update = (torch.empty(x.shape, dtype=tensor.dtype, device=x.device) for tensor in streams)
    if x.numel() == 0:
        nothing = (torch.zeros_like(tensor).contiguous() for tensor in (keys, key_bias, values, out_bias))
        return grad_x, *nothing, *grad_update
    grad_out, (x, *added) = with_dense_rows(grad_out), _stream(x, update, update_scale)
    given, key_bias = (keys, key_bias, values), key_bias.contiguous()
    keys, values = (tensor.to(operand_dtype).contiguous() for tensor in (keys, values))
    (clips, pairs, channels), num_rows = keys.shape, x.shape[0] * x.shape[1]
    sizes, itemsize = layout(channels, pairs, num_heads), keys.element_size()
    columns, new = sizes["HP"] * sizes["KP"], is_hopper_or_newer(x.device)
    probs, grad_scores = torch.empty((2, num_rows, columns), dtype=keys.dtype, device=x.device)
    statistics = torch.empty((num_rows, 2), dtype=torch.float32, device=x.device)
    strides = _strides(grad_out, x, added[0])
    scale, present = _scale(row_scale, statistics), _present(row_scale, update, update_scale)
    kind = (columns, itemsize, x.element_size(), new, update is not None)
    tile = tile_backward_rows(*kind)
    clip_rows = num_rows // clips
    with on_device(x.device):
        kernels.exchange_backward_rows[(clips * -(-clip_rows // tile.rows),)](
            grad_out, x, *added, keys, key_bias, values, scale, grad_x, *(grad_update or [grad_x]), probs, grad_scores,
            statistics, *strides, clip_rows, x.shape[1], eps, **sizes, **constants(tile, *present), **options(tile),
        )  # fmt: skip
    tile = tile_backward_pairs(*kind)
    programs = clips * (columns // tile.pairs) * -(-channels // tile.chunk)
    splits = min(-(-_PAIRS_PROGRAMS // programs), -(-clip_rows // tile.rows))
    # Parts of a sum stay in float32 until they are added.
    dtypes = (tensor.dtype if splits == 1 else torch.float32 for tensor in given)
    grads = [
        torch.empty((splits, *tensor.shape), dtype=dtype, device=x.device)
        for tensor, dtype in zip(given, dtypes, strict=True)
    ]
    grad_out_bias = torch.empty((splits, clips, channels), dtype=torch.float32, device=x.device)
    with on_device(x.device):
        kernels.exchange_backward_pairs[(splits * programs,)](
            grad_out, x, *added, scale, probs, grad_scores, statistics, *grads, grad_out_bias, *strides, clips,
            clip_rows, x.shape[1], **sizes, **constants(tile, *present), SPLITS=splits, **options(tile),
        )  # fmt: skip
    if splits == 1:
        grad_keys, grad_key_bias, grad_values = (grad[0] for grad in grads)
    else:
        grad_keys, grad_key_bias, grad_values = (
            grad.sum(0).to(tensor.dtype) for grad, tensor in zip(grads, given, strict=True)
        )
    grad_out_bias = grad_out_bias.sum((0, 1)).to(out_bias.dtype)
    return grad_x, grad_keys, grad_key_bias, grad_values, grad_out_bias, *grad_update


def options(tile: Tile) -> dict[str, int | bool]:
    return compile_options(tile.num_warps, tile.num_stages)


def constants(tile: Tile, scaled: bool, updated: bool, update_scaled: bool) -> dict[str, int | bool]:
    """What a kernel is compiled with besides `layout`; whether there is a row_scale, an update, an update_scale."""
    owned = {"PAIRS": tile.pairs} if tile.pairs else {}
    given = {"SCALED": scaled, "HAS_UPDATE": updated, "UPDATE_SCALED": update_scaled}
    return {"ROWS": tile.rows, "CHUNK": tile.chunk, **given, **owned}


def _present(*tensors: Tensor | None) -> tuple[bool, ...]:
    return tuple(tensor is not None for tensor in tensors)


def _stream(x: Tensor, update: Tensor | None, update_scale: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """x, update and update_scale as the kernels take them."""
    x = with_dense_rows(x)
    return x, x if update is None else with_dense_rows(update), _scale(update_scale, x)


def _strides(*tensors: Tensor) -> tuple[int, ...]:
    """Of groups and rows."""
    return tuple(tensor.stride(axis) for tensor in tensors for axis in (0, 1))


def _scale(row_scale: Tensor | None, instead: Tensor) -> Tensor:
    """A pointer must be given, read or not."""
    return instead if row_scale is None else row_scale.contiguous()
