"""Video files as people have them, against the frames that FFmpeg's own tool decodes: number, order, pixels, times."""

import csv
import struct
import warnings
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from videos import cut_without_encoding, decode_in_order, moving_picture, write_moving

from mae_dfer.data import ClipConfig, ClipDataset, Sample, VideoError, VideoWarning, open_video

KINDS = [
    # container, codec, B-frames, more
    ("mp4", "libx264", 2, {}),
    ("mp4", "libx264", 3, {"gop": 1000}),
    ("mp4", "libx264", 0, {"gop": 1}),
    ("mov", "libx264", 2, {"options": {"x264-params": "open-gop=1"}}),
    ("mp4", "libx264", 2, {"container_options": {"movflags": "frag_keyframe+empty_moov"}}),
    ("mp4", "libx265", 2, {"options": {"x265-params": "log-level=none"}}),  # open GOPs
    ("mp4", "libx264", 2, {"pix_fmt": "yuv420p10le"}),
    ("mp4", "libx264", 2, {"pix_fmt": "yuv444p"}),
    ("mp4", "libx264", 2, {"options": {"flags": "+ilme+ildct", "x264-params": "tff=1"}}),
    ("mp4", "mpeg4", 2, {}),
    ("mov", "mjpeg", 0, {"pix_fmt": "yuvj420p"}),
    ("mov", "prores_ks", 0, {"pix_fmt": "yuv422p10le"}),
    ("mkv", "libx264", 2, {}),
    ("mkv", "ffv1", 0, {}),
    ("webm", "libvpx", 0, {"options": {"auto-alt-ref": "1", "lag-in-frames": "16"}}),  # packets without a picture
    ("webm", "libvpx-vp9", 0, {}),
    ("avi", "libx264", 2, {}),
    ("avi", "mpeg4", 2, {}),
    ("flv", "libx264", 2, {}),
    ("flv", "flv", 0, {}),
    ("ts", "libx264", 2, {}),
    ("mpg", "mpeg2video", 2, {}),
    ("wmv", "wmv2", 0, {}),
    ("ogv", "libtheora", 0, {}),
    ("gif", "gif", 0, {"pix_fmt": "rgb8"}),
]


def assert_same_frames(path, expected, **options):
    with open_video(path, **options) as video:
        assert video.num_frames == len(expected)
        np.testing.assert_array_equal(video.get(range(len(expected))), expected)
        rng = np.random.default_rng(0)
        for count in (1, 1, 2, 4, 9):
            indices = rng.integers(0, len(expected), count)
            np.testing.assert_array_equal(video.get(indices), expected[indices])


@pytest.mark.parametrize(
    ("suffix", "codec", "b_frames", "more"),
    [pytest.param(*kind, id="-".join([*kind[:2], *(str(v) for v in kind[3].values())])[:48]) for kind in KINDS],
)
@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_frames_are_those_that_ffmpeg_decodes(tmp_path, suffix, codec, b_frames, more, decoder):
    if decoder == "decord":
        pytest.importorskip("decord", reason="decord has no wheel for this platform")
    try:
        path = write_moving(tmp_path / f"v.{suffix}", codec=codec, b_frames=b_frames, frames=40, **more)
    except (av.codec.codec.UnknownCodecError, av.FFmpegError) as error:
        pytest.skip(f"this FFmpeg cannot write the file: {error}")
    assert_same_frames(path, decode_in_order(path), decoder=decoder)


@pytest.mark.parametrize(("first", "last"), [(1, None), (7, 40), (12, 13), (24, 59), (31, None)])
@pytest.mark.parametrize(
    ("suffix", "codec"), [("mp4", "libx264"), ("mov", "libx264"), ("mp4", "libx265"), ("mp4", "mpeg4")]
)
def test_a_file_cut_without_encoding_shows_what_its_edit_list_says(tmp_path, suffix, codec, first, last):
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    long = write_moving(tmp_path / "long.mp4", codec=codec, options=options)
    path = cut_without_encoding(long, tmp_path / f"cut.{suffix}", first, last)
    expected = decode_in_order(path)
    assert len(expected) < 60
    for decoder in ("pyav", "decord"):
        assert_same_frames(path, expected, decoder=decoder)
    with open_video(path) as video:  # of the last frames, those that need a frame behind the cut are not there
        np.testing.assert_allclose(video.times[:-3], np.arange(video.num_frames - 3) / 25, atol=1e-6)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 9 // 10])
    with pytest.raises(VideoError, match="truncated"):
        open_video(path)


