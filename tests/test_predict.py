"""What ``predict`` takes, what it refuses to replace, and what it does not write; and ``load``, which it stands on."""

import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_train_refusals import SMALL, make_set

import mae_dfer
from mae_dfer.checkpoint import load_weights, save_official, save_weights
from mae_dfer.data.check import HEADER
from mae_dfer.data.check import main as check
from mae_dfer.data.demo.__main__ import main as demo
from mae_dfer.errors import UserError
from mae_dfer.predict import main as predict
from mae_dfer.train import main as train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("predict")
    folder = make_set(root / "set")
    assert train(["--data", str(folder), "--output-dir", str(root / "run"), *SMALL, "--stride=1"]) == 0
    return folder, root / "run"


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained[1], tmp_path / "run")


def make_frames(folder, count=4):
    folder.mkdir(parents=True)
    for index in range(count):
        Image.fromarray(np.full((32, 32, 3), 40 * index, np.uint8)).save(folder / f"{index}.png")
    return folder


def paths(file):
    with open(file, newline="", encoding="utf-8") as rows:
        return [row["path"] for row in csv.DictReader(rows)]


def error_of(main, arguments, capsys):
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


# What it takes.


def test_what_is_no_run_folder_is_named_with_the_one_that_is_meant(tmp_path, run, capsys):
    clip = make_frames(tmp_path / "clip")
    for path in (run / "config.json", run / "metrics.json", run / "checkpoints"):
        error = error_of(predict, [clip, "--checkpoint", path], capsys)
        assert f"give the run folder itself, {run}" in error or f"give that one, {run}" in error


