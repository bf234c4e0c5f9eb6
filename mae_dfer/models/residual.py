"""A residual stream whose last branch is still to be added, so that the addition can be one with the next LayerNorm."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

from torch import Tensor, nn

from mae_dfer_kernels.calls import autocast_dtype

from .casts import cast_together
from .recompute import residual_norm_linear, spread


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
        return residual_norm_linear(self.x, self.branch, self.factors, norm, weight, bias)


def through_blocks(blocks: nn.ModuleList, x: Tensor, residual_dtype: str, *wanted: Any) -> Tensor:
    """``x`` through all blocks, the last of which is told what is ``wanted``.

    Fused blocks hand on streams. A block that is looked at, wrapped or replaced is called as any module is, and takes
    and returns the sum. ``residual_dtype``: see :class:`~mae_dfer.models.config.ModelConfig`.
    """
    if residual_dtype == "autocast":
        x = x.to(autocast_dtype(x))
    stream = Residual(x)
    last = len(blocks) - 1
    for index, block in enumerate(blocks):
        arguments = wanted if index == last else ()
        if _hands_on_streams(block):
            with cast_together(block):
                stream = cast(Any, block).of_stream(stream, *arguments)
        else:
            stream = Residual(block(stream.added(), *arguments))
    return stream.added()


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _hands_on_streams(block: nn.Module) -> bool:
    looked_at = nn.modules.module._has_any_global_hook() or any(getattr(block, name) for name in _HOOKS)
    wrapped = "forward" in vars(block) or block._compiled_call_impl is not None
    return hasattr(block, "of_stream") and bool(block.fused) and not looked_at and not wrapped
