"""Whether Triton kernels can run on a device, and how every one of them is launched there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mae_dfer_kernels.gpu import unsuitable

MIN_TRITON = (3, 6)

IMPORT_ERROR: ImportError | None = None
try:
    import triton

    from mae_dfer_kernels.triton import primitives
except ImportError as error:
    IMPORT_ERROR = error


def interpreted() -> bool:
    """Whether the kernels run on the CPU: decided once, by TRITON_INTERPRET when Triton was imported."""
    return not isinstance(primitives.cast, triton.JITFunction)


def unavailable(device: torch.device) -> str | None:
    """Why no kernel can run on ``device``, or None if they can."""
    if IMPORT_ERROR is not None:
        return f"Triton does not import ({IMPORT_ERROR}); install triton >= 3.6, or take another backend"
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < MIN_TRITON:
        return f"Triton {triton.__version__} is too old; install triton >= 3.6"
    if interpreted():
        return None
    if device.type != "cuda":
        return (
            f"Triton compiles for GPUs, not for {device.type!r}; take a CUDA device, or set TRITON_INTERPRET=1 "
            "before the first import of triton to have its interpreter run it (slowly)"
        )
    return unsuitable(device)


def compile_options(num_warps: int, num_stages: int = 2) -> dict[str, Any]:
    """Options of every kernel here. Fusing multiply and add is said aloud: Triton's default changes."""
    return {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True}


def is_hopper_or_newer(device: torch.device) -> bool:
    """Whether products leave more registers free than an A100's, whose operands wait in them. True of the interpreter,
    which has no end of them."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (9, 0)


def with_dense_rows(tensor: Tensor) -> Tensor:
    """The kernels take any stride between regions and tokens, but channels side by side."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
