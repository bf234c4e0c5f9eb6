"""Frames to a normalised clip: crop, augmentation and normalisation, the same for all frames of a clip.

Letters: T frames, H × W source pixels, h × w output pixels. Every transform takes frames as uint8
(T, 3, H, W) and a seed, and returns float32 (3, T, h, w). The same frames and seed give the same clip, and
the global generators of torch, NumPy and random are left as they were.

Crops are cut before they are resized, as uint8; floating point starts at normalisation.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import RandAugment, rand_augment_transform
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.random_erasing import RandomErasing
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from mae_dfer.errors import UserError

Size = tuple[int, int]
Box = tuple[int, int, int, int]  # top, left, height, width

_RAND_AUGMENT = re.compile(r"rand(-(m\d+|n\d{1,2}|(p|mstd)\d+(\.\d*)?|mmax\d+|inc[01]|t(weights|3aw|3a)))*", re.ASCII)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global CPU generators of random, NumPy and torch inside the block; put them back after it.

    timm and torchvision draw from these. CUDA generators are not touched.
    """
    states = random.getstate(), np.random.get_state(), torch.random.default_generator.get_state()
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.random.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.default_generator.set_state(states[2])


def to_channels_first(frames: np.ndarray) -> torch.Tensor:
    """uint8 (T, H, W, 3) array -> uint8 (T, 3, H, W) tensor on the same memory."""
    if not frames.flags.writeable:
        frames = frames.copy()
    return torch.from_numpy(frames).permute(0, 3, 1, 2)


_MEAN = torch.tensor(IMAGENET_DEFAULT_MEAN).view(3, 1, 1, 1)
_STD = torch.tensor(IMAGENET_DEFAULT_STD).view(3, 1, 1, 1)


def normalize(frames: torch.Tensor) -> torch.Tensor:
    """uint8 (T, 3, h, w) -> ImageNet-normalised float32 (3, T, h, w), contiguous."""
    clip = frames.permute(1, 0, 2, 3).to(torch.float32, memory_format=torch.contiguous_format)
    return clip.mul_(1 / (255 * _STD)).sub_(_MEAN / _STD)


def denormalize(clip: torch.Tensor) -> torch.Tensor:
    """Undo :func:`normalize`: float (3, T, h, w) -> uint8 (T, 3, h, w)."""
    pixels = (clip.float().cpu() * _STD + _MEAN) * 255
    return pixels.round_().clamp_(0, 255).to(torch.uint8).permute(1, 0, 2, 3)


def crop(frames: torch.Tensor, box: Box) -> torch.Tensor:
    """Cut (top, left, height, width) out of (T, 3, H, W). Raises UserError for a box outside the frames."""
    top, left, height, width = box
    if top < 0 or left < 0 or top + height > frames.shape[-2] or left + width > frames.shape[-1]:
        raise UserError(
            f"crop box (top {top}, left {left}, {height}×{width}) does not fit frames of "
            f"{frames.shape[-2]}×{frames.shape[-1]} pixels; set face_box to match the videos"
        )
    return frames[..., top : top + height, left : left + width]


def resize(frames: torch.Tensor, size: Size, *, exact: bool = False) -> torch.Tensor:
    """Antialiased bilinear resize of uint8 (T, 3, H, W) to size, whatever the aspect ratio.

    ``exact``: by Pillow, as the published code does. Torch's own kernel rounds its weights to 16 bits: a pixel in 25
    differs by one or two levels, in a fifth of the time.
    """
    if tuple(frames.shape[-2:]) == tuple(size):
        return frames
    if not exact:
        return F.resize(frames, list(size), interpolation=v2.InterpolationMode.BILINEAR, antialias=True)
    images = [Image.fromarray(frame) for frame in frames.permute(0, 2, 3, 1).contiguous().numpy()]
    small = [image.resize(size[::-1], Image.Resampling.BILINEAR) for image in images]
    return to_channels_first(np.stack([np.asarray(image) for image in small]))


class PretrainTransform:
    """Pre-training: an optional fixed face box, a multi-scale crop, resize. No flip.

    Multi-scale crop (TSN, arXiv 1608.00859): height and width are each a scale times the short side, at most one step
    of the list apart. A side within 2 pixels of the output's becomes the output's, so that it is not resampled. The
    crop lies at one of 13 anchors, k · (room // 4) pixels from the top and left, with both k even or both odd.

    VoxCeleb2's 224 × 224 frames want ``face_box=(0, 32, 160, 160)``. ``exact`` resizes as the published code does: see
    :func:`resize`.
    """

    def __init__(
        self, size: Size, scales: tuple[float, ...], face_box: Box | None = None, *, exact: bool = False
    ) -> None:
        if not scales or not all(0 < s <= 1 for s in scales):
            raise UserError(f"crop scales must lie in (0, 1], got {scales}")
        if face_box is not None and (min(face_box) < 0 or min(face_box[2:]) < 1):
            raise UserError(f"face_box must be top, left, height and width of a box that is not empty, got {face_box}")
        self.size, self.scales, self.face_box, self._exact = size, scales, face_box, exact

    def __call__(self, frames: torch.Tensor, seed: int) -> torch.Tensor:
        if self.face_box is not None:
            frames = crop(frames, self.face_box)
        with seeded(seed):
            box = self.draw_box(*frames.shape[-2:])
        return normalize(resize(crop(frames, box), self.size, exact=self._exact))

    def draw_box(self, height: int, width: int) -> Box:
        """A crop of frames of this size. Draws twice from Python's ``random``, in the published order."""
        sides = [max(int(min(height, width) * scale), 1) for scale in self.scales]
        heights, widths = _snap(sides, self.size[0], height), _snap(sides, self.size[1], width)
        h, w = random.choice(
            [(h, w) for i, h in enumerate(heights) for j, w in enumerate(widths) if abs(i - j) <= 1]
        )
        row, column = random.choice(_ANCHORS)
        return row * ((height - h) // 4), column * ((width - w) // 4), h, w


# (row, column) on a grid of 5 × 5 points: those whose coordinates are both even or both odd.
_ANCHORS = [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2), (2, 0), (2, 4), (4, 2), (0, 2), (1, 1), (1, 3), (3, 1), (3, 3)]


