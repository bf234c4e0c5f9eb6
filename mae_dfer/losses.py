"""Targets and loss of pre-training, and the way back from predictions to pictures (paper, section 3.1).

Letters: B clips, M masked tokens of a clip, g frames of a tubelet, p side of a patch in pixels,
P = g·p·p·3 values of a patch in the order (frame, row, column, channel).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .errors import UserError
from .models.regions import check_mask, token_indices

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_STD_EPS = 1e-6


def reconstruction_targets(clip: Tensor, mask: Tensor, patch_size: int = 16, tubelet_size: int = 2) -> Tensor:
    """Normalised appearance and motion of the masked tokens.

    Pixels go back to [0, 1]. Per tubelet and colour channel, over its g·p·p pixels, the mean is subtracted
    and the unbiased standard deviation (+ 1e-6) divided out. The first p·p·3 values of a target are the
    tubelet's first frame (appearance); the rest are its further frames minus the first (motion).

    Args:
        clip: (B, 3, frames, height, width) floating point, ImageNet-normalised.
        mask: (B, tokens) bool in raster order, True = masked.

    Returns:
        (B, M, P) in the clip's dtype, the masked tokens in raster order.

    Raises:
        UserError: sizes that do not divide, a tubelet of one frame, a mask of another shape, or one that
            hides different numbers of tokens from clip to clip.
    """
    patches = _masked_patches(clip, mask, patch_size, tubelet_size)
    mean, std = _patch_statistics(patches)
    patches = (patches - mean) / std
    first, rest = patches[:, :, :1], patches[:, :, 1:]
    return torch.cat((first, rest - first), dim=2).flatten(2)


def reconstruction_loss_terms(pred: Tensor, target: Tensor, tubelet_size: int = 2) -> tuple[Tensor, Tensor]:
    """Mean squared errors of appearance and of motion, each 0-D, in the target's dtype.

    Args:
        pred, target: (B, M, P).

    Raises:
        UserError: shapes that differ, or P that does not split into ``tubelet_size`` frames.
    """
    if pred.shape != target.shape:
        raise UserError(f"prediction {tuple(pred.shape)} and target {tuple(target.shape)} differ in shape")
    if tubelet_size < 2 or target.shape[-1] % tubelet_size:
        raise UserError(f"{target.shape[-1]} values do not split into appearance and motion of {tubelet_size} frames")
    frame = target.shape[-1] // tubelet_size
    # Under autocast predictions are in half precision; the squares are summed in the target's.
    pred = pred.to(target.dtype)
    appearance = F.mse_loss(pred[..., :frame], target[..., :frame])
    return appearance, F.mse_loss(pred[..., frame:], target[..., frame:])


def reconstruction_loss(pred: Tensor, target: Tensor, appearance_weight: float = 0.5, tubelet_size: int = 2) -> Tensor:
    """λ · MSE(appearance) + (1 − λ) · MSE(motion), 0-D, of :func:`reconstruction_loss_terms`.

    For tubelets of two frames λ = 0.5 is half of appearance plus half of motion: the plain mean over both.
    """
    if not 0.0 <= appearance_weight <= 1.0:
        raise UserError(f"appearance_weight must be from 0 to 1, got {appearance_weight}")
    appearance, motion = reconstruction_loss_terms(pred, target, tubelet_size)
    return appearance_weight * appearance + (1.0 - appearance_weight) * motion


def reconstruct_frames(
    clip: Tensor, mask: Tensor, pred: Tensor, patch_size: int = 16, tubelet_size: int = 2
) -> dict[str, Tensor]:
    """Predictions as pictures.

    A model predicts each patch up to its mean and standard deviation; these are taken from the true patch, as
    is usual for pictures of masked auto-encoders. So a picture shows structure and motion that the model
    filled in, but not brightness and contrast, which it was given.

    Args:
        clip: (B, 3, frames, height, width) floating point, ImageNet-normalised.
        mask: (B, tokens) bool in raster order, True = masked.
        pred: (B, M, P).

    Returns:
        Four clips (B, 3, frames, height, width) in [0, 1]: ``input``; ``masked``, with masked patches grey
        (0.5); ``reconstruction``, with masked patches predicted; and ``motion``, the reconstruction minus the
        first frame of its tubelet, halved and around grey (0.5 is no motion).

    Raises:
        UserError: as for :func:`reconstruction_targets`, and a prediction of another shape.
    """
    true = _masked_patches(clip, mask, patch_size, tubelet_size)
    if pred.shape != (*true.shape[:2], true.shape[2:].numel()):
        raise UserError(
            f"prediction {tuple(pred.shape)} does not fit {true.shape[1]} masked patches of "
            f"{true.shape[2:].numel()} values"
        )
    mean, std = _patch_statistics(true)
    predicted = pred.to(true.dtype).reshape(true.shape)
    first = predicted[:, :, :1]
    predicted = torch.cat((first, first + predicted[:, :, 1:]), dim=2) * std + mean

    frames = _to_unit_range(clip)
    patches = _unfold(frames, patch_size, tubelet_size)
    shape = patches.shape
    patches = patches.flatten(1, 3)
    chosen = mask.to(clip.device).view(*mask.shape, 1, 1, 1, 1)
    filled = patches.masked_scatter(chosen, predicted)
    hidden = patches.masked_fill(chosen, 0.5)
    motion = 0.5 + 0.5 * (filled - filled[:, :, :1])
    pictures = {"masked": hidden, "reconstruction": filled, "motion": motion}
    return {"input": frames.clamp(0, 1)} | {
        name: _fold(value.view(shape)).clamp(0, 1) for name, value in pictures.items()
    }


def _to_unit_range(clip: Tensor) -> Tensor:
    mean, std = (clip.new_tensor(values).view(3, 1, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return clip * std + mean


def _unfold(frames: Tensor, patch: int, tubelet: int) -> Tensor:
    """(B, 3, frames, height, width) → (B, T, H, W, g, p, p, 3)."""
    batch, _, time, height, width = frames.shape
    split = frames.reshape(batch, 3, time // tubelet, tubelet, height // patch, patch, width // patch, patch)
    return split.permute(0, 2, 4, 6, 3, 5, 7, 1)


def _fold(patches: Tensor) -> Tensor:
    """The inverse of :func:`_unfold`."""
    batch, time, height, width, tubelet, patch, _, _ = patches.shape
    frames = patches.permute(0, 7, 1, 4, 2, 5, 3, 6)
    return frames.reshape(batch, 3, time * tubelet, height * patch, width * patch)


def _masked_patches(clip: Tensor, mask: Tensor, patch: int, tubelet: int) -> Tensor:
    """The masked tokens' pixels in [0, 1]: (B, M, g, p, p, 3)."""
    if clip.ndim != 5 or clip.shape[1] != 3:
        raise UserError(f"clips must be (batch, 3, frames, height, width), got {tuple(clip.shape)}")
    if tubelet < 2 or clip.shape[2] % tubelet or clip.shape[3] % patch or clip.shape[4] % patch:
        raise UserError(
            f"clips of {tuple(clip.shape[2:])} do not divide into tubelets of {tubelet} frames (at least "
            f"2, for motion) and patches of {patch} pixels"
        )
    patches = _unfold(_to_unit_range(clip), patch, tubelet)
    check_mask(mask, clip.shape[0], patches.shape[1:4].numel())
    masked = token_indices(mask).to(clip.device, non_blocking=True)
    height, width = patches.shape[2:4]
    clip_index = torch.arange(clip.shape[0], device=clip.device).unsqueeze(1)
    # Gathering from the permuted view copies the masked patches alone.
    return patches[clip_index, masked // (height * width), masked // width % height, masked % width]


def _patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation (+ 1e-6) of (B, M, g, p, p, 3) per tubelet and colour channel."""
    pixels = (2, 3, 4)
    mean = patches.mean(dim=pixels, keepdim=True)
    # torch.std is several times slower over these strided axes on a CPU.
    squares = (patches - mean).square().sum(dim=pixels, keepdim=True)
    return mean, (squares / (patches.shape[2:5].numel() - 1)).sqrt() + _STD_EPS
