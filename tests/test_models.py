"""Models: sizes, cost, variants, fused against eager, compilation, options. Numbers: test_golden.py."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from mae_dfer import create_model, list_models
from mae_dfer.losses import reconstruction_loss, reconstruction_targets

LGI, VIT = "lgi_former_tiny_patch16_160", "vit_tiny_patch16_160"
# Token grid (2, 2, 4); regions of 1 × 2 × 2 tokens: 4 of them, narrower than the grid.
SIZES = {"img_size": (32, 64), "num_frames": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
REGION = {"region_size": (1, 2, 2)}
DECODER = {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 1}
VARIANTS = {
    "paper": {},
    "pool_local": {"pool": "local"},
    "pool_all": {"pool": "all"},
    "representative": {"local_attention": "representative", "pool": "local"},
    "no_global": {"global_attention": False},
    "no_exchange": {"exchange": "none"},
    "exchange_self": {"exchange": "self"},
    "neither": {"global_attention": False, "exchange": "none"},
    "share_local_exchange": {"share_attention": "local_exchange"},
    "share_all": {"share_attention": "all"},
    "share_all_no_global": {"share_attention": "all", "global_attention": False},
    "share_all_no_exchange": {"share_attention": "all", "exchange": "none"},
    "representative_share_all_self": {
        "local_attention": "representative",
        "share_attention": "all",
        "exchange": "self",
    },
}


def make(name=LGI, seed=0, **overrides):
    """A small model whose every parameter, biases too, is random and of a useful size."""
    torch.manual_seed(seed)
    sizes = SIZES | (REGION if "lgi" in name else {}) | (DECODER if name.startswith("mae_") else {})
    model = create_model(name, **sizes | overrides)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    return model


def make_clip(batch=2, seed=1, size=(4, 32, 64)):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


def make_mask(visible):
    """A clip's mask (1, tokens) from the raster indices of its visible tokens."""
    mask = torch.ones(1, 16, dtype=torch.bool)
    mask[0, visible] = False
    return mask


# Two visible tokens of each region: listed by region, the first clip's are in raster order, the second's are not.
MASK = torch.cat((make_mask([0, 1, 2, 3, 8, 9, 10, 11]), make_mask([1, 4, 2, 7, 8, 13, 10, 15])))


def on_meta(name, **overrides):
    with torch.device("meta"):
        return create_model(name, **overrides)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("lgi_former_base_patch16_160", 84_878_343),
        ("vit_base_patch16_160", 86_232_583),
        ("mae_lgi_former_base_patch16_160", 92_760_192),
    ],
)
def test_parameters_of_the_paper(name, count):
    assert sum(parameter.numel() for parameter in on_meta(name).parameters()) == count


def test_parameters_of_a_vit_of_the_same_width_and_depth():
    model = on_meta("vit_base_patch16_160", embed_dim=512, depth=16, num_heads=8)
    assert sum(parameter.numel() for parameter in model.parameters()) == 51_221_511


@pytest.mark.parametrize(
    ("name", "fused", "gmacs"),
    [
        ("lgi_former_base_patch16_160", False, 49.65),
        ("vit_base_patch16_160", False, 80.69),
        # Two projections of every token are absorbed by the exchange; the last block makes its representatives alone.
        ("lgi_former_base_patch16_160", True, 41.09),
    ],
)
def test_multiply_accumulates_of_the_paper(name, fused, gmacs):
    model = on_meta(name, fused_attn=fused).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, 16, 160, 160, device="meta"))
    assert round(counter.get_total_flops() / 2e9, 2) == gmacs


def test_every_listed_model_can_be_made():
    sizes = ("lgi_former_tiny", "lgi_former_small", "lgi_former_base", "vit_tiny", "vit_small", "vit_base")
    names = {f"{prefix}{size}_patch16_160" for size in sizes for prefix in ("", "mae_")}
    assert set(list_models()) == names
    for name in names:
        model = on_meta(name)
        assert model.config.name == name
        assert hasattr(model, "decoder") == name.startswith("mae_")


