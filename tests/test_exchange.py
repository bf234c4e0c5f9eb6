"""The exchange: the absorbed form against the model's plain one, and its kernels against float64."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from instruction_sets import running
from interpreted import run_by_interpreter
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mae_dfer.models.layers import Attention, layer_norm
from mae_dfer_kernels import exchange, native
from mae_dfer_kernels.exchange import Weights, absorbing_pays
from mae_dfer_kernels.reference import exchange as reference

# With TRITON_INTERPRET=1 the Triton kernels run here; `test_triton_by_interpreter` sees to that in a child process.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
RUNNERS = ["triton"] if INTERPRETED else [f"cpu-{name}" for name in native.instruction_sets()]
DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
EPS = 1e-6
# (clips, groups a clip, rows, channels, heads, representative tokens): less than a vector and than a step of rows,
# a remainder of one in each, one representative token and several chunks a clip, several steps a chunk, and the
# published model's.
SHAPES = [(1, 1, 1, 1, 1, 1), (2, 3, 7, 26, 2, 3), (3, 1, 49, 17, 1, 5), (2, 2, 130, 40, 4, 1), (32, 1, 60, 12, 2, 2),
          (2, 4, 25, 512, 8, 8)]  # fmt: skip

forward_op = torch.ops.mae_dfer_kernels.exchange_rows.default
backward_op = torch.ops.mae_dfer_kernels.exchange_rows_backward.default


@pytest.fixture(params=RUNNERS)
def runner(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a backend that computes in its own kernels, set to one instruction set."""
    with running(request.param) as backend:
        yield backend


