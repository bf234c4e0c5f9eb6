"""What a call costs before any arithmetic: the operators on tiny tensors on the CPU, beside PyTorch's own.

    python benchmarks/call_overhead.py [--rounds 400] [--json FILE]

Each operator against what PyTorch offers in its place, in turns: `region_attention` against
`F.scaled_dot_product_attention` on heads that are split already, and against the same with the views and the copy
that reading and writing the packed layout takes; `residual_layer_norm` against an addition and `F.layer_norm`;
`exchange`, absorbed, against the operators of its plain form.

Every turn times a batch of calls on one thread, by that thread's own clock, so that whatever else the machine does
counts little. Medians of the turns, in µs a call, with their interquartile range.
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

from mae_dfer.cli import Parser, command
from mae_dfer.files import write_atomically
from mae_dfer.training.progress import console
from mae_dfer_kernels import exchange, region_attention, residual_layer_norm

HEADS, HEAD_DIM, TOKENS = 2, 16, 4
CALLS = 50  # in a batch: long enough for the clock, short enough for many turns
Op = Callable[[], Sequence[Tensor]]


@dataclass
class Row:
    """One variant: µs a call, and how many times PyTorch's own (the first variant of its group)."""

    op: str
    variant: str
    forward_us: float
    forward_iqr_us: float
    both_us: float
    both_iqr_us: float
    forward_ratio: float = 1.0
    both_ratio: float = 1.0


def attention_variants() -> tuple[list[Tensor], dict[str, Op]]:
    """Leaves, and calls by name; the first is what the others are compared with."""
    model = HEADS * HEAD_DIM
    qkv = torch.randn(1, TOKENS, 3 * model)
    heads = [torch.randn(1, HEADS, TOKENS, HEAD_DIM) for _ in range(3)]

    def packed() -> Sequence[Tensor]:
        q, k, v = qkv.view(1, TOKENS, 3, HEADS, HEAD_DIM).permute(2, 0, 3, 1, 4).unbind(0)
        return (F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(1, TOKENS, model),)

    variants: dict[str, Op] = {
        "sdpa": lambda: (F.scaled_dot_product_attention(*heads),),
        "sdpa, packed layout": packed,
        "region_attention": lambda: (region_attention(qkv, HEADS),),
    }
    return [qkv, *heads], variants


def norm_variants() -> tuple[list[Tensor], dict[str, Op]]:
    channels = HEADS * HEAD_DIM
    x, update = torch.randn(1, TOKENS, channels), torch.randn(1, TOKENS, channels)
    weight, bias = torch.ones(channels), torch.zeros(channels)

    def plain() -> Sequence[Tensor]:
        total = x + update
        return total, F.layer_norm(total, (channels,), weight, bias, 1e-6)

    variants: dict[str, Op] = {
        "add, layer_norm": plain,
        "residual_layer_norm": lambda: residual_layer_norm(x, update, weight, bias),
    }
    return [x, update, weight, bias], variants


def exchange_variants() -> tuple[list[Tensor], dict[str, Op]]:
    channels, context_tokens = HEADS * HEAD_DIM, 2
    local, context = torch.randn(1, TOKENS, channels), torch.randn(1, context_tokens, channels)
    weight, bias, matrix = torch.ones(channels), torch.zeros(channels), torch.randn(3 * channels, channels)
    proj = matrix[:channels].clone()
    leaves = [local, context, weight, bias, matrix, proj]

    def heads(rows: Tensor) -> Tensor:
        return rows.unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2)

    def plain() -> Sequence[Tensor]:
        normed = F.layer_norm(local, (channels,), weight, bias, 1e-6)
        query = F.linear(normed, matrix[:channels], bias)
        key, value = F.linear(context, matrix[channels:], torch.cat((torch.zeros_like(bias), bias))).chunk(2, dim=-1)
        mixed = F.scaled_dot_product_attention(heads(query), heads(key), heads(value)).transpose(1, 2).flatten(2)
        return (local + F.linear(mixed, proj, bias),)

    variants: dict[str, Op] = {
        "layer_norm, linear, sdpa": plain,
        "exchange": lambda: (
            exchange(local, context, weight, bias, matrix, bias, bias, proj, bias, HEADS, form="absorbed"),
        ),
    }
    return leaves, variants


GROUPS = {
    "region_attention": attention_variants, "residual_layer_norm": norm_variants, "exchange": exchange_variants,
}  # fmt: skip


def batch(run: Callable[[], object]) -> float:
    """µs a call."""
    started = time.thread_time()
    for _ in range(CALLS):
        run()
    return (time.thread_time() - started) / CALLS * 1e6


def both(op: Op, leaves: list[Tensor]) -> None:
    for leaf in leaves:
        leaf.grad = None
    outputs = op()
    torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])


def measure(name: str, rounds: int) -> list[Row]:
    leaves, variants = GROUPS[name]()
    times: dict[str, tuple[list[float], list[float]]] = {variant: ([], []) for variant in variants}
    for turn in range(rounds + 3):
        for variant, op in variants.items():
            for leaf in leaves:
                leaf.requires_grad_(False)
            forward = batch(op)
            for leaf in leaves:
                leaf.requires_grad_(True)
            backward = batch(lambda op=op: both(op, leaves))  # type: ignore[misc]
            if turn >= 3:  # the first turns warm up
                times[variant][0].append(forward)
                times[variant][1].append(backward)
    rows = []
    for variant, (forwards, backwards) in times.items():
        low, middle, high = np.percentile(forwards, (25, 50, 75))
        low_b, middle_b, high_b = np.percentile(backwards, (25, 50, 75))
        rows.append(Row(name, variant, float(middle), float(high - low), float(middle_b), float(high_b - low_b)))
    for row in rows:
        row.forward_ratio, row.both_ratio = row.forward_us / rows[0].forward_us, row.both_us / rows[0].both_us
    return rows


def show(rows: list[Row]) -> None:
    table = Table("operator", "variant", "forward µs", "ratio", "fwd + bwd µs", "ratio", title="cost of a call, CPU")
    for row in rows:
        table.add_row(
            row.op, row.variant, f"{row.forward_us:.2f} ± {row.forward_iqr_us / 2:.2f}", f"{row.forward_ratio:.2f}×",
            f"{row.both_us:.2f} ± {row.both_iqr_us / 2:.2f}", f"{row.both_ratio:.2f}×",
        )  # fmt: skip
    console.print(table)


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python benchmarks/call_overhead.py", description="Times calls on tiny tensors on the CPU.")
    parser.add_argument("--rounds", type=int, default=400, metavar="N", help="turns of every variant (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows as JSON")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = [row for name in GROUPS for row in measure(name, options.rounds)]
    show(rows)
    if options.json:
        content = json.dumps({"torch": torch.__version__, "rows": [asdict(row) for row in rows]}, indent=2)
        write_atomically(options.json, lambda temporary: temporary.write_text(content + "\n"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
