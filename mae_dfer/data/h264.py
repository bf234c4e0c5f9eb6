"""What the bytes of an H.264 packet say of its picture. Units follow their lengths, as in mp4 and Matroska."""

from __future__ import annotations

from collections.abc import Iterator

_SLICE, _IDR, _SEI = 1, 5, 6  # kinds of units
_RECOVERY_POINT = 6  # a kind of SEI message


def begins_anew(packet: bytes) -> bool:
    """Whether no later picture refers to one before this (an IDR picture)."""
    return next((kind == _IDR for kind, _ in _units(packet) if kind in (_SLICE, _IDR)), False)


def is_whole_at_once(packet: bytes) -> bool:
    """Whether decoding may start at this picture, which its container calls a key frame.

    Not so where pictures are renewed piece by piece (intra refresh): the first ones after it are then incomplete.
    """
    for kind, unit in _units(packet):
        if kind in (_SLICE, _IDR):
            break
        if kind == _SEI and len(unit) > 3 and unit[1] == _RECOVERY_POINT:
            return bool(unit[3] & 0x80)  # the number of pictures until then, 0 as one bit
    return True


def _units(packet: bytes) -> Iterator[tuple[int, bytes]]:
    """(kind, the first bytes) of each unit."""
    at = 0
    while at + 5 <= len(packet):
        length = int.from_bytes(packet[at : at + 4], "big")
        yield packet[at + 4] & 0x1F, packet[at + 4 : at + 4 + min(length, 8)]
        at += 4 + length
