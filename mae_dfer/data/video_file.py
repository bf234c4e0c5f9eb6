"""Video files, decoded with PyAV (FFmpeg) in one thread; frames are those that FFmpeg's own tool decodes.

`benchmarks/decode_bench.py` compares decoders. PyAV is as fast as any, and the only one that can be told to be right
on every kind of file: others count frames that an edit list hides, return other frames than were asked for where
timestamps are unsound (AVI, MPEG-4 part 2, open GOPs of HEVC), or refuse small frames.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import itertools
import os
import warnings
from collections.abc import Collection, Iterable, Iterator
from typing import Any, cast

import av
import av.filter
import numpy as np
from av.packet import Packet
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from mae_dfer.data import frame_index
from mae_dfer.data.containers import announced_size
from mae_dfer.data.frame_index import FrameIndex
from mae_dfer.data.h264 import is_whole_at_once
from mae_dfer.data.video import Frames, Video, VideoError, VideoWarning
from mae_dfer.files import describe_impostor

# Containers whose packets carry sound timestamps, by FFmpeg's names; and codecs of which each packet gives a frame.
# Of others, only decoding tells which frames there are.
_TIMED = {"mp4", "matroska", "flv"}
_FRAME_A_PACKET = {"h264", "hevc", "vp9", "av1", "mjpeg"}
_PROGRESSIVE = (0, 1)  # field orders; 0 is unknown. The two fields of a frame may be two packets.
_LOOKED_AT = 50  # frames, to see whether their order is that of their timestamps
_TEXT = {"ansi", "bintext", "xbin", "idf"}  # FFmpeg draws text files, as terminals do
# Frames of other files stay in memory, as they are decoded, up to this size. Longer videos are decoded again, from the
# key frame before those that are wanted.
_KEEP_BYTES = 256 * 2**20
# Pixels this many times as wide as high, or as high as wide, are damage.
_WIDEST_PIXEL = 10.0


class VideoFile(Video):
    """A video file; frames are counted in the order they are shown.

    With ``only_check`` it raises what it would otherwise, as far as that takes no decoding beyond the first frame; no
    frame can be had of it.
    """

    def __init__(self, path: str, square_pixels: bool = False, *, only_check: bool = False) -> None:
        self.path = path
        self._square_pixels = square_pixels
        self._graphs: dict[tuple[object, ...], av.filter.Graph] = {}
        # By rotation, which PyAV tells without their side data: a frame and those keep each other in memory.
        self._matrices: dict[float, np.ndarray | None] = {}
        try:
            self._open()
            if (truncation := self._truncation()) is not None:
                raise VideoError(path, truncation)
            # Now: while it decodes, the stream's size follows that of its frames.
            self._declared_size = self._stream.codec_context.width, self._stream.codec_context.height
            self._index(only_check)
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        self.close()
        try:
            # Without the prefix FFmpeg takes what precedes a colon in a name for a protocol.
            self._container = av.open(f"file:{self.path}")
        except (av.FFmpegError, OSError, ValueError) as error:
            reason = self._known_fault() or _reason(error)
            raise VideoError(self.path, f"not a readable video file: {reason}") from None
        self._stream = self._choose_stream()
        self._stream.codec_context.thread_count = 1

    def _choose_stream(self) -> VideoStream:
        """The stream that FFmpeg's tool would take: the default one, then the largest; never a cover picture."""
        reason = "the file holds no video stream"
        moving = []
        for stream in self._container.streams.video:
            if stream.disposition & Disposition.attached_pic:
                reason = "the file holds no video, only a cover picture"
            elif stream.codec_context is None:
                reason = "its video is of a kind that FFmpeg does not know"
            elif stream.codec_context.name not in _TEXT:
                moving.append(stream)
        if not moving:
            raise VideoError(self.path, self._known_fault() or reason)
        return max(moving, key=lambda stream: (bool(stream.disposition & Disposition.default), _area(stream)))

    def close(self) -> None:
        self._graphs.clear()
        container = self.__dict__.pop("_container", None)
        if container is not None:
            container.close()

    def _truncation(self) -> str | None:
        announced, found = announced_size(self.path), os.path.getsize(self.path)
        if announced is None or announced <= found:
            return None
        return (
            f"the file is truncated: it holds {found:,} of the {announced:,} bytes that its header announces; "
            "copy or download it again"
        )

    def _known_fault(self) -> str | None:
        """What is wrong with a file that cannot be read, where its bytes tell."""
        what = describe_impostor(self.path)
        return self._truncation() or (f"it is {what}" if what else None)

    # Which frames there are.

    def _index(self, only_check: bool) -> None:
        """Learn the number of frames, their times, and where seeks may land.

        Where packets tell, they are read once, which decodes nothing. Other files are decoded whole, and their frames
        kept where memory allows; else what was learnt is remembered, and the next time nothing is decoded either.
        """
        context = self._stream.codec_context
        self._stamps: list[int | None] = []
        self._keys: list[tuple[int, int]] = []
        self._kept: list[VideoFrame] = []
        self._frame_index: FrameIndex | None = None
        self._last_duration = 0
        self._timed = (
            bool(_TIMED & set(self._container.format.name.split(",")))
            and context.name in _FRAME_A_PACKET
            and context.field_order in _PROGRESSIVE
            and self._index_packets()
        )
        if only_check:
            self._stamps = [frame.pts for frame in itertools.islice(self._frames_from_start(), 1)]
        elif not self._timed:
            self._index_frames()
        self.num_frames = len(self._stamps)
        if self.num_frames == 0:
            raise VideoError(self.path, self._known_fault() or "the video has no frames")
        rate = self._stream.average_rate or self._stream.guessed_rate
        self.fps = float(rate) if rate else None
        self._set_times()

    def _index_packets(self) -> bool:
        """Fill timestamps and key frames; False where packets do not tell the frames.

        Packets that an edit list hides are decoded for what follows, and not shown.
        """
        shown: list[tuple[int, int]] = []
        latest, has_orders = -(2**63), not self._stream.codec_context.has_b_frames
        try:
            for packet in self._packets():
                if packet.size == 0:
                    continue
                if packet.is_corrupt:
                    raise VideoError(self.path, "the file is truncated or damaged")
                if packet.pts is None:
                    return False
                # Frames that are shown in another order than they are stored in have timestamps that say so, but for
                # copies of AVI and of raw streams, which count them as they are stored.
                has_orders |= packet.pts < latest
                latest = max(latest, packet.pts)
                if packet.is_keyframe and self._can_start_at(packet):
                    self._keys.append((packet.pts, packet.pts if packet.dts is None else packet.dts))
                elif not self._keys or packet.pts < self._keys[0][0]:
                    return False  # decoders show no frame before the first key frame
                if not packet.is_discard:
                    shown.append((packet.pts, packet.duration or 0))
        except av.FFmpegError as error:
            raise VideoError(self.path, f"the file is damaged ({_reason(error)})") from None
        if not has_orders and not self._runs_forward():
            return False
        shown.sort()
        self._stamps = [stamp for stamp, _ in shown]
        self._last_duration = shown[-1][1] if shown else 0
        self._keys.sort()
        return len(set(self._stamps)) == len(shown)

    def _runs_forward(self) -> bool:
        """Whether the first frames have ascending timestamps in the order they are shown."""
        found = [frame.pts for frame in itertools.islice(self._frames_from_start(), _LOOKED_AT)]
        stamps = [stamp for stamp in found if stamp is not None]
        return len(stamps) == len(found) and all(a < b for a, b in itertools.pairwise(stamps))

    def _can_start_at(self, packet: Packet) -> bool:
        """Whether decoding may start at this key frame."""
        return self._stream.codec_context.name != "h264" or is_whole_at_once(bytes(packet))

    def _index_frames(self) -> None:
        index = frame_index.recall(self.path)
        if index is None:
            index = self._decode_whole()
            if not self._kept:
                frame_index.remember(self.path, index)
        self._stamps, self._frame_index = index.stamps, index

    def _decode_whole(self) -> FrameIndex:
        """Keeps all frames, or none where they are too large."""
        index, size, shown, packets = FrameIndex([]), 0, list[int](), list[int | None]()
        for frame in self._frames_from_start(key_packets=packets):
            if frame.key_frame:
                shown.append(len(index.stamps))
            index.stamps.append(frame.pts)
            size += sum(plane.buffer_size for plane in frame.planes)
            self._kept.append(frame)
            if size > _KEEP_BYTES:
                index.checksums += [frame_index.checksum(self._rgb(kept)) for kept in self._kept]
                self._kept.clear()
        if size > _KEEP_BYTES:
            index.starts = frame_index.pair_starts(shown, packets)
        return index

    def _set_times(self) -> None:
        """From timestamps, or by the mean rate where they are missing or run backwards, as in AVI."""
        step = 1 / self.fps if self.fps else None
        stamps = np.array([stamp for stamp in self._stamps if stamp is not None], dtype=np.int64)
        unit = float(self._stream.time_base or 0)
        if len(stamps) == self.num_frames and unit and (np.diff(stamps) > 0).all():
            start = self._container.start_time  # of the earliest stream, in microseconds
            offset = stamps[0] * unit if start is None else start / 1e6
            self.times = np.asarray(stamps * unit - offset, dtype=np.float64)
            step = self._last_duration * unit or step
        elif step is not None:
            self.times = np.asarray(np.arange(self.num_frames) * step, dtype=np.float64)
        if self.times is not None:
            self.end = float(self.times[-1]) + (step or 0.0)

    # Decoding.

    def _packets(self) -> Iterator[Packet]:
        # PyAV raises it after the last packet where a stream begins late, or where damage looks like a stream.
        with contextlib.suppress(IndexError):
            yield from self._container.demux(self._stream)

    def _frames(
        self,
        wanted: Collection[int | None] | None = None,
        key_packets: list[int | None] | None = None,
        start: int | None = None,
    ) -> Iterator[VideoFrame]:
        """Frames from where the container stands; those of other timestamps than ``wanted`` may be missing.

        The decoding timestamps of key packets are added to ``key_packets``. Packets before that of timestamp ``start``
        are passed over.

        Of H.264, frames that are not wanted and that no other refers to are not decoded: a fifth of a clip's time.
        """
        context = self._stream.codec_context
        if context.name != "h264":
            wanted = None
        try:
            for packet in self._packets():
                if start is not None:
                    if packet.dts != start:
                        continue
                    start = None
                if key_packets is not None and packet.size and packet.is_keyframe:
                    key_packets.append(packet.dts)
                if wanted is not None:
                    context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
                for frame in packet.decode():
                    if frame.is_corrupt:
                        raise VideoError(self.path, "a frame is damaged")
                    yield frame
        except av.FFmpegError as error:
            raise VideoError(self.path, f"decoding failed: the file is damaged ({_reason(error)})") from None

    def _frames_from_start(
        self, wanted: Collection[int | None] | None = None, key_packets: list[int | None] | None = None
    ) -> Iterator[VideoFrame]:
        self._open()  # a seek to the start needs timestamps; a fresh container does not
        return self._frames(wanted, key_packets)

    def _frames_for(self, wanted: set[int]) -> Iterator[VideoFrame]:
        """Frames from the last key frame at or before those ``wanted``; from the start if the seek misses."""
        stamp = min(wanted)
        at = bisect.bisect_right(self._keys, stamp, key=lambda key: key[0]) - 1
        if at < 0:
            return self._frames_from_start(wanted)
        try:
            self._container.seek(self._keys[at][1], stream=self._stream, backward=True)
        except av.FFmpegError:
            return self._frames_from_start(wanted)
        frames = self._frames(wanted)
        first = next(frames, None)
        if first is None or first.pts is None or first.pts > stamp:
            return self._frames_from_start(wanted)
        return itertools.chain([first], frames)

    def _after_seek(self, indices: list[int]) -> list[Frames] | None:
        """Frames of a file whose timestamps are unsound, from the last key frame before them.

        Those that a seek gives are believed only where their pixels are those of the frames when all were decoded in
        order. None where they are not.
        """
        index = cast(FrameIndex, self._frame_index)
        at = bisect.bisect_right(index.starts, indices[0], key=lambda start: start[0]) - 1
        if at < 1:  # the first is the start of the file
            return None
        first, stamp = index.starts[at]
        found: list[Frames] = []
        with contextlib.suppress(av.FFmpegError, VideoError):  # without what comes before, it may seem damaged
            self._container.seek(stamp, stream=self._stream, backward=True)
            frames = itertools.dropwhile(lambda frame: not frame.key_frame, self._frames(start=stamp))
            for number, frame in enumerate(frames, start=first):
                if number == indices[len(found)]:
                    picture = self._rgb(frame)
                    if frame_index.checksum(picture) != index.checksums[number]:
                        break
                    found.append(picture)
                    if len(found) == len(indices):
                        return found
        index.starts.clear()
        return None

    def _decode(self, indices: list[int], size: tuple[int, int] | None) -> list[Frames]:
        if not self._timed and not self._kept and (frames := self._after_seek(indices)) is not None:
            return frames
        found = dict(self._decode_each(indices))
        if len(found) < len(indices):
            lost = len(indices) - len(found)
            raise VideoError(self.path, f"{lost} of {len(indices)} frames could not be decoded: the file is damaged")
        return [found[index] for index in indices]

    def _decode_each(self, indices: list[int]) -> Iterator[tuple[int, Frames]]:
        # What tells a frame from the others: its timestamp, or its place among them.
        keys = [cast(int, self._stamps[i]) for i in indices] if self._timed else indices
        wanted = dict(zip(keys, indices, strict=True))
        numbered: Iterable[tuple[int | None, VideoFrame]]
        if self._timed:
            numbered = ((frame.pts, frame) for frame in self._frames_for(set(wanted)))
        else:
            numbered = enumerate(self._kept or self._frames_from_start())
        left, latest = len(wanted), -(2**63)
        for key, frame in numbered:
            if self._timed and key is not None and latest > key:  # as where files were joined
                self._timed = False
                self._index_frames()
                yield from self._decode_each(indices)
                return
            latest = latest if key is None else key
            if key in wanted:
                yield wanted[key], self._rgb(frame)
                left -= 1
                if left == 0:
                    return

    # Pixels.

    def _rgb(self, frame: VideoFrame) -> Frames:
        """The frame as it is shown: uint8 (H, W, 3), of the size of the video's first frame, upright."""
        size = self._declared_size
        if (frame.width, frame.height) != size and (frame.width, frame.height) != (size := self._first_size):
            warnings.warn(
                f"{self.path}: the size of the picture changes; all frames are resized to that of the first",
                VideoWarning,
                stacklevel=2,
            )
        converted = self._convert(frame, (max(round(size[0] * self._pixel_aspect), 1), size[1]))
        plane = converted.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(converted.height, plane.line_size)
        picture = rows[:, : converted.width * 3].reshape(converted.height, converted.width, 3)
        if frame.rotation not in self._matrices:
            self._matrices[frame.rotation] = display_matrix(frame)
        return _upright(picture, self._matrices[frame.rotation])

    def _convert(self, frame: VideoFrame, size: tuple[int, int]) -> VideoFrame:
        """To RGB and (width, height), by the filters that FFmpeg's tool would take."""
        kind = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)
        if kind not in self._graphs:
            graph = av.filter.Graph()
            graph.threads = 1  # others would be missed, and waited for, by a process that is forked from this one
            source = graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=self._stream.time_base
            )
            filters = [source, graph.add("format", "rgb24"), graph.add("buffersink")]
            if (frame.width, frame.height) != size:
                filters.insert(1, graph.add("scale", f"{size[0]}:{size[1]}:flags=bicubic"))
            graph.link_nodes(*filters).configure()
            self._graphs[kind] = graph
        self._graphs[kind].push(frame)
        return cast(VideoFrame, self._graphs[kind].pull())

    @functools.cached_property
    def _pixel_aspect(self) -> float:
        """A pixel's width by its height."""
        aspect = float(self._stream.sample_aspect_ratio or 1)
        damaged = not 1 / _WIDEST_PIXEL <= aspect <= _WIDEST_PIXEL
        return 1.0 if self._square_pixels or damaged else aspect

    @functools.cached_property
    def _first_size(self) -> tuple[int, int]:
        """(width, height) of the first frame, which may be other than the header says."""
        with contextlib.closing(VideoFile(self.path, only_check=True)) as other:
            first = next(other._frames_from_start())
            return first.width, first.height


