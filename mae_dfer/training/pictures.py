"""Pictures of a run, drawn without a display."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..files import write_atomically

ROWS = ("input", "masked", "reconstruction", "motion")
LABELS = {"motion": "its motion"}  # of the reconstruction, the row above


def draw_reconstruction(
    frames: dict[str, torch.Tensor], path: Path, tubelet_size: int, columns: int = 8
) -> None:
    """A grid of frames per clip: rows as in ``ROWS``, columns evenly spaced in time.

    Each column is the last frame of a tubelet: motion is counted from its first, where there is none yet.

    ``frames[row]`` is (B, 3, T, H, W) in [0, 1].
    """
    clips, length = frames["input"].shape[0], frames["input"].shape[2]
    ends = np.arange(tubelet_size - 1, length, tubelet_size)
    chosen = ends[np.linspace(0, len(ends) - 1, min(columns, len(ends))).astype(int)]
    figure = Figure(figsize=(len(chosen) * 1.2 + 1.2, clips * len(ROWS) * 1.2), layout="constrained")
    axes = figure.subplots(clips * len(ROWS), len(chosen), squeeze=False)
    for clip in range(clips):
        for row, name in enumerate(ROWS):
            for column, frame in enumerate(chosen):
                axis = axes[clip * len(ROWS) + row][column]
                axis.imshow(frames[name][clip, :, frame].clamp(0, 1).permute(1, 2, 0).cpu().float().numpy())
                axis.set_xticks([])
                axis.set_yticks([])
                if column == 0:
                    axis.set_ylabel(LABELS.get(name, name))
                if clip == 0 and row == 0:
                    axis.set_title(f"frame {frame}", fontsize=8)
    _save(figure, path)


def draw_confusion_matrix(
    confusion: np.ndarray, classes: list[str], uar: float | None, war: float, path: Path
) -> None:
    """Rows are true classes, columns predictions; shaded by recall, annotated with recall and count."""
    size = 1.6 + 0.75 * len(classes)
    figure = Figure(figsize=(size + 0.6, size), layout="constrained")
    axis = figure.subplots()
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axis, label="share of the true class", shrink=0.8)
    for row in range(len(classes)):
        for column in range(len(classes)):
            axis.text(
                column,
                row,
                f"{shares[row, column]:.2f}\n({confusion[row, column]})",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if shares[row, column] > 0.5 else "black",
            )
    axis.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axis.set_yticks(range(len(classes)), classes)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    shown = "undefined" if uar is None else f"{uar:.3f}"
    axis.set_title(f"UAR {shown} · WAR {war:.3f} · {int(confusion.sum())} clips")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=110))
