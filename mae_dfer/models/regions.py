"""Tokens in raster order, in region order, and behind a mask: pure functions of sizes and indices.

Letters: B clips, (T, H, W) token grid, (t, h, w) region, N regions of a clip, L = t·h·w tokens of a region,
C channels. Raster order runs over (T, H, W) with W fastest; region order runs over regions in raster order
and, inside each, over (t, h, w).
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from ..errors import UserError


def partition(tokens: Tensor, grid: tuple[int, int, int], region: tuple[int, int, int]) -> Tensor:
    """Raster order to regions: (B, T·H·W, C) → (B, N, L, C), ``(nt t)(nh h)(nw w) → (nt nh nw)(t h w)``."""
    return rearrange(tokens, "b (nt t nh h nw w) c -> b (nt nh nw) (t h w) c", **_split(grid, region))


def merge(regions: Tensor, grid: tuple[int, int, int], region: tuple[int, int, int]) -> Tensor:
    """The inverse of :func:`partition`: (B, N, L, C) → (B, T·H·W, C)."""
    return rearrange(regions, "b (nt nh nw) (t h w) c -> b (nt t nh h nw w) c", **_split(grid, region))


def _split(grid: tuple[int, int, int], region: tuple[int, int, int]) -> dict[str, int]:
    """Regions along each axis of the grid (nt, nh, nw), and tokens along each axis of a region (t, h, w)."""
    names = ("nt", "nh", "nw"), ("t", "h", "w")
    counts = [size // part for size, part in zip(grid, region, strict=True)]
    return dict(zip((*names[0], *names[1]), (*counts, *region), strict=True))


def region_order(grid: tuple[int, int, int], region: tuple[int, int, int]) -> Tensor:
    """(N, L) int64: the raster index of every token, in region order."""
    raster = torch.arange(grid[0] * grid[1] * grid[2]).view(1, -1, 1)
    return partition(raster, grid, region)[0, :, :, 0]


def check_mask(mask: Tensor, batch: int, num_tokens: int) -> None:
    """Raises :class:`UserError` unless ``mask`` is a bool (B, tokens) tensor."""
    if mask.dtype != torch.bool or mask.shape != (batch, num_tokens):
        raise UserError(
            f"the mask must be bool of shape (batch, tokens) = {(batch, num_tokens)}, True for masked; "
            f"got {str(mask.dtype).removeprefix('torch.')} of shape {tuple(mask.shape)}"
        )


def token_indices(chosen: Tensor) -> Tensor:
    """Raster indices of the chosen tokens of every clip: bool (B, tokens) → int64 (B, K), ascending.

    Raises:
        UserError: clips with different counts, or with none; the message names the counts.
    """
    counts = chosen.sum(dim=1)
    if not bool((counts == counts[0]).all()) or not bool(counts[0] > 0):
        raise UserError(
            "every clip of a batch must mask, and leave visible, the same positive number of tokens; "
            f"got {_list(counts)}"
        )
    order = torch.arange(chosen.shape[1], device=chosen.device)
    return order.expand_as(chosen)[chosen].view(chosen.shape[0], -1)


def visible_by_region(mask: Tensor, order: Tensor) -> Tensor:
    """Raster indices of the visible tokens, grouped by region.

    The published code regroups ``(nt t nhw hw) → (nt nhw)(t hw)``, which is right only where a region spans
    the full width of the grid; this gathers by region and holds for every region size.

    Args:
        mask: (B, tokens) bool, True = masked.
        order: (N, L) from :func:`region_order`.

    Returns:
        (B, N, K) int64 where K is the visible tokens of a region, each region's in its own raster order.

    Raises:
        UserError: regions with different numbers of visible tokens, or with none; the message names the
        counts.
    """
    visible = ~mask[:, order.to(mask.device)]
    counts = visible.sum(dim=2)
    if not bool((counts == counts[0, 0]).all()) or not bool(counts[0, 0] > 0):
        clip = int((counts != counts[0, 0]).any(dim=1).int().argmax())
        raise UserError(
            "the mask must leave the same positive number of tokens visible in every region, but clip "
            f"{clip} has {_list(counts[clip])} (the first region of clip 0 has {int(counts[0, 0])}); "
            "use a window mask whose window is the region's height and width"
        )
    order = order.to(mask.device).expand_as(visible)
    return order[visible].view(*visible.shape[:2], -1)


def gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """(B, tokens, C) at (B, K) → (B, K, C)."""
    return tokens.gather(1, indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def _list(counts: Tensor) -> str:
    """The first few counts, in a form that fits one line."""
    values = counts.tolist()
    return f"{values}" if len(values) <= 16 else f"{values[:16]} and {len(values) - 16} more"
