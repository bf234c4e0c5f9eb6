"""Which backend runs a call, and why another cannot."""

from __future__ import annotations

import warnings
from types import ModuleType
from typing import Any

import torch

from mae_dfer_kernels import native, profiling
from mae_dfer_kernels.cuda import device as cuda_device
from mae_dfer_kernels.cuda import exchange as cuda_exchange
from mae_dfer_kernels.cuda import region_attention as cuda_region_attention
from mae_dfer_kernels.cuda import residual_layer_norm as cuda_residual_layer_norm
from mae_dfer_kernels.native import column_sums as native_column_sums
from mae_dfer_kernels.native import exchange as native_exchange
from mae_dfer_kernels.native import gelu_gradient as native_gelu_gradient
from mae_dfer_kernels.native import region_attention as native_region_attention
from mae_dfer_kernels.native import residual_layer_norm as native_residual_layer_norm
from mae_dfer_kernels.native import weight_gradient as native_weight_gradient
from mae_dfer_kernels.reference import column_sums as reference_column_sums
from mae_dfer_kernels.reference import exchange as reference_exchange
from mae_dfer_kernels.reference import gelu_gradient as reference_gelu_gradient
from mae_dfer_kernels.reference import region_attention as reference_region_attention
from mae_dfer_kernels.reference import residual_layer_norm as reference_residual_layer_norm
from mae_dfer_kernels.reference import weight_gradient as reference_weight_gradient

NAMES = ("eager", "cpu", "triton", "cuda")
"""The backends: plain PyTorch, C++ for the CPU, Triton, CUDA C++."""

# Triton is imported when it is first asked for.
_MODULES = {
    "column_sums": {"eager": reference_column_sums, "cpu": native_column_sums},
    "exchange": {"eager": reference_exchange, "cpu": native_exchange},
    # With nothing to add.
    "layer_norm": {"eager": reference_residual_layer_norm, "cpu": native_residual_layer_norm},
    "gelu_gradient": {"eager": reference_gelu_gradient, "cpu": native_gelu_gradient},
    "region_attention": {"eager": reference_region_attention, "cpu": native_region_attention},
    "residual_layer_norm": {"eager": reference_residual_layer_norm, "cpu": native_residual_layer_norm},
    "weight_gradient": {"eager": reference_weight_gradient, "cpu": native_weight_gradient},
}

# Operators without kernels of that kind are not here.
_CUDA_MODULES = {
    "exchange": cuda_exchange,
    "layer_norm": cuda_residual_layer_norm,
    "region_attention": cuda_region_attention,
    "residual_layer_norm": cuda_residual_layer_norm,
}

# Of operators that PyTorch's libraries have too, whether a call on a CPU is faster with ours. On a GPU theirs serve.
_WHERE_OURS_PAYS = {"weight_gradient": native_weight_gradient.pays}


class BackendUnavailable(RuntimeError):
    """The backend that was asked for cannot run this call; the message says why."""


def module(op: str, backend: str) -> ModuleType:
    """The module whose ``forward`` and ``backward`` run operator ``op`` on a backend, if there is such a one."""
    loaded = _MODULES[op].get(backend)
    if loaded is not None:
        return loaded
    return _triton_modules()[op] if backend == "triton" else _CUDA_MODULES[op]


def _triton_modules() -> dict[str, ModuleType]:
    # An import statement, which torch.compile can trace; `importlib` it cannot.
    from mae_dfer_kernels.triton import column_sums, exchange, gelu_gradient, region_attention, residual_layer_norm

    return {
        "column_sums": column_sums,
        "exchange": exchange,
        "layer_norm": residual_layer_norm,
        "gelu_gradient": gelu_gradient,
        "region_attention": region_attention,
        "residual_layer_norm": residual_layer_norm,
    }


def missing(op: str, backend: str) -> str | None:
    """Why `module` has none for this backend, or None if it has; ValueError for a name that is no backend's."""
    if backend in _MODULES[op]:
        return None
    if backend not in NAMES:
        # Only what is resolved reaches the registered operators, so there "auto" is no name either.
        known = NAMES if backend == "auto" else ("auto", *NAMES)
        raise ValueError(f"backend: {backend!r} is none of {', '.join(known)}")
    if op in _WHERE_OURS_PAYS:
        return f"there is no kernel of {op} for a GPU"
    if backend == "cuda":
        return None if op in _CUDA_MODULES else f"there is no CUDA C++ kernel of {op}"
    return _triton_missing()


def unavailable(op: str, backend: str, *problem: Any) -> str | None:
    """Why ``backend`` cannot run operator ``op`` on ``problem`` (a tensor first), or None if it can."""
    if backend == "eager":
        return None
    x = problem[0]
    if not x.is_cuda or torch.compiler.is_compiling():
        return _ask(op, backend, *problem)
    key = (op, backend, x.device, x.dtype, x.shape, problem[1:])
    known = _asked.get(key)
    if known is None:
        if len(_asked) > _MOST_ASKED:
            _asked.clear()
        known = _asked[key] = (_ask(op, backend, *problem),)
    return known[0]


