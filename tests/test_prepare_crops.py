"""Faces cut out of whole frames: what is written, what is left out, and what a second run does."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from moving_face import astronaut, background, draw, placed, write
from test_train_refusals import SMALL

from mae_dfer.data import open_video
from mae_dfer.data.prepare import crop
from mae_dfer.data.prepare.__main__ import main
from mae_dfer.train import main as train

WIDE = (320, 240)
STILL = [placed((160, 120), 0.7, 0)] * 12


@pytest.fixture(scope="module")
def still(tmp_path_factory):
    """A clip of a face that fills a tenth of its frame, and one of no face."""
    folder = tmp_path_factory.mktemp("clips")
    write(folder / "face.mp4", draw(STILL, astronaut(), size=WIDE))
    write(folder / "none.mp4", [background(*WIDE)] * 12)
    return folder


@pytest.fixture
def crema_d(still, tmp_path):
    folder = tmp_path / "CREMA-D" / "VideoFlash"
    folder.mkdir(parents=True)
    for actor in (1001, 1040, 1091):
        for emotion in ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD"):
            (folder / f"{actor}_IEO_{emotion}_XX.mp4").write_bytes((still / "face.mp4").read_bytes())
    (folder / "1001_DFA_ANG_XX.mp4").write_bytes((still / "none.mp4").read_bytes())
    (folder / "1040_DFA_ANG_XX.mp4").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n")
    return folder


def prepare(root, output, *options):
    return main(["crema-d", "--root", str(root), "--output", str(output), "--workers=2", "--crop-faces", *options])


def table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return {row["path"]: row for row in csv.DictReader(file)}


def test_faces_are_cut_out_and_trained_on(crema_d, tmp_path, capsys):
    output = tmp_path / "prepared"
    assert prepare(crema_d, output) == 1  # a miniature lacks most clips
    shown = " ".join(capsys.readouterr().out.split())
    facts = json.loads((output / "dataset.json").read_text())
    assert (facts["root"], facts["faces"]) == ("faces", "cropped by prepare")
    assert (facts["files"], facts["unreadable"]) == (20, 2)
    with open_video(output / "faces" / "1040_IEO_HAP_XX.mp4") as video:
        frames = video.get(range(video.num_frames))
    assert frames.shape == (12, 256, 256, 3)
    assert np.abs(frames.astype(int) - frames[0]).mean() < 2, "a still face gives a still crop"
    clips, faces = table(output / "clips.csv"), table(output / "faces.csv")
    assert clips["1001_DFA_ANG_XX.mp4"]["fault"] == faces["1001_DFA_ANG_XX.mp4"]["fault"] == crop.NO_FACE
    assert "Git LFS pointer" in clips["1040_DFA_ANG_XX.mp4"]["fault"]
    assert faces["1040_IEO_HAP_XX.mp4"] == {
        "path": "1040_IEO_HAP_XX.mp4", "crop": "1040_IEO_HAP_XX.mp4", "frames": "12", "first_frame": "0",
        "frames_cropped": "12", "faces": "1", "fault": "",
    }  # fmt: skip
    assert "1 of 20 clips cannot be read (no face was found)" in shown and "not cropped to faces" not in shown
    moved = output.rename(tmp_path / "moved")
    options = ["--recipe=crema-d", "--fold=1", "--data", str(moved), "--output-dir", str(tmp_path / "run")]
    assert train([*options, *SMALL, "--epochs=2"]) == 0


def test_only_what_changed_is_cut_out_again(crema_d, still, tmp_path):
    output = tmp_path / "prepared"
    prepare(crema_d, output)
    kept = output / "faces" / "1040_IEO_HAP_XX.mp4"
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.mp4")}
    (output / "faces" / ".1001_IEO_ANG_XX.7.tmp.mp4").write_bytes(b"half")
    (crema_d / "1001_DFA_ANG_XX.mp4").write_bytes((still / "face.mp4").read_bytes())
    (crema_d / "1001_IEO_ANG_XX.mp4").write_bytes((still / "none.mp4").read_bytes())
    (output / "faces" / "1091_IEO_SAD_XX.mp4").unlink()
    prepare(crema_d, output)
    after = {path: path.stat().st_mtime_ns for path in output.rglob("*.mp4")}
    new = {path.name for path in after if before.get(path) != after[path]}
    assert new == {"1001_DFA_ANG_XX.mp4", "1091_IEO_SAD_XX.mp4"} and before[kept] == after[kept]
    assert not (output / "faces" / "1001_IEO_ANG_XX.mp4").exists() and not list(output.rglob(".*.tmp*"))
    faults = {path: row["fault"] for path, row in table(output / "clips.csv").items() if row["fault"]}
    assert faults["1001_IEO_ANG_XX.mp4"] == crop.NO_FACE and "1001_DFA_ANG_XX.mp4" not in faults


def test_crops_may_be_folders_of_frames(crema_d, tmp_path):
    output = tmp_path / "prepared"
    prepare(crema_d, output, "--format=frames")
    assert len(list((output / "faces" / "1040_IEO_HAP_XX").glob("*.jpg"))) == 12
    assert "1040_IEO_HAP_XX 3\n" in (output / "fold-1" / "train.txt").read_text()


def test_options_of_crops_are_checked_first(crema_d, tmp_path, capsys):
    (tmp_path / "model.onnx").write_text("<html></html>")
    for options, words in (
        (["--face-model", str(tmp_path / "model.onnx")], "it is an HTML page"),
        (["--face-model", str(tmp_path / "gone.onnx")], "gone.onnx: the face detector cannot be read"),
    ):
        assert prepare(crema_d, tmp_path / "prepared", *options) == 2
        assert words in capsys.readouterr().err
    assert main(["crema-d", "--root", str(crema_d), "--output", str(tmp_path / "other"), "--format=frames"]) == 2
    assert "--format is for --crop-faces" in capsys.readouterr().err


def test_nothing_of_others_is_taken_for_a_crop(crema_d, tmp_path, capsys):
    output = tmp_path / "prepared"
    (output / "faces").mkdir(parents=True)
    own = output / "faces" / "own.jpg"
    own.write_bytes(b"mine")
    assert prepare(crema_d, output) == 2
    assert f"{output / 'faces'} is there and was not written by this command" in capsys.readouterr().err
    assert own.read_bytes() == b"mine"


def test_clips_that_lie_where_crops_would_are_left_alone(crema_d, tmp_path, capsys):
    root = crema_d.rename(tmp_path / "faces")
    before = {path: path.read_bytes() for path in root.iterdir()}
    assert prepare(root, tmp_path) == 2
    assert f"the clips lie in {root}, where crops would be written" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in root.iterdir()}


def test_killed_among_the_crops_it_goes_on_to_the_same_files(crema_d, tmp_path):
    clean, output = tmp_path / "clean", tmp_path / "killed"
    prepare(crema_d, clean)
    command = [sys.executable, "-m", "mae_dfer.data.prepare", "crema-d", "--root", str(crema_d), "--crop-faces"]
    child = subprocess.Popen(
        [*command, "--output", str(output), "--workers=1"], stdout=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while len(list((output / "faces").glob("*.mp4"))) < 3:
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert len(list((output / "faces").glob("*.mp4"))) < 18, "it was killed among them"
    prepare(crema_d, output)
    names = sorted(path.relative_to(clean) for path in clean.rglob("*") if path.suffix in (".mp4", ".txt", ".csv"))
    assert len(names) > 18 and not list((output / "faces").glob(".*.tmp*"))
    assert [(output / name).read_bytes() for name in names] == [(clean / name).read_bytes() for name in names]
