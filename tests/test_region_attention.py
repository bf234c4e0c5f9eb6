"""Region attention: every backend against float64, and the promises around it.

The yardstick is what plain PyTorch makes of the same inputs in the same dtype: a backend may err at most twice as
much from float64. The float64 reference itself is held against PyTorch's own scaled dot-product attention.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from instruction_sets import running
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mae_dfer_kernels import native, region_attention
from mae_dfer_kernels.reference import region_attention as reference

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
RUNNERS = ["triton"] if INTERPRETED else [f"cpu-{name}" for name in native.instruction_sets()]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# 11, 41, 51, 101, 201: the published regions with a representative token; 1, 5: less than a vector;
# 64, 128: nothing left over, and the largest single block; 513: many blocks and a remainder of one.
TOKENS = (1, 5, 11, 41, 51, 64, 101, 128, 201, 513)
HEAD_DIMS = (16, 32, 64, 128)
HEADS = 2

forward_op = torch.ops.mae_dfer_kernels.region_attention.default
backward_op = torch.ops.mae_dfer_kernels.region_attention_backward.default


@pytest.fixture(params=RUNNERS)
def runner(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a backend that computes in its own kernels, set to one instruction set."""
    with running(request.param) as backend:
        yield backend


def make_inputs(regions: int, tokens: int, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens * 1000 + head_dim)
    qkv = torch.randn(regions, tokens, 3 * HEADS * head_dim, generator=generator)
    grad_out = torch.randn(regions, tokens, HEADS * head_dim, generator=generator)
    return qkv.to(dtype), grad_out.to(dtype)


def run_with_grad(call: Callable[[Tensor], Tensor], qkv: Tensor, grad_out: Tensor) -> tuple[Tensor, Tensor]:
    qkv = qkv.detach().clone().requires_grad_()
    out = call(qkv)
    (grad,) = torch.autograd.grad(out, qkv, grad_out)
    assert out.dtype == grad.dtype == qkv.dtype
    return out.detach().double(), grad.double()


@functools.cache
def expected_and_allowed(
    tokens: int, head_dim: int, dtype_name: str, dropout_p: float
) -> tuple[tuple[Tensor, float], tuple[Tensor, float]]:
    """(float64 result, error allowed) of the output and of the gradient."""
    dtype = DTYPES[dtype_name]
    qkv, grad_out = make_inputs(2, tokens, head_dim, dtype)

    def plain(qkv: Tensor) -> Tensor:
        return reference.region_attention(qkv, HEADS, head_dim**-0.5, dropout_p, seed=7)

    exact = run_with_grad(plain, qkv.double(), grad_out.double())
    eager = run_with_grad(plain, qkv, grad_out)
    pairs = []
    for right, rough in zip(exact, eager, strict=True):
        # The small absolute term: one unit in the last place of the largest value.
        rounding = torch.finfo(dtype).eps * right.abs().max().item()
        pairs.append((right, 2.0 * (rough - right).abs().max().item() + rounding))
    return pairs[0], pairs[1]


def check_against_float64(backend: str, tokens: int, head_dim: int, dtype_name: str, dropout_p: float) -> None:
    qkv, grad_out = make_inputs(2, tokens, head_dim, DTYPES[dtype_name])
    results = run_with_grad(
        lambda x: region_attention(x, HEADS, dropout_p=dropout_p, seed=7, backend=backend), qkv, grad_out
    )
    expected = expected_and_allowed(tokens, head_dim, dtype_name, dropout_p)
    for name, result, (right, allowed) in zip(("output", "gradient"), results, expected, strict=True):
        error = (result - right).abs().max().item()
        assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"


def sample_shapes() -> list[tuple[int, int, str]]:
    """Every pair of values of two of the three axes, in 40 cases instead of 120; 4 for the slow interpreter."""
    if INTERPRETED:
        return [(11, 64, "fp32"), (5, 16, "bf16"), (101, 32, "fp16"), (201, 64, "bf16")]
    names = list(DTYPES)
    return [(s, d, names[(i + j) % 3]) for i, s in enumerate(TOKENS) for j, d in enumerate(HEAD_DIMS)]


@pytest.mark.parametrize(("tokens", "head_dim", "dtype_name"), sample_shapes())
def test_error_is_at_most_twice_that_of_eager(runner: str, tokens: int, head_dim: int, dtype_name: str) -> None:
    check_against_float64(runner, tokens, head_dim, dtype_name, dropout_p=0.0)


@pytest.mark.full
@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize("dtype_name", list(DTYPES))
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("tokens", TOKENS)
def test_error_on_the_whole_grid(
    runner: str, tokens: int, head_dim: int, dtype_name: str, dropout_p: float
) -> None:
    check_against_float64(runner, tokens, head_dim, dtype_name, dropout_p)


