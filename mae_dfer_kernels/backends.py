"""Which backend runs a call, and why another cannot."""

from __future__ import annotations

import warnings
from types import ModuleType

import torch
from torch import Tensor

from mae_dfer_kernels import native, reference

NAMES = ("eager", "cpu", "triton", "cuda")
"""The backends: plain PyTorch, C++ for the CPU, Triton, CUDA C++."""


class BackendUnavailable(RuntimeError):
    """The backend that was asked for cannot run this call; the message says why."""


def module(backend: str) -> ModuleType:
    """The module whose ``forward`` and ``backward`` a (resolved) backend name stands for."""
    if backend == "eager":
        return reference
    if backend == "cpu":
        return native
    if backend == "triton":
        from mae_dfer_kernels.triton import region_attention as triton_region_attention

        return triton_region_attention
    raise ValueError(f"backend: {backend!r} cannot run; a resolved backend is one of eager, cpu, triton")


def unavailable(backend: str, qkv: Tensor, num_heads: int) -> str | None:
    """Why ``backend`` cannot run region attention on ``qkv`` (R, S, 3*H*D), or None if it can."""
    if backend == "eager":
        return None
    if backend == "cpu":
        return native.unavailable(qkv, num_heads)
    if backend == "triton":
        missing = _triton_missing()
        return missing or module("triton").unavailable(qkv, num_heads)
    if backend == "cuda":
        return "not built in this version"
    raise ValueError(f"backend: {backend!r} is none of {', '.join(('auto', *NAMES))}")


def choose(backend: str, qkv: Tensor, num_heads: int) -> str:
    """Resolve ``backend`` for this call: ``auto`` to the fastest that can run it, a name to itself.

    Raises:
        BackendUnavailable: the named backend cannot run the call.
        ValueError: there is no backend of that name.
    """
    if backend == "auto":
        return _choose_fastest(qkv, num_heads)
    reason = unavailable(backend, qkv, num_heads)
    if reason is not None:
        raise BackendUnavailable(f"backend {backend!r} cannot run this call: {reason}")
    return backend


def status() -> list[tuple[str, bool, str]]:
    """One row a backend: its name, whether it can run here at all, and how it runs or why it cannot."""
    rows = [("eager", True, f"PyTorch {torch.__version__}")]
    if native.LOAD_ERROR is None:
        rows.append(("cpu", True, f"C++ with {native.chosen_instruction_set()}"))
    else:
        rows.append(("cpu", False, native.LOAD_ERROR))
    triton_reason = _triton_missing()
    if triton_reason is None:
        probe = torch.empty(1, 1, 3 * 64, device="cuda" if torch.cuda.is_available() else "cpu")
        triton_reason = module("triton").unavailable(probe, 1)
    rows.append(("triton", triton_reason is None, triton_reason or _triton_version()))
    rows.append(("cuda", False, "not built in this version"))
    return rows


def _choose_fastest(qkv: Tensor, num_heads: int) -> str:
    device = qkv.device.type
    if device == "meta":
        return "eager"
    fastest = {"cpu": "cpu", "cuda": "triton"}.get(device)
    if fastest is None:
        _warn_once(f"no fused region attention for device {device!r}")
        return "eager"
    reason = unavailable(fastest, qkv, num_heads)
    if reason is None:
        return fastest
    _warn_once(f"the {fastest} backend of region attention cannot run: {reason}")
    return "eager"


_warned: set[str] = set()


def _warn_once(reason: str) -> None:
    if torch.compiler.is_compiling() or reason in _warned:
        return
    _warned.add(reason)
    warnings.warn(f"{reason}; taking the slower eager backend", RuntimeWarning, stacklevel=5)


def _triton_missing() -> str | None:
    try:
        module("triton")
    except ImportError as error:
        return f"Triton does not import ({error})"
    return None


def _triton_version() -> str:
    import triton

    return f"Triton {triton.__version__}"

