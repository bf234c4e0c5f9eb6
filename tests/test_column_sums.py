"""Sums over rows against plain PyTorch in float64, on every backend that can run here."""

from __future__ import annotations

import os

import pytest
import torch
from interpreted import run_by_interpreter
from torch import Tensor

from mae_dfer_kernels import column_sums

# With TRITON_INTERPRET=1 the Triton kernels run here; `test_by_interpreter` sees to that in a child process.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
GPU = torch.cuda.is_available() and not INTERPRETED
RUNNERS = ["triton"] if INTERPRETED else ["cpu"] + ["triton"] * GPU
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]

by_backend = pytest.mark.parametrize("backend", RUNNERS)


@pytest.fixture(params=["few rows", "many rows"])
def rows_for_kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices as small as these are summed by PyTorch, unless the kernels are made to take them."""
    if request.param == "many rows":
        module = pytest.importorskip("mae_dfer_kernels.triton.column_sums")
        monkeypatch.setattr(module, "_MIN_ROWS", 1)


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).add(0.5).to(dtype)


def fused(rows: Tensor, backend: str) -> Tensor:
    found = column_sums(rows.to("cuda" if backend == "triton" and GPU else "cpu"), backend=backend)
    assert found.dtype == rows.dtype and found.shape == rows.shape[-1:] and found.is_contiguous()
    return found.cpu()


@by_backend
@pytest.mark.usefixtures("rows_for_kernels")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3000, 192), (1, 13), (700, 300)], ids=str)
def test_no_less_exact_than_plain_pytorch(backend: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    if backend == "triton" and dtype == torch.float64:
        pytest.skip("the Triton kernels have no float64")
    rows = draw(*shape, dtype=dtype)
    exact, plain = rows.double().sum(dim=0), rows.sum(dim=0)
    # Root mean squares: the largest of a few roundings is luck.
    error, allowed = ((sums - exact).square().mean().sqrt() for sums in (fused(rows, backend), plain))
    assert error <= 2 * allowed + torch.finfo(dtype).eps / 8 * exact.square().mean().sqrt()


@by_backend
@pytest.mark.usefixtures("rows_for_kernels")
def test_strides_do_not_matter(backend: str) -> None:
    rows = draw(2100, 24).mul(8).round()  # sums of whole numbers are exact in any order
    right = rows.double().sum(dim=0).float()
    wide = torch.full((2100, 29), float("nan"))
    wide[:, 3:27] = rows
    for view in (wide[:, 3:27], rows.view(3, 700, 24), rows.t().contiguous().t()):
        assert torch.equal(fused(view, backend), right)
    row = rows[0]
    assert torch.equal(fused(row, backend), row)
    assert torch.equal(fused(row.expand(2100, 24), backend), 2100 * row)
    assert torch.equal(fused(rows[:, :1].expand(2100, 24), backend), right[:1].expand(24))


@by_backend
def test_same_bits_every_time(backend: str) -> None:
    rows = draw(2500, 140)
    assert torch.equal(fused(rows, backend), fused(rows, backend))


@by_backend
@pytest.mark.usefixtures("rows_for_kernels")
def test_no_rows(backend: str) -> None:
    assert fused(draw(0, 8), backend).tolist() == [0.0] * 8


@by_backend
@pytest.mark.usefixtures("rows_for_kernels")
def test_infinities_and_none_stay_in_their_columns(backend: str) -> None:
    rows = draw(300, 5)
    rows[7, 1], rows[8, 2], rows[9:11, 3] = torch.inf, torch.nan, torch.tensor([torch.inf, -torch.inf])
    found = fused(rows, backend)
    assert found[1] == torch.inf and found[2:4].isnan().all() and found[[0, 4]].isfinite().all()


@pytest.mark.skipif("triton" not in RUNNERS, reason="these are the Triton kernels'")
@pytest.mark.parametrize("results", [1, 2])
def test_partial_sums_of_other_kernels(results: int) -> None:
    """More of them than a tile holds, and results that autograd may keep: none is a view of another's memory."""
    from mae_dfer_kernels.triton.column_sums import add_partial_sums

    partial = draw(1056, results, 37).to("cuda" if GPU else "cpu")
    found = add_partial_sums(partial, torch.float32)
    for sums, exact in zip(found, partial.double().sum(dim=0), strict=True):
        torch.testing.assert_close(sums.double(), exact, rtol=1e-6, atol=1e-5)
        assert not sums._is_view()
    assert len({sums.untyped_storage().data_ptr() for sums in found}) == results


@pytest.mark.skipif(INTERPRETED, reason="that is plain PyTorch's")
def test_the_result_can_be_differentiated() -> None:
    rows = draw(4, 5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(column_sums, (rows,))
    torch.testing.assert_close(torch.func.vmap(column_sums)(torch.stack([rows, 2 * rows]))[1], 2 * column_sums(rows))


@pytest.mark.skipif(INTERPRETED, reason="registration does not depend on the backend")
def test_opcheck() -> None:
    rows = draw(6, 5)
    torch.library.opcheck(torch.ops.mae_dfer_kernels.column_sums.default, (rows[:, :4], "cpu"))
    compiled = torch.compile(column_sums, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(rows), column_sums(rows))


@pytest.mark.skipif(INTERPRETED, reason="this is what starts the interpreter")
def test_by_interpreter() -> None:
    assert " passed" in run_by_interpreter(__file__)


X = torch.zeros(3, 8)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"rows": torch.tensor(1.0)}, ValueError, "rows must have shape"),
        ({"rows": X.int()}, TypeError, "rows must be float64"),
        ({"rows": [1.0]}, TypeError, "rows must be a torch.Tensor"),
        ({"backend": "quick"}, ValueError, "'quick' is none of auto, eager, cpu, triton, cuda"),
        ({"backend": "cuda"}, RuntimeError, "there is no CUDA C.. kernel of column_sums"),
        ({"rows": X.to("meta"), "backend": "cpu"}, RuntimeError, "rows is on meta"),
    ],
)
def test_mistakes_are_named(change: dict[str, object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        column_sums(**({"rows": X} | change))  # type: ignore[arg-type]
