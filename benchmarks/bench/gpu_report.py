"""The results of gpu_check as files: JSON with everything, Markdown to read. What was not measured says so."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.stages import PASSED
from mae_dfer.files import write_atomically

NOT_MEASURED = "not measured"


def slug(device_name: str) -> str:
    """A device's name as a part of a file name: ``NVIDIA H100 80GB HBM3`` → ``nvidia-h100-80gb-hbm3``."""
    return re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-") or "unknown"


def write_results(folder: Path, results: dict[str, Any]) -> tuple[Path, Path]:
    """``<date>-<device>.json`` and ``.md`` in ``folder``; each is the old file or the new one at any moment."""
    environment = results["environment"]
    stem = f"{environment['date']}-{slug(environment['device_name'])}"
    texts = {"json": json.dumps(results, indent=1), "md": markdown(results)}
    paths = []
    for ending, text in texts.items():
        path = folder / f"{stem}.{ending}"
        write_atomically(path, lambda temporary, text=text: temporary.write_text(text.rstrip("\n") + "\n"))
        paths.append(path)
    return paths[0], paths[1]


def markdown(results: dict[str, Any]) -> str:
    """Headings, and a table each."""
    environment = results["environment"]
    figures = {stage["name"]: stage["figures"] for stage in results["stages"]}
    ceilings = figures.get("ceilings", {})
    parts = [
        f"# {environment['device_name']}, {environment['date']}",
        "By `python benchmarks/gpu_check.py`. " + ", ".join(
            f"{name.replace('_', ' ')} {environment[name]}"
            for name in ("commit", "torch", "triton", "cuda", "compute_capability") if environment.get(name)
        ) + ".",
        "## Stages", stage_table(results["stages"]),
        "## Ceilings", ceiling_table(ceilings),
    ]  # fmt: skip
    attention: dict[str, list[Any]] = {"rows": [], "left_out": [], "notes": []}
    for name in ("attn_bench op", "attn_bench block", "attn_bench encoder"):
        for key, found in attention.items():
            found += figures.get(name, {}).get(key, [])
    parts += ["## Attention", attention_table(attention["rows"], ceilings.get("copy_bytes_per_s"))]
    remarks = [f"left out: {entry['variant']}, {entry['op']}: {entry['reason']}" for entry in attention["left_out"]]
    remarks += attention["notes"]
    if remarks:
        parts.append("\n".join(f"- {remark}" for remark in dict.fromkeys(remarks)))
    parts += ["## Training", plain_table(figures.get("train_bench", {}).get("rows", []))]
    for stage in results["stages"]:
        if stage["status"] != PASSED and stage["output"]:
            parts += [f"## Output of {stage['name']}, its end", f"```\n{stage['output'].strip()}\n```"]
    return "\n\n".join(parts)


def stage_table(stages: Sequence[dict[str, Any]]) -> str:
    return table(
        ("stage", "", "seconds", ""),
        [(stage["name"], stage["status"], f"{stage['seconds']:.0f}", stage["detail"]) for stage in stages],
    )


def ceiling_table(ceilings: dict[str, float]) -> str:
    rows = []
    for name, rate in ceilings.items():
        if name.endswith("_flops_per_s"):
            what = name.removeprefix("matmul_").removesuffix("_flops_per_s")
            rows.append((f"matrix product, {what}", f"{rate / 1e12:.1f} TFLOP/s"))
        else:
            rows.append(("copy, read and written", f"{rate / 1e12:.2f} TB/s"))
    return table(("", "rate"), rows)


def attention_table(rows: Sequence[dict[str, Any]], copy_rate: float | None) -> str:
    """Every row; for region attention by ours also the share of the copy's rate that its least traffic reaches."""
    lines = []
    for row in rows:
        name = f"**{row['variant']}**" if "fused" in row["variant"] else row["variant"]
        shares = []
        for key, traffic in zip(("forward_ms", "backward_ms"), least_bytes(row), strict=True):
            known = copy_rate and traffic and "fused" in row["variant"]
            shares.append(f"{traffic / (row[key] / 1e3) / copy_rate:.0%}" if known else "")  # type: ignore[operator]
        lines.append((
            row["op"], "×".join(map(str, row["shape"])), row["dtype"], name, f"{row['macs'] / 1e9:.3f}",
            f"{row['forward_ms']:.4f} ± {row['forward_iqr_ms'] / 2:.4f}", shares[0],
            f"{row['backward_ms']:.4f} ± {row['backward_iqr_ms'] / 2:.4f}", shares[1],
            f"{row['peak_bytes'] / 1e6:.1f}",
        ))  # fmt: skip
    heads = ("op", "shape", "dtype", "variant", "GMAC", "forward ms", "of copy", "forward + backward ms", "of copy",
             "peak MB")  # fmt: skip
    return table(heads, lines)


def least_bytes(row: dict[str, Any]) -> tuple[int, int]:
    """What region attention must read and write in a forward, and in a forward and backward; zeros for others."""
    if row["op"] != "region_attention":
        return 0, 0
    regions, tokens, heads, head_dim = row["shape"]
    activation = regions * tokens * heads * head_dim * {"float32": 4, "bfloat16": 2}[row["dtype"]]
    # qkv in, out; then out's gradient and qkv in, qkv's gradient out
    return 4 * activation, (4 + 7) * activation


def plain_table(rows: Sequence[dict[str, Any]]) -> str:
    """A column for each key of the first row whose value is a number or a word."""
    names = [name for name, value in rows[0].items() if isinstance(value, (int, float, str))] if rows else []
    lines = [tuple(_cell(row.get(name)) for name in names) for row in rows]
    return table(tuple(name.replace("_", " ") for name in names), lines)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return NOT_MEASURED
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
