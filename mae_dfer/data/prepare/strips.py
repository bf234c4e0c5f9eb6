"""Example clips as pictures: a few frames of each, side by side."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mae_dfer.data.labels import UNLABELLED
from mae_dfer.data.prepare.inspection import Item, in_processes
from mae_dfer.data.prepare.layout import Layout
from mae_dfer.data.prepare.store import Store
from mae_dfer.data.sets import CLASSES
from mae_dfer.data.video import VideoError, open_video

FRAMES, HEIGHT = 4, 96  # of a strip; pixels
_WIDEST = 172  # pixels of a frame: 16:9
_GAP = 2
_LARGEST = 20_000  # bytes
_QUALITIES = (80, 60, 40, 20)
_MOST_CLASSES, _OF_CLASS, _WITHOUT_CLASSES = 12, 6, 12


@dataclass(frozen=True)
class Strip:
    """A picture of a clip.

    Attributes:
        name: of its class; empty where the set has none.
        picture: a data URI; empty where the clip could not be drawn.
    """

    name: str
    path: str
    frames: int
    width: int
    height: int
    picture: str


def choose_examples(layout: Layout, store: Store) -> list[tuple[str, str, int, int, int]]:
    """(name of the class, path, frames, width, height) of readable clips, evenly spread over each class."""
    classes = CLASSES.get(layout.set, ())[:_MOST_CLASSES]
    wanted = [(label, name, _OF_CLASS) for label, name in enumerate(classes)]
    if not classes:
        wanted = [(UNLABELLED, "", _WITHOUT_CLASSES)]
    of_class = "FROM clips JOIN inspections USING (path) WHERE fault = '' AND label = ?"
    query = (
        "SELECT path, frames, width, height FROM (SELECT path, frames, width, height, "
        f"row_number() OVER (ORDER BY number) AS place {of_class}) WHERE (place - 1) % ? = 0 LIMIT ?"
    )
    examples = []
    for label, name, most in wanted:
        (clips,) = next(store.ask(f"SELECT count(*) {of_class}", label))
        examples += [(name, *row) for row in store.ask(query, label, max(clips // most, 1), most)]
    return examples


def draw_strips(
    layout: Layout, examples: list[tuple[str, str, int, int, int]], workers: int, advance: Callable[[int], None]
) -> Iterator[Strip]:
    """The pictures of ``examples``, in their order.

    Args:
        advance: is called with how many more are drawn.
    """
    items = [(os.path.join(layout.root, path), path, "") for _, path, *_ in examples]
    remaining = iter(examples)
    for done in in_processes(_draw, items, workers, lost=lambda item: b""):
        for picture, example in zip(done, remaining, strict=False):
            yield Strip(*example, f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}" if picture else "")
        advance(len(done))


def _draw(item: Item) -> bytes:
    """A JPEG of frames from the first to the last; nothing where the clip cannot be drawn."""
    try:
        with open_video(item[0]) as video:
            frames = video.get(np.linspace(0, video.num_frames - 1, FRAMES).astype(np.int64))
    except VideoError:
        return b""
    height, width, _ = frames[0].shape
    size = (min(max(round(width * HEIGHT / height), 1), _WIDEST), HEIGHT)
    strip = Image.new("RGB", (FRAMES * (size[0] + _GAP) - _GAP, HEIGHT), "white")
    for place, frame in enumerate(frames):
        strip.paste(Image.fromarray(frame).resize(size, Image.Resampling.BOX), (place * (size[0] + _GAP), 0))
    for quality in _QUALITIES:
        data = io.BytesIO()
        strip.save(data, "JPEG", quality=quality, optimize=True)
        if data.tell() <= _LARGEST:
            break
    return data.getvalue()
