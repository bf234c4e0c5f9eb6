"""Frames of a video file, a folder of frames, or a single image, by index.

What is behind :func:`open_video`: `video_file.py` and `decord_file.py` for video files, `images.py` for images.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mae_dfer.errors import UserError

Frames = NDArray[np.uint8]

DECODERS = ("pyav", "decord")


class VideoError(UserError):
    """A video that cannot be read; the message names the path and the reason."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(f"{os.fspath(path)}: {reason}")
        self.path = os.fspath(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type[VideoError], tuple[str, str]]:
        return type(self), (self.path, self.reason)


class VideoWarning(UserWarning):
    """A video that can be read, but not as its user may expect."""


class Video:
    """What :func:`open_video` returns; also a context manager.

    Attributes:
        num_frames: how many frames are shown, as FFmpeg counts them.
        fps: mean frames per second; None for images.
        times: float64 (num_frames,), the second at which each frame is first shown, 0 being where a player starts;
            None for images, and for a file that tells no times.
        end: the second at which the last frame is no longer shown; None where ``times`` is.
    """

    path: str
    num_frames: int
    fps: float | None = None
    times: NDArray[np.float64] | None = None
    end: float | None = None

    def close(self) -> None:
        pass

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def get(self, indices: Sequence[int] | NDArray[np.int64], size: tuple[int, int] | None = None) -> Frames:
        """Frames at ``indices`` (any order, repeats allowed) -> uint8 (T, H, W, 3), RGB.

        Args:
            size: (height, width) that frames are resized to where the video's frames differ in size, which is said in
                a :class:`VideoWarning`; by default, and always in a video file, the size of its first frame.

        Raises: VideoError when a frame cannot be decoded; IndexError for an index outside the video.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.ndim != 1 or wanted.size == 0:
            raise IndexError(f"frame indices must be a non-empty list, got shape {wanted.shape}")
        if wanted.min() < 0 or wanted.max() >= self.num_frames:
            raise IndexError(
                f"{self.path}: frames {wanted.min()} … {wanted.max()} asked of {self.num_frames}"
            )
        unique, inverse = np.unique(wanted, return_inverse=True)
        frames = self._decode([int(i) for i in unique], size)
        return np.stack([frames[i] for i in inverse])

    def _decode(self, indices: list[int], size: tuple[int, int] | None) -> list[Frames]:
        """Frames at ascending ``indices``, all of one size."""
        raise NotImplementedError


def open_video(
    path: str | os.PathLike[str], *, square_pixels: bool = False, decoder: str = "pyav"
) -> Video:
    """Open a video file (mp4, avi, mov, mkv, …), a folder of frames (jpg, png, …) or a single image.

    Frames of a folder come in natural order of their names (2 before 10). A single image is a video of one frame,
    which the sampling rules repeat. Frames come upright, and with the aspect ratio they are shown with.

    Args:
        square_pixels: take pixels for square even where the file says that they are not, as the published code does.
        decoder: ``decord`` decodes with decord what it is known to decode right (H.264 in mp4); the rest, and
            everything by default, is decoded with PyAV.

    Raises: VideoError naming path and reason: missing, empty, truncated or damaged file, no frames, not a video.
    """
    from mae_dfer.data.decord_file import DecordFile
    from mae_dfer.data.images import IMAGE_SUFFIXES, ImageFrames, list_frames
    from mae_dfer.data.video_file import VideoFile

    path = os.fspath(path)
    try:
        path.encode()
    except UnicodeEncodeError:
        shown = path.encode(errors="backslashreplace").decode()
        raise VideoError(shown, "its name is not valid UTF-8, which decoders need; rename it") from None
    if os.path.isdir(path):
        return ImageFrames(path, list_frames(path))
    if not os.path.exists(path):
        raise VideoError(path, "no such file or folder (check the path, or the root of the list)")
    if os.path.getsize(path) == 0:
        raise VideoError(path, "the file is empty")
    if Path(path).suffix.lower() in IMAGE_SUFFIXES:
        return ImageFrames(path, [path])
    if decoder not in DECODERS:
        raise UserError(f"unknown video decoder {decoder!r}; there are {', '.join(DECODERS)}")
    return (DecordFile if decoder == "decord" else VideoFile)(path, square_pixels)
