"""Checks of what the exchange's registered functions are given, some of which the public function has too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mae_dfer_kernels.arguments import (
    DTYPES,
    check_companion,
    check_heads,
    check_like,
    check_shape,
    check_tensor,
    compute_dtype,
)


def check_front(name: str, front: Any, main_name: str, main: Tensor) -> None:
    """Tokens (…, F, C) in front of those of ``main`` (…, M, C)."""
    check_companion(name, front, main_name, main)
    if front.dim() != main.dim() or (*front.shape[:-2], front.shape[-1]) != (*main.shape[:-2], main.shape[-1]):
        raise ValueError(
            f"{name} must have the shape of {main_name}, {tuple(main.shape)}, but for the second last axis, "
            f"got {tuple(front.shape)}"
        )
    if front.dtype != main.dtype:
        raise TypeError(f"{name} must have the dtype of {main_name}, {main.dtype}, got {front.dtype}")


def check_update(update: Any, update_scale: Tensor | None, main_name: str, main: Tensor) -> None:
    if update is not None:
        check_like("update", update, main_name, main)
    elif update_scale is not None:
        raise ValueError("update_scale must be None without an update")


def check_forward(x: Tensor, *rest: Any) -> None:
    front = rest[7]
    _check_rows(x, *rest[:7], *rest[8:])
    if front is not None:
        check_front("front", front, "x", x)


def _check_rows(
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
) -> None:
    """What the registered functions are given."""
    check_tensor("x", x)
    if x.dim() != 3 or x.shape[2] == 0:
        raise ValueError(f"x must have shape (G, M, C) with C at least 1, got {tuple(x.shape)}")
    check_tensor("keys", keys)
    if keys.dim() != 3 or keys.shape[1] == 0 or keys.shape[2] != x.shape[2]:
        raise ValueError(f"keys must have shape (B, J, C) = (B, J, {x.shape[2]}) with J at least 1, "
                         f"got {tuple(keys.shape)}")  # fmt: skip
    clips, pairs, channels = keys.shape
    if x.shape[0] % clips != 0 if clips else x.shape[0] != 0:
        raise ValueError(f"keys are of {clips} clips, which do not divide the {x.shape[0]} groups of x")
    check_heads(num_heads)
    if pairs % num_heads != 0:
        raise ValueError(f"num_heads must divide the {pairs} rows of keys, got {num_heads}")
    vectors = [("keys", keys, "(B, J, C)", keys.shape), ("key_bias", key_bias, "(B, J)", (clips, pairs)),
               ("values", values, "(B, J, C)", keys.shape), ("out_bias", out_bias, "(C,)", (channels,))]  # fmt: skip
    for name, tensor, letters, shape in vectors:
        check_companion(name, tensor, "x", x)
        check_shape(name, tensor, letters, shape)
        if tensor.dtype != compute_dtype(x) and tensor.dtype != operand_dtype:
            raise TypeError(f"{name} must be {compute_dtype(x)} for this x, or {operand_dtype}, got {tensor.dtype}")
    if row_scale is not None:
        check_companion("row_scale", row_scale, "x", x)
        check_shape("row_scale", row_scale, "(B,)", (clips,))
    check_update(update, update_scale, "x", x)
    if update_scale is not None:
        check_companion("update_scale", update_scale, "x", x)
        check_shape("update_scale", update_scale, "(G,)", x.shape[:1])
    if operand_dtype not in DTYPES or (operand_dtype == torch.float64) != (x.dtype == torch.float64):
        raise TypeError(
            f"operand_dtype must be float32, bfloat16 or float16 (float64 for float64), got {operand_dtype}"
        )


def check_gradient(grad_out: Tensor, x: Tensor, *rest: Any) -> None:
    _check_rows(x, *rest)
    check_companion("grad_out", grad_out, "x", x)
    check_shape("grad_out", grad_out, "(G, M, C)", x.shape)
    if grad_out.dtype != x.dtype:
        raise TypeError(f"grad_out must have the dtype of x, {x.dtype}, got {grad_out.dtype}")
