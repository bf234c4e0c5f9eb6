"""The Triton kernels of the exchange, on a GPU or by Triton's interpreter.

Whether Triton interprets is settled when it is first imported, so without a GPU the tests of the kernels are
run by `test_by_interpreter`, in a child process with TRITON_INTERPRET=1, and are skipped in this one.

Letters: B clips, N groups of M rows a clip, C channels, H heads, K representative tokens, J = H·K.
"""

import os
import re
import subprocess
import sys
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from mae_dfer_kernels.reference import exchange as reference  # noqa: E402
from mae_dfer_kernels.triton import exchange  # noqa: E402

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
runs_kernels = pytest.mark.usefixtures("kernels_that_run")
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
EPS = 1e-6
NAMES = ("out", "grad x", "grad keys", "grad key_bias", "grad values", "grad out_bias", "grad update")


class Case(NamedTuple):
    clips: int
    groups: int
    rows: int
    channels: int
    heads: int
    tokens: int
    x_dtype: torch.dtype
    dtype: torch.dtype

    def __str__(self) -> str:
        kinds = "-".join(str(dtype).removeprefix("torch.") for dtype in (self.x_dtype, self.dtype))
        return f"B{self.clips}-N{self.groups}-M{self.rows}-C{self.channels}-H{self.heads}-K{self.tokens}-{kinds}"


CASES = [
    Case(2, 1, 1, 1, 1, 1, FP32, FP32),  # one pair, one row, one channel, whose LayerNorm is 0
    Case(1, 3, 7, 40, 1, 1, BF16, FP32),  # one pair
    Case(2, 2, 9, 24, 2, 5, FP32, FP32),  # tokens padded to 8
    Case(2, 3, 30, 72, 3, 8, BF16, FP32),  # heads padded to 4; a chunk of channels and an eighth
    Case(2, 1, 65, 128, 8, 8, BF16, FP32),  # the base model's pairs; tiles of rows and one row more
    Case(1, 2, 20, 17, 2, 3, FP16, FP32),  # odd number of channels
    Case(1, 2, 9, 40, 3, 11, FP16, FP16),  # both padded
    Case(1, 1, 18, 33, 5, 13, FP32, FP32),  # more columns than a program of the last kernel owns
    Case(1, 2, 10, 80, 8, 48, BF16, BF16),  # as many representatives as pay
    Case(2, 2, 6, 48, 4, 4, FP32, BF16),  # float32 residual stream, 16-bit operands
]  # fmt: skip
KERNELS = [
    pytest.param(Case(2, 2, 10, 24, 2, 5, FP32, FP32), id="float32"),
    pytest.param(Case(2, 2, 10, 72, 3, 8, BF16, FP32), id="bfloat16"),
]


@pytest.fixture
def kernels_that_run():
    if DEVICE == "cpu" and not INTERPRETED:
        pytest.skip("without a GPU, test_by_interpreter runs these in a child process")


