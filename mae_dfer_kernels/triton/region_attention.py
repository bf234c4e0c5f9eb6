"""Region attention by Triton: out = dropout(softmax(scale * q k^T)) v inside each region, and its gradient.

Letters: R regions, S tokens of a region, H heads, D channels of a head. q, k and v are read where the packed
projection output (R, S, 3*H*D) holds them, and dq, dk, dv written to the same places of its gradient.
float32, bfloat16 and float16; sums, softmax and gradients accumulate in float32; no atomic additions, so that
two runs agree bit for bit.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mae_dfer_kernels.gpu import on_device
from mae_dfer_kernels.triton import device, launch
from mae_dfer_kernels.triton.device import compile_options, with_dense_rows

if device.IMPORT_ERROR is None:
    from mae_dfer_kernels.triton import region_attention_loop as loop_kernels
    from mae_dfer_kernels.triton import region_attention_tile as tile_kernels

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MAX_PROGRAMS = 2**31 - 1
_STATISTICS = 3


def unavailable(qkv: Tensor, num_heads: int) -> str | None:
    """Why these kernels cannot run region attention on ``qkv`` (R, S, 3*H*D), or None if they can."""
    return device.unavailable(qkv.device) or _unavailable_for(qkv, num_heads)


def forward(qkv: Tensor, num_heads: int, scale: float, dropout_p: float, seed: int) -> Tensor:
    """Multi-head attention inside each region: ``qkv`` (R, S, 3*H*D) -> (R, S, H*D), contiguous, same dtype.

    Raises:
        ValueError: `unavailable` has a reason for this call.
    """
    _check(qkv, num_heads)
    regions, tokens, width = qkv.shape
    head_dim = width // (3 * num_heads)
    out = torch.empty((regions, tokens, num_heads * head_dim), dtype=qkv.dtype, device=qkv.device)
    if out.numel() == 0:
        return out
    qkv = with_dense_rows(qkv)
    arguments = dict(
        p_qkv=qkv, p_out=out, stride_region=qkv.stride(0), stride_token=qkv.stride(1),
        scale_log2=scale * math.log2(math.e), H=num_heads, D=head_dim, **_dropout(dropout_p, seed),
    )  # fmt: skip
    tile = launch.tile_forward(tokens, head_dim, qkv.element_size(), dropout_p > 0)
    if tile is not None:
        _launch_tile(tile_kernels.forward_tile, tile, regions, tokens, arguments)
    else:
        loop = launch.loop_forward(head_dim, qkv.element_size())
        _launch_loop(loop_kernels.forward_loop, loop, loop.rows, regions, tokens, arguments)
    return out


def backward(grad_out: Tensor, qkv: Tensor, num_heads: int, scale: float, dropout_p: float, seed: int) -> Tensor:
    """Gradient of `forward` with respect to ``qkv``, from ``qkv`` alone: the probabilities are recomputed.

    ``grad_out`` (R, S, H*D), of any strides; returns (R, S, 3*H*D), contiguous, in the dtype of ``qkv``.

    Raises:
        ValueError: `unavailable` has a reason for this call.
    """
    _check(qkv, num_heads)
    regions, tokens, width = qkv.shape
    head_dim = width // (3 * num_heads)
    grad_qkv = torch.empty((regions, tokens, width), dtype=qkv.dtype, device=qkv.device)
    if grad_qkv.numel() == 0:
        return grad_qkv
    qkv, grad_out = with_dense_rows(qkv), with_dense_rows(grad_out)
    arguments = dict(
        p_grad_out=grad_out, p_qkv=qkv, p_dqkv=grad_qkv, stride_grad_region=grad_out.stride(0),
        stride_grad_token=grad_out.stride(1), stride_region=qkv.stride(0), stride_token=qkv.stride(1),
        scale=scale, scale_log2=scale * math.log2(math.e), H=num_heads, D=head_dim,
        **_dropout(dropout_p, seed),
    )  # fmt: skip
    itemsize = qkv.element_size()
    tile = launch.tile_backward(tokens, head_dim, itemsize, dropout_p > 0)
    if tile is not None:
        _launch_tile(tile_kernels.backward_tile, tile, regions, tokens, arguments)
        return grad_qkv
    statistic = regions * num_heads * tokens
    arguments["p_statistics"] = torch.empty(_STATISTICS * statistic, dtype=torch.float32, device=qkv.device)
    arguments["statistic"] = statistic
    loop = launch.loop_backward_dq(head_dim, itemsize)
    _launch_loop(loop_kernels.backward_loop_dq, loop, loop.rows, regions, tokens, arguments)
    loop = launch.loop_backward_dkdv(head_dim, itemsize)
    _launch_loop(loop_kernels.backward_loop_dkdv, loop, loop.columns, regions, tokens, arguments)
    return grad_qkv


def _launch_tile(kernel: Any, tile: launch.Tile, regions: int, tokens: int, arguments: dict[str, Any]) -> None:
    groups = -(-regions // tile.regions)
    with on_device(arguments["p_qkv"].device):
        kernel[(groups * arguments["H"],)](
            num_regions=regions, S=tokens, REGIONS=tile.regions, BLOCK=tile.block, CHUNK=tile.chunk,
            **arguments, **compile_options(tile.num_warps),
        )  # fmt: skip


def _launch_loop(
    kernel: Any, loop: launch.Loop, owned: int, regions: int, tokens: int, arguments: dict[str, Any]
) -> None:
    """One program for each `owned` rows (or columns) of a region's head."""
    tiles = -(-tokens // owned)
    with on_device(arguments["p_qkv"].device):
        kernel[(regions * arguments["H"] * tiles,)](
            S=tokens, ROWS=loop.rows, COLUMNS=loop.columns, **arguments, **compile_options(loop.num_warps)
        )


def _dropout(dropout_p: float, seed: int) -> dict[str, Any]:
    return {
        "keep_scale": 1.0 / (1.0 - dropout_p),
        "seed": seed,
        "threshold": min(round(dropout_p * 2**32), 2**32 - 1),
        "DROPOUT": dropout_p > 0,
    }


def _check(qkv: Tensor, num_heads: int) -> None:
    reason = unavailable(qkv, num_heads)
    if reason is not None:
        raise ValueError(f"the triton backend cannot run region attention on qkv: {reason}")


def _unavailable_for(qkv: Tensor, num_heads: int) -> str | None:
    regions, tokens, width = qkv.shape
    head_dim = width // (3 * num_heads)
    if qkv.dtype not in _DTYPES:
        return f"qkv is {qkv.dtype}; cast it to float32, bfloat16 or float16, or take backend 'eager'"
    if head_dim not in launch.HEAD_DIMS:
        return f"D = {head_dim} channels a head; choose num_heads so that D is one of {launch.HEAD_DIMS}"
    if tokens > launch.MAX_TOKENS:
        return f"S = {tokens} tokens a region; take regions of at most {launch.MAX_TOKENS}"
    # 16 queries or more to a program, so that no kernel starts more than this many.
    if regions * num_heads * (-(-tokens // 16)) > _MAX_PROGRAMS:
        return f"R * H = {regions * num_heads} is more than one launch can start; split the batch"
    return None
