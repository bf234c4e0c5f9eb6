"""Whether the CUDA kernels can run on a device, and what they are launched with."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from mae_dfer_kernels import native
from mae_dfer_kernels.gpu import unsuitable

# Bytes that the kernels copy at once: rows begin at multiples of it.
ALIGNMENT = 16
# Channels that a thread holds or copies side by side, at most, and the types that kernels take.
VECTOR = 8
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def library() -> ModuleType:
    """The module that holds the kernels."""
    return native.library()


def takes(device: torch.device) -> bool:
    """Whether tensors on ``device`` are what the library's kernels read."""
    return device.type == "cuda"


def note() -> str:
    """What the build says of the CUDA kernels: for which GPUs they are there, or why not."""
    return native.LOAD_ERROR or str(native.library().cuda_note)


def unavailable(device: torch.device) -> str | None:
    """Why no kernel can run on ``device``, or None if they can."""
    if native.LOAD_ERROR is not None:
        return native.LOAD_ERROR
    if not library().has_cuda:
        return note()
    if not takes(device):
        return f"it takes tensors on a CUDA device, not on {device.type!r}"
    return unsuitable(device) if device.type == "cuda" else None


def rows_unavailable(x: Tensor, max_channels: int) -> str | None:
    """Why no kernel that takes rows of channels can run on ``x`` (…, C), or None if they can."""
    reason = unavailable(x.device)
    if reason is not None:
        return reason
    channels = x.shape[-1]
    if x.dtype not in DTYPES:
        return f"x is {x.dtype}; cast it to float32, bfloat16 or float16, or take backend 'eager'"
    if channels % VECTOR or channels > max_channels:
        return f"C = {channels} channels; a multiple of {VECTOR}, at most {max_channels}, is needed"
    return None


def stream(device: torch.device) -> int:
    """The handle of the stream that work is queued on."""
    if device.type != "cuda":
        return 0
    if _raw_stream is not None and device.index is not None:
        return int(_raw_stream(device.index))
    return int(torch.cuda.current_stream(device).cuda_stream)


# What torch.compile's and Triton's launchers take, at a tenth of the time.
_raw_stream = getattr(torch._C, "_cuda_getCurrentRawStream", None)


def aligned_rows(tensor: Tensor) -> Tensor:
    """The tensor, or a contiguous copy where its rows do not begin at multiples of ``ALIGNMENT`` bytes."""
    size = tensor.element_size()
    if tensor.is_contiguous() and tensor.shape[-1] * size % ALIGNMENT == 0 and tensor.data_ptr() % ALIGNMENT == 0:
        return tensor
    starts = (tensor.data_ptr(), *(stride * size for stride in tensor.stride()[:-1]))
    dense = tensor.stride(-1) == 1 and all(start % ALIGNMENT == 0 for start in starts)
    # A view may be contiguous and begin anywhere.
    return tensor if dense else tensor.clone(memory_format=torch.contiguous_format)
