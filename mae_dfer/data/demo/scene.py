"""What surrounds the face in one clip: light, background, exposure, head motion and camera noise.

None of it depends on the expression, and none of it has a direction in time: head motion is a sum of sinusoids
with random phases.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .expression import FRAMES

SIZE = 96
NOISE_SIGMA = 1.1  # of 255: enough to be a camera, too little to hide the shading


@dataclass(frozen=True)
class Light:
    direction: np.ndarray  # unit vector (3,): right, down, towards the camera
    strength: float  # 0: flat, 1: hard
    colour: np.ndarray  # (3,), mean 1
    exposure: float


@dataclass(frozen=True)
class HeadMotion:
    """Arrays (FRAMES,): pixels, radians, and a scale factor."""

    shift: np.ndarray  # (FRAMES, 2)
    roll: np.ndarray
    scale: np.ndarray
    turn: np.ndarray  # (FRAMES, 2): how far the features slide over the head, right and down


@dataclass(frozen=True)
class Scene:
    light: Light
    background: np.ndarray  # float32 (SIZE, SIZE, 3) in 0..255
    motion: HeadMotion
    asymmetry: tuple[float, float]  # gains of the action units, left and right
    noise_seed: int


def sample_scene(rng: np.random.Generator) -> Scene:
    bias = rng.uniform(-0.09, 0.09)
    return Scene(
        light=_light(rng),
        background=_background(rng),
        motion=_head_motion(rng),
        asymmetry=(1.0 + bias, 1.0 - bias),
        noise_seed=int(rng.integers(2**31)),
    )


def _light(rng: np.random.Generator) -> Light:
    direction = np.array([rng.uniform(-0.85, 0.85), rng.uniform(-0.75, 0.1), rng.uniform(0.65, 1.1)])
    warmth = rng.uniform(-0.07, 0.07)
    return Light(
        direction=direction / np.linalg.norm(direction),
        strength=float(rng.uniform(0.3, 0.75)),
        colour=np.array([1.0 + warmth, 1.0, 1.0 - warmth]),
        exposure=float(rng.uniform(0.9, 1.12)),
    )


def _sway(rng: np.random.Generator, amplitude: float) -> np.ndarray:
    """Two slow sinusoids (FRAMES,), about ``amplitude`` high."""
    time = np.arange(FRAMES)
    periods, phases = rng.uniform((30, 16), (70, 28)), rng.uniform(0, 2 * np.pi, 2)
    strengths = amplitude * rng.uniform(0.3, 1.0) * np.array([0.75, 0.25])
    return (strengths[:, None] * np.sin(2 * np.pi * time / periods[:, None] + phases[:, None])).sum(0)


def _head_motion(rng: np.random.Generator) -> HeadMotion:
    offset, size = rng.uniform(-2.0, 2.0, 2), rng.uniform(0.95, 1.06)
    yaw = rng.uniform(-1.6, 1.6) + _sway(rng, 1.6)
    nod = rng.uniform(-0.8, 0.8) + _sway(rng, 1.2)
    return HeadMotion(
        shift=np.stack([offset[0] + _sway(rng, 2.2) + 0.6 * yaw, offset[1] + _sway(rng, 1.6) + 0.5 * nod], 1),
        roll=np.deg2rad(rng.uniform(-4.0, 4.0) + _sway(rng, 4.0)),
        scale=size * (1.0 + _sway(rng, 0.025)),
        turn=np.stack([yaw, nod], 1),
    )


def _background(rng: np.random.Generator) -> np.ndarray:
    """A gradient with blurred shapes or a soft texture over it."""
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) / SIZE - 0.5
    grey = rng.uniform(50, 195)
    near, far = (np.clip(grey + rng.normal(0, 18, 3), 15, 235) for _ in range(2))
    angle = rng.uniform(0, 2 * np.pi)
    slope = (0.5 + 0.8 * (x * np.cos(angle) + y * np.sin(angle))).clip(0, 1)[..., None]
    picture = (near + slope * (far - near)).astype(np.float32)
    kind = rng.choice(("plain", "shapes", "texture"))
    if kind == "shapes":
        for _ in range(rng.integers(3, 8)):
            colour = np.clip(grey + rng.normal(0, 20) + rng.normal(0, 24, 3), 10, 245)
            centre, radius = rng.integers(0, SIZE, 2), int(rng.integers(6, 26))
            if rng.random() < 0.5:
                cv2.circle(picture, centre.tolist(), radius, colour.tolist(), -1, cv2.LINE_AA)
            else:
                corner = centre + rng.integers(8, 40, 2)
                cv2.rectangle(picture, centre.tolist(), corner.tolist(), colour.tolist(), -1)
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(2.5, 6.0))
    elif kind == "texture":
        field = cv2.GaussianBlur(rng.normal(0, 1, (SIZE, SIZE)).astype(np.float32), (0, 0), rng.uniform(3.0, 7.0))
        picture += (rng.uniform(8, 22) * field / field.std())[..., None]
    return picture.clip(0, 255)
