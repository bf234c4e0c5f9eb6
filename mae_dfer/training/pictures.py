"""Pictures of a run, drawn without a display."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..files import printable, write_atomically

ROWS = ("input", "masked", "reconstruction", "motion")
LABELS = {"motion": "its motion"}  # of the reconstruction, the row above

# Of the confusion matrix.
MOST_NUMBERED = 30  # classes whose cells have numbers
_MOST_LARGE, _MOST_LABELS = 12, 60  # classes with large labels; labels of an axis
_LONGEST_LABEL = 24  # characters
_CELL, _LARGEST = 0.75, 14.0  # inches: a cell of few classes; all cells of many


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
    """Rows are true classes, columns predictions; shaded by recall, annotated with recall and count.

    Of more than ``MOST_NUMBERED`` classes, cells have no numbers, and only every so many a label: the picture of any
    number of classes has a bounded size, and takes a second or two.
    """
    count = len(classes)
    cell = min(_CELL, _LARGEST / count)  # inches
    size = 1.6 + max(cell * count, 1.5)
    figure = Figure(figsize=(size + 0.6, size), layout="constrained")
    axis = figure.subplots()
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axis, label="share of the true class", shrink=0.8)
    if count <= MOST_NUMBERED:
        _write_cells(axis, shares, confusion, fontsize=8 * cell / _CELL)
    shown = range(0, count, -(-count // _MOST_LABELS))
    # Names come from files: they may be long, and a dollar sign is no formula.
    names = [printable(classes[index], _LONGEST_LABEL) for index in shown]
    style: dict[str, Any] = {"parse_math": False, "fontsize": 10 if count <= _MOST_LARGE else 7}
    axis.set_xticks(shown, names, rotation=45, ha="right", rotation_mode="anchor", **style)
    axis.set_yticks(shown, names, **style)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    score = "undefined" if uar is None else f"{uar:.3f}"
    axis.set_title(f"UAR {score} · WAR {war:.3f} · {int(confusion.sum())} clips")
    _save(figure, path)


def _write_cells(axis: Any, shares: np.ndarray, confusion: np.ndarray, fontsize: float) -> None:
    for (row, column), share in np.ndenumerate(shares):
        text = f"{share:.2f}\n({confusion[row, column]})"
        color = "white" if share > 0.5 else "black"
        cell = axis.text(column, row, text, ha="center", va="center", fontsize=fontsize, color=color)
        cell.set_in_layout(False)  # which would be measured several times


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # names in scripts that the font lacks show as boxes
        write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=110))
