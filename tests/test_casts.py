"""A block's weights in autocast's dtype: the same numbers as by autocast itself, and gradients where they belong."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import mae_dfer
from mae_dfer.models import casts, linear

SIZES = {"img_size": (32, 64), "num_frames": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "region_size": (1, 2, 2)}
TINY = "lgi_former_tiny_patch16_160"


@pytest.fixture
def on_cpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """There it does not pay, but computes the same."""

    def takes(parameter: Tensor) -> bool:
        return parameter.dtype == torch.float32 and casts.is_plain(parameter)

    monkeypatch.setattr(casts, "_takes", takes)
    monkeypatch.setattr(linear, "_gradients_by_kernels", lambda x, weight: True)


def results(model: torch.nn.Module, clip: Tensor) -> list[Tensor]:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(clip)
    model.zero_grad()
    out.float().square().sum().backward()
    return [out, *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]


def make_model(**options: str) -> tuple[torch.nn.Module, Tensor]:
    torch.manual_seed(0)
    model = mae_dfer.create_model(TINY, **SIZES, **options)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model, torch.randn(2, 3, 4, 32, 64)


def test_as_autocast(on_cpu_too: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # On a CPU the exchange across tokens takes weights as they are, not in autocast's dtype.
    model, clip = make_model(exchange="self")
    used = []
    foreach = torch._foreach_copy_
    monkeypatch.setattr(torch, "_foreach_copy_", lambda *lists: (used.append(len(lists[0])), foreach(*lists)))
    together = results(model, clip)
    assert len(used) == 2 * SIZES["depth"]  # forward and backward of each block
    monkeypatch.setattr(casts, "_takes", lambda parameter: False)
    for ours, right in zip(together, results(model, clip), strict=True):
        assert ours.dtype == right.dtype
        # A gradient that is made in the dtype of the copy is the wider one, rounded.
        assert torch.equal(ours, right) or torch.equal(ours, right.bfloat16().to(right.dtype))


def test_compiles_into_one_graph(on_cpu_too: None) -> None:
    model, clip = make_model()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        right = model(clip)
        found = torch.compile(model, fullgraph=True, backend="aot_eager")(clip)
    torch.testing.assert_close(found, right, rtol=2e-2, atol=2e-2)


def test_inference_casts_once(on_cpu_too: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weight is cast by itself besides."""
    model, clip = make_model()
    weights = {parameter.shape for parameter in model.encoder.blocks.parameters() if parameter.dim() == 2}
    cast = []

    class Casts(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._to_copy.default and args[0].shape in weights:
                cast.append(args[0].shape)
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        with Casts():
            model(clip)
    # The exchange computes in float32 on a CPU: two weights a block go back.
    assert len(cast) <= 2 * SIZES["depth"], cast


def test_frozen_weights_get_no_gradient(on_cpu_too: None) -> None:
    model, clip = make_model()
    frozen = [model.encoder.blocks[0].mlp.fc1.weight, model.encoder.blocks[1].local_attn.q_bias]
    for parameter in frozen:
        parameter.requires_grad_(False)
    results(model, clip)
    for parameter in model.parameters():
        assert (parameter.grad is None) == any(parameter is other for other in frozen)


def test_differentiable_twice(on_cpu_too: None) -> None:
    model, clip = make_model()
    clip.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(clip).float().sum()
    weight = model.encoder.blocks[0].mlp.fc1.weight
    (first,) = torch.autograd.grad(out, weight, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), clip)
    assert second.isfinite().all() and second.any()