def test_a_recording_that_starts_between_key_frames(tmp_path):
    long = write_moving(tmp_path / "long.ts", gop=20)
    content = long.read_bytes()
    path = tmp_path / "cut.ts"
    path.write_bytes(content[len(content) // 4 // 188 * 188 :])
    expected = decode_in_order(path)
    assert 20 <= len(expected) < 60
    assert_same_frames(path, expected)


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
@pytest.mark.parametrize("source", ["avi", "joined"])
def test_timestamps_that_contradict_the_order_of_frames_are_not_believed(tmp_path, source, decoder):
    """A copy of an AVI counts frames as they are stored, and so may one of files that are joined."""
    whole = write_moving(tmp_path / ("v.mp4" if source == "joined" else "v.avi"))
    path = tmp_path / "copy.mp4"
    with av.open(str(whole)) as given, av.open(str(path), "w") as out:
        copy = out.add_stream_from_template(given.streams.video[0])
        packets = [packet for packet in given.demux(given.streams.video[0]) if packet.size]
        for number, packet in enumerate(packets):
            packet.time_base = Fraction(1, 25)
            if source != "joined" or number >= 40:
                packet.pts = packet.dts = number
            else:
                packet.pts, packet.dts = packet.pts // 512, packet.dts // 512
            packet.stream = copy
            out.mux(packet)
    with open_video(path, decoder=decoder) as video:
        np.testing.assert_array_equal(video.get(range(60)), decode_in_order(path))
    with open_video(path, decoder=decoder) as video:
        np.testing.assert_array_equal(np.stack(list(video.stream())), decode_in_order(path))
    assert_same_frames(path, decode_in_order(path), decoder=decoder)


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_pictures_that_are_renewed_piece_by_piece(tmp_path, decoder):
    """With intra refresh, what a container calls a key frame is one from which pictures become whole in time."""
    options = {"x264-params": "intra-refresh=1:keyint=20"}
    path = write_moving(tmp_path / "v.mp4", b_frames=0, gop=20, frames=90, options=options)
    expected = decode_in_order(path)
    with open_video(path, decoder=decoder) as video:
        for i in range(0, 90, 3):
            np.testing.assert_array_equal(video.get([i])[0], expected[i])


def test_damage_that_looks_like_another_stream_is_read_or_named(tmp_path):
    """PyAV's demuxer raises an IndexError then."""
    data = write_moving(tmp_path / "v.flv").read_bytes()
    path = tmp_path / "d.flv"
    for kept in range(1, 9):
        middle = len(data) * kept // 10
        path.write_bytes(data[:middle] + bytes(3000) + data[middle + 3000 :])
        try:
            with open_video(path) as video:
                video.get(range(video.num_frames))
        except VideoError as error:
            assert error.path == str(path)


# Times.


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov", "flv"])
def test_times_are_those_at_which_frames_are_shown(tmp_path, suffix):
    """The rate drops from 25 to 2.5 frames a second after 20 frames."""
    stamps = [40 * i for i in range(20)] + [800 + 400 * i for i in range(18)]
    path = write_moving(tmp_path / f"v.{suffix}", frames=38, stamps=stamps, b_frames=0)
    with open_video(path) as video:
        np.testing.assert_allclose(video.times, np.array(stamps) / 1000, atol=2e-3)
        assert 7.6 + 0.04 <= video.end <= 7.6 + 0.45
        assert video.num_frames == 38


@pytest.mark.parametrize(("suffix", "offset"), [("ts", 250), ("mkv", 250), ("mp4", 250), ("avi", 0)])
def test_times_count_from_where_players_start(tmp_path, suffix, offset):
    codec = "mpeg4" if suffix == "avi" else "libx264"
    path = write_moving(tmp_path / f"v.{suffix}", frames=10, start=offset, codec=codec)
    with open_video(path) as video:
        np.testing.assert_allclose(np.diff(video.times), 0.04, atol=2e-3)
        assert video.times[0] == pytest.approx(0, abs=0.05) and video.end == pytest.approx(0.4, abs=0.05)


def test_predictions_carry_the_times_of_their_frames(tmp_path):
    from mae_dfer import create_model
    from mae_dfer.predict import predict_clip, write_csv

    stamps = [40 * i for i in range(20)] + [800 + 400 * i for i in range(18)]
    path = write_moving(tmp_path / "v.mp4", frames=38, stamps=stamps, b_frames=0)
    sizes = {"img_size": 32, "num_frames": 4, "embed_dim": 16, "depth": 1, "num_heads": 1, "region_size": (2, 1, 2)}
    model = create_model("lgi_former_tiny_patch16_160", num_classes=2, **sizes).eval()
    windows = predict_clip(path, model, stride=4)
    write_csv(windows, ["left", "right"], tmp_path / "out.csv")
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    shown = [*(stamp / 1000 for stamp in stamps), None]
    for row in rows:
        assert float(row["start_seconds"]) == pytest.approx(shown[int(row["start_frame"])], abs=2e-3)
        end = int(row["end_frame"])
        if end < 38:
            assert float(row["end_seconds"]) == pytest.approx(shown[end], abs=2e-3)
    assert int(rows[-1]["end_frame"]) == 38 and 7.6 < float(rows[-1]["end_seconds"]) <= 8.05


# Pixels.


@pytest.mark.parametrize(("aspect", "shown"), [("16/15", 102), ("1/2", 48), ("2/1", 192), ("1/1", 96)])
@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "libx264"), ("mkv", "libx264"), ("avi", "mpeg4")])
def test_pixels_that_are_not_square_are_shown_as_wide_as_they_are(tmp_path, suffix, codec, aspect, shown):
    path = write_moving(tmp_path / f"v.{suffix}", codec=codec, frames=12, aspect=aspect)
    with open_video(path) as video:
        assert video.get([5, 9]).shape == (2, 64, shown, 3)
    assert_same_frames(path, decode_in_order(path), square_pixels=True)


