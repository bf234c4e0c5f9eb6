"""Calls of every operator that must succeed, drawn at random, and plain PyTorch for the same arguments.

A new operator is one entry in `PUBLIC` and one for each function that it registers in `REGISTERED`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from mae_dfer_kernels.reference import column_sums as column_sums_reference
from mae_dfer_kernels.reference import gelu_gradient as gelu_gradient_reference
from mae_dfer_kernels.reference import region_attention as region_attention_reference
from mae_dfer_kernels.reference import residual_layer_norm as residual_layer_norm_reference
from mae_dfer_kernels.reference import weight_gradient as weight_gradient_reference

Arguments = dict[str, Any]
Draw = Callable[[Any], Any]

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
