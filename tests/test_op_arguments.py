"""Every operator under arguments that it was not made for: the right result, or an exception that names the argument.

Thousands of calls an operator, in a child process, so that a crash is a failing test with the call that caused it. A
new operator is one entry in `PUBLIC` and one for each function that it registers in `REGISTERED`.
"""

from __future__ import annotations

import inspect
import math
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hostile
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import mae_dfer_kernels
from mae_dfer_kernels import BackendUnavailable
from mae_dfer_kernels.reference import column_sums as column_sums_reference
from mae_dfer_kernels.reference import gelu_gradient as gelu_gradient_reference
from mae_dfer_kernels.reference import region_attention as region_attention_reference
from mae_dfer_kernels.reference import residual_layer_norm as residual_layer_norm_reference
from mae_dfer_kernels.reference import weight_gradient as weight_gradient_reference

Arguments = dict[str, Any]
Draw = Callable[[Any], Any]

# Set in the child processes alone: the file that says which call is running, so that its end can be told.
CALL_FILE = os.environ.get("MAE_DFER_HOSTILE_CALLS")
EXAMPLES = {"public": 1000, "registered": 500}
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
BACKENDS = st.sampled_from(["auto", "eager", "cpu"])


def normal(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(math.prod(shape))).to(dtype)


def wanting_gradient(draw: Draw, arguments: Arguments, *names: str) -> Arguments:
    for name in names:
        arguments[name].requires_grad_(draw(st.booleans()))
    return arguments


def good_region_attention(draw: Draw) -> Arguments:
    heads, dropout_p = draw(st.integers(1, 3)), draw(st.sampled_from([0.0, 0.3]))
    width = 3 * heads * draw(st.integers(1, 9))
    qkv = normal(draw(st.integers(0, 3)), draw(st.integers(0, 9)), width, dtype=draw(st.sampled_from(FLOATS)))
    arguments = {
        "qkv": qkv, "num_heads": heads, "scale": draw(st.sampled_from([None, 0.7, 2])), "dropout_p": dropout_p,
        "seed": draw(st.sampled_from([0, 7, 2**63 - 1])) if dropout_p else None, "backend": draw(BACKENDS),
    }  # fmt: skip
    return wanting_gradient(draw, arguments, "qkv")


def plain_region_attention(qkv: Tensor, num_heads: int, **options: Any) -> tuple[Tensor, ...]:
    scale = options["scale"]
    scale = (qkv.shape[-1] // (3 * num_heads)) ** -0.5 if scale is None else scale
    return (
        region_attention_reference.region_attention(
            qkv, num_heads, float(scale), options["dropout_p"], options["seed"] or 0
        ),
    )


def good_residual_layer_norm(draw: Draw) -> Arguments:
    leading = draw(st.lists(st.integers(0, 3), max_size=2))
    dtype = draw(st.sampled_from(FLOATS))
    others = (torch.float64,) if dtype == torch.float64 else FLOATS[1:]
    shape = (*leading, draw(st.integers(0, 6)), draw(st.integers(1, 19)))
    wide = torch.promote_types(dtype, draw(st.sampled_from([dtype, torch.float32])))
    scaled = draw(st.integers(-1, len(leading)))
    arguments = {
        "x": normal(*shape, dtype=dtype), "update": normal(*shape, dtype=draw(st.sampled_from(others))),
        "weight": normal(*shape[-1:], dtype=wide), "bias": normal(*shape[-1:], dtype=wide),
        "row_scale": None if scaled < 0 else normal(*leading[:scaled], dtype=draw(st.sampled_from(FLOATS))),
        "eps": draw(st.sampled_from([0.01, 1])), "out_dtype": draw(st.sampled_from([None, *others])),
        "backend": draw(BACKENDS),
    }  # fmt: skip
    return wanting_gradient(draw, arguments, "x", "update", "weight", "bias")


def plain_residual_layer_norm(
    x: Tensor, update: Tensor, weight: Tensor, bias: Tensor, row_scale: Tensor | None, eps: float, **options: Any
) -> tuple[Tensor, ...]:
    leading = x.shape[:-2]
    shape = (math.prod(leading), *x.shape[-2:])
    if row_scale is not None:
        row_scale = row_scale.reshape((*row_scale.shape, *(1 for _ in leading[row_scale.dim() :]))).expand(leading)
        row_scale = row_scale.reshape(shape[0])
    results = residual_layer_norm_reference.residual_layer_norm(
        x.reshape(shape), update.reshape(shape), row_scale, weight, bias, eps, options["out_dtype"] or x.dtype
    )
    return tuple(result.view(x.shape) for result in results)


def good_layer_norm(draw: Draw) -> Arguments:
    given = good_residual_layer_norm(draw)
    return {name: value for name, value in given.items() if name not in ("update", "row_scale")}


def plain_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, **options: Any) -> tuple[Tensor, ...]:
    return residual_layer_norm_reference.residual_layer_norm(
        x, None, None, weight, bias, eps, options["out_dtype"] or x.dtype
    )[1:]


