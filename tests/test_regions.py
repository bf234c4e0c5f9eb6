"""Tokens in and out of regions, against loops over the grid."""

import pytest
import torch

from mae_dfer.models.regions import merge, partition, region_order, visible_by_region

# As published, narrower than the grid, one axis only, the whole grid, single tokens.
CASES = [
    ((8, 10, 10), (2, 5, 10)),
    ((4, 4, 6), (2, 2, 3)),
    ((4, 4, 6), (4, 1, 2)),
    ((2, 3, 5), (2, 3, 5)),
    ((2, 3, 5), (1, 1, 1)),
]


def regions_by_loops(grid, region):
    """Raster indices of each region's tokens."""
    regions = []
    for t0 in range(0, grid[0], region[0]):
        for h0 in range(0, grid[1], region[1]):
            for w0 in range(0, grid[2], region[2]):
                regions.append(
                    [
                        (t * grid[1] + h) * grid[2] + w
                        for t in range(t0, t0 + region[0])
                        for h in range(h0, h0 + region[1])
                        for w in range(w0, w0 + region[2])
                    ]
                )
    return regions


@pytest.mark.parametrize(("grid", "region"), CASES, ids=str)
def test_partition_and_merge_undo_each_other(grid, region):
    tokens = torch.randn(2, grid[0] * grid[1] * grid[2], 3)
    regions = partition(tokens, grid, region)
    expected = regions_by_loops(grid, region)
    assert region_order(grid, region).tolist() == expected
    assert torch.equal(regions, tokens[:, torch.tensor(expected)])
    assert torch.equal(merge(regions, grid, region), tokens)


@pytest.mark.parametrize(("grid", "region"), CASES[:3], ids=str)
def test_visible_tokens_are_grouped_by_region(grid, region):
    generator = torch.Generator().manual_seed(0)
    regions = regions_by_loops(grid, region)
    mask = torch.ones(3, grid[0] * grid[1] * grid[2], dtype=torch.bool)
    for row in mask:
        for tokens in regions:
            row[torch.tensor(tokens)[torch.randperm(len(tokens), generator=generator)[:3]]] = False
    expected = [[[token for token in tokens if not row[token]] for tokens in regions] for row in mask]
    assert visible_by_region(mask, region_order(grid, region)).tolist() == expected


def test_published_masks_need_no_regrouping_by_hand():
    """Full-width regions: the published ``(nt t nhw hw) → (nt nhw)(t hw)`` on visible tokens is the same."""
    grid, region = (8, 10, 10), (2, 5, 10)
    generator = torch.Generator().manual_seed(0)
    spatial = torch.ones(2, 50, dtype=torch.bool)
    for window in spatial:
        window[torch.randperm(50, generator=generator)[:5]] = False
    mask = spatial.flatten().repeat(8).view(1, -1)
    raster = (~mask[0]).nonzero().flatten()
    published = raster.view(4, 2, 2, 5).transpose(1, 2).reshape(1, 8, 10)
    assert torch.equal(visible_by_region(mask, region_order(grid, region)), published)
