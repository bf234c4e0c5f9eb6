"""Outlines of a face under a pose: pure geometry, arrays of points (n, 2) in frame pixels.

Every function takes the identity and the pose; ``side`` is -1 for the left of the picture, +1 for the right;
``gain`` scales the action units of one side, which makes expressions slightly asymmetric.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from .expression import Pose
from .identity import Identity

CENTRE_X = 48.0
JAW_DROP = 7.5  # pixels the chin moves when the jaw is fully open


@cache
def _spline_basis(controls: int, steps: int, closed: bool) -> np.ndarray:
    """Rows are points on a Catmull-Rom spline, columns the weights of its control points."""
    spans = controls if closed else controls - 1
    rows = np.zeros((spans * steps + (0 if closed else 1), controls))
    for row in range(len(rows)):
        span, t = divmod(row / steps, 1)
        weights = (
            -0.5 * t + t**2 - 0.5 * t**3,
            1 - 2.5 * t**2 + 1.5 * t**3,
            0.5 * t + 2 * t**2 - 1.5 * t**3,
            -0.5 * t**2 + 0.5 * t**3,
        )
        for offset, weight in enumerate(weights, start=-1):
            index = int(span) + offset
            rows[row, index % controls if closed else min(max(index, 0), controls - 1)] += weight
    return rows


def curve(points: np.ndarray | list[tuple[float, float]], steps: int = 5, closed: bool = False) -> np.ndarray:
    """A smooth curve through ``points``."""
    points = np.asarray(points, np.float64)
    return _spline_basis(len(points), steps, closed) @ points


def mirrored(right: np.ndarray) -> np.ndarray:
    """Closes a right half, listed from top to bottom on the middle line, with its mirror image."""
    left = right[-2:0:-1] * (-1.0, 1.0)
    return np.concatenate([right, left]) + (CENTRE_X, 0.0)


def face_outline(who: Identity, pose: Pose) -> np.ndarray:
    drop = JAW_DROP * pose.jaw + 1.2 * pose.frown
    full = 1.0 + 0.02 * pose.smile
    width, top = who.face_width, who.top_y
    right = np.array(
        [
            (0.0, top),
            (0.58 * width, top + 3.5),
            (0.93 * width, top + 16.0),
            (1.0 * width, who.eye_y - 2.0),
            (0.985 * width, who.nose_y - 5.0),
            (0.5 * (0.97 * width + who.jaw_width) * full, who.mouth_y - 3.0 + 0.2 * drop),
            (who.jaw_width * 0.94 * full, who.mouth_y + 4.5 + 0.5 * drop),
            (0.5 * (who.jaw_width * 0.9 + who.chin_width), who.chin_y - 4.6 + 0.85 * drop),
            (who.chin_width, who.chin_y - 0.9 + drop),
            (0.0, who.chin_y + drop),
        ]
    )
    return curve(mirrored(right), 4, closed=True)


class Eye(NamedTuple):
    opening: np.ndarray  # closed polygon of what the lids leave open
    upper: np.ndarray  # the upper lid's edge, inner to outer corner
    lower: np.ndarray
    crease: np.ndarray  # the fold above the upper lid
    iris: tuple[float, float]
    iris_radius: float
    openness: float  # 1 at rest, 0 closed


def eye(who: Identity, pose: Pose, side: int, gain: float) -> Eye:
    along = np.linspace(-1.0, 1.0, 13)  # inner to outer corner
    dome = (1.0 - np.abs(along) ** 2.4) * (1.0 + 0.12 * np.where(along < 0, -along, 0.3 * along))
    squint, wide = pose.eye_squint * gain, pose.eye_wide * gain
    openness = (1.0 + 0.62 * wide - 0.42 * squint - 0.4 * pose.eye_droop) * (1.0 - pose.blink)
    low = (0.62 + 0.18 * wide - 0.36 * squint - 0.42 * pose.cheek * gain) * (1.0 - 0.25 * pose.blink)
    x = CENTRE_X + side * (who.eye_dx + along * who.eye_width)
    # A sad upper lid slopes down to the outer corner.
    tilt = -who.eye_tilt * along + 0.9 * along**2 * pose.eye_droop * np.where(along > 0, 1.0, -0.6)
    base = who.eye_y + tilt
    lower = base + who.eye_height * low * (1.0 - along**2)
    upper = np.minimum(base - who.eye_height * (0.95 * openness - 0.55 * pose.blink) * dome, lower)
    crease = base - who.eye_height * (0.95 * max(openness, 0.55) + 0.42) * (0.85 * dome + 0.15)
    gaze_x, gaze_y = 2.3 * pose.gaze_x, 1.3 * pose.gaze_y
    centre = (CENTRE_X + side * (who.eye_dx - 0.2) + gaze_x, who.eye_y - 0.12 * who.eye_height + gaze_y)
    edge_up, edge_down = np.stack([x, upper], 1), np.stack([x, lower], 1)
    opening = np.concatenate([edge_up, edge_down[::-1]])
    return Eye(opening, edge_up, edge_down, np.stack([x, crease], 1), centre, 0.88 * who.eye_height, openness)


_BROW_ALONG = np.array([0.0, 0.3, 0.62, 1.0])  # inner end to tail


def brow(who: Identity, pose: Pose, side: int, gain: float) -> np.ndarray:
    """The brow as a closed, tapered polygon."""
    lower, inner = pose.brow_lower * gain, pose.brow_inner * gain
    x = who.eye_dx - 0.52 * who.brow_length + _BROW_ALONG * who.brow_length
    x = x - lower * np.array([2.6, 1.8, 0.8, 0.2])
    y = who.eye_y - who.brow_gap + who.brow_arch * np.array([0.9, -0.5, -1.0, 1.3])
    y = y - 6.2 * pose.brow_raise * gain * np.array([0.9, 1.0, 1.0, 0.75])
    y = y - inner * np.array([5.6, 2.6, -0.6, -2.6])
    y = y + lower * np.array([5.6, 4.0, 1.4, -1.0])
    half = who.brow_thickness * np.array([0.85, 1.0, 0.85, 0.2])
    x = CENTRE_X + side * x
    return curve(np.concatenate([np.stack([x, y - half], 1), np.stack([x, y + half], 1)[::-1]]), 4, closed=True)


class Mouth(NamedTuple):
    upper_lip: np.ndarray  # closed polygons
    lower_lip: np.ndarray
    inside: np.ndarray
    outer: np.ndarray
    seam: np.ndarray  # where the lips meet, for a closed mouth
    upper_edge: np.ndarray  # the upper lip's inner edge, left to right: the teeth hang from it
    gap: float  # height of the opening in the middle
    corners: np.ndarray  # (2, 2): left, right


_MOUTH_ALONG = np.linspace(-1.0, 1.0, 17)
_DOME = 1.0 - _MOUTH_ALONG**2


def mouth(who: Identity, pose: Pose, gains: tuple[float, float]) -> Mouth:
    along, dome = _MOUTH_ALONG, _DOME
    side = np.where(along < 0, gains[0], gains[1])
    smile, frown = pose.smile * side, pose.frown * side
    width = who.mouth_width + 3.6 * smile - 1.0 * frown - 2.9 * pose.pucker + 2.0 * pose.lip_stretch - 1.7 * pose.jaw
    width = width - 0.8 * pose.lip_raise - 0.6 * pose.lip_press
    x = CENTRE_X + along * width

    # The seam: corners go up or down, the middle stays; a raised chin pushes it up in the middle.
    rise = who.mouth_rest * (1.0 - pose.jaw) + 5.2 * smile - 5.0 * frown - 1.2 * pose.lip_raise - 1.5 * pose.jaw
    seam = who.mouth_y - rise * np.abs(along) ** 1.7 + 0.9 * smile - 1.6 * frown + 1.6 * pose.jaw - 1.1 * pose.chin

    round_gap = dome ** (0.44 + 0.26 * pose.smile)
    open_up = 3.4 * pose.jaw + 1.5 * pose.smile
    open_down = 8.8 * pose.jaw + 1.5 * pose.smile
    # The raised upper lip is squared off and bares the teeth.
    squared = (1.0 - along**4) * (0.85 + 0.15 * np.cos(2.0 * np.pi * along))
    upper_in = seam - open_up * round_gap - 4.4 * pose.lip_raise * side * squared
    lower_in = seam + open_down * round_gap + 0.9 * pose.lip_raise * squared

    thin = 1.0 - 0.5 * pose.lip_press - 0.2 * pose.smile - 0.15 * pose.lip_raise + 0.35 * pose.pucker
    bow = 1.0 - 0.24 * np.exp(-((along / 0.16) ** 2))
    upper_out = upper_in - who.upper_lip * thin * bow * (1.0 - np.abs(along) ** 1.8)
    lower_out = lower_in + who.lower_lip * thin * dome**0.8 * (1.0 + 0.15 * pose.chin)

    def points(y: np.ndarray) -> np.ndarray:
        return np.stack([x, y], 1)

    up_in, low_in, up_out, low_out = points(upper_in), points(lower_in), points(upper_out), points(lower_out)
    return Mouth(
        upper_lip=np.concatenate([up_out, up_in[::-1]]),
        lower_lip=np.concatenate([low_in, low_out[::-1]]),
        inside=np.concatenate([up_in, low_in[::-1]]),
        outer=np.concatenate([up_out, low_out[::-1]]),
        seam=points(0.5 * (upper_in + lower_in)),
        upper_edge=up_in,
        gap=float(lower_in[8] - upper_in[8]),
        corners=up_in[[0, -1]],
    )


def nose_wings(who: Identity, pose: Pose) -> tuple[np.ndarray, np.ndarray]:
    """The lower rim of the nose as two open curves, left and right; a wrinkled nose rises and widens."""
    lift = 2.6 * pose.nose_wrinkle + 0.4 * pose.lip_raise
    width = who.nose_width * (1.0 + 0.16 * pose.nose_wrinkle + 0.06 * pose.smile)
    y = who.nose_y - lift
    right = np.array(
        [(0.94 * width, y - 3.6), (1.08 * width, y - 1.4), (0.8 * width, y + 0.5), (0.36 * width, y + 0.1)]
    )
    left = right * (-1.0, 1.0)
    return curve(left + (CENTRE_X, 0.0), 4), curve(right + (CENTRE_X, 0.0), 4)


def nostrils(who: Identity, pose: Pose) -> list[np.ndarray]:
    lift = 2.6 * pose.nose_wrinkle + 0.4 * pose.lip_raise
    angles = np.linspace(0.0, 2 * np.pi, 10, endpoint=False)
    oval = np.stack([0.27 * who.nose_width * np.cos(angles), 0.85 * np.sin(angles)], 1)
    y = who.nose_y - lift + 0.1
    return [oval + (CENTRE_X + side * 0.5 * who.nose_width, y) for side in (-1, 1)]


def folds(who: Identity, pose: Pose, corners: np.ndarray) -> list[tuple[np.ndarray, float, float]]:
    """Creases of the skin that the action units make: (curve, strength in [0, 1], width)."""
    age, found = who.age, []
    lift = 2.4 * pose.nose_wrinkle
    for side, corner in zip((-1, 1), corners, strict=True):
        wing = (CENTRE_X + side * (who.nose_width + 1.2), who.nose_y - 3.0 - lift)
        middle = (0.5 * (wing[0] + corner[0]) + side * 2.8, 0.5 * (wing[1] + corner[1]) - 0.6)
        end = (corner[0] + side * (1.8 + 1.2 * pose.smile), corner[1] - 0.6)
        strength = 0.05 + 0.28 * age + 0.42 * pose.smile + 0.45 * pose.lip_raise + 0.15 * pose.frown
        found.append((curve([wing, middle, end]), strength, 1.0))

        eye_x, eye_y = CENTRE_X + side * who.eye_dx, who.eye_y
        bag = [(eye_x - side * 5.5, eye_y + 5.0), (eye_x, eye_y + 6.6), (eye_x + side * 5.5, eye_y + 4.8)]
        found.append((curve(bag), 0.3 * age + 0.4 * pose.cheek + 0.3 * pose.eye_squint, 0.9))
        for slope in (-1.6, 0.6, 2.6):
            outer = eye_x + side * (who.eye_width + 1.8)
            crow = [(outer, eye_y + 0.5 * slope), (outer + side * 3.6, eye_y + 1.3 * slope)]
            found.append((np.array(crow), age * (0.12 + 0.55 * pose.cheek), 0.6))
        for step in (0.0, 1.0, 2.0):
            bridge = [
                (CENTRE_X + side * 1.2, eye_y + 1.5 + 2.7 * step),
                (CENTRE_X + side * 4.4, eye_y + 3.3 + 3.2 * step),
            ]
            found.append((np.array(bridge), 0.55 * pose.nose_wrinkle, 0.7))
        inner_x = CENTRE_X + side * 2.5
        frown_line = [(inner_x, eye_y - 10.5), (inner_x - side * 0.5, eye_y - 4.2)]
        found.append((np.array(frown_line), 0.12 * age + 0.6 * pose.brow_lower, 0.7))
        below = [(corner[0] + side * 0.6, corner[1] + 1.2), (corner[0] + side * 1.4, corner[1] + 4.4)]
        found.append((np.array(below), 0.25 * age + 0.7 * pose.frown, 1.0))
    found += _forehead_lines(who, pose)
    return found


def _forehead_lines(who: Identity, pose: Pose) -> list[tuple[np.ndarray, float, float]]:
    top, bottom = who.hairline_y + 2.5, who.eye_y - who.brow_gap - 6.0 * pose.brow_raise - 3.0
    strength = 0.25 * who.age + (0.35 + 0.4 * who.age) * pose.brow_raise
    middle = 0.55 * pose.brow_inner * (0.4 + who.age)
    found = []
    for height, half in ((0.25, 11.0), (0.85, 14.0)):
        y = top + height * max(bottom - top, 2.0)
        line = [
            (CENTRE_X - half, y + 0.9),
            (CENTRE_X - 0.4 * half, y),
            (CENTRE_X + 0.4 * half, y),
            (CENTRE_X + half, y + 0.9),
        ]
        found.append((curve(line), strength, 0.8))
        short = [(CENTRE_X - 0.4 * half, y + 0.6), (CENTRE_X, y - 0.2), (CENTRE_X + 0.4 * half, y + 0.6)]
        found.append((curve(short), middle, 0.9))
    return found