@pytest.mark.parametrize(("tokens", "dtype_name"), [(11, "fp32"), (101, "bf16"), (130, "fp32")])
def test_error_with_dropout(runner: str, tokens: int, dtype_name: str) -> None:
    check_against_float64(runner, tokens, 32, dtype_name, dropout_p=0.2)


@pytest.mark.skipif(INTERPRETED, reason="the Triton kernels take head dimensions of powers of two")
@pytest.mark.parametrize("head_dim", [3, 7, 24, 80])
def test_cpu_takes_any_head_dimension(runner: str, head_dim: int) -> None:
    for tokens in (13, 140):
        check_against_float64(runner, tokens, head_dim, "fp32", dropout_p=0.0)
        check_against_float64(runner, tokens, head_dim, "bf16", dropout_p=0.1)


def test_reference_is_scaled_dot_product_attention() -> None:
    qkv, grad_out = make_inputs(3, 13, 16, torch.float64)

    def by_torch(qkv: Tensor) -> Tensor:
        query, key, value = qkv.view(3, 13, 3, HEADS, 16).permute(2, 0, 3, 1, 4)
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=0.3)
        return out.transpose(1, 2).reshape(3, 13, HEADS * 16)

    right = run_with_grad(by_torch, qkv, grad_out)
    for call in (
        lambda x: reference.region_attention(x, HEADS, 0.3),
        lambda x: region_attention(x, HEADS, scale=0.3, backend="eager"),
    ):
        for result, expected in zip(run_with_grad(call, qkv, grad_out), right, strict=True):
            torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_eager_in_low_precision_is_near_float64(dtype: torch.dtype) -> None:
    qkv, grad_out = make_inputs(2, 41, 32, dtype)

    def eager(qkv: Tensor) -> Tensor:
        return region_attention(qkv, HEADS, backend="eager")

    right = run_with_grad(eager, qkv.double(), grad_out.double())
    for result, expected in zip(run_with_grad(eager, qkv, grad_out), right, strict=True):
        assert (result - expected).abs().max() < 4 * torch.finfo(dtype).eps * expected.abs().max()


@pytest.mark.parametrize("seed", [3, 2**40 + 17, 2**63 - 1])
def test_dropout_mask_is_that_of_the_reference(runner: str, seed: int) -> None:
    tokens, head_dim, dropout_p = 23, 32, 0.35
    qkv, _ = make_inputs(3, tokens, head_dim, torch.float32)
    # With unit vectors for values the output is the row of dropped probabilities itself.
    values = torch.eye(tokens, head_dim).repeat(1, HEADS)
    qkv[..., 2 * HEADS * head_dim :] = values
    out = region_attention(qkv, HEADS, dropout_p=dropout_p, seed=seed, backend=runner)
    probs = out.view(3, tokens, HEADS, head_dim).transpose(1, 2)[..., :tokens]
    keep = reference.dropout_keep_mask(3, HEADS, tokens, dropout_p, seed)
    assert torch.equal(probs != 0, keep)


@pytest.mark.parametrize("dtype_name", ["fp32", "bf16"])
def test_strides_do_not_matter(runner: str, dtype_name: str) -> None:
    qkv, grad_out = make_inputs(4, 11, 16, DTYPES[dtype_name])

    def call(x: Tensor) -> Tensor:
        return region_attention(x, HEADS, backend=runner)

    def strided_copies(x: Tensor) -> list[Tensor]:
        padded = torch.full((4, 13, x.shape[2] + 5), float("nan"), dtype=x.dtype)
        padded[:, 1:12, 3:-2] = x
        return [
            padded[:, 1:12, 3:-2],  # rows inside a larger tensor
            x.transpose(0, 1).contiguous().transpose(0, 1),  # tokens before regions
            x.transpose(1, 2).contiguous().transpose(1, 2),  # channels apart
        ]

    right = run_with_grad(call, qkv, grad_out)
    for strided, grad in zip(strided_copies(qkv), strided_copies(grad_out), strict=True):
        assert torch.equal(call(strided).double(), right[0])
        assert torch.equal(run_with_grad(call, qkv, grad)[1], right[1])
    ones = run_with_grad(call, qkv, torch.ones_like(grad_out))[1]
    expanded = run_with_grad(call, qkv, torch.ones((), dtype=qkv.dtype).expand_as(grad_out))[1]
    assert torch.equal(ones, expanded)


def test_every_element_is_written(runner: str) -> None:
    torch.use_deterministic_algorithms(True)  # makes torch fill new memory with NaN
    try:
        assert torch.empty(3).isnan().all() and torch.empty(0).new_empty(3).isnan().all()
        for tokens, head_dim in ((5, 16), (17, 32), (131, 16)):
            qkv, grad_out = make_inputs(2, tokens, head_dim, torch.float32)
            out, grad = run_with_grad(lambda x: region_attention(x, HEADS, backend=runner), qkv, grad_out)
            assert out.isfinite().all() and grad.isfinite().all()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype_name", list(DTYPES))
