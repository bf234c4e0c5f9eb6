"""The compiled library: loads it, and hands it tensors as addresses, sizes and strides.

`torch` must be imported before the library, so that both use the OpenMP runtime that torch brought.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType

import torch
from torch import Tensor

ISA_VARIABLE = "MAE_DFER_KERNELS_ISA"
"""Environment variable that names the instruction set to use (portable, avx2, avx512, avx512_bf16), read at import."""

BUILD_HINT = "install the package with `pip install .` (or `pip install -e .`), which compiles it"

_DTYPE_CODES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}


def _load() -> tuple[ModuleType | None, str | None]:
    try:
        library = importlib.import_module("mae_dfer_kernels._native")
    except ModuleNotFoundError as error:
        if error.name != "mae_dfer_kernels._native":
            raise
        return None, f"the native library is not built: {BUILD_HINT}"
    except ImportError as error:
        return None, f"the native library is there but does not load ({error}): {BUILD_HINT} again"
    return library, None


def _obey_environment(library: ModuleType) -> None:
    name = os.environ.get(ISA_VARIABLE)
    if name:
        try:
            library.choose_instruction_set(name)
        except ValueError as error:
            raise ValueError(f"environment variable {ISA_VARIABLE}: {error}") from None


_LIBRARY, LOAD_ERROR = _load()
if _LIBRARY is not None:
    _obey_environment(_LIBRARY)


def unavailable(qkv: Tensor, num_heads: int) -> str | None:
    """Why the `cpu` backend cannot run this call, or None if it can."""
    if LOAD_ERROR is not None:
        return LOAD_ERROR
    if qkv.device.type != "cpu":
        return f"it takes tensors on the CPU, and qkv is on {qkv.device}"
    return None


def forward(qkv: Tensor, num_heads: int, scale: float, dropout_p: float, seed: int) -> Tensor:
    """The `cpu` backend's forward. ``qkv`` (R, S, 3*H*D) of any strides; returns (R, S, H*D), contiguous."""
    qkv = _rows_contiguous(qkv)
    regions, tokens, width = qkv.shape
    out = qkv.new_empty((regions, tokens, width // 3))
    library().region_attention_forward(
        qkv.data_ptr(), qkv.stride(0), qkv.stride(1), out.data_ptr(),
        _DTYPE_CODES[qkv.dtype], regions, tokens, num_heads, width // (3 * num_heads),
        scale, dropout_p, seed, torch.get_num_threads(),
    )  # fmt: skip
    return out


def backward(
    grad_out: Tensor, qkv: Tensor, num_heads: int, scale: float, dropout_p: float, seed: int
) -> Tensor:
    """The `cpu` backend's backward. ``grad_out`` (R, S, H*D); returns (R, S, 3*H*D), contiguous."""
    qkv, grad_out = _rows_contiguous(qkv), _rows_contiguous(grad_out)
    regions, tokens, width = qkv.shape
    grad_qkv = qkv.new_empty((regions, tokens, width))
    library().region_attention_backward(
        grad_out.data_ptr(), grad_out.stride(0), grad_out.stride(1),
        qkv.data_ptr(), qkv.stride(0), qkv.stride(1), grad_qkv.data_ptr(),
        _DTYPE_CODES[qkv.dtype], regions, tokens, num_heads, width // (3 * num_heads),
        scale, dropout_p, seed, torch.get_num_threads(),
    )  # fmt: skip
    return grad_qkv


def instruction_sets() -> list[str]:
    """The instruction sets compiled in that this processor can execute, slowest first."""
    return list(library().instruction_sets())


def chosen_instruction_set() -> str:
    """The instruction set the kernels use: the fastest, or the one that was chosen."""
    return str(library().chosen_instruction_set())


def choose_instruction_set(name: str) -> None:
    """Use the instruction set of that name from now on, in the whole process; ValueError if it cannot run here."""
    library().choose_instruction_set(name)


def library() -> ModuleType:
    """The compiled module; RuntimeError with the reason if there is none."""
    if _LIBRARY is None:
        raise RuntimeError(LOAD_ERROR)
    return _LIBRARY


def _rows_contiguous(tensor: Tensor) -> Tensor:
    # Kernels take any stride between regions and between tokens; only one inside a token's row needs a copy, and an
    # odd one between the tokens of bf16, whose products read two numbers as one word.
    aligned = tensor.dtype != torch.bfloat16 or tensor.stride(1) % 2 == 0
    return tensor if tensor.stride(-1) == 1 and aligned else tensor.contiguous()
