"""The exchange: local tokens attend to the representative tokens of their clip, from LayerNorm to residual.

Letters: B clips, G groups of M local tokens (G / B groups a clip), C channels, H heads, D channels a head, K
representative tokens a clip, J = H·K pairs of a head and a representative token.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mae_dfer_kernels import backends
from mae_dfer_kernels.arguments import (
    alike,
    check_backend,
    check_companion,
    check_eps,
    check_heads,
    check_parameter,
    check_row_scale,
    check_shape,
    check_tensor,
    compute_dtype,
    group_shape,
)
from mae_dfer_kernels.calls import Operator, autocast_dtype, call, call_without_gradient, without_autocast
from mae_dfer_kernels.exchange_arguments import check_forward, check_front, check_gradient, check_update
from mae_dfer_kernels.native.exchange import multiplies_bf16
from mae_dfer_kernels.reference import exchange as reference

FORMS = ("auto", "absorbed", "plain")

_LIBRARY = torch.library.Library("mae_dfer_kernels", "FRAGMENT")
_INPUTS = (
    "Tensor x, Tensor keys, Tensor key_bias, Tensor values, Tensor out_bias, Tensor? row_scale, Tensor? update, "
    "Tensor? update_scale"
)
_NUM_INPUTS = 8
_OPTIONS = "int num_heads, float eps, ScalarType operand_dtype, str backend"
_LIBRARY.define(f"exchange_rows({_INPUTS}, Tensor? front, {_OPTIONS}) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
# The last is the update's; without one it is empty: of a list of gradients vmap could make no batches.
_LIBRARY.define(
    f"exchange_rows_backward(Tensor grad_out, {_INPUTS}, {_OPTIONS}) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _run_forward(x: Tensor, keys: Tensor, *rest: Any) -> Tensor:
    *vectors, front, num_heads, eps, operand_dtype, backend = rest
    inputs = (x, keys, *vectors, num_heads, eps, operand_dtype, _count(front))
    result: Tensor = backends.run("exchange", "forward", backend, (x, keys.shape[1]), *inputs)
    if front is not None:
        result[:, : front.shape[1]] = front
    return result


def _run_backward(grad_out: Tensor, x: Tensor, keys: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *inputs, backend = rest
    problem = (x, keys.shape[1])
    result: tuple[Tensor, ...] = backends.run("exchange", "backward", backend, problem, grad_out, x, keys, *inputs)
    return result


# What is registered checks its arguments: whoever calls it comes past the public function's checks.
def _forward(*inputs: Any) -> Tensor:
    check_forward(*inputs[:-1])
    return _run_forward(*inputs)


def _backward(*inputs: Any) -> tuple[Tensor, ...]:
    check_gradient(*inputs[:-1])
    gradients = _run_backward(*inputs)
    return gradients if len(gradients) == 6 else (*gradients, inputs[1].new_empty(0))


def _forward_fake(x: Tensor, *rest: Any) -> Tensor:
    check_forward(x, *rest[:-1])
    return x.new_empty((x.shape[0], _count(rest[7]) + x.shape[1], x.shape[2]))


def _backward_fake(grad_out: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    check_gradient(grad_out, *rest[:-1])
    update = rest[6]
    found = tuple(tensor.new_empty(tensor.shape) for tensor in rest[:5])
    return *found, rest[0].new_empty(0) if update is None else update.new_empty(update.shape)


_LIBRARY.impl("exchange_rows", _forward, "CompositeExplicitAutograd")
_LIBRARY.impl("exchange_rows_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("mae_dfer_kernels::exchange_rows", _forward_fake, lib=_LIBRARY)
torch.library.register_fake("mae_dfer_kernels::exchange_rows_backward", _backward_fake, lib=_LIBRARY)

_forward_op = torch.ops.mae_dfer_kernels.exchange_rows.default
_backward_op = torch.ops.mae_dfer_kernels.exchange_rows_backward.default


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    # No probabilities and no LayerNorm output are kept: the backward computes them again.
    ctx.save_for_backward(*inputs[:_NUM_INPUTS])
    ctx.front, ctx.options = _count(inputs[_NUM_INPUTS]), inputs[_NUM_INPUTS + 1 :]


def _gradient(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    *options, backend = ctx.options
    grad_front = grad_out[:, : ctx.front] if ctx.front else None
    saved = ctx.saved_tensors
    arguments = (grad_out[:, ctx.front :] if ctx.front else grad_out, *saved, *options)
    if torch.is_grad_enabled():
        # Someone will differentiate the gradient; the kernels have no second derivative, plain PyTorch has.
        gradients = reference.backward(*arguments)
    else:
        gradients = call_without_gradient(_backward_op, _run_backward, (*arguments, backend))
    grad_update = None if saved[6] is None else gradients[5]
    return *gradients[:5], None, grad_update, None, grad_front, None, None, None, None


def _count(front: Tensor | None) -> int:
    """Rows in front of a group's."""
    return 0 if front is None else front.shape[1]


