"""What a GPU can do at best: the rate of a large copy and of large matrix products.

    python -m bench.ceilings FILE.json      (in benchmarks/)
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mae_dfer.files import write_atomically


def ceilings(device: torch.device, copy_bytes: int = 2**30, size: int = 8192, repeats: int = 10) -> dict[str, float]:
    """``copy_bytes_per_s`` (bytes read and bytes written) and ``matmul_<dtype>_flops_per_s``.

    Random operands: on zeros a GPU draws less power and clocks higher. float32 without TF32.
    """
    source = torch.randint(0, 256, (copy_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    found = {"copy_bytes_per_s": 2 * copy_bytes / _median_seconds(lambda: target.copy_(source), device, repeats)}
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        for dtype in (torch.bfloat16, torch.float32):
            left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
            out = torch.empty_like(left)
            seconds = _median_seconds(lambda a=left, b=right, out=out: torch.mm(a, b, out=out), device, repeats)
            found[f"matmul_{str(dtype).removeprefix('torch.')}_flops_per_s"] = 2 * size**3 / seconds
    finally:
        torch.set_float32_matmul_precision(precision)
    return found


def _median_seconds(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    times = []
    for turn in range(repeats + 2):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            torch.cuda.synchronize(device)
            elapsed = start.elapsed_time(end) / 1e3
        else:
            started = time.perf_counter()
            call()
            elapsed = time.perf_counter() - started
        if turn >= 2:  # the first ones warm up
            times.append(elapsed)
    return statistics.median(times)


if __name__ == "__main__":
    text = json.dumps(ceilings(torch.device("cuda")))
    write_atomically(Path(sys.argv[1]), lambda temporary: temporary.write_text(text))
