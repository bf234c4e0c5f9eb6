"""The Triton kernels of region attention, on a GPU or by Triton's interpreter.

Whether Triton interprets is settled when it is first imported, so without a GPU the tests of the kernels are
run by `test_by_interpreter`, in a child process with TRITON_INTERPRET=1, and are skipped in this one.

Letters: R regions, S tokens of a region, H heads, D channels of a head.
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

import mae_dfer_kernels  # noqa: E402
from mae_dfer_kernels.reference import region_attention as reference  # noqa: E402
from mae_dfer_kernels.triton import device, launch, region_attention  # noqa: E402

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
runs_kernels = pytest.mark.usefixtures("kernels_that_run")
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
SEED = 2**62 + 987654321


class Case(NamedTuple):
    regions: int
    tokens: int
    num_heads: int
    head_dim: int
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"S{self.tokens}-D{self.head_dim}-{str(self.dtype).removeprefix('torch.')}"


# Every S with two dtypes, every D with several S, and each kernel: packed tile, tile, loop.
CASES = [
    Case(2, 1, 2, 16, FP32), Case(70, 1, 1, 64, BF16), Case(3, 5, 2, 32, BF16), Case(13, 5, 1, 128, FP16),
    Case(7, 11, 2, 64, FP32), Case(11, 11, 1, 64, BF16), Case(2, 11, 1, 128, FP32), Case(2, 41, 2, 64, BF16),
    Case(1, 41, 1, 32, FP16), Case(2, 51, 1, 64, FP16), Case(1, 51, 2, 128, BF16), Case(2, 64, 1, 64, BF16),
    Case(1, 64, 1, 16, FP32), Case(2, 101, 2, 64, BF16), Case(1, 101, 1, 32, FP32), Case(1, 128, 1, 64, BF16),
    Case(1, 128, 1, 128, FP16), Case(1, 201, 1, 64, BF16), Case(1, 201, 1, 16, FP32), Case(1, 513, 1, 32, FP16),
]  # fmt: skip
KERNELS = [
    pytest.param(Case(7, 11, 2, 64, BF16), id="packed"),
    pytest.param(Case(2, 51, 2, 32, BF16), id="tile"),
    pytest.param(Case(2, 130, 1, 32, FP16), id="loop"),
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


def make_inputs(case: Case, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(qkv, grad_out)."""
    generator = torch.Generator().manual_seed(seed)
    width = case.num_heads * case.head_dim
    qkv = torch.randn(case.regions, case.tokens, 3 * width, generator=generator)
    grad_out = torch.randn(case.regions, case.tokens, width, generator=generator)
    return qkv.to(DEVICE, case.dtype), grad_out.to(DEVICE, case.dtype)


def run_triton(qkv, grad_out, num_heads, scale, dropout_p=0.0, seed=0):
    """(out, dqkv)."""
    out = region_attention.forward(qkv, num_heads, scale, dropout_p, seed)
    return out, region_attention.backward(grad_out, qkv, num_heads, scale, dropout_p, seed)


def run_reference(qkv, grad_out, num_heads, scale, dropout_p=0.0, seed=0):
    """(out, dqkv) by autograd through the reference, in the dtype of qkv."""
    qkv = qkv.detach().clone().requires_grad_()
    out = reference.region_attention(qkv, num_heads, scale, dropout_p, seed)
    return out.detach(), torch.autograd.grad(out, qkv, grad_out)[0]


def assert_within_twice_eager(qkv, grad_out, num_heads, scale, dropout_p=0.0, seed=0):
    """Error against float64 at most twice eager's in the same dtype, plus an eighth of an ulp.

    Root mean squares: the largest of a few roundings is luck.
    """
    options = (num_heads, scale, dropout_p, seed)
    results = run_triton(qkv, grad_out, *options)
    eager = run_reference(qkv, grad_out, *options)
    exact = run_reference(qkv.double(), grad_out.double(), *options)
    for name, got, same_dtype, truth in zip(("out", "dqkv"), results, eager, exact, strict=True):
        assert got.dtype == qkv.dtype and got.is_contiguous() and got.shape == truth.shape
        error, allowed = ((tensor.double() - truth).square().mean().sqrt() for tensor in (got, same_dtype))
        floor = torch.finfo(qkv.dtype).eps / 8 * truth.square().mean().sqrt()
        assert error <= 2 * allowed + floor, f"{name}: error {error:.2e}, eager's {allowed:.2e}"


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
    assert_within_twice_eager(*make_inputs(case), case.num_heads, case.head_dim**-0.5)


