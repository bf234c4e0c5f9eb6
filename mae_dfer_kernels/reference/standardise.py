"""LayerNorm's inner part in plain PyTorch: rows without mean, of variance one, and the way back."""

from __future__ import annotations

from torch import Tensor


def standardise(rows: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``u = (rows - mean) / deviation`` over the last axis, and ``1 / deviation``, whose last axis has length 1."""
    mean = rows.mean(dim=-1, keepdim=True)
    inverse = (rows.var(dim=-1, keepdim=True, unbiased=False) + eps).rsqrt()
    return (rows - mean) * inverse, inverse


def standardise_backward(grad_unit: Tensor, unit: Tensor, inverse: Tensor) -> Tensor:
    """Gradient of the rows: that of ``u`` less what would shift or stretch a row, divided by the deviation."""
    shift = grad_unit.mean(dim=-1, keepdim=True)
    stretch = (grad_unit * unit).mean(dim=-1, keepdim=True)
    return (grad_unit - shift - unit * stretch) * inverse
