"""Muon against PyTorch's own, and against the same formula in float64."""

from __future__ import annotations

import copy

import torch

from mae_dfer.training.muon import Muon

SHAPES = [(24, 8), (8, 8), (8, 24), (24, 8)]


def stepped(make: object, parameters: list[torch.nn.Parameter], steps: int = 3) -> tuple[list[torch.Tensor], object]:
    parameters = copy.deepcopy(parameters)
    optimizer = make(parameters)  # type: ignore[operator]
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for parameter in parameters:
            draw = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.grad = draw.to(parameter.dtype)
        optimizer.step()
    return [parameter.detach() for parameter in parameters], optimizer


def matrices(dtype: torch.dtype) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)) for s in SHAPES]


def test_same_as_pytorchs_in_its_precision() -> None:
    ours, ours_optimizer = stepped(lambda p: Muon(p, torch.bfloat16, lr=0.1), matrices(torch.float32))
    theirs, their_optimizer = stepped(
        lambda p: torch.optim.Muon(p, lr=0.1, adjust_lr_fn="match_rms_adamw"), matrices(torch.float32)
    )
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-2, atol=1e-3)  # bf16 sums in another order
    ours_optimizer.load_state_dict(their_optimizer.state_dict())  # type: ignore[attr-defined]


def test_float32_is_the_formula_in_float64() -> None:
    start = matrices(torch.float32)
    single, _ = stepped(lambda p: Muon(p, torch.float32, lr=0.1), start)
    double, _ = stepped(lambda p: Muon(p, torch.float64, lr=0.1), matrices(torch.float64))
    for found, right, before in zip(single, double, start, strict=True):
        torch.testing.assert_close(found.double(), right, rtol=1e-5, atol=1e-5)
        assert (found - before).abs().max() > 0.05
