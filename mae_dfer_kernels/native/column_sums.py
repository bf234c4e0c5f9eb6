"""Sums over rows on a CPU: PyTorch's own, which reads as fast as memory gives, so that the library has none.

Letters: M rows, C channels.
"""

from __future__ import annotations

from torch import Tensor

from mae_dfer_kernels import native


def unavailable(rows: Tensor) -> str | None:
    """Why the `cpu` backend cannot run this call, or None if it can."""
    return None if rows.is_cpu else f"it takes tensors on the CPU, and rows is on {rows.device}"


def forward(rows: Tensor) -> Tensor:
    """The `cpu` backend; ``rows`` (M, C) of any strides."""
    native.check_place("rows", rows)
    return rows.sum(dim=0)
