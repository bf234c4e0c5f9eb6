"""Time courses of the seven expressions, as facial action units.

A course is an array (FRAMES, len(UNITS)): how strongly each unit acts in each frame, in [0, 1] (gaze in
[-1, 1]). Happy, sad and neutral are poses. The other four come in pairs that visit the same poses:

* ``surprise`` bursts open and fades slowly; ``fear`` is that course played backwards.
* ``angry`` lowers the brows first and raises the upper lip second, and relaxes in that order;
  ``disgust`` is that course played backwards, so the lip leads.

Backwards is meant literally: for one state of the random generator the two courses are mirror images.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

CLASSES = ("neutral", "happy", "sad", "angry", "surprise", "disgust", "fear")
REVERSAL_OF = {"fear": "surprise", "disgust": "angry"}

FRAMES = 36
# The unfolding stays inside [FIRST, LAST], so a window of 32 frames holds it whole wherever it starts, and the
# interval is its own mirror image.
FIRST, LAST = 4.0, 31.0


class Pose(NamedTuple):
    """One row of a course: the strength of each action unit in one frame."""

    brow_raise: float
    brow_inner: float
    brow_lower: float
    eye_wide: float
    eye_squint: float
    eye_droop: float
    blink: float
    nose_wrinkle: float
    lip_raise: float
    lip_press: float
    lip_stretch: float
    smile: float
    cheek: float
    frown: float
    chin: float
    jaw: float
    pucker: float
    gaze_x: float
    gaze_y: float


UNITS = Pose._fields
NEUTRAL_POSE = Pose(*([0.0] * len(UNITS)))

HAPPY = {"smile": 1.0, "cheek": 0.9, "eye_squint": 0.3}
SAD = {"brow_inner": 1.0, "frown": 1.0, "chin": 0.7, "eye_droop": 0.75}
STARTLED = {"brow_raise": 1.0, "brow_inner": 0.25, "eye_wide": 1.0, "jaw": 1.0, "lip_stretch": 0.2}
BROWS_DOWN = {"brow_lower": 1.0, "eye_squint": 0.7}
LIP_UP = {"lip_raise": 1.0, "nose_wrinkle": 1.0, "frown": 0.25}
TWITCHES = ("brow_raise", "brow_inner", "brow_lower", "smile", "frown", "eye_squint", "lip_press")


class Course(NamedTuple):
    """``units`` float32 (FRAMES, len(UNITS)), the peak ``intensity``, and the ``timing`` as drawn, in frames;
    a ``reversed`` course runs backwards through it."""

    units: np.ndarray
    intensity: float
    timing: dict[str, float]
    reversed: bool

    def pose(self, frame: int) -> Pose:
        return Pose(*self.units[frame].tolist())


def sample_course(rng: np.random.Generator, expression: str) -> Course:
    """Draws one unfolding of ``expression``; see the module's docstring for what defines each class."""
    base = REVERSAL_OF.get(expression, expression)
    units = np.zeros((FRAMES, len(UNITS)), np.float32)
    intensity = float(rng.uniform(0.65, 1.0)) if base != "neutral" else 0.0
    timing = _ACTIONS[base](rng, units, intensity)
    _add_everyday_motion(rng, units, talk=rng.uniform(0.1, 0.3))
    units = units.clip(-1.0, 1.0)
    backwards = expression in REVERSAL_OF
    return Course(units[::-1].copy() if backwards else units, intensity, timing, backwards)


def _index(unit: str) -> int:
    return UNITS.index(unit)


def _add(units: np.ndarray, pose: dict[str, float], envelope: np.ndarray) -> None:
    for unit, strength in pose.items():
        units[:, _index(unit)] += strength * envelope


def pulse(start: float, rise: float, hold: float, fall: float) -> np.ndarray:
    """Envelope (FRAMES,): 0 before ``start``, up over ``rise`` frames, 1 for ``hold``, down over ``fall``."""
    time = np.arange(FRAMES, dtype=np.float64)
    corners = np.cumsum([start, rise, hold, fall])
    return np.interp(time, corners, [0.0, 1.0, 1.0, 0.0])


def _start(rng: np.random.Generator, duration: float) -> float:
    return float(rng.uniform(FIRST, LAST - duration))


def _burst(rng: np.random.Generator) -> tuple[np.ndarray, dict[str, float]]:
    """Abrupt onset, slow decay."""
    rise, hold, fall = rng.uniform(2.0, 3.5), rng.uniform(1.0, 2.5), rng.uniform(12.0, 16.0)
    start = _start(rng, rise + hold + fall)
    return pulse(start, rise, hold, fall), {"start": start, "rise": rise, "hold": hold, "fall": fall}