# Compiled graphs and direct calls of the operator differentiate through this registration.
torch.library.register_autograd(
    "mae_dfer_kernels::exchange_rows", _gradient, setup_context=_setup_context, lib=_LIBRARY
)


class _ExchangeRows(torch.autograd.Function):
    """The same gradient for eager calls, at less cost a call than the registration above."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        output: Tensor = call_without_gradient(_forward_op, _run_forward, inputs)
        _setup_context(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        return _gradient(ctx, grad_out)


_OPERATOR = Operator(_forward_op, _run_forward, _ExchangeRows, reference.exchange_rows)


def exchange(
    local: Tensor,
    context: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    qkv_weight: Tensor,
    q_bias: Tensor,
    v_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    num_heads: int,
    *,
    row_scale: Tensor | None = None,
    update: Tensor | None = None,
    update_scale: Tensor | None = None,
    front: Tensor | None = None,
    eps: float = 1e-6,
    form: str = "auto",
    backend: str = "auto",
) -> Tensor:
    """``local + row_scale · CrossAttention(LayerNorm(local), context)``: what is global comes back to every token.

    MAE-DFER (arXiv 2307.02227), local-global exchange. The absorbed form folds the query projection into the keys
    and the output projection into the values, once a clip: a head's scores are ``LN(x) W_qᵀ Kᵀ = LN(x) A`` with A of
    (C, K), and its output ``P (V W_oᵀ)``. Two C × C products of every local token become C × J products, and the
    step from LayerNorm to residual one pass over memory. Equal to the plain form but for rounding. Two calls give
    the same bits, whatever the number of threads.

    Args:
        local: (B, …, M, C), the residual stream of the local tokens: float64, float32, bfloat16 or float16. Rows may
            have any stride.
        context: (B, K, C), the representative tokens after their LayerNorm. Its dtype may differ, but float64 goes
            with float64 alone.
        norm_weight: (C,), of the LayerNorm of ``local``; each parameter of the dtype of ``local``, of
            autocast's, or float32.
        norm_bias: (C,).
        qkv_weight: (3·C, C), the projections to queries, keys and values, one below the other.
        q_bias: (C,).
        v_bias: (C,). Keys have no bias.
        proj_weight: (C, C), the output projection.
        proj_bias: (C,).
        num_heads: H, a divisor of C.
        row_scale: (B,), the factor of stochastic depth on each clip; no gradient flows to it. None: 1.
        update: of the shape of ``local``: a branch that is still to be added to it. Everything is then of
            ``local + update_scale · update``, which the absorbed form's ``cpu`` and ``triton`` backends neither write
            nor round. Its dtype may differ, but float64 goes with float64 alone.
        update_scale: factors on ``update``, of the shape of the first axes of ``local`` (without M and C), or fewer of
            them; no gradient flows to it. None: 1.
        front: (B, …, F, C) of the dtype of ``local``, tokens that the result has in front of each group's M: the
            representative tokens, of which a copy of all tokens would else be made to put them there.
        eps: what the LayerNorm adds to the variance.
        form: ``absorbed``, ``plain``, or ``auto`` for the one with fewer multiplications.
        backend: of the absorbed form: ``eager``, ``cpu``, ``triton``, ``cuda``, or ``auto`` for the fastest that can
            run this call. The plain form is PyTorch's own.

    Returns:
        The shape (with ``front``, (B, …, F + M, C)) and dtype of ``local``, contiguous. Under autocast too; there the
        plain form's projections run in autocast's dtype. The absorbed form multiplies in 16 bits where ``local`` or
        autocast has them: on a GPU, and bfloat16 on a CPU that has instructions for it (AVX-512-BF16). Else it is in
        float32 (float64 for float64).

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument's value, shape or device does not fit; the message names it.
        BackendUnavailable: the backend that was asked for cannot run this call.
    """
    _check_tokens(local, context, num_heads)
    weights = Weights(norm_weight, norm_bias, qkv_weight, q_bias, v_bias, proj_weight, proj_bias)
    _check_weights(weights, local)
    eps = check_eps(eps)
    scale = check_row_scale(row_scale, "local", local, 1)
    update_scale = check_row_scale(update_scale, "local", local, local.dim() - 2, "update_scale")
    check_update(update, update_scale, "local", local)
    if front is not None:
        check_front("front", front, "local", local)
    check_backend(backend)
    if form not in FORMS:
        raise ValueError(f"form: {form!r} is none of {', '.join(FORMS)}")
    channels, tokens = local.shape[-1], math.prod(local.shape[1:-1])
    if form == "auto":
        form = "absorbed" if absorbing_pays(tokens, context.shape[1], channels, num_heads) else "plain"
    # A name is checked in either form; only the absorbed one asks for the fastest.
    if form == "absorbed" or backend != "auto":
        backend = backends.choose("exchange", backend, local, num_heads * context.shape[1])
    if form == "plain":
        if update is not None:
            total = reference.updated(_by_group(local), _by_group(update), update_scale)
            local = total.to(local.dtype).view(local.shape)
        rows = _plain(local, context.to(local.dtype), weights.to(local.dtype), num_heads, scale, eps)
        return rows if front is None else torch.cat((front, rows), dim=-2)
    operand_dtype = autocast_dtype(local) if local.dtype == torch.float32 else local.dtype
    # On a GPU their kernels would take longer in float32 than the rest of the exchange.
    absorbing = operand_dtype if local.is_cuda else compute_dtype(local)
    weights = weights.to(absorbing)
    with without_autocast(local.device.type):
        absorbed = absorb(context.to(absorbing), weights, num_heads)
    if backend == "cpu" and operand_dtype == torch.bfloat16 and multiplies_bf16(channels):
        # A CPU absorbs in float32: less than casting the weights takes.
        keys, key_bias, values = absorbed
        absorbed = keys.to(operand_dtype), key_bias, values.to(operand_dtype)
    options = (num_heads, eps, operand_dtype, backend)
    return _exchange_rows(local, (*absorbed, weights.proj_bias), (scale, update, update_scale, front), options)


class Weights(NamedTuple):
    """The parameters of an exchange, named and shaped as `exchange` takes them."""

    norm_weight: Tensor
    norm_bias: Tensor
    qkv_weight: Tensor
    q_bias: Tensor
    v_bias: Tensor
    proj_weight: Tensor
    proj_bias: Tensor

    def to(self, dtype: torch.dtype) -> Weights:
        return Weights(*(tensor if tensor.dtype == dtype else tensor.to(dtype) for tensor in self))

    def split(self) -> tuple[Tensor, Tensor, Tensor]:
        """The query projection (C, C), that of keys and values (2·C, C), and its bias (2·C,): keys have none."""
        channels = self.q_bias.shape[0]
        query, key_value = self.qkv_weight.split((channels, 2 * channels))
        return query, key_value, torch.cat((torch.zeros_like(self.v_bias), self.v_bias))


def absorbing_pays(tokens: int, context: int, channels: int, num_heads: int) -> bool:
    """Whether the absorbed form of ``tokens`` local and ``context`` representative tokens multiplies less.

    Counted for a clip, without the projections of the context to keys and values, which both forms need.
    """
    # Queries, output projection; scores and mixture, each of D products in H heads.
    plain = 2 * tokens * channels * channels + 2 * tokens * context * channels
    # Keys and values through the C × C weights; scores and mixture, each of C products in H heads.
    absorbed = 2 * context * channels * channels + 2 * tokens * num_heads * context * channels
    return absorbed < plain


def absorb(context: Tensor, weights: Weights, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """A clip's keys and values with all that is linear around them folded in: what `exchange_rows` attends to.

    With ``u`` the standardised local tokens, their scores are ``u · keysᵀ + key_bias`` and what they read, projected,
    is ``softmax(scores) · values``: the scale, the LayerNorm's affine part and the query projection are in the keys,
    the output projection in the values. ``context`` (B, K, C); returns (B, J, C), (B, J), (B, J, C), a head's K rows
    side by side. Plain PyTorch, differentiable in all that it is given.
    """
    clips, context_tokens, channels = context.shape
    heads = (num_heads, channels // num_heads)
    query_weight, key_value_weight = weights.qkv_weight.split((channels, 2 * channels))
    projected = F.linear(context, key_value_weight).view(clips * context_tokens, 2 * num_heads, heads[1])
    projected = projected.transpose(0, 1)
    keys, values = projected[:num_heads], projected[num_heads:]  # (H, B·K, D) each
    keys = keys * heads[1] ** -0.5
    values = values + weights.v_bias.view(num_heads, 1, -1)
    # keys_h = K_h W_q,h diag(norm_weight), key_bias_h = K_h (W_q,h norm_bias + q_bias_h), values_h = V_h W_o,hᵀ
    query_offset = F.linear(weights.norm_bias, query_weight, weights.q_bias)
    absorbed = (
        torch.bmm(keys, query_weight.view(*heads, channels)) * weights.norm_weight,
        torch.bmm(keys, query_offset.view(*heads, 1)),
        torch.bmm(values, weights.proj_weight.t().view(*heads, channels)),
    )
    keys, key_bias, values = (
        part.view(num_heads, clips, context_tokens, part.shape[2]).transpose(0, 1).flatten(1, 2) for part in absorbed
    )
    return keys, key_bias.view(key_bias.shape[:2]), values


def _plain(
    local: Tensor, context: Tensor, weights: Weights, num_heads: int, row_scale: Tensor | None, eps: float
) -> Tensor:
    """The exchange as the paper writes it, PyTorch's own operators in a row."""
    query_weight, key_value_weight, key_value_bias = weights.split()
    normed = F.layer_norm(local, local.shape[-1:], weights.norm_weight, weights.norm_bias, eps)
    query = F.linear(normed.flatten(1, -2), query_weight, weights.q_bias)
    key, value = F.linear(context, key_value_weight, key_value_bias).chunk(2, dim=-1)
    heads = (part.unflatten(-1, (num_heads, -1)).transpose(1, 2) for part in (query, key, value))
    mixed = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    update = F.linear(mixed, weights.proj_weight, weights.proj_bias).view(local.shape)
    if row_scale is not None:
        update = update * row_scale.to(update.dtype).view(-1, *(1 for _ in local.shape[1:]))
    return (local + update.to(local.dtype)).contiguous()


