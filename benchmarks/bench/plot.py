"""How a block's time and work grow with the clip, as a picture for a paper or a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator, ScalarFormatter

from bench.blocks import Size
from mae_dfer.files import write_atomically

FORMATS = (".png", ".pdf", ".svg")
# Name in the legend, colour that colour-blind readers can tell apart, mark.
STYLES = {
    "eager": ("LGI-Former, plain PyTorch", "#E69F00", "s"),
    "sdpa": ("LGI-Former, torch's SDPA", "#56B4E9", "v"),
    "fused": ("LGI-Former, fused (ours)", "#0072B2", "o"),
    "vit-sdpa": ("VideoMAE ViT-B, torch's SDPA", "#D55E00", "^"),
}
AXES = {"frames": "frames of 160 × 160 pixels", "side": "pixels a side, 16 frames"}


class Point(NamedTuple):
    """One variant at one size: milliseconds of a forward and backward of a clip, GMAC of a forward."""

    axis: str
    size: Size
    variant: str
    milliseconds: float
    gmac: float


def draw_growth(points: Sequence[Point], path: Path, device: str) -> None:
    """Time above, work below; longer clips on the left, larger ones on the right; both axes logarithmic."""
    figure = Figure(figsize=(9.0, 6.6), dpi=200, layout="constrained")
    grid = figure.subplots(2, len(AXES), sharey="row", squeeze=False)
    for column, (axis, label) in enumerate(AXES.items()):
        chosen = [point for point in points if point.axis == axis]
        for row, (attribute, title) in enumerate(
            (("milliseconds", "forward + backward, ms a clip"), ("gmac", "forward, GMAC a clip"))
        ):
            draw_panel(grid[row][column], chosen, attribute)
            if column == 0:
                grid[row][column].set_ylabel(title)
        grid[1][column].set_xlabel(f"{label} (tokens below)")
    grid[0][0].legend(frameon=False, fontsize=8.5)
    figure.suptitle(f"One block of the base models on {device}", fontsize=11)
    canvas = FigureCanvasAgg(figure)

    def write(temporary: Path) -> None:
        canvas.print_figure(str(temporary), format=path.suffix[1:])

    write_atomically(path, write)


def draw_panel(panel: Axes, points: Sequence[Point], attribute: str) -> None:
    for prefix, (label, colour, mark) in STYLES.items():
        # Of several backends of ours, the fastest.
        best: dict[Size, float] = {}
        for point in points:
            ours = prefix == "fused" and point.variant.startswith("fused")
            if ours or point.variant == prefix:
                best[point.size] = min(getattr(point, attribute), best.get(point.size, float("inf")))
        if best and not (attribute == "gmac" and prefix == "sdpa"):  # the same work as eager
            tokens = [size.config.num_tokens for size in best]
            panel.plot(tokens, list(best.values()), color=colour, marker=mark, markersize=5, linewidth=1.6, label=label)
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    sizes = {point.size.config.num_tokens: point for point in points}
    panel.xaxis.set_major_formatter(ScalarFormatter())
    panel.set_xticks(
        list(sizes), [f"{getattr(point.size, point.axis)}\n{tokens}" for tokens, point in sizes.items()], fontsize=8.5
    )
    panel.xaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.grid(True, which="major", linewidth=0.4, alpha=0.6)
    panel.spines[["top", "right"]].set_visible(False)