def run(model, clip):
    """Output, and gradients of a loss whose every output matters."""
    model.zero_grad()
    output = model(clip, MASK) if model.config.is_mae else model(clip)
    (output * torch.linspace(-1, 1, output.numel()).view(output.shape)).sum().backward()
    return output.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_fused_matches_eager(name, **overrides):
    fused, eager = make(name, fused_attn=True, **overrides), make(name, fused_attn=False, **overrides)
    assert list(fused.state_dict()) == list(eager.state_dict())
    eager.load_state_dict(fused.state_dict())
    (output, gradients), (expected, expected_gradients) = run(fused, make_clip()), run(eager, make_clip())
    torch.testing.assert_close(output, expected, rtol=2e-4, atol=2e-5)
    for name, gradient in expected_gradients.items():
        assert gradient is not None and gradients[name] is not None, name
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))
    return expected_gradients


@pytest.mark.parametrize("variant", VARIANTS)
def test_fused_matches_eager_in_every_variant(variant):
    gradients = assert_fused_matches_eager(LGI, **VARIANTS[variant])
    # All takes part but what cannot reach the logits: the last exchange where only representatives are pooled.
    idle = {name for name, gradient in gradients.items() if not gradient.abs().max() > 0}
    options = {"pool": "representative", "exchange": "cross", "share_attention": "none"} | VARIANTS[variant]
    if (options["pool"], options["exchange"]) == ("representative", "cross"):
        assert idle and all(name.startswith("encoder.blocks.1.exchange_") for name in idle)
    else:
        assert not idle


@pytest.mark.parametrize("variant", ["paper", "representative", "exchange_self", "share_all", "neither"])
def test_fused_matches_eager_in_pretraining(variant):
    overrides = {name: value for name, value in VARIANTS[variant].items() if name != "pool"}
    assert_fused_matches_eager("mae_" + LGI, **overrides)


@pytest.mark.parametrize("name", [VIT, "mae_" + VIT])
def test_fused_matches_eager_in_the_vit(name):
    assert_fused_matches_eager(name)


def test_fused_model_calls_the_region_kernel(monkeypatch):
    calls = []

    def record(qkv, num_heads, **options):
        calls.append((tuple(qkv.shape), num_heads))
        return torch.zeros(*qkv.shape[:2], qkv.shape[2] // 3)

    monkeypatch.setattr("mae_dfer.models.layers.region_attention", record)
    make(fused_attn=False)(make_clip())
    assert calls == []
    make(fused_attn=True)(make_clip())
    # Inside the 4 regions of a clip, of 1 + 4 tokens, and among their representative tokens. In the second block, the
    # last, nobody needs what local tokens would read.
    regions, representatives = ((2 * 4, 5, 3 * 32), 2), ((2, 4, 3 * 32), 2)
    assert calls == [regions, representatives, representatives]


def test_compiles_to_one_graph():
    model = make(depth=1).eval()
    clip = make_clip(1)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True)(clip)
        torch.testing.assert_close(compiled, model(clip), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [LGI, "mae_" + LGI, VIT])
def test_blocks_take_and_return_tensors_from_whoever_looks(name):
    """Fused blocks hand on a sum that is not made yet; hooks, wrappers and what stands in for a block get it made."""
    inputs = (make_clip(), MASK) if "mae" in name else (make_clip(),)
    model, eager = make(name, depth=3).double(), make(name, depth=3, fused_attn=False).double()
    inputs = tuple(value.double() if value.is_floating_point() else value for value in inputs)
    seen = {}
    for label, each in (("fused", model), ("eager", eager)):
        for index, block in enumerate(each.encoder.blocks):
            block.register_forward_hook(lambda _, args, out, key=(label, index): seen.update({key: out}))
        each(*inputs)
    for index in range(2):
        torch.testing.assert_close(seen["fused", index], seen["eager", index], rtol=1e-10, atol=1e-10)

    plain = make(name, depth=3).double()
    plain(*inputs).square().sum().backward()
    wrapped = make(name, depth=3).double()
    for block in wrapped.encoder.blocks[:2]:
        forward = block.forward
        block.forward = lambda x, forward=forward: checkpoint(forward, x, use_reentrant=True)
    wrapped(*inputs).square().sum().backward()
    for ours, again in zip(plain.parameters(), wrapped.parameters(), strict=True):
        torch.testing.assert_close(again.grad, ours.grad, rtol=1e-9, atol=1e-12)
    wrapped.encoder.blocks[1] = torch.nn.Identity()
    assert wrapped(*inputs).isfinite().all()