def test_the_published_protocol_takes_all_pixels_for_square(tmp_path):
    path = write_moving(tmp_path / "v.mp4", frames=12, aspect="2/1")
    for protocol, width in (("corrected", 192), ("published", 96)):
        dataset = ClipDataset([Sample(str(path), 0)], ClipConfig(protocol=protocol, num_frames=4, stride=1), "test")
        assert dataset._frames(str(path), 0, np.random.default_rng(0)).shape == (4, 64, width, 3)


def test_prediction_takes_pixels_for_square_where_that_is_asked_for(tmp_path):
    import mae_dfer
    from mae_dfer.checkpoint import save_weights

    sizes = {"img_size": 32, "num_frames": 4, "embed_dim": 16, "depth": 1, "num_heads": 1, "region_size": (2, 1, 2)}
    model = mae_dfer.create_model("lgi_former_tiny_patch16_160", num_classes=2, **sizes)
    for trained in ("corrected", "published"):
        path = tmp_path / f"{trained}.safetensors"
        save_weights(model, path, {"classes": ["a", "b"], "stride": 1, "protocol": trained})
        assert mae_dfer.load(path).square_pixels is (trained == "published")
        for asked in ("corrected", "published"):
            assert mae_dfer.load(path, protocol=asked).square_pixels is (asked == "published")


ORIENTATIONS = {  # (a, b, c, d) of the track's matrix -> what is shown
    "upright": ((1, 0, 0, 1), lambda p: p),
    "quarter turn": ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),
    "half turn": ((-1, 0, 0, -1), lambda p: np.rot90(p, 2)),
    "three quarters": ((0, -1, 1, 0), lambda p: np.rot90(p, 1)),
    "mirrored": ((-1, 0, 0, 1), lambda p: p[:, ::-1]),
    "upside down": ((1, 0, 0, -1), lambda p: p[::-1]),
    "transposed": ((0, 1, 1, 0), lambda p: p.swapaxes(0, 1)),
    "transposed, half turn": ((0, -1, -1, 0), lambda p: np.rot90(p, 2).swapaxes(0, 1)),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_frames_are_turned_and_mirrored_as_the_file_says(tmp_path, orientation, decoder):
    matrix, shown = ORIENTATIONS[orientation]
    path = write_moving(tmp_path / "v.mp4", frames=6)
    with open_video(path) as video:
        stored = video.get([3])[0]
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # version 0: 40 bytes precede the matrix
    one = 0x10000
    a, b, c, d = (value * one for value in matrix)
    struct.pack_into(">9i", data, at, a, b, 0, c, d, 0, 0, 0, 0x40000000)
    path.write_bytes(data)
    with open_video(path, decoder=decoder) as video:
        np.testing.assert_array_equal(video.get([3])[0], shown(stored))