def _ask(op: str, backend: str, *problem: Any) -> str | None:
    reason: str | None = missing(op, backend) or module(op, backend).unavailable(*problem)
    return reason


# Modules that have run a call: an import statement takes ten microseconds.
_loaded: dict[tuple[str, str], ModuleType] = {}
# Of GPUs, whose properties take long to ask for: a step's launches wait for the processor already.
_asked: dict[tuple[Any, ...], tuple[str | None]] = {}
_MOST_ASKED = 4096


def run(op: str, direction: str, backend: str, problem: tuple[Any, ...], *inputs: Any) -> Any:
    """Call ``forward`` or ``backward`` of operator ``op`` on a (resolved) backend with ``inputs``.

    ``problem`` is what `choose` is given. In a named range where `profiling` is asked for ranges.

    Raises:
        BackendUnavailable: the backend cannot run the call.
        ValueError: there is no backend of that name, or it is `cpu` and a tensor is elsewhere.
    """
    loaded = _MODULES[op].get(backend)
    if loaded is None:  # the others check their few conditions themselves, sooner
        reason = unavailable(op, backend, *problem)
        if reason is not None:
            raise BackendUnavailable(f"backend {backend!r} cannot run this call: {reason}")
        loaded = _loaded.get((op, backend)) or _loaded.setdefault((op, backend), module(op, backend))
    function = getattr(loaded, direction)
    if profiling.enabled:
        return profiling.run(f"{op} {direction} [{backend}]", function, *inputs)
    return function(*inputs)


def choose(op: str, backend: str, *problem: Any) -> str:
    """Resolve ``backend`` for a call of operator ``op``: ``auto`` to the fastest that can run it, a name to itself.

    ``problem`` is what the operator's backends need to know of the call, a tensor first.

    Raises:
        BackendUnavailable: the named backend cannot run the call.
        ValueError: there is no backend of that name.
    """
    if backend == "auto":
        return _choose_fastest(op, *problem)
    reason = unavailable(op, backend, *problem)
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
        triton_reason = module("region_attention", "triton").unavailable(probe, 1)
    rows.append(("triton", triton_reason is None, triton_reason or _triton_version()))
    if torch.cuda.is_available():
        cuda_reason = cuda_device.unavailable(torch.device("cuda"))
    else:
        cuda_reason = f"{cuda_device.note()}; torch sees no CUDA GPU"
    rows.append(("cuda", cuda_reason is None, cuda_reason or cuda_device.note()))
    return rows


# Fastest first.
_PREFERENCE = {"cpu": ("cpu",), "cuda": ("triton", "cuda")}


def _choose_fastest(op: str, *problem: Any) -> str:
    if op in _WHERE_OURS_PAYS:
        return "cpu" if _WHERE_OURS_PAYS[op](*problem) else "eager"
    # First and shortly, since small calls on the CPU feel every microsecond.
    if problem[0].is_cpu and _MODULES[op]["cpu"].unavailable(*problem) is None:
        return "cpu"
    device = problem[0].device.type
    if device == "meta":
        return "eager"
    if device not in _PREFERENCE:
        _warn_once(f"no fused {op} for device {device!r}")
        return "eager"
    reasons = []
    for name in _PREFERENCE[device][:: -1 if _better_in_cuda(op, problem[0]) else 1]:
        reason = unavailable(op, name, *problem)
        if reason is None:
            return name
        reasons.append(f"the {name} backend of {op} cannot run: {reason}")
    _warn_once("; ".join(reasons))
    return "eager"


def _better_in_cuda(op: str, x: torch.Tensor) -> bool:
    """Whether CUDA C++ is to come before Triton.

    For what is small, since Python takes some 50 µs less to launch it. And for attention in 16 bits whose gradient will
    be asked for: on an H100, B = 32 and S = 101, it takes 39 µs forward and 132 µs backward by Triton, 50 and 100 in
    CUDA C++. The exchange in CUDA C++ multiplies the rows of a float32 stream in float32, and takes longer.
    """
    if op == "exchange":
        return False
    trains = op == "region_attention" and x.requires_grad and torch.is_grad_enabled()
    return (trains and x.element_size() == 2) or x.numel() < _SMALL


_SMALL = 2**22


_warned: set[str] = set()


def _warn_once(reason: str) -> None:
    if torch.compiler.is_compiling() or reason in _warned:
        return
    _warned.add(reason)
    warnings.warn(f"{reason}; taking the slower eager backend", RuntimeWarning, stacklevel=5)


def _triton_missing() -> str | None:
    try:
        module("region_attention", "triton")
    except ImportError as error:
        return f"Triton does not import ({error})"
    return None


def _triton_version() -> str:
    import triton

    return f"Triton {triton.__version__}"

