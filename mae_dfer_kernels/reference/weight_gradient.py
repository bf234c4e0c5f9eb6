"""The gradients of a linear layer's weight and bias in plain PyTorch.

Letters: M rows, I inputs and O outputs of the layer.
"""

from __future__ import annotations

import torch
from torch import Tensor


def backward(grad: Tensor, rows: Tensor, out_dtype: torch.dtype, bias: bool) -> tuple[Tensor, Tensor]:
    """The `eager` backend: (O, I), and (O,), empty if not ``bias``, from ``grad`` (M, O) and ``rows`` (M, I).

    In the dtype of ``grad``, then in ``out_dtype``; differentiable.
    """
    sums = grad.sum(dim=0) if bias else grad.new_empty(0)
    return (grad.t() @ rows).to(out_dtype), sums.to(out_dtype)