@pytest.mark.parametrize("suffix", ["h264", "ts", "webm"])
def test_a_picture_whose_size_changes_is_resized_to_the_first(tmp_path, suffix):
    path = tmp_path / f"v.{suffix}"
    if suffix == "webm":  # sizes stand in the frames
        parts = [write_moving(tmp_path / f"{i}.webm", codec="libvpx-vp9", b_frames=0, frames=12, size=size)
                 for i, size in enumerate(((96, 64), (64, 80)))]  # fmt: skip
        with av.open(str(path), "w") as out, av.open(str(parts[0])) as first, av.open(str(parts[1])) as second:
            copy = out.add_stream_from_template(first.streams.video[0])
            for offset, given in ((0, first), (480, second)):
                for packet in given.demux(given.streams.video[0]):
                    if packet.size:
                        packet.pts, packet.dts, packet.stream = packet.pts + offset, packet.dts + offset, copy
                        out.mux(packet)
    else:
        parts = [write_moving(tmp_path / f"{i}.{suffix}", frames=12, size=size)
                 for i, size in enumerate(((96, 64), (64, 80)))]  # fmt: skip
        path.write_bytes(b"".join(part.read_bytes() for part in parts))
    with warnings.catch_warnings(record=True) as caught, open_video(path) as video:
        warnings.simplefilter("default")
        frames = video.get(range(video.num_frames))
        video.get([video.num_frames - 1])
    assert frames.shape == (24, 64, 96, 3)
    assert [w.category for w in caught] == [VideoWarning] and str(path) in str(caught[0].message)
    with open_video(parts[0]) as video:
        np.testing.assert_array_equal(frames[:12], video.get(range(12)))
    expected = Image.fromarray(moving_picture(6, 64, 80)).resize((96, 64))
    assert np.abs(frames[18] - np.asarray(expected, dtype=float)).mean() < 8


def test_the_real_stream_is_taken_where_a_cover_stands_beside_it(tmp_path):
    path = write_moving(tmp_path / "v.mp4", frames=12)
    cover = write_moving(tmp_path / "c.mov", codec="mjpeg", pix_fmt="yuvj420p", b_frames=0, frames=1, size=(640, 480))
    both = tmp_path / "both.mkv"
    with av.open(str(path)) as film, av.open(str(cover)) as still, av.open(str(both), "w") as out:
        streams = [(still, out.add_stream_from_template(still.streams.video[0])),
                   (film, out.add_stream_from_template(film.streams.video[0]))]  # fmt: skip
        streams[0][1].disposition = av.stream.Disposition.attached_pic
        streams[1][1].disposition = av.stream.Disposition.default
        for given, copy in streams:
            for packet in given.demux(given.streams.video[0]):
                if packet.size:
                    packet.stream = copy
                    out.mux(packet)
    with open_video(both) as video:
        assert video.num_frames == 12 and video.get([3]).shape == (1, 64, 96, 3)


def test_zeroed_bytes_are_told_from_a_truncated_file(tmp_path):
    data = bytearray(write_moving(tmp_path / "v.mp4", container_options={"movflags": "faststart"}).read_bytes())
    middle = len(data) * 3 // 4
    data[middle : middle + 500] = bytes(500)
    path = tmp_path / "d.mp4"
    path.write_bytes(data)
    with open_video(path) as video:
        video.get([0, 5])  # frames before the damage can be read
        with pytest.raises(VideoError, match="damaged") as caught:
            video.get(range(60))
    assert "truncated" not in str(caught.value) and Path(caught.value.path) == path
