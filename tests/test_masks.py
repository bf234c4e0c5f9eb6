"""Masks: how many tokens are hidden, where, and from which generator."""

import numpy as np
import pytest
import torch

from mae_dfer.data.masks import random_mask, region_window_tube_mask, tube_mask
from mae_dfer.errors import UserError

PAPER = (8, 10, 10)


def rng(seed=0):
    return np.random.default_rng(seed)


def windows(mask, grid, window):
    """(t, windows, wh, ww) view of a raster-order mask, cut by hand."""
    t, h, w = grid
    wh, ww = window
    m = mask.reshape(t, h, w)
    cut = [m[:, r : r + wh, c : c + ww] for r in range(0, h, wh) for c in range(0, w, ww)]
    return torch.stack(cut, dim=1)


def test_random_mask_hides_the_ratio_of_the_clip_and_is_no_tube():
    mask = random_mask(PAPER, 0.9, rng())
    assert mask.dtype == torch.bool and mask.shape == (800,)
    assert mask.sum() == 720
    per_step = mask.reshape(8, -1)
    assert not (per_step == per_step[0]).all()


def test_tube_mask_repeats_one_spatial_mask():
    mask = tube_mask(PAPER, 0.75, rng()).reshape(8, 100)
    assert (mask == mask[0]).all()
    assert mask[0].sum() == 75


@pytest.mark.parametrize(
    ("grid", "window", "ratio", "visible"),
    [
        (PAPER, (5, 10), 0.9, 5),  # the paper
        (PAPER, (5, 2), 0.75, 3),  # 10 − int(7.5)
        ((4, 6, 8), (3, 4), 0.5, 6),  # windows that do not span the width
    ],
)
@pytest.mark.parametrize("symmetry", ["none", "global", "local"])
def test_every_window_keeps_the_same_count_at_every_step(grid, window, ratio, visible, symmetry):
    mask = region_window_tube_mask(grid, ratio, window, rng(1), symmetry=symmetry)
    cut = windows(mask, grid, window)
    assert ((~cut).sum(dim=(2, 3)) == visible).all()
    assert (cut == cut[0]).all()


def sides(symmetry, seed):
    """Per window: True where the visible cells lie in the left half; asserts they lie in one half only."""
    cut = windows(region_window_tube_mask(PAPER, 0.9, (5, 10), rng(seed), symmetry=symmetry), PAPER, (5, 10))[
        0
    ]
    left, right = (~cut[..., :5]).any(dim=(1, 2)), (~cut[..., 5:]).any(dim=(1, 2))
    assert (left ^ right).all()
    return tuple(left.tolist())


def test_symmetric_masks_draw_the_side_once_per_clip_or_per_window():
    drawn = {"global": set(), "local": set()}
    for symmetry, seen in drawn.items():
        seen.update(sides(symmetry, seed) for seed in range(40))
    assert drawn["global"] == {(True, True), (False, False)}
    assert drawn["local"] == {(a, b) for a in (True, False) for b in (True, False)}


def test_all_cells_are_visible_equally_often():
    counts = sum((~region_window_tube_mask((1, 4, 4), 0.5, (2, 4), rng(s))).int() for s in range(400))
    assert (abs(counts - 200) < 60).all()  # 6 standard deviations


@pytest.mark.parametrize("make", [random_mask, tube_mask])
def test_generators_decide_and_nothing_else(make):
    state = torch.get_rng_state()
    same = [make(PAPER, 0.9, rng(3)) for _ in range(2)]
    torches = [make(PAPER, 0.9, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*same) and torch.equal(*torches)
    one = torch.Generator().manual_seed(3)
    assert not torch.equal(make(PAPER, 0.9, one), make(PAPER, 0.9, one))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"window": (4, 10)}, "divide"),
        ({"window": (0, 10)}, "divide"),
        ({"ratio": 1.0}, "between 0 and 1"),
        ({"ratio": 0.001}, "masks nothing"),
        ({"window": (5, 5), "symmetry": "global"}, "even width"),
        ({"ratio": 0.3, "symmetry": "local"}, "more than half"),
        ({"symmetry": "left"}, "none, global, local"),
    ],
)
def test_impossible_masks_are_refused(kwargs, message):
    settings = {"ratio": 0.9, "window": (5, 10), "symmetry": "none"} | kwargs
    with pytest.raises(UserError, match=message):
        region_window_tube_mask(
            PAPER, settings["ratio"], settings["window"], rng(), symmetry=settings["symmetry"]
        )


def test_ratio_out_of_range_is_refused_by_all():
    for make in (random_mask, tube_mask):
        with pytest.raises(UserError, match="between 0 and 1"):
            make(PAPER, 1.5, rng())
