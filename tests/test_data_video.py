"""Reading frames: order, exact seeking, rotation, and files that are not what they seem."""

import gc
import pickle
import struct

import av
import numpy as np
import pytest
from PIL import Image

from mae_dfer.data import VideoError, open_video, video_file

FRAMES, SIDE = 50, 48


def grey(i):
    return 20 + 4 * i


def write_video(path, *, num_frames=FRAMES, codec="libx264", gop=12, b_frames=2, **options):
    """Frame i is flat grey(i) with a bright block in the top left corner."""
    with av.open(str(path), "w", options=options) as out:
        stream = out.add_stream(codec, rate=25)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        stream.gop_size, stream.max_b_frames = gop, b_frames
        stream.bit_rate = 4_000_000
        for i in range(num_frames):
            frame = np.full((SIDE, SIDE, 3), grey(i), dtype=np.uint8)
            frame[:8, :8] = 255
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())
    return path


def read_greys(path, indices):
    with open_video(path) as video:
        frames = video.get(indices)
    assert frames.dtype == np.uint8 and frames.shape == (len(indices), SIDE, SIDE, 3)
    return frames[:, 20:, 20:].mean(axis=(1, 2, 3))


CONTAINERS = [
    pytest.param("mp4", "libx264", 2, id="mp4-h264"),
    pytest.param("mkv", "libx264", 2, id="mkv-h264"),
    pytest.param("flv", "libx264", 2, id="flv-h264"),
    pytest.param("mp4", "mpeg4", 2, id="mp4-mpeg4"),
    # No usable timestamps: readers that seek by them return other frames here.
    pytest.param("avi", "libx264", 2, id="avi-h264"),
    pytest.param("avi", "mpeg4", 2, id="avi-mpeg4"),
    pytest.param("mpg", "mpeg2video", 0, id="mpg"),
]


@pytest.mark.parametrize(("suffix", "codec", "b_frames"), CONTAINERS)
@pytest.mark.parametrize("keep_bytes", [None, 0], ids=["kept", "decoded-again"])
def test_every_index_gives_its_own_frame(tmp_path, monkeypatch, suffix, codec, b_frames, keep_bytes):
    if keep_bytes is not None:
        monkeypatch.setattr(video_file, "_KEEP_BYTES", keep_bytes)
    path = write_video(tmp_path / f"v.{suffix}", codec=codec, b_frames=b_frames)
    with open_video(path) as video:
        assert video.num_frames == FRAMES
        assert video.fps == pytest.approx(25)
    for indices in ([0], [49], [13], [11, 12, 13, 14], [40, 7, 7, 25], list(range(1, 50, 3))):
        np.testing.assert_allclose(read_greys(path, indices), [grey(i) for i in indices], atol=1.9)


@pytest.mark.parametrize(("suffix", "codec", "b_frames"), CONTAINERS)
@pytest.mark.parametrize("keep_bytes", [None, 0], ids=["kept", "decoded-again"])
def test_a_stream_gives_the_same_frames_one_by_one(tmp_path, monkeypatch, suffix, codec, b_frames, keep_bytes):
    if keep_bytes is not None:
        monkeypatch.setattr(video_file, "_KEEP_BYTES", keep_bytes)
    with open_video(write_video(tmp_path / f"v.{suffix}", codec=codec, b_frames=b_frames)) as video:
        for indices in (range(FRAMES), range(20, 41), [5, 13, 30], []):
            streamed = list(video.stream(indices))
            assert len(streamed) == len(indices)
            for frame, expected in zip(streamed, video.get(indices) if indices else (), strict=True):
                np.testing.assert_array_equal(frame, expected)
        np.testing.assert_array_equal(next(video.stream()), video.get([0])[0])
        with pytest.raises(IndexError, match="0 … 50 asked of 50"):
            next(video.stream(range(FRAMES + 1)))


def test_a_stream_keeps_few_frames_in_memory(tmp_path):
    path = write_video(tmp_path / "v.mp4")
    gc.collect()
    gc.disable()  # it comes too late for large frames
    try:
        with open_video(path) as video:
            assert sum(1 for _ in video.stream()) == FRAMES
            alive = sum(type(one) is av.VideoFrame for one in gc.get_objects())
    finally:
        gc.enable()
    assert alive < 12


def test_a_stream_ends_with_an_error_where_a_frame_is_lost(tmp_path):
    path = write_video(tmp_path / "v.mp4", b_frames=0)
    with open_video(path) as video:
        video._stamps[20] += 1  # as if no packet gave this frame
        frames = video.stream()
        for index in range(20):
            np.testing.assert_allclose(next(frames)[20:].mean(), grey(index), atol=1.9)
        with pytest.raises(VideoError, match=r"v\.mp4: 1 of 1 frames could not be decoded: the file is damaged"):
            next(frames)


