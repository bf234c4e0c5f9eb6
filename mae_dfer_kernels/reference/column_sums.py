"""Sums over rows in plain PyTorch.

Letters: M rows, C channels.
"""

from __future__ import annotations

from torch import Tensor


def forward(rows: Tensor) -> Tensor:
    """The `eager` backend: the sums (C,) of ``rows`` (M, C), in their dtype; differentiable."""
    return rows.sum(dim=0)
