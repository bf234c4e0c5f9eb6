"""Whole training steps of the base model against plain PyTorch and VideoMAE's ViT-B, and what they mean for a run.

    python benchmarks/train_bench.py [--stage pretrain|finetune] [--device cpu] [--dtype float32] [--json FILE]

Variants: ``fused`` (ours), ``fused-graph`` (its forward and backward as CUDA graphs, on a GPU), ``eager`` (plain
PyTorch), ``compile-sdpa`` (LGI-Former with torch's attention through torch.compile; on a GPU, or by --compile),
``vit-sdpa`` (VideoMAE's ViT-B with torch's attention). A step is forward, backward and AdamW on a batch that is there
already; making clips from video files is measured apart, on one core. Variants take turns, a step each; times are
medians, their spread the interquartile range.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bench.facts import environment
from bench.loading import clips_per_second
from bench.measure import peak_bytes
from bench.steps import PARTS, STAGES, TrainingStep, training_steps
from rich.box import SIMPLE_HEAD
from rich.progress import track
from rich.table import Table

from mae_dfer.cli import Parser, command
from mae_dfer.errors import UserError
from mae_dfer.files import check_writable, write_atomically
from mae_dfer.training.hardware import choose_device, has_fast_bf16
from mae_dfer.training.progress import console

DTYPES = ("float32", "bfloat16")
# The paper pre-trains on VoxCeleb2's 1.09 million clips for 50 epochs (section 4.1).
PAPER_CLIPS, PAPER_EPOCHS = 1.09e6, 50
FIELDS = {
    "step_ms": "median of a step: forward, backward, optimizer; a batch of `clips`",
    "step_iqr_ms": "interquartile range of the same over the rounds",
    "forward_ms": "median of the part, as are backward_ms and optimizer_ms",
    "peak_bytes": "memory that a step adds at its peak to weights and optimiser: activations, gradients, temporaries; "
    "of fused-graph that of the same step without graphs, which keep as much",
}


@dataclass
class Row:
    """One variant of one stage; see FIELDS."""

    level: str
    stage: str
    variant: str
    dtype: str
    clips: int
    step_ms: float
    step_iqr_ms: float
    forward_ms: float
    backward_ms: float
    optimizer_ms: float
    clips_per_second: float
    peak_bytes: int
    rounds: int


def measure(steps: list[TrainingStep], rounds: int) -> list[Row]:
    for step in steps:
        step.run()
    memory = [peak_bytes(step.run, step.device) for step in steps]
    kept = list(zip(steps, memory, strict=True))
    if steps[-1].variant == "fused-graph":  # captured now: its replays allocate nothing that could be counted
        try:
            steps[-1].capture()
        except UserError as error:
            console.print(f"left out: {steps[-1].variant}, {steps[-1].stage}, {steps[-1].dtype}: {error}")
            kept.pop()
    for turn in track(range(rounds), f"{steps[0].stage}, {steps[0].dtype}", console=console, transient=True):
        for place in range(len(kept)):
            kept[(place + turn) % len(kept)][0].timed()
    return [make_row(step, peak) for step, peak in kept]


def make_row(step: TrainingStep, peak: int) -> Row:
    clips = step.batch[0].shape[0]
    totals = [sum(parts) for parts in zip(*step.times.values(), strict=True)]
    low, middle, high = (float(value) for value in np.percentile(totals, (25, 50, 75)))
    parts = [float(np.median(step.times[part])) for part in PARTS]
    return Row(
        "step", step.stage, step.variant, step.dtype, clips, middle, high - low, *parts, clips / middle * 1e3, peak,
        len(totals),
    )  # fmt: skip


def show(rows: list[Row], title: str) -> None:
    caption = "± half the interquartile range. ours: how many times as long as ours a variant takes."
    table = Table("", title=title, caption=caption, box=SIMPLE_HEAD, padding=(0, 1))
    for name in ("step ms", "ours", "forward", "backward", "AdamW", "clips/s", "peak MB"):
        table.add_column(name, justify="right", no_wrap=True)
    groups = dict.fromkeys((row.stage, row.dtype, row.clips) for row in rows)
    for group in groups:
        members = [row for row in rows if (row.stage, row.dtype, row.clips) == group]
        ours = next(row.step_ms for row in members if row.variant == "fused")
        table.add_row(f"{group[0]}, {group[1]}, {group[2]} clips", style="italic")
        for row in members:
            table.add_row(
                f"  {row.variant}", f"{row.step_ms:.1f} ± {row.step_iqr_ms / 2:.1f}", f"{row.step_ms / ours:.2f}×",
                f"{row.forward_ms:.1f}", f"{row.backward_ms:.1f}", f"{row.optimizer_ms:.1f}",
                f"{row.clips_per_second:.2f}", f"{row.peak_bytes / 1e6:.0f}",
                style="bold" if row.variant.startswith("fused") else None,
            )  # fmt: skip
    console.print(table)


def projection(rows: list[Row], made_per_second: float, cores: int) -> list[str]:
    """What the paper's pre-training takes at these rates, in words."""
    total = PAPER_CLIPS * PAPER_EPOCHS
    lines = [
        f"data: one core makes {made_per_second:.1f} pre-training clips/s from 224 × 224 mp4 (decode, crop, resize, "
        f"normalise), {cores} cores at most {made_per_second * cores:.0f}"
    ]
    for row in rows:
        if row.stage == "pretrain" and row.variant == "fused":
            lines.append(
                f"the paper's pre-training ({PAPER_CLIPS / 1e6:.2f} M clips × {PAPER_EPOCHS} epochs) on this device, "
                f"{row.dtype}: {days(total / row.clips_per_second)} of steps; decoding apart: "
                f"{days(total / (made_per_second * cores))} on {cores} cores"
            )
    return lines


