"""Linear layers that compute their input again in the backward: same results, less memory, no gradient missing."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import mae_dfer
from mae_dfer.models.linear import Linear, _Linear
from mae_dfer.models.recompute import norm_linear, residual_norm_linear, with_zero_gradients

TINY = "lgi_former_tiny_patch16_160"
BASE, AUTOENCODER = "lgi_former_base_patch16_160", "mae_lgi_former_base_patch16_160"
SIZES = {"img_size": (32, 64), "num_frames": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "region_size": (1, 2, 2)}


def tensors(dtype: torch.dtype) -> tuple[Tensor, nn.LayerNorm, nn.Linear]:
    torch.manual_seed(0)
    norm, linear = nn.LayerNorm(24, eps=1e-6).to(dtype), nn.Linear(24, 10).to(dtype)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return torch.randn(3, 5, 24, dtype=dtype, requires_grad=True), norm, linear


@pytest.mark.parametrize("kind", ["norm", "norm and its input", "residual", "residual, scaled", "linear"])
def test_gradcheck(kind: str) -> None:
    x, norm, linear = tensors(torch.float64)
    update = torch.randn_like(x, requires_grad=True)
    factors = torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64) if "scaled" in kind else None

    def with_these(norm_weight: Tensor, norm_bias: Tensor) -> nn.LayerNorm:
        other = copy.copy(norm)
        other._parameters = {"weight": norm_weight, "bias": norm_bias}
        return other

    if kind.startswith("norm"):
        inputs = (x, *norm.parameters(), *linear.parameters())

        def call(x: Tensor, norm_weight: Tensor, norm_bias: Tensor, *linear: Tensor) -> Any:
            these = with_these(norm_weight, norm_bias)
            if kind == "norm":
                return norm_linear(x, these, *linear)
            return residual_norm_linear(x, None, None, these, *linear)
    elif kind.startswith("residual"):
        inputs = (x, update, *norm.parameters(), *linear.parameters())

        def call(x: Tensor, update: Tensor, norm_weight: Tensor, norm_bias: Tensor, *linear: Tensor) -> Any:
            return residual_norm_linear(x, update, factors, with_these(norm_weight, norm_bias), *linear)
    else:
        inputs, call = (x, *linear.parameters()), _Linear.apply
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


def test_gradients_of_leaves_are_their_own() -> None:
    x, norm, linear = tensors(torch.float32)
    update = torch.randn_like(x, requires_grad=True)
    for _ in range(2):
        residual_norm_linear(x, update, None, norm, linear.weight, linear.bias)[0].sum().backward()
    assert x.grad.eq(2).all() and update.grad.eq(2).all()


def test_a_differentiable_gradient_of_a_weight_that_serves_twice() -> None:
    """The second call's gradient of the weight must not go by what the first one made of it, too."""
    x, norm, _ = tensors(torch.float64)
    weight = torch.randn(24, 24, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(24, dtype=torch.float64)

    def gradient(differentiable: bool) -> Tensor:
        first = norm_linear(x, norm, weight, bias)
        total, second = residual_norm_linear(x, first, None, norm, weight, bias)
        out = F.linear(second, weight, bias) + total
        return torch.autograd.grad(out.square().sum(), weight, create_graph=differentiable)[0]

    torch.testing.assert_close(gradient(True), gradient(False))


@pytest.mark.parametrize("bias", [False, True], ids=["without bias", "with bias"])
@pytest.mark.parametrize("shape", [(0, 24), (24,), (3, 5, 24), (2, 3, 4, 24)], ids=str)
def test_linear_by_onednn_is_linear(shape: tuple[int, ...], bias: bool) -> None:
    """Outputs and gradients, with strides, on whichever library; and the products are counted."""
    layer = Linear(24, 10, bias=bias)
    wide = torch.randn(*shape[:-1], 48)
    found = []
    for call in (layer, lambda x: F.linear(x, layer.weight, layer.bias)):
        x = wide[..., ::2].clone(memory_format=torch.preserve_format).requires_grad_()
        with FlopCounterMode(display=False) as counter:
            out = call(x)
            out.square().sum().backward()
        with torch.no_grad():
            alone = call(x)
        found.append((out, alone, x.grad, *(parameter.grad for parameter in layer.parameters())))
        layer.zero_grad()
        if len(shape) > 1:  # torch's counter knows no product of a vector
            assert counter.get_total_flops() == 3 * 2 * math.prod(shape) * 10
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize("branch", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("stream", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_under_autocast_as_plain(stream: torch.dtype, branch: bool) -> None:
    """The dtypes of autocast's own operators; and all gradients, which must come back in those of what they are of."""
    found = []
    for fused in (True, False):
        x, norm, linear = tensors(torch.float32)
        low = x.detach().to(stream).requires_grad_()
        update = torch.randn(x.shape).bfloat16().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            total = low
            if fused and branch:
                total, out = residual_norm_linear(low, update, None, norm, linear.weight, linear.bias)
            elif fused:
                out = norm_linear(low, norm, linear.weight, linear.bias)
            else:
                total = low + update if branch else low
                out = F.linear(norm(total), linear.weight, linear.bias)
        (out.float().square().sum() + total.float().square().sum()).backward()
        parameters = [*norm.parameters(), *linear.parameters()]
        gradients = [tensor.grad for tensor in (low, *parameters, *([update] if branch else []))]
        found.append([out, total, *gradients])
    for ours, plain in zip(*found, strict=True):
        assert ours.dtype == plain.dtype
        torch.testing.assert_close(ours, plain, rtol=0.03, atol=0.1)


@pytest.mark.parametrize(
    "options",
    [{}, {"pool": "local", "exchange": "none"}, {"share_attention": "all", "local_attention": "representative"},
     {"pool": "all", "exchange": "self"}, {"exchange": "none", "global_attention": False}],
    ids=str,
)  # fmt: skip
def test_zero_gradients_reach_every_parameter(options: dict[str, Any]) -> None:
    """What the last block skips has zero gradients, never None, and AdamW decays its weights as the eager model's."""
    clip = torch.randn(2, 3, 4, 32, 64)
    models = [mae_dfer.create_model(TINY, fused_attn=fused, **SIZES, **options) for fused in (True, False)]
    models[1].load_state_dict(models[0].state_dict())
    for model in models:
        model.double()(clip.double()).square().sum().backward()
    fused, eager = (dict(model.named_parameters()) for model in models)
    assert all(parameter.grad is not None for parameter in fused.values())
    if not options:
        skipped = [name for name, parameter in fused.items() if not parameter.grad.any()]
        assert any("blocks.1.exchange_attn" in name for name in skipped)
    for name, parameter in eager.items():
        torch.testing.assert_close(fused[name].grad, parameter.grad, rtol=1e-10, atol=1e-12, msg=name)
    # Nothing of this is in the way of a transform, or of second derivatives.
    second = torch.func.grad(lambda clip: torch.func.grad(lambda c: models[0](c).sum())(clip).square().sum())
    assert second(clip.double()).any()
    x, parameter = torch.ones(2, requires_grad=True), torch.full((3,), float("nan"), requires_grad=True)
    with_zero_gradients(x * 2, [parameter]).sum().backward()
    assert x.grad.tolist() == [2, 2] and parameter.grad.tolist() == [0, 0, 0]


def activation_bytes(name: str, fused: bool) -> int:
    """Distinct memory that the backward of a training step keeps, parameters apart."""
    model = mae_dfer.create_model(name, fused_attn=fused)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    inputs = [torch.randn(1, 3, 16, 160, 160)]
    if name == AUTOENCODER:
        mask = torch.ones(8, 10, 10, dtype=torch.bool)
        mask[:, ::5, ::2] = False
        inputs.append(mask.view(1, 800))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(*inputs).sum()
    return sum(kept.values())


@pytest.mark.parametrize("name", [BASE, AUTOENCODER])
def test_keeps_at_most_six_tenths_of_eager(name: str) -> None:
    assert activation_bytes(name, True) <= 0.6 * activation_bytes(name, False)


def test_differentiable_twice_where_the_stream_needs_no_gradient() -> None:
    torch.manual_seed(0)
    eager, fused = (mae_dfer.create_model(TINY, fused_attn=kind, **SIZES).double() for kind in (False, True))
    for parameter in eager.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    fused.load_state_dict(eager.state_dict())
    clip, found = torch.randn(1, 3, 4, 32, 64, dtype=torch.float64), []
    for model in (eager, fused):
        for parameter in (model.encoder.representative_tokens, *model.encoder.patch_embed.parameters()):
            parameter.requires_grad_(False)
        weight = model.encoder.blocks[0].local_attn.qkv.weight
        with torch.autocast("cpu", dtype=torch.bfloat16):  # it leaves float64 alone
            out = model(clip)
        (first,) = torch.autograd.grad(out.square().sum(), weight, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), weight)[0])
    torch.testing.assert_close(found[1], found[0])


def test_gradients_in_batches() -> None:
    """By the vmap of autograd, which knows of our operators what they return."""
    torch.manual_seed(0)
    model = mae_dfer.create_model(TINY, fused_attn=True, **SIZES)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    out, weight = model(torch.randn(1, 3, 4, 32, 64)), model.encoder.blocks[0].local_attn.qkv.weight
    units = torch.eye(out.numel()).view(-1, *out.shape)
    together = torch.autograd.grad(out, weight, units, is_grads_batched=True, retain_graph=True)[0]
    for unit, found in zip(units, together, strict=True):
        torch.testing.assert_close(found, torch.autograd.grad(out, weight, unit, retain_graph=True)[0])


def test_under_activation_checkpointing() -> None:
    model = mae_dfer.create_model(TINY, fused_attn=True, drop_path_rate=0.5, **SIZES).train()
    clip = torch.randn(2, 3, 4, 32, 64)
    found = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model.zero_grad()
        if checkpointed:
            out = torch.utils.checkpoint.checkpoint(model, clip, use_reentrant=False)
        else:
            out = model(clip)
        out.square().sum().backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(again, plain)


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.float64], ids=str)
def test_dtypes_that_differ_are_refused_as_by_pytorch(x_dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    """With a gradient and without: what trains by mistake would fail at the first evaluation."""
    if x_dtype == weight_dtype:
        weight_dtype = torch.float32
    layer, x = Linear(4, 3).to(weight_dtype), torch.randn(2, 4, dtype=x_dtype)
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled), pytest.raises(RuntimeError, match="dtype"):
            layer(x)
