"""Region attention: every variant that runs on this machine, checked first, then timed alternately.

    python benchmarks/attn_bench.py [--device cpu] [--dtype float32] [--quick] [--json FILE]

Variants: ``eager`` (explicit softmax), ``sdpa`` (torch's scaled_dot_product_attention on the unpacked projection,
with the copies it takes to read and write the packed layout), ``fused-<backend>`` (ours). All start from the packed
projection and end in what the output projection reads, so that what is timed is what a model pays.
Times are medians over rounds in which every variant runs once; the spread is the interquartile range.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mae_dfer.cli import Parser, command
from mae_dfer.errors import UserError
from mae_dfer.files import write_atomically
from mae_dfer.training.progress import console
from mae_dfer_kernels import backends, region_attention
from mae_dfer_kernels.reference import region_attention as reference

HEADS, HEAD_DIM, REGIONS = 8, 64, 16  # the base model, two clips
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Op = Callable[[Tensor], Tensor]


@dataclass
class Row:
    """One variant at one shape; times in milliseconds, ``macs`` of the forward pass."""

    level: str
    variant: str
    shape: list[int]
    dtype: str
    macs: int
    forward_ms: float
    forward_iqr_ms: float
    backward_ms: float
    backward_iqr_ms: float


def sdpa(qkv: Tensor) -> Tensor:
    regions, tokens, _ = qkv.shape
    q, k, v = qkv.view(regions, tokens, 3, HEADS, HEAD_DIM).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(regions, tokens, HEADS * HEAD_DIM)


def variants(qkv: Tensor) -> dict[str, Op]:
    """What can run this call, by name."""
    found: dict[str, Op] = {"eager": lambda x: reference.region_attention(x, HEADS, HEAD_DIM**-0.5), "sdpa": sdpa}
    for name in backends.NAMES[1:]:
        if backends.unavailable("region_attention", name, qkv, HEADS) is None:
            found[f"fused-{name}"] = lambda x, name=name: region_attention(x, HEADS, backend=name)
    return found


def check(ops: dict[str, Op], qkv: Tensor) -> None:
    """Every variant within twice the error that eager makes in this dtype, against float64."""
    exact = reference.region_attention(qkv.double(), HEADS, HEAD_DIM**-0.5)
    allowed = 2 * (ops["eager"](qkv).double() - exact).abs().max() + 1e-6
    for name, op in ops.items():
        error = (op(qkv).double() - exact).abs().max()
        if error > allowed:
            raise UserError(f"{name} is wrong at {tuple(qkv.shape)}: error {error:.2e}, allowed {allowed:.2e}")


def timed(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) * 1e3


def measure(ops: dict[str, Op], qkv: Tensor, rounds: int) -> dict[str, tuple[list[float], list[float]]]:
    """Forward, and forward + backward, times of each variant; variants take turns."""
    leaf = qkv.clone().requires_grad_()
    grad = torch.randn_like(ops["eager"](qkv))
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in ops}

    def both(op: Op) -> None:
        leaf.grad = None
        op(leaf).backward(grad)

    for turn in range(rounds + 2):
        for name, op in ops.items():
            with torch.no_grad():
                forward = timed(lambda op=op: op(qkv), qkv.device)  # type: ignore[misc]
            backward = timed(lambda op=op: both(op), qkv.device)  # type: ignore[misc]
            if turn >= 2:  # the first turns warm up
                times[name][0].append(forward)
                times[name][1].append(backward)
    return times


def macs(op: Op, qkv: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        op(qkv)
    return counter.get_total_flops() // 2


def bench(device: torch.device, dtype_name: str, tokens: int, rounds: int) -> list[Row]:
    torch.manual_seed(0)
    qkv = torch.randn(REGIONS, tokens, 3 * HEADS * HEAD_DIM, device=device, dtype=DTYPES[dtype_name])
    ops = variants(qkv)
    check(ops, qkv)
    rows = []
    for name, (forward, backward) in measure(ops, qkv, rounds).items():
        low, middle, high = np.percentile(forward, (25, 50, 75))
        low_b, middle_b, high_b = np.percentile(backward, (25, 50, 75))
        rows.append(Row("op", name, [REGIONS, tokens, HEADS, HEAD_DIM], dtype_name, macs(ops[name], qkv),
                        float(middle), float(high - low), float(middle_b), float(high_b - low_b)))
    return rows


def show(rows: list[Row]) -> None:
    title = f"region attention, {REGIONS} regions, {HEADS} heads × {HEAD_DIM} (forward + backward in one time)"
    table = Table("S", "dtype", "variant", "MMAC", "forward ms", "× best other", "fwd + bwd ms", "× best other",
                  title=title)
    for row in rows:
        others = [r for r in rows if (r.shape, r.dtype) == (row.shape, row.dtype) and "fused" not in r.variant]
        ours = "fused" in row.variant
        ratio = [f"{min(r.forward_ms for r in others) / row.forward_ms:.2f}×" if ours else "",
                 f"{min(r.backward_ms for r in others) / row.backward_ms:.2f}×" if ours else ""]
        table.add_row(str(row.shape[1]), row.dtype, row.variant, f"{row.macs / 1e6:.1f}",
                      f"{row.forward_ms:.3f} ± {row.forward_iqr_ms / 2:.3f}", ratio[0],
                      f"{row.backward_ms:.3f} ± {row.backward_iqr_ms / 2:.3f}", ratio[1])
    console.print(table)


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python benchmarks/attn_bench.py", description="Times region attention, variant by variant.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", metavar="NAME")
    parser.add_argument("--dtype", choices=(*DTYPES, "all"), default="all")
    parser.add_argument("--quick", action="store_true", help="few rounds: a look, not a measurement")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows as JSON")
    options = parser.parse_args(argv)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA GPU on this machine")
    names = list(DTYPES) if options.dtype == "all" else [options.dtype]
    rounds = 5 if options.quick else 40
    rows = [row for name in names for tokens in (11, 41, 101) for row in bench(device, name, tokens, rounds)]
    show(rows)
    if options.json:
        content = json.dumps({"threads": torch.get_num_threads(), "torch": torch.__version__,
                              "rows": [asdict(row) for row in rows]}, indent=2)
        write_atomically(options.json, lambda temporary: temporary.write_text(content + "\n"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
