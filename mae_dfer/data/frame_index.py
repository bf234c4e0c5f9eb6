"""What decoding a whole video file once tells of it, remembered by this process for the next time it is opened."""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np

from mae_dfer.data.video import Frames

_REMEMBERED = 1024  # files
_indices: OrderedDict[tuple[str, int, int, int], FrameIndex] = OrderedDict()


@dataclass
class FrameIndex:
    """The frames of a file in the order they are shown, and the key frames among them.

    Attributes:
        stamps: the frames' timestamps.
        checksums: of the frames' pixels. Where timestamps are unsound, nothing else tells whether a seek has led to
            the frame that was meant.
        starts: (frame, decoding timestamp of its packet) of key frames; emptied once a seek has misled.
    """

    stamps: list[int | None]
    checksums: list[int] = field(default_factory=list)
    starts: list[tuple[int, int]] = field(default_factory=list)


def checksum(picture: Frames) -> int:
    """Of a picture (H, W, 3)."""
    return zlib.crc32(np.ascontiguousarray(picture).data)


def pair_starts(shown: list[int], packets: list[int | None]) -> list[tuple[int, int]]:
    """The starts of a file whose key frames are ``shown`` as these frames, and come in packets of these timestamps.

    None where they do not correspond one to one: neither kind overtakes its own kind in a sound file.
    """
    stamps = [stamp for stamp in packets if stamp is not None]
    rises = all(before < after for before, after in zip(stamps, stamps[1:], strict=False))
    return list(zip(shown, stamps, strict=True)) if rises and len(shown) == len(stamps) == len(packets) else []


def recall(path: str) -> FrameIndex | None:
    """The index of a file that has not changed since :func:`remember`."""
    return _indices.get(_key(path))


def remember(path: str, index: FrameIndex) -> None:
    _indices[_key(path)] = index
    if len(_indices) > _REMEMBERED:
        _indices.popitem(last=False)


def _key(path: str) -> tuple[str, int, int, int]:
    found = os.stat(path)
    return os.path.abspath(path), found.st_ino, found.st_size, found.st_mtime_ns
