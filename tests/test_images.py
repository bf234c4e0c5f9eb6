"""Images of every kind that people have, alone and as the frames of a folder."""

import importlib.util
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from mae_dfer.data import ClipConfig, ClipDataset, Sample, VideoError, VideoWarning, open_video

GREY = np.arange(48 * 32, dtype=np.uint16).reshape(32, 48) * 41 + 500  # 500 … 63,435


def read(path):
    with open_video(path) as video:
        assert video.num_frames == 1 and video.times is None and video.end is None
        return video.get([0])[0]


def write_png16(path, values, colours):
    """A 16-bit PNG of one or three colours, which Pillow does not write."""
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = values.shape
    rows = np.repeat(values[..., None], colours, axis=-1).astype(">u2").reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 16, 0 if colours == 1 else 2, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))


@pytest.mark.parametrize("name", ["i.png", "rgb.png", "i.tif", "i.tiff", "i.pgm", "big-endian.tif"])
def test_sixteen_bits_keep_their_upper_byte(tmp_path, name):
    path = tmp_path / name
    if path.suffix == ".png":
        write_png16(path, GREY, 3 if name == "rgb.png" else 1)
    elif path.suffix == ".pgm":
        path.write_bytes(b"P5 48 32 65535\n" + GREY.astype(">u2").tobytes())
    elif name == "big-endian.tif":
        Image.frombytes("I;16B", (48, 32), GREY.astype(">u2").tobytes()).save(path)
    else:
        Image.fromarray(GREY).save(path)
    np.testing.assert_array_equal(read(path), np.repeat((GREY >> 8).astype(np.uint8)[..., None], 3, axis=-1))


@pytest.mark.parametrize("mode", ["F", "I"])
def test_values_of_unknown_range_are_refused(tmp_path, mode):
    path = tmp_path / "i.tif"
    Image.fromarray((GREY * 70.0).astype(np.float32 if mode == "F" else np.int32)).save(path)
    with pytest.raises(VideoError, match=r"i\.tif.*save it with 8 or 16 bits"):
        read(path)


