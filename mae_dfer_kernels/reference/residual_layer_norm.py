"""Residual + LayerNorm in plain PyTorch.

Letters: G groups, M rows a group, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mae_dfer_kernels.calls import without_autocast
from mae_dfer_kernels.reference.standardise import standardise, standardise_backward


def residual_layer_norm(
    x: Tensor,
    update: Tensor | None,
    row_scale: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """``sum = x + row_scale · update`` and ``LayerNorm(sum) · weight + bias``; differentiable.

    ``x`` and ``update`` (G, M, C), None for zero, ``row_scale`` (G,) or None for 1, ``weight`` and ``bias`` (C,). The
    sum has the dtype of ``x``; it is normalised as it is stored, in the dtype of ``weight``, and cast to ``out_dtype``.
    """
    if update is not None and row_scale is not None:
        update = update * row_scale.to(update.dtype)[:, None, None]
    total = x if update is None else x + update.to(x.dtype)
    normed = F.layer_norm(total.to(weight.dtype), weight.shape, weight, bias, eps)
    return total, normed.to(out_dtype)


def forward(
    x: Tensor,
    update: Tensor | None,
    row_scale: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    out_dtype: torch.dtype,
) -> tuple[Tensor | None, Tensor]:
    """The `eager` backend's forward: `residual_layer_norm`, both results contiguous. Without an update no sum is made,
    since it is ``x``."""
    with without_autocast(x.device.type):
        total, normed = residual_layer_norm(x, update, row_scale, weight, bias, eps, out_dtype)
    return None if update is None else total.contiguous(), normed.contiguous()


def backward(
    grad_sum: Tensor | None,
    grad_normed: Tensor,
    total: Tensor,
    row_scale: Tensor | None,
    weight: Tensor,
    eps: float,
    update_dtype: torch.dtype,
    share: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients with respect to ``x``, ``update``, ``weight`` and ``bias``, the statistics recomputed from the sum.

    ``grad_sum`` (G, M, C) or None for zero, ``grad_normed`` (G, M, C); ``total`` is the sum that the forward returned.
    ``share``: one tensor may be both the first and the second gradient, where they are equal.
    """
    with without_autocast(total.device.type):
        unit, inverse = standardise(total.to(weight.dtype), eps)
        outer = grad_normed.to(weight.dtype)
        grad_x = standardise_backward(outer * weight, unit, inverse).to(total.dtype)
        if grad_sum is not None:
            grad_x = (grad_x + grad_sum).to(total.dtype)
        grad_x = grad_x.contiguous()
        grad_update = grad_x if row_scale is None else grad_x * row_scale.to(grad_x.dtype)[:, None, None]
        grad_weight, grad_bias = (outer * unit).sum(dim=(0, 1)), outer.sum(dim=(0, 1))
        grad_update = grad_update.to(update_dtype, copy=grad_update is grad_x and not share)
    return grad_x, grad_update, grad_weight, grad_bias
