"""The MLP in one autograd function: gradients of every order, and those of its parts."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mae_dfer.models.mlp import norm_mlp
from mae_dfer.models.residual import Residual

KINDS = pytest.mark.parametrize("kind", ["alone", "residual", "residual, scaled"])


def layers(dtype: torch.dtype) -> tuple[nn.LayerNorm, nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    norm = nn.LayerNorm(6, eps=1e-6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm.to(dtype), nn.Linear(6, 10).to(dtype), nn.Linear(10, 6).to(dtype)


def stream_of(kind: str, dtype: torch.dtype, branch_dtype: torch.dtype | None = None) -> Residual:
    x = torch.randn(3, 5, 6).to(dtype).requires_grad_()
    if kind == "alone":
        return Residual(x)
    branch = torch.randn(3, 5, 6).to(branch_dtype or dtype).requires_grad_()
    return Residual(x, branch, torch.tensor([0.5, 0.0, 2.0], dtype=dtype) if "scaled" in kind else None)


def with_parameters(layer: Any, *parameters: Tensor) -> Any:
    other = copy.copy(layer)
    other._parameters = dict(zip(("weight", "bias"), parameters, strict=True))
    return other


@KINDS
def test_gradcheck(kind: str) -> None:
    given, stream = layers(torch.float64), stream_of(kind, torch.float64)
    tensors = [tensor for tensor in stream[:2] if tensor is not None]

    def call(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        streams, parameters = inputs[: len(tensors)], inputs[len(tensors) :]
        branch = None if kind == "alone" else streams[1]
        norm, *linears = (with_parameters(layer, *parameters[2 * i : 2 * i + 2]) for i, layer in enumerate(given))
        return norm_mlp(Residual(streams[0], branch, stream.factors), norm, *linears)

    inputs = (*tensors, *(parameter for layer in given for parameter in layer.parameters()))
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


@KINDS
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "autocast"])
@pytest.mark.parametrize("used", ["both", "sum", "branch"])
def test_as_its_parts(kind: str, autocast: bool, used: str) -> None:
    """Values, gradients and their dtypes are those of plain PyTorch."""

    def plain(stream: Residual, norm: nn.LayerNorm, fc1: nn.Linear, fc2: nn.Linear) -> tuple[Tensor, Tensor]:
        total = stream.added()
        return total, fc2(F.gelu(fc1(norm(total))))

    found: list[list[Tensor | None]] = []
    for call in (norm_mlp, plain):
        given = layers(torch.float32)
        stream = stream_of(kind, torch.float32, torch.bfloat16 if autocast else None)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            total, out = call(stream, *given)
        chosen = {"both": (total, out), "sum": (total,), "branch": (out,)}[used]
        sum(output.float().square().sum() for output in chosen).backward()
        leaves = [tensor for tensor in stream[:2] if tensor is not None]
        parameters = [parameter for layer in given for parameter in layer.parameters()]
        found.append([total, out, *(tensor.grad for tensor in (*leaves, *parameters))])
    tolerances = {"rtol": 0.03, "atol": 0.1} if autocast else {"rtol": 1e-5, "atol": 1e-5}
    for ours, right in zip(*found, strict=True):
        if right is not None and ours is not None:
            assert ours.dtype == right.dtype
            torch.testing.assert_close(ours, right, **tolerances)
        else:
            assert right is None or not right.any()
            assert ours is None or not ours.any()


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "autocast"])
def test_without_a_gradient_no_less_exact(autocast: bool) -> None:
    """Where GELU is made in one pass with the product: against float64, as exact as with a gradient."""
    torch.manual_seed(0)
    norm, first, second = nn.LayerNorm(32), nn.Linear(32, 64), nn.Linear(64, 32)
    x = 3 * torch.randn(50, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        kept = norm_mlp(Residual(x), norm, first, second)[1]
        with torch.no_grad():
            found = norm_mlp(Residual(x), norm, first, second)[1]
    exact = norm_mlp(Residual(x.double()), *(layer.double() for layer in (norm, first, second)))[1]
    assert found.dtype == kept.dtype and not found.requires_grad
    error, allowed = ((values - exact).square().mean().sqrt() for values in (found, kept))
    assert 0 < error <= 1.1 * allowed
