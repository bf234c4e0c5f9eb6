"""The parts of a block: position table, stochastic depth, and one query of a context."""

import contextlib

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from mae_dfer.models import ModelConfig, layers
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


def one_query(dtype, fused=True, *, context=5, channels=32, num_heads=4, **drop_rates):
    """What attends, and its arguments: a query of each of 2 × 3 contexts, and two norms."""
    torch.manual_seed(0)
    norms = nn.LayerNorm(channels), nn.LayerNorm(channels)
    modules = (Attention(channels, num_heads, fused=fused, **drop_rates), *norms)
    for parameter in nn.ModuleList(modules).to(dtype).parameters():
        nn.init.normal_(parameter, std=0.3)
    tokens = (torch.randn(2, 3, count, channels, dtype=dtype, requires_grad=True) for count in (1, context))
    return modules, tuple(tokens)


def attend(modules, tokens):
    attention, norm, context_norm = modules
    return attention.cross(tokens[0], norm, tokens[1], context_norm)


@pytest.mark.parametrize("drop_rates", [{}, {"attn_drop_rate": 0.4, "drop_rate": 0.2}], ids=["", "dropout"])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16], ids=str)
def test_one_query_reads_as_of_keys_and_values(autocast, drop_rates):
    """Outputs, gradients and second derivatives of the eager code, whose dropout draws the same."""
    found = []
    for fused in (True, False):
        modules, tokens = one_query(torch.float32 if autocast else torch.float64, fused, **drop_rates)
        if fused:
            modules[0]._attend = None  # it would take keys and values
        inputs = (*tokens, *nn.ModuleList(modules).parameters())
        torch.manual_seed(1)
        with torch.autocast("cpu", autocast) if autocast else contextlib.nullcontext():
            out = attend(modules, tokens)
        loss = out.to(tokens[0].dtype).square().sum()
        gradients = torch.autograd.grad(loss, inputs, create_graph=not autocast)
        second = () if autocast else torch.autograd.grad(sum(g.square().sum() for g in gradients), inputs)
        found.append([out, *gradients, *second])
    for ours, right in zip(*found, strict=True):
        assert ours.dtype == right.dtype
        assert (ours - right).norm() <= (0.02 if autocast else 1e-10) * right.norm()


def test_one_query_can_be_transformed():
    modules, tokens = one_query(torch.float64)

    def gradients(*tokens):
        return torch.func.grad(lambda *tokens: attend(modules, tokens).square().sum(), argnums=(0, 1))(*tokens)

    many = [torch.stack((value.detach(), value.detach().sin()), dim=1) for value in tokens]
    together = torch.func.vmap(gradients, in_dims=1)(*many)
    for index in range(2):
        for found, right in zip(together, gradients(*(value[:, index] for value in many)), strict=True):
            torch.testing.assert_close(found[index], right, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("context", "num_heads"), [(1, 4), (2, 4), (9, 4), (2, 32), (33, 32)])
def test_one_query_takes_the_way_of_fewer_products(context, num_heads, monkeypatch):
    modules, tokens = one_query(torch.float32, context=context, num_heads=num_heads)

    def flops():
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            attend(modules, tokens)
        return counter.get_total_flops()

    taken, both = flops(), []
    for folds in (True, False):
        monkeypatch.setattr(layers, "folding_pays", lambda *sizes, folds=folds: folds)
        both.append(flops())
    assert taken == min(both)


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
def test_one_query_copies_no_context_and_keeps_it_once(autocast):
    """Nothing that is as large but the normalised context, where there were keys, values, and copies of both."""
    modules, tokens = one_query(torch.float32, context=64)
    given = {value.untyped_storage().data_ptr() for value in (*tokens, *nn.ModuleList(modules).parameters())}
    size, kept = tokens[1].numel(), {}

    def note(tensor):
        if tensor.untyped_storage().data_ptr() not in given:
            kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
        hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
        with hooks, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = attend(modules, tokens)
        out.sum().backward()
    assert sum(kept.values()) < 2 * size
    copied = [event.input_shapes[0] for event in profiled.events() if event.name == "aten::copy_"]
    assert all(torch.Size(shape).numel() < size for shape in copied), copied
