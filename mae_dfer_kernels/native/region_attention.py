"""Region attention by the compiled library.

Letters: R regions, S tokens a region, H heads, D channels a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mae_dfer_kernels import native


def unavailable(qkv: Tensor, num_heads: int) -> str | None:
    """Why the `cpu` backend cannot run this call, or None if it can."""
    if native.LOAD_ERROR is not None:
        return native.LOAD_ERROR
    if not qkv.is_cpu:
        return f"it takes tensors on the CPU, and qkv is on {qkv.device}"
    return None


def forward(qkv: Tensor, num_heads: int, scale: float, dropout_p: float, seed: int) -> Tensor:
    """The `cpu` backend's forward. ``qkv`` (R, S, 3*H*D) of any strides; returns (R, S, H*D), contiguous."""
    native.check_place("qkv", qkv)
    qkv, region_stride, token_stride = _rows(qkv)
    regions, tokens, width = qkv.shape
    out = qkv.new_empty(regions, tokens, width // 3)
    native.library().region_attention_forward(
        qkv.data_ptr(), region_stride, token_stride, out.data_ptr(),
        native.DTYPE_CODES[qkv.dtype], regions, tokens, num_heads, width // (3 * num_heads),
        scale, dropout_p, seed, torch.get_num_threads(),
    )  # fmt: skip
    return out


def backward(
    grad_out: Tensor, qkv: Tensor, num_heads: int, scale: float, dropout_p: float, seed: int
) -> Tensor:
    """The `cpu` backend's backward. ``grad_out`` (R, S, H*D); returns (R, S, 3*H*D), contiguous."""
    native.check_place("qkv", qkv)
    grad_out, grad_region_stride, grad_token_stride = _rows(grad_out)
    qkv, region_stride, token_stride = _rows(qkv)
    regions, tokens, width = qkv.shape
    grad_qkv = qkv.new_empty(regions, tokens, width)
    native.library().region_attention_backward(
        grad_out.data_ptr(), grad_region_stride, grad_token_stride,
        qkv.data_ptr(), region_stride, token_stride, grad_qkv.data_ptr(),
        native.DTYPE_CODES[qkv.dtype], regions, tokens, num_heads, width // (3 * num_heads),
        scale, dropout_p, seed, torch.get_num_threads(),
    )  # fmt: skip
    return grad_qkv


def _rows(tensor: Tensor) -> tuple[Tensor, int, int]:
    """The tensor as the kernels take it, and its strides between regions and between tokens."""
    region_stride, token_stride, channel_stride = tensor.stride()
    # Channels lie side by side, and products of bf16 read two numbers as one word: no odd stride between tokens.
    if channel_stride != 1 or (token_stride % 2 != 0 and tensor.dtype == torch.bfloat16):
        tensor = tensor.contiguous()
        region_stride, token_stride, _ = tensor.stride()
    return tensor, region_stride, token_stride