def good_column_sums(draw: Draw) -> Arguments:
    shape = (*draw(st.lists(st.integers(0, 4), max_size=2)), draw(st.integers(1, 19)))
    arguments = {"rows": normal(*shape, dtype=draw(st.sampled_from(FLOATS))), "backend": draw(BACKENDS)}
    return wanting_gradient(draw, arguments, "rows")


def plain_column_sums(rows: Tensor, backend: str) -> tuple[Tensor, ...]:
    return (column_sums_reference.forward(rows.reshape(math.prod(rows.shape[:-1]), rows.shape[-1])),)


def good_gelu_gradient(draw: Draw) -> Arguments:
    shape = (*draw(st.lists(st.integers(0, 4), max_size=2)), draw(st.integers(1, 19)))
    dtype = draw(st.sampled_from(FLOATS))
    arguments = {name: normal(*shape, dtype=dtype) for name in ("grad", "x")}
    return wanting_gradient(draw, {**arguments, "backend": draw(BACKENDS)}, "grad", "x")


def plain_gelu_gradient(grad: Tensor, x: Tensor, backend: str) -> tuple[Tensor, ...]:
    rows = (math.prod(x.shape[:-1]), x.shape[-1])
    grad_x, gelu_x, sums = gelu_gradient_reference.backward(grad.reshape(rows), x.reshape(rows))
    return grad_x.view(x.shape), gelu_x.view(x.shape), sums


def good_weight_gradient(draw: Draw) -> Arguments:
    leading = draw(st.lists(st.integers(0, 4), max_size=2))
    dtype = draw(st.sampled_from(FLOATS))
    outs = (torch.float64,) if dtype == torch.float64 else FLOATS[1:]
    arguments = {
        "grad": normal(*leading, draw(st.integers(1, 19)), dtype=dtype),
        "rows": normal(*leading, draw(st.integers(1, 19)), dtype=dtype),
        "out_dtype": draw(st.sampled_from([None, *outs])), "bias": draw(st.booleans()),
        "backend": draw(BACKENDS if dtype == torch.float32 else st.sampled_from(["auto", "eager"])),
    }  # fmt: skip
    return wanting_gradient(draw, arguments, "grad", "rows")


def plain_weight_gradient(
    grad: Tensor, rows: Tensor, out_dtype: torch.dtype | None, bias: bool, backend: str
) -> tuple[Tensor, ...]:
    grad, rows = (tensor.reshape(math.prod(tensor.shape[:-1]), tensor.shape[-1]) for tensor in (grad, rows))
    return weight_gradient_reference.backward(grad, rows, out_dtype or grad.dtype, bias)


EXCHANGE_WEIGHTS = ("norm_weight", "norm_bias", "qkv_weight", "q_bias", "v_bias", "proj_weight", "proj_bias")


