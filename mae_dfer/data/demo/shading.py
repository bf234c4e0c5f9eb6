"""Light on a head: smooth maps that multiply the flat colours.

The head is an ellipsoid; nose, brow ridge, eye sockets, cheeks and chin are bumps on it. Lambert's law with one
light and an ambient term gives the shading of each.
"""

from __future__ import annotations

import cv2
import numpy as np

from .identity import Identity
from .scene import Light
from .shapes import CENTRE_X

MARGIN = 8  # of the head's own picture around the frame, so that it can move
SIDE = 96 + 2 * MARGIN


def _grid() -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32) - MARGIN
    return x - CENTRE_X, y


def head_shading(who: Identity, light: Light) -> np.ndarray:
    """Float32 (SIDE, SIDE, 3), about 1 in the middle of the face: ellipsoid, light colour, exposure."""
    x, y = _grid()
    middle = 0.5 * (who.top_y + who.chin_y)
    u, v = x / (1.28 * who.face_width), (y - middle) / (0.72 * (who.chin_y - who.top_y))
    radius = np.sqrt(u**2 + v**2)
    shrink = np.minimum(1.0, 0.97 / np.maximum(radius, 1e-6))
    u, v = u * shrink, v * shrink
    depth = np.sqrt(1.0 - u**2 - v**2)
    lambert = np.maximum(u * light.direction[0] + v * light.direction[1] + depth * light.direction[2], 0.0)
    shade = 1.0 - light.strength + light.strength * lambert / light.direction[2]
    return (light.exposure * shade.clip(0.25, 1.45)[..., None] * light.colour).astype(np.float32)


def _bump(x: np.ndarray, y: np.ndarray, centre: tuple[float, float], width: tuple[float, float]) -> np.ndarray:
    return np.exp(-0.5 * (((x - centre[0]) / width[0]) ** 2 + ((y - centre[1]) / width[1]) ** 2))


def feature_shading(who: Identity, light: Light, rng: np.random.Generator) -> np.ndarray:
    """Float32 (SIDE, SIDE, 3) about 1: bumps under the light, blush, freckles and a trace of mottling."""
    x, y = _grid()
    eye_y, nose_y, mouth_y = who.eye_y, who.nose_y, who.mouth_y
    height = 4.2 * who.nose_strength * _bump(x, y, (0.0, nose_y - 3.0), (0.62 * who.nose_width, 3.2))
    bridge = (
        np.exp(-0.5 * (x / 2.5) ** 2) / (1 + np.exp((eye_y - 2.0 - y) / 2.5)) / (1 + np.exp((y - nose_y + 3.0) / 1.5))
    )
    height += 2.1 * who.nose_strength * bridge
    height += 1.6 * _bump(x, y, (0.0, who.chin_y - 6.0), (7.0, 4.0))
    height += 0.8 * _bump(x, y, (0.0, mouth_y), (13.0, 7.0))
    for side in (-1, 1):
        height -= 2.2 * _bump(x, y, (side * who.eye_dx, eye_y - 0.5), (7.0, 4.2))
        height += 1.1 * _bump(x, y, (side * who.eye_dx, eye_y - who.brow_gap), (9.0, 3.0))
        height += 2.0 * _bump(x, y, (side * 1.25 * who.eye_dx, nose_y - 3.0), (6.5, 5.0))
    slope_y, slope_x = np.gradient(height)
    # Light from the camera still darkens slopes a little, so that a frontal light does not erase the nose.
    facing = -(slope_x * light.direction[0] + slope_y * (light.direction[1] - 0.25)) / light.direction[2]
    relief = 1.0 + (0.25 + 0.45 * light.strength) * facing
    sockets = sum(_bump(x, y, (side * who.eye_dx, eye_y - 3.8), (7.5, 3.6)) for side in (-1, 1))
    relief = (relief - 0.13 * sockets).clip(0.55, 1.4)[..., None]

    blush = sum(_bump(x, y, (side * 1.3 * who.eye_dx, nose_y - 1.5), (6.0, 5.0)) for side in (-1, 1))
    blush = (blush + 0.7 * _bump(x, y, (0.0, nose_y - 1.5), (5.0, 3.0)))[..., None]
    tint = relief * (1.0 - blush * np.array((-0.02, 0.07, 0.06)))
    mottle = cv2.GaussianBlur(rng.normal(0, 1, (SIDE, SIDE)).astype(np.float32), (0, 0), 2.5)
    tint = tint * (1.0 + 0.012 * mottle / mottle.std())[..., None]
    if who.freckles:
        tint = tint * (1.0 - who.freckles * _freckles(who, rng)[..., None] * np.array((0.5, 0.9, 1.0)))
    return tint.astype(np.float32)


def _freckles(who: Identity, rng: np.random.Generator) -> np.ndarray:
    spots = np.zeros((SIDE, SIDE), np.float32)
    for side in (-1, 1):
        points = rng.normal((CENTRE_X + side * 11.0, who.nose_y - 4.0), (5.5, 2.6), (16, 2)) + MARGIN
        for x, y in points:
            centre = (round(16 * x), round(16 * y))
            cv2.circle(spots, centre, 11, float(rng.uniform(0.12, 0.3)), -1, cv2.LINE_AA, 4)
    return cv2.GaussianBlur(spots, (0, 0), 0.5)
