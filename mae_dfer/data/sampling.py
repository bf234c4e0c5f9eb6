"""Which frames of a video make a clip: pure functions of numbers, no file is touched here.

Letters: n frames in the video, T frames in a clip (``clip_len``), s frames between two clip frames
(``stride``). All functions return int64 arrays of indices in [0, n), never decreasing.

The rules are those of MAE-DFER (arXiv 2307.02227), which takes them from VideoMAE (arXiv 2203.12602), down to their
last index: ``tests/test_protocol.py`` compares them with numbers of the published code.
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


def pretrain_indices(num_frames: int, clip_len: int, stride: int, rng: np.random.Generator) -> Indices:
    """Pre-training: a uniformly random start in 0 … n − T·s, then T frames at the stride.

    A video of n < T·s frames starts at 0. Each step is taken only while it leads to a frame before the last one;
    then the frame reached is repeated: for n = 40, T = 16, s = 4 the indices are 0, 4, …, 36, 36, 36, ….

    Draws once, ``rng.integers(n − T·s + 1)``; nothing where the video is shorter than T·s.
    """
    _check(num_frames, clip_len, stride)
    window = clip_len * stride
    if num_frames >= window:
        start = int(rng.integers(num_frames - window + 1))
        return start + stride * np.arange(clip_len, dtype=np.int64)
    steps = max(num_frames - 2, 0) // stride  # the largest k with k·s < n − 1
    return stride * np.minimum(np.arange(clip_len, dtype=np.int64), steps)


def finetune_indices(num_frames: int, clip_len: int, stride: int, rng: np.random.Generator) -> Indices:
    """Fine-tuning: T truncated, evenly spaced indices over a random window of T·s frames.

    The spacing includes both ends of the window [a, a + T·s], and the end itself, which lies outside, becomes the
    window's last frame: for T = 16, s = 4, a = 0 the indices are 0, 4, 8, 12, 17, …, 59, 63. The published code draws
    the window's end from T·s … n − 1, so the last window that would fit is never drawn.

    A video of n ≤ T·s frames is spread in the same way over n // s indices, and its last frame fills the rest: for
    n = 40 the indices are 0, 4, 8, 13, 17, 22, 26, 31, 35, 39, 39, ….

    Draws once, ``rng.integers(n − T·s)``; nothing where the video has at most T·s frames.
    """
    _check(num_frames, clip_len, stride)
    window = clip_len * stride
    if num_frames > window:
        start = int(rng.integers(num_frames - window))
        return _spread(start, start + window, clip_len)
    spread = _spread(0, num_frames, num_frames // stride)
    return np.pad(spread, (0, clip_len - len(spread)), constant_values=num_frames - 1)


def _spread(start: int, end: int, count: int) -> Indices:
    """``count`` truncated, evenly spaced indices from ``start`` to ``end``, both included; ``end`` becomes end − 1."""
    return np.linspace(start, end, num=count).clip(start, end - 1).astype(np.int64)


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
    last = max(num_frames - (clip_len - 1) * stride - 1, 0)
    return [*range(0, last, hop), last]
