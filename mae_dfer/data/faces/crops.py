"""Cuts a face out of a video along its track, and writes it as a video or as a folder of images."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mae_dfer.data.faces.tracks import Track
from mae_dfer.data.video import Frames, Video
from mae_dfer.errors import UserError
from mae_dfer.files import write_atomically

SIZE = 256
# On each side, by the side of the face's square. A crop then shows the face from the hair to under the chin, and
# its box fills 0.45 of the area: as the crops of DFEW and FERV39k do, and the part of VoxCeleb2's that is trained on.
MARGIN = 0.25
FORMATS = ("jpg", "png")
_ASSUMED_RATE = Fraction(25)  # of images
_TICKS = 240_000  # a second, in which times are written: a frame of all usual rates lasts a whole number of them


def crop(video: Video, track: Track, *, size: int = SIZE, margin: float = MARGIN) -> Iterator[Frames]:
    """The face in each frame of its track -> uint8 (size, size, 3), RGB.

    ``margin`` is added on each side, by the side of the track's square. What lies outside the picture repeats its
    border, which draws no edge that is not there. Frames are reduced without aliasing.

    Raises: VideoError for a frame that cannot be decoded; UserError for a size or a margin that leaves no picture.
    """
    if size < 1 or not -0.5 < margin < 100:
        raise UserError(f"a crop of {size} pixels with a margin of {margin} is no picture; give a size of at least 1, "
                        "and a margin above -0.5")  # fmt: skip
    grown = track.boxes + (track.boxes[:, 2:] - track.boxes[:, :2]).mean(axis=1)[:, None] * margin * [-1, -1, 1, 1]
    return (_cut(frame, box, size) for frame, box in zip(video.stream(track.frames), grown, strict=True))


def _cut(frame: Frames, box: NDArray[np.float64], size: int) -> Frames:
    left, top, right, bottom = box
    reach = 2 * math.ceil(max(right - left, size) / size)  # pixels that the filter reads beyond the box
    columns = np.arange(math.floor(left) - reach, math.ceil(right) + reach)
    rows = np.arange(math.floor(top) - reach, math.ceil(bottom) + reach)
    region = frame[rows.clip(0, frame.shape[0] - 1)][:, columns.clip(0, frame.shape[1] - 1)]
    inside = (left - columns[0], top - rows[0], right - columns[0], bottom - rows[0])
    return np.asarray(Image.fromarray(region).resize((size, size), Image.Resampling.BICUBIC, box=inside))


def write_crops(
    video: Video, track: Track, path: str | os.PathLike[str], *, size: int = SIZE, margin: float = MARGIN
) -> None:
    """Writes :func:`crop` as a video: H.264 of high quality, the first frame at second 0, the others as in ``video``.

    Images are shown at 25 frames a second.

    Raises:
        VideoError: a frame of ``video`` cannot be decoded.
        UserError: ``path`` is no name for a video, or ``size`` is odd.
        OSError: ``path`` cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in (".mp4", ".mkv", ".mov"):
        raise UserError(f"{path}: crops are written as .mp4, .mkv or .mov")
    if size % 2:
        raise UserError(f"a video's frames have an even number of pixels on each side, not {size}")
    ticks = _ticks(video, track)
    frames = crop(video, track, size=size, margin=margin)

    def write(temporary: Path) -> None:
        try:
            _encode(frames, ticks, size, temporary)
        except av.FFmpegError as error:
            raise OSError(error.errno, error.strerror) from None

    write_atomically(path, write)


def _ticks(video: Video, track: Track) -> NDArray[np.int64]:
    """When each frame of the track is first shown, and when the last no longer is: (n + 1,), from 0."""
    frames = track.frames
    if video.times is None or video.end is None:
        rate = Fraction(video.fps).limit_denominator(1001) if video.fps else _ASSUMED_RATE
        times = np.arange(len(frames) + 1) / float(rate)
    else:
        times = np.append(video.times, video.end)[frames.start : frames.stop + 1]
    return np.rint((times - times[0]) * _TICKS).astype(np.int64)


def _encode(frames: Iterator[Frames], ticks: NDArray[np.int64], size: int, path: Path) -> None:
    rate = Fraction(len(ticks) - 1, max(int(ticks[-1]), 1)) * _TICKS
    durations = dict(zip(ticks.tolist(), np.diff(ticks).tolist(), strict=False))
    with av.open(f"file:{path}", "w") as container:
        stream = container.add_stream("libx264", rate=rate.limit_denominator(1001), options={"crf": "15"})
        stream.width, stream.height, stream.pix_fmt = size, size, "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, _TICKS)

        def mux(frame: av.VideoFrame | None) -> None:
            for packet in stream.encode(frame):
                packet.duration = durations[packet.pts]
                container.mux(packet)

        for tick, picture in zip(ticks, frames, strict=False):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = int(tick), Fraction(1, _TICKS)
            mux(frame)
        mux(None)


def write_frames(
    video: Video,
    track: Track,
    folder: str | os.PathLike[str],
    *,
    size: int = SIZE,
    margin: float = MARGIN,
    format: str = "jpg",
) -> None:
    """Writes :func:`crop` as images 00000.jpg, 00001.jpg … into a new ``folder``, which appears when all are written.

    Raises:
        VideoError: a frame of ``video`` cannot be decoded.
        UserError: ``folder`` exists, or ``format`` is neither jpg nor png.
        OSError: ``folder`` cannot be written.
    """
    folder = Path(folder)
    if format not in FORMATS:
        raise UserError(f"images are written as {' or '.join(FORMATS)}, not {format!r}")
    if os.path.lexists(folder):
        raise UserError(f"{folder} exists already; delete it, or give another name")
    frames = crop(video, track, size=size, margin=margin)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        for index, picture in enumerate(frames):
            Image.fromarray(picture).save(temporary / f"{index:05}.{format}", quality=95, subsampling=0)
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
