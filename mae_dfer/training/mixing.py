"""Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899) of whole batches, as the published fine-tuning draws them.

timm has both, but has changed how it rounds CutMix's boxes: with the same draws, nearly half of them differ at 160
pixels from those of the version that the paper was trained with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Box = tuple[int, int, int, int]  # top, bottom, left, right


@dataclass(frozen=True)
class Mix:
    """Mixes each clip of a batch with the one that mirrors its place: the first with the last, and so on.

    Where both are on, one coin per batch decides between them. All draws come from NumPy's global generator, in the
    published order.

    Attributes:
        num_classes: columns of the target.
        mixup_alpha, cutmix_alpha: parameters of the Beta distribution of a clip's share; 0 turns one off.
        label_smoothing: spread evenly over all classes.
    """

    num_classes: int
    mixup_alpha: float
    cutmix_alpha: float
    label_smoothing: float = 0.0

    def __call__(self, clip: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed clips, and the probabilities that the classifier is to predict.

        Args:
            clip: (B, …, height, width) floating point.
            label: (B,) class indices.

        Returns:
            The mixed clips, (B, …, height, width); and float32 (B, classes).
        """
        share, is_cutmix = self._draw_share()
        if not is_cutmix:
            mixed = clip * share + clip.flip(0) * (1.0 - share)
        else:
            height, width = clip.shape[-2:]
            top, bottom, left, right = draw_box(height, width, share)
            mixed = clip.clone()
            mixed[..., top:bottom, left:right] = clip.flip(0)[..., top:bottom, left:right]
            share = 1.0 - (bottom - top) * (right - left) / (height * width)
        target = F.one_hot(label, self.num_classes).to(torch.float32)
        target = target * (1.0 - self.label_smoothing) + self.label_smoothing / self.num_classes
        return mixed, target * share + target.flip(0) * (1.0 - share)

    def _draw_share(self) -> tuple[float, bool]:
        """How much stays of each clip, and whether the rest is cut (or blended)."""
        np.random.rand()  # against the probability of mixing at all, which is 1 in the recipe
        is_cutmix = self.cutmix_alpha > 0.0
        if is_cutmix and self.mixup_alpha > 0.0:
            is_cutmix = np.random.rand() < 0.5
        alpha = self.cutmix_alpha if is_cutmix else self.mixup_alpha
        return float(np.random.beta(alpha, alpha)), is_cutmix


def draw_box(height: int, width: int, share: float) -> Box:
    """A box around a random pixel that covers 1 − ``share`` of the frame, less what the frame's border cuts off.

    Both sides are rounded down to an even number of pixels, so a box of less than 2 pixels is empty.
    """
    half_height, half_width = (int(side * math.sqrt(1.0 - share)) // 2 for side in (height, width))
    row, column = int(np.random.randint(height)), int(np.random.randint(width))
    return (
        max(row - half_height, 0),
        min(row + half_height, height),
        max(column - half_width, 0),
        min(column + half_width, width),
    )
