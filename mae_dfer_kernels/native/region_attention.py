"""Region attention by the compiled library.

Letters: R regions, S tokens a region, H heads, D channels a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mae_dfer_kernels import native
from mae_dfer_kernels.native.rows import rows_contiguous


def unavailable(qkv: Tensor, num_heads: int) -> str | None:
    """Why the `cpu` backend cannot run this call, or None if it can."""
    if native.LOAD_ERROR is not None:
        return native.LOAD_ERROR
    if qkv.device.type != "cpu":
        return f"it takes tensors on the CPU, and qkv is on {qkv.device}"
    return None


def forward(qkv: Tensor, num_heads: int, scale: float, dropout_p: float, seed: int) -> Tensor:
    """The `cpu` backend's forward. ``qkv`` (R, S, 3*H*D) of any strides; returns (R, S, H*D), contiguous."""
    qkv = _rows(qkv)
    regions, tokens, width = qkv.shape
    out = qkv.new_empty((regions, tokens, width // 3))
    native.library().region_attention_forward(
        qkv.data_ptr(), qkv.stride(0), qkv.stride(1), out.data_ptr(),
        native.DTYPE_CODES[qkv.dtype], regions, tokens, num_heads, width // (3 * num_heads),
        scale, dropout_p, seed, torch.get_num_threads(),
    )  # fmt: skip
    return out


def backward(
    grad_out: Tensor, qkv: Tensor, num_heads: int, scale: float, dropout_p: float, seed: int
) -> Tensor:
    """The `cpu` backend's backward. ``grad_out`` (R, S, H*D); returns (R, S, 3*H*D), contiguous."""
    qkv, grad_out = _rows(qkv), _rows(grad_out)
    regions, tokens, width = qkv.shape
    grad_qkv = qkv.new_empty((regions, tokens, width))
    native.library().region_attention_backward(
        grad_out.data_ptr(), grad_out.stride(0), grad_out.stride(1),
        qkv.data_ptr(), qkv.stride(0), qkv.stride(1), grad_qkv.data_ptr(),
        native.DTYPE_CODES[qkv.dtype], regions, tokens, num_heads, width // (3 * num_heads),
        scale, dropout_p, seed, torch.get_num_threads(),
    )  # fmt: skip
    return grad_qkv


def _rows(tensor: Tensor) -> Tensor:
    # Products of bf16 read two numbers as one word: an odd stride between tokens needs a copy, too.
    splits_words = tensor.dtype == torch.bfloat16 and tensor.stride(1) % 2 != 0
    return tensor.contiguous() if splits_words else rows_contiguous(tensor)