@pytest.fixture(autouse=True)
def poisoned_empty(monkeypatch):
    """`torch.empty` holds NaN, so that an element nobody writes cannot pass for a right one."""
    empty = torch.empty

    def poisoned(*args, **kwargs):
        tensor = empty(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", poisoned)


class Inputs(NamedTuple):
    grad_out: Tensor
    x: Tensor
    keys: Tensor
    key_bias: Tensor
    values: Tensor
    out_bias: Tensor
    row_scale: Tensor | None
    update: Tensor | None
    update_scale: Tensor | None
    heads: int

    def double(self) -> "Inputs":
        return Inputs(*(part.double() if isinstance(part, Tensor) else part for part in self))

    def narrow(self) -> "Inputs":
        """What eager computes on in the dtype of the kernels' operands."""
        dtype = operand_dtype(self)
        names = ("keys", "key_bias", "values")
        return self._replace(**{name: getattr(self, name).to(dtype) for name in names})


def make_inputs(
    case: Case, logits: float = 1.0, scaled: bool = True, update_dtype: torch.dtype | None = None
) -> Inputs:
    """Scores are of the size of `logits`; with `scaled`, the second clip's factor is 0. With `update_dtype` there is an
    update of the rows, and with `scaled` its first group's factor is 0."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, dtype: torch.dtype = case.dtype, factor: float = 1.0, shift: float = 0.0) -> Tensor:
        return (factor * torch.randn(shape, generator=generator) + shift).to(DEVICE, dtype)

    clips, pairs, channels = case.clips, case.heads * case.tokens, case.channels
    shape = (clips * case.groups, case.rows, channels)
    row_scale = torch.tensor([1.25, 0.0] * clips)[:clips].to(DEVICE) if scaled else None
    update = None if update_dtype is None else draw(*shape, dtype=update_dtype)
    update_scale = torch.linspace(0.0, 1.5, shape[0]).to(DEVICE) if scaled and update is not None else None
    return Inputs(
        draw(*shape, dtype=case.x_dtype), draw(*shape, dtype=case.x_dtype, shift=2.0),
        draw(clips, pairs, channels, factor=logits * channels**-0.5), draw(clips, pairs, factor=logits),
        draw(clips, pairs, channels), draw(channels, dtype=FP32), row_scale, update, update_scale, case.heads,
    )  # fmt: skip


def run_triton(inputs: Inputs) -> tuple[Tensor, ...]:
    grad_out, *given = inputs
    options = (EPS, operand_dtype(inputs))
    return exchange.forward(*given, *options, 0), *exchange.backward(grad_out, *given, *options)


def operand_dtype(inputs: Inputs) -> torch.dtype:
    """The narrower of that of the rows and that of the keys."""
    return inputs.keys.dtype if inputs.x.dtype == FP32 else inputs.x.dtype


def run_reference(inputs: Inputs) -> tuple[Tensor, ...]:
    grad_out, *given, heads = inputs
    out = reference.exchange_rows(*given, None, heads, EPS)
    return out, *reference.backward(grad_out, *given, heads, EPS)


def assert_within_twice_eager(inputs: Inputs) -> None:
    """Error against float64 at most twice eager's in the operands' dtype, plus an eighth of an ulp.

    Root mean squares: the largest of a few roundings is luck.
    """
    found, eager, exact = run_triton(inputs), run_reference(inputs.narrow()), run_reference(inputs.double())
    like = (inputs.x, *inputs[1:6], *(() if inputs.update is None else (inputs.update,)))
    for name, given, ours, plain, right in zip(NAMES[: len(like)], like, found, eager, exact, strict=True):
        assert ours.dtype == given.dtype and ours.shape == given.shape and ours.is_contiguous(), name
        error, allowed = ((tensor.double() - right).square().mean().sqrt() for tensor in (ours, plain))
        floor = torch.finfo(plain.dtype).eps / 8 * right.square().mean().sqrt()
        assert error <= 2 * allowed + floor, f"{name}: error {error:.3g}, plain PyTorch's {allowed:.3g}"


@pytest.mark.skipif(INTERPRETED, reason="this is the child process")
def test_by_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert child.returncode == 0, child.stdout[-6000:] + child.stderr[-2000:]
    passed = re.search(r"(\d+) passed", child.stdout)
    assert passed is not None and int(passed[1]) > len(CASES), child.stdout[-2000:]


@runs_kernels
@pytest.mark.parametrize("case", CASES, ids=str)
def test_error_against_float64(case):
    assert_within_twice_eager(make_inputs(case))


@runs_kernels
@pytest.mark.parametrize("case", KERNELS)
def test_without_row_scale(case):
    assert_within_twice_eager(make_inputs(case, scaled=False))


@runs_kernels
@pytest.mark.parametrize("scaled", [True, False], ids=["scaled", "unscaled"])
@pytest.mark.parametrize(
    ("x_dtype", "operand_dtype", "update_dtype"), [(FP32, BF16, BF16), (BF16, FP32, FP32), (FP32, FP32, FP16)]
)
def test_with_an_update(x_dtype, operand_dtype, update_dtype, scaled):
    inputs = make_inputs(Case(2, 5, 13, 72, 3, 8, x_dtype, operand_dtype), scaled=scaled, update_dtype=update_dtype)
    assert_within_twice_eager(inputs)
    strided = inputs._replace(x=_without_first_row(inputs.x), update=_swapped(inputs.update))
    assert all(torch.equal(a, b) for a, b in zip(run_triton(inputs), run_triton(strided), strict=True))


@runs_kernels
@pytest.mark.parametrize("case", KERNELS)
def test_large_logits(case):
    """Scores of hundreds: exp2 overflows without a maximum, and one maximum for all heads leaves some without any
    probability; most rows attend to one token of a head alone."""
    inputs = make_inputs(case, logits=300.0)
    assert all(tensor.isfinite().all() for tensor in run_triton(inputs))
    assert_within_twice_eager(inputs)


@runs_kernels
def test_mean_far_from_zero():
    """The variance of x + 1000 in float32, and its products, lose digits unless the mean is taken off first."""
    inputs = make_inputs(Case(1, 1, 10, 40, 2, 5, FP32, FP32))
    assert_within_twice_eager(inputs._replace(x=inputs.x + 1000))


@runs_kernels
def test_rows_of_a_clip_split_among_programs(monkeypatch):
    """The last kernel's sums in one part, in two parts of unequal size, and in more."""
    inputs = make_inputs(Case(1, 5, 8, 24, 2, 5, FP32, FP32))
    tiles = 3
    assert -(-40 // exchange.tile_backward_pairs(16, 4, 4).rows) == tiles
    for programs in (1, 2, tiles):
        monkeypatch.setattr(exchange, "_PAIRS_PROGRAMS", programs)
        assert_within_twice_eager(inputs)


@runs_kernels
@pytest.mark.parametrize("case", KERNELS)
def test_two_runs_agree_bit_for_bit(case):
    inputs = make_inputs(case)
    assert all(torch.equal(a, b) for a, b in zip(run_triton(inputs), run_triton(inputs), strict=True))


def _swapped(x: Tensor) -> Tensor:
    return x.transpose(0, 1).contiguous().transpose(0, 1)


def _without_first_row(x: Tensor) -> Tensor:
    """As local tokens lie beside the representative token of their region."""
    wide = torch.full((x.shape[0], x.shape[1] + 1, x.shape[2] + 8), float("nan"), dtype=x.dtype, device=x.device)
    wide[:, 1:, 8:] = x
    return wide[:, 1:, 8:]


def _every_second_channel(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=-1)[..., ::2]


@runs_kernels
@pytest.mark.parametrize("case", KERNELS)
@pytest.mark.parametrize("view", [_swapped, _without_first_row, _every_second_channel])
def test_strides_do_not_matter(case, view):
    inputs = make_inputs(case)
    assert not view(inputs.x).is_contiguous()
    strided = inputs._replace(
        grad_out=_swapped(view(inputs.grad_out)), x=view(inputs.x), keys=_swapped(inputs.keys),
        values=_every_second_channel(inputs.values), key_bias=inputs.key_bias.T.contiguous().T,
    )  # fmt: skip
    for name, plain, found in zip(NAMES[:6], run_triton(inputs), run_triton(strided), strict=True):
        assert torch.equal(plain, found) and found.is_contiguous(), name


@runs_kernels
def test_expanded_gradient():
    """What `out.sum().backward()` hands over has only zero strides."""
    inputs = make_inputs(Case(2, 2, 10, 24, 2, 5, FP32, FP32))
    ones = torch.ones((), device=DEVICE).expand_as(inputs.x)
    plain = run_triton(inputs._replace(grad_out=ones.contiguous()))
    assert all(torch.equal(a, b) for a, b in zip(plain, run_triton(inputs._replace(grad_out=ones)), strict=True))


@runs_kernels
@pytest.mark.parametrize("shape", [(0, 2, 4), (2, 2, 0)], ids=["B0", "M0"])
def test_empty_input_launches_nothing(shape, monkeypatch):
    monkeypatch.setattr(exchange, "kernels", None)
    clips, groups, rows = shape
    inputs = make_inputs(Case(clips, groups, rows, 16, 2, 4, FP32, FP32), update_dtype=BF16)
    out, grad_x, *grads, grad_update = run_triton(inputs)
    assert out.shape == grad_x.shape == grad_update.shape == (clips * groups, rows, 16)
    assert [grad.shape for grad in grads] == [(clips, 8, 16), (clips, 8), (clips, 8, 16), (16,)]
    assert not any(grad.any() for grad in grads)


@runs_kernels
@pytest.mark.parametrize(
    ("x", "pairs", "words"),
    [
        (torch.zeros(1, 4, 96, dtype=torch.float64), 8, "cast it to float32"),
        (torch.zeros(1, 4, 96), 513, "J = 513"),
        (torch.zeros(1, 1, 48).expand(2**31, 1, 48), 8, "split the batch"),
    ],
    ids=["float64", "J513", "rows"],
)
def test_unavailable_says_what_to_do(x, pairs, words):
    x = x.to(DEVICE) if x.is_contiguous() else x[:1].to(DEVICE).expand_as(x)
    reason = exchange.unavailable(x, pairs)
    assert reason is not None and words in reason


@pytest.mark.skipif(INTERPRETED, reason="the interpreter does run on the CPU")
def test_unavailable_on_the_cpu_without_the_interpreter():
    reason = exchange.unavailable(torch.zeros(1, 4, 48), 8)
    assert reason is not None and "TRITON_INTERPRET=1" in reason
