"""Video files for measuring and checking decoders: natural-looking moving content, drawn and encoded here."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder reports errors alone

RATE = 25
SMALL = (160, 120)  # of difficult files
LENGTH = 100


def scene(width: int, height: int, count: int, seed: int = 0) -> Iterator[Frames]:
    """A textured background under a moving camera, an object that crosses it, and the noise of a sensor."""
    draw = np.random.default_rng(seed)
    margin = max(width, height) // 4
    wide = (width + 2 * margin, height + 2 * margin)
    background, texture = texture_of(draw, *wide), texture_of(draw, width, height)
    noise = draw.normal(0.0, 5.0, (height + 64, width + 64, 3)).astype(np.int16)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    for index in range(count):
        t = index / RATE
        turn = cv2.getRotationMatrix2D((wide[0] / 2, wide[1] / 2), 4 * np.sin(0.7 * t), 1.1 + 0.08 * np.sin(0.5 * t))
        turn[:, 2] -= margin * (1 + 0.6 * np.sin(1.1 * t)), margin * (1 + 0.6 * np.cos(0.9 * t))
        picture = cv2.warpAffine(background, turn, (width, height), borderMode=cv2.BORDER_REFLECT)
        x, y = width * (0.5 + 0.3 * np.sin(1.7 * t)), height * (0.5 + 0.2 * np.cos(2.3 * t))
        away = cv2.magnitude((columns - np.float32(x)) / (0.2 * width), (rows - np.float32(y)) / (0.3 * height))
        share = np.clip((1 - away) * 8, 0, 1)
        picture = cv2.blendLinear(np.roll(texture, index, axis=1), picture, share, 1 - share)
        row, column = draw.integers(0, 64, 2)
        grain = noise[row : row + height, column : column + width]
        yield np.asarray(cv2.add(picture, grain, dtype=cv2.CV_8U), dtype=np.uint8)


def texture_of(draw: np.random.Generator, width: int, height: int) -> Frames:
    """Random detail of all sizes; coarse detail is stronger, as in photographs."""
    total = np.full((height, width, 3), 120.0, np.float32)
    size, strength = 4, 35.0
    while size < max(width, height):
        coarse = draw.normal(0.0, 1.0, (size, size, 1)) + 0.4 * draw.normal(0.0, 1.0, (size, size, 3))
        total += strength * cv2.resize(coarse.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
        size, strength = size * 2, strength * 0.8
    return np.clip(total, 0, 255).astype(np.uint8)


def write(
    path: Path,
    frames: Iterable[Frames],
    codec: str = "libx264",
    *,
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    stamps: Iterable[int] | None = None,
    prepare: Callable[[Any], None] = lambda stream: None,
) -> Path:
    """``stamps``: when each frame is shown, in milliseconds; by default every 40. ``prepare`` changes the stream."""
    times = iter(stamps) if stamps is not None else None
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream: Any = None
        for frame in frames:
            if stream is None:
                stream = container.add_stream(codec, rate=RATE if times is None else 1000, options=options or {})
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = "yuv420p"
                prepare(stream)
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            if times is not None:
                picture.pts, picture.time_base = next(times), Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def cut_to(source: Path, path: Path, first: int) -> Path:
    """Does what ``ffmpeg -ss … -c copy`` does: copies packets from a key frame on, and hides the frames before the
    ``first`` by an edit list."""
    with av.open(str(source)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        start = sorted(packet.pts for packet in packets)[first]
        begin = max(at for at, packet in enumerate(packets) if packet.is_keyframe and packet.pts <= start)
        with av.open(str(path), "w", options={"avoid_negative_ts": "disabled", "use_editlist": "1"}) as out:
            copy = out.add_stream_from_template(stream)
            for packet in packets[begin:]:
                packet.pts, packet.dts, packet.stream = packet.pts - start, packet.dts - start, copy
                out.mux(packet)
    return path


def cut_by_bytes(source: Path, path: Path) -> Path:
    """Begins a transport stream in its middle, as recordings of broadcasts do. Its packets have 188 bytes."""
    data = source.read_bytes()
    path.write_bytes(data[len(data) // 5 // 188 * 188 :])
    return path


def hide_frames(source: Path, path: Path) -> Path:
    """Encodes VP8 with frames that other frames refer to and that are never shown. The encoder makes them in two
    passes alone, which PyAV does not offer."""
    command = ["ffmpeg", "-v", "error", "-y", "-i", str(source), "-c:v", "libvpx", "-b:v", "300k", "-g", "50",
               "-auto-alt-ref", "1", "-lag-in-frames", "25", "-passlogfile", str(path)]  # fmt: skip
    for number, output in ((1, ["-f", "null", "-"]), (2, [str(path)])):
        subprocess.run([*command, "-pass", str(number), *output], check=True, capture_output=True)
    return path


def turn(stream: Any) -> None:
    stream.set_display_rotation(-90)


def stretch(stream: Any) -> None:
    stream.codec_context.sample_aspect_ratio = Fraction(4, 3)


def difficult_files(folder: Path, length: int = LENGTH) -> dict[str, Path | str]:
    """Files that some decoders misread, by what makes them difficult; for one that cannot be made here, the reason."""
    frames = list(scene(*SMALL, length, seed=1))
    irregular = np.cumsum(np.random.default_rng(0).integers(15, 120, length)).tolist()
    gop = {"g": "25"}
    part2 = gop | {"bf": "2", "b": "1M"}
    lossless = write(folder / "lossless.mkv", frames, "ffv1")

    def make(name: str, *arguments: Any, **options: Any) -> Callable[[], Path]:
        return lambda: write(folder / name, frames, *arguments, **options)

    recipes: dict[str, Callable[[], Path]] = {
        "edit list (cut by -c copy)": lambda: cut_to(make("long.mp4", options=gop)(), folder / "cut.mp4", length // 3),
        "variable frame rate": make("vfr.mp4", options=gop, stamps=irregular),
        "fragmented mp4": make("parts.mp4", options=gop, muxer={"movflags": "frag_keyframe+empty_moov"}),
        "H.264, open GOPs": make("open.mp4", options={"x264-params": "keyint=24:open-gop=1"}),
        "HEVC, open GOPs": make("hevc.mp4", "libx265", options={"x265-params": "keyint=25:log-level=error"}),
        "HEVC, closed GOPs": make("closed.mp4", "libx265",
                                  options={"x265-params": "keyint=25:open-gop=0:log-level=error"}),
        "B-frames in avi": make("b.avi", options=gop),
        "MPEG-4 part 2 in mp4": make("part2.mp4", "mpeg4", options=part2),
        "MPEG-4 part 2 in avi": make("part2.avi", "mpeg4", options=part2),
        "VP8, hidden frames": lambda: hide_frames(lossless, folder / "vp8.webm"),
        "VP9": make("vp9.webm", "libvpx-vp9", options={"auto-alt-ref": "1", "lag-in-frames": "25", "cpu-used": "4"}),
        "AV1": make("av1.mp4", "libsvtav1", options=gop | {"preset": "12"}),
        "first packet no key frame": lambda: cut_by_bytes(make("whole.ts", options=gop)(), folder / "cut.ts"),
        "48 × 48": lambda: write(folder / "tiny.mp4", scene(48, 48, length, seed=3), options=gop),
        "rotated by a phone": make("turned.mp4", options=gop, prepare=turn),
        "non-square pixels": make("stretched.mp4", options=gop, prepare=stretch),
    }  # fmt: skip
    made: dict[str, Path | str] = {}
    for name, recipe in recipes.items():
        try:
            made[name] = recipe()
        except FileNotFoundError as error:
            made[name] = f"needs {error.filename}"
        except (av.FFmpegError, ValueError, AttributeError, subprocess.CalledProcessError) as error:
            made[name] = f"cannot be made here: {error}"
    return made
