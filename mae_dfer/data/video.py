"""Frames of a video file, a folder of frames, or a single image, by index.

What is behind :func:`open_video`: `video_file.py` and `decord_file.py` for video files, `images.py` for images.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mae_dfer.errors import UserError
from mae_dfer.files import encodable

Frames = NDArray[np.uint8]

DECODERS = ("pyav", "decord")


class VideoError(UserError):
    """A video that cannot be read; the message names the path and the reason.

    Both are text that can be written as UTF-8, whatever the names of files are.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        self.path, self.reason = encodable(os.fspath(path)), encodable(reason)
        super().__init__(f"{self.path}: {self.reason}")

    def __reduce__(self) -> tuple[type[VideoError], tuple[str, str]]:
        return type(self), (self.path, self.reason)


def video_error(path: str | os.PathLike[str], error: OSError) -> VideoError:
    """The :class:`VideoError` for a failure of the file system."""
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return VideoError(path, "no such file or folder (check the path, or the root of the list)")
    return VideoError(path, f"it cannot be read ({error.strerror or ' '.join(str(error).split())})")


@contextlib.contextmanager
def as_video_error(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raises a :class:`VideoError` for any failure of the file system."""
    try:
        yield
    except OSError as error:
        raise video_error(path, error) from None


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
        sizes_differ: whether frames were resized by :meth:`get` because images differ in size.

    A video is read by one thread at a time.
    """

    path: str
    num_frames: int
    fps: float | None = None
    times: NDArray[np.float64] | None = None
    end: float | None = None
    sizes_differ: bool = False

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
        with as_video_error(self.path):
            frames = self._decode([int(i) for i in unique], size)
        return np.stack([frames[i] for i in inverse])

    def stream(self, indices: Sequence[int] | None = None) -> Iterator[Frames]:
        """Frames at ascending ``indices``, by default all, one at a time -> uint8 (H, W, 3), RGB.

        They are decoded in one pass and in the memory of a few frames. Until it ends, nothing else may be read.

        Raises: VideoError when a frame cannot be decoded; IndexError for an index outside the video.
        """
        wanted = list(range(self.num_frames) if indices is None else indices)
        if wanted and (wanted[0] < 0 or wanted[-1] >= self.num_frames):
            raise IndexError(f"{self.path}: frames {wanted[0]} … {wanted[-1]} asked of {self.num_frames}")
        at = 0
        while at < len(wanted):
            with as_video_error(self.path):
                for index, frame in self._decode_each(wanted[at:]):
                    if index != wanted[at]:
                        break
                    at += 1
                    yield frame
            if at < len(wanted):  # a frame is lost, which this says, or timestamps mislead, which this learns
                at += 1
                yield self.get(wanted[at - 1 : at])[0]

    def _decode_each(self, indices: list[int]) -> Iterator[tuple[int, Frames]]:
        """Those of the frames at ascending ``indices`` that can be decoded, with their indices."""
        for index in indices:
            yield index, self._decode([index], None)[0]

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

    Raises: VideoError naming path and reason: missing, not to be read, empty, truncated or damaged, no frames, not a
    video.
    """
    if decoder not in DECODERS:
        raise UserError(f"unknown video decoder {decoder!r}; there are {', '.join(DECODERS)}")
    path = os.fspath(path)
    if path != encodable(path):
        raise VideoError(path, "its name is not valid UTF-8, which decoders need; rename it")
    with as_video_error(path):
        return _open(path, square_pixels, decoder)


def _open(path: str, square_pixels: bool, decoder: str) -> Video:
    from mae_dfer.data.decord_file import DecordFile
    from mae_dfer.data.images import IMAGE_SUFFIXES, ImageFrames, list_frames
    from mae_dfer.data.video_file import VideoFile

    if os.path.islink(path) and not os.path.lexists(target := os.path.realpath(path)):
        raise VideoError(path, f"it is a link to {target}, which does not exist")
    found = os.stat(path)
    if stat.S_ISDIR(found.st_mode):
        return ImageFrames(path, list_frames(path))
    if not stat.S_ISREG(found.st_mode):
        raise VideoError(path, "it is a device, a pipe or a socket; give a file or a folder")
    if found.st_size == 0:
        raise VideoError(path, "the file is empty")
    if Path(path).suffix.lower() in IMAGE_SUFFIXES:
        return ImageFrames(path, [path])
    return (DecordFile if decoder == "decord" else VideoFile)(path, square_pixels)
