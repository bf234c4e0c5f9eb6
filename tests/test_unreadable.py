"""What the file system refuses about one clip is an error of that clip: named, and skipped in every command."""

import builtins
import csv
import errno
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from test_train_refusals import SMALL, make_set

from mae_dfer.data import ClipConfig, ClipDataset, EpochSampler, Sample, VideoError, make_loader, open_video
from mae_dfer.data.check import main as check
from mae_dfer.predict import main as predict
from mae_dfer.train import main as train

NOT_UTF8 = os.fsdecode(b"caf\xe9")


def make_frames(folder, count=4):
    folder.mkdir(parents=True)
    for index in range(count):
        Image.fromarray(np.full((32, 32, 3), 40 * index, np.uint8)).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def forbid(monkeypatch):
    """Takes the permission to read from a folder or file, also from root: by what the system answers."""
    forbidden = []

    def guard(real):
        def answer(path=".", *arguments, **options):
            if any(str(path).startswith(str(each)) for each in forbidden):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return real(path, *arguments, **options)

        return answer

    for module, name in ((os, "listdir"), (os, "scandir"), (Image, "open"), (builtins, "open")):
        monkeypatch.setattr(module, name, guard(getattr(module, name)))
    return forbidden.append


def bad_clips(root, forbid):
    """Name of a clip → words of its error."""
    make_frames(root / "forbidden")
    forbid(root / "forbidden")
    make_frames(root / "unreadable frame")
    forbid(root / "unreadable frame" / "2.png")
    make_frames(root / "vanished frame")
    (root / "vanished frame" / "1.png").unlink()
    (root / "vanished frame" / "1.png").symlink_to("gone")
    (root / "dangling.mp4").symlink_to("gone.mp4")
    (root / "circle.mp4").symlink_to("circle.mp4")
    os.mkfifo(root / "pipe.mp4")
    make_frames(root / NOT_UTF8)
    (root / "frame of another name").mkdir()
    (root / "frame of another name" / f"{NOT_UTF8}.png").write_bytes(b"no picture")
    return {
        "forbidden": "it cannot be read (Permission denied)",
        "unreadable frame": "(Permission denied)",
        "vanished frame": "(No such file or directory)",
        "dangling.mp4": "it is a link to",
        "circle.mp4": "it cannot be read (Too many levels of symbolic links)",
        "pipe.mp4": "it is a device, a pipe or a socket",
        NOT_UTF8: "not valid UTF-8",
        "frame of another name": r"caf\udce9.png",
        "gone.mp4": "no such file or folder",
    }


def read_whole(path):
    with open_video(path) as video:
        return video.get(range(video.num_frames))


def test_each_is_a_video_error_of_one_line_that_any_file_takes(tmp_path, forbid):
    for name, words in bad_clips(tmp_path, forbid).items():
        with pytest.raises(VideoError) as caught:
            read_whole(tmp_path / name)
        assert words in str(caught.value) and "\n" not in str(caught.value)
        str(caught.value).encode()


def test_a_file_that_vanishes_while_it_is_open(tmp_path):
    folder = make_frames(tmp_path / "frames")
    with open_video(folder) as video:
        shutil.rmtree(folder)
        with pytest.raises(VideoError, match="No such file or directory"):
            video.get([1])


@pytest.mark.parametrize("workers", [0, 1])
def test_loaders_go_on(tmp_path, forbid, workers):
    bad = bad_clips(tmp_path, forbid)
    samples = [Sample(str(make_frames(tmp_path / "good")), 0), *(Sample(str(tmp_path / name), 0) for name in bad)]
    config = ClipConfig(num_frames=4, stride=1, img_size=32, num_segments=1)
    loader = make_loader(ClipDataset(samples, config, "test"), EpochSampler(len(samples), shuffle=False), len(samples),
                         num_workers=workers)  # fmt: skip
    (batch,) = loader
    assert batch["index"].tolist() == [0]
    assert all(words in failure.reason for words, failure in zip(bad.values(), batch["failures"], strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_training_goes_on(tmp_path, forbid, workers):
    """Lists are UTF-8, so only the folder that they start from can have another name; and that is refused."""
    folder, clips = make_set(tmp_path / "set"), tmp_path / "clips"
    bad = [name for name in bad_clips(clips, forbid) if name.encode(errors="replace").decode() == name]
    lines = [f"{path} {index % 2}\n" for index, path in enumerate(
        [*(folder / f"train{index}.png" for index in range(4)), *(clips / name for name in bad), "train0.png"])]
    (folder / "train.txt").write_text("".join(lines))
    (folder / "test.txt").write_text("".join(lines[:4]))
    options = ["--data", str(folder), "--output-dir", str(tmp_path / "run"), *SMALL]
    sizes = ["--stride=1", "--batch-size=1", f"--pretrain-batch-size={len(lines)}", f"--workers={workers}"]
    assert train([*options, *sizes, "--data-root", str(tmp_path / NOT_UTF8)]) == 2
    assert train([*options, *sizes]) == 0
    named = (tmp_path / "run" / "bad_files.txt").read_text(encoding="utf-8").splitlines()
    assert len(named) == len(bad)


def test_predictions_of_the_others_are_kept(tmp_path, forbid, trained, capsys):
    clips = tmp_path / "clips"
    bad = bad_clips(clips, forbid)
    for index in range(3):
        make_frames(clips / "good" / str(index))
    output = ["--checkpoint", str(trained), "--output", str(tmp_path / "out.csv"), "--device=cpu"]
    assert predict([str(clips), str(clips / "circle.mp4"), *output]) == 2
    with open(tmp_path / "out.csv") as file:
        assert {row["path"] for row in csv.DictReader(file)} == {str(clips / "good" / str(index)) for index in range(3)}
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == len(bad), "the one that is gone is not found, and one is given twice"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("unreadable")
    folder = make_set(root / "set")
    assert train(["--data", str(folder), "--output-dir", str(root / "run"), *SMALL, "--stride=1"]) == 0
    return root / "run"


def test_the_check_names_them(tmp_path, forbid, capsys):
    bad = [name for name in bad_clips(tmp_path, forbid) if name != NOT_UTF8]
    make_frames(tmp_path / "good")
    (tmp_path / "list.txt").write_text("".join(f"{name} 0\n" for name in [*bad, "good"]))
    assert check([str(tmp_path / "list.txt")]) == 1
    (tmp_path / NOT_UTF8 / "list.txt").write_text("gone.mp4 0\n")
    assert check([str(tmp_path / NOT_UTF8 / "list.txt")]) == 1
    _, line = (tmp_path / NOT_UTF8 / "list.txt.broken.txt").read_text().splitlines()
    assert r"caf\udce9" in line and "not valid UTF-8" in line