def good_exchange(draw: Draw) -> Arguments:
    heads = draw(st.integers(1, 3))
    channels = heads * draw(st.integers(1, 5))
    clips, leading = draw(st.integers(0, 2)), draw(st.lists(st.integers(0, 3), min_size=1, max_size=2))
    dtype = draw(st.sampled_from(FLOATS))
    others = (torch.float64,) if dtype == torch.float64 else FLOATS[1:]
    wide = torch.promote_types(dtype, draw(st.sampled_from([dtype, torch.float32])))
    shapes = {"qkv_weight": (3 * channels, channels), "proj_weight": (channels, channels)}
    update = draw(st.sampled_from([None, normal(clips, *leading, channels, dtype=draw(st.sampled_from(others)))]))
    scaled = -1 if update is None else draw(st.integers(-1, len(leading)))
    arguments = {
        "local": normal(clips, *leading, channels, dtype=dtype),
        "context": normal(clips, draw(st.integers(1, 4)), channels, dtype=draw(st.sampled_from(others))),
        **{name: normal(*shapes.get(name, (channels,)), dtype=wide) / 4 for name in EXCHANGE_WEIGHTS},
        "num_heads": heads,
        "row_scale": draw(st.sampled_from([None, normal(clips, dtype=torch.float32)])),
        "update": update,
        "update_scale": None if scaled < 0 else normal(*(clips, *leading)[:scaled], dtype=torch.float32),
        "front": draw(st.sampled_from([None, normal(clips, *leading[:-1], 2, channels, dtype=dtype)])),
        "eps": draw(st.sampled_from([0.01, 1])), "form": draw(st.sampled_from(["auto", "plain", "absorbed"])),
        "backend": draw(BACKENDS),
    }  # fmt: skip
    return wanting_gradient(draw, arguments, "local", "context", draw(st.sampled_from(EXCHANGE_WEIGHTS)))


