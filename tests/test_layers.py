"""The parts of a block: position table and stochastic depth."""

import pytest
import torch

from mae_dfer.models import ModelConfig
from mae_dfer.models.layers import Attention, Mlp, drop_path, sincos_positions
from mae_dfer.models.lgi_former import LGIBlock

# Token grid (2, 2, 4); regions of 1 × 2 × 2 tokens: 4 of them.
SIZES = {
    "img_size": (32, 64),
    "num_frames": 4,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "region_size": (1, 2, 2),
}


def test_position_table():
    table = sincos_positions(800, 6)
    assert table.shape == (800, 6) and table.dtype == torch.float32
    for position in (0, 1, 799):
        for j in range(6):
            angle = torch.tensor(position / 10000 ** (2 * (j // 2) / 6), dtype=torch.float64)
            assert table[position, j] == (angle.sin() if j % 2 == 0 else angle.cos()).float()


def test_drop_path_draws_and_scales():
    torch.manual_seed(0)
    x = torch.ones(64, 8, 3, 2)
    per_region, per_clip = drop_path(x, 0.5, True, 2), drop_path(x, 0.5, True, 1)
    assert set(per_region.unique().tolist()) == set(per_clip.unique().tolist()) == {0.0, 2.0}
    for dropped, rows in ((per_region, per_region.flatten(0, 1)), (per_clip, per_clip)):
        flat = rows.flatten(1)
        assert (flat == flat[:, :1]).all()  # one draw a row
        assert dropped.mean().item() == pytest.approx(1.0, abs=0.3)
    assert (per_region[:, :, 0, 0].std(dim=1) > 0).any()  # regions of a clip differ
    assert drop_path(x, 0.5, False, 2) is x


@pytest.mark.parametrize(
    ("branch", "options", "per_region"),
    [
        ("local_attn", {}, True),
        ("local_attn", {"local_attention": "representative"}, True),
        ("global_attn", {}, False),
        ("exchange_attn", {}, False),
        ("exchange_attn", {"exchange": "self"}, True),
        ("mlp", {}, True),
    ],
    ids=["local", "local_representative", "global", "exchange_cross", "exchange_self", "mlp"],
)
def test_stochastic_depth_draws_per_region_or_per_clip(branch, options, per_region):
    config = ModelConfig(name="lgi_former_tiny_patch16_160", **SIZES, **options, fused_attn=False)
    torch.manual_seed(0)
    block = LGIBlock(config, drop_path_rate=0.5).train()
    # All other branches add nothing, so what changes a region is the branch in question.
    for name, module in block.named_children():
        if isinstance(module, (Attention, Mlp)) and name != branch:
            for parameter in (module.proj if isinstance(module, Attention) else module.fc2).parameters():
                parameter.data.zero_()
    x = torch.randn(64, 4, 5, 32)
    changed = (block(x) - x).abs().amax(dim=(2, 3)) > 0  # (clips, regions)
    assert 0.3 < changed.float().mean() < 0.7
    assert bool((changed == changed[:, :1]).all()) != per_region
