"""Named ranges around operator calls: seen by profilers where asked for, absent otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from mae_dfer_kernels import exchange, layer_norm, profiling, region_attention, residual_layer_norm

ROOT = Path(__file__).resolve().parent.parent


def attention(backend: str) -> None:
    qkv = torch.randn(2, 3, 24, requires_grad=True)
    region_attention(qkv, 2, backend=backend).sum().backward()


def norm(backend: str) -> None:
    x = torch.randn(2, 3, 8, requires_grad=True)
    residual_layer_norm(x, x.detach(), torch.ones(8), torch.zeros(8), backend=backend)[1].sum().backward()


def norm_alone(backend: str) -> None:
    x = torch.randn(2, 3, 8, requires_grad=True)
    layer_norm(x, torch.ones(8), torch.zeros(8), backend=backend).sum().backward()


def cross(backend: str) -> None:
    tokens, vector, matrix = torch.randn(1, 3, 8, requires_grad=True), torch.ones(8), torch.randn(24, 8)
    weights = (vector, vector, matrix, vector, vector, matrix[:8], vector)
    exchange(tokens, tokens.detach(), *weights, 2, form="absorbed", backend=backend).sum().backward()


CALLS: dict[str, Callable[[str], None]] = {
    "region_attention": attention,
    "residual_layer_norm": norm,
    "layer_norm": norm_alone,
    "exchange": cross,
}


@pytest.fixture
def pushed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A stand-in for NVTX, as a CUDA build has it: the ranges pushed, each of them popped."""
    names: list[str] = []
    open_ranges: list[str] = []
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", lambda name: (names.append(name), open_ranges.append(name)))
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", open_ranges.pop)
    yield names
    assert open_ranges == []


@pytest.mark.parametrize("backend", ["eager", "cpu"])
@pytest.mark.parametrize("op", CALLS)
def test_profilers_see_operator_direction_and_backend(op: str, backend: str, pushed: list[str]) -> None:
    with profiling.nvtx_ranges(), profile(activities=[ProfilerActivity.CPU]) as profiler:
        CALLS[op](backend)
    ranges = [f"{op} forward [{backend}]", f"{op} backward [{backend}]"]
    assert pushed[1:] == ranges  # the first one asked whether there is NVTX
    seen = [event.name for event in profiler.events() if event.name.startswith(f"{op} ")]
    assert seen == ranges


@pytest.mark.parametrize("op", CALLS)
def test_without_ranges_torchs_profiler_still_names_the_operators(op: str, pushed: list[str]) -> None:
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        CALLS[op]("cpu")
    names = {event.name for event in profiler.events()}
    registered = {"exchange": "exchange_rows"}.get(op, op)
    assert {f"mae_dfer_kernels::{registered}", f"mae_dfer_kernels::{registered}_backward"} <= names
    assert not any(name.startswith(f"{op} ") for name in names) and not pushed


class Seen(torch.Tensor):
    """A subclass that notes what is asked of it, and does nothing."""

    names: list[str]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.names.append(func.name())
        return torch.zeros(())


def test_tracers_and_subclasses_of_tensors_see_the_operators() -> None:
    """Eager calls go past the dispatcher only where nobody would notice."""
    qkv = torch.randn(2, 3, 24)
    Seen.names = []
    with torch.no_grad():
        region_attention(qkv.as_subclass(Seen), 2)
    graph = torch.jit.trace(lambda tensor: region_attention(tensor, 2), qkv).graph
    assert "mae_dfer_kernels::region_attention" in Seen.names
    assert "mae_dfer_kernels::region_attention" in str(graph)


@pytest.mark.parametrize("backend", ["eager", "cpu"])
def test_tensors_that_only_the_dispatcher_understands_go_to_it(backend: str) -> None:
    qkv = torch.randn(2, 3, 24)
    negated = torch._neg_view(qkv)  # the minus sign is not in its memory
    torch.testing.assert_close(
        region_attention(negated, 2, backend=backend), region_attention(-qkv, 2, backend=backend)
    )
    qkv.requires_grad_()
    out = region_attention(qkv, 2, backend=backend)
    grads = torch.randn(3, *out.shape)
    (batched,) = torch.autograd.grad(out, qkv, grads, is_grads_batched=True, retain_graph=True)
    single = [torch.autograd.grad(out, qkv, grad, retain_graph=True)[0] for grad in grads]
    torch.testing.assert_close(batched, torch.stack(single))


def test_a_failing_call_closes_its_range(pushed: list[str]) -> None:
    def fail() -> None:
        raise ValueError("no")

    with profiling.nvtx_ranges(), pytest.raises(ValueError, match="no"):
        profiling.run("failing", fail)
    assert pushed[-1] == "failing"


def test_ranges_end_with_the_context(pushed: list[str]) -> None:
    with profiling.nvtx_ranges():
        with profiling.nvtx_ranges(False):
            assert not profiling.enabled
        assert profiling.enabled
    assert not profiling.enabled


def test_a_build_without_nvtx_is_said_and_harms_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("NVTX functions not installed.")

    monkeypatch.setattr(torch.cuda.nvtx, "range_push", fail)
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", fail)
    with pytest.warns(RuntimeWarning, match=r"no NVTX ranges.*not installed.*torch's own profiler") as caught:
        with profiling.nvtx_ranges(), profile(activities=[ProfilerActivity.CPU]) as profiler:
            attention("cpu")
    assert caught[0].filename == __file__
    assert "region_attention forward [cpu]" in {event.name for event in profiler.events()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is said where no ranges are asked for
        attention("cpu")


@pytest.mark.parametrize(("value", "expected"), [("1", "True"), ("0", "False")])
def test_environment_variable_turns_ranges_on(value: str, expected: str) -> None:
    code = "from mae_dfer_kernels import profiling; print(profiling.enabled)"
    environment = {**os.environ, profiling.NVTX_VARIABLE: value}
    child = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True,
                           timeout=120, check=False)  # fmt: skip
    assert child.stdout.strip() == expected, child.stderr


def test_a_wrong_environment_variable_is_named() -> None:
    environment = {**os.environ, profiling.NVTX_VARIABLE: "yes"}
    child = subprocess.run([sys.executable, "-c", "import mae_dfer_kernels"], env=environment, cwd=ROOT,
                           capture_output=True, text=True, timeout=120, check=False)  # fmt: skip
    assert child.returncode != 0 and f"{profiling.NVTX_VARIABLE}: 'yes' is neither 0 nor 1" in child.stderr
