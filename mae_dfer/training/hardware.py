"""Where a run computes: device, mixed precision, and its place among the processes of torchrun."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ..config import TrainConfig
from ..errors import UserError

# mallopt's names for them in malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Hardware:
    """Device, autocast dtype (None: full precision) and rank of this process."""

    device: torch.device
    amp_dtype: torch.dtype | None
    rank: int = 0
    world_size: int = 1
    control: Any = None  # process group for small messages between CPUs, which must not wait for a GPU

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def autocast(self, *, cache: bool = True) -> contextlib.AbstractContextManager[Any]:
        """``cache``: a parameter is cast once, however often it is used."""
        if self.amp_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.amp_dtype, cache_enabled=cache)

    def describe(self) -> str:
        """The device, and mixed precision where there is some."""
        return f"{self.device}" + (f" ({str(self.amp_dtype).split('.')[-1]} autocast)" if self.amp_dtype else "")

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model on the device; under DistributedDataParallel where there are several processes."""
        model = model.to(self.device)
        if self.world_size == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return torch.nn.parallel.DistributedDataParallel(model, device_ids=ids)

    def gather(self, value: Any) -> list[Any]:
        """``value`` of every process, in rank order, on every process."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def total(self, *counts: int) -> list[int]:
        """Each count summed over the processes."""
        if self.world_size == 1:
            return list(counts)
        sums = torch.tensor(counts)
        dist.all_reduce(sums, group=self.control)
        return [int(count) for count in sums]

    def weighted_mean(self, values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """The mean of each value over the processes, by this process's weight of it; both (n,), on any device."""
        if self.world_size == 1:
            return values
        weights = weights.double().cpu()
        sums = torch.stack([values.double().cpu() * weights, weights])
        dist.all_reduce(sums, group=self.control)
        return sums[0] / sums[1]

    def decide(self, make: Callable[[], str]) -> str:
        """What the main process makes, on every process; where it fails, all of them do."""
        made, failure = "", None
        if self.is_main:
            try:
                made = make()
            except (UserError, OSError) as error:
                failure = error
        value, problem = self.gather((made, None if failure is None else str(failure)))[0]
        if failure is not None:
            raise failure
        if problem is not None:
            raise UserError(problem)
        return str(value)

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()


def open_hardware(config: TrainConfig) -> Hardware:
    """Chooses the device and joins torchrun's process group where there is one."""
    world_size, local_rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
    device = choose_device(config.device, local_rank)
    if config.cuda_graph and config.stage != "evaluate" and device.type != "cuda":
        raise UserError("--cuda-graph needs an NVIDIA GPU, and this run is on the CPU; --no-cuda-graph trains without")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world_size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    rank = dist.get_rank() if world_size > 1 else 0
    control = dist.new_group(backend="gloo") if world_size > 1 else None
    amp = config.amp
    if amp == "auto":
        amp = "bf16" if has_fast_bf16(device) else "off"
    return Hardware(device, AMP_DTYPES.get(amp), rank, world_size, control)


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices by instructions of its own."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Older versions of torch cannot tell, and then do without.
    processor: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(processor.get("avx512_bf16") or processor.get("amx_bf16"))


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """:func:`find_device`, of those that the kernels know; a CPU is told to keep freed memory."""
    device = find_device(name, local_rank)
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: only cpu and cuda are supported")
    if device.type == "cpu":
        keep_freed_memory()
    return device


def find_device(name: str, local_rank: int = 0) -> torch.device:
    """The device of that name, ``auto`` for a GPU if there is one. Raises UserError where there is no such device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: not a device; try cpu, cuda or cuda:0") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"--device {name}: torch sees no CUDA GPU on this machine; use --device cpu")
        if device.index is None:
            device = torch.device("cuda", local_rank)
        if device.index >= torch.cuda.device_count():
            raise UserError(f"--device {name}: this machine has {torch.cuda.device_count()} GPU(s)")
    return device


def name_device(device: torch.device) -> str:
    """The device as its maker calls it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def keep_freed_memory() -> None:
    """Has glibc keep what this process frees, up to 2 GiB, for what it allocates next.

    Else the activations of every step go back to the system and come anew, page by page: on two cores a tenth of the
    time of inference and pre-training. Other C libraries have no such function, and nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_MMAP_THRESHOLD, 32 * 2**20)  # the most that it takes


def close_hardware() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
