"""The representative-token exchange by the CUDA kernels.

Letters: B clips, G groups of M rows (G / B groups a clip), C channels, H heads, K representative tokens a clip,
J = H·K. Operands of matrix products are of the dtype of ``x``, whatever the ``operand_dtype`` and that of the keys. An
``update`` of ``x`` is added by PyTorch, in the forward and again in the backward: the kernels take the sum, in the
dtype of ``x``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mae_dfer_kernels import native
from mae_dfer_kernels.cuda import device
from mae_dfer_kernels.gpu import on_device
from mae_dfer_kernels.native.rows import address, dense, describe
from mae_dfer_kernels.reference.exchange import update_gradient, updated

MAX_PAIRS, MAX_CHANNELS = 256, 2048
# Pairs that a warp works on at once, rows of its own.
_PASS, _GROUP = 64, 16
# Of the kernel that sums over rows: channels of a block, rows of a step, and how many blocks fill a GPU. Where there
# are fewer, the rows of a clip are split among several.
_CHANNELS, _STEP, _BLOCKS = 128, 32, 128


def unavailable(x: Tensor, pairs: int) -> str | None:
    """Why the `cuda` backend cannot run ``pairs`` = J pairs of a clip on ``x`` (…, C), or None if it can."""
    reason = device.rows_unavailable(x, MAX_CHANNELS)
    if reason is not None:
        return reason
    channels = x.shape[-1]
    if pairs > MAX_PAIRS:
        return f"J = {pairs} pairs of a head and a representative token; at most {MAX_PAIRS} are taken"
    # Of as many passes as twice the pairs are: K may be rounded up to almost twice its number.
    passes, library = -(-2 * pairs // _PASS), device.library()
    if x.numel() // channels * passes * -(-channels // _CHANNELS) >= 2**31:  # blocks, where each row is a clip
        return f"x has {x.numel() // channels} rows, more than one launch can have; split the batch"
    needed = library.cuda_exchange_shared_memory(native.DTYPE_CODES[x.dtype], channels, passes * _PASS)
    with on_device(x.device):
        held = library.cuda_available_shared_memory()
    if needed > held:
        return f"C = {channels} channels of {x.dtype} need {needed} bytes of shared memory, and this GPU has {held}"
    return None


class Padding(NamedTuple):
    """H heads of K representative tokens, and the counts that the kernels are given."""

    heads: int
    tokens: int
    padded_heads: int
    padded_tokens: int

    @classmethod
    def of(cls, pairs: int, heads: int) -> Padding:
        """K becomes a power of two, at least 2, and H such that J is a multiple of 64."""
        tokens = pairs // heads
        padded = max(1 << (tokens - 1).bit_length(), 2)
        multiple = max(_PASS // padded, 1)
        return cls(heads, tokens, -(-heads // multiple) * multiple, padded)

    @property
    def pairs(self) -> int:
        return self.padded_heads * self.padded_tokens

    def needed(self) -> bool:
        return self[:2] != self[2:]

    def add(self, matrix: Tensor, kind: torch.dtype) -> Tensor:
        """(B, J, …) with zeros for what is added; contiguous, of ``kind``."""
        if not self.needed():
            return device.aligned_rows(matrix.to(kind).contiguous())
        padded = matrix.new_zeros((matrix.shape[0], *self[2:], *matrix.shape[2:]), dtype=kind)
        padded[:, : self.heads, : self.tokens] = matrix.unflatten(1, self[:2])
        return padded.flatten(1, 2)

    def add_to_bias(self, key_bias: Tensor) -> Tensor:
        """(B, J) with minus infinity for added tokens, which are then never attended to, and 0 for added heads."""
        padded = self.add(key_bias, torch.float32)
        if self.needed():
            padded.view(-1, *self[2:])[:, :, self.tokens :] = float("-inf")
        return padded

    def remove(self, matrix: Tensor) -> Tensor:
        """What `add` was given, of its result."""
        if not self.needed():
            return matrix
        return matrix.unflatten(1, self[2:])[:, : self.heads, : self.tokens].flatten(1, 2)


def forward(
    x: Tensor,
    keys: Tensor,
    key_bias: Tensor,
    values: Tensor,
    out_bias: Tensor,
    row_scale: Tensor | None,
    update: Tensor | None,
    update_scale: Tensor | None,
    num_heads: int,
    eps: float,
    operand_dtype: torch.dtype,
    front: int,
) -> Tensor:
    """The `cuda` backend's forward; ``x`` and ``update`` (G, M, C) of any strides, the result (G, front + M, C)
    contiguous, with what is in front left to be filled."""
    out = x.new_empty((x.shape[0], front + x.shape[1], x.shape[2]))
    if x.numel() == 0:
        return out
    x, padding = _sum(x, update, update_scale), Padding.of(keys.shape[1], num_heads)
    inputs = _inputs(padding, x, keys, key_bias, values, out_bias, row_scale)
    with on_device(x.device):
        device.library().cuda_exchange_forward(
            describe(x), tuple(map(address, inputs)), out.data_ptr(), front, _shape(x, keys, padding), eps,
            device.stream(x.device),
        )  # fmt: skip
    return out


def backward(
    grad_out: Tensor,
    x: Tensor,
    keys: Tensor,
    key_bias: Tensor,
    values: Tensor,
    out_bias: Tensor,
    row_scale: Tensor | None,
    update: Tensor | None,
    update_scale: Tensor | None,
    num_heads: int,
    eps: float,
    operand_dtype: torch.dtype,
) -> tuple[Tensor, ...]:
    """The `cuda` backend's backward; gradients of ``x``, ``keys``, ``key_bias``, ``values``, ``out_bias`` and, where it
    is given, ``update``."""
    grad_x = x.new_empty(x.shape)
    if x.numel() == 0:
        nothing = [torch.zeros_like(tensor).contiguous() for tensor in (keys, key_bias, values, out_bias)]
        return grad_x, *nothing, *(() if update is None else (update.new_empty(x.shape),))
    x, grad_out = _sum(x, update, update_scale), device.aligned_rows(grad_out)
    padding = Padding.of(keys.shape[1], num_heads)
    inputs = _inputs(padding, x, keys, key_bias, values, out_bias, row_scale)
    key_sums = inputs[0].sum(dim=-1, dtype=torch.float32)
    (clips, _, channels), pairs = keys.shape, padding.pairs
    clip_rows = x.shape[0] * x.shape[1] // clips
    rows = clips * -(-clip_rows // _GROUP) * _GROUP
    # What the second kernel is left by the first: P, dS, and each row's mean and 1 / deviation.
    probs, grad_scores = x.new_empty((2, rows, pairs))
    statistics = x.new_empty((rows, 2), dtype=torch.float32)
    blocks = clips * (pairs // _PASS) * -(-channels // _CHANNELS)
    splits = min(-(-_BLOCKS // blocks), -(-clip_rows // _STEP))
    # Sums over a part of a clip's rows each, added up in their order.
    sums = [
        x.new_empty((splits, clips, *rest), dtype=torch.float32)
        for rest in ((pairs, channels), (pairs,), (pairs, channels), (channels,))
    ]
    with on_device(x.device):
        device.library().cuda_exchange_backward(
            describe(grad_out), describe(x), tuple(map(address, inputs)), key_sums.data_ptr(), grad_x.data_ptr(),
            tuple(map(address, (probs, grad_scores, statistics))), tuple(map(address, sums)), splits,
            _shape(x, keys, padding), eps, device.stream(x.device),
        )  # fmt: skip
    grad_keys, grad_key_bias, grad_values, grad_out_bias = (part[0] if splits == 1 else part.sum(0) for part in sums)
    return (
        grad_x,
        padding.remove(grad_keys).to(keys.dtype),
        padding.remove(grad_key_bias).to(key_bias.dtype),
        padding.remove(grad_values).to(values.dtype),
        grad_out_bias.sum(0).to(out_bias.dtype),
        *(() if update is None else (update_gradient(grad_x, update, update_scale),)),
    )


def _sum(x: Tensor, update: Tensor | None, update_scale: Tensor | None) -> Tensor:
    return device.aligned_rows(updated(x, update, update_scale).to(x.dtype))


def _inputs(
    padding: Padding,
    x: Tensor,
    keys: Tensor,
    key_bias: Tensor,
    values: Tensor,
    out_bias: Tensor,
    row_scale: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """What the kernels read of a clip: keys, key_bias, values, out_bias, row_scale."""
    wide = torch.float32
    return (
        padding.add(keys, x.dtype), padding.add_to_bias(key_bias), padding.add(values, x.dtype),
        out_bias.to(wide).contiguous(), dense(row_scale, wide),
    )  # fmt: skip


def _shape(x: Tensor, keys: Tensor, padding: Padding) -> tuple[int, int, int, int, int, int]:
    groups, rows, channels = x.shape
    return keys.shape[0], groups, rows, channels, padding.padded_heads, padding.padded_tokens
