"""Which elements dropout keeps: one mask for a seed, the same on every backend."""

from __future__ import annotations

import torch
from torch import Tensor

_MASK32 = 0xFFFFFFFF
_PHILOX_ROUNDS = 10
_PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_PHILOX_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)


def dropout_keep_mask(
    regions: int,
    num_heads: int,
    tokens: int,
    dropout_p: float,
    seed: int,
    device: torch.device | str | None = None,
) -> Tensor:
    """Which probabilities dropout keeps: bool (R, H, S, S), the same on every backend.

    Element (r, h, i, j) takes output ``j % 4`` of Philox-4x32-10 (Salmon et al., 2011) at counter
    ``(j // 4, i, r*H + h, 0)`` under key ``(seed & 0xffffffff, seed >> 32)``, and is kept if that 32-bit
    output is at least ``dropout_p * 2**32``.
    """
    groups = (tokens + 3) // 4
    matrices = torch.arange(regions * num_heads, dtype=torch.int64, device=device).view(-1, 1, 1)
    rows = torch.arange(tokens, dtype=torch.int64, device=device).view(1, -1, 1)
    columns = torch.arange(groups, dtype=torch.int64, device=device).view(1, 1, -1)
    counter = torch.broadcast_tensors(columns, rows, matrices, torch.zeros_like(columns))
    words = torch.stack(_philox(counter, (seed & _MASK32, seed >> 32)), dim=-1)
    words = words.view(regions, num_heads, tokens, groups * 4)[..., :tokens]
    return words >= dropout_threshold(dropout_p)


def dropout_threshold(dropout_p: float) -> int:
    """The 32-bit word from which on an element is kept."""
    return min(round(dropout_p * 2**32), _MASK32)


def _philox(counter: tuple[Tensor, ...] | list[Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Philox-4x32-10 on 32-bit words held in int64."""
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(_PHILOX_ROUNDS):
        # A product of two 32-bit words may wrap int64's sign; its bits are right all the same.
        product0, product1 = x0 * _PHILOX_MULTIPLIERS[0], x2 * _PHILOX_MULTIPLIERS[1]
        high0, low0 = (product0 >> 32) & _MASK32, product0 & _MASK32
        high1, low1 = (product1 >> 32) & _MASK32, product1 & _MASK32
        x0, x1, x2, x3 = high1 ^ x1 ^ k0, low1, high0 ^ x3 ^ k1, low0
        k0, k1 = (k0 + _PHILOX_KEY_STEPS[0]) & _MASK32, (k1 + _PHILOX_KEY_STEPS[1]) & _MASK32
    return [x0, x1, x2, x3]
