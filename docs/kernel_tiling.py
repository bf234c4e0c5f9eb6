"""Draws docs/images/kernel_tiling.png: which thread block, warp and register holds what of a region's attention.

    python docs/kernel_tiling.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.patches import Rectangle  # noqa: E402

WARP_COLOURS = plt.get_cmap("tab10").colors
PADDING = "#e8e8e8"


def scores(axes: Axes, left: float, top: float, tokens: int, first_warp: int, scale: float) -> None:
    """A region's scores: a band of sixteen rows a warp, padding in grey."""
    padded = -(-tokens // 16) * 16
    axes.add_patch(Rectangle((left, top - padded * scale), padded * scale, padded * scale, facecolor=PADDING))
    for band in range(padded // 16):
        rows = min(16, tokens - 16 * band)
        y = top - (16 * band + rows) * scale
        colour = WARP_COLOURS[(first_warp + band) % 10]
        axes.add_patch(Rectangle((left, y), tokens * scale, rows * scale, facecolor=colour, edgecolor="white"))
        if scale > 0.03:
            axes.text(left + tokens * scale / 2, y + rows * scale / 2, f"warp {first_warp + band}", ha="center",
                      va="center", fontsize=8, color="white")
    corner, side = (left, top - padded * scale), padded * scale
    axes.add_patch(Rectangle(corner, side, side, fill=False, edgecolor="black"))


def memory(axes: Axes, left: float, top: float, columns: list[tuple[str, list[tuple[str, str]]]]) -> None:
    """Shared memory over time: a column a step, a box a buffer."""
    for index, (step, buffers) in enumerate(columns):
        x = left + 1.35 * index
        axes.text(x + 0.6, top + 0.12, step, ha="center", va="bottom", fontsize=8)
        for row, (name, colour) in enumerate(buffers):
            y = top - 0.75 * (row + 1)
            axes.add_patch(Rectangle((x, y), 1.2, 0.65, facecolor=colour, edgecolor="black"))
            axes.text(x + 0.6, y + 0.32, name, ha="center", va="center", fontsize=9)


def main() -> None:
    figure, (one, many, time) = plt.subplots(1, 3, figsize=(14, 5), width_ratios=(1, 1, 1.35))
    one.set_title("101 tokens: a block is one head of one region,\n7 warps of 16 queries, all 112 keys in registers",
                  fontsize=10)
    scores(one, 0.4, 5.0, 101, 0, 0.04)
    one.text(0.4 + 2.2, 0.28, "keys (grey: padding, masked)", ha="center", fontsize=8)
    one.text(0.2, 2.8, "queries", rotation=90, va="center", fontsize=8)

    many.set_title("11 tokens: a block is one head of 8 regions, a warp each;\nnothing is computed between regions",
                   fontsize=10)
    for index in range(8):
        scores(many, 0.3 + 1.15 * (index % 4), 4.6 - 1.9 * (index // 4), 11, index, 0.06)
    many.text(2.5, 0.9, "16 × 16 scores of each region, 11 × 11 of them real", ha="center", fontsize=8)

    time.set_title("Shared memory of the backward: what is used up\nmakes room for what comes next", fontsize=10)
    blue, green, orange, red = "#a6cee3", "#b2df8a", "#fdbf6f", "#fb9a99"
    memory(time, 0.1, 4.2, [
        ("P = softmax(Q Kᵀ)", [("Q", blue), ("dO", green), ("V", blue), ("K", blue)]),
        ("dP = dO Vᵀ", [("Q", blue), ("dO", green), ("V", blue), ("K", blue)]),
        ("dQ = dS K", [("Q", blue), ("dO", green), ("dS", orange), ("K", blue)]),
        ("dV = PᵀdO\ndK = dSᵀQ", [("Q", blue), ("dO", green), ("dS", orange), ("P", orange)]),
        ("store", [("dQ, dV", red), ("dK", red), ("", PADDING), ("", PADDING)]),
    ])  # fmt: skip
    time.text(3.4, 0.75, "P waits in registers (28 words a thread) until K is used up", ha="center", fontsize=8)
    for axes, width in ((one, 5.2), (many, 5.0), (time, 7.0)):
        axes.set_xlim(0, width)
        axes.set_ylim(0, 5.2)
        axes.axis("off")
    figure.tight_layout()
    figure.savefig(Path(__file__).parent / "images" / "kernel_tiling.png", dpi=110)


if __name__ == "__main__":
    main()