def test_clips_of_several_inputs_are_predicted_once(tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clip = make_frames(tmp_path / "clip")
    assert predict([str(clip), str(clip), str(tmp_path / "clip"), "--checkpoint", str(run)]) == 0
    assert paths("predictions.csv") == [str(clip)]


def test_frames_that_differ_in_size_are_noted_in_one_line(tmp_path, run, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clip = make_frames(tmp_path / "clip")
    Image.new("RGB", (40, 20)).save(clip / "9.png")
    assert predict([str(clip), "--checkpoint", str(run)]) == 0
    assert f"note: {clip}: frames differ in size; all are resized to one\n" in capsys.readouterr().err


def test_folders_stand_for_all_clips_below_them(tmp_path, run):
    for name in ("b/2", "b/10", "c", ".hidden"):
        make_frames(tmp_path / "clips" / name)
    make_frames(tmp_path / "elsewhere")
    (tmp_path / "clips" / "a").symlink_to("../elsewhere")
    (tmp_path / "clips" / "c" / "circle").symlink_to("..")
    (tmp_path / "clips" / "b" / "notes.txt").write_text("no clip")
    out = tmp_path / "out.csv"
    assert predict([str(tmp_path / "clips"), "--checkpoint", str(run), "--output", str(out)]) == 0
    assert paths(out) == [str(tmp_path / "clips" / name) for name in ("a", "b/10", "b/2", "c")]


def test_what_may_be_one_clip_or_several_is_refused(tmp_path, run, capsys):
    make_frames(make_frames(tmp_path / "clips") / "more")
    error = error_of(predict, [tmp_path / "clips", "--checkpoint", run], capsys)
    assert "clips: holds images and folders of images; name the ones that you mean" in error


@pytest.mark.parametrize(
    ("name", "text"),
    [("list.txt", "clip one 1\nclip two 0\n"), ("list.CSV", 'path,label\n"clip one",left\n"clip two",\n'),
     ("list.txt", "clip one\nclip two\n")],
)  # fmt: skip
@pytest.mark.parametrize("apart", [False, True])
def test_lists_name_clips_with_and_without_labels(tmp_path, run, name, text, apart):
    lists, root = tmp_path / "lists", tmp_path / "clips" if apart else tmp_path / "lists"
    for clip in ("clip one", "clip two"):
        make_frames(root / clip)
    lists.mkdir(exist_ok=True)
    (lists / name).write_text(text)
    options = ["--checkpoint", str(run), "--output", str(tmp_path / "out.csv")]
    assert predict([str(lists / name), *options, *(["--data-root", str(root)] if apart else [])]) == 0
    assert paths(tmp_path / "out.csv") == [str(root / "clip one"), str(root / "clip two")]


# What it does not replace.


def test_nothing_that_is_needed_is_replaced(tmp_path, run, capsys):
    clip = make_frames(tmp_path / "clip")
    weights = next((run / "checkpoints").glob("finetune*.safetensors"))
    image = shutil.copy(clip / "0.png", tmp_path / "image.png")
    listed = tmp_path / "list.txt"
    listed.write_text("image.png\n")
    shutil.copy(weights, tmp_path / "copy.safetensors")
    os.link(weights.with_name(weights.name.replace(".safetensors", ".state.pt")), tmp_path / "hard.csv")
    (tmp_path / "soft.csv").symlink_to("image.png")
    os.mkfifo(tmp_path / "pipe")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    cases = [
        ("image.png", run), ("soft.csv", run), ("list.txt", run), ("clip/3.png", run), ("clip", run), ("pipe", run),
        (weights, run), (weights, weights), ("hard.csv", run), ("copy.safetensors", tmp_path / "copy.safetensors"),
        (run / "checkpoints" / "new.csv", run),
    ]  # fmt: skip
    for output, checkpoint in cases:
        arguments = [image, listed, clip, "--checkpoint", checkpoint, "--output", tmp_path / output, "--force"]
        assert str(tmp_path / output) in error_of(predict, arguments, capsys)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert (tmp_path / "pipe").is_fifo()


def test_an_earlier_result_is_replaced_with_force_alone(tmp_path, run, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clip = make_frames(tmp_path / "clip")
    arguments = [clip, "--checkpoint", run]
    assert predict([*map(str, arguments)]) == 0
    old = Path("predictions.csv").read_bytes()
    assert "predictions.csv exists; --force replaces it" in error_of(predict, arguments, capsys)
    assert Path("predictions.csv").read_bytes() == old
    assert predict([str(make_frames(tmp_path / "other")), "--checkpoint", str(run), "--force"]) == 0
    assert paths("predictions.csv") == [str(tmp_path / "other")]


@pytest.mark.parametrize("name", ["config.json", "log.jsonl", "metrics.json", "predictions.csv"])
def test_force_replaces_results_of_this_command_alone(tmp_path, run, capsys, name):
    clip, before = make_frames(tmp_path / "clip"), (run / name).read_bytes()
    error = error_of(predict, [clip, "--checkpoint", run, "--output", run / name, "--force"], capsys)
    assert "is no result of this command" in error and (run / name).read_bytes() == before


def test_a_report_replaces_a_report_alone(tmp_path, capsys):
    (tmp_path / "list.txt").write_text("gone.mp4\t0\n")
    report = tmp_path / "list.txt.broken.txt"
    for text in ("gone.mp4\t0\n", "notes", HEADER[1:], ""):
        report.write_text(text)
        assert "is no report of this command" in error_of(check, [tmp_path / "list.txt"], capsys)
        assert report.read_text() == text
    error = error_of(check, [tmp_path / "list.txt", "--report", tmp_path / "list.txt"], capsys)
    assert "would replace" in error and (tmp_path / "list.txt").read_text() == "gone.mp4\t0\n"
    report.unlink()
    for _ in range(2):
        assert check([str(tmp_path / "list.txt")]) == 1
    assert report.read_text().startswith(HEADER) and report.read_text().count("\n") == 2
    make_frames(tmp_path / "gone.mp4")
    assert check([str(tmp_path / "list.txt")]) == 0 and not report.exists()
    assert f"removed the report of an earlier check, {report}" in capsys.readouterr().out


def test_the_demo_sheet_replaces_no_picture_before_the_set_is_drawn(tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    sheet.write_bytes(b"mine")
    common = ["--output", tmp_path / "set", "--limit=1", "--contact-sheet"]
    assert "exists; --force replaces it" in error_of(demo, [*common, sheet], capsys)
    assert "unknown picture format" in error_of(demo, [*common, tmp_path / "sheet.gif"], capsys)
    assert list(tmp_path.iterdir()) == [sheet] and sheet.read_bytes() == b"mine"


# What it does not write.


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_end_it(tmp_path, run, value, capsys):
    weights = next((run / "checkpoints").glob("finetune*.safetensors"))
    predictor = mae_dfer.load(run)
    predictor.model.head.bias.data[0] = value
    _, metadata = load_weights(weights)
    save_weights(predictor.model, weights, {name: metadata[name] for name in ("classes", "stride")})
    clip = make_frames(tmp_path / "clip")
    error = error_of(predict, [clip, "--checkpoint", run, "--output", tmp_path / "out.csv"], capsys)
    assert f"{clip}: the outputs of {weights} are not finite" in error
    assert not (tmp_path / "out.csv").exists()


# load.


def test_load_gives_the_model_with_its_classes_and_clips(trained, tmp_path):
    folder, run = trained
    clip = make_frames(tmp_path / "clip")
    assert predict([str(clip), "--checkpoint", str(run), "--output", str(tmp_path / "out.csv"), "--device=cpu"]) == 0
    weights = next((run / "checkpoints").glob("finetune*.safetensors"))
    for path in (run, str(weights)):
        predictor = mae_dfer.load(path)
        assert predictor.classes == ["left", "right"] and predictor.stride == 1 and predictor.checkpoint == weights
        (window,) = predictor.predict(clip)
        with open(tmp_path / "out.csv") as file:
            (row,) = csv.DictReader(file)
        assert [f"{p:.6f}" for p in window.probabilities] == [row["left"], row["right"]]
        frames = np.stack([np.asarray(Image.open(clip / f"{index}.png")) for index in range(4)])
        with torch.no_grad():
            logits = predictor.model(predictor.preprocess(frames))
        np.testing.assert_allclose(logits.softmax(-1)[0], window.probabilities, rtol=1e-6)
    assert mae_dfer.load(run, device="meta").model.head.weight.is_meta
    with pytest.raises(UserError, match="uint8"):
        predictor.preprocess(frames.astype(np.float32))
    with pytest.raises(UserError, match="unknown option of load 'img_sizes'; did you mean 'img_size'"):
        mae_dfer.load(run, img_sizes=32)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"device": "gpu"}, "not a device"), ({"weights": "best"}, "weights is 'best'"),
        ({"stride": 2.5}, "stride is 2.5"), ({"protocol": "zzz"}, "protocol is 'zzz'"),
        ({"classes": ["a", "a"]}, "names that differ"),
    ],
)  # fmt: skip
def test_load_refuses_what_is_no_value(run, given, words):
    with pytest.raises(UserError, match=words):
        mae_dfer.load(run, **given)


@pytest.mark.parametrize("given", [{"batch_size": 0}, {"batch_size": -1}, {"window_step": 0}])
def test_predictions_take_whole_numbers_from_1_on(tmp_path, run, given):
    with pytest.raises(UserError, match="a whole number from 1 on"):
        mae_dfer.load(run).predict(make_frames(tmp_path / "clip"), **given)


def test_load_takes_the_names_of_a_published_classifiers_classes(tmp_path, capsys):
    sizes = {"img_size": (32, 32), "num_frames": 4, "region_size": (1, 2, 1), "pool": "all"}
    model = mae_dfer.create_classifier("lgi_former_base_patch16_160", embed_dim=64, depth=1, num_heads=1, num_classes=2,
                                       **sizes)  # fmt: skip
    save_official(model, tmp_path / "published.pth")
    predictor = mae_dfer.load(tmp_path / "published.pth", classes=["left", "right"], stride=3, **sizes)
    assert predictor.classes == ["left", "right"] and predictor.stride == 3
    clip = torch.randn(2, 3, 4, 32, 32)
    torch.testing.assert_close(predictor.model(clip), model.eval()(clip))
    assert "assumed: 4 frames of 32 × 32 pixels at stride 3" in capsys.readouterr().err
