"""Which frames of a video make a clip: pure functions of numbers, no file is touched here.

Letters: n frames in the video, T frames in a clip (``clip_len``), s frames between two clip frames
(``stride``). All functions return int64 arrays of indices in [0, n), never decreasing.

The rules are those of MAE-DFER (arXiv 2307.02227), which takes them from VideoMAE (arXiv 2203.12602).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mae_dfer.errors import UserError

Indices = NDArray[np.int64]


def _check(num_frames: int, clip_len: int, stride: int) -> None:
    if num_frames < 1:
        raise UserError(f"a clip needs a video with at least 1 frame, this one has {num_frames}")
    if clip_len < 1 or stride < 1:
        raise UserError(f"clip length and stride must be 1 or more, got {clip_len} and {stride}")


def window_indices(num_frames: int, start: int, clip_len: int, stride: int) -> Indices:
    """The T frames start, start + s, …; past the end the last frame of the video is repeated."""
    _check(num_frames, clip_len, stride)
    return np.minimum(start + stride * np.arange(clip_len, dtype=np.int64), num_frames - 1)


def _span(clip_len: int, stride: int) -> int:
    return (clip_len - 1) * stride + 1


def pretrain_indices(num_frames: int, clip_len: int, stride: int, rng: np.random.Generator) -> Indices:
    """Pre-training: a uniformly random start, then T frames at the stride.

    The start is drawn among all those for which the whole clip lies inside the video; a video too short
    for one starts at 0 and repeats its last frame.
    """
    _check(num_frames, clip_len, stride)
    start = int(rng.integers(max(num_frames - _span(clip_len, stride), 0) + 1))
    return window_indices(num_frames, start, clip_len, stride)


def finetune_indices(num_frames: int, clip_len: int, stride: int, rng: np.random.Generator) -> Indices:
    """Fine-tuning: T truncated, evenly spaced indices over a random window of T·s frames.

    The spacing includes both ends of the window [a, a + T·s], and the end itself, which lies outside,
    is brought back to its last frame: for T = 16, s = 4, a = 0 the indices are 0, 4, 8, 12, 17, …, 59, 63.
    A video shorter than the window gives its frames at the stride, then its last frame repeated.
    """
    _check(num_frames, clip_len, stride)
    window = clip_len * stride
    if num_frames < window:
        return window_indices(num_frames, 0, clip_len, stride)
    start = int(rng.integers(num_frames - window + 1))
    spaced = np.linspace(start, start + window, num=clip_len)
    return np.minimum(spaced.astype(np.int64), start + window - 1)


def test_indices(num_frames: int, clip_len: int, stride: int, segments: int) -> list[Indices]:
    """Test: one clip per segment, spread evenly from the beginning to the end of the video.

    The video at the stride (0, s, 2s, …; padded with the last of these to T) has m frames; segment k
    takes T of them from int(k · (m − T) / (segments − 1)). One segment alone is the middle one.

    Returns a list of ``segments`` index arrays. They coincide when m = T.
    """
    _check(num_frames, clip_len, stride)
    if segments < 1:
        raise UserError(f"the number of test segments must be 1 or more, got {segments}")
    strided = np.arange(0, num_frames, stride, dtype=np.int64)
    spare = max(len(strided) - clip_len, 0)
    if len(strided) < clip_len:
        strided = np.pad(strided, (0, clip_len - len(strided)), mode="edge")
    starts = [spare // 2] if segments == 1 else [int(k * spare / (segments - 1)) for k in range(segments)]
    return [strided[start : start + clip_len] for start in starts]


test_indices.__test__ = False  # type: ignore[attr-defined]  # pytest would take the name for a test


def window_starts(num_frames: int, clip_len: int, stride: int, hop: int | None = None) -> list[int]:
    """First frames of sliding windows that together see the whole video, for prediction.

    A window spans (T − 1)·s + 1 frames. Windows start every ``hop`` frames (default: T·s, no overlap);
    the last one is moved back so that it ends on the last frame. A video shorter than one window gives [0].
    Use :func:`window_indices` to turn a start into frame indices.
    """
    _check(num_frames, clip_len, stride)
    hop = clip_len * stride if hop is None else hop
    if hop < 1:
        raise UserError(f"windows must move by 1 frame or more, got hop={hop}")
    last = max(num_frames - _span(clip_len, stride), 0)
    return [*range(0, last, hop), last]
