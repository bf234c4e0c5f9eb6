"""Attention of LGI-Former against its opponents: every variant checked first, then timed in turns.

    python benchmarks/attn_bench.py [--level op|block|encoder] [--device cpu] [--dtype float32] [--quick] [--json FILE]
                                    [--plot FILE]

Levels: ``op``, the steps of a block one by one (attention inside regions of 11, 41 and 101 tokens, the exchange,
residual + LayerNorm); ``block``, one block; ``encoder``, whole classifiers. Variants: ``eager`` (plain PyTorch),
``sdpa`` (torch's scaled_dot_product_attention), ``compile-…`` (either through torch.compile), ``fused-<backend>``
(ours), other packages' where they are installed, ``vit-…`` (joint attention over all tokens of the same clips: what
LGI-Former is there to replace; ``vit-fused``: with what of ours serves it). ``--plot`` also measures a block on ever
longer and ever larger clips, and draws how its time and its work grow.

Times are medians, their spread the interquartile range; ``bench/measure.py`` says how time and memory are taken.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from bench.blocks import LARGER, LONGER, PAPER, block_case, sweep_cases
from bench.encoders import encoder_cases
from bench.facts import environment
from bench.measure import Times, check, count_macs, measure, peak_bytes
from bench.ops import REGIONS, op_cases
from bench.plot import FORMATS, Point, draw_growth
from bench.variants import Case, LeftOut, Variant
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from mae_dfer.cli import Parser, command
from mae_dfer.files import check_writable, write_atomically
from mae_dfer.training.hardware import choose_device, has_fast_bf16
from mae_dfer.training.progress import console

LEVELS, DTYPES, COMPILE = ("op", "block", "encoder"), ("float32", "bfloat16"), ("none", "few", "all")
FIELDS = {
    "macs": "multiply-accumulates of a forward pass by torch's FLOP counter; of the eager code for compile variants",
    "forward_ms": "median of a forward pass without gradients, of one batch",
    "backward_ms": "median of a forward pass with gradients and the backward pass together: forward + backward",
    "forward_iqr_ms": "interquartile range of the same over the rounds",
    "backward_iqr_ms": "interquartile range of the same over the rounds",
    "forward_wall_ms": "median wall time of one call launched from Python, then waited for; on a CPU forward_ms",
    "backward_wall_ms": "the same of forward + backward",
    "captured": "forward_ms and backward_ms are of CUDA graphs: GPU work alone. false: a CPU; or a GPU where a capture "
    "failed, and launching by Python, where it is slower than the GPU, is in the times",
    "peak_bytes": "memory that a forward and backward add at their peak: results, what is kept, temporaries, gradients",
    "rounds": "rounds in which every variant of the case ran once",
}


@dataclass
class Row:
    """One variant at one shape; see FIELDS."""

    level: str
    op: str
    variant: str
    shape: list[int]
    dtype: str
    macs: int
    forward_ms: float
    forward_iqr_ms: float
    backward_ms: float
    backward_iqr_ms: float
    forward_wall_ms: float
    backward_wall_ms: float
    captured: bool
    peak_bytes: int
    rounds: int


class Effort(NamedTuple):
    """How long a case is measured: ``rounds``, or fewer where ``seconds`` are over, but ``least``."""

    rounds: int
    least: int
    seconds: float


EFFORTS = {
    ("op", "cpu"): Effort(40, 5, 3.0), ("encoder", "cpu"): Effort(10, 3, 20.0),
    ("op", "cuda"): Effort(40, 10, 3.0), ("encoder", "cuda"): Effort(20, 5, 8.0),
    ("block", "cpu"): Effort(20, 5, 6.0), ("sweep", "cpu"): Effort(7, 3, 6.0),
    ("block", "cuda"): Effort(30, 10, 4.0), ("sweep", "cuda"): Effort(15, 5, 2.0),
}  # fmt: skip
LIMIT_S = 180.0  # cases begun later have a single round, so that a run with no options ends within four minutes
QUICK = {"op": Effort(3, 2, 1.0)} | dict.fromkeys(("block", "encoder", "sweep"), Effort(1, 1, 0.0))


@dataclass
class Plan:
    """What is to be measured."""

    device: torch.device
    levels: list[str]
    dtypes: list[str]
    compile_which: str
    quick: bool
    left_out: list[LeftOut]
    sweep: bool = False
    clips: int | None = None

    def length(self) -> int:
        """Number of cases."""
        steps = {"op": len(REGIONS) + 2, "block": 1, "encoder": 1}
        growing = len(LONGER) + len(LARGER) if self.sweep else 0
        return sum(steps[level] for level in self.levels) * len(self.dtypes) + growing

    def cases(self) -> Iterator[Case]:
        if "op" in self.levels:
            for index, dtype in enumerate(self.dtypes):
                which = "none" if self.compile_which == "few" and index else self.compile_which
                yield from op_cases(self.device, dtype, self._clips("op"), which)
        if "block" in self.levels:
            for dtype in self.dtypes:
                yield block_case(self.device, dtype, self._clips("block"), PAPER, self.compile_which)
        if "encoder" in self.levels:
            yield from encoder_cases(self.device, self.dtypes, self._clips("encoder"), self.compile_which)

    def effort(self, level: str) -> Effort:
        return QUICK[level] if self.quick else EFFORTS[level, self.device.type]

    def _clips(self, level: str) -> int:
        if self.clips is not None:
            return self.clips
        if self.device.type == "cpu":
            return 1 if level == "encoder" else 2
        large = torch.cuda.get_device_properties(self.device).total_memory > 30e9
        return 32 if large else 8


class Show:
    """Progress on stderr: a bar in a terminal, a line a case elsewhere. It draws between timings alone."""

    def __init__(self, total: int) -> None:
        self._errors = Console(stderr=True, markup=False, emoji=False, highlight=False)
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=self._errors, auto_refresh=False, transient=True)
        self._task = self._bar.add_task("", total=total)
        self._total, self._case, self._title = total, 0, ""

    def __enter__(self) -> Show:
        if self._errors.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def case(self, title: str) -> None:
        self._case, self._title = self._case + 1, f"[{self._case + 1}/{self._total}] {title}"
        if not self._errors.is_terminal:
            self._errors.print(self._title)

    def step(self, text: str, share: float) -> None:
        if self._errors.is_terminal:
            self._bar.update(self._task, description=f"{self._title}: {text}", completed=self._case - 1 + share)
            self._bar.refresh()


def run_case(case: Case, device: torch.device, effort: Effort, show: Show) -> list[Row]:
    """Checks every variant, then measures all of them.

    Raises:
        UserError: one of ours is wrong.
    """
    if any(variant.counted for variant in case.variants):
        torch._dynamo.reset()  # cases share code, and torch.compile gives up on code that it compiled very often:
        torch._dynamo.config.recompile_limit = 64  # models of a case share it, too, with and without gradients
    show.step("checking", 0.0)
    check(case, device)
    counts = [(count_macs(variant), peak_bytes(variant.both, device)) for variant in case.variants]
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        show.step(f"round {done}", 0.3 + 0.7 * done / effort.rounds)

    show.step("warming up", 0.3)
    times = measure(case.variants, device, **effort._asdict(), warm=case.level == "op", tick=tick)
    return [
        make_row(case.level, variant, *count, time)
        for variant, count, time in zip(case.variants, counts, times, strict=True)
    ]


def make_row(level: str, variant: Variant, macs: int, memory: int, times: Times) -> Row:
    problem = variant.problem
    parts = (times.forward, times.both)
    forward, both = (np.percentile([once.device for once in part], (25, 50, 75)) for part in parts)
    walls = (float(np.median([once.wall for once in part])) for part in parts)
    return Row(
        level, problem.op, variant.name, problem.shape, problem.dtype, macs,
        float(forward[1]), float(forward[2] - forward[0]), float(both[1]), float(both[2] - both[0]), *walls,
        times.captured, memory, len(times.forward),
    )  # fmt: skip


@dataclass
class Results:
    """Rows of each case under its title; what was left out; what else is to be known; what grows with the clip."""

    groups: list[tuple[str, list[Row]]]
    left_out: list[LeftOut]
    notes: list[str]
    growth: list[Point]


def run(plan: Plan, save: Callable[[Results, bool], None]) -> Results:
    """Everything planned; saved after each case, so that a run cut short is not lost."""
    results = Results([], list(plan.left_out), [], [])
    with Show(plan.length()) as show:

        def run_next(case: Case, title: str, effort: Effort) -> list[Row]:
            show.case(title)
            rows = run_case(case, plan.device, effort, show)
            results.groups.append((title, rows))
            results.left_out += case.left_out
            results.notes += case.notes
            return rows

        for axis, size, case in sweep_cases(plan.device, plan.dtypes[0]) if plan.sweep else ():
            rows = run_next(case, f"{case.title}, {plan.dtypes[0]}", plan.effort("sweep"))
            results.growth += [Point(axis, size, row.variant, row.backward_ms, row.macs / 1e9) for row in rows]
            save(results, False)
        started = time.perf_counter()
        for case in plan.cases():
            title = f"{case.title}, {case.variants[0].problem.dtype}"
            effort = plan.effort(case.level)
            if time.perf_counter() - started > LIMIT_S and plan.compile_which == "few":
                effort = Effort(1, 1, 0.0)
                results.notes.append(f"{title}: one round only, for want of time; ask for it alone by --level, --dtype")
            run_next(case, title, effort)
            save(results, False)
    save(results, True)
    return results


def compare(group: list[Row], row: Row, attribute: str) -> str:
    """How many times as long as ours a variant takes; for ours, the best other one of the same computation."""
    same = [other for other in group if "vit" not in other.variant]
    ours = [getattr(other, attribute) for other in same if "fused" in other.variant]
    others = [getattr(other, attribute) for other in same if "fused" not in other.variant]
    if not ours or not others:
        return ""
    time = getattr(row, attribute)
    return f"{min(others) / time if row.variant.startswith('fused') else time / min(ours):.2f}×"


def milliseconds(middle: float, spread: float) -> str:
    digits = 3 if middle < 10 else 2 if middle < 100 else 1
    return f"{middle:.{digits}f} ± {spread / 2:.{digits}f}"


def show_table(groups: list[tuple[str, list[Row]]], title: str, gpu: bool) -> None:
    caption = (
        "± half the interquartile range. ours: how many times as long as ours a variant takes; in a line of ours, "
        "the best variant of the same computation (vit-… computes another)."
    )
    walls = gpu and any(row.level != "op" for _, group in groups for row in group)
    if walls:
        caption += " wall: one call launched from Python; where it is longer, the host is slower than the GPU."
    table = Table("", "shape", title=title, caption=caption, box=SIMPLE_HEAD, padding=(0, 1))
    wall = ("wall",) if walls else ()
    for name in ("GMAC", "forward ms", *wall, "ours", "fwd + bwd ms", *wall, "ours", "peak MB"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, group in groups:
        table.add_row(name, style="italic")
        for row in group:
            table.add_row(
                f"  {row.variant}" + (", not captured" if gpu and not row.captured else ""),
                "×".join(map(str, row.shape)), f"{row.macs / 1e9:.3f}",
                *timed(group, row, "forward", walls), *timed(group, row, "backward", walls),
                f"{row.peak_bytes / 1e6:.1f}", style="bold" if row.variant.startswith("fused") else None,
            )  # fmt: skip
    console.print(table)


def timed(group: list[Row], row: Row, part: str, walls: bool) -> list[str]:
    """Cells of a time, its wall time if ``walls`` are shown (of one operator it is Python's), and how it compares."""
    middle, spread, wall = (getattr(row, f"{part}_{name}") for name in ("ms", "iqr_ms", "wall_ms"))
    cells = [f"{wall:.1f}" if row.level != "op" else ""] if walls else []
    return [milliseconds(middle, spread), *cells, compare(group, row, f"{part}_ms")]


def show_left_out(left_out: list[LeftOut]) -> None:
    """Each reason once, with the variants it holds for."""
    reasons: dict[str, list[str]] = {}
    for entry in left_out:
        names = reasons.setdefault(entry.reason, [])
        if entry.variant not in names:
            names.append(entry.variant)
    for reason, names in reasons.items():
        console.print(f"left out: {', '.join(names)}: {reason}")


def parse(argv: Sequence[str] | None) -> tuple[Plan, Path | None, Path | None]:
    parser = Parser(
        prog="python benchmarks/attn_bench.py", description="Checks and times attention, variant by variant."
    )
    parser.add_argument("--level", choices=(*LEVELS, "all"), default="all", help="steps of a block, or whole models")
    parser.add_argument("--device", default="auto", metavar="NAME", help="cpu, cuda, cuda:1 …; auto: a GPU if any")
    parser.add_argument("--dtype", choices=(*DTYPES, "all"), default="all", help="of the activations")
    parser.add_argument("--clips", type=int, metavar="N", help="of a batch (default: 1 or 2 on a CPU, 8 or 32 else)")
    parser.add_argument("--quick", action="store_true", help="few rounds, nothing compiled: a look, no measurement")
    parser.add_argument(
        "--compile", choices=COMPILE, help="variants of torch.compile; default few on a CPU, where it takes long"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows, with spread, as JSON")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="also measure longer and larger clips, and draw them (PNG, PDF, SVG)"
    )
    options = parser.parse_args(argv)
    device = choose_device(options.device)
    if options.clips is not None and options.clips < 1:
        parser.error("--clips must be at least 1")
    for file in (options.json, options.plot):
        if file:
            check_writable(file)
    if options.plot and options.plot.suffix not in FORMATS:
        parser.error(f"--plot {options.plot}: the name must end in {', '.join(FORMATS)}")
    levels = list(LEVELS) if options.level == "all" else [options.level]
    dtypes = list(DTYPES) if options.dtype == "all" else [options.dtype]
    which = options.compile or ("none" if options.quick else "few" if device.type == "cpu" else "all")
    left_out = []
    if options.dtype == "all" and not has_fast_bf16(device):
        dtypes.remove("bfloat16")
        reason = "this device has no instructions for bfloat16; --dtype bfloat16 measures it all the same, in minutes"
        left_out.append(LeftOut("all", [], "bfloat16", "all", reason))
    if which == "none":
        left_out.append(LeftOut("all", [], "all", "compile", "not asked for: --compile few or all"))
    elif which == "few" and "op" in levels:
        reason = f"at 101 tokens a region, and in {dtypes[0]}, alone: --compile all does the rest"
        left_out.append(LeftOut("region_attention", [], "all", "compile", reason))
    sweep = options.plot is not None
    plan = Plan(device, levels, dtypes, which, options.quick, left_out, sweep, options.clips)
    return plan, options.json, options.plot


@command
def main(argv: Sequence[str] | None = None) -> int:
    plan, file, picture = parse(argv)
    facts, started = environment(plan.device), time.perf_counter()

    def save(results: Results, complete: bool) -> None:
        if file is None:
            return
        content: dict[str, Any] = {
            "fields": FIELDS, "environment": facts, "complete": complete, "quick": plan.quick,
            "rows": [asdict(row) for _, group in results.groups for row in group],
            "left_out": [entry._asdict() for entry in results.left_out], "notes": results.notes,
        }  # fmt: skip
        text = json.dumps(content, indent=1)
        write_atomically(file, lambda temporary: temporary.write_text(text + "\n"))

    results = run(plan, save)
    name = f"{facts['device_name']}, {facts['threads']} threads, torch {facts['torch']}"
    show_table(results.groups, f"Attention on {name} ({time.perf_counter() - started:.0f} s)",
               plan.device.type == "cuda")  # fmt: skip
    show_left_out(results.left_out)
    for note in results.notes:
        console.print(f"note: {note}")
    if picture is not None:
        draw_growth(results.growth, picture, f"{name}, {plan.dtypes[0]}")
    for written in (file, picture):
        if written is not None:
            console.print(f"wrote {written}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