def _snap(sides: list[int], to: int, limit: int) -> list[int]:
    return [to if abs(side - to) <= 2 and to <= limit else side for side in sides]


class FinetuneTransform:
    """Fine-tuning: RandAugment, random resized crop, horizontal flip, random erasing.

    The crop is drawn on frames as if they were resized to the output size first (as they are for test), so
    non-square videos are squeezed in the same way in both. With RandAugment they are resized first, which
    bounds its cost; without it the crop is cut from the source pixels, but with ``exact`` frames are resized first,
    and by :func:`resize` as the published code does.

    ``rand_augment`` is timm's string ("" for none); all its draws are shared by the frames of a clip.
    Erasing fills one box per clip with noise drawn for each pixel and frame.
    """

    def __init__(
        self,
        size: Size,
        *,
        rand_augment: str,
        crop_area: tuple[float, float],
        crop_aspect: tuple[float, float],
        flip_prob: float,
        erase_prob: float,
        exact: bool = False,
    ) -> None:
        for name, prob in (("flip_prob", flip_prob), ("erase_prob", erase_prob)):
            if not 0 <= prob <= 1:
                raise UserError(f"{name} is a probability between 0 and 1, got {prob}")
        if not 0 < crop_area[0] <= crop_area[1] <= 1:
            raise UserError(f"crop_area must be two ascending fractions in (0, 1], got {crop_area}")
        if not 0 < crop_aspect[0] <= crop_aspect[1]:
            raise UserError(f"crop_aspect must be two ascending positive ratios, got {crop_aspect}")
        self.size, self.flip_prob, self._exact = size, flip_prob, exact
        self._rand_augment = _rand_augment(rand_augment, size)
        self._crop = v2.RandomResizedCrop(size, scale=crop_area, ratio=crop_aspect)
        self._canvas = torch.empty((3, *size), device="meta")
        self._erase = RandomErasing(erase_prob, mode="pixel", device="cpu") if erase_prob else None

    def __call__(self, frames: torch.Tensor, seed: int) -> torch.Tensor:
        with seeded(seed):
            if self._rand_augment is not None or self._exact:
                frames = resize(frames, self.size, exact=self._exact)
            if self._rand_augment is not None:
                frames = self.augment(frames)
            frames = resize(crop(frames, self._draw_box(frames)), self.size, exact=self._exact)
            if torch.rand(()) < self.flip_prob:
                frames = frames.flip(-1)
            clip = normalize(frames)
            if self._erase is not None:
                # One image of 3·T channels: timm then draws a single box.
                self._erase(clip.view(-1, *self.size))
        return clip

    def _draw_box(self, frames: torch.Tensor) -> Box:
        drawn = self._crop.make_params([self._canvas])
        y, x = frames.shape[-2] / self.size[0], frames.shape[-1] / self.size[1]
        top, left = int(drawn["top"] * y), int(drawn["left"] * x)
        height = min(max(round(drawn["height"] * y), 1), frames.shape[-2] - top)
        width = min(max(round(drawn["width"] * x), 1), frames.shape[-1] - left)
        return top, left, height, width

    def augment(self, frames: torch.Tensor) -> torch.Tensor:
        """RandAugment of uint8 (T, 3, h, w), drawn from the global generators of ``random`` and NumPy.

        The generators are rewound before each frame, so that all frames share their draws.
        """
        assert self._rand_augment is not None
        start = random.getstate(), np.random.get_state()
        out = []
        for frame in frames.permute(0, 2, 3, 1).contiguous().numpy():
            random.setstate(start[0])
            np.random.set_state(start[1])
            out.append(np.asarray(self._rand_augment(Image.fromarray(frame))))
        return to_channels_first(np.stack(out))


def _rand_augment(text: str, size: Size) -> RandAugment | None:
    if not text:
        return None
    if not _RAND_AUGMENT.fullmatch(text):
        raise UserError(
            f"rand_augment {text!r} is not understood; write for example 'rand-m7-n4-mstd0.5-inc1', "
            "or '' for none"
        )
    hparams = {
        "translate_const": int(min(size) * 0.45),
        "img_mean": (128, 128, 128),  # fills what a shift or a rotation uncovers
        "interpolation": Image.Resampling.BICUBIC,
    }
    return rand_augment_transform(text, hparams)


class TestTransform:
    """Test: the whole frame resized to the output size, as the published code does it. The seed is not used."""

    __test__ = False  # pytest would take the name for a test

    def __init__(self, size: Size) -> None:
        self.size = size

    def __call__(self, frames: torch.Tensor, seed: int = 0) -> torch.Tensor:
        return normalize(resize(frames, self.size, exact=True))