def _surprise(rng: np.random.Generator, units: np.ndarray, intensity: float) -> dict[str, float]:
    envelope, timing = _burst(rng)
    _add(units, STARTLED, intensity * envelope)
    return timing


def _angry(rng: np.random.Generator, units: np.ndarray, intensity: float) -> dict[str, float]:
    """Brows lead, lip follows, on and off, by ``lag`` frames; both held together in between."""
    rise, hold, fall, lag = rng.uniform(2.0, 3.5), rng.uniform(6.0, 8.0), rng.uniform(2.0, 3.5), rng.uniform(5.5, 7.5)
    start = _start(rng, rise + hold + fall + lag)
    _add(units, BROWS_DOWN, intensity * pulse(start, rise, hold, fall))
    _add(units, LIP_UP, intensity * pulse(start + lag, rise, hold, fall))
    return {"start": start, "rise": rise, "hold": hold, "fall": fall, "lag": lag}


def _plateau(rng: np.random.Generator) -> tuple[np.ndarray, dict[str, float]]:
    """Any speed on either side, so that the shape in time says nothing about a class defined by its pose."""
    rise, hold, fall = rng.uniform(2.5, 10.0), rng.uniform(2.0, 8.0), rng.uniform(2.5, 9.0)
    if rng.random() < 0.5:
        rise, fall = fall, rise
    start = _start(rng, rise + hold + fall)
    return pulse(start, rise, hold, fall), {"start": start, "rise": rise, "hold": hold, "fall": fall}


def _happy(rng: np.random.Generator, units: np.ndarray, intensity: float) -> dict[str, float]:
    envelope, timing = _plateau(rng)
    open_mouth = rng.uniform(0.0, 0.45)
    _add(units, {**HAPPY, "jaw": open_mouth}, intensity * envelope)
    return {**timing, "open_mouth": open_mouth}


def _sad(rng: np.random.Generator, units: np.ndarray, intensity: float) -> dict[str, float]:
    envelope, timing = _plateau(rng)
    _add(units, {**SAD, "gaze_y": rng.uniform(0.0, 0.5)}, intensity * envelope)
    return timing


def _neutral(rng: np.random.Generator, units: np.ndarray, intensity: float) -> dict[str, float]:
    """Talks more than the others and lets one unit twitch, so that "something moves" is not a cue."""
    envelope, timing = _plateau(rng)
    _add(units, {str(rng.choice(TWITCHES)): rng.uniform(0.1, 0.3)}, envelope)
    _talk(rng, units, rng.uniform(0.15, 0.45))
    return timing


def _talk(rng: np.random.Generator, units: np.ndarray, strength: float) -> None:
    time = np.arange(FRAMES)
    duration = rng.uniform(10, 24)
    envelope = pulse(_start(rng, duration), 3.0, duration - 6.0, 3.0)
    syllables = 0.5 - 0.5 * np.cos(2 * np.pi * (time / rng.uniform(4.5, 7.5) + rng.random()))
    rounding = 0.5 - 0.5 * np.cos(2 * np.pi * (time / rng.uniform(7.0, 12.0) + rng.random()))
    _add(units, {"jaw": strength}, envelope * syllables)
    _add(units, {"pucker": 1.2 * strength}, envelope * rounding)


def _add_everyday_motion(rng: np.random.Generator, units: np.ndarray, talk: float) -> None:
    """Blinks, gaze shifts and a little talking: the same for every class, with no direction in time."""
    if rng.random() < 0.5:
        _talk(rng, units, talk)
    for _ in range(rng.choice(3, p=[0.35, 0.5, 0.15])):
        centre, half_width = rng.uniform(0, FRAMES - 1), rng.uniform(1.6, 2.4)
        closing = (1.6 - 1.6 * np.abs(np.arange(FRAMES) - centre) / half_width).clip(0, 1)
        units[:, _index("blink")] = np.maximum(units[:, _index("blink")], closing)
    look = rng.uniform((-0.5, -0.3), (0.5, 0.3))
    glance = look + rng.uniform((-0.7, -0.4), (0.7, 0.4)) * (rng.random() < 0.6)
    change = np.interp(np.arange(FRAMES), np.array([-1.0, 1.0]) + rng.uniform(4, 31), [0.0, 1.0])
    for unit, before, after in zip(("gaze_x", "gaze_y"), look, glance, strict=True):
        units[:, _index(unit)] += before + (after - before) * change


_ACTIONS = {"neutral": _neutral, "happy": _happy, "sad": _sad, "angry": _angry, "surprise": _surprise}