def plain_exchange(
    local: Tensor, context: Tensor, *, num_heads: int, row_scale: Tensor | None, update: Tensor | None,
    update_scale: Tensor | None, front: Tensor | None, eps: float, **rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    if update is not None:
        wide = torch.promote_types(local.dtype, torch.float32)
        scale = torch.ones(()) if update_scale is None else update_scale
        scale = scale.view(*scale.shape, *(1 for _ in range(local.dim() - scale.dim())))
        local = (local.to(wide) + scale.to(wide) * update.to(wide)).to(local.dtype)
    weights = {name: rest[name].to(local.dtype) for name in EXCHANGE_WEIGHTS}
    channels = local.shape[-1]
    normed = torch.nn.functional.layer_norm(
        local.flatten(1, -2), (channels,), weights["norm_weight"], weights["norm_bias"], eps
    )
    query_weight, key_weight, value_weight = weights["qkv_weight"].split(channels)
    context = context.to(local.dtype)
    query, key = normed @ query_weight.T + weights["q_bias"], context @ key_weight.T
    value = context @ value_weight.T + weights["v_bias"]
    heads = (part.unflatten(-1, (num_heads, channels // num_heads)).transpose(1, 2) for part in (query, key, value))
    query, key, value = heads
    probs = ((query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)).softmax(dim=-1)
    update = (probs @ value).transpose(1, 2).flatten(2) @ weights["proj_weight"].T + weights["proj_bias"]
    if row_scale is not None:
        factors = row_scale.expand(local.shape[:1]).to(update.dtype)
        update = update * factors[:, None, None]
    rows = local + update.reshape(local.shape)
    return (rows if front is None else torch.cat((front, rows), dim=-2),)


@dataclass(frozen=True)
class Operator:
    """What is drawn for a call that must succeed, plain PyTorch for the same arguments (by their names), and which
    tensors may want no gradient."""

    good: Callable[[Draw], Arguments]
    plain: Callable[..., tuple[Tensor, ...]]
    constants: tuple[str, ...] = ()


PUBLIC = {
    "region_attention": Operator(good_region_attention, plain_region_attention),
    "column_sums": Operator(good_column_sums, plain_column_sums),
    "exchange": Operator(good_exchange, plain_exchange, ("row_scale", "update_scale")),
    "layer_norm": Operator(good_layer_norm, plain_layer_norm),
    "gelu_gradient": Operator(good_gelu_gradient, plain_gelu_gradient),
    "residual_layer_norm": Operator(good_residual_layer_norm, plain_residual_layer_norm, ("row_scale",)),
    "weight_gradient": Operator(good_weight_gradient, plain_weight_gradient),
}


def good_registered_attention(draw: Draw) -> Arguments:
    arguments = good_region_attention(draw)
    width = arguments["qkv"].shape[-1]
    scale = (width // (3 * arguments["num_heads"])) ** -0.5 if arguments["scale"] is None else arguments["scale"]
    backend = draw(st.sampled_from(["eager", "cpu"]))
    return {**arguments, "scale": float(scale), "seed": arguments["seed"] or 0, "backend": backend}


def good_registered_attention_backward(draw: Draw) -> Arguments:
    arguments = good_registered_attention(draw)
    qkv = arguments["qkv"].requires_grad_(False)
    grad_out = normal(*qkv.shape[:2], qkv.shape[2] // 3, dtype=qkv.dtype)
    return {"grad_out": grad_out, **arguments}


def good_registered_norm(draw: Draw) -> Arguments:
    given = good_residual_layer_norm(draw)
    x = given["x"]
    shape = (math.prod(x.shape[:-2]), *x.shape[-2:])
    scale = draw(st.sampled_from([None, normal(shape[0], dtype=torch.promote_types(x.dtype, torch.float32))]))
    return {
        "x": x.detach().reshape(shape), "update": given["update"].detach().reshape(shape), "row_scale": scale,
        "weight": given["weight"], "bias": given["bias"], "eps": float(given["eps"]),
        "out_dtype": given["out_dtype"] or x.dtype, "backend": draw(st.sampled_from(["eager", "cpu"])),
    }  # fmt: skip


def good_registered_norm_backward(draw: Draw) -> Arguments:
    given = good_registered_norm(draw)
    x = given["x"]
    return {
        "grad_sum": draw(st.sampled_from([None, normal(*x.shape, dtype=x.dtype)])),
        "grad_normed": normal(*x.shape, dtype=given["out_dtype"]), "total": x, "row_scale": given["row_scale"],
        "weight": given["weight"].detach(), "eps": given["eps"], "update_dtype": given["update"].dtype,
        "backend": given["backend"],
    }  # fmt: skip


def good_registered_norm_alone(draw: Draw) -> Arguments:
    given = good_registered_norm(draw)
    return {name: value for name, value in given.items() if name not in ("update", "row_scale")}


def good_registered_norm_alone_backward(draw: Draw) -> Arguments:
    given = good_registered_norm_backward(draw)
    names = ("grad_sum", "grad_normed", "x", "weight", "eps", "backend")
    return {name: given["total" if name == "x" else name] for name in names}


def good_registered_exchange(draw: Draw) -> Arguments:
    heads, context, clips = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 2))
    channels, pairs = draw(st.integers(1, 9)), heads * context
    dtype = draw(st.sampled_from(FLOATS))
    wide = torch.promote_types(dtype, torch.float32)
    rows = (clips * draw(st.integers(0, 3)), draw(st.integers(0, 5)), channels)
    others = (torch.float64,) if dtype == torch.float64 else FLOATS[1:]
    update = draw(st.sampled_from([None, normal(*rows, dtype=draw(st.sampled_from(others)))]))
    scales = [None] if update is None else [None, normal(rows[0], dtype=wide)]
    arguments = {
        "x": normal(*rows, dtype=dtype), "keys": normal(clips, pairs, channels, dtype=wide) / 4,
        "key_bias": normal(clips, pairs, dtype=wide), "values": normal(clips, pairs, channels, dtype=wide),
        "out_bias": normal(channels, dtype=wide),
        "row_scale": draw(st.sampled_from([None, normal(clips, dtype=wide)])),
        "update": update, "update_scale": draw(st.sampled_from(scales)),
        "front": draw(st.sampled_from([None, normal(rows[0], 2, channels, dtype=dtype)])), "num_heads": heads,
        "eps": draw(st.sampled_from([0.01, 1.0])), "operand_dtype": dtype,
        "backend": draw(st.sampled_from(["eager", "cpu"])),
    }  # fmt: skip
    return wanting_gradient(draw, arguments, "x", "keys", "key_bias", "values", "out_bias")


def good_registered_exchange_backward(draw: Draw) -> Arguments:
    given = {
        name: value.detach() if isinstance(value, Tensor) else value
        for name, value in good_registered_exchange(draw).items()
        if name != "front"
    }
    return {"grad_out": normal(*given["x"].shape, dtype=given["x"].dtype), **given}


def good_registered_column_sums(draw: Draw) -> Arguments:
    rows = normal(draw(st.integers(0, 5)), draw(st.integers(1, 19)), dtype=draw(st.sampled_from(FLOATS)))
    return {"rows": rows, "backend": draw(st.sampled_from(["eager", "cpu"]))}


def good_registered_gelu_gradient(draw: Draw) -> Arguments:
    rows, dtype = (draw(st.integers(0, 5)), draw(st.integers(1, 19))), draw(st.sampled_from(FLOATS))
    arguments = {name: normal(*rows, dtype=dtype) for name in ("grad", "x")}
    return {**arguments, "backend": draw(st.sampled_from(["eager", "cpu"]))}


def good_registered_weight_gradient(draw: Draw) -> Arguments:
    given = good_weight_gradient(draw)
    backend = given.pop("backend").replace("auto", "eager")
    matrices = {
        name: given[name].detach().reshape(math.prod(given[name].shape[:-1]), given[name].shape[-1])
        for name in ("grad", "rows")
    }
    return {**given, **matrices, "backend": backend}


REGISTERED = {
    "column_sums": good_registered_column_sums,
    "exchange_rows": good_registered_exchange,
    "exchange_rows_backward": good_registered_exchange_backward,
    "layer_norm": good_registered_norm_alone,
    "layer_norm_backward": good_registered_norm_alone_backward,
    "gelu_gradient": good_registered_gelu_gradient,
    "region_attention": good_registered_attention,
    "region_attention_backward": good_registered_attention_backward,
    "residual_layer_norm": good_registered_norm,
    "residual_layer_norm_backward": good_registered_norm_backward,
    "weight_gradient": good_registered_weight_gradient,
}
"""Arguments of the functions under `torch.ops.mae_dfer_kernels`, which callers reach without the public checks."""


class Call:
    """Arguments by name, and which of them were changed to what."""

    def __init__(self, op: str, arguments: Arguments, changes: dict[str, str], summed: bool) -> None:
        self.op, self.arguments, self.changes, self.summed = op, arguments, changes, summed

    def __repr__(self) -> str:
        # Tensors by type and size alone: to print what some of them hold would be a crash of its own.
        shown = {
            name: f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else value
            for name, value in self.arguments.items()
            if name not in self.changes
        }
        return f"{self.op}: changed {self.changes}; the others {shown}"

    @property
    def must_succeed(self) -> bool:
        constants = PUBLIC[self.op].constants if self.op in PUBLIC else ()
        return all(
            change in hostile.LIES and not (name in constants and change in hostile.WANT_GRADIENT)
            for name, change in self.changes.items()
        )


def kinds(op: str, registered: bool) -> dict[str, str]:
    """The kind of each argument: tensor, int, float, bool, dtype or str."""
    if registered:
        schema = getattr(torch.ops.mae_dfer_kernels, op).default._schema
        types = {argument.name: str(argument.real_type) for argument in schema.arguments}
    else:
        parameters = inspect.signature(getattr(mae_dfer_kernels, op)).parameters
        types = {name: str(parameter.annotation) for name, parameter in parameters.items()}
    known = {"Tensor": "tensor", "dtype": "dtype", "ScalarType": "dtype", "SymInt": "int", "int": "int",
             "float": "float", "bool": "bool", "str": "str"}  # fmt: skip
    return {name: next(known[key] for key in known if key in text) for name, text in types.items()}


VALUES = {"int": hostile.INTEGERS, "float": hostile.NUMBERS, "dtype": hostile.DTYPES, "str": hostile.STRINGS,
          "bool": {"true": True, "false": False}}  # fmt: skip
CHANGES = {
    "tensor": (*hostile.LIES, *hostile.UNFIT, *hostile.JUNK),
    **{kind: (*values, *(key for key in hostile.JUNK if key not in values)) for kind, values in VALUES.items()},
}


def changed(value: Any, kind: str, change: str) -> Any:
    if kind != "tensor":
        return VALUES[kind][change] if change in VALUES[kind] else hostile.JUNK[change]
    if change in hostile.JUNK:
        return hostile.JUNK[change]
    if value is None and change in hostile.LIES:
        return None
    function = hostile.LIES[change] if change in hostile.LIES else hostile.UNFIT[change]
    try:
        return function(torch.ones(2) if value is None else value)
    except (RuntimeError, ValueError, TypeError):
        return value  # this tensor cannot be changed so: it has no such axes, or no such type


@st.composite
def calls(draw: Draw, op: str, registered: bool) -> Call:
    arguments = REGISTERED[op](draw) if registered else PUBLIC[op].good(draw)
    kind_of = kinds(op, registered)
    changes: dict[str, str] = {}
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 0)))):
        name = draw(st.sampled_from([name for name in arguments if name not in changes]))
        changes[name] = draw(st.sampled_from(CHANGES[kind_of[name]]))
        arguments[name] = changed(arguments[name], kind_of[name], changes[name])
    return Call(op, arguments, changes, draw(st.booleans()))


