"""Masks for masked autoencoding: which tokens of a clip the encoder does not see.

Letters: token grid (t, h, w); a mask is a bool tensor of t·h·w entries in raster order, True = masked.
All masks but :func:`random_mask` are tubes (VideoMAE, arXiv 2203.12602): the same cells at every time step.
Randomness comes from the generator that is passed in, NumPy's or torch's, and from nowhere else.
"""

from __future__ import annotations

import numpy as np
import torch

from mae_dfer.errors import UserError

Grid = tuple[int, int, int]
Rng = np.random.Generator | torch.Generator

SYMMETRIES = ("none", "global", "local")


def _numpy(generator: Rng) -> np.random.Generator:
    if isinstance(generator, torch.Generator):
        seed = torch.randint(2**63 - 1, (), generator=generator, device=generator.device)
        return np.random.default_rng(int(seed))
    return generator


def _count(ratio: float, cells: int, what: str) -> int:
    """Masked cells among ``cells``: int(ratio · cells), with at least one masked and one visible."""
    if not 0.0 < ratio < 1.0:
        raise UserError(f"the mask ratio must lie between 0 and 1, got {ratio}")
    masked = int(ratio * cells)
    if masked == 0:
        raise UserError(f"mask ratio {ratio} masks nothing of the {cells} tokens of {what}: use a larger one")
    return masked


def _check_grid(grid: Grid) -> Grid:
    if len(grid) != 3 or min(grid) < 1:
        raise UserError(f"the token grid must be three positive numbers (t, h, w), got {grid}")
    return grid


def _choose(pool: np.ndarray, visible: int, rng: np.random.Generator) -> np.ndarray:
    return rng.permutation(pool)[:visible]


def _tube(hidden: np.ndarray, t: int) -> torch.Tensor:
    return torch.from_numpy(np.tile(hidden.reshape(-1), t))


def random_mask(grid: Grid, ratio: float, generator: Rng) -> torch.Tensor:
    """int(ratio · t·h·w) masked tokens anywhere. Returns bool (t·h·w,)."""
    t, h, w = _check_grid(grid)
    tokens = t * h * w
    masked = _count(ratio, tokens, "the clip")
    hidden = np.zeros(tokens, dtype=bool)
    hidden[_choose(np.arange(tokens), masked, _numpy(generator))] = True
    return torch.from_numpy(hidden)


def tube_mask(grid: Grid, ratio: float, generator: Rng) -> torch.Tensor:
    """The same int(ratio · h·w) masked cells at every time step. Returns bool (t·h·w,)."""
    t, h, w = _check_grid(grid)
    masked = _count(ratio, h * w, "a time step")
    hidden = np.zeros(h * w, dtype=bool)
    hidden[_choose(np.arange(h * w), masked, _numpy(generator))] = True
    return _tube(hidden, t)


def region_window_tube_mask(
    grid: Grid, ratio: float, window: tuple[int, int], generator: Rng, *, symmetry: str = "none"
) -> torch.Tensor:
    """A tube that keeps the same number of tokens in every spatial window of the regions.

    Each window of (wh, ww) cells keeps wh·ww − int(ratio · wh·ww) random cells visible, so that every region
    of LGI-Former has the same number of visible tokens (MAE-DFER, arXiv 2307.02227: ratio 0.9 and
    window (5, 10) keep 5).

    ``symmetry`` hides one half of every window, as a face is nearly symmetric: the visible cells all lie in
    the left or the right half, the side drawn once per clip ("global") or once per window ("local").

    Returns bool (t·h·w,). Raises UserError for a window that does not divide the grid, or one whose half
    cannot hold the visible cells.
    """
    t, h, w = _check_grid(grid)
    wh, ww = window
    if wh < 1 or ww < 1 or h % wh or w % ww:
        raise UserError(f"mask window {wh}×{ww} must divide the token grid {h}×{w}")
    visible = wh * ww - _count(ratio, wh * ww, f"a window of {wh}×{ww}")
    if symmetry not in SYMMETRIES:
        raise UserError(f"mask symmetry must be one of {', '.join(SYMMETRIES)}; got {symmetry!r}")
    if symmetry != "none":
        if ww % 2:
            raise UserError(f"a symmetric mask needs windows of even width, got {wh}×{ww}")
        if visible > wh * ww // 2:
            raise UserError(
                f"mask ratio {ratio} leaves {visible} visible cells, more than half a window of {wh}×{ww}: "
                "a symmetric mask needs a ratio of 0.5 or more"
            )

    rng = _numpy(generator)
    cells = np.arange(wh * ww).reshape(wh, ww)
    halves = (cells[:, : ww // 2].reshape(-1), cells[:, ww // 2 :].reshape(-1))
    clip_side = int(rng.integers(2)) if symmetry == "global" else 0
    hidden = np.ones((h // wh, w // ww, wh * ww), dtype=bool)
    for one in hidden.reshape(-1, wh * ww):
        if symmetry == "none":
            pool = cells.reshape(-1)
        else:
            pool = halves[clip_side if symmetry == "global" else int(rng.integers(2))]
        one[_choose(pool, visible, rng)] = False
    # (nh nw)(wh ww) -> (nh wh)(nw ww)
    return _tube(hidden.reshape(h // wh, w // ww, wh, ww).transpose(0, 2, 1, 3), t)