def test_one_open_video_serves_many_requests(tmp_path):
    with open_video(write_video(tmp_path / "v.mp4")) as video:
        first = video.get([30, 31])
        video.get([49])
        video.get([0])
        np.testing.assert_array_equal(video.get([30, 31]), first)


def test_names_may_hold_spaces_and_colons(tmp_path):
    write_video(tmp_path / "v.mp4").rename(tmp_path / "12:30 clip #1.mp4")
    np.testing.assert_allclose(read_greys(tmp_path / "12:30 clip #1.mp4", [5]), [grey(5)], atol=1.9)


def test_indices_outside_are_a_programming_error(tmp_path):
    with open_video(write_video(tmp_path / "v.mp4", num_frames=4)) as video:
        for bad in ([4], [-1], []):
            with pytest.raises(IndexError):
                video.get(bad)


def test_phone_videos_are_turned_upright(tmp_path):
    path = write_video(tmp_path / "v.mp4", num_frames=3)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # version 0: 40 bytes precede the matrix
    one = 0x10000
    assert struct.unpack_from(">9i", data, at) == (one, 0, 0, 0, one, 0, 0, 0, 0x40000000)
    # What phones write for portrait: a quarter turn clockwise to show the picture.
    struct.pack_into(">9i", data, at, 0, one, 0, -one, 0, 0, SIDE * one, 0, 0x40000000)
    path.write_bytes(data)
    with open_video(path) as video:
        frame = video.get([0])[0]
    corners = [frame[:6, :6], frame[:6, -6:], frame[-6:, :6], frame[-6:, -6:]]
    assert [int(c.mean() > 150) for c in corners] == [0, 1, 0, 0]  # top left has gone to top right


def frame_folder(folder, num_frames=12, suffix="png", name="img_{}"):
    folder.mkdir()
    for i in range(num_frames):
        Image.new("RGB", (SIDE, SIDE), (grey(i),) * 3).save(folder / f"{name.format(i)}.{suffix}")
    return folder


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_frame_folders_come_in_natural_order(tmp_path, suffix):
    folder = frame_folder(tmp_path / "my clip", suffix=suffix)
    (folder / "notes.txt").write_text("not a frame")
    (folder / "._img_0.png").write_bytes(b"resource fork")
    with open_video(folder) as video:
        assert video.num_frames == 12 and video.fps is None
    np.testing.assert_allclose(read_greys(folder, [11, 2, 10, 2]), [grey(i) for i in (11, 2, 10, 2)], atol=1)


def test_a_frame_folder_equals_its_video(tmp_path):
    video_path = write_video(tmp_path / "v.mp4")
    (tmp_path / "frames").mkdir()
    with open_video(video_path) as video:
        frames = video.get(range(FRAMES))
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / "frames" / f"{i}.png")
    with open_video(tmp_path / "frames") as folder:
        np.testing.assert_array_equal(folder.get(range(FRAMES)), frames)


def test_a_grey_or_transparent_image_becomes_one_rgb_frame(tmp_path):
    for mode, colour in (("L", 90), ("RGBA", (90, 90, 90, 255)), ("P", 0)):
        path = tmp_path / f"{mode}.png"
        Image.new(mode, (SIDE, SIDE), colour).save(path)
        with open_video(path) as video:
            assert video.num_frames == 1
            assert video.get([0, 0, 0]).shape == (3, SIDE, SIDE, 3)


