"""Frames of a video file, a folder of frames, or a single image, by index.

Every video file is indexed with PyAV, which knows the frames there are and names what is truncated or damaged.
Upright H.264 and HEVC in mp4 is then decoded by decord, everything else by PyAV: decord takes frames from other
moments, without a word, where timestamps are unsound (AVI, MPEG-4 part 2, MPEG-PS), does not turn phone videos
upright, refuses some frame sizes (48 × 48), and has no wheel for some platforms. Both give the same pixels.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np

try:
    import decord
except ImportError:  # no wheel for this platform: PyAV decodes everything
    decord = None
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mae_dfer.errors import UserError

Frames = NDArray[np.uint8]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")

# Codecs that decord decodes frame for frame as PyAV does, in containers of the first name.
_DECORD = ("mp4", {"h264", "hevc"})
# Containers whose packets carry sound timestamps, by FFmpeg's names.
_TIMED = {"mp4", "matroska", "flv"}
# The frame count in the header of an mp4 is exact; elsewhere it is an estimate.
_MISSING_ALLOWED = 0.1
# Frames of other containers stay in memory up to this size; longer videos are decoded again.
_KEEP_BYTES = 128 * 2**20


class VideoError(UserError):
    """A video that cannot be read; the message names the path and the reason."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(f"{os.fspath(path)}: {reason}")
        self.path = os.fspath(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type[VideoError], tuple[str, str]]:
        return type(self), (self.path, self.reason)


class Video:
    """What :func:`open_video` returns; also a context manager."""

    path: str
    num_frames: int
    fps: float | None = None

    def close(self) -> None:
        pass

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def get(self, indices: Sequence[int] | NDArray[np.int64]) -> Frames:
        """Frames at ``indices`` (any order, repeats allowed) -> uint8 (T, H, W, 3), RGB.

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
        frames = self._decode([int(i) for i in unique])
        shapes = sorted({frame.shape[:2] for frame in frames})
        if len(shapes) > 1:
            sizes = ", ".join(f"{w}×{h}" for h, w in shapes)
            raise VideoError(self.path, f"frames differ in size ({sizes}); resize them to one size")
        return np.stack([frames[i] for i in inverse])

    def _decode(self, indices: list[int]) -> list[Frames]:
        raise NotImplementedError


class VideoFile(Video):
    """A video file, read with one thread; frames are counted in the order they are shown."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._converter = VideoReformatter()
        try:
            self._open()
            self._index()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        self.close()
        try:
            # Without the prefix FFmpeg takes what precedes a colon in a name for a protocol.
            self._container = av.open(f"file:{self.path}")
        except (av.FFmpegError, OSError, ValueError) as error:
            raise VideoError(self.path, f"not a readable video file ({_reason(error)})") from None
        if not self._container.streams.video:
            raise VideoError(self.path, "the file holds no video stream")
        self._stream = self._container.streams.video[0]
        self._stream.codec_context.thread_count = 1

    def close(self) -> None:
        container = self.__dict__.pop("_container", None)
        if container is not None:
            container.close()

    def _index(self) -> None:
        """Learn the number of frames, their timestamps and where seeks may land.

        Containers with sound timestamps are read once by packet, which decodes nothing. In others neither
        timestamps nor packets tell frames and their order, only decoding does; those files are decoded
        whole, and frames kept as far as memory allows.
        """
        names = set(self._container.format.name.split(","))
        self._stamps: list[int] = []
        self._keys: list[int] = []
        self._kept: list[VideoFrame] = []
        self._timed = bool(names & _TIMED) and self._index_packets()
        if not self._timed:
            self._index_frames()
        self._check_count(self.num_frames, exact="mp4" in names)
        rate = self._stream.average_rate
        self.fps = float(rate) if rate else None
        if self.num_frames == 0:
            raise VideoError(self.path, "the video has no frames")

    def _index_packets(self) -> bool:
        """Fill the timestamps; False when frames lack them or share them."""
        stamps: list[int | None] = []
        try:
            for packet in self._container.demux(self._stream):
                if packet.size == 0 or packet.is_discard:
                    continue
                if packet.is_corrupt:
                    raise VideoError(self.path, "the file is truncated or damaged")
                stamps.append(packet.pts)
                if packet.is_keyframe and packet.pts is not None:
                    self._keys.append(packet.pts)
        except av.FFmpegError as error:
            raise VideoError(self.path, f"the file is damaged ({_reason(error)})") from None
        self._stamps = sorted(stamp for stamp in stamps if stamp is not None)
        self._keys.sort()
        self.num_frames = len(stamps)
        return len(set(self._stamps)) == len(stamps)

    def _index_frames(self) -> None:
        size = 0
        self.num_frames = 0
        for frame in self._frames_from_start():
            self.num_frames += 1
            size += frame.width * frame.height * 3
            if size <= _KEEP_BYTES:
                self._kept.append(frame)
        if size > _KEEP_BYTES:
            self._kept.clear()

    def _check_count(self, found: int, exact: bool) -> None:
        promised = self._stream.frames or self._promised_by_tag()
        if promised - found > (0 if exact else _MISSING_ALLOWED * promised) and found > 0:
            raise VideoError(
                self.path, f"the file is truncated: it announces {promised} frames and holds {found}"
            )

    def _promised_by_tag(self) -> int:
        """Frames by Matroska's DURATION tag, for containers without a frame count; 0 when not told."""
        match = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", self._stream.metadata.get("DURATION", ""))
        rate = self._stream.average_rate
        if match is None or not rate:
            return 0
        hours, minutes, seconds = (float(part) for part in match.groups())
        return int((hours * 3600 + minutes * 60 + seconds) * float(rate))

    def _frames(self) -> Iterator[VideoFrame]:
        try:
            for frame in self._container.decode(self._stream):
                if frame.is_corrupt:
                    raise VideoError(self.path, "a frame is damaged")
                yield frame
        except av.FFmpegError as error:
            raise VideoError(self.path, f"decoding failed ({_reason(error)})") from None

    def _frames_from_start(self) -> Iterator[VideoFrame]:
        self._open()  # a seek to the start needs timestamps; a fresh container does not
        return self._frames()

    def _frames_from(self, stamp: int) -> Iterator[VideoFrame]:
        """Frames from the last key frame at or before ``stamp``; from the start if the seek misses."""
        at = bisect.bisect_right(self._keys, stamp) - 1
        if at <= 0:
            return self._frames_from_start()
        self._container.seek(self._keys[at], stream=self._stream, backward=True)
        frames = self._frames()
        first = next(frames, None)
        if first is None or first.pts is None or first.pts > stamp:
            return self._frames_from_start()
        return itertools.chain([first], frames)

    @functools.cached_property
    def reader(self) -> str:
        """``decord`` or ``pyav``: which library decodes this file."""
        container, codecs = _DECORD
        sound = self._timed and container in self._container.format.name.split(",")
        if decord is None or not sound or self._stream.codec_context.name not in codecs:
            return "pyav"
        first = next(self._frames_from_start(), None)
        return "decord" if first is not None and first.rotation == 0 else "pyav"

    def _decode(self, indices: list[int]) -> list[Frames]:
        if self.reader == "decord":
            try:
                reader = decord.VideoReader(self.path, num_threads=1)
                if len(reader) == self.num_frames:
                    return list(reader.get_batch(indices).asnumpy())
            except (decord.DECORDError, RuntimeError):
                pass  # PyAV decodes what decord refuses, and says what is wrong with what it cannot decode
            self.reader = "pyav"
        return self._decode_with_pyav(indices)

    def _decode_with_pyav(self, indices: list[int]) -> list[Frames]:
        if not self._timed:
            numbered: Iterator[tuple[int | None, VideoFrame]] = enumerate(
                self._kept or self._frames_from_start()
            )
            keys = indices
        else:
            keys = [self._stamps[i] for i in indices]
            numbered = ((frame.pts, frame) for frame in self._frames_from(keys[0]))
        wanted = set(keys)
        found: dict[int, Frames] = {}
        for key, frame in numbered:
            if key in wanted:
                found[key] = self._rgb(frame)
                if len(found) == len(wanted):
                    break
        if len(found) < len(wanted):
            lost = len(wanted) - len(found)
            raise VideoError(self.path, f"{lost} of {len(wanted)} frames could not be decoded (damaged file)")
        return [found[key] for key in keys]

    def _rgb(self, frame: VideoFrame) -> Frames:
        array = np.asarray(self._converter.reformat(frame, format="rgb24").to_ndarray(), dtype=np.uint8)
        # Phones store portrait video sideways with a rotation in the file's metadata.
        turns = round(frame.rotation / 90) % 4
        return np.rot90(array, turns) if turns else array


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(str(text).split())[:200]


