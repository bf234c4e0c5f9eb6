"""Video files too large to keep decoded, whose frames only decoding tells: they are decoded from a key frame on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from test_video_files import KINDS, assert_same_frames
from videos import decode_in_order, write_moving

from mae_dfer.data import frame_index, open_video, video_file
from mae_dfer.data.frame_index import FrameIndex, pair_starts
from mae_dfer.data.video_file import VideoFile


@pytest.fixture(autouse=True)
def keep_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_file, "_KEEP_BYTES", 0)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A path for every frame that is decoded."""
    found: list[str] = []
    frames = VideoFile._frames

    def count(self: VideoFile, *arguments: Any, **more: Any) -> Iterator[Any]:
        for frame in frames(self, *arguments, **more):
            found.append(self.path)
            yield frame

    monkeypatch.setattr(VideoFile, "_frames", count)
    return found


@pytest.mark.parametrize(
    ("suffix", "codec", "b_frames", "more"),
    [pytest.param(*kind, id="-".join([*kind[:2], *(str(v) for v in kind[3].values())])[:48]) for kind in KINDS],
)
def test_frames_after_a_seek_are_those_that_ffmpeg_decodes(
    suffix: str, codec: str, b_frames: int, more: dict[str, Any], tmp_path: Path
) -> None:
    try:
        path = write_moving(tmp_path / f"v.{suffix}", codec=codec, b_frames=b_frames, frames=40, **more)
    except (av.codec.codec.UnknownCodecError, av.FFmpegError) as error:
        pytest.skip(f"this FFmpeg cannot write the file: {error}")
    expected = decode_in_order(path)
    for _ in range(2):  # the second time from what the first has learnt
        assert_same_frames(path, expected)


@pytest.mark.parametrize(
    ("suffix", "codec", "b_frames"),
    [("avi", "mpeg4", 2), ("avi", "mpeg4", 0), ("avi", "mjpeg", 0), ("avi", "libx264", 0), ("mov", "prores_ks", 0)],
)
def test_no_window_costs_more_than_from_its_key_frame_on(
    suffix: str, codec: str, b_frames: int, tmp_path: Path, decoded: list[str]
) -> None:
    formats = {"mjpeg": "yuvj420p", "prores_ks": "yuv422p10le"}
    path = write_moving(tmp_path / f"v.{suffix}", codec=codec, b_frames=b_frames, frames=120,
                        pix_fmt=formats.get(codec, "yuv420p"))  # fmt: skip
    expected = decode_in_order(path)
    with open_video(path) as video:
        assert len(decoded) == 120
        for start in range(0, 112, 4):  # as prediction goes through a video
            window = np.arange(start, start + 8)
            decoded.clear()
            np.testing.assert_array_equal(video.get(window), expected[window])
            assert len(decoded) <= 12 + 8 + 2
    decoded.clear()
    with open_video(path) as video:  # as the next epoch opens it
        np.testing.assert_array_equal(video.get([100, 101]), expected[[100, 101]])
    assert len(decoded) <= 12 + 2 + 2


def test_a_seek_that_misleads_is_noticed(tmp_path: Path, decoded: list[str]) -> None:
    path = write_moving(tmp_path / "v.avi", codec="mpeg4", frames=60)
    expected = decode_in_order(path)
    with open_video(path) as video:
        index = video._frame_index  # type: ignore[attr-defined]
        true = list(index.starts)
        for wrong in (
            [(frame, stamp + 1) for frame, stamp in true],  # no packet has it
            [(frame + 1, stamp) for frame, stamp in true],
            [(frame, true[0][1]) for frame, _ in true],
            [(frame, true[-1][1]) for frame, _ in true],
        ):
            index.starts[:] = wrong
            np.testing.assert_array_equal(video.get([41, 47]), expected[[41, 47]])
            assert not index.starts, "it is not tried again"
            np.testing.assert_array_equal(video.get([30, 59]), expected[[30, 59]])


def test_a_stream_that_appears_in_the_middle_costs_no_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyAV raises IndexError at the end of a file in which damage looks like a stream that the header does not name."""

    class Late:
        def __init__(self, container: Any) -> None:
            self._container = container

        def __getattr__(self, name: str) -> Any:
            return getattr(self._container, name)

        def demux(self, stream: Any) -> Iterator[Any]:
            yield from self._container.demux(stream)
            raise IndexError("list index out of range")

    opened = VideoFile._open

    def open_late(self: VideoFile) -> None:
        opened(self)
        self._container = Late(self._container)  # type: ignore[assignment]

    for suffix, codec in (("flv", "libx264"), ("avi", "mpeg4")):
        path = write_moving(tmp_path / f"v.{suffix}", codec=codec, frames=30)
        expected = decode_in_order(path)
        with monkeypatch.context() as patch:
            patch.setattr(VideoFile, "_open", open_late)
            assert_same_frames(path, expected)


def test_a_file_that_has_changed_is_indexed_again(tmp_path: Path) -> None:
    path = write_moving(tmp_path / "v.avi", codec="mpeg4", frames=30)
    with open_video(path) as video:
        assert video.num_frames == 30
    write_moving(path, codec="mpeg4", frames=20)
    os.utime(path, ns=(1, 1))
    assert_same_frames(path, decode_in_order(path))


def test_the_number_of_remembered_files_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_index, "_REMEMBERED", 2)
    frame_index._indices.clear()
    for name in "abc":
        (tmp_path / name).write_text(name)
        frame_index.remember(str(tmp_path / name), FrameIndex([0]))
    assert frame_index.recall(str(tmp_path / "a")) is None and frame_index.recall(str(tmp_path / "c")) is not None


def test_key_frames_that_do_not_correspond_to_packets_are_no_starts() -> None:
    assert pair_starts([0, 12], [0, 12]) == [(0, 0), (12, 12)]
    for shown, packets in (([0, 12], [0]), ([0, 12], [0, None]), ([0, 12], [12, 0]), ([0, 12], [5, 5]), ([0], [0, 1])):
        assert pair_starts(shown, packets) == []
