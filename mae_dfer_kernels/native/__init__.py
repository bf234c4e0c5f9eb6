"""The compiled library, and one module an operator that hands it tensors as addresses, sizes and strides.

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

DTYPE_CODES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}


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
# Kept beside the library's own choice, since torch.compile cannot trace a question to it.
_chosen = "" if _LIBRARY is None else str(_LIBRARY.chosen_instruction_set())
IS_AMD = _LIBRARY is not None and bool(_LIBRARY.is_amd())
"""Whether AMD made the processor."""


def instruction_sets() -> list[str]:
    """The instruction sets compiled in that this processor can execute, slowest first."""
    return list(library().instruction_sets())


def chosen_instruction_set() -> str:
    """The instruction set the kernels use: the fastest, or the one that was chosen."""
    library()
    return _chosen


def choose_instruction_set(name: str) -> None:
    """Use the instruction set of that name from now on, in the whole process; ValueError if it cannot run here."""
    global _chosen
    library().choose_instruction_set(name)
    _chosen = name


def multiplies_bf16() -> bool:
    """Whether the chosen instruction set multiplies bfloat16 numbers, in half the time that float32 takes."""
    return _chosen == "avx512_bf16"


def check_place(name: str, tensor: Tensor) -> None:
    """The library reads addresses on the CPU; ValueError for a tensor that is elsewhere."""
    if not tensor.is_cpu:
        raise ValueError(f"{name} must be on the CPU for backend 'cpu', got {tensor.device}")


def library() -> ModuleType:
    """The compiled module; RuntimeError with the reason if there is none."""
    if _LIBRARY is None:
        raise RuntimeError(LOAD_ERROR)
    return _LIBRARY
