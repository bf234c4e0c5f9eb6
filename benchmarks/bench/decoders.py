"""Video decoders behind one interface: frames by index from a file opened for that request, and a whole file in order.

Each decodes with one thread, and gives uint8 RGB frames, (T, H, W, 3), upright. Of several ways that a package offers,
the fastest on one core is taken that gives any frame asked for. This file runs in the interpreter that a package is
installed in; beside the package it needs numpy alone.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]


class Decoder(Protocol):
    version: str

    def clip(self, path: str, indices: Sequence[int]) -> Frames:
        """Frames at ``indices``, which ascend: opens the file, finds the frames, converts them, closes the file."""

    def whole(self, path: str) -> Iterator[Frames]:
        """All frames in the order they are shown, one or a few at a time."""


class PyAV:
    """Reads the timestamps of all packets, seeks to the key frame before the first index, and decodes from there.

    Timestamps do not tell the frames of every file: in containers other than ``_TIMED``, and where two packets share
    one, frames are counted from the start of the file. ``skip``: of H.264, frames that are not wanted and that no other
    frame refers to are not decoded.
    """

    _TIMED = {"mp4", "matroska", "flv"}

    def __init__(self, skip: bool = False) -> None:
        self._av: Any = importlib.import_module("av")
        self.version = str(self._av.__version__)
        self._skip = skip
        self._converter: Any = importlib.import_module("av.video.reformatter").VideoReformatter()
        # From PyAV 17 on, conversion starts a thread a core unless told otherwise.
        self._options = {"format": "rgb24"} | ({"threads": 1} if int(self.version.split(".")[0]) >= 17 else {})

    def clip(self, path: str, indices: Sequence[int]) -> Frames:
        with self._open(path) as container:
            stream = container.streams.video[0]
            packets = [packet for packet in container.demux(stream) if packet.size]
            stamps = sorted(packet.pts for packet in packets if packet.pts is not None and not packet.is_discard)
            distinct = len(set(stamps)) == sum(not packet.is_discard for packet in packets)
            if not distinct or not self._TIMED & set(container.format.name.split(",")):
                return self._clip_from_start(path, indices)
            wanted = {stamps[index]: place for place, index in enumerate(indices)}
            first = stamps[indices[0]]
            keys = [packet.pts for packet in packets if packet.is_keyframe and packet.pts is not None]
            container.seek(max((key for key in keys if key <= first), default=stamps[0]), stream=stream)
            return self._collect(((frame.pts, frame) for frame in self._decode(container, stream, wanted)), wanted)

    def whole(self, path: str) -> Iterator[Frames]:
        with self._open(path) as container:
            for frame in container.decode(video=0):
                yield self._rgb(frame)[None]

    def _open(self, path: str) -> Any:
        container = self._av.open(path)
        context = container.streams.video[0].codec_context
        context.thread_type, context.thread_count = "NONE", 1
        return container

    def _decode(self, container: Any, stream: Any, wanted: dict[int, int]) -> Iterator[Any]:
        context = stream.codec_context
        skip = self._skip and context.name == "h264"
        for packet in container.demux(stream):
            if skip:
                context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
            yield from packet.decode()

    def _clip_from_start(self, path: str, indices: Sequence[int]) -> Frames:
        with self._open(path) as container:
            wanted = {index: place for place, index in enumerate(indices)}
            return self._collect(enumerate(container.decode(video=0)), wanted)

    def _collect(self, frames: Iterator[tuple[int, Any]], wanted: dict[int, int]) -> Frames:
        found: list[Frames | None] = [None] * len(wanted)
        missing = len(wanted)
        for key, frame in frames:
            if key in wanted:
                found[wanted[key]] = self._rgb(frame)
                missing -= 1
                if not missing:
                    break
        if missing:
            raise RuntimeError(f"{missing} of {len(wanted)} frames are not in the file")
        return np.stack([frame for frame in found if frame is not None])

    def _rgb(self, frame: Any) -> Frames:
        array: Frames = self._converter.reformat(frame, **self._options).to_ndarray()
        turns = round(frame.rotation / 90) % 4
        return np.rot90(array, turns) if turns else array


class Decord:
    """``package``: decord, or its successor decord2, a module of the same name."""

    def __init__(self, package: str) -> None:
        self._decord: Any = importlib.import_module("decord")
        self.version = importlib.metadata.version(package)
        if self._decord.__version__ != self.version:
            raise ImportError(f"the module decord is {self._decord.__version__}, and {package} is {self.version}")

    def clip(self, path: str, indices: Sequence[int]) -> Frames:
        batch: Frames = self._open(path).get_batch(indices).asnumpy()
        return batch

    def whole(self, path: str) -> Iterator[Frames]:
        reader = self._open(path)
        for _ in range(len(reader)):
            yield reader.next().asnumpy()[None]

    def _open(self, path: str) -> Any:
        return self._decord.VideoReader(path, num_threads=1)


class TorchCodec:
    """``mode``: ``exact``, which reads the timestamps of all packets first; ``approximate``, which computes them."""

    _CHUNK = 4

    def __init__(self, mode: str) -> None:
        self._mode = mode
        self._decoders: Any = importlib.import_module("torchcodec.decoders")
        self.version = importlib.metadata.version("torchcodec")

    def clip(self, path: str, indices: Sequence[int]) -> Frames:
        batch: Frames = self._open(path).get_frames_at(list(indices)).data.numpy()
        return batch

    def whole(self, path: str) -> Iterator[Frames]:
        reader = self._open(path)
        for start in range(0, len(reader), self._CHUNK):
            yield reader.get_frames_in_range(start, min(start + self._CHUNK, len(reader))).data.numpy()

    def _open(self, path: str) -> Any:
        return self._decoders.VideoDecoder(
            path, num_ffmpeg_threads=1, dimension_order="NHWC", seek_mode=self._mode, device="cpu"
        )


class Ours:
    """The reader of this project's data loader. It has no way to give a whole video in parts."""

    def __init__(self) -> None:
        self._video: Any = importlib.import_module("mae_dfer.data.video")
        self.version = str(importlib.import_module("mae_dfer").__version__)

    def clip(self, path: str, indices: Sequence[int]) -> Frames:
        with self._video.open_video(path, square_pixels=True) as video:
            frames: Frames = video.get(indices)
            return frames

    def whole(self, path: str) -> Iterator[Frames]:
        with self._video.open_video(path, square_pixels=True) as video:
            yield video.get(range(video.num_frames))


# The package that each decoder is in.
PACKAGES = {
    "pyav": "pyav", "pyav-skip": "pyav", "mae-dfer": "mae-dfer", "decord": "decord", "decord2": "decord2",
    "torchcodec": "torchcodec", "torchcodec-approximate": "torchcodec",
}  # fmt: skip


def open_decoder(name: str) -> Decoder:
    """Raises ImportError, or what a package raises whose libraries are missing."""
    package = PACKAGES[name]
    if package == "pyav":
        return PyAV(skip=name == "pyav-skip")
    if package == "mae-dfer":
        return Ours()
    if package == "torchcodec":
        return TorchCodec("approximate" if name.endswith("approximate") else "exact")
    return Decord(package)


def libavcodec() -> str | None:
    """Versions of FFmpeg's libavcodec in this process, by the names of its files: on Linux, else None."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    return ", ".join(sorted(set(re.findall(r"/libavcodec[^/\n]*\.so\.(\d[\d.]*)", maps)))) or None