def test_two_runs_and_any_thread_count_give_the_same_bits(runner: str, dtype_name: str) -> None:
    threads = torch.get_num_threads()
    qkv, grad_out = make_inputs(5, 33, 32, DTYPES[dtype_name])
    results = []
    try:
        for count in (1, 1, 2, 3):
            torch.set_num_threads(count)
            results.append(
                run_with_grad(
                    lambda x: region_attention(x, HEADS, dropout_p=0.1, seed=1, backend=runner), qkv, grad_out
                )
            )
    finally:
        torch.set_num_threads(threads)
    for out, grad in results[1:]:
        assert torch.equal(out, results[0][0]) and torch.equal(grad, results[0][1])


@pytest.mark.parametrize("shape", [(0, 11), (2, 0), (1, 1)])
def test_empty_and_single(runner: str, shape: tuple[int, int]) -> None:
    qkv, grad_out = make_inputs(*shape, 16, torch.float32)
    out, grad = run_with_grad(lambda x: region_attention(x, HEADS, backend=runner), qkv, grad_out)
    assert out.shape == (*shape, HEADS * 16) and grad.shape == qkv.shape
    # One token attends to itself alone: the output is its value, whose gradient passes through unchanged.
    assert torch.equal(out, qkv[..., 2 * HEADS * 16 :].double())
    assert torch.equal(grad[..., 2 * HEADS * 16 :], grad_out.double())


@pytest.mark.parametrize("offset", [0.0, -1e4])
def test_large_logits(runner: str, offset: float) -> None:
    qkv, grad_out = make_inputs(2, 19, 16, torch.float32)
    qkv[..., : 2 * HEADS * 16] *= 40.0
    # A constant channel shifts all scores of a row alike, here to far below zero.
    qkv[..., 0], qkv[..., HEADS * 16] = 1.0, offset

    def call(x: Tensor) -> Tensor:
        return region_attention(x, HEADS, scale=1.0, backend="eager" if x.dtype == torch.float64 else runner)

    exact = run_with_grad(call, qkv.double(), grad_out.double())
    result = run_with_grad(call, qkv, grad_out)
    assert (exact[0] - result[0]).abs().max() < 1e-2 and result[1].isfinite().all()


def test_nan_stays_in_its_region(runner: str) -> None:
    qkv, grad_out = make_inputs(3, 9, 16, torch.float32)
    clean = run_with_grad(lambda x: region_attention(x, HEADS, backend=runner), qkv, grad_out)
    qkv[1, 4, HEADS * 16] = float("nan")  # a key of head 0
    out, grad = run_with_grad(lambda x: region_attention(x, HEADS, backend=runner), qkv, grad_out)
    assert out[1, :, :16].isnan().all() and grad[1].isnan().any()
    for untouched in (0, 2):
        assert torch.equal(out[untouched], clean[0][untouched])
        assert torch.equal(grad[untouched], clean[1][untouched])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("tokens", [4, 5, 17, 241])
def test_a_key_at_minus_infinity_is_not_there(runner: str, tokens: int, dtype: torch.dtype) -> None:
    """Its probability is next to zero for every query, and nothing that fills vectors or pairs becomes NaN by it."""
    qkv, grad_out = make_inputs(1, tokens, 32, dtype)
    query, key, value = qkv.view(1, tokens, 3, HEADS, 32).unbind(2)
    query.abs_()
    key[:, 1] = -torch.inf
    _, grad = run_with_grad(lambda qkv: region_attention(qkv, HEADS, backend=runner), qkv, grad_out)
    _, grad_key, grad_value = grad.view(1, tokens, 3, HEADS, 32).unbind(2)
    assert grad_key.isfinite().all() and grad_value.isfinite().all()
    assert grad_value[:, 1].abs().max() < 1e-30


@pytest.mark.skipif(INTERPRETED, reason="float64 runs on the eager and cpu backends")
@pytest.mark.parametrize("backend", ["eager", "cpu"])
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_gradient_is_that_of_finite_differences(backend: str, dropout_p: float) -> None:
    qkv = make_inputs(2, 6, 5, torch.float64)[0].requires_grad_()

    def call(x: Tensor) -> Tensor:
        return region_attention(x, HEADS, scale=0.7, dropout_p=dropout_p, seed=9, backend=backend)

    assert torch.autograd.gradcheck(call, (qkv,))
    # The operator itself, which compiled graphs call, has its own registration.
    assert torch.autograd.gradcheck(lambda x: forward_op(x, HEADS, 0.7, dropout_p, 9, backend), (qkv,))


