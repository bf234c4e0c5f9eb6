"""Hair styles as polygons: what lies behind the face and what falls over it, in frame pixels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .identity import Identity
from .shapes import CENTRE_X, curve


class Hair(NamedTuple):
    behind: list[np.ndarray]
    front: list[np.ndarray]
    opacity: float  # of the front: a shaved head lets the skin shine through


def hair(who: Identity, rng: np.random.Generator) -> Hair:
    """The polygons of ``who.hair_style``; ``rng`` draws strands and curls, so it must belong to the identity."""
    return _STYLES[who.hair_style](who, rng)


def _skull(who: Identity, out: float, down_to: float) -> list[tuple[float, float]]:
    """Outer edge over the skull, from the right side at ``down_to`` to the left, ``out`` pixels off the head."""
    width, top = who.face_width + out, who.top_y - out
    right = [(width, down_to), (1.0 * width, who.eye_y - 10), (0.88 * width, top + 10), (0.5 * width, top + 1.8)]
    return [*right, (0.0, top), *[(-x, y) for x, y in right[::-1]]]


def _cap(who: Identity, out: float, inner: list[tuple[float, float]], side_y: float) -> np.ndarray:
    """A cap between the skull and the hairline ``inner``, given left to right as (x / face width, y)."""
    edge = [(x * who.face_width, y) for x, y in inner]
    outline = np.concatenate([curve(edge), curve(_skull(who, out, side_y))])
    return outline + (CENTRE_X, 0.0)


def _hairline(who: Identity, lift: float = 0.0, side_y: float | None = None) -> list[tuple[float, float]]:
    y, side = who.hairline_y - lift, who.eye_y - 1.0 if side_y is None else side_y
    half = [(-1.0, side), (-0.88, side - 9), (-0.68, y + 3.0), (-0.35, y + 0.3)]
    return [*half, (0.0, y), *[(-x, h) for x, h in half[::-1]]]


def _curtain(who: Identity, out: float, bottom: float, flare: float) -> np.ndarray:
    """Long hair behind the face, down to ``bottom``."""
    width, top = who.face_width + out, who.top_y - out
    right = [
        (0.0, top), (0.55 * width, top + 2), (0.95 * width, top + 13), (1.04 * width, who.eye_y),
        (1.05 * width + 0.5 * flare, who.mouth_y), (width + flare, bottom - 2), (0.7 * width, bottom),
    ]  # fmt: skip
    points = right + [(-x, y) for x, y in right[:0:-1]]
    return curve(points, 4, closed=True) + (CENTRE_X, 0.0)


def _curls(
    who: Identity, rng: np.random.Generator, start: float, end: float, out: float, size: float
) -> list[np.ndarray]:
    """Overlapping discs along the skull between two angles (radians from the crown)."""
    angles = np.linspace(0.0, 2 * np.pi, 16, endpoint=False)
    disc = np.stack([np.cos(angles), np.sin(angles)], 1)
    found = []
    for angle in np.linspace(start, end, max(int(abs(end - start) * 30 / size), 3)):
        x = CENTRE_X + (who.face_width + out) * np.sin(angle)
        y = who.eye_y - 4 - (who.eye_y - 4 - who.top_y + out) * np.cos(angle)
        found.append(disc * size * rng.uniform(0.8, 1.2) + (x, y) + rng.normal(0, 0.6, 2))
    return found


def _crop(who: Identity, rng: np.random.Generator) -> Hair:
    return Hair([], [_cap(who, 2.2, _hairline(who, side_y=who.eye_y + 2.0), who.eye_y + 2.0)], 1.0)


def _parted(who: Identity, rng: np.random.Generator) -> Hair:
    side, y = rng.choice((-1.0, 1.0)), who.hairline_y
    inner = [
        (-1.0, who.eye_y),
        (-0.86, y + 11),
        (-0.62, y + 1),
        (-0.4, y - 4),
        (0.05, y),
        (0.5, y + 4.5),
        (0.85, y + 12),
    ]
    inner = [(side * x, h) for x, h in [*inner, (1.0, who.eye_y)]]
    if side < 0:
        inner = inner[::-1]
    return Hair([], [_cap(who, 3.2, inner, who.eye_y)], 1.0)


def _quiff(who: Identity, rng: np.random.Generator) -> Hair:
    cap = _cap(who, 1.6, _hairline(who, lift=1.5, side_y=who.eye_y + 1), who.eye_y + 1)
    width, y = 0.66 * who.face_width, who.hairline_y
    tuft = [
        (-width, y + 1),
        (-width - 1, y - 9),
        (-0.3 * width, y - 16),
        (0.5 * width, y - 16),
        (width + 1, y - 8),
        (width, y),
    ]
    return Hair([], [cap, curve([*tuft, (0.0, y - 2.0)], closed=True) + (CENTRE_X, 0.0)], 1.0)


def _buzz(who: Identity, rng: np.random.Generator) -> Hair:
    return Hair([], [_cap(who, 0.4, _hairline(who, lift=0.5, side_y=who.eye_y + 2), who.eye_y + 2)], 0.7)


def _curly(who: Identity, rng: np.random.Generator) -> Hair:
    cap = _cap(who, 2.5, _hairline(who, lift=-0.5), who.eye_y - 1)
    return Hair([], [cap, *_curls(who, rng, -1.45, 1.45, 1.0, 5.0)], 1.0)


def _bald(who: Identity, rng: np.random.Generator) -> Hair:
    sides = []
    for side in (-1, 1):
        patch = [
            (0.9, who.eye_y - 13),
            (1.06, who.eye_y - 14),
            (1.1, who.eye_y - 2),
            (1.0, who.eye_y + 6),
            (0.93, who.eye_y - 2),
        ]
        points = np.array([(side * x * who.face_width, y) for x, y in patch])
        sides.append(curve(points, closed=True) + (CENTRE_X, 0.0))
    return Hair([], sides, 0.85)


def _long(who: Identity, rng: np.random.Generator) -> Hair:
    y = who.hairline_y
    half = [(-0.99, who.mouth_y + 4), (-0.93, who.eye_y + 2), (-0.84, y + 14), (-0.5, y + 3)]
    inner = [*half, (0.0, y - 2.5), *[(-x, h) for x, h in half[::-1]]]
    return Hair([_curtain(who, 4.5, 108.0, 3.0)], [_cap(who, 4.0, inner, who.mouth_y + 4)], 1.0)


def _bob(who: Identity, rng: np.random.Generator) -> Hair:
    y = who.hairline_y
    inner = [
        (-1.0, who.mouth_y - 4),
        (-0.92, who.eye_y),
        (-0.78, y + 10),
        (-0.45, y + 1),
        (0.1, y - 0.5),
        (0.62, y + 7),
    ]
    inner = [*inner, (0.9, who.eye_y - 2), (1.0, who.mouth_y - 4)]
    return Hair([_curtain(who, 5.0, who.mouth_y + 10.0, 4.0)], [_cap(who, 4.5, inner, who.mouth_y - 4)], 1.0)


def _fringe(who: Identity, rng: np.random.Generator) -> Hair:
    y = who.hairline_y + 4.5
    half = [(-1.0, who.mouth_y - 2), (-0.93, who.eye_y + 2), (-0.86, y + 6), (-0.7, y + 1.2), (-0.35, y - 0.4)]
    inner = [*half, (0.0, y - 0.9), *[(-x, h) for x, h in half[::-1]]]
    return Hair([_curtain(who, 4.5, 100.0, 2.0)], [_cap(who, 4.0, inner, who.mouth_y - 2)], 1.0)


def _bun(who: Identity, rng: np.random.Generator) -> Hair:
    angles = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    knot = np.stack([9.5 * np.cos(angles), 7.5 * np.sin(angles)], 1) + (CENTRE_X, who.top_y - 5.0)
    return Hair([knot], [_cap(who, 1.8, _hairline(who, lift=1.0), who.eye_y - 1)], 1.0)


def _curls_long(who: Identity, rng: np.random.Generator) -> Hair:
    cap = _cap(who, 3.0, _hairline(who, lift=-0.5), who.eye_y - 1)
    return Hair(_curls(who, rng, -2.5, 2.5, 3.0, 8.0), [cap, *_curls(who, rng, -1.2, 1.2, 1.0, 5.5)], 1.0)


def _scarf(who: Identity, rng: np.random.Generator) -> Hair:
    y = who.hairline_y - 1.0
    half = [(-0.9, who.mouth_y + 4), (-0.95, who.eye_y), (-0.86, y + 10), (-0.5, y + 1.0)]
    inner = [*half, (0.0, y), *[(-x, h) for x, h in half[::-1]]]
    return Hair([_curtain(who, 5.0, 112.0, 6.0)], [_cap(who, 4.5, inner, who.mouth_y + 4)], 1.0)


_STYLES = {
    "crop": _crop, "parted": _parted, "quiff": _quiff, "buzz": _buzz, "curly": _curly, "bald": _bald,
    "long": _long, "bob": _bob, "fringe": _fringe, "bun": _bun, "curls": _curls_long, "scarf": _scarf,
}  # fmt: skip