def plainly(arguments: Arguments, exact: bool) -> Arguments:
    """Fresh, contiguous copies of what is in the tensors; in float64 if ``exact``."""

    def copy(name: str, value: Any) -> Any:
        if name.endswith("dtype") and value is not None:
            return torch.float64 if exact else value
        if not isinstance(value, Tensor):
            return value
        plain = value.detach().as_subclass(Tensor).resolve_neg().contiguous().clone()  # type: ignore
        plain = plain.double() if exact else plain
        return plain.requires_grad_(value.requires_grad)

    return {name: copy(name, value) for name, value in arguments.items()}


def results(function: Callable[..., Any], call: Call, arguments: Arguments, positional: bool) -> list[Tensor | None]:
    """What is returned, and the gradient of each argument that wants one."""
    returned = function(*arguments.values()) if positional else function(**arguments)
    outputs = returned if isinstance(returned, (tuple, list)) else (returned,)
    wanting = [value for value in arguments.values() if isinstance(value, Tensor) and value.requires_grad]
    differentiable = [output for output in outputs if output.requires_grad]
    if not differentiable:
        return list(outputs)
    cotangents = [
        torch.ones((), dtype=output.dtype, device=output.device).expand(output.shape)
        if call.summed
        else normal(*output.shape, dtype=torch.bfloat16).to(output)
        for output in differentiable
    ]
    grads = torch.autograd.grad(differentiable, wanting, cotangents, allow_unused=True)
    return [*(output.detach() for output in outputs), *grads]