def days(seconds: float) -> str:
    return f"{seconds / 86400:.1f} days" if seconds > 2 * 86400 else f"{seconds / 3600:.1f} hours"


def parse(argv: Sequence[str] | None) -> Any:
    parser = Parser(prog="python benchmarks/train_bench.py", description="Times whole training steps.")
    parser.add_argument("--stage", choices=(*STAGES, "all"), default="all", help="which training")
    parser.add_argument("--device", default="auto", metavar="NAME", help="cpu, cuda, cuda:1 …; auto: a GPU if any")
    parser.add_argument("--dtype", choices=(*DTYPES, "all"), default="all", help="bfloat16: autocast")
    parser.add_argument("--clips", type=int, metavar="N", help="clips of a batch (default: 2 on a CPU, 32 on a GPU)")
    parser.add_argument("--rounds", type=int, metavar="N", help="steps of each variant (default: 5 on a CPU, 20)")
    parser.add_argument("--compile", action="store_true", help="torch.compile on a CPU too, where it takes minutes")
    parser.add_argument("--quick", action="store_true", help="one round: a look, no measurement")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows, with spread, as JSON")
    options = parser.parse_args(argv)
    for name in ("clips", "rounds"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    options.device = choose_device(options.device)
    gpu = options.device.type == "cuda"
    options.clips = options.clips or (32 if gpu else 2)
    options.rounds = 1 if options.quick else options.rounds or (20 if gpu else 5)
    options.compile = options.compile or (gpu and not options.quick)
    if options.json:
        check_writable(options.json)
    return options


@command
def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    facts, started, rows = environment(options.device), time.perf_counter(), []
    dtypes = list(DTYPES) if options.dtype == "all" else [options.dtype]
    if options.dtype == "all" and not has_fast_bf16(options.device):
        dtypes.remove("bfloat16")
        console.print("bfloat16 is left out: this device has no instructions for it (--dtype bfloat16 insists)")
    for stage in STAGES if options.stage == "all" else [options.stage]:
        for dtype in dtypes:
            steps = training_steps(stage, dtype, options.device, options.clips, options.compile)
            rows += measure(steps, options.rounds)
            del steps
            gc.collect()
            save(options.json, facts, rows, {}, complete=False)
    made = clips_per_second(1.0 if options.quick else 5.0)
    cores = os.cpu_count() or 1
    save(options.json, facts, rows, {"clips_per_second_a_core": made, "cores": cores}, complete=True)
    name = f"{facts['device_name']}, {facts['threads']} threads, torch {facts['torch']}"
    show(rows, f"Training steps on {name} ({time.perf_counter() - started:.0f} s)")
    for line in projection(rows, made, cores):
        console.print(line)
    return 0


def save(file: Path | None, facts: dict[str, Any], rows: list[Row], loading: dict[str, Any], complete: bool) -> None:
    if file is None:
        return
    content = {
        "fields": FIELDS, "environment": facts, "complete": complete, "rows": [asdict(row) for row in rows],
        "loading": loading,
    }  # fmt: skip
    text = json.dumps(content, indent=1)
    write_atomically(file, lambda temporary: temporary.write_text(text + "\n"))


if __name__ == "__main__":
    sys.exit(main())
