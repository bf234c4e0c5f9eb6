"""GELU's gradient in one pass against plain PyTorch in float64, on every backend that can run here."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from instruction_sets import running
from interpreted import run_by_interpreter
from torch import Tensor

from mae_dfer_kernels import gelu_gradient, native
from mae_dfer_kernels.reference import gelu_gradient as reference

# With TRITON_INTERPRET=1 the Triton kernel runs here; `test_by_interpreter` sees to that in a child process.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
GPU = torch.cuda.is_available() and not INTERPRETED
RUNNERS = ["triton"] if INTERPRETED else [f"cpu-{name}" for name in native.instruction_sets()] + ["triton"] * GPU
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
NAMES = ("grad x", "gelu x", "column sums")


@pytest.fixture(params=RUNNERS)
def runner(request: pytest.FixtureRequest) -> Iterator[str]:
    with running(request.param) as backend:
        yield backend  # on a GPU: Triton's tensors are moved there


def draw(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    grad, x = torch.randn((2, *shape), generator=generator, dtype=torch.float64).mul(2).to(dtype)
    return grad, x


def fused(grad: Tensor, x: Tensor, backend: str) -> list[Tensor]:
    device = "cuda" if backend == "triton" and GPU else "cpu"
    found = gelu_gradient(grad.to(device), x.to(device), backend=backend)
    assert all(tensor.dtype == x.dtype and tensor.is_contiguous() for tensor in found)
    return [tensor.cpu() for tensor in found]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(700, 64), (1, 13), (50, 300)], ids=str)
def test_no_less_exact_than_plain_pytorch(runner: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    if runner == "triton" and dtype == torch.float64:
        pytest.skip("the Triton kernel has no float64")
    grad, x = draw(shape, dtype)
    exact, plain = reference.backward(grad.double(), x.double()), reference.backward(grad, x)
    for name, right, eager, ours in zip(NAMES, exact, plain, fused(grad, x, runner), strict=True):
        # Root mean squares: the largest of a few roundings is luck.
        error, allowed = (ours - right).square().mean().sqrt(), 2 * (eager - right).square().mean().sqrt()
        # Plain PyTorch in float64 is what float64 is compared with, so its own error says nothing.
        room = 16 if dtype == torch.float64 else 1 / 8
        floor = room * torch.finfo(dtype).eps * right.square().mean().sqrt()
        assert error <= allowed + floor, f"{name}: error {error:.3g}, plain PyTorch's {allowed / 2:.3g}"


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_wherever_x_is(runner: str, dtype: torch.dtype) -> None:
    """Every element by itself: from the far tail to the largest numbers, infinities and none."""
    grid = torch.cat([torch.linspace(-15, 15, 3001), torch.tensor([0.0, 1e3, 6e4, -1e3, -6e4])])
    largest = torch.finfo(dtype).max / 2
    x = torch.cat([grid, torch.tensor([largest, -largest])]).to(dtype)[None]
    exact = reference.backward(torch.ones_like(x).double(), x.double())
    for name, right, ours in zip(NAMES, exact, fused(torch.ones_like(x), x, runner), strict=True):
        off = (ours - right).abs() / right.abs().clamp(min=1.0)
        assert off.max() <= 2 * torch.finfo(dtype).eps, f"{name} at {x[0, off.view(-1).argmax()]}"
    x = torch.tensor([[torch.inf, -torch.inf, torch.nan]], dtype=dtype)
    grad_x, gelu_x, sums = fused(torch.ones_like(x), x, runner)
    assert grad_x.isnan().all() and sums.isnan().all()
    assert gelu_x[0, 0] == torch.inf and gelu_x[0, 1:].isnan().all()


def test_strides_do_not_matter(runner: str) -> None:
    grad, x = draw((30, 24))
    right = fused(grad, x, runner)
    wide = torch.full((30, 29), float("nan"))
    wide[:, 3:27] = x
    views = [(grad.t().contiguous().t(), wide[:, 3:27]), (grad.view(5, 6, 24), x.view(5, 6, 24))]
    for given in views:
        for name, expected, found in zip(NAMES, right, fused(*given, runner), strict=True):
            assert torch.equal(expected, found.view(expected.shape)), name
    row = torch.randn(24).expand(30, 24)
    assert torch.equal(fused(grad, row, runner)[0], fused(grad, row.contiguous(), runner)[0])


def test_same_bits_on_any_number_of_threads(runner: str) -> None:
    grad, x = draw((600, 300))
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(fused(grad, x, runner))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_no_rows(runner: str) -> None:
    grad_x, gelu_x, sums = fused(*draw((0, 8)), runner)
    assert grad_x.shape == gelu_x.shape == (0, 8) and sums.tolist() == [0.0] * 8


@pytest.mark.skipif(INTERPRETED, reason="that is plain PyTorch's")
def test_the_result_can_be_differentiated() -> None:
    grad, x = (tensor.requires_grad_() for tensor in draw((4, 5), torch.float64))
    assert torch.autograd.gradcheck(gelu_gradient, (grad, x))
    vectorised = torch.func.vmap(gelu_gradient)(torch.stack([grad, x]), torch.stack([x, grad]))
    torch.testing.assert_close([part[0] for part in vectorised], list(gelu_gradient(grad, x)))


@pytest.mark.skipif(INTERPRETED, reason="registration does not depend on the backend")
def test_opcheck() -> None:
    grad, x = draw((6, 5))
    torch.library.opcheck(torch.ops.mae_dfer_kernels.gelu_gradient.default, (grad, x[:, :5], "cpu"))
    compiled = torch.compile(gelu_gradient, fullgraph=True, backend="aot_eager")
    for right, found in zip(gelu_gradient(grad, x), compiled(grad, x), strict=True):
        assert torch.equal(found, right)


@pytest.mark.skipif(INTERPRETED, reason="this is what starts the interpreter")
def test_by_interpreter() -> None:
    assert " passed" in run_by_interpreter(__file__)


X = torch.zeros(3, 8)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"x": torch.tensor(1.0)}, ValueError, "x must have shape"),
        ({"x": X.int()}, TypeError, "x must be float64"),
        ({"grad": [1.0]}, TypeError, "grad must be a torch.Tensor"),
        ({"grad": torch.zeros(3, 7)}, ValueError, "grad must have the shape of x"),
        ({"grad": X.half()}, TypeError, "grad must have the dtype of x"),
        ({"grad": X.to("meta")}, ValueError, "grad must be on the device of x"),
        ({"backend": "quick"}, ValueError, "'quick' is none of auto, eager, cpu, triton, cuda"),
        ({"backend": "cuda"}, RuntimeError, "there is no CUDA C.. kernel of gelu_gradient"),
    ],
)
def test_mistakes_are_named(change: dict[str, object], kind: type[Exception], message: str) -> None:
    arguments: dict[str, object] = {"grad": X, "x": X} | change
    with pytest.raises(kind, match=message):
        gelu_gradient(**arguments)  # type: ignore[arg-type]
