"""The fused residual + LayerNorm, with an update and without, against plain PyTorch in float64, on every backend that
can run here."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from instruction_sets import running
from interpreted import run_by_interpreter
from torch import Tensor

from mae_dfer_kernels import layer_norm, native, residual_layer_norm
from mae_dfer_kernels.reference import residual_layer_norm as reference

# With TRITON_INTERPRET=1 the Triton kernels run here; `test_by_interpreter` sees to that in a child process.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
GPU = torch.cuda.is_available() and not INTERPRETED
RUNNERS = ["triton"] if INTERPRETED else [f"cpu-{name}" for name in native.instruction_sets()] + ["triton"] * GPU
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
EPS = 1e-6
# (x, update, out): the residual stream may be wider than what is added to it and what comes out.
MIXES = [("fp32", "fp32", "fp32"), ("fp32", "bf16", "bf16"), ("bf16", "bf16", "bf16"), ("fp16", "fp16", "fp16"),
         ("bf16", "fp32", "fp16")]  # fmt: skip
DOUBLE = ("fp64", "fp64", "fp64")
# An update with factors, without, and none at all, which is `layer_norm`.
FORMS = ["scaled", "plain", "alone"]


@pytest.fixture(params=RUNNERS)
def runner(request: pytest.FixtureRequest) -> Iterator[str]:
    with running(request.param) as backend:
        yield backend  # on a GPU: Triton's tensors are moved there


class Inputs:
    """x, update, weight, bias, row_scale and the gradients of the results."""

    def __init__(self, shape: tuple[int, ...], mix: tuple[str, str, str], form: str = "scaled", seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def draw(size: tuple[int, ...], dtype: torch.dtype, shift: float = 0.0) -> Tensor:
            return (torch.randn(size, generator=generator, dtype=torch.float64) + shift).to(dtype)

        x_dtype, update_dtype, self.out_dtype = (DTYPES[name] for name in mix)
        wide = torch.promote_types(x_dtype, torch.float32)
        self.x, self.update = draw(shape, x_dtype, 2.0), draw(shape, update_dtype)
        self.weight, self.bias = draw(shape[-1:], wide, 1.0), draw(shape[-1:], wide)
        keep = torch.rand(shape[:1], generator=generator) > 0.3
        self.row_scale = (keep / 0.7).to(wide) if form == "scaled" else None
        self.alone = form == "alone"
        self.grads: tuple[Tensor, ...] = (draw(shape, x_dtype), draw(shape, self.out_dtype))[self.alone :]

    def tensors(self, dtype: torch.dtype | None = None, device: str = "cpu") -> list[Tensor]:
        chosen = (self.x, *([] if self.alone else [self.update]), self.weight, self.bias)
        return [tensor.detach().to(device, dtype or tensor.dtype).requires_grad_() for tensor in chosen]


def results(
    call: Callable[..., tuple[Tensor, ...]], inputs: Inputs, dtype: torch.dtype | None = None, device: str = "cpu"
) -> list[Tensor]:
    """Both results and the gradients of x, update, weight and bias; without an update what is left of them."""
    tensors = inputs.tensors(dtype, device)
    outputs = call(*tensors)
    grads = [grad.to(output) for grad, output in zip(inputs.grads, outputs, strict=True)]
    found = [*outputs, *torch.autograd.grad(outputs, tensors, grads)]
    return [tensor.detach().cpu().double() for tensor in found]


def specification(inputs: Inputs, exact: bool) -> list[Tensor]:
    scale = inputs.row_scale
    if scale is not None and exact:
        scale = scale.double()

    def call(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        *update, weight, bias = rest
        shape = (x.shape[0], -1, x.shape[-1])
        out = reference.residual_layer_norm(
            x.reshape(shape), update[0].reshape(shape) if update else None, scale, weight, bias, EPS,
            torch.float64 if exact else inputs.out_dtype,
        )  # fmt: skip
        return tuple(result.view(x.shape) for result in out[inputs.alone :])

    return results(call, inputs, torch.float64 if exact else None)


def fused(inputs: Inputs, backend: str) -> list[Tensor]:
    device = "cuda" if backend == "triton" and GPU else "cpu"
    return results(functools.partial(operator, inputs, backend=backend), inputs, device=device)


def operator(inputs: Inputs, x: Tensor, *rest: Tensor, backend: str = "auto") -> tuple[Tensor, ...]:
    options: dict[str, Any] = {"eps": EPS, "out_dtype": inputs.out_dtype, "backend": backend}
    if inputs.alone:
        return (layer_norm(x, *rest, **options),)
    scale = None if inputs.row_scale is None else inputs.row_scale.to(x.device)
    return residual_layer_norm(x, *rest, row_scale=scale, **options)


def names(inputs: Inputs) -> list[str]:
    every = ["sum", "normed", "grad x", "grad update", "grad weight", "grad bias"]
    return [name for name in every if not (inputs.alone and name in ("sum", "grad update"))]


@pytest.mark.parametrize("mix", [*MIXES, DOUBLE], ids="-".join)
@pytest.mark.parametrize("shape", [(3, 7, 64), (2, 1, 13), (1, 40, 512), (2, 2, 3, 17), (4, 30, 5)], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_no_less_exact_than_plain_pytorch(
    runner: str, shape: tuple[int, ...], mix: tuple[str, str, str], form: str
) -> None:
    if runner == "triton" and mix == DOUBLE:
        pytest.skip("the Triton kernels have no float64")
    inputs = Inputs(shape, mix, form)
    exact, plain, found = specification(inputs, True), specification(inputs, False), fused(inputs, runner)
    for name, right, eager, ours in zip(names(inputs), exact, plain, found, strict=True):
        # Root mean squares: the largest of a few roundings is luck.
        error, allowed = (ours - right).square().mean().sqrt(), 2 * (eager - right).square().mean().sqrt()
        # Plain PyTorch in float64 is what float64 is compared with, so its own error says nothing.
        room = 16 if inputs.x.dtype == torch.float64 else 1 / 8
        floor = room * torch.finfo(inputs.x.dtype).eps * right.square().mean().sqrt()
        assert error <= allowed + floor, f"{name}: error {error:.3g}, plain PyTorch's {allowed / 2:.3g}"


@pytest.mark.parametrize("form", FORMS)
def test_strides_do_not_matter(runner: str, form: str) -> None:
    inputs = Inputs((2, 3, 5, 24), ("fp32", "bf16", "bf16"), form)
    right = fused(inputs, runner)
    wide = torch.full((2, 3, 7, 30), float("nan"))
    wide[:, :, 1:6, 2:26] = inputs.x
    inputs.x = wide[:, :, 1:6, 2:26]
    inputs.update = inputs.update.transpose(-1, -2).contiguous().transpose(-1, -2)
    *before, grad_normed = inputs.grads
    inputs.grads = *before, grad_normed.transpose(0, 1).contiguous().transpose(0, 1)
    for name, expected, found in zip(names(inputs), right, fused(inputs, runner), strict=True):
        assert torch.equal(expected, found), name


@pytest.mark.parametrize("form", FORMS)
def test_same_bits_on_any_number_of_threads(runner: str, form: str) -> None:
    inputs, threads, found = Inputs((5, 60, 96), ("fp32", "fp32", "fp32"), form), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(fused(inputs, runner))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_every_element_is_written(runner: str, form: str) -> None:
    torch.use_deterministic_algorithms(True)  # makes torch fill new memory with NaN
    try:
        assert all(tensor.isfinite().all() for tensor in fused(Inputs((3, 5, 21), MIXES[0], form), runner))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(0, 4, 8), (3, 0, 8)], ids=str)
def test_no_rows(runner: str, shape: tuple[int, ...], form: str) -> None:
    for tensor in fused(Inputs(shape, MIXES[0], form), runner):
        assert not tensor.any()


@pytest.mark.parametrize("used", [0, 1], ids=["sum alone", "normed alone"])
@pytest.mark.parametrize("wanted", range(4), ids=["x", "update", "weight", "bias"])
def test_gradients_of_some_alone(runner: str, used: int, wanted: int) -> None:
    if runner == "triton" and GPU:
        pytest.skip("which gradients are asked for does not depend on the device")
    inputs = Inputs((2, 3, 16), MIXES[0])

    def gradient(call: Callable[..., tuple[Tensor, Tensor]]) -> Tensor | None:
        tensors = [tensor.detach() for tensor in inputs.tensors()]
        tensors[wanted].requires_grad_()
        output = call(*tensors)[used]
        if not output.requires_grad:
            return None
        return torch.autograd.grad(output, tensors[wanted], inputs.grads[used], allow_unused=True)[0]

    found = gradient(lambda x, u, w, b: residual_layer_norm(x, u, w, b, row_scale=inputs.row_scale, backend=runner))
    right = gradient(
        lambda x, u, w, b: reference.residual_layer_norm(x, u, inputs.row_scale, w, b, EPS, torch.float32)
    )
    if right is None:
        assert found is None or not found.any()
    else:
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(INTERPRETED, reason="float64 is for the eager and the C++ backend")
@pytest.mark.parametrize("form", ["scaled", "alone"])
@pytest.mark.parametrize("backend", ["eager", "cpu"])
def test_gradcheck(backend: str, form: str) -> None:
    inputs = Inputs((2, 3, 5), DOUBLE, form)
    call = functools.partial(operator, inputs, backend=backend)
    assert torch.autograd.gradcheck(call, inputs.tensors())
    assert torch.autograd.gradgradcheck(call, inputs.tensors())


@pytest.mark.skipif(INTERPRETED, reason="registration does not depend on the backend")
def test_opcheck() -> None:
    x, update, weight, bias = Inputs((2, 3, 16), MIXES[1]).tensors()
    ops = torch.ops.mae_dfer_kernels
    scale = torch.tensor([0.0, 1.5])
    options = (scale, weight, bias, EPS, torch.bfloat16, "cpu")
    torch.library.opcheck(ops.residual_layer_norm.default, (x, update, *options))
    detached = [tensor.detach() for tensor in (x, update.to(torch.bfloat16), x)]
    arguments = (*detached, scale, weight.detach(), EPS, torch.float32, "cpu")
    torch.library.opcheck(ops.residual_layer_norm_backward.default, arguments)
    torch.library.opcheck(ops.layer_norm.default, (x, *options[1:]))
    for grad_sum in (None, detached[0]):
        torch.library.opcheck(
            ops.layer_norm_backward.default, (grad_sum, *detached[1:], weight.detach(), EPS, "cpu")
        )


@pytest.mark.skipif(INTERPRETED, reason="compiling does not depend on the backend")
@pytest.mark.parametrize("form", ["scaled", "alone"])
def test_compiles_into_one_graph(form: str) -> None:
    inputs = Inputs((2, 3, 16), MIXES[0], form)

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        return operator(inputs, *tensors)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for right, found in zip(results(call, inputs), results(compiled, inputs), strict=True):
        torch.testing.assert_close(found, right)


@pytest.mark.skipif(INTERPRETED, reason="this is what starts the interpreter")
def test_by_interpreter() -> None:
    assert " passed" in run_by_interpreter(__file__)


X, AFFINE = torch.zeros(2, 3, 8), torch.ones(8)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"x": [1.0]}, TypeError, "x must be a torch.Tensor"),
        ({"x": torch.zeros(8)}, ValueError, "x must have shape"),
        ({"x": X.int()}, TypeError, "x must be float64"),
        ({"x": X.to_sparse()}, TypeError, "x must be a dense"),
        ({"update": torch.zeros(2, 3, 7)}, ValueError, "update must have the shape of x"),
        ({"update": X.double()}, TypeError, "update must be float64 where x is"),
        ({"update": X.to("meta")}, ValueError, "update must be on the device of x"),
        ({"weight": torch.ones(7)}, ValueError, r"weight must have shape \(C,\)"),
        ({"weight": AFFINE.half()}, TypeError, "weight must be torch.float32"),
        ({"bias": None}, TypeError, "bias must be a torch.Tensor"),
        ({"row_scale": torch.ones(3)}, ValueError, "row_scale must have the shape of the first axes"),
        ({"row_scale": 0.5}, TypeError, "row_scale must be a torch.Tensor"),
        ({"row_scale": torch.ones(2, requires_grad=True)}, ValueError, "row_scale must not require"),
        ({"eps": -1.0}, ValueError, "eps must be finite"),
        ({"eps": "small"}, TypeError, "eps must be a number"),
        ({"out_dtype": torch.int8}, TypeError, "out_dtype must be float32"),
        ({"backend": "quick"}, ValueError, "'quick' is none of auto, eager, cpu, triton, cuda"),
    ],
)
def test_mistakes_are_named(change: dict[str, object], kind: type[Exception], message: str) -> None:
    arguments: dict[str, object] = {"x": X, "update": X, "weight": AFFINE, "bias": AFFINE} | change
    with pytest.raises(kind, match=message):
        residual_layer_norm(**arguments)  # type: ignore[arg-type]
    if not {"update", "row_scale"} & set(change):
        with pytest.raises(kind, match=message):
            layer_norm(**{name: value for name, value in arguments.items() if name != "update"})  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["eager", "cpu"])
@pytest.mark.parametrize("shape", [(4, 8), (3, 4, 8), (2, 3, 4, 8)], ids=str)
def test_gradients_of_leaves_are_their_own(shape: tuple[int, ...], backend: str) -> None:
    """That of the sum may be one tensor for both on its way, but what is kept at the leaves must not be one memory."""
    x, update = torch.randn(shape, requires_grad=True), torch.randn(shape, requires_grad=True)
    weight, bias = torch.ones(8), torch.zeros(8)
    for _ in range(2):
        residual_layer_norm(x, update, weight, bias, backend=backend)[0].sum().backward()
    assert x.grad is not None and update.grad is not None
    assert x.grad.eq(2).all() and update.grad.eq(2).all()
    x.grad.zero_()
    assert update.grad.eq(2).all()
