"""A picture of the set: a row per expression, time running right, several people side by side."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from mae_dfer.errors import UserError
from mae_dfer.files import write_atomically

from .expression import CLASSES, FIRST, LAST
from .render import clips_of, frames_of

GAP, LABEL, HEADER = 6, 70, 18


def contact_sheet(people: int = 3, columns: int = 5, split: str = "train", size: int = 80) -> np.ndarray:
    """uint8 RGB: ``people`` blocks, each with len(CLASSES) rows and ``columns`` moments of the unfolding."""
    moments = np.linspace(FIRST, LAST, columns).round().astype(int)
    block = columns * size + GAP
    sheet = np.full((HEADER + len(CLASSES) * (size + 2), LABEL + people * block, 3), 255, np.uint8)
    for clip in clips_of(split, people * len(CLASSES)):
        person, row = divmod(clip.number, len(CLASSES))
        frames = list(frames_of(clip))
        top = HEADER + row * (size + 2)
        for column, moment in enumerate(moments):
            left = LABEL + person * block + column * size
            sheet[top : top + size, left : left + size] = cv2.resize(
                frames[moment], (size, size), interpolation=cv2.INTER_AREA
            )
        if person == 0:
            _write(sheet, clip.expression, (4, top + size // 2 + 4))
    for person in range(people):
        _write(sheet, f"person {person + 1}: time runs right", (LABEL + person * block, 13))
    return sheet


def save_contact_sheet(path: Path, **options: int | str) -> None:
    """Writes :func:`contact_sheet` as a picture; the suffix of ``path`` names the format."""
    check_format(path)
    picture = Image.fromarray(contact_sheet(**options))  # type: ignore[arg-type]
    if path.suffix.lower() == ".png":
        picture = picture.quantize(256, kmeans=2)  # a third of the size
    write_atomically(path, lambda temporary: picture.save(temporary, optimize=True))


def check_format(path: Path) -> None:
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UserError(f"{path}: unknown picture format; use .png or .jpg")


def _write(sheet: np.ndarray, text: str, place: tuple[int, int]) -> None:
    cv2.putText(sheet, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, (40, 40, 40), 1, cv2.LINE_AA)
