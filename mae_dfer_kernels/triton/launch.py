"""Launch settings of the region attention kernels: which kernel runs a shape, with which tiles and warps.

For 16-bit tiles, the fastest on an H100 of those that keep kernels free of spilled registers on compute capability 8.0,
9.0 and 10.0 (``python -m mae_dfer_kernels.triton.compile_report`` prints the numbers). The others are chosen from
compiled code, not yet from timings: those that leave room for most warps on a multiprocessor. In float32 some shapes
spill 8 to 32 bytes, and dq at D = 128 with S <= 16 spills 4 KB. Shared memory stays under the 99 KiB that the smallest
of the supported GPUs gives a program.
"""

from __future__ import annotations

from typing import NamedTuple

MAX_TOKENS = 1024
HEAD_DIMS = (16, 32, 64, 128)
_MAX_OPERAND_BYTES = 16 * 1024
_MAX_ROW_BYTES = 256
_PACKED_BLOCK = 64


class Tile(NamedTuple):
    """Settings of a tile kernel: a program serves one head of `regions` regions, in `block` rows."""

    block: int
    regions: int
    chunk: int
    num_warps: int


class Loop(NamedTuple):
    """Settings of a loop kernel: score tiles of `rows` queries and `columns` keys."""

    rows: int
    columns: int
    num_warps: int


def tile_block(tokens: int, head_dim: int, itemsize: int) -> int | None:
    """Rows of the tile that holds a region, or None where its keys or values are too large to stay on chip.

    An operand of a tile is at most 16 KiB: 128 rows at D = 64 in 16-bit types, 64 in float32. float32 at
    D = 128 spills registers in any tile kernel.
    """
    block = _power_of_two(tokens)
    row_bytes = head_dim * itemsize
    fits = block <= 128 and block * row_bytes <= _MAX_OPERAND_BYTES and row_bytes <= _MAX_ROW_BYTES
    return block if fits else None


def tile_forward(tokens: int, head_dim: int, itemsize: int, dropout: bool) -> Tile | None:
    """Settings of `forward_tile`, or None where the loop kernel is to run.

    Registers at D = 64 in bfloat16 on sm_80 / 90 / 100 with Triton 3.8: 124 / 80 / 56 at S = 11, 90 / 74 / 55 at
    S = 41 and 51, 234 / 167 / 148 at S = 101.
    """
    if tile_block(tokens, head_dim, itemsize) is None:
        return None
    block, regions = _pack(tokens, head_dim, itemsize, dropout)
    # float32 products run on the plain arithmetic units, whose operands wait in registers.
    if itemsize == 4:
        return Tile(block, regions, chunk=16, num_warps=8)
    return Tile(block, regions, chunk=min(block, 64) if dropout else block, num_warps=4)


def tile_backward(tokens: int, head_dim: int, itemsize: int, dropout: bool) -> Tile | None:
    """Settings of `backward_tile`, or None where the loop kernels are to run.

    Of 128 rows a few queries at a time, because dk and dv of the whole tile wait in registers meanwhile. Registers as
    above: 199 / 150 / 80 at S = 11, 41 and 51, 255 / 255 / 162 at S = 101.
    """
    if tile_block(tokens, head_dim, itemsize) is None:
        return None
    block, regions = _pack(tokens, head_dim, itemsize, dropout)
    if itemsize == 4 or (dropout and block == 128):
        return Tile(block, regions, chunk=16, num_warps=8)
    return Tile(block, regions, chunk=32 if block == 128 else block, num_warps=4)


def _pack(tokens: int, head_dim: int, itemsize: int, dropout: bool) -> tuple[int, int]:
    """(block, regions): up to 32 tokens, as many whole regions as 64 rows hold.

    Two regions of 51 or three of 41 in 128 rows would read the same bytes and multiply 2 or 1.3 times as much
    as one in 64. With dropout a region starts its own tile: four neighbouring columns share one random draw.
    """
    rows = min(_PACKED_BLOCK, _MAX_OPERAND_BYTES // (head_dim * itemsize))
    if 2 * tokens > rows or dropout:
        return _power_of_two(tokens), 1
    return rows, rows // tokens


def _power_of_two(tokens: int) -> int:
    """Rows of a tile for one region; a matrix product needs 16."""
    return max(16, 1 << (tokens - 1).bit_length())


def loop_forward(head_dim: int, itemsize: int) -> Loop:
    """Settings of `forward_loop`."""
    if itemsize == 4:
        return Loop(32, 32, num_warps=4 if head_dim <= 64 else 8)
    return Loop(64, 64 if head_dim <= 64 else 32, num_warps=4)


def loop_backward_dq(head_dim: int, itemsize: int) -> Loop:
    """Settings of `backward_loop_dq`."""
    if itemsize == 4:
        return Loop(32, 32, num_warps=4) if head_dim <= 64 else Loop(32, 16, num_warps=8)
    return Loop(64, 32, num_warps=4)


def loop_backward_dkdv(head_dim: int, itemsize: int) -> Loop:
    """Settings of `backward_loop_dkdv`."""
    if itemsize == 4:
        return Loop(16, 32, num_warps=8)
    return Loop(32, 64, num_warps=4 if head_dim <= 64 else 8)