@runs_kernels
@pytest.mark.parametrize("case", KERNELS)
def test_error_with_dropout(case):
    assert_within_twice_eager(*make_inputs(case), case.num_heads, case.head_dim**-0.5, 0.3, SEED)


@runs_kernels
@pytest.mark.parametrize("case", KERNELS)
@pytest.mark.parametrize("scale", [-0.7, 0.0], ids=["negative", "zero"])
def test_any_scale(case, scale):
    assert_within_twice_eager(*make_inputs(case), case.num_heads, scale)


@runs_kernels
@pytest.mark.parametrize("case", KERNELS)
def test_large_logits(case):
    """Scores of thousands: exp2 overflows without the row maximum; most rows attend to one key alone."""
    qkv, grad_out = make_inputs(case._replace(dtype=FP32))
    out, grad = run_triton(qkv * 30, grad_out, case.num_heads, 1.0)
    assert out.isfinite().all() and grad.isfinite().all()
    assert_within_twice_eager(qkv * 30, grad_out, case.num_heads, 1.0)


@runs_kernels
@pytest.mark.parametrize(
    ("case", "tile"),
    [
        (Case(5, 41, 1, 64, BF16), launch.Tile(128, 3, 64, 8)),
        (Case(3, 51, 1, 64, BF16), launch.Tile(128, 2, 128, 8)),
        (Case(5, 8, 2, 32, BF16), launch.Tile(32, 4, 16, 4)),
    ],
    ids=["3x41", "2x51", "4x8-full"],
)
def test_other_packings(case, tile, monkeypatch):
    """Regions stacked otherwise than the launch table has it; the last group is not full."""
    monkeypatch.setattr(launch, "tile_forward", lambda *shape: tile)
    monkeypatch.setattr(launch, "tile_backward", lambda *shape: tile)
    assert_within_twice_eager(*make_inputs(case), case.num_heads, case.head_dim**-0.5)


@runs_kernels
@pytest.mark.parametrize(
    ("case", "first"),
    [(Case(2, 11, 2, 64, FP32), 0), (Case(2, 51, 2, 64, FP32), 0), (Case(1, 150, 2, 32, FP32), 118)],
    ids=["S11", "S51", "S150-loop"],
)
def test_dropout_mask_is_the_reference_mask(case, first):
    """With zero scores and v = identity on D columns, out is the mask of these columns / (S (1 - p))."""
    regions, tokens, num_heads, head_dim, dtype = case
    dropout_p = 0.4
    qkv = torch.zeros(regions, tokens, 3, num_heads, head_dim, dtype=dtype)
    columns = torch.arange(min(head_dim, tokens - first))
    qkv[:, first + columns, 2, :, columns] = 1.0
    out = region_attention.forward(qkv.flatten(2).to(DEVICE), num_heads, 1.0, dropout_p, SEED).cpu()
    out = out.view(regions, tokens, num_heads, head_dim).transpose(1, 2)[..., : len(columns)]
    keep = reference.dropout_keep_mask(regions, num_heads, tokens, dropout_p, SEED)
    keep = keep[..., first : first + len(columns)]
    torch.testing.assert_close(out, keep / (tokens * (1 - dropout_p)), rtol=1e-6, atol=0.0)
    assert 0.5 < keep.float().mean() < 0.7


@runs_kernels
@pytest.mark.parametrize("case", KERNELS)
def test_two_runs_agree_bit_for_bit(case):
    qkv, grad_out = make_inputs(case)
    first = run_triton(qkv, grad_out, case.num_heads, 0.2, 0.1, SEED)
    second = run_triton(qkv, grad_out, case.num_heads, 0.2, 0.1, SEED)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def _swapped(x: Tensor) -> Tensor:
    return x.transpose(0, 1).contiguous().transpose(0, 1)


def _sliced(x: Tensor) -> Tensor:
    wide = torch.full((x.shape[0], x.shape[1] + 1, x.shape[2] + 8), float("nan"), dtype=x.dtype, device=x.device)
    wide[:, 1:, 8:] = x
    return wide[:, 1:, 8:]


def _every_second_channel(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=-1)[..., ::2]


