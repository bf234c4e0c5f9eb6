"""One face, one pose → one frame.

The head is painted upright in its own picture, in flat colours with premultiplied alpha at twice the
size; shrunk; shaded by maps of the light and by the blurred creases of the pose; then turned and moved onto the
background.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from .expression import FRAMES, NEUTRAL_POSE, Pose
from .hair import hair
from .identity import Identity
from .scene import NOISE_SIGMA, SIZE, Scene
from .shading import MARGIN, SIDE, feature_shading, head_shading
from .shapes import CENTRE_X, Eye, Mouth, brow, curve, eye, face_outline, folds, mouth, nose_wings, nostrils

SCALE = 2  # supersampling
_SHIFT = 4  # OpenCV's fixed-point coordinates: 1/16 pixel

Paint = tuple[float, ...]


def _fixed(points: np.ndarray, scale: int) -> np.ndarray:
    return np.rint((points + MARGIN) * (scale << _SHIFT)).astype(np.int32)


def _fill(picture: np.ndarray, points: np.ndarray, paint: Paint | float, scale: int = SCALE) -> None:
    cv2.fillPoly(picture, [_fixed(points, scale)], paint, cv2.LINE_AA, _SHIFT)


def _line(picture: np.ndarray, points: np.ndarray, paint: Paint | float, width: float, scale: int = SCALE) -> None:
    """An open stroke; OpenCV knows whole widths only, so anything finer than the grid comes from ``scale``."""
    thickness = max(1, round(width * scale))
    cv2.polylines(picture, [_fixed(points, scale)], False, paint, thickness, cv2.LINE_AA, _SHIFT)


def _disc(picture: np.ndarray, centre: tuple[float, float], radius: float, paint: Paint) -> None:
    x, y = _fixed(np.array(centre), SCALE).tolist()
    cv2.circle(picture, (x, y), round(radius * (SCALE << _SHIFT)), paint, -1, cv2.LINE_AA, _SHIFT)


def _solid(colour: np.ndarray | tuple[float, ...]) -> Paint:
    red, green, blue = np.clip(colour, 0, 255).tolist()
    return (red, green, blue, 255.0)


class Palette(NamedTuple):
    """The opaque paints of one identity."""

    skin: Paint
    under_chin: Paint
    nostril: Paint
    brow: Paint
    lash: Paint
    lid_fold: Paint
    lower_lid: Paint
    eye_white: Paint
    eye_shadow: Paint
    iris_rim: Paint
    iris: Paint
    pupil: Paint
    glint: Paint
    upper_lip: Paint
    lower_lip: Paint
    seam: Paint
    mouth_hole: Paint
    teeth: Paint
    tongue: Paint
    glasses: Paint


def _palette(who: Identity) -> Palette:
    skin, lip, iris = np.array(who.skin), np.array(who.lip), np.array(who.iris)
    return Palette(
        skin=_solid(skin),
        under_chin=_solid(skin * 0.58),
        nostril=_solid(skin * (0.42, 0.32, 0.3)),
        brow=_solid(who.brow),
        lash=_solid(skin * 0.18),
        lid_fold=_solid(skin * (0.78, 0.7, 0.68)),
        lower_lid=_solid(skin * (0.72, 0.6, 0.58)),
        eye_white=_solid((240, 236, 232)),
        eye_shadow=_solid((176, 168, 164)),
        iris_rim=_solid(iris * 0.6),
        iris=_solid(iris),
        pupil=_solid((18, 15, 15)),
        glint=_solid((250, 250, 250)),
        upper_lip=_solid(lip * 0.88),
        lower_lip=_solid(lip * 1.07),
        seam=_solid(lip * 0.45),
        mouth_hole=_solid((66, 22, 24)),
        teeth=_solid((240, 234, 224)),
        tongue=_solid((186, 92, 92)),
        glasses=_solid(who.glasses_colour),
    )


def _four_channels(colour: np.ndarray) -> np.ndarray:
    """Adds a channel of ones: what multiplies the colours leaves alpha alone."""
    return np.dstack([colour, np.ones(colour.shape[:2], np.float32)])


class FacePainter:
    """Paints one identity in one scene; ``frame`` is a pure function of its arguments."""

    def __init__(self, who: Identity, scene: Scene, identity_seed: int) -> None:
        self.who, self.scene, self._paint = who, scene, _palette(who)
        looks = np.random.default_rng([identity_seed, 1])
        self._hair = hair(who, looks)
        head_light = head_shading(who, scene.light)
        self._feature_light = _four_channels(feature_shading(who, scene.light, looks))
        self._back = self._paint_back()
        self._hair_layer, keep = self._paint_front_hair(head_light, looks)
        self._light = _four_channels(head_light) * keep
        beard = np.array(who.skin) + (0.6 if who.beard == "stubble" else 0.85) * (np.array(who.hair) - who.skin)
        self._beard_layer = np.append(beard, 255.0).astype(np.float32) * self._light
        noise = np.random.default_rng(scene.noise_seed)
        self._noise = noise.normal(0, NOISE_SIGMA, (SIZE + 32, SIZE + 32)).astype(np.float32)
        self._noise_corners = noise.integers(0, 33, (FRAMES, 2))

    # -- painted once per clip ---------------------------------------------------------------------------------

    def _paint_back(self) -> np.ndarray:
        """Hair behind the face, neck, clothes and ears: uint8 (SCALE * SIDE, SCALE * SIDE, 4)."""
        who = self.who
        picture = np.zeros((SCALE * SIDE, SCALE * SIDE, 4), np.uint8)
        behind = _solid(np.array(self._hair_colour()) * 0.78)
        for polygon in self._hair.behind:
            _fill(picture, polygon, behind)
        neck = who.jaw_width * 0.74
        y = who.mouth_y
        column = np.array([(-neck, y), (neck, y), (neck * 1.1, 110), (-neck * 1.1, 110)])
        if who.hair_style != "scarf":
            _fill(picture, column + (CENTRE_X, 0), _solid(np.array(who.skin) * 0.72))
        shoulders = [(-46, 112), (-44, who.chin_y + 15), (-neck - 2, who.chin_y + 7.5), (0, who.chin_y + 13)]
        shoulders += [(-x, h) for x, h in shoulders[2::-1]]
        cloth = who.cloth if who.hair_style != "scarf" else tuple(0.8 * np.array(who.cloth))
        _fill(picture, curve(shoulders, 4) + (CENTRE_X, 0), _solid(cloth))
        for side in (-1, 1):
            centre = np.array((CENTRE_X + side * (who.face_width + 0.8), who.eye_y + 5.0))
            angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
            oval = np.stack([0.52 * who.ear_size * np.cos(angles), who.ear_size * np.sin(angles)], 1)
            _fill(picture, centre + oval, _solid(np.array(who.skin) * 0.93))
            _fill(picture, centre + 0.55 * oval, _solid(np.array(who.skin) * (0.8, 0.72, 0.7)))
        return picture

    def _hair_colour(self) -> tuple[float, ...]:
        return self.who.cloth if self.who.hair_style == "scarf" else self.who.hair

    def _paint_front_hair(self, head_light: np.ndarray, looks: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """What to add (SIDE, SIDE, 4) and what of the skin to keep (SIDE, SIDE, 1)."""
        mask = np.zeros((SCALE * SIDE, SCALE * SIDE), np.uint8)
        for polygon in self._hair.front:
            _fill(mask, polygon, 255.0)
        alpha = cv2.resize(mask, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)[..., None] / 255
        alpha = alpha * self._hair.opacity
        sigma = (1.0, 6.0) if self.who.hair_style != "scarf" else (5.0, 8.0)
        grain = looks.normal(0, 1, (SIDE, SIDE)).astype(np.float32)
        strands = cv2.GaussianBlur(grain, (0, 0), sigmaX=sigma[0], sigmaY=sigma[1])
        y = np.arange(SIDE, dtype=np.float32)[:, None] - MARGIN
        crown = 0.16 * np.exp(-0.5 * ((y - self.who.top_y - 4.0) / 5.0) ** 2)
        colour = np.array(self._hair_colour(), np.float32) * (1.0 + 0.09 * strands / strands.std() + crown)[..., None]
        return np.concatenate([colour * alpha * head_light, 255.0 * alpha], 2).astype(np.float32), 1.0 - alpha

    # -- painted in each frame ---------------------------------------------------------------------------------

    def frame(self, pose: Pose, index: int) -> np.ndarray:
        """uint8 RGB (SIZE, SIZE, 3): the face in ``pose`` where the head is in frame ``index``."""
        turn = self.scene.motion.turn[index]
        picture, lips = self._paint_face(pose, turn)
        head = cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
        head *= self._light
        slide = np.array([[1, 0, turn[0]], [0, 1, turn[1]]], np.float32)
        head *= cv2.warpAffine(self._feature_light, slide, (SIDE, SIDE), borderMode=cv2.BORDER_REPLICATE)
        head *= self._creases(pose, lips, turn)
        if self.who.beard != "none":
            self._grow_beard(head, pose, lips, turn)
        head += self._hair_layer
        return self._photograph(head, index)

    def _paint_face(self, pose: Pose, turn: np.ndarray) -> tuple[np.ndarray, Mouth]:
        """Flat colours (SCALE * SIDE, SCALE * SIDE, 4), and the mouth as drawn (before the turn)."""
        who, paint, picture = self.who, self._paint, self._back.copy()
        outline = face_outline(who, pose)
        shadow = outline + (0.0, 1.6)
        shadow = shadow[shadow[:, 1] > who.mouth_y]
        _fill(picture, shadow, paint.under_chin)
        _fill(picture, outline + 0.15 * turn, paint.skin)
        gains = self.scene.asymmetry
        for side, gain in zip((-1, 1), gains, strict=True):
            self._paint_eye(picture, eye(who, pose, side, gain), turn)
        lips = mouth(who, pose, gains)
        self._paint_mouth(picture, lips, pose, 1.1 * turn)
        for nostril in nostrils(who, pose):
            _fill(picture, nostril + 1.5 * turn, paint.nostril)
        for side, gain in zip((-1, 1), gains, strict=True):
            _fill(picture, brow(who, pose, side, gain) + turn, paint.brow)
        if who.glasses != "none":
            self._paint_glasses(picture, turn)
        return picture, lips

    def _paint_eye(self, picture: np.ndarray, shape: Eye, turn: np.ndarray) -> None:
        """The ball is painted in a window of its own and let through where the lids are open."""
        who, paint = self.who, self._paint
        low = _fixed(shape.upper.min(0) + turn - 4, SCALE) >> _SHIFT
        high = _fixed(np.array((shape.upper[:, 0].max(), who.eye_y)) + turn + (4, 9), SCALE) >> _SHIFT
        window = np.s_[low[1] : high[1], low[0] : high[0]]
        ball = picture[window].copy()
        origin = turn - low / SCALE
        _fill(ball, np.concatenate([shape.opening, shape.opening[:1]]) + origin, paint.eye_white)
        centre = (shape.iris[0] + origin[0], shape.iris[1] + origin[1])
        _disc(ball, centre, shape.iris_radius, paint.iris_rim)
        _disc(ball, centre, 0.82 * shape.iris_radius, paint.iris)
        _disc(ball, centre, 0.46 * shape.iris_radius, paint.pupil)
        _disc(ball, (centre[0] - 1.1, centre[1] - 1.2), 0.75, paint.glint)
        _line(ball, shape.upper + origin + (0, 0.9), paint.eye_shadow, 0.8)
        mask = np.zeros(ball.shape[:2], np.uint8)
        _fill(mask, shape.opening + origin, 255.0)
        through = mask[..., None].astype(np.float32) / 255
        under = picture[window]
        under += np.rint((ball.astype(np.float32) - under) * through).astype(np.int16).astype(np.uint8)
        _line(picture, shape.crease + turn, paint.lid_fold, 0.5)
        _line(picture, shape.lower + turn, paint.lower_lid, 0.5)
        _line(picture, shape.upper + turn, paint.lash, 1.1)

    def _paint_mouth(self, picture: np.ndarray, lips: Mouth, pose: Pose, turn: np.ndarray) -> None:
        paint = self._paint
        if lips.gap > 0.5:
            _fill(picture, lips.inside + turn, paint.mouth_hole)
            self._paint_inside(picture, lips, pose, turn)
        _fill(picture, lips.lower_lip + turn, paint.lower_lip)
        _fill(picture, lips.upper_lip + turn, paint.upper_lip)
        if lips.gap < 1.5:
            _line(picture, lips.seam + turn, paint.seam, 0.8)

    def _paint_inside(self, picture: np.ndarray, lips: Mouth, pose: Pose, turn: np.ndarray) -> None:
        """Teeth along the upper lip and a tongue, both inside the opening."""
        along = np.linspace(-1.0, 1.0, len(lips.upper_edge))
        height = min(3.4, 0.72 * lips.gap) * (1.0 - along**2) ** 0.4
        reach = 0.84 if pose.jaw > 0.4 else 0.93
        edge = lips.upper_edge.copy()
        edge[:, 0] = CENTRE_X + reach * (edge[:, 0] - CENTRE_X)
        bottom = np.minimum(edge[:, 1] + height, lips.inside[len(along) :][::-1, 1])
        teeth = np.concatenate([edge, np.stack([edge[:, 0], bottom], 1)[::-1]])
        _fill(picture, teeth + turn, self._paint.teeth)
        if lips.gap > 5.0:
            floor = lips.inside[len(along) :][::-1]
            tongue = floor * (0.72, 1.0) + (0.28 * CENTRE_X, 0.0)
            back = tongue - (0.0, 1.0) * (0.42 * lips.gap * (1 - along**2))[:, None]
            _fill(picture, np.concatenate([tongue, back[::-1]]) + turn, self._paint.tongue)

    def _paint_glasses(self, picture: np.ndarray, turn: np.ndarray) -> None:
        who, paint = self.who, self._paint.glasses
        shift = 1.2 * turn
        angles = np.linspace(0, 2 * np.pi, 29)
        power = 1.0 if who.glasses == "round" else 0.55
        rim = np.stack([np.cos(angles), np.sin(angles)], 1)
        rim = np.sign(rim) * np.abs(rim) ** power * (9.8, 8.4 if who.glasses == "round" else 7.0)
        for side in (-1, 1):
            centre = np.array((CENTRE_X + side * (who.eye_dx + 0.6), who.eye_y + 0.8))
            _line(picture, rim + centre + shift, paint, 1.0)
            hinge = [
                (centre[0] + side * 9.8, centre[1] - 1.5),
                (CENTRE_X + side * (who.face_width + 0.5), centre[1] - 2.0),
            ]
            _line(picture, np.array(hinge) + shift * [[1.0], [0.4]], paint, 1.0)
        inner = who.eye_dx + 0.6 - 9.8
        bridge = [(CENTRE_X - inner, who.eye_y + 0.2), (CENTRE_X, who.eye_y - 1.2), (CENTRE_X + inner, who.eye_y + 0.2)]
        _line(picture, curve(bridge) + shift, paint, 1.0)

    def _creases(self, pose: Pose, lips: Mouth, turn: np.ndarray) -> np.ndarray:
        """Float32 (SIDE, SIDE, 4), at most 1 and 1 for alpha: folds of the skin and soft shadows, blurred."""
        who = self.who
        sharp, soft = np.zeros((2, SIDE, SIDE), np.uint8)
        for line, strength, width in folds(who, pose, lips.corners):
            if strength > 0.06:  # fainter ones drown in the blur
                _line(sharp, line + turn, 255.0 * min(strength, 1.0), width + 0.4, scale=1)
        for wing in nose_wings(who, pose):
            _line(sharp, wing + 1.4 * turn, 190.0, 1.0, scale=1)
        below = lips.lower_lip[len(lips.lower_lip) // 2 :][::-1][4:-4] + (0.0, 1.6)
        _line(soft, below + turn, 120.0 + 90.0 * min(pose.chin, 1.0), 2.0, scale=1)
        under_nose = np.array([(-0.8 * who.nose_width, 1.6), (0.8 * who.nose_width, 1.6)]) + (CENTRE_X, who.nose_y)
        _line(soft, under_nose + 1.3 * turn, 110.0, 2.0, scale=1)
        shadow = 0.62 * cv2.GaussianBlur(sharp, (0, 0), 0.75).astype(np.float32)
        shadow += 0.42 * cv2.GaussianBlur(soft, (0, 0), 1.8)
        light = np.maximum(1.0 - shadow * (1.0 / 255), 0.3)
        return cv2.merge([light, light, light, np.ones_like(light)])

    def _grow_beard(self, head: np.ndarray, pose: Pose, lips: Mouth, turn: np.ndarray) -> None:
        who = self.who
        mask = np.zeros((SIDE, SIDE), np.uint8)
        top = lips.corners.mean(0)[1] - who.upper_lip
        if who.beard in ("stubble", "full"):
            jaw = face_outline(who, pose)
            jaw = jaw[jaw[:, 1] > who.eye_y + 6.0]
            order = np.argsort(np.arctan2(jaw[:, 0] - CENTRE_X, jaw[:, 1] - who.eye_y))
            jaw = jaw[order]
            cheek_y = who.mouth_y - 2.5
            inner = [
                (-0.86, who.eye_y + 9),
                (-0.72, cheek_y - 1),
                (-0.42, cheek_y),
                (0.42, cheek_y),
                (0.72, cheek_y - 1),
            ]
            line = np.array([(CENTRE_X + x * who.face_width, y) for x, y in [*inner, (0.86, who.eye_y + 9)]])
            _fill(mask, np.concatenate([jaw, curve(line)[::-1]]) + turn, 255.0, scale=1)
        half = lips.corners[1, 0] - CENTRE_X + 1.5
        upper = [
            (-half, top + 4.0),
            (-0.7 * half, top - 0.6),
            (0.0, who.nose_y + 2.3),
            (0.7 * half, top - 0.6),
            (half, top + 4.0),
        ]
        _fill(
            mask, np.concatenate([curve(np.array(upper) + (CENTRE_X, 0)), lips.upper_edge[::-1]]) + turn, 255.0, scale=1
        )
        _fill(mask, lips.outer + 1.1 * turn, 0.0, scale=1)
        strength = {"stubble": 0.3, "moustache": 0.9, "full": 0.9}[who.beard] / 255
        cover = cv2.GaussianBlur(mask, (0, 0), 0.8).astype(np.float32) * strength
        head += (self._beard_layer - head) * cover[..., None]

    def _photograph(self, head: np.ndarray, index: int) -> np.ndarray:
        """Moves the head, puts it before the background, adds the camera's noise."""
        motion = self.scene.motion
        cos, sin = np.cos(motion.roll[index]) * motion.scale[index], np.sin(motion.roll[index]) * motion.scale[index]
        pivot = np.array((CENTRE_X + MARGIN, 60.0 + MARGIN))
        target = pivot - MARGIN + motion.shift[index]
        matrix = np.array([[cos, -sin, 0.0], [sin, cos, 0.0]])
        matrix[:, 2] = target - matrix[:, :2] @ pivot
        moved = cv2.warpAffine(head, matrix, (SIZE, SIZE), flags=cv2.INTER_CUBIC)
        alpha = cv2.extractChannel(moved, 3)
        x, y = self._noise_corners[index]
        noise = self._noise[y : y + SIZE, x : x + SIZE]
        behind = np.maximum(1.0 - alpha * (1.0 / 255), 0.0)
        picture = self.scene.background * behind[..., None]
        picture += moved[..., :3]
        picture += noise[..., None]
        return np.rint(picture).clip(0, 255).astype(np.uint8)


def portrait(who: Identity, scene: Scene, identity_seed: int) -> np.ndarray:
    """The identity at rest, uint8 RGB (SIZE, SIZE, 3)."""
    return FacePainter(who, scene, identity_seed).frame(NEUTRAL_POSE, 0)