@pytest.mark.skipif(INTERPRETED, reason="float64 runs on the eager and cpu backends")
def test_second_derivative_is_that_of_finite_differences() -> None:
    qkv = make_inputs(1, 4, 3, torch.float64)[0].requires_grad_()
    for call in (
        lambda x: region_attention(x, HEADS, dropout_p=0.2, seed=3, backend="cpu"),
        lambda x: forward_op(x, HEADS, 0.5, 0.2, 3, "cpu"),
    ):
        assert torch.autograd.gradgradcheck(call, (qkv,))


@pytest.mark.skipif(INTERPRETED, reason="needs no kernels of Triton")
def test_cpu_in_float64_is_the_reference(runner: str) -> None:
    qkv, grad_out = make_inputs(2, 140, 24, torch.float64)
    results = [
        run_with_grad(lambda x, name=name: region_attention(x, HEADS, backend=name), qkv, grad_out)
        for name in ("eager", runner)
    ]
    for eager, cpu in zip(*results, strict=True):
        torch.testing.assert_close(cpu, eager, rtol=1e-12, atol=1e-13)


def test_gradients_only_where_asked(runner: str) -> None:
    qkv, _ = make_inputs(2, 7, 16, torch.float32)
    assert not region_attention(qkv, HEADS, backend=runner).requires_grad
    qkv.requires_grad_()
    assert region_attention(qkv, HEADS, backend=runner).requires_grad
    with torch.no_grad():
        assert not region_attention(qkv, HEADS, backend=runner).requires_grad


@pytest.mark.skipif(INTERPRETED, reason="registration does not depend on the backend")
@pytest.mark.parametrize("backend", ["eager", "cpu"])
def test_operators_are_registered_rightly(backend: str) -> None:
    qkv, grad_out = make_inputs(2, 7, 16, torch.float32)
    options = (HEADS, 0.25, 0.1, 5, backend)
    torch.library.opcheck(forward_op, (qkv.requires_grad_(), *options))
    torch.library.opcheck(forward_op, (qkv.detach().transpose(0, 1), *options))
    torch.library.opcheck(backward_op, (grad_out, qkv.detach(), *options))


@pytest.mark.skipif(INTERPRETED, reason="compiling does not depend on the backend")
def test_compiles_into_one_graph_whatever_the_seed() -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    qkv, grad_out = make_inputs(2, 7, 16, torch.float32)
    counter = CompileCounterWithBackend("aot_eager")

    def call(x: Tensor, seed: int) -> Tensor:
        return region_attention(x * 2.0, HEADS, dropout_p=0.2, seed=seed) + 1.0

    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend=counter)
    for seed in (3, 4, 5, 2**40, 2**41):
        right = run_with_grad(lambda x, seed=seed: call(x, seed), qkv, grad_out)
        result = run_with_grad(lambda x, seed=seed: compiled(x, seed), qkv, grad_out)
        assert torch.equal(result[0], right[0]) and torch.equal(result[1], right[1])
    assert counter.frame_count <= 3, "a new seed compiled a new graph"


@pytest.mark.skipif(INTERPRETED, reason="exporting does not depend on the backend")
def test_exports() -> None:
    class Module(torch.nn.Module):
        def forward(self, qkv: Tensor) -> Tensor:
            return region_attention(qkv, HEADS)

    qkv, _ = make_inputs(2, 7, 16, torch.float32)
    exported = torch.export.export(Module(), (qkv,))
    assert torch.equal(exported.module()(qkv), region_attention(qkv, HEADS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["eager", "auto"])
def test_autocast_leaves_the_projections_dtype(dtype: torch.dtype, backend: str) -> None:
    qkv, grad_out = make_inputs(2, 7, 16, dtype)
    right = run_with_grad(lambda x: region_attention(x, HEADS, backend=backend), qkv, grad_out)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = run_with_grad(lambda x: region_attention(x, HEADS, backend=backend), qkv, grad_out)
    assert torch.equal(result[0], right[0]) and torch.equal(result[1], right[1])


def test_flop_counter_sees_both_directions(runner: str) -> None:
    qkv, _ = make_inputs(3, 7, 16, torch.float32)
    matmul = 2 * 3 * HEADS * 7 * 7 * 16
    with FlopCounterMode(display=False) as counter:
        out = region_attention(qkv.requires_grad_(), HEADS, backend=runner)
    assert counter.get_total_flops() == 2 * matmul
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 5 * matmul


@pytest.mark.skipif(INTERPRETED, reason="this is what starts the interpreter")
def test_triton_kernels_by_their_interpreter() -> None:
    pytest.importorskip("triton", reason="Triton has no wheel for this platform")
    names = "twice_that_of_eager or with_dropout or mask_is_that or strides or written or single or logits or flop"
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__, "-k", names],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    assert " passed" in result.stdout