def test_training_with_all_that_is_dropped_compiles_to_one_graph():
    model = make(depth=2, drop_path_rate=0.3, drop_rate=0.1, attn_drop_rate=0.1).train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled(make_clip()).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", [LGI, "mae_" + LGI])
def test_autocast_trains(name, fused):
    """With a residual stream in float32 and in bfloat16, which the blocks then get; both near what float32 gives."""
    inputs = (make_clip(), MASK) if "mae" in name else (make_clip(),)
    exact = make(name, fused_attn=fused)(*inputs)
    for residual_dtype, stream in (("parameters", torch.float32), ("autocast", torch.bfloat16)):
        model = make(name, fused_attn=fused, residual_dtype=residual_dtype)
        seen = set()
        for block in model.encoder.blocks:
            block.register_forward_hook(lambda _, args, out, seen=seen: seen.add(args[0].dtype))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(*inputs)
        output.float().square().mean().backward()
        assert seen == {stream}
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
        assert (output - exact).norm() <= 0.03 * exact.norm()


# Tokens in and out of regions, through the model.


@pytest.mark.parametrize("region", [(1, 2, 2), (2, 1, 4), (2, 2, 1), (2, 2, 4), (1, 1, 1)], ids=str)
def test_encoding_all_tokens_as_visible_is_encoding_the_clip(region):
    encoder = make("mae_" + LGI, region_size=region).encoder
    nothing_masked = torch.zeros(2, 16, dtype=torch.bool)
    torch.testing.assert_close(
        encoder(make_clip(), encoder.visible_indices(nothing_masked)),
        encoder(make_clip()),
        rtol=1e-4,
        atol=1e-4,
    )


def test_local_step_sees_its_own_region_alone():
    encoder = make(depth=1, global_attention=False, exchange="none").encoder.eval()
    clip = make_clip(1)
    changed = clip.clone()
    changed[:, :, 2:, :, 32:] += 1.0  # second half in time and in width: the last region
    moved = (encoder(clip) - encoder(changed)).abs().amax(dim=(0, 2, 3)) > 1e-4
    assert moved.tolist() == [False, False, False, True]


def test_hidden_pixels_do_not_reach_the_prediction():
    model = make("mae_" + LGI).eval()
    clip = make_clip()
    changed = clip + 10 * MASK.view(2, 1, 2, 2, 4).repeat_interleave(2, 2).repeat_interleave(16, 3).repeat_interleave(
        16, 4
    )
    assert not torch.equal(clip, changed)
    torch.testing.assert_close(model(clip, MASK), model(changed, MASK))


def test_each_clip_of_a_batch_has_its_own_mask():
    model = make("mae_" + LGI).eval()
    clip = make_clip()
    both = model(clip, MASK)
    for index in range(2):
        alone = model(clip[index : index + 1], MASK[index : index + 1])
        torch.testing.assert_close(both[index : index + 1], alone, rtol=1e-4, atol=1e-4)


def test_decoder_positions():
    """Aligned: the order in which visible tokens are listed is nothing. Published: it is in raster order."""
    aligned = make("mae_" + LGI).eval()
    published = make("mae_" + LGI, decoder_positions="published").eval()
    clip = make_clip()
    visible, masked = aligned.split_tokens(MASK, clip)
    latent = aligned.forward_encoder(clip, visible)
    shuffle = torch.tensor([2, 0, 3, 1, 7, 5, 6, 4])
    torch.testing.assert_close(
        aligned.forward_decoder(latent, visible, masked),
        aligned.forward_decoder(latent[:, shuffle], visible[:, shuffle], masked),
        rtol=1e-4,
        atol=1e-4,
    )
    assert visible.tolist() == [[0, 1, 2, 3, 8, 9, 10, 11], [1, 4, 2, 7, 8, 13, 10, 15]]
    difference = (aligned(clip, MASK) - published(clip, MASK)).abs().amax(dim=(1, 2))
    assert difference[0] == 0 and difference[1] > 1e-3
    raster = published.forward_decoder(latent, visible.sort(dim=1).values, masked)
    torch.testing.assert_close(published(clip, MASK), raster)