def check_results(found: list[Tensor | None], rough: list[Tensor | None], exact: list[Tensor | None]) -> None:
    """At most twice the error of plain PyTorch (``rough``) from float64 (``exact``)."""
    assert len(found) == len(rough) == len(exact)
    present = [value.dtype for value in (*found, *rough) if value is not None]
    epsilon = max((torch.finfo(dtype).eps for dtype in present), default=0.0)
    for ours, eager, right in zip(found, rough, exact, strict=True):
        if ours is None or eager is None or right is None:
            assert ours is eager is right is None
            continue
        assert ours.shape == eager.shape and ours.dtype == eager.dtype
        if ours.device.type == "meta" or ours.numel() == 0 or not (eager.isfinite().all() and right.isfinite().all()):
            continue
        error, allowed = (ours - right).abs().max(), 2 * (eager - right).abs().max()
        # Of a few elements the largest rounding is luck, so a few units in the last place (of 1, at least) are free.
        assert error <= allowed + 8 * epsilon * right.abs().max().clamp(min=1.0), (ours, eager, right)


def well_conditioned(call: Call) -> bool:
    """Whether a rounding may not become the result: no scores in the thousands, no rows divided by next to nothing."""
    scale, eps = call.arguments.get("scale"), call.arguments.get("eps", 1.0)
    return abs(scale or 1.0) <= 10 and eps >= 1e-3 and not EXTREME & set(call.changes.values())


EXTREME = {"huge", "all NaN", "all infinite"}


def hold(call: Call) -> None:
    for name, value in call.arguments.items():
        if hostile.can_be_held(value):
            call.arguments[name] = FENCES.setdefault(name, hostile.Fence()).hold(value)


FENCES: dict[str, hostile.Fence] = {}


