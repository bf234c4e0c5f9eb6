"""Checks of arguments that several operators take; every message names the argument."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_STRIDED = torch.strided


def check_tensor(name: str, tensor: Any) -> None:
    """A dense tensor of a dtype that the operators take."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{name} must be float64, float32, bfloat16 or float16, got {tensor.dtype}")
    if tensor.layout != _STRIDED or tensor.is_nested:
        kind = "a nested tensor" if tensor.is_nested else tensor.layout
        raise TypeError(f"{name} must be a dense (strided) tensor, got {kind}")


def alike(tensor: Any, main: Tensor) -> bool:
    """Whether nothing is left to ask of ``tensor``'s kind after `check_tensor` of ``main``: the most frequent case,
    in few questions, since small calls feel each."""
    return (
        isinstance(tensor, Tensor)
        and tensor.dtype is main.dtype
        and (tensor.is_cpu and main.is_cpu or tensor.device == main.device)
        and tensor.layout is _STRIDED
        and not tensor.is_nested
    )


def check_companion(name: str, tensor: Any, main_name: str, main: Tensor) -> None:
    """A tensor that is worked on together with ``main``: on its device, and float64 where that is."""
    if alike(tensor, main):
        return
    check_tensor(name, tensor)
    if not (tensor.is_cpu and main.is_cpu) and tensor.device != main.device:
        raise ValueError(f"{name} must be on the device of {main_name}, {main.device}, got {tensor.device}")
    if (tensor.dtype == torch.float64) != (main.dtype == torch.float64):
        raise TypeError(
            f"{name} must be float64 where {main_name} is and only there; got {tensor.dtype} with {main.dtype}"
        )


def check_shape(name: str, tensor: Tensor, letters: str, shape: tuple[int, ...]) -> None:
    """That shape; ``letters`` spells it."""
    if tensor.shape != shape:
        raise ValueError(f"{name} must have shape {letters} = {tuple(shape)}, got {tuple(tensor.shape)}")


def check_parameter(
    name: str, tensor: Any, main_name: str, main: Tensor, letters: str, shape: tuple[int, ...]
) -> None:
    """A parameter of that shape (``letters`` spells it), in the dtype of ``main`` or the one computed in."""
    check_companion(name, tensor, main_name, main)
    check_shape(name, tensor, letters, shape)
    if tensor.dtype is not main.dtype and tensor.dtype != compute_dtype(main):
        raise TypeError(
            f"{name} must be {main.dtype} (as {main_name}) or {compute_dtype(main)}, got {tensor.dtype}"
        )


def check_rows(name: str, x: Any) -> None:
    """Rows of channels, (…, M, C)."""
    check_tensor(name, x)
    if x.dim() < 2 or x.shape[-1] == 0:
        raise ValueError(f"{name} must have shape (…, M, C) with C at least 1, got {tuple(x.shape)}")


def check_vectors(name: str, x: Any) -> None:
    """(…, C) with C at least 1."""
    check_tensor(name, x)
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"{name} must have shape (…, C) with C at least 1, got {tuple(x.shape)}")


def group_shape(shape: torch.Size) -> tuple[int, int, int]:
    """(…, M, C) -> (G, M, C)."""
    return math.prod(shape[:-2]), *shape[-2:]


def check_groups(name: str, x: Any) -> None:
    """Rows of channels as registered functions are given them, (G, M, C)."""
    check_rows(name, x)
    if x.dim() != 3:
        raise ValueError(f"{name} must have shape (G, M, C), got {tuple(x.shape)}")


def check_like(name: str, tensor: Any, main_name: str, main: Tensor) -> None:
    """A tensor that is worked on together with ``main``, and of its shape."""
    check_companion(name, tensor, main_name, main)
    if tensor.shape != main.shape:
        raise ValueError(f"{name} must have the shape of {main_name}, {tuple(main.shape)}, got {tuple(tensor.shape)}")


def check_affine(x: Tensor, weight: Any, bias: Any) -> None:
    """Weight and bias of a LayerNorm of ``x`` (…, C)."""
    shape = (x.shape[-1],)
    if alike(weight, x) and alike(bias, x) and weight.shape == shape == bias.shape:
        return
    check_parameter("weight", weight, "x", x, "(C,)", shape)
    check_parameter("bias", bias, "x", x, "(C,)", shape)
    if weight.dtype != bias.dtype:
        raise TypeError(f"bias must have the dtype of weight, {weight.dtype}, got {bias.dtype}")


def check_result_dtype(name: str, dtype: Any, x: Tensor) -> None:
    """A dtype that what is made of ``x`` can have."""
    right = isinstance(dtype, torch.dtype) and dtype in DTYPES
    if not right or (dtype == torch.float64) != (x.dtype == torch.float64):
        raise TypeError(f"{name} must be float32, bfloat16 or float16 (float64 for float64), got {dtype!r}")


def compute_dtype(main: Tensor) -> torch.dtype:
    """What the operators compute in: float64 for float64, else float32."""
    return torch.float64 if main.dtype == torch.float64 else torch.float32


def check_heads(num_heads: Any) -> None:
    if not isinstance(num_heads, int) or isinstance(num_heads, bool):
        raise TypeError(f"num_heads must be an int, got {type(num_heads).__name__}")
    if num_heads < 1:
        raise ValueError(f"num_heads must be at least 1, got {num_heads}")


def check_number(name: str, value: Any) -> float:
    """A finite int or float, as float."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}")
    return number


def check_eps(eps: Any) -> float:
    number = check_number("eps", eps)
    if number < 0.0:
        raise ValueError(f"eps must be finite and not negative, got {number}")
    return number


def check_backend(backend: Any) -> None:
    if not isinstance(backend, str):
        raise TypeError(f"backend must be a string, got {type(backend).__name__}")


def check_row_scale(
    row_scale: Any, main_name: str, main: Tensor, axes: int, name: str = "row_scale"
) -> Tensor | None:
    """Factors of the first ``axes`` axes of ``main``, or of fewer of them: one for each of their elements, as a
    vector of the type computed in. None stays None."""
    if row_scale is None:
        return None
    check_tensor(name, row_scale)
    leading = main.shape[:axes]
    if row_scale.shape != leading[: row_scale.dim()]:
        raise ValueError(
            f"{name} must have the shape of the first axes of {main_name}, of {tuple(leading)}, "
            f"got {tuple(row_scale.shape)}"
        )
    if row_scale.device != main.device:
        raise ValueError(f"{name} must be on the device of {main_name}, {main.device}, got {row_scale.device}")
    if row_scale.requires_grad:
        raise ValueError(f"{name} must not require a gradient: none is computed for it")
    spread = row_scale.view((*row_scale.shape, *(1 for _ in leading[row_scale.dim() :]))).expand(leading)
    return spread.reshape(-1).to(compute_dtype(main))
