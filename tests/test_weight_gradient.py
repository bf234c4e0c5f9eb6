"""Gradients of a linear layer's weight and bias against float64, on every instruction set that can run here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from instruction_sets import running
from torch import Tensor

from mae_dfer_kernels import native, weight_gradient
from mae_dfer_kernels.native import weight_gradient as native_weight_gradient
from mae_dfer_kernels.reference import weight_gradient as reference

# Rows, outputs, inputs. Less than a tile; whole tiles; edges of tiles, of blocks of columns, of rows, of groups.
SHAPES = [(2, 1, 1), (64, 48, 64), (46, 37, 55), (1101, 13, 33), (40, 1600, 70), (515, 20, 1030)]


# Only one instruction set multiplies bfloat16.
RUNS = [
    (name, dtype)
    for name in native.instruction_sets()
    for dtype in (torch.float32, torch.bfloat16)
    if dtype == torch.float32 or name == "avx512_bf16"
]


@pytest.fixture(params=RUNS, ids=lambda run: f"{run[0]}-{run[1]}")
def dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    instruction_set, dtype = request.param
    with running(f"cpu-{instruction_set}"):
        yield dtype


def draw(rows: int, columns: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((rows, columns), generator=generator, dtype=torch.float64).add(0.1).to(dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_no_less_exact_than_plain_pytorch(
    dtype: torch.dtype, out_dtype: torch.dtype, shape: tuple[int, int, int]
) -> None:
    grad, rows = draw(shape[0], shape[1], dtype), draw(shape[0], shape[2], dtype, seed=1)
    exact = reference.backward(grad.double(), rows.double(), torch.float64, True)
    eager = reference.backward(grad, rows, out_dtype, True)
    ours = weight_gradient(grad, rows, out_dtype=out_dtype, backend="cpu")
    for name, right, other, found in zip(("weight", "bias"), exact, eager, ours, strict=True):
        assert found.dtype == out_dtype and found.shape == right.shape and found.is_contiguous()
        # Root mean squares: the largest of a few roundings is luck.
        error, allowed = ((values - right).square().mean().sqrt() for values in (found, other))
        assert error <= 2 * allowed + torch.finfo(out_dtype).eps / 8 * right.square().mean().sqrt(), name
    assert torch.equal(weight_gradient(grad, rows, out_dtype=out_dtype, bias=False, backend="cpu")[0], ours[0])


@pytest.mark.parametrize("mean", [0.0, 1.0, 10.0])
def test_sums_of_many_rows_round_no_more_than_plain_pytorch(dtype: torch.dtype, mean: float) -> None:
    for count in (200, 1616, 25600):
        grad = (draw(count, 64, torch.float64) + mean).to(dtype)
        exact = grad.double().sum(dim=0)
        ours, eager = (weight_gradient(grad, grad, backend=backend)[1] for backend in ("cpu", "eager"))
        error, allowed = ((sums - exact).square().mean().sqrt() for sums in (ours, eager))
        assert error <= 2 * allowed, count


def test_strides_do_not_matter(dtype: torch.dtype) -> None:
    grad, rows = (draw(30, 30, dtype, seed).mul(4).round() for seed in (0, 1))  # sums of whole numbers are exact
    wide = torch.full((60, 37), float("nan"), dtype=dtype)
    wide[:30, 3:33], wide[30:, 3:33] = grad, rows
    row = grad[:1].expand(30, 30)
    given = [
        (grad, rows), (wide[:30, 3:33], wide[30:, 3:33]), (grad.t().contiguous().t(), rows[:, :1].expand(30, 30)),
        (grad.view(2, 15, 30), rows.view(2, 15, 30)), (row, rows), (grad[0], rows[0]), (grad[:1, :1], rows[:1]),
    ]  # fmt: skip
    for first, second in given:
        flat = first.reshape(-1, first.shape[-1]).double()
        right = (flat.t() @ second.reshape(-1, second.shape[-1]).double(), flat.sum(dim=0))
        for found, expected in zip(
            weight_gradient(first, second, out_dtype=torch.float32, backend="cpu"), right, strict=True
        ):
            assert torch.equal(found, expected.float())


def test_same_bits_on_any_number_of_threads(dtype: torch.dtype) -> None:
    grad, rows = draw(700, 500, dtype), draw(700, 130, dtype, seed=1)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 4):
            torch.set_num_threads(count)
            found.append(weight_gradient(grad, rows, backend="cpu"))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


def test_no_rows(dtype: torch.dtype) -> None:
    of_weight, of_bias = weight_gradient(draw(0, 3, dtype), draw(0, 5, dtype), backend="cpu")
    assert of_weight.shape == (3, 5) and of_weight.eq(0).all() and of_bias.tolist() == [0.0] * 3


def test_infinities_and_none_stay_where_they_are(dtype: torch.dtype) -> None:
    grad, rows = draw(20, 30, dtype), draw(20, 40, dtype, seed=1)
    grad[4, 3], rows[2, 7] = torch.inf, torch.nan
    of_weight, of_bias = weight_gradient(grad, rows, backend="cpu")
    assert of_weight[:, 7].isnan().all() and of_weight[3].isfinite().sum() == 0 and of_bias[3] == torch.inf
    rest = torch.ones_like(of_weight, dtype=torch.bool)
    rest[3], rest[:, 7] = False, False
    assert of_weight[rest].isfinite().all() and of_bias.isfinite().sum() == 29


def test_the_result_can_be_differentiated() -> None:
    grad, rows = (draw(3, width, torch.float64).requires_grad_() for width in (4, 5))
    assert torch.autograd.gradcheck(weight_gradient, (grad, rows))
    both = torch.func.vmap(weight_gradient, in_dims=(0, None))(torch.stack([grad, 2 * grad]), rows)
    torch.testing.assert_close([part[1] for part in both], list(weight_gradient(2 * grad, rows)))


def test_opcheck() -> None:
    grad, rows = draw(6, 5, torch.float32), draw(6, 7, torch.float32)
    for given in ((grad, rows, None, True, "cpu"), (grad[:, :3], rows, torch.bfloat16, False, "cpu")):
        torch.library.opcheck(torch.ops.mae_dfer_kernels.weight_gradient.default, given)
    compiled = torch.compile(weight_gradient, fullgraph=True, backend="aot_eager")
    for found, right in zip(compiled(grad, rows), weight_gradient(grad, rows), strict=True):
        torch.testing.assert_close(found, right)


def test_left_to_pytorch_where_it_may_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    best = native.instruction_sets()[-1]
    grad, rows = draw(40, 30, torch.float32), draw(40, 20, torch.float32, seed=1)
    monkeypatch.setattr(native, "IS_AMD", True)
    assert native_weight_gradient.pays(grad) == best.startswith("avx512")
    assert native_weight_gradient.pays(grad.bfloat16()) == (best == "avx512_bf16")
    assert not native_weight_gradient.pays(grad.double()) and not native_weight_gradient.pays(grad.half())
    monkeypatch.setattr(native, "IS_AMD", False)
    for dtype in (torch.float32, torch.bfloat16):
        found = weight_gradient(grad.to(dtype), rows.to(dtype), bias=False)[0]
        assert torch.equal(found, grad.to(dtype).t() @ rows.to(dtype))


GRAD, ROWS = torch.zeros(3, 8), torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"grad": torch.tensor(1.0)}, ValueError, "grad must have shape"),
        ({"grad": GRAD.int()}, TypeError, "grad must be float64"),
        ({"rows": [1.0]}, TypeError, "rows must be a torch.Tensor"),
        ({"rows": torch.zeros(2, 4)}, ValueError, "grad and rows must have shapes"),
        ({"rows": ROWS.half()}, TypeError, "rows must have the dtype of grad"),
        ({"rows": ROWS.to("meta")}, ValueError, "rows must be on the device of grad"),
        ({"out_dtype": torch.float64}, TypeError, "out_dtype must be"),
        ({"backend": "quick"}, ValueError, "'quick' is none of auto, eager, cpu, triton, cuda"),
        ({"backend": "triton"}, RuntimeError, "there is no kernel of weight_gradient for a GPU"),
        ({"grad": GRAD.double(), "rows": ROWS.double(), "backend": "cpu"}, RuntimeError, "and grad is torch.float64"),
    ],
)
def test_mistakes_are_named(change: dict[str, object], kind: type[Exception], message: str) -> None:
    arguments: dict[str, object] = {"grad": GRAD, "rows": ROWS} | change
    with pytest.raises(kind, match=message):
        weight_gradient(**arguments)  # type: ignore[arg-type]