def _exchange_rows(
    local: Tensor, matrices: tuple[Tensor, ...], others: tuple[Tensor | None, ...], options: tuple[Any, ...]
) -> Tensor:
    """``others``: row_scale, update, update_scale and front."""
    row_scale, update, update_scale, front = others
    shape = local.shape
    if len(shape) != 3:
        local = _by_group(local)
        update, front = (None if rows is None else _by_group(rows) for rows in (update, front))
    tensors = (local, *matrices)
    differentiable = tuple(tensor for tensor in (*tensors, update, front) if tensor is not None)
    out: Tensor = call(_OPERATOR, differentiable, (*tensors, row_scale, update, update_scale, front, *options))
    return out if len(shape) == 3 else out.view(*shape[:-2], *out.shape[1:])


def _by_group(rows: Tensor) -> Tensor:
    """(B, …, M, C) -> (G, M, C); a copy where two leading axes cannot be walked with one stride."""
    return rows.reshape(group_shape(rows.shape))


def _check_tokens(local: Tensor, context: Tensor, num_heads: int) -> None:
    check_tensor("local", local)
    if local.dim() < 3 or local.shape[-1] == 0:
        raise ValueError(f"local must have shape (B, …, M, C) with C at least 1, got {tuple(local.shape)}")
    check_companion("context", context, "local", local)
    clips, channels = local.shape[0], local.shape[-1]
    if context.dim() != 3 or context.shape[1] == 0 or context.shape[::2] != (clips, channels):
        raise ValueError(
            f"context must have shape (B, K, C) = ({clips}, K, {channels}) with K at least 1 for this local, "
            f"got {tuple(context.shape)}"
        )
    check_heads(num_heads)
    if channels % num_heads != 0:
        raise ValueError(f"num_heads must divide the {channels} channels of local, got {num_heads}")


def _check_weights(weights: Weights, local: Tensor) -> None:
    channels, low = local.shape[-1], autocast_dtype(local)
    shapes = {"qkv_weight": (3 * channels, channels), "proj_weight": (channels, channels)}
    for name, weight in zip(Weights._fields, weights, strict=True):
        shape = shapes.get(name, (channels,))
        if not alike(weight, local) or weight.shape != shape:
            letters = {"qkv_weight": "(3*C, C)", "proj_weight": "(C, C)"}.get(name, "(C,)")
            if isinstance(weight, Tensor) and weight.dtype == low != local.dtype:
                check_companion(name, weight, "local", local)
                check_shape(name, weight, letters, shape)
            else:
                check_parameter(name, weight, "local", local, letters, shape)
