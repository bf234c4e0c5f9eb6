"""The labelled data sets of the paper: the names of their classes, in the order of the published labels."""

from __future__ import annotations

import difflib
from pathlib import Path

from mae_dfer.cli import letters
from mae_dfer.data import read_classes
from mae_dfer.errors import UserError

CLASSES: dict[str, tuple[str, ...]] = {
    "dfew": ("happy", "sad", "neutral", "angry", "surprise", "disgust", "fear"),
    "ferv39k": ("happy", "sad", "neutral", "angry", "surprise", "disgust", "fear"),
    "mafw": (
        "anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise", "contempt", "anxiety",
        "helplessness", "disappointment",
    ),
    "ravdess": ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised"),
    "crema-d": ("anger", "disgust", "fear", "happy", "neutral", "sad"),
    "enterface05": ("anger", "disgust", "fear", "happiness", "sadness", "surprise"),
}  # fmt: skip

STRIDES = {name: 1 if name == "ferv39k" else 4 for name in CLASSES}
"""Every how many frames the published fine-tuning takes one."""


def find_set(name: str) -> str | None:
    """The key of :data:`CLASSES` for a spelling of it, in any case, with or without ``-``, ``_`` and the like."""
    return next((known for known in CLASSES if letters(known) == letters(name)), None)


def find_classes(name: str) -> list[str]:
    """The classes of a data set of :data:`CLASSES`, or of a file with one class name per line.

    Raises:
        UserError: neither; the message has the nearest name.
    """
    known = find_set(name)
    if known is not None:
        return list(CLASSES[known])
    if Path(name).is_file():
        return read_classes(Path(name))
    near = difflib.get_close_matches(letters(name), CLASSES, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise UserError(f"{name} is neither a file nor one of the sets {', '.join(CLASSES)}{hint}")