def _area(stream: VideoStream) -> int:
    return stream.codec_context.width * stream.codec_context.height


def display_matrix(frame: VideoFrame) -> np.ndarray | None:
    """How the frame is to be shown, (2, 2): its columns and rows, in units of columns and rows of the picture."""
    found = cast(Any, frame.side_data).get(SideData.DISPLAYMATRIX)
    if found is None:
        return None
    matrix = np.frombuffer(bytes(memoryview(found)), np.int32).reshape(3, 3)[:2, :2]
    return None if matrix[0, 0] > 0 and matrix[1, 1] > 0 and not matrix[0, 1] and not matrix[1, 0] else matrix


def _upright(picture: Frames, matrix: np.ndarray | None) -> Frames:
    """Turned and mirrored as the display matrix says, to the nearest quarter turn; phones store portraits sideways."""
    if matrix is None:
        return picture
    sizes = abs(matrix.astype(np.int64))
    if sizes[0, 1] + sizes[1, 0] > sizes[0, 0] + sizes[1, 1]:  # columns are shown as rows
        picture, matrix = picture.swapaxes(0, 1), matrix[::-1]
    return picture[:: -1 if matrix[1, 1] < 0 else 1, :: -1 if matrix[0, 0] < 0 else 1]


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(str(text).split())[:200]
