"""Who is drawn: the proportions, colours, hair and accessories of one person.

Lengths are pixels of the 96 x 96 frame, y downwards; colours are RGB in 0..255.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Colour = tuple[float, float, float]

SKIN_TONES = np.array(
    [
        (240, 208, 186), (234, 197, 170), (226, 185, 154), (222, 176, 140), (206, 158, 120),
        (188, 138, 100), (166, 116, 82), (142, 96, 68), (116, 78, 56), (94, 62, 46),
    ],
    np.float64,
)  # fmt: skip
HAIR_COLOURS = {
    "black": (38, 33, 34), "dark brown": (66, 46, 36), "brown": (104, 70, 46), "auburn": (126, 62, 38),
    "red": (176, 88, 44), "dark blond": (160, 122, 74), "blond": (212, 176, 112),
}  # fmt: skip
DARK_HAIR = ("black", "dark brown")
GREY_HAIR = np.array((186.0, 184.0, 182.0))
IRIS_COLOURS = ((84, 52, 32), (62, 40, 28), (104, 74, 40), (96, 116, 78), (82, 120, 156), (112, 130, 140))
CLOTH_COLOURS = (
    (54, 72, 112),
    (120, 52, 56),
    (60, 98, 82),
    (90, 90, 98),
    (172, 144, 98),
    (40, 42, 50),
    (186, 186, 190),
)
SHORT_STYLES = ("crop", "parted", "quiff", "buzz", "curly", "bald")
LONG_STYLES = ("long", "bob", "fringe", "bun", "curls", "scarf", "parted")
BEARDS = ("none", "stubble", "moustache", "full")
GLASSES = ("none", "round", "square")


@dataclass(frozen=True)
class Identity:
    skin: Colour
    hair: Colour
    brow: Colour
    iris: Colour
    lip: Colour
    cloth: Colour
    hair_style: str
    beard: str
    glasses: str
    glasses_colour: Colour
    age: float  # 0 young .. 1 old
    freckles: float
    face_width: float  # half width at the cheekbones
    jaw_width: float  # half width at the mouth's height
    chin_width: float
    chin_y: float
    top_y: float
    hairline_y: float
    eye_y: float
    eye_dx: float  # from the middle line to the centre of an eye
    eye_width: float  # half
    eye_height: float
    eye_tilt: float
    brow_gap: float  # from the eye's centre up to the brow
    brow_thickness: float
    brow_arch: float
    brow_length: float
    nose_y: float
    nose_width: float
    nose_strength: float
    mouth_y: float
    mouth_width: float  # half
    upper_lip: float
    lower_lip: float
    mouth_rest: float  # corners at rest: > 0 up, < 0 down
    ear_size: float


def sample_identity(rng: np.random.Generator) -> Identity:
    """Draws a person. Everything here is independent of the expression by construction."""
    tone = rng.uniform(0, len(SKIN_TONES) - 1)
    age = float(rng.beta(1.1, 1.7))
    feminine = bool(rng.random() < 0.5)
    return Identity(
        **_colours(rng, tone, age, feminine),
        **_style(rng, age, feminine),
        **_proportions(rng, age, feminine),
        age=age,
        freckles=float(rng.uniform(0.4, 1.0)) if tone < 3.5 and rng.random() < 0.3 else 0.0,
    )


def _colour(values: np.ndarray) -> Colour:
    red, green, blue = np.clip(values, 0, 255).tolist()
    return (red, green, blue)


def _colours(rng: np.random.Generator, tone: float, age: float, feminine: bool) -> dict[str, Any]:
    columns = np.arange(len(SKIN_TONES))
    skin = np.array([np.interp(tone, columns, channel) for channel in SKIN_TONES.T]) + rng.normal(0, 2.5, 3)
    names = DARK_HAIR if tone > 5.5 else tuple(HAIR_COLOURS)
    hair = np.array(HAIR_COLOURS[str(rng.choice(names))], np.float64) * rng.uniform(0.85, 1.15)
    grey = float(np.clip((age - 0.5) * 2.2, 0, 1)) * rng.uniform(0.5, 1.0)
    hair = hair + grey * (GREY_HAIR - hair)
    brow = 0.72 * hair + 0.12 * skin - 6
    lip = skin * (0.86, 0.62, 0.62) + rng.uniform(-6, 6, 3)
    if feminine and rng.random() < 0.4:
        lip = 0.45 * lip + 0.55 * np.array((186, 50, 66))
    irises = IRIS_COLOURS[:3] if tone > 5 else IRIS_COLOURS
    return {
        "skin": _colour(skin),
        "hair": _colour(hair),
        "brow": _colour(brow),
        "lip": _colour(lip),
        "iris": _colour(np.array(irises[rng.integers(len(irises))]) * rng.uniform(0.9, 1.15)),
        "cloth": _colour(np.array(CLOTH_COLOURS[rng.integers(len(CLOTH_COLOURS))]) * rng.uniform(0.8, 1.15)),
        "glasses_colour": _colour(np.array(((34, 32, 34), (92, 56, 36), (70, 76, 92))[rng.integers(3)], np.float64)),
    }


def _style(rng: np.random.Generator, age: float, feminine: bool) -> dict[str, Any]:
    styles = LONG_STYLES if feminine else SHORT_STYLES
    weights = np.array([1.0] * len(styles))
    if not feminine:
        weights[styles.index("bald")] = 0.3 + 1.2 * age
    beards = np.array([0.5, 0.2, 0.12, 0.18]) if not feminine else np.array([1.0, 0.0, 0.0, 0.0])
    return {
        "hair_style": str(rng.choice(styles, p=weights / weights.sum())),
        "beard": str(rng.choice(BEARDS, p=beards)),
        "glasses": str(rng.choice(GLASSES, p=[0.7, 0.15, 0.15])),
    }


def _proportions(rng: np.random.Generator, age: float, feminine: bool) -> dict[str, Any]:
    face = rng.uniform(28.5, 32.0)
    eye_y = rng.uniform(41.5, 44.0)
    nose_y = eye_y + rng.uniform(14.0, 16.5)
    mouth_y = nose_y + rng.uniform(8.8, 10.4)
    values = {
        "face_width": face,
        "jaw_width": face * (rng.uniform(0.72, 0.8) if feminine else rng.uniform(0.77, 0.88)),
        "chin_width": face * (rng.uniform(0.28, 0.36) if feminine else rng.uniform(0.34, 0.46)),
        "chin_y": mouth_y + rng.uniform(14.5, 17.0),
        "top_y": rng.uniform(8.0, 11.0),
        "hairline_y": rng.uniform(18.0, 21.5),
        "eye_y": eye_y,
        "eye_dx": rng.uniform(13.2, 15.2),
        "eye_width": rng.uniform(6.4, 7.5),
        "eye_height": rng.uniform(3.4, 4.4),
        "eye_tilt": rng.uniform(-0.8, 1.2),
        "brow_gap": rng.uniform(8.6, 10.0),
        "brow_thickness": rng.uniform(1.0, 1.7) if feminine else rng.uniform(1.5, 2.4),
        "brow_arch": rng.uniform(0.6, 1.8),
        "brow_length": rng.uniform(13.0, 15.5),
        "nose_y": nose_y,
        "nose_width": rng.uniform(4.6, 6.8),
        "nose_strength": rng.uniform(0.75, 1.2),
        "mouth_y": mouth_y,
        "mouth_width": rng.uniform(10.0, 12.0),
        "upper_lip": rng.uniform(1.7, 2.9) * (1 - 0.25 * age),
        "lower_lip": rng.uniform(2.3, 3.7) * (1 - 0.2 * age),
        "mouth_rest": rng.uniform(-1.0, 1.2),
        "ear_size": rng.uniform(5.5, 7.5),
    }
    return {name: float(value) for name, value in values.items()}