def test_transparent_palette_and_other_modes_show_their_colours(tmp_path):
    colours = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)).quantize(32)
    expected = np.asarray(colours.convert("RGB"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, transparency in (("one.png", 3), ("bytes.png", bytes(range(0, 256, 8)))):
            colours.save(tmp_path / name, transparency=transparency)
            np.testing.assert_array_equal(read(tmp_path / name), expected)
        Image.fromarray(expected).convert("RGBA").save(tmp_path / "rgba.png")
        np.testing.assert_array_equal(read(tmp_path / "rgba.png"), expected)
        for name in ("1.png", "L.png", "LA.png", "1.tif", "L.pgm", "1.pbm"):
            image = Image.fromarray(expected).convert("L").convert(name.split(".")[0])
            image.save(tmp_path / name)
            np.testing.assert_array_equal(read(tmp_path / name), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("name", ["i.jpg", "i.tif"])
def test_inks_become_light(tmp_path, name):
    """A red square on white, in the inks of print."""
    picture = np.full((32, 48, 3), 255, np.uint8)
    picture[8:24, 8:24] = (255, 0, 0)
    Image.fromarray(picture).convert("CMYK").save(tmp_path / name)
    assert np.abs(read(tmp_path / name).astype(int) - picture).mean() < 8


@pytest.mark.parametrize("name", ["i.jpg", "i.png", "i.webp", "i.tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(tmp_path, name, orientation):
    picture = np.zeros((32, 48, 3), np.uint8)
    picture[:12, :12] = 255  # where the first row and the first column meet
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture).save(tmp_path / name, exif=exif)
    shown = read(tmp_path / name)
    corners = [shown[:4, :4], shown[:4, -4:], shown[-4:, :4], shown[-4:, -4:]]
    where = {1: 0, 2: 1, 3: 3, 4: 2, 5: 0, 6: 1, 7: 3, 8: 2}[orientation]  # by the Exif standard
    assert [i for i, corner in enumerate(corners) if corner.mean() > 128] == [where]
    assert shown.shape == ((32, 48, 3) if orientation < 5 else (48, 32, 3))


def test_heic_images_need_a_package_and_say_so(tmp_path, monkeypatch):
    path = tmp_path / "i.HEIC"
    path.write_bytes(b"\0\0\0\x18ftypheic")
    if importlib.util.find_spec("pillow_heif") is None:
        with pytest.raises(VideoError, match="pip install pillow-heif"):
            read(path)
    else:
        importlib.import_module("pillow_heif").register_heif_opener()
        Image.fromarray((GREY >> 8).astype(np.uint8)).convert("RGB").save(path, format="HEIF", quality=95)
        assert np.abs(read(path)[..., 0].astype(int) - (GREY >> 8)).mean() < 4


def mixed_folder(folder):
    folder.mkdir()
    for i, size in enumerate([(60, 40), (50, 50), (60, 40), (70, 30)]):
        Image.new("RGB", size, (50 * i, 100, 30)).save(folder / f"{i}.png")
    return folder


def test_frames_of_different_sizes_are_resized_and_that_is_said_once(tmp_path):
    path = mixed_folder(tmp_path / "faces")
    with warnings.catch_warnings(record=True) as caught, open_video(path) as video:
        warnings.simplefilter("default")
        frames = video.get(range(4))
        assert video.get([1]).shape == video.get([0]).shape == (1, 40, 60, 3)
        assert video.get([1, 3], size=(20, 20)).shape == (2, 20, 20, 3)
    assert frames.shape == (4, 40, 60, 3) and [int(frame[0, 0, 0]) for frame in frames] == [0, 50, 100, 150]
    assert [w.category for w in caught] == [VideoWarning] and str(path) in str(caught[0].message)


@pytest.mark.filterwarnings("ignore::mae_dfer.data.VideoWarning")
def test_a_clip_of_different_sizes_is_resized_once_from_each_frame_to_the_clip(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "faces"
    folder.mkdir()
    images = [Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for side in (90, 100, 110, 120)]
    for i, image in enumerate(images):
        image.save(folder / f"{i}.png")
    config = ClipConfig(num_frames=4, stride=1, img_size=32, num_segments=1)
    clip = ClipDataset([Sample(str(folder), 0)], config, "test")[(0, 0)]["clip"]
    expected = np.stack([np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR)) for image in images])
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(clip.permute(1, 2, 3, 0), (expected / 255 - mean) / std, atol=1e-5)


def test_every_kind_is_found_in_a_folder(tmp_path):
    picture = Image.fromarray((GREY >> 8).astype(np.uint8))
    for i, suffix in enumerate(["jpg", "PNG", "bmp", "webp", "tif", "TIFF", "pgm"]):
        picture.save(tmp_path / f"{i}.{suffix}")
    picture.convert("RGB").save(tmp_path / "7.ppm")
    with open_video(tmp_path) as video:
        assert video.num_frames == 8
        assert np.abs(video.get(range(8)).astype(int) - (GREY >> 8)[..., None]).mean() < 6


def test_pages_of_one_file_are_frames(tmp_path):
    pages = [Image.new("RGB", (48, 32), (40 * i, 90, 20)) for i in range(5)]
    for name in ("stack.tif", "animation.webp", "animation.png"):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:], duration=40, lossless=True)
        with open_video(tmp_path / name) as video:
            assert video.num_frames == 5, name
            assert [int(frame[5, 5, 0]) for frame in video.get([4, 0, 2])] == [160, 0, 80], name
    pages[0].save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=pages[1:2])
    with open_video(tmp_path / "phone.jpg") as video:
        assert video.num_frames == 1


def test_names_and_folders_that_are_no_frames(tmp_path):
    for name in ("²3.png", "10.png", "2.png"):
        Image.new("RGB", (48, 32)).save(tmp_path / name)
    (tmp_path / "1.jpg").mkdir()
    with open_video(tmp_path) as video:
        assert video.num_frames == 3 and video.get(range(3)).shape == (3, 32, 48, 3)


def test_a_frame_that_is_not_asked_for_may_be_unreadable(tmp_path):
    folder = mixed_folder(tmp_path / "faces")
    (folder / "0.png").write_bytes(b"nothing")
    with open_video(folder) as video:
        assert video.get([2]).shape == (1, 40, 60, 3)
        with pytest.raises(VideoError, match=r"0\.png"):
            video.get([0])


@pytest.mark.filterwarnings("ignore::mae_dfer.data.VideoWarning")
def test_a_face_box_is_cut_in_pixels_of_the_frames_though_they_differ_in_size(tmp_path):
    folder = tmp_path / "faces"
    folder.mkdir()
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:32, :32] = 255
    for i in range(4):
        Image.fromarray(picture).resize((64 + 2 * (i == 3), 64)).save(folder / f"{i}.png")
    config = ClipConfig(num_frames=4, stride=1, img_size=16, face_box=(0, 0, 32, 32), crop_scales=(1.0,), mask="none")
    clip = ClipDataset([Sample(str(folder), -1)], config, "pretrain")[(0, 0)]["clip"]
    assert (clip > 2).float().mean() > 0.95  # all white
    cached = ClipConfig(num_frames=2, stride=1, img_size=32, cache_gb=1.0)
    plain = ClipConfig(num_frames=2, stride=1, img_size=32)
    for epoch in range(6):
        datasets = [ClipDataset([Sample(str(folder), 0)], config, "finetune", 3) for config in (cached, plain)]
        assert (datasets[0][(epoch, 0)]["clip"] == datasets[1][(epoch, 0)]["clip"]).all()
