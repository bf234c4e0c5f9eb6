"""What the Triton and the CUDA kernels ask of a GPU alike, and the device that both are launched on."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

MIN_CAPABILITY = (8, 0)


def unsuitable(device: torch.device) -> str | None:
    """Why no kernel of ours can run on this CUDA device, or None if they can."""
    if torch.version.hip is not None:
        return "these kernels are tuned and tested for NVIDIA GPUs alone; take backend 'eager' on AMD GPUs"
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < MIN_CAPABILITY:
        return f"the GPU has compute capability {major}.{minor}; 8.0 (A100) or above is needed, or 'eager'"
    return None


def on_device(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Kernels are launched on the current device, which need not be the tensor's."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return _nothing
    return torch.cuda.device(device)


_nothing = contextlib.nullcontext()