@runs_kernels
@pytest.mark.parametrize("case", KERNELS)
@pytest.mark.parametrize("view", [_swapped, _sliced, _every_second_channel])
def test_strides_do_not_matter(case, view):
    qkv, grad_out = make_inputs(case)
    assert not view(qkv).is_contiguous()
    plain = run_triton(qkv, grad_out, case.num_heads, 0.2)
    strided = run_triton(view(qkv), view(grad_out), case.num_heads, 0.2)
    assert all(torch.equal(a, b) for a, b in zip(plain, strided, strict=True))


@runs_kernels
@pytest.mark.parametrize("case", KERNELS)
def test_expanded_gradient(case):
    """What `out.sum().backward()` hands over has only zero strides."""
    qkv, grad_out = make_inputs(case)
    ones = torch.ones((), dtype=case.dtype, device=DEVICE)
    expanded = region_attention.backward(ones.expand_as(grad_out), qkv, case.num_heads, 0.2, 0.0, 0)
    plain = region_attention.backward(torch.ones_like(grad_out), qkv, case.num_heads, 0.2, 0.0, 0)
    assert torch.equal(expanded, plain)


@runs_kernels
@pytest.mark.parametrize("shape", [(0, 11, 96), (3, 0, 96)], ids=["R0", "S0"])
def test_empty_input_launches_nothing(shape, monkeypatch):
    def fail(*_):
        raise AssertionError("launched")

    monkeypatch.setattr(region_attention, "_launch_tile", fail)
    qkv = torch.zeros(shape, device=DEVICE)
    out, grad = run_triton(qkv, qkv[..., :32], 2, 1.0)
    assert out.shape == (*shape[:2], 32) and grad.shape == shape


@runs_kernels
def test_public_operator_differentiates_through_the_backend():
    case = Case(3, 11, 2, 16, FP32)
    qkv, grad_out = make_inputs(case)
    qkv.requires_grad_()
    out = mae_dfer_kernels.region_attention(qkv, 2, dropout_p=0.2, seed=SEED, backend="triton")
    out.backward(grad_out)
    truth = run_reference(qkv.double(), grad_out.double(), 2, 16**-0.5, 0.2, SEED)
    torch.testing.assert_close(out.detach().double(), truth[0], rtol=0.0, atol=1e-5)
    torch.testing.assert_close(qkv.grad.double(), truth[1], rtol=0.0, atol=1e-5)


@runs_kernels
@pytest.mark.parametrize(
    ("qkv", "num_heads", "words"),
    [
        (torch.zeros(1, 4, 96, dtype=torch.float64), 2, "cast it to float32"),
        (torch.zeros(1, 4, 3 * 48), 1, "D = 48"),
        (torch.zeros(1, 1025, 48), 1, "S = 1025"),
        (torch.zeros(1, 1, 48).expand(2**31, 1, 48), 1, "split the batch"),
    ],
    ids=["float64", "D48", "S1025", "grid"],
)
def test_unavailable_says_what_to_do(qkv, num_heads, words):
    qkv = qkv.to(DEVICE) if qkv.is_contiguous() else qkv[:1].to(DEVICE).expand_as(qkv)
    reason = region_attention.unavailable(qkv, num_heads)
    assert reason is not None and words in reason
    with pytest.raises(ValueError, match=re.escape(reason)):
        region_attention.forward(qkv, num_heads, 1.0, 0.0, 0)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter does run on the CPU")
def test_unavailable_on_the_cpu_without_the_interpreter():
    reason = region_attention.unavailable(torch.zeros(1, 4, 48), 1)
    assert reason is not None and "TRITON_INTERPRET=1" in reason


def test_unavailable_on_old_gpus(monkeypatch):
    monkeypatch.setattr(device, "interpreted", lambda: False)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    reason = device.unavailable(torch.device("cuda"))
    assert reason is not None and "7.5" in reason and "8.0" in reason
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert device.unavailable(torch.device("cuda")) is None


def test_unavailable_with_an_old_triton(monkeypatch):
    monkeypatch.setattr(device.triton, "__version__", "3.5.1")
    reason = region_attention.unavailable(torch.zeros(1, 4, 48), 1)
    assert reason is not None and "3.5.1" in reason and ">= 3.6" in reason


def test_unavailable_without_triton():
    """Importing the module does not need Triton; a child process hides it."""
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch\n"
        "from mae_dfer_kernels.triton import region_attention\n"
        "print(region_attention.unavailable(torch.zeros(1, 4, 48), 1))\n"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "install triton >= 3.6" in child.stdout
