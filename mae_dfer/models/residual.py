"""A residual stream whose last branch is still to be added, so that the addition can be one with the next LayerNorm."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from mae_dfer_kernels.calls import autocast_dtype

from .recompute import norm_linear, residual_norm_linear, spread


class Residual(NamedTuple):
    """``x + factors · branch``.

    ``x`` and ``branch`` (…, C); ``factors``, of stochastic depth, of the shape of the first axes, None for 1. Without
    a branch, ``x`` alone.
    """

    x: Tensor
    branch: Tensor | None = None
    factors: Tensor | None = None

    def added(self) -> Tensor:
        if self.branch is None:
            return self.x
        return self.x + (self.branch if self.factors is None else self.branch * spread(self.factors, self.branch))

    def norm_linear(self, norm: nn.LayerNorm, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """The sum, and ``linear(norm(sum))``."""
        if self.branch is None:
            return self.x, norm_linear(self.x, norm, weight, bias)
        return residual_norm_linear(self.x, self.branch, self.factors, norm, weight, bias)


def through_blocks(blocks: nn.ModuleList, x: Tensor, residual_dtype: str, *wanted: Any) -> Tensor:
    """``x`` through all blocks, the last of which is told what is ``wanted``. Fused ones hand on streams.

    ``residual_dtype``: see :class:`~mae_dfer.models.config.ModelConfig`.
    """
    *others, last = blocks
    if residual_dtype == "autocast":
        x = x.to(autocast_dtype(x))
    stream: Tensor | Residual = Residual(x) if all(block.fused for block in blocks) else x
    for block in others:
        stream = block(stream)
    stream = last(stream, *wanted)
    return stream.added() if isinstance(stream, Residual) else stream
