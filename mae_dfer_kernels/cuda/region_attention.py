"""Region attention by the CUDA kernels.

Letters: R regions, S tokens a region, H heads, D channels a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mae_dfer_kernels import native
from mae_dfer_kernels.cuda import device
from mae_dfer_kernels.gpu import on_device

HEAD_DIMS = (16, 32, 64, 128)
MAX_TOKENS = 1024
_MAX_BLOCKS = 2**31 - 1
# Of each row of probabilities, kept between the two kernels of a long region's backward: maximum, 1 / sum, Σ P∘dP.
_STATISTICS = 3


def unavailable(qkv: Tensor, num_heads: int) -> str | None:
    """Why the `cuda` backend cannot run region attention on ``qkv`` (R, S, 3*H*D), or None if it can."""
    reason = device.unavailable(qkv.device)
    if reason is not None:
        return reason
    regions, tokens, width = qkv.shape
    head_dim = width // (3 * num_heads)
    if qkv.dtype not in device.DTYPES:
        return f"qkv is {qkv.dtype}; cast it to float32, bfloat16 or float16, or take backend 'eager'"
    if head_dim not in HEAD_DIMS:
        return f"D = {head_dim} channels a head; choose num_heads so that D is one of {HEAD_DIMS}"
    if tokens > MAX_TOKENS:
        return f"S = {tokens} tokens a region; take regions of at most {MAX_TOKENS}"
    if regions * num_heads * (-(-tokens // 16)) > _MAX_BLOCKS:
        return f"R * H = {regions * num_heads} is more than one launch can start; split the batch"
    return None


def forward(qkv: Tensor, num_heads: int, scale: float, dropout_p: float, seed: int) -> Tensor:
    """The `cuda` backend's forward. ``qkv`` (R, S, 3*H*D) of any strides; returns (R, S, H*D), contiguous."""
    qkv = device.aligned_rows(qkv)
    out = qkv.new_empty((*qkv.shape[:2], qkv.shape[2] // 3))
    with on_device(qkv.device):
        device.library().cuda_region_attention_forward(
            _rows(qkv), out.data_ptr(), _shape(qkv, num_heads), scale, dropout_p, seed, device.stream(qkv.device)
        )
    return out


def backward(grad_out: Tensor, qkv: Tensor, num_heads: int, scale: float, dropout_p: float, seed: int) -> Tensor:
    """The `cuda` backend's backward. ``grad_out`` (R, S, H*D); returns (R, S, 3*H*D), contiguous."""
    qkv, grad_out = device.aligned_rows(qkv), device.aligned_rows(grad_out)
    grad_qkv = qkv.new_empty(qkv.shape)
    statistics = qkv.new_empty(_STATISTICS * qkv.shape[0] * num_heads * qkv.shape[1], dtype=torch.float32)
    with on_device(qkv.device):
        device.library().cuda_region_attention_backward(
            _rows(grad_out), _rows(qkv), grad_qkv.data_ptr(), statistics.data_ptr(), _shape(qkv, num_heads),
            scale, dropout_p, seed, device.stream(qkv.device),
        )  # fmt: skip
    return grad_qkv


def _rows(tensor: Tensor) -> tuple[int, int, int]:
    return tensor.data_ptr(), tensor.stride(0), tensor.stride(1)


def _shape(qkv: Tensor, num_heads: int) -> tuple[int, int, int, int, int]:
    regions, tokens, width = qkv.shape
    return native.DTYPE_CODES[qkv.dtype], regions, tokens, num_heads, width // (3 * num_heads)
