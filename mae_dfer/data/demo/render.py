"""One clip of the set: who, what, where → frames → an H.264 file. A clip is a function of (split, number)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from mae_dfer.errors import UserError

from .draw import FacePainter
from .expression import CLASSES, FRAMES, Course, sample_course
from .identity import Identity, sample_identity
from .scene import SIZE, sample_scene

SEED = 0
FPS = 16
IDENTITIES = {"train": (*range(48), *range(63, 207)), "test": tuple(range(48, 63))}  # disjoint people
TAKES = {"train": 1, "test": 2}  # clips of each expression by each person; many people teach more than many takes
SPLITS = tuple(IDENTITIES)
# Streams of random numbers that never meet.
_IDENTITY_STREAM, _COURSE_STREAM, _SCENE_STREAM = range(3)
_ENCODER = {"crf": "18", "preset": "veryfast", "threads": "1", "g": "12", "bf": "0"}


class Clip(NamedTuple):
    """One clip before it is drawn."""

    split: str
    number: int  # within the split
    identity: int
    label: int
    take: int

    @property
    def expression(self) -> str:
        return CLASSES[self.label]

    @property
    def file(self) -> str:
        """Relative to the set's folder, with forward slashes."""
        return f"clips/{self.split}_{self.number:04d}_{self.expression}_id{self.identity:03d}.mp4"


def clips_of(split: str, limit: int | None = None) -> list[Clip]:
    """The clips of a split, in an order of which every seven in a row show one person's seven expressions."""
    people = IDENTITIES[split]
    total = len(people) * len(CLASSES) * TAKES[split]
    found = []
    for number in range(total if limit is None else min(limit, total)):
        turn, label = divmod(number, len(CLASSES))
        take, person = divmod(turn, len(people))
        found.append(Clip(split, number, people[person], label, take))
    return found


def _stream(kind: int, *key: int) -> np.random.Generator:
    return np.random.default_rng([SEED, kind, *key])


def identity_of(number: int) -> Identity:
    return sample_identity(_stream(_IDENTITY_STREAM, number))


def course_of(clip: Clip) -> Course:
    return sample_course(_stream(_COURSE_STREAM, SPLITS.index(clip.split), clip.number), clip.expression)


def describe(clip: Clip) -> dict[str, Any]:
    """What ``metadata.json`` says about a clip; needs no drawing."""
    course = course_of(clip)
    return {
        "path": clip.file,
        "split": clip.split,
        "label": clip.label,
        "expression": clip.expression,
        "identity": clip.identity,
        "take": clip.take,
        "intensity": round(course.intensity, 4),
        "timing": {name: round(float(value), 3) for name, value in course.timing.items()},
        "played_backwards": course.reversed,
    }


def frames_of(clip: Clip) -> Iterator[np.ndarray]:
    """Yields FRAMES pictures, uint8 RGB (SIZE, SIZE, 3)."""
    scene = sample_scene(_stream(_SCENE_STREAM, SPLITS.index(clip.split), clip.number))
    painter = FacePainter(identity_of(clip.identity), scene, identity_seed=clip.identity)
    course = course_of(clip)
    for index in range(FRAMES):
        yield painter.frame(course.pose(index), index)


def write_clip(clip: Clip, folder: Path) -> None:
    """Draws and encodes ``clip`` into ``folder``; the file appears only when it is whole."""
    path = folder / clip.file
    temporary = path.with_suffix(".tmp.mp4")
    try:
        container = av.open(str(temporary), "w")
        try:
            stream = container.add_stream("libx264", rate=FPS, options=_ENCODER)
        except (av.error.FFmpegError, ValueError) as error:  # PyAV: unknown codecs are ValueErrors
            raise UserError("this PyAV cannot encode H.264; install the one from PyPI (pip install av)") from error
        with container:
            stream.width = stream.height = SIZE
            stream.pix_fmt = "yuv420p"
            for picture in frames_of(clip):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
