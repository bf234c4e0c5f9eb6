"""Named ranges around every operator, for profilers: off unless asked for.

``MAE_DFER_KERNELS_NVTX=1`` in the environment, or ``with nvtx_ranges():``, puts a range around each forward and
backward that a backend runs, named by operator and backend, as in ``region_attention backward [triton]``. Nsight
Systems shows them as NVTX ranges where PyTorch is a CUDA build; torch's own profiler shows them everywhere.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

NVTX_VARIABLE = "MAE_DFER_KERNELS_NVTX"
"""Environment variable, read at import: 1 turns the ranges on, 0 or nothing leaves them off."""

# One flag for all threads: autograd runs a GPU's backward on threads of its own.
enabled = False
_nvtx_missing: str | None = None


@contextlib.contextmanager
def nvtx_ranges(on: bool = True) -> Iterator[None]:
    """Put named ranges around every operator call, in all threads, while the context lasts (or none: ``on=False``).

    Warns:
        RuntimeWarning: this PyTorch has no NVTX, since it is not a CUDA build; torch's own profiler shows the ranges
            all the same.
    """
    before = enabled
    _switch(on)
    try:
        yield
    finally:
        _switch(before)


def run(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """``function(*arguments)`` inside a range of that name. Called where ranges are `enabled`."""
    # A CUDA build may be used without a GPU; ranges without a tool that listens cost some hundred nanoseconds.
    if _nvtx_missing is None:
        torch.cuda.nvtx.range_push(name)
    try:
        with torch.autograd.profiler.record_function(name):
            return function(*arguments)
    finally:
        if _nvtx_missing is None:
            torch.cuda.nvtx.range_pop()


def _switch(on: bool) -> None:
    global enabled, _nvtx_missing
    if on and not enabled:
        _nvtx_missing = _why_no_nvtx()
        if _nvtx_missing is not None:
            warnings.warn(
                f"no NVTX ranges: {_nvtx_missing}; torch's own profiler shows them all the same", RuntimeWarning,
                stacklevel=4,
            )  # fmt: skip
    enabled = on


def _why_no_nvtx() -> str | None:
    try:
        torch.cuda.nvtx.range_push("mae_dfer_kernels")
        torch.cuda.nvtx.range_pop()
    except RuntimeError as error:
        return f"this PyTorch ({torch.__version__}) has none ({error})"
    return None


def _obey_environment() -> None:
    value = os.environ.get(NVTX_VARIABLE, "")
    if value not in ("", "0", "1"):
        raise ValueError(f"environment variable {NVTX_VARIABLE}: {value!r} is neither 0 nor 1")
    _switch(value == "1")


_obey_environment()