class Rows:
    """What the operator takes: (x, keys, key_bias, values, out_bias), row_scale, heads; and a gradient of x's shape.

    With the dtype of an ``update``, that is among the others, and update_scale, where ``scaled``, is not None.
    """

    def __init__(self, shape: tuple[int, ...], dtype: str = "fp32", scaled: bool = True, draw_number: int = 0,
                 update: str = "") -> None:  # fmt: skip
        clips, groups, rows, channels, self.heads, context = shape
        generator = torch.Generator().manual_seed(sum(shape) + 1000 * draw_number)

        def draw(*size: int, spread: float = 1.0) -> Tensor:
            return torch.randn(size, generator=generator, dtype=torch.float64) * spread

        narrow, pairs = DTYPES[dtype], self.heads * context
        wide = torch.promote_types(narrow, torch.float32)
        self.x = (draw(clips * groups, rows, channels) + 2.0).to(narrow)
        self.grad_out = draw(*self.x.shape).to(narrow)
        keys = draw(clips, pairs, channels, spread=2.0 * channels**-0.5)
        others = (keys, draw(clips, pairs), draw(clips, pairs, channels), draw(channels))
        self.others = [tensor.to(wide) for tensor in others]
        self.row_scale = torch.linspace(0.0, 1.25, clips, dtype=wide) if scaled else None
        self.update_scale = None
        if update:
            self.others.append(draw(*self.x.shape).to(DTYPES[update]))
            self.update_scale = torch.linspace(1.5, 0.5, clips * groups, dtype=wide) if scaled else None

    def results(self, call: Callable[..., Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
        """The output and the gradients of x and the others, computed in ``dtype`` or in their own."""
        tensors = [tensor.detach().to(dtype or tensor.dtype) for tensor in (self.x, *self.others)]
        tensors = [tensor.requires_grad_() for tensor in tensors]
        scales = (self.row_scale, self.update_scale)
        scale, update_scale = (part if part is None else part.to(dtype or part.dtype) for part in scales)
        update = tensors[5] if len(tensors) == 6 else None
        operand_dtype = min(tensors[0].dtype, tensors[1].dtype, key=lambda kind: kind.itemsize)
        out = call(*tensors[:5], scale, update, update_scale, None, self.heads, EPS, operand_dtype)
        return [tensor.detach().double() for tensor in (out, *torch.autograd.grad(out, tensors, self.grad_out.to(out)))]

    def narrow(self) -> Rows:
        """With keys and values in bfloat16, as autocast has them."""
        self.others[0], self.others[2] = self.others[0].bfloat16(), self.others[2].bfloat16()
        return self

    def fused(self, backend: str) -> list[Tensor]:
        return self.results(lambda *arguments: forward_op(*arguments, backend))


def assert_no_less_exact(exact: list[Tensor], eager: list[Tensor], found: list[Tensor], dtype: torch.dtype) -> None:
    """Root mean squares, since the largest of a few roundings is luck."""
    # Plain PyTorch in float64 is what float64 is compared with, so its own error says nothing.
    room = 64 if dtype == torch.float64 else 1 / 8
    for index, (right, rough, ours) in enumerate(zip(exact, eager, found, strict=True)):
        error, plain = ((tensor - right).square().mean().sqrt() for tensor in (ours, rough))
        floor = room * torch.finfo(dtype).eps * right.square().mean().sqrt()
        # Scores of one representative token have no gradient: what is found is rounding alone.
        floor = floor + torch.finfo(torch.promote_types(dtype, torch.float32)).eps
        assert error <= 2 * plain + floor, f"result {index}: error {error:.3g}, plain PyTorch's {plain:.3g}"


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_less_exact_than_plain_pytorch(runner: str, shape: tuple[int, ...], dtype: str) -> None:
    # Small shapes are drawn often: the error of a few gradients that nearly cancel is luck.
    few = math.prod(shape[:4]) < 2000
    draws = [Rows(shape, dtype, scaled=shape[0] > 1, draw_number=number) for number in range(8 if few else 1)]
    exact = [rows.results(reference.exchange_rows, torch.float64) for rows in draws]
    eager = [rows.results(reference.exchange_rows) for rows in draws]
    found = [rows.fused(runner) for rows in draws]
    assert_no_less_exact(*map(joined, (exact, eager, found)), draws[0].x.dtype)


@pytest.mark.parametrize("dtypes", ["fp32 bf16", "bf16 bf16", "bf16 fp32", "fp16 fp16", "fp64 fp64"])
@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_rows_with_an_update_are_no_less_exact(runner: str, shape: tuple[int, ...], dtypes: str) -> None:
    dtype, update = dtypes.split()
    draws = [Rows(shape, dtype, shape[0] != 3, number, update) for number in range(4)]
    exact = [rows.results(reference.exchange_rows, torch.float64) for rows in draws]
    eager = [rows.results(reference.exchange_rows) for rows in draws]
    found = [rows.fused(runner) for rows in draws]
    assert_no_less_exact(*map(joined, (exact, eager, found)), draws[0].x.dtype)


# The published model's; odd numbers of pairs and rows, several steps a chunk; and channels that are no whole vectors.
@pytest.mark.parametrize("shape", [SHAPES[-1], (2, 3, 49, 48, 3, 1), (1, 1, 500, 16, 1, 5), SHAPES[3]], ids=str)
@pytest.mark.parametrize("dtypes", ["fp32 bf16", "bf16 bf16", "fp32 fp16"])
def test_bf16_operands_are_no_less_exact(runner: str, shape: tuple[int, ...], dtypes: str) -> None:
    dtype, update = dtypes.split()
    rows = Rows(shape, dtype, update=update).narrow()
    exact, eager = rows.results(reference.exchange_rows, torch.float64), rows.results(reference.exchange_rows)
    assert_no_less_exact(exact, eager, rows.fused(runner), torch.bfloat16)


def joined(draws: list[list[Tensor]]) -> list[Tensor]:
    """Each result of all draws as one tensor."""
    return [torch.cat([tensor.flatten() for tensor in results]) for results in zip(*draws, strict=True)]


@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_rows_in_front(runner: str, shape: tuple[int, ...]) -> None:
    rows = Rows(shape)
    out, *grads = rows.fused(runner)
    front = torch.randn(rows.x.shape[0], 2, shape[3]).requires_grad_()
    leaves = [tensor.detach().requires_grad_() for tensor in (rows.x, *rows.others)]
    found = forward_op(*leaves, rows.row_scale, None, None, front, rows.heads, EPS, torch.float32, runner)
    assert torch.equal(found, torch.cat((front, out.float()), dim=1)) and found.is_contiguous()
    grad = torch.cat((torch.ones_like(front), rows.grad_out), dim=1)
    grad_front, *found_grads = torch.autograd.grad(found, [front, *leaves], grad)
    assert torch.equal(grad_front, torch.ones_like(front))
    assert all(torch.equal(a.double(), b) for a, b in zip(found_grads, grads, strict=True))


def test_large_logits(runner: str) -> None:
    rows = Rows((2, 2, 10, 32, 2, 4))
    rows.others[0] *= 1e4
    exact, eager = rows.results(reference.exchange_rows, torch.float64), rows.results(reference.exchange_rows)
    found = rows.fused(runner)
    assert all(tensor.isfinite().all() for tensor in found)
    assert_no_less_exact(exact, eager, found, torch.float32)


def test_a_row_that_is_no_number_spoils_no_other(runner: str) -> None:
    rows = Rows((2, 1, 11, 20, 2, 3))
    clean = rows.fused(runner)[0]
    rows.x[1, 4, 7] = float("nan")
    spoilt = rows.fused(runner)[0]
    assert spoilt[1, 4].isnan().all()
    clean[1, 4] = spoilt[1, 4] = 0.0
    assert torch.equal(clean, spoilt)


def test_every_element_is_written(runner: str) -> None:
    spoilt = Rows((1, 1, 96, 64, 4, 4))
    spoilt.x.fill_(float("nan"))
    spoilt.others[0].fill_(float("nan"))
    torch.use_deterministic_algorithms(True)  # makes torch fill new memory with NaN
    try:
        for shape in (*SHAPES[:5], (1, 1, 53, 16, 1, 3)):
            for update in ("", "bf16"):
                spoilt.fused(runner)  # and so does this with the memory that the kernels keep
                assert all(tensor.isfinite().all() for tensor in Rows(shape, update=update).fused(runner))
                assert all(tensor.isfinite().all() for tensor in Rows(shape, update=update).narrow().fused(runner))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("narrow", [False, True], ids=["fp32", "bf16 operands"])
def test_same_bits_on_any_number_of_threads(runner: str, narrow: bool) -> None:
    rows, threads, found = Rows((3, 2, 200, 48, 4, 4)), torch.get_num_threads(), []
    if narrow:
        rows.narrow()
    try:
        for count in (1, 2, 3, 3):
            torch.set_num_threads(count)
            found.append(rows.fused(runner))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_a_dropped_clip_is_passed_through(runner: str) -> None:
    rows = Rows((2, 3, 9, 24, 2, 3), "bf16")  # the first clip's row_scale is 0
    out, grad_x, grad_keys, grad_key_bias, grad_values, _ = rows.fused(runner)
    assert torch.equal(out[:3], rows.x[:3].double()) and torch.equal(grad_x[:3], rows.grad_out[:3].double())
    assert not any(grad[0].any() for grad in (grad_keys, grad_key_bias, grad_values))
    assert grad_keys[1].any()


def test_null_addresses_are_refused() -> None:
    with pytest.raises(ValueError, match="null"):
        native.library().exchange_forward((1, 1, 1, 8, 1, 1), (0, 8, 8, 1), None, *[0] * 8, False, EPS, 1)
    with pytest.raises(ValueError, match="clips must divide groups"):
        native.library().exchange_forward((2, 3, 1, 8, 1, 1), (64, 8, 8, 1), None, *[64] * 8, False, EPS, 1)
    with pytest.raises(ValueError, match="null"):
        native.library().exchange_forward((1, 1, 1, 8, 1, 1), (64, 8, 8, 1), (0, 8, 8, 1), *[64] * 8, False, EPS, 1)


class Block(nn.Module):
    """The exchange step of an LGI block: parameters and plain forward are the model's own."""

    def __init__(self, channels: int, heads: int, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.norm, self.context_norm = layer_norm(channels), layer_norm(channels)
        self.attn = Attention(channels, heads, fused=False)
        generator = torch.Generator().manual_seed(channels)
        for name, parameter in self.named_parameters():
            spread = channels**-0.5 if parameter.dim() == 2 else 0.3
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * spread
            parameter.data = (parameter.data + name.endswith("norm.weight")).to(dtype)

    def weights(self) -> Weights:
        norm, attn = self.norm, self.attn
        return Weights(norm.weight, norm.bias, attn.qkv.weight, attn.q_bias, attn.v_bias, attn.proj.weight,
                       attn.proj.bias)  # fmt: skip

    def plain(self, local: Tensor, representative: Tensor, row_scale: Tensor) -> Tensor:
        update = self.attn.cross(local.flatten(1, -2), self.norm, representative, self.context_norm)
        return local + update.view(local.shape) * row_scale.view(-1, *(1 for _ in local.shape[1:]))

    def forward(self, local: Tensor, representative: Tensor, row_scale: Tensor | None, **options: Any) -> Tensor:
        context = self.context_norm(representative)
        return exchange(local, context, *self.weights(), self.attn.num_heads, row_scale=row_scale, **options)


def tokens(*shape: int, context: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """local, representative, row_scale and a gradient of local's shape."""
    generator = torch.Generator().manual_seed(sum(shape))
    sizes = (shape, (shape[0], context, shape[-1]), shape)
    local, representative, grad = (torch.randn(s, generator=generator, dtype=torch.float64) for s in sizes)
    row_scale = torch.linspace(0.5, 1.5, shape[0], dtype=torch.float64)
    return local.to(dtype) + 1.0, representative.to(dtype), row_scale.to(dtype), grad.to(dtype)


def block_results(
    block: Block, call: Callable[..., Tensor], inputs: tuple[Tensor, ...], **options: Any
) -> list[Tensor]:
    """The output and the gradients of both kinds of tokens and of every parameter."""
    local, representative, row_scale, grad = inputs
    leaves = [tensor.detach().requires_grad_() for tensor in (local, representative)]
    out = call(*leaves, row_scale, **options)
    assert out.dtype == local.dtype and out.is_contiguous()
    found = torch.autograd.grad(out, [*leaves, *block.parameters()], grad)
    return [tensor.detach().double() for tensor in (out, *found)]


@pytest.mark.parametrize("context", [1, 3], ids=["one representative", "three"])
def test_every_form_is_the_models(runner: str, context: int) -> None:
    block, inputs = Block(24, 4), tokens(2, 3, 10, 24, context=context)
    right = block_results(block, block.plain, inputs)
    for form, backend in (("plain", "auto"), ("absorbed", "eager"), ("absorbed", runner), ("auto", "auto")):
        found = block_results(block, block, inputs, form=form, backend=backend)
        for index, (expected, ours) in enumerate(zip(right, found, strict=True)):
            torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10, msg=f"{form} {backend}: {index}")


@pytest.mark.parametrize("scale_axes", [None, 0, 1, 2])
def test_an_update_is_part_of_the_stream(runner: str, scale_axes: int | None) -> None:
    block, (local, representative, row_scale, grad) = Block(24, 4), tokens(2, 3, 10, 24, context=3)
    update, front = tokens(2, 3, 12, 24, context=1)[0].split((10, 2), dim=2)  # both views
    scale = None if scale_axes is None else torch.rand((2, 3)[:scale_axes], dtype=torch.float64)
    factors = 1.0 if scale is None else scale.view(*scale.shape, *(1 for _ in range(4 - scale.dim())))
    leaves = [tensor.detach().requires_grad_() for tensor in (local, update, representative)]

    def results(call: Callable[..., Tensor]) -> list[Tensor]:
        out = call(*leaves)
        return [out, *torch.autograd.grad(out, [*leaves, *block.parameters()], torch.cat((grad, front), dim=2))]

    right = results(
        lambda x, update, context: torch.cat((front, block.plain(x + factors * update, context, row_scale)), dim=2)
    )
    for form, backend in (("plain", "auto"), ("absorbed", "eager"), ("absorbed", runner)):
        options = {"update_scale": scale, "front": front, "form": form, "backend": backend}
        found = results(lambda x, update, context: block(x, context, row_scale, update=update, **options))  # noqa: B023
        for index, (expected, ours) in enumerate(zip(right, found, strict=True)):
            torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10, msg=f"{form} {backend}: {index}")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_absorbing_costs_no_exactness(runner: str, dtype: str) -> None:
    inputs = tokens(2, 2, 30, 64, context=4, dtype=DTYPES[dtype])
    block = Block(64, 4, DTYPES[dtype])
    eager = block_results(block, block, inputs, form="plain")
    found = block_results(block, block, inputs, form="absorbed", backend=runner)
    block.double()
    exact = block_results(block, block.plain, tuple(tensor.double() for tensor in inputs))
    assert_no_less_exact(exact, eager, found, DTYPES[dtype])


@pytest.mark.skipif(INTERPRETED, reason="this is what starts the interpreter")
def test_triton_by_interpreter() -> None:
    """From LayerNorm's parameters to gradients; test_triton_exchange.py looks at the kernels themselves."""
    assert "2 passed" in run_by_interpreter(__file__, "-k", "no_exactness", timeout=300)


def test_strides_do_not_matter(runner: str) -> None:
    block, (local, representative, row_scale, grad) = Block(24, 4), tokens(2, 3, 5, 24, context=3)
    right = block_results(block, block, (local, representative, row_scale, grad), form="absorbed", backend=runner)
    wide = torch.full((2, 3, 6, 30), float("nan"), dtype=torch.float64)
    wide[:, :, 1:, 3:27] = local  # as the model cuts them from behind the representative tokens
    turned = local.transpose(0, 3).contiguous().transpose(0, 3)
    spread = representative.repeat_interleave(2, dim=1)[:, ::2]
    for other in (wide[:, :, 1:, 3:27], turned):
        inputs = (other, spread, row_scale, grad.transpose(1, 3).contiguous().transpose(1, 3))
        found = block_results(block, block, inputs, form="absorbed", backend=runner)
        assert all(torch.equal(a, b) for a, b in zip(right, found, strict=True))


@pytest.mark.parametrize("shape", [(0, 3, 5, 8), (2, 3, 0, 8), (2, 0, 8)], ids=str)
@pytest.mark.parametrize("form", ["absorbed", "plain", "auto"])
def test_no_rows(runner: str, shape: tuple[int, ...], form: str) -> None:
    block = Block(8, 2)
    out, *grads = block_results(block, block, tokens(*shape, context=2), form=form)
    assert out.shape == grads[0].shape == shape and not any(grad.any() for grad in grads)


@pytest.mark.parametrize("wanted", [*Weights._fields, "local", "context", None])
def test_gradients_of_some_alone(wanted: str | None) -> None:
    block, (local, context, _, grad) = Block(16, 2), tokens(2, 5, 16, context=3)
    given = {"local": local, "context": context, **block.weights()._asdict()}

    def gradient(form: str) -> Tensor | None:
        arguments = {name: tensor.detach().requires_grad_(name == wanted) for name, tensor in given.items()}
        out = exchange(**arguments, num_heads=2, form=form)
        return torch.autograd.grad(out, arguments[wanted], grad)[0] if wanted else out.requires_grad

    torch.testing.assert_close(gradient("absorbed"), gradient("plain"), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", ["eager", "cpu"])
def test_gradcheck(backend: str) -> None:
    block, (local, context, row_scale, _) = Block(6, 2), tokens(2, 3, 6, context=2)

    def call(local: Tensor, context: Tensor, *weights: Tensor) -> Tensor:
        return exchange(local, context, *weights, 2, row_scale=row_scale, form="absorbed", backend=backend)

    leaves = [tensor.detach().requires_grad_() for tensor in (local, context, *block.weights())]
    assert torch.autograd.gradcheck(call, leaves, fast_mode=True)
    rows = Rows((2, 1, 3, 5, 2, 2), "fp64", update="fp64")
    leaves = [tensor.requires_grad_() for tensor in (rows.x, *rows.others)]
    # The fast mode compares one projection of the Jacobian: second derivatives in full take half a minute.
    options = (2, EPS, torch.float64, backend)
    front = torch.randn(2, 2, 5, dtype=torch.float64, requires_grad=True)

    def call_rows(front: Tensor, *tensors: Tensor) -> Tensor:
        return forward_op(*tensors[:5], rows.row_scale, tensors[5], rows.update_scale, front, *options)

    for check, fast in ((torch.autograd.gradcheck, False), (torch.autograd.gradgradcheck, True)):
        assert check(call_rows, [front, *leaves], fast_mode=fast)


@pytest.mark.parametrize("backend", ["eager", "cpu"])
def test_opcheck(backend: str) -> None:
    rows = Rows((2, 2, 5, 24, 2, 3), "bf16", update="fp32")
    options = (2, EPS, torch.bfloat16, backend)
    *leaves, update = (tensor.requires_grad_() for tensor in (rows.x, *rows.others))
    updates = ((None, None), (update, rows.update_scale))
    front = torch.randn(4, 1, 24, dtype=torch.bfloat16, requires_grad=True)
    for added, given in zip(updates, (None, front), strict=True):
        torch.library.opcheck(forward_op, (*leaves, rows.row_scale, *added, given, *options))
    detached = [tensor.detach() for tensor in leaves]
    turned = rows.grad_out.transpose(0, 2).contiguous().transpose(0, 2)
    for added in ((None, None), (update.detach(), rows.update_scale)):
        torch.library.opcheck(backward_op, (turned, *detached, rows.row_scale, *added, *options))


def autocasted(block: nn.Module) -> Callable[..., Tensor]:
    """Its forward under autocast; the backward is outside, as in training."""
    return torch.autocast("cpu", dtype=torch.bfloat16)(block.forward)


@pytest.mark.parametrize("autocast", [False, True], ids=["alone", "autocast"])
def test_compiles_into_one_graph(autocast: bool) -> None:
    dtype = torch.float32 if autocast else torch.float64
    block, inputs = Block(32, 4, dtype), tokens(2, 3, 10, 32, context=3, dtype=dtype)
    call = autocasted(block) if autocast else block.forward
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    right = block_results(block, call, inputs, form="absorbed")
    torch.testing.assert_close(block_results(block, compiled, inputs, form="absorbed"), right)


@pytest.mark.parametrize("stream", ["fp32", "bf16"])
def test_autocast_multiplies_in_bf16_where_that_is_faster(runner: str, stream: str) -> None:
    """And then no less exactly than the plain form, which autocast has in bfloat16 everywhere."""
    block, dtype = Block(64, 4, torch.float32), DTYPES[stream]
    local, *others = tokens(2, 2, 30, 64, context=4, dtype=torch.float32)
    inputs = (local.to(dtype), *others[:2], others[2].to(dtype))
    alone = block_results(block, block, inputs, form="absorbed", backend=runner)
    found = block_results(block, autocasted(block), inputs, form="absorbed", backend=runner)
    eager = block_results(block, autocasted(block), inputs, form="plain")
    if stream == "fp32":
        same = all(torch.equal(a, b) for a, b in zip(found, alone, strict=True))
        assert same != native.multiplies_bf16()
    block.double()
    exact = block_results(block, block.plain, tuple(tensor.double() for tensor in inputs))
    assert_no_less_exact(exact, eager, found, torch.bfloat16)


@pytest.mark.parametrize("context", [2, 6, 12])
def test_auto_takes_the_form_that_multiplies_less(context: int) -> None:
    block, (local, representative, *_) = Block(64, 4, torch.float32), tokens(2, 3, 10, 64, context=context)
    local, representative = local.float(), representative.float()

    def flops(form: str) -> int:
        math_attention = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
        with FlopCounterMode(display=False) as counter, torch.no_grad(), math_attention:
            block(local, representative, None, form=form)
        return int(counter.get_total_flops())

    counted = {form: flops(form) for form in ("plain", "absorbed")}
    assert absorbing_pays(30, context, 64, 4) == (counted["absorbed"] < counted["plain"])
    assert flops("auto") == min(counted.values())


def test_flop_counter_sees_both_directions(runner: str) -> None:
    rows = Rows((2, 3, 7, 24, 2, 3))
    matmul = 2 * (2 * 3 * 7) * 24 * 6
    with FlopCounterMode(display=False) as counter:
        out = forward_op(rows.x.requires_grad_(), *rows.others, None, None, None, None, 2, EPS, rows.x.dtype, runner)
    assert counter.get_total_flops() == 2 * matmul
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 5 * matmul


LOCAL, VECTOR = torch.zeros(2, 3, 8), torch.ones(8)
GOOD = {"local": LOCAL, "context": torch.zeros(2, 4, 8), "num_heads": 2, "qkv_weight": torch.zeros(24, 8),
        "proj_weight": torch.zeros(8, 8),
        **{name: VECTOR for name in ("norm_weight", "norm_bias", "q_bias", "v_bias", "proj_bias")}}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"local": [1.0]}, TypeError, "local must be a torch.Tensor"),
        ({"local": LOCAL.int()}, TypeError, "local must be float64"),
        ({"local": LOCAL.to_sparse()}, TypeError, "local must be a dense"),
        ({"local": torch.zeros(2, 8)}, ValueError, "local must have shape"),
        ({"context": None}, TypeError, "context must be a torch.Tensor"),
        ({"context": torch.zeros(3, 4, 8)}, ValueError, r"context must have shape \(B, K, C\)"),
        ({"context": torch.zeros(2, 0, 8)}, ValueError, "context .* K at least 1"),
        ({"context": torch.zeros(2, 4, 8).double()}, TypeError, "context must be float64 where local is"),
        ({"context": torch.zeros(2, 4, 8, device="meta")}, ValueError, "context must be on the device of local"),
        ({"norm_weight": torch.ones(7)}, ValueError, r"norm_weight must have shape \(C,\) = \(8,\)"),
        ({"norm_bias": VECTOR.half()}, TypeError, "norm_bias must be torch.float32"),
        ({"qkv_weight": torch.zeros(8, 24)}, ValueError, r"qkv_weight must have shape \(3\*C, C\) = \(24, 8\)"),
        ({"q_bias": None}, TypeError, "q_bias must be a torch.Tensor"),
        ({"v_bias": VECTOR.to("meta")}, ValueError, "v_bias must be on the device of local"),
        ({"proj_weight": torch.zeros(8, 7)}, ValueError, r"proj_weight must have shape \(C, C\)"),
        ({"proj_bias": VECTOR.double()}, TypeError, "proj_bias must be float64 where local is"),
        ({"num_heads": 3}, ValueError, "num_heads must divide"),
        ({"num_heads": 2.0}, TypeError, "num_heads must be an int"),
        ({"row_scale": torch.ones(3)}, ValueError, "row_scale must have the shape of the first axes of local"),
        ({"row_scale": torch.ones(2, requires_grad=True)}, ValueError, "row_scale must not require"),
        ({"update": torch.zeros(2, 4, 8)}, ValueError, "update must have the shape of local"),
        ({"update": LOCAL.double()}, TypeError, "update must be float64 where local is"),
        ({"update_scale": torch.ones(2)}, ValueError, "update_scale must be None without an update"),
        ({"update": LOCAL, "update_scale": torch.ones(3)}, ValueError, "update_scale must have the shape of the first"),
        ({"eps": float("nan")}, ValueError, "eps must be finite"),
        ({"form": "folded"}, ValueError, "form: 'folded' is none of auto, absorbed, plain"),
        ({"backend": "quick"}, ValueError, "'quick' is none of auto, eager, cpu, triton, cuda"),
        ({"backend": None}, TypeError, "backend must be a string"),
    ],
)
def test_mistakes_are_named(change: dict[str, object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        exchange(**{**GOOD, **change})  # type: ignore[arg-type]