def sound_with_cover(folder):
    """An mp3 whose ID3 tag holds a picture, byte by byte."""
    with av.open(str(folder / "s.mp3"), "w") as out:
        stream = out.add_stream("libmp3lame", rate=44100, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 4410), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 44100
        out.mux(stream.encode(sound))
        out.mux(stream.encode())
    Image.effect_noise((SIDE, SIDE), 60).save(folder / "cover.jpg")
    picture = b"\0image/jpeg\0\3\0" + (folder / "cover.jpg").read_bytes()
    frame = b"APIC" + struct.pack(">IH", len(picture), 0) + picture
    size = bytes(len(frame) >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\3\0\0" + size + frame + (folder / "s.mp3").read_bytes()


def broken(tmp_path, kind):
    path = tmp_path / f"{kind}.mp4"
    if kind == "text":
        path.write_text("this is no video\n" * 100)
    elif kind == "empty":
        path.touch()
    elif kind == "no index":  # an mp4 whose index, at the end, is cut off
        path.write_bytes(write_video(tmp_path / "v.mp4").read_bytes()[:-500])
    elif kind == "truncated mkv":
        whole = write_video(tmp_path / "v.mkv").read_bytes()
        path = tmp_path / "t.mkv"
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "truncated avi":
        whole = write_video(tmp_path / "v.avi", codec="mpeg4").read_bytes()
        path = tmp_path / "t.avi"
        path.write_bytes(whole[: len(whole) * 7 // 10])
    elif kind == "no video stream":
        path = tmp_path / "a.wav"
        with av.open(str(path), "w") as out:
            stream = out.add_stream("pcm_s16le", rate=8000, layout="mono")
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
            sound.sample_rate = 8000
            out.mux(stream.encode(sound))
            out.mux(stream.encode())
    elif kind == "empty folder":
        path = tmp_path / "folder"
        path.mkdir()
    elif kind == "truncated image":
        path = tmp_path / "i.jpg"
        Image.effect_noise((SIDE, SIDE), 60).save(path)
        path.write_bytes(path.read_bytes()[:-300])
    elif kind == "html":
        path.write_text("<!DOCTYPE html><html><body>Not found</body></html>")
    elif kind == "pointer":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    elif kind == "zeros":
        path.write_bytes(bytes(5000))
    elif kind == "text with another name":  # FFmpeg would draw it
        path = tmp_path / "notes.txt"
        path.write_text("this is no video\n" * 100)
    elif kind == "pointer image":
        path = tmp_path / "i.png"
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    elif kind == "sound with a cover":
        path = tmp_path / "song.mp3"
        path.write_bytes(sound_with_cover(tmp_path))
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "no such file"),
        ("text", "not a readable video"),
        ("empty", "is empty"),
        ("no index", "not a readable video file: the file is truncated"),
        ("html", "an HTML page"),
        ("pointer", "a Git LFS pointer"),
        ("zeros", "a block of zeros"),
        ("text with another name", "a text file"),
        ("pointer image", r"cannot read image .*i\.png.*a Git LFS pointer"),
        ("sound with a cover", "only a cover picture"),
        ("truncated mkv", "truncated"),
        ("truncated avi", "truncated"),
        ("no video stream", "no video stream"),
        ("empty folder", "holds no frames"),
        ("truncated image", r"cannot read image .*i\.jpg"),
    ],
)
def test_broken_inputs_name_path_and_reason(tmp_path, kind, reason):
    path = broken(tmp_path, kind)
    with pytest.raises(VideoError, match=reason) as caught, open_video(path) as video:
        video.get(range(video.num_frames))
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize(
    ("suffix", "codec", "flags"),
    [
        pytest.param("mp4", "libx264", "faststart", id="mp4-index-in-front"),
        pytest.param("mp4", "libx264", None, id="mp4-index-at-the-end"),
        pytest.param("mov", "libx264", "frag_keyframe+empty_moov+skip_trailer", id="mov-fragments"),
        pytest.param("mkv", "libx264", None, id="mkv"),
        pytest.param("webm", "libvpx", None, id="webm"),
        pytest.param("avi", "mpeg4", None, id="avi"),
    ],
)
def test_a_truncated_file_is_refused(tmp_path, suffix, codec, flags, kept):
    options = {} if flags is None else {"movflags": flags}
    b_frames = 0 if codec == "libvpx" else 2
    whole = write_video(tmp_path / f"v.{suffix}", codec=codec, b_frames=b_frames, **options).read_bytes()
    path = tmp_path / f"t.{suffix}"
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(VideoError, match="truncated"):
        open_video(path)


def test_bytes_after_the_last_box_are_no_damage(tmp_path):
    for suffix in ("mp4", "mkv", "avi"):
        path = write_video(tmp_path / f"v.{suffix}")
        path.write_bytes(path.read_bytes() + b"\0" * 999)
        with open_video(path) as video:
            assert video.num_frames == FRAMES and video.get([FRAMES - 1]).any()


def test_damage_in_the_middle_is_found_when_its_frames_are_read(tmp_path):
    data = bytearray(write_video(tmp_path / "v.mp4", movflags="faststart").read_bytes())
    middle = len(data) * 3 // 4
    data[middle : middle + 300] = bytes(300)
    path = tmp_path / "d.mp4"
    path.write_bytes(data)
    with open_video(path) as video, pytest.raises(VideoError, match="decod|damaged"):
        video.get(range(FRAMES))


def test_errors_cross_process_borders():
    error = pickle.loads(pickle.dumps(VideoError("a b.mp4", "broken")))
    assert (error.path, error.reason, str(error)) == ("a b.mp4", "broken", "a b.mp4: broken")


def test_decord_and_pyav_give_the_same_pixels(tmp_path):
    pytest.importorskip("decord", reason="decord has no wheel for this platform")
    path = tmp_path / "wide.mp4"
    frames = np.random.default_rng(0).integers(0, 255, (12, 64, 96, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    wanted = [0, 11, 3, 3, 7]
    with open_video(path, decoder="decord") as video:
        by_decord = video.get(wanted)
        assert video.reader == "decord"
    with open_video(path) as video:
        np.testing.assert_array_equal(by_decord, video.get(wanted))
