"""The representative-token exchange in plain PyTorch.

Letters: B clips, G groups of M rows (G / B groups a clip), C channels, H heads, D channels a head, K representative
tokens a clip, J = H·K.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mae_dfer_kernels.arguments import compute_dtype
from mae_dfer_kernels.calls import without_autocast
from mae_dfer_kernels.reference.standardise import standardise, standardise_backward


def exchange_rows(
    x: Tensor,
    keys: Tensor,
    key_bias: Tensor,
    values: Tensor,
    out_bias: Tensor,
    row_scale: Tensor | None,
    update: Tensor | None,
    update_scale: Tensor | None,
    front: Tensor | None,
    num_heads: int,
    eps: float,
    operand_dtype: torch.dtype | None = None,
) -> Tensor:
    """``s + row_scale · (softmax_h(u · keysᵀ + key_bias) · values + out_bias)`` with ``u = (s - mean) / deviation`` and
    ``s = x + update_scale · update``.

    ``x`` and ``update`` (G, M, C), None for 0, ``update_scale`` (G,) or None for 1; ``keys`` and ``values`` (B, J, C)
    and ``key_bias`` (B, J), a head's K columns side by side; ``out_bias`` (C,); ``row_scale`` (B,) or None for 1.
    Every step runs in the dtype of ``keys``, and the result is in that of ``x``, contiguous, behind the rows ``front``
    (G, F, C) of each group. Differentiable. Of ``operand_dtype``, to which a kernel may round operands of products, no
    use is made.
    """
    with without_autocast(x.device.type):
        rows = _by_clip(updated(x, update, update_scale), keys)
        unit = F.layer_norm(rows.to(keys.dtype), x.shape[-1:], eps=eps)
        branch = _probabilities(unit, keys, key_bias, num_heads) @ values + out_bias
        if row_scale is not None:
            branch = branch * row_scale.to(branch.dtype)[:, None, None]
        out = (rows + branch.to(rows.dtype)).to(x.dtype).reshape(x.shape)
    return out.contiguous() if front is None else torch.cat((front, out), dim=1)


def updated(x: Tensor, update: Tensor | None, update_scale: Tensor | None) -> Tensor:
    """``x + update_scale · update`` in the type computed in, which no rounding to that of ``x`` follows; without an
    update ``x`` itself."""
    if update is None:
        return x
    dtype = compute_dtype(x)
    update = update.to(dtype)
    return x.to(dtype) + (update if update_scale is None else update * update_scale.to(dtype)[:, None, None])


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
    """The `eager` backend's forward, contiguous; ``front`` rows before each group's are left to be filled."""
    space = x.new_empty((x.shape[0], front, x.shape[2])) if front else None
    vectors = (key_bias, values, out_bias, row_scale, update, update_scale)
    return exchange_rows(x, keys, *vectors, space, num_heads, eps)


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
    operand_dtype: torch.dtype | None = None,
) -> tuple[Tensor, ...]:
    """Gradients of ``x``, ``keys``, ``key_bias``, ``values``, ``out_bias`` and, where it is given, ``update``:
    contiguous, differentiable."""
    with without_autocast(x.device.type):
        grad_rows = _by_clip(grad_out, keys)
        unit, inverse = standardise(_by_clip(updated(x, update, update_scale), keys).to(keys.dtype), eps)
        probs = _probabilities(unit, keys, key_bias, num_heads)
        grad_branch = grad_rows.to(keys.dtype)
        if row_scale is not None:
            grad_branch = grad_branch * row_scale.to(grad_branch.dtype)[:, None, None]
        # dS = P ∘ (dP - Σ P∘dP) within each head
        weighted = probs * (grad_branch @ values.transpose(1, 2))
        delta = weighted.unflatten(-1, (num_heads, -1)).sum(dim=-1, keepdim=True)
        grad_scores = weighted - (probs.unflatten(-1, (num_heads, -1)) * delta).flatten(2)
        through = standardise_backward(grad_scores @ keys, unit, inverse)
        grad_x = (grad_rows + through.to(x.dtype)).reshape(x.shape).contiguous()
        return (
            grad_x,
            grad_scores.transpose(1, 2) @ unit,
            grad_scores.sum(dim=1).to(key_bias.dtype),
            probs.transpose(1, 2) @ grad_branch,
            grad_branch.sum(dim=(0, 1)).to(out_bias.dtype),
            *(() if update is None else (update_gradient(grad_x, update, update_scale),)),
        )


def update_gradient(grad_x: Tensor, update: Tensor, update_scale: Tensor | None) -> Tensor:
    """``update_scale · grad_x`` in the dtype of ``update``, a tensor of its own."""
    if update_scale is None:
        return grad_x.to(update.dtype, copy=True)
    return (grad_x * update_scale.to(compute_dtype(grad_x))[:, None, None]).to(update.dtype)


def _by_clip(x: Tensor, keys: Tensor) -> Tensor:
    """(G, M, C) -> (B, G / B · M, C)."""
    clips = keys.shape[0]
    return x.reshape(clips, x.shape[0] // max(clips, 1) * x.shape[1], x.shape[2])


def _probabilities(unit: Tensor, keys: Tensor, key_bias: Tensor, num_heads: int) -> Tensor:
    scores = unit @ keys.transpose(1, 2) + key_bias.unsqueeze(1).to(keys.dtype)
    return scores.unflatten(-1, (num_heads, -1)).softmax(dim=-1).flatten(2)