class ImageFrames(Video):
    """Images as the frames of a video without a frame rate."""

    def __init__(self, path: str, files: list[str]) -> None:
        self.path = path
        self._files = files
        self.num_frames = len(files)

    def _decode(self, indices: list[int]) -> list[Frames]:
        return [self._load(self._files[i]) for i in indices]

    def _load(self, file: str) -> Frames:
        try:
            with Image.open(file) as image:
                return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise VideoError(self.path, f"cannot read image {file} ({_reason(error)})") from None


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts frame_2 before frame_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", name)]


def open_video(path: str | os.PathLike[str]) -> Video:
    """Open a video file (mp4, avi, mov, mkv, …), a folder of frames (jpg, png, …) or a single image.

    Frames of a folder come in natural order of their names (2 before 10). A single image is a video of one
    frame, which the sampling rules repeat.

    Returns an object with ``num_frames``, ``fps`` (None when unknown), ``get(indices)`` -> uint8
    (T, H, W, 3) RGB, and ``close()``; it is a context manager.

    Raises: VideoError naming path and reason: missing, empty, truncated or damaged file, no frames.
    """
    path = os.fspath(path)
    try:
        path.encode()
    except UnicodeEncodeError:
        shown = path.encode(errors="backslashreplace").decode()
        raise VideoError(shown, "its name is not valid UTF-8, which decoders need; rename it") from None
    if os.path.isdir(path):
        names = [n for n in os.listdir(path) if n.lower().endswith(IMAGE_SUFFIXES) and not n.startswith(".")]
        if not names:
            raise VideoError(path, f"the folder holds no frames ({', '.join(IMAGE_SUFFIXES)})")
        return ImageFrames(path, [os.path.join(path, name) for name in sorted(names, key=_natural)])
    if not os.path.exists(path):
        raise VideoError(path, "no such file or folder (check the path, or the root of the list)")
    if os.path.getsize(path) == 0:
        raise VideoError(path, "the file is empty")
    if Path(path).suffix.lower() in IMAGE_SUFFIXES:
        return ImageFrames(path, [path])
    return VideoFile(path)
