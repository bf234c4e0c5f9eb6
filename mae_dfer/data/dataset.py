"""Clips as a PyTorch dataset, in which every random choice is a function of (seed, epoch, index).

Letters: B batch, T frames, h × w pixels. Two runs with the same seed see the same clips, whatever the number
of workers, and a run resumed in the middle of an epoch sees the clips it would have seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from mae_dfer.data import masks, sampling, transforms
from mae_dfer.data.lists import Sample
from mae_dfer.data.video import VideoError, open_video
from mae_dfer.errors import UserError

Mode = Literal["pretrain", "finetune", "test"]
MODES = ("pretrain", "finetune", "test")
MASKS = ("region_window_tube", "tube", "random", "none")


@dataclass(frozen=True)
class ClipConfig:
    """How a video becomes a clip. Defaults are the recipe of MAE-DFER (arXiv 2307.02227).

    Sampling: ``num_frames`` frames ``stride`` apart, ``img_size`` (height, width) or one number.
    Masks (pre-training): ``mask`` kind, ``mask_ratio``, ``mask_window`` and ``mask_symmetry`` as in
    :mod:`mae_dfer.data.masks`; ``grid`` is the model's token grid (t, h, w).
    Pre-training: ``crop_scales`` and ``face_box`` (top, left, height, width) as in ``PretrainTransform``.
    Fine-tuning: ``rand_augment``, ``crop_area``, ``crop_aspect``, ``flip_prob``, ``erase_prob`` as in
    ``FinetuneTransform``.
    Test: ``num_segments`` clips along the video. ``num_crops`` belongs to the published protocol, whose crops
    coincide because frames are resized to the square; identical views are not run twice, so any value gives
    ``num_views == num_segments``.
    ``protocol``: "published" resizes and augments frames as the published code does, to the last pixel; "corrected"
    resizes training frames five times as fast, and differs by a grey level or two in one pixel of 25. Published, too,
    is to take all pixels for square; else frames are shown with their aspect ratio.
    ``video_decoder``: the ``decoder`` of :func:`open_video`.
    ``cache_gb``: keep decoded frames of whole videos in memory, up to this much in each decoding process, so that
    a small set is decoded once; 0 decodes every time. What is drawn does not depend on it.
    """

    num_frames: int = 16
    stride: int = 4
    img_size: tuple[int, int] | int = (160, 160)
    mask: str = "region_window_tube"
    mask_ratio: float = 0.9
    mask_window: tuple[int, int] = (5, 10)
    mask_symmetry: str = "none"
    grid: tuple[int, int, int] = (8, 10, 10)
    crop_scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
    face_box: tuple[int, int, int, int] | None = None
    rand_augment: str = "rand-m7-n4-mstd0.5-inc1"
    crop_area: tuple[float, float] = (0.08, 1.0)
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip_prob: float = 0.5
    erase_prob: float = 0.25
    num_segments: int = 2
    num_crops: int = 2
    cache_gb: float = 0.0
    protocol: str = "corrected"
    video_decoder: str = "pyav"

    def __post_init__(self) -> None:
        size = (self.img_size, self.img_size) if isinstance(self.img_size, int) else tuple(self.img_size)
        object.__setattr__(self, "img_size", size)
        for name in ("num_frames", "stride", "num_segments", "num_crops"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if len(size) != 2 or min(size) < 1:
            raise UserError(f"img_size must be a positive number or (height, width), got {self.img_size}")
        if self.mask not in MASKS:
            raise UserError(f"mask must be one of {', '.join(MASKS)}; got {self.mask!r}")

    @property
    def size(self) -> tuple[int, int]:
        """Output (height, width)."""
        assert isinstance(self.img_size, tuple)
        return self.img_size

    @property
    def num_views(self) -> int:
        """Different views of one video at test time."""
        return self.num_segments

    def draw_mask(self, generator: masks.Rng) -> torch.Tensor | None:
        """A mask, bool (tokens,), True = masked; None for ``mask="none"``. Raises UserError if impossible."""
        if self.mask == "none":
            return None
        if self.mask == "random":
            return masks.random_mask(self.grid, self.mask_ratio, generator)
        if self.mask == "tube":
            return masks.tube_mask(self.grid, self.mask_ratio, generator)
        return masks.region_window_tube_mask(
            self.grid, self.mask_ratio, self.mask_window, generator, symmetry=self.mask_symmetry
        )

    def transform(self, mode: Mode) -> Any:
        """The frame transform of a mode: (uint8 (T, 3, H, W), seed) -> float32 (3, T, h, w)."""
        exact = self.protocol == "published"
        if mode == "pretrain":
            return transforms.PretrainTransform(self.size, self.crop_scales, self.face_box, exact=exact)
        if mode == "finetune":
            return transforms.FinetuneTransform(
                self.size,
                rand_augment=self.rand_augment,
                crop_area=self.crop_area,
                crop_aspect=self.crop_aspect,
                flip_prob=self.flip_prob,
                erase_prob=self.erase_prob,
                exact=exact,
            )
        return transforms.TestTransform(self.size)


@dataclass(frozen=True)
class Failure:
    """A clip that could not be made: which file, why, and which item of the dataset it was."""

    path: str
    reason: str
    index: int = -1
    view: int = 0


class ClipDataset(Dataset[Any]):
    """Clips of listed videos, asked for by (epoch, item).

    Modes "pretrain" and "finetune" have one item per sample; "test" has ``config.num_views`` items per
    sample, all views of a sample next to each other.

    An item is a dict with
        clip    float32 (3, T, h, w), ImageNet-normalised
        label   int, -1 when the list gives none
        index   int, position of the sample in ``samples``
        view    int, 0 but in test mode
        mask    bool (tokens,), True = masked; in pretrain mode, unless ``config.mask`` is "none"
    or a :class:`Failure` for a file that cannot be read: one broken file does not end a run.

    Raises: UserError on creation for an empty list or impossible settings.
    """

    def __init__(self, samples: Sequence[Sample], config: ClipConfig, mode: Mode, seed: int = 0) -> None:
        if mode not in MODES:
            raise UserError(f"dataset mode must be one of {', '.join(MODES)}; got {mode!r}")
        if not samples:
            raise UserError("a dataset needs at least one sample")
        if seed < 0:
            raise UserError(f"the seed must be 0 or more, got {seed}")
        self.samples, self.config, self.mode, self.seed = list(samples), config, mode, seed
        self._transform = config.transform(mode)
        self._cache: dict[str, np.ndarray] = {}
        self._cache_left = int(config.cache_gb * 1e9)
        if mode == "pretrain":
            config.draw_mask(np.random.default_rng(0))  # an impossible mask is refused here, not in a worker

    @property
    def views(self) -> int:
        """Items per sample."""
        return self.config.num_views if self.mode == "test" else 1

    def __len__(self) -> int:
        return len(self.samples) * self.views

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any] | Failure:
        epoch, item = key
        if not 0 <= item < len(self):
            raise IndexError(f"item {item} of {len(self)}")
        index, view = divmod(item, self.views)
        sample = self.samples[index]
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, epoch, item]))
        try:
            frames = self._frames(sample.path, view, rng)
            clip = self._transform(transforms.to_channels_first(frames), int(rng.integers(2**32)))
        except VideoError as error:
            return Failure(error.path, error.reason, index, view)
        except UserError as error:
            return Failure(sample.path, str(error), index, view)
        out = {"clip": clip, "label": sample.label, "index": index, "view": view}
        if self.mode == "pretrain" and (mask := self.config.draw_mask(rng)) is not None:
            out["mask"] = mask
        return out

    def _frames(self, path: str, view: int, rng: np.random.Generator) -> np.ndarray:
        if path in self._cache:
            frames = self._cache[path]
            return frames[self._indices(len(frames), view, rng)]
        config = self.config
        square = config.protocol == "published"
        with open_video(path, square_pixels=square, decoder=config.video_decoder) as video:
            indices = self._indices(video.num_frames, view, rng)
            # A face box is in the pixels of the frames. Else images of different sizes are resized once.
            size = None if self.mode == "pretrain" and config.face_box else config.size
            if self._cache_left <= 0:
                return video.get(indices, size)
            frames = video.get(range(video.num_frames), size)
            if video.sizes_differ:  # which a clip's own frames may not
                return video.get(indices, size)
        if frames.nbytes <= self._cache_left:
            self._cache[path] = frames
        self._cache_left -= frames.nbytes
        return frames[indices]

    def _indices(self, num_frames: int, view: int, rng: np.random.Generator) -> np.ndarray:
        config = self.config
        args = num_frames, config.num_frames, config.stride
        if self.mode == "pretrain":
            return sampling.pretrain_indices(*args, rng)
        if self.mode == "finetune":
            return sampling.finetune_indices(*args, rng)
        return sampling.test_indices(*args, config.num_segments)[view]


def collate(items: Sequence[dict[str, Any] | Failure]) -> dict[str, Any]:
    """Stack the items that could be made; list the others under "failures".

    Returns a dict with "size" (how many were stacked), "failures" (list of Failure) and, unless size is 0,
    "clip" (B, 3, T, h, w), "label", "index", "view" (int64 (B,)) and "mask" (B, tokens) where items have it.
    """
    good = [item for item in items if not isinstance(item, Failure)]
    batch: dict[str, Any] = {"size": len(good), "failures": [i for i in items if isinstance(i, Failure)]}
    if good:
        for name in ("clip", "mask"):
            if name in good[0]:
                batch[name] = torch.stack([item[name] for item in good])
        for name in ("label", "index", "view"):
            batch[name] = torch.tensor([item[name] for item in good], dtype=torch.int64)
    return batch
