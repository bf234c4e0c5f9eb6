"""What the header of a video file says of its size: enough to tell a truncated file from a short one.

FFmpeg plays what there is of a truncated file, and its count of frames differs from the header's also where an edit
list hides some. The size that containers announce has no such second meaning.
"""

from __future__ import annotations

import os
from typing import BinaryIO

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_MP4_FIRST = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp", b"pnot")


def announced_size(path: str) -> int | None:
    """Bytes that a whole mp4, mov, mkv, webm or avi file has by its own header, or None where it does not tell."""
    with open(path, "rb") as file:
        head = file.read(12)
        file.seek(0)
        if head[4:8] in _MP4_FIRST:
            return _end_of_boxes(file, os.path.getsize(path))
        if head[:4] == _EBML:
            return _end_of_segment(file)
        if head[:4] == b"RIFF":
            return _end_of_riff(head)
    return None


def _end_of_boxes(file: BinaryIO, size: int) -> int | None:
    """Where the last top-level box of media or index ends. Junk after the boxes is no box."""
    position, end = 0, None
    while position + 8 <= size:
        file.seek(position)
        head = file.read(16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1 and len(head) == 16:
            length = int.from_bytes(head[8:], "big")
        if length < 8 or not kind.isascii():
            return end  # 0: up to the end of the file, however long it is
        position += length
        if kind in (b"mdat", b"moov", b"moof"):
            end = position
    return end


def _end_of_segment(file: BinaryIO) -> int | None:
    """Where Matroska's first segment ends. None while its length is unknown, as in a stream."""
    while True:
        identifier = file.read(4)
        length = _variable_length(file)
        if identifier not in (_EBML, _SEGMENT) or length is None:
            return None
        if identifier == _SEGMENT:
            return file.tell() + length
        file.seek(length, os.SEEK_CUR)


def _variable_length(file: BinaryIO) -> int | None:
    """EBML: as many bytes follow the first as it has leading zero bits; all data bits 1 mean unknown."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    extra = 8 - first[0].bit_length()
    rest = file.read(extra)
    value = int.from_bytes(bytes([first[0] & (0x7F >> extra)]) + rest, "big")
    return None if value == (1 << 7 * (extra + 1)) - 1 else value


def _end_of_riff(head: bytes) -> int | None:
    """A size of 0, or of all ones, is what a recorder writes before it knows."""
    length = int.from_bytes(head[4:8], "little")
    return None if head[8:12] != b"AVI " or length in (0, 0xFFFFFFFF) else length + 8