def say(call: object) -> None:
    """Leaves word of the call that runs next, at the price of one system call."""
    assert CALL_FILE is not None
    if "file" not in OPENED:
        OPENED["file"] = os.open(CALL_FILE, os.O_WRONLY | os.O_CREAT)
    text = ascii(call).encode()
    os.ftruncate(OPENED["file"], os.pwrite(OPENED["file"], text, 0))


OPENED: dict[str, int] = {}


def check_public(call: Call) -> None:
    say(call)
    hold(call)
    public = getattr(mae_dfer_kernels, call.op)
    try:
        found = results(public, call, call.arguments, False)
    except (TypeError, ValueError, BackendUnavailable) as error:
        assert not call.must_succeed, f"refused: {error}"
        named = [name for name in call.changes if re.search(rf"(?<!\w){name}(?!\w)", str(error))]
        assert named, f"names none of {list(call.changes)}: {error}"
        return
    if any(isinstance(value, Tensor) and value.device.type == "meta" for value in call.arguments.values()):
        assert all(value is None or value.device.type == "meta" for value in found)
        return
    rough, exact = (
        results(PUBLIC[call.op].plain, call, plainly(call.arguments, double), False) for double in (False, True)
    )
    if well_conditioned(call):
        check_results(found, rough, exact)


def check_registered(call: Call) -> None:
    say(call)
    hold(call)
    function = getattr(torch.ops.mae_dfer_kernels, call.op).default
    # Second derivatives do not go through the functions that are the first ones.
    with torch.set_grad_enabled(not call.op.endswith(("_backward", "_gradient"))):
        try:
            found = results(function, call, call.arguments, True)
        except (TypeError, ValueError, RuntimeError) as error:
            assert not call.must_succeed, f"refused: {error}"
            return
        rough, exact = (
            results(function, call, {**plainly(call.arguments, double), "backend": "eager"}, True)
            for double in (False, True)
        )
    if well_conditioned(call):
        check_results(found, rough, exact)


def crash() -> None:
    """Reads the first byte behind a fence."""
    import ctypes

    say("a read beyond the end")
    held = hostile.Fence().hold(torch.ones(5))
    ctypes.string_at(held.data_ptr() + held.nbytes, 1)


def main(what: str, op: str) -> None:
    """The child process."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if what == "crash":
        return crash()
    check = check_registered if what == "registered" else check_public
    options = settings(
        max_examples=EXAMPLES[what], deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck), print_blob=False, report_multiple_bugs=False,
    )  # fmt: skip
    options(given(calls(op, what == "registered"))(check))()


def run_child(what: str, op: str, folder: Path) -> None:
    """Passes if the child does; else fails with what it printed, and with the call that ended it."""
    file = folder / "call"
    package = Path(mae_dfer_kernels.__file__).parent.parent
    child = subprocess.run(
        [sys.executable, "-X", "faulthandler", __file__, what, op],
        env={**os.environ, "MAE_DFER_HOSTILE_CALLS": str(file), "PYTHONPATH": str(package)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    ended = f"by signal {-child.returncode}, during: {file.read_text()}" if child.returncode < 0 else "with an error"
    assert child.returncode == 0, f"{op}: the child ended {ended}\n{child.stdout[-3000:]}{child.stderr[-6000:]}"


@pytest.mark.parametrize("op", PUBLIC)
def test_any_argument_is_taken_or_named(op: str, tmp_path: Path) -> None:
    run_child("public", op, tmp_path)


@pytest.mark.parametrize("op", REGISTERED)
def test_a_direct_call_is_right_or_refused(op: str, tmp_path: Path) -> None:
    run_child("registered", op, tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="fences are Linux's mprotect")
def test_a_read_beyond_the_end_is_seen(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="by signal .*, during: 'a read beyond the end'"):
        run_child("crash", "fence", tmp_path)


def test_every_operator_is_listed() -> None:
    functions = {name for name in mae_dfer_kernels.__all__ if inspect.isfunction(getattr(mae_dfer_kernels, name))}
    assert functions == set(PUBLIC)
    names = [name.split("::") for name in torch._C._dispatch_get_all_op_names()]
    assert {parts[1] for parts in names if parts[0] == "mae_dfer_kernels"} == set(REGISTERED)


if __name__ == "__main__":
    main(*sys.argv[1:])
