"""What the backward of a linear layer after a GELU needs, in plain PyTorch.

Letters: M rows, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mae_dfer_kernels.calls import without_autocast


def backward(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The `eager` backend: ``grad · gelu'(x)`` and ``gelu(x)`` (M, C), contiguous, and the sums (C,) of the first over
    its rows; differentiable."""
    # oneDNN, which PyTorch calls for it, refuses some strides.
    grad, x = grad.contiguous(), x.contiguous()
    with without_autocast(x.device.type):
        grad_x = torch.ops.aten.gelu_backward(grad, x)
        return grad_x, F.gelu(x), grad_x.sum(dim=0)
