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

_RAND_AUGMENT = re.compile(r"rand(-(m\d+|n\d+|p[\d.]+|mstd[\d.]+|mmax\d+|inc[01]|t(weights|3aw|3a)))*")


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


def resize(frames: torch.Tensor, size: Size) -> torch.Tensor:
    """Antialiased bilinear resize of uint8 (T, 3, H, W) to size, whatever the aspect ratio."""
    if tuple(frames.shape[-2:]) == tuple(size):
        return frames
    return F.resize(frames, list(size), interpolation=v2.InterpolationMode.BILINEAR, antialias=True)


class PretrainTransform:
    """Pre-training: an optional fixed face box, a multi-scale crop, resize. No flip.

    Multi-scale crop (TSN, arXiv 1608.00859): height and width are each a scale times the short side, at most
    one step of the list apart; the crop lies at one of 13 anchors, the points of a 5 × 5 grid over the free
    room whose row and column are both even or both odd.

    VoxCeleb2's 224 × 224 frames want ``face_box=(0, 32, 160, 160)``.
    """

    def __init__(self, size: Size, scales: tuple[float, ...], face_box: Box | None = None) -> None:
        if not scales or not all(0 < s <= 1 for s in scales):
            raise UserError(f"crop scales must lie in (0, 1], got {scales}")
        self.size, self.face_box = size, face_box
        self._pairs = [(a, b) for i, a in enumerate(scales) for j, b in enumerate(scales) if abs(i - j) <= 1]
        self._anchors = [(i, j) for i in range(5) for j in range(5) if i % 2 == j % 2]

    def __call__(self, frames: torch.Tensor, seed: int) -> torch.Tensor:
        if self.face_box is not None:
            frames = crop(frames, self.face_box)
        with seeded(seed):
            pair = self._pairs[int(torch.randint(len(self._pairs), ()))]
            anchor = self._anchors[int(torch.randint(len(self._anchors), ()))]
        height, width = frames.shape[-2:]
        h, w = (max(int(min(height, width) * scale), 1) for scale in pair)
        box = ((height - h) * anchor[0] // 4, (width - w) * anchor[1] // 4, h, w)
        return normalize(resize(crop(frames, box), self.size))


class FinetuneTransform:
    """Fine-tuning: RandAugment, random resized crop, horizontal flip, random erasing.

    The crop is drawn on frames as if they were resized to the output size first (as they are for test), so
    non-square videos are squeezed in the same way in both. With RandAugment they are resized first, which
    bounds its cost; without it the crop is cut from the source pixels.

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
    ) -> None:
        for name, prob in (("flip_prob", flip_prob), ("erase_prob", erase_prob)):
            if not 0 <= prob <= 1:
                raise UserError(f"{name} is a probability between 0 and 1, got {prob}")
        if not 0 < crop_area[0] <= crop_area[1] <= 1:
            raise UserError(f"crop_area must be two ascending fractions in (0, 1], got {crop_area}")
        if not 0 < crop_aspect[0] <= crop_aspect[1]:
            raise UserError(f"crop_aspect must be two ascending positive ratios, got {crop_aspect}")
        self.size, self.flip_prob = size, flip_prob
        self._rand_augment = _rand_augment(rand_augment, size)
        self._crop = v2.RandomResizedCrop(size, scale=crop_area, ratio=crop_aspect)
        self._canvas = torch.empty((3, *size), device="meta")
        self._erase = RandomErasing(erase_prob, mode="pixel", device="cpu") if erase_prob else None

    def __call__(self, frames: torch.Tensor, seed: int) -> torch.Tensor:
        with seeded(seed):
            if self._rand_augment is not None:
                frames = self._augment(resize(frames, self.size))
            frames = resize(crop(frames, self._draw_box(frames)), self.size)
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

    def _augment(self, frames: torch.Tensor) -> torch.Tensor:
        """RandAugment; the generators are rewound before each frame, so that all frames share their draws."""
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
    grey = tuple(round(255 * m) for m in IMAGENET_DEFAULT_MEAN)
    hparams = {
        "translate_const": int(min(size) * 0.45),
        "img_mean": grey,
        "interpolation": Image.Resampling.BICUBIC,
    }
    return rand_augment_transform(text, hparams)


class TestTransform:
    """Test: the whole frame resized to the output size. The seed is not used."""

    __test__ = False  # pytest would take the name for a test

    def __init__(self, size: Size) -> None:
        self.size = size

    def __call__(self, frames: torch.Tensor, seed: int = 0) -> torch.Tensor:
        return normalize(resize(frames, self.size))
