"""Region attention in plain PyTorch.

Letters: R regions, S tokens a region, H heads, D channels a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mae_dfer_kernels.calls import without_autocast
from mae_dfer_kernels.reference.dropout import dropout_keep_mask


def region_attention(
    qkv: Tensor, num_heads: int, scale: float, dropout_p: float = 0.0, seed: int = 0
) -> Tensor:
    """Multi-head self-attention inside each region; differentiable.

    ``qkv`` (R, S, 3*H*D) holds ``[q | k | v]`` along its last axis, each (H, D) inside; returns (R, S, H*D)
    in the same dtype. Every step runs in the dtype of ``qkv``. MAE-DFER (arXiv 2307.02227), local
    intra-region self-attention.
    """
    query, key, value = _split(qkv, num_heads)
    kept_probs = _probabilities(query, key, scale)
    if dropout_p > 0.0:
        kept_probs = kept_probs * _dropout_factor(kept_probs, dropout_p, seed)
    return _merge_heads(kept_probs @ value)


def forward(qkv: Tensor, num_heads: int, scale: float, dropout_p: float, seed: int) -> Tensor:
    """The `eager` backend's forward: `region_attention` in the dtype of ``qkv``, contiguous."""
    # Inside the operator the matmuls would still be autocast, and the output's dtype would no longer be the
    # one that the operator promises.
    with without_autocast(qkv.device.type):
        return region_attention(qkv, num_heads, scale, dropout_p, seed)


def backward(
    grad_out: Tensor, qkv: Tensor, num_heads: int, scale: float, dropout_p: float, seed: int
) -> Tensor:
    """Gradient of `region_attention` with respect to ``qkv``, with the probabilities recomputed.

    ``grad_out`` (R, S, H*D); returns (R, S, 3*H*D) in the dtype of ``qkv``, contiguous.
    """
    with without_autocast(qkv.device.type):
        query, key, value = _split(qkv, num_heads)
        head_dim = value.shape[-1]
        grad_heads = grad_out.unflatten(-1, (num_heads, head_dim)).transpose(1, 2)
        probs = _probabilities(query, key, scale)
        grad_probs = grad_heads @ value.transpose(-2, -1)
        kept_probs = probs
        if dropout_p > 0.0:
            factor = _dropout_factor(probs, dropout_p, seed)
            kept_probs, grad_probs = probs * factor, grad_probs * factor
        # dS = P ∘ (dP - Σ P∘dP)
        grad_scores = torch.ops.aten._softmax_backward_data(grad_probs, probs, -1, probs.dtype)
        grad_value = kept_probs.transpose(-2, -1) @ grad_heads
        grad_query = (grad_scores @ key) * scale
        grad_key = grad_scores.transpose(-2, -1) @ (query * scale)
        return torch.cat([_merge_heads(grad) for grad in (grad_query, grad_key, grad_value)], dim=-1)


def _split(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """(R, S, 3*H*D) -> three of (R, H, S, D)."""
    query, key, value = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return query, key, value


def _merge_heads(heads: Tensor) -> Tensor:
    """(R, H, S, D) -> (R, S, H*D)."""
    return heads.transpose(1, 2).flatten(2)


def _probabilities(query: Tensor, key: Tensor, scale: float) -> Tensor:
    # P = softmax(scale · Q Kᵀ)
    return torch.softmax((query * scale) @ key.transpose(-2, -1), dim=-1)


def _dropout_factor(probs: Tensor, dropout_p: float, seed: int) -> Tensor:
    regions, num_heads, tokens, _ = probs.shape
    keep = dropout_keep_mask(regions, num_heads, tokens, dropout_p, seed, probs.device)
    return keep.to(probs.dtype) / (1.0 - dropout_p)