def test_one_batch_can_be_learnt():
    torch.manual_seed(0)
    model = create_model("mae_" + LGI, **SIZES, **REGION, **DECODER)
    clip = make_clip()
    target = reconstruction_targets(clip, MASK)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        losses.append(reconstruction_loss(model(clip, MASK), target))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


# Positions and dropout.


def test_positions_are_not_in_the_state_dict():
    names = [*make("mae_" + LGI).state_dict(), *make("mae_" + VIT).state_dict()]
    assert not any("position" in name or "order" in name for name in names)


def test_drop_path_rises_to_the_last_block():
    for name in (LGI, VIT):
        blocks = make(name, depth=5, drop_path_rate=0.1).encoder.blocks
        assert [round(block.drop_path_rate, 6) for block in blocks] == [0, 0.025, 0.05, 0.075, 0.1]
    assert make(depth=1, drop_path_rate=0.1).encoder.blocks[0].drop_path_rate == 0.0


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("rate", ["drop_rate", "attn_drop_rate"])
def test_dropout_repeats_with_the_seed_and_is_off_in_evaluation(rate, fused):
    model, clip = make(fused_attn=fused, **{rate: 0.5}), make_clip()
    outputs = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        outputs.append(model(clip))
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])
    assert not torch.equal(outputs[0], model(clip))  # the next step draws anew
    plain = make(fused_attn=fused)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(clip), plain.eval()(clip))


# Initialisation and parameter groups.


def test_initialisation_of_the_classifier():
    torch.manual_seed(0)
    model = create_model(LGI)
    for name in ("encoder.blocks.0.local_attn.qkv", "encoder.blocks.3.mlp.fc1"):
        assert model.get_parameter(name + ".weight").std().item() == pytest.approx(0.02, rel=0.05)
    assert model.encoder.representative_tokens.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.head.weight.std().item() == pytest.approx(2e-5, rel=0.15)
    assert model.encoder.patch_embed.proj.weight.abs().max().item() == pytest.approx(1536**-0.5, rel=0.01)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") and "patch_embed" not in name:
            assert not parameter.any(), name


def test_initialisation_of_pretraining():
    torch.manual_seed(0)
    model = create_model("mae_" + LGI)
    dim = model.config.embed_dim
    qkv = model.encoder.blocks[0].local_attn.qkv.weight
    for weight, fan in (
        (qkv[:dim], 2 * dim),  # q and kv are two layers in the published code,
        (qkv[dim:], 3 * dim),
        (model.decoder.blocks[0].attn.qkv.weight, 4 * 128),  # and one in the decoder's blocks
        (model.encoder.blocks[0].mlp.fc1.weight, 5 * dim),
        (model.encoder.patch_embed.proj.weight, 6 * 1536),  # PyTorch's own, as for encoder_to_decoder
        (model.encoder_to_decoder.weight, 6 * dim),
    ):
        assert weight.abs().max().item() == pytest.approx((6 / fan) ** 0.5, rel=0.01)
    for token in (model.encoder.representative_tokens, model.mask_token):  # cut at one standard deviation
        assert token.std().item() == pytest.approx(0.0108, rel=0.15) and token.abs().max() <= 0.02


def test_layers_of_learning_rate_decay():
    model = make(depth=3)
    assert model.num_layers == 5
    layers = {name: model.layer_index(name) for name, _ in model.named_parameters()}
    assert layers["encoder.patch_embed.proj.weight"] == 0
    assert layers["encoder.blocks.0.mlp.fc1.weight"] == 1
    assert layers["encoder.blocks.2.exchange_attn.q_bias"] == 3
    for name in ("encoder.representative_tokens", "fc_norm.weight", "head.bias"):
        assert layers[name] == 4
    mae = make("mae_" + LGI)
    assert mae.layer_index("decoder.blocks.0.mlp.fc1.weight") == mae.num_layers - 1


def test_weight_decay_leaves_tokens_and_one_dimensional_parameters_alone():
    model = make("mae_" + LGI)
    exempt = model.no_weight_decay()
    assert {"mask_token", "encoder.representative_tokens", "encoder.blocks.0.local_attn.q_bias"} <= exempt
    for name, parameter in model.named_parameters():
        assert (name in exempt) == (parameter.ndim == 1 or name.endswith(("token", "tokens"))), name
