"""What a run refuses before it trains, and what it refuses to go on from. The sets are folders of images."""

from __future__ import annotations

import json
import os
import shutil
from datetime import datetime, tzinfo
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mae_dfer.data.demo import ensure_demo
from mae_dfer.data.video import VideoError, open_video
from mae_dfer.errors import UserError
from mae_dfer.train import main as train
from mae_dfer.training.run import RunFolder

SMALL = ["--img-size=32", "--patch-size=8", "--num-frames=4", "--region-size=1,2,4", "--embed-dim=16", "--depth=1",
         "--num-heads=1", "--decoder-embed-dim=16", "--decoder-depth=1", "--decoder-num-heads=1",
         "--pretrain-mask-ratio=0.5", "--batch-size=4", "--workers=0", "--device=cpu", "--epochs=1"]  # fmt: skip


def make_set(folder: Path, classes: str = "left\nright\n") -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 2)):
        for index in range(count):
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{split}{index}.png")
        (folder / f"{split}.txt").write_text("".join(f"{split}{index}.png {index % 2}\n" for index in range(count)))
    (folder / "classes.txt").write_text(classes)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("refusals")
    folder = make_set(root / "set")
    assert train(["--data", str(folder), "--output-dir", str(root / "run"), *SMALL]) == 0
    return folder, root / "run"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--finetune-flip-prob=5"], "flip_prob is a probability"),
        (["--finetune-rand-augment=nonsense"], "is not understood"),
        (["--finetune-batch-size=64"], "4 training clips do not fill one batch of 64"),
        (["--data-root=/nowhere", "--max-bad-files=3"], "4 of 4 pre-training videos that were looked for do not exist"),
        (["--seed=99999999999999999999"], "--seed must be below"),
    ],
)
def test_before_anything_is_trained(
    trained: tuple[Path, Path], tmp_path: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    assert train(["--data", str(trained[0]), "--output-dir", str(path), *SMALL, *options]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not path.exists(), "the name is free for the next try"


def test_a_missing_test_video_is_named_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_set(tmp_path / "set")
    (folder / "test1.png").unlink()
    assert train(["--data", str(folder), "--output-dir", str(tmp_path / "run"), *SMALL]) == 2
    error = capsys.readouterr().err
    assert "1 of 2 test videos" in error and "test1.png" in error and not (tmp_path / "run").exists()


@pytest.mark.parametrize("gone", ["", "not an image"])
def test_training_clips_that_cannot_be_had_are_told_before_pretraining(
    tmp_path: Path, gone: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_set(tmp_path / "set")
    shutil.copy(folder / "test.txt", folder / "pretrain.txt")
    command = ["--data", str(folder), "--output-dir", str(tmp_path / "run"), *SMALL, "--batch-size=2"]
    for index in (1, 3):  # all of a class
        if gone:
            (folder / f"train{index}.png").write_text(gone)
        else:
            (folder / f"train{index}.png").unlink()
    assert train(command) == 2
    assert "no training video of the class with label 1 can be read" in capsys.readouterr().err
    if gone:
        for index in (0, 2):
            (folder / f"train{index}.png").write_text(gone)
        assert train(command) == 2
        assert "4 of 4 training videos that were looked into cannot be read, the first" in capsys.readouterr().err
    for image in folder.glob("train*.png"):
        image.unlink()
    assert train(command) == 2
    assert "4 of 4 training videos that were looked for do not exist" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_face_box_beyond_the_frames_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_set(tmp_path / "set")
    command = ["--data", str(folder), "--output-dir", str(tmp_path / "run"), *SMALL]
    assert train([*command, "--pretrain-face-box=0,1,32,32"]) == 2
    error = capsys.readouterr().err
    assert "--pretrain-face-box 0,1,32,32 (top, left, height, width) reaches beyond the 32 × 32 pixels of" in error
    assert train([*command, "--pretrain-face-box=1,0,31,32"]) == 0


def test_one_class_is_no_classification(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_set(tmp_path / "set", "left\n")
    for listing in ("train", "test"):
        (folder / f"{listing}.txt").write_text(f"{listing}0.png 0\n{listing}1.png 0\n")
    command = ["--data", str(folder), "--output-dir", str(tmp_path / "run"), *SMALL, "--batch-size=2"]
    assert train(command) == 2
    assert "names one class" in capsys.readouterr().err


def test_lists_that_overlap_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_set(tmp_path / "set")
    (folder / "train.txt").write_text((folder / "train.txt").read_text() + "train0.png 1\ntest1.png 1\n")
    assert train(["--data", str(folder), "--output-dir", str(tmp_path / "run"), *SMALL]) == 0
    notes = capsys.readouterr().err
    assert "1 training clips are listed with two labels, the first" in notes
    assert "1 of 2 test clips are among the training clips" in notes


@pytest.mark.parametrize("name", ["checkpoints", "log.jsonl", "metrics.json", "predictions.csv"])
def test_a_folder_with_results_is_not_written_to(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_set(tmp_path / "set")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("of somebody else")
    assert train(["--data", str(folder), "--output-dir", str(tmp_path / "run"), *SMALL]) == 2
    assert f"holds {name}, which a run would write" in capsys.readouterr().err
    assert (tmp_path / "run" / name).read_text() == "of somebody else"


def test_an_evaluation_takes_no_sizes_but_those_of_its_classifier(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--data", str(trained[0]), "--stage=evaluate", "--init-from", str(trained[1]), "--device=cpu"]
    for option, words in (
        ("--img-size=64", "--img-size 32,32"), ("--pool=all", "--pool local"), ("--num-heads=2", "--num-heads 1"),
        ("--preset=base", "--model lgi_former_tiny_patch16_160"),
    ):  # fmt: skip
        assert train([*command, "--output-dir", str(tmp_path / "score"), option]) == 2
        assert f"was trained with {words}, and is scored as it is" in capsys.readouterr().err
        assert not (tmp_path / "score").exists()
    assert train([*command, "--output-dir", str(tmp_path / "score"), "--pool=local"]) == 0


def test_settings_that_change_are_said_and_recorded(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(trained[1], tmp_path / "run")
    assert train(["--resume", str(run), "--finetune-epochs=2", "--workers=1"]) == 0
    assert "settings that change from here on: workers 0 → 1, finetune.epochs 1 → 2" in capsys.readouterr().out
    events = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    changed = [event["changed"] for event in events if event["event"] == "settings"]
    assert changed == [["workers 0 → 1", "finetune.epochs 1 → 2"]]
    assert train(["--resume", str(run), "--finetune-epochs=1"]) == 0
    assert "finetune has more epochs than the 1 asked for" in capsys.readouterr().out


def test_other_classes_are_not_resumed(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_set(tmp_path / "other", "up\ndown\n")
    before = (trained[1] / "metrics.json").read_bytes(), (trained[1] / "config.json").read_bytes()
    assert train(["--resume", str(trained[1]), "--data", str(other)]) == 2
    assert "was trained on other classes (left, right)" in capsys.readouterr().err
    assert before == ((trained[1] / "metrics.json").read_bytes(), (trained[1] / "config.json").read_bytes())


def test_a_stage_whose_checkpoints_are_all_damaged_is_not_begun_anew(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(trained[1], tmp_path / "run")
    for file in (run / "checkpoints").glob("finetune*"):
        file.write_bytes(b"damaged")
    assert train(["--resume", str(run)]) == 2
    assert "none of its finetune checkpoints can be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "was"),
    [
        ("--embed-dim=32", "--embed-dim 16"), ("--num-heads=2", "--num-heads 1"), ("--pool=all", "--pool "),
        ("--region-size=1,4,2", "--region-size 1,2,4"), ("--decoder-num-heads=2", "--decoder-num-heads 1"),
        ("--img-size=32,64", "--img-size 32,32"),
    ],
)  # fmt: skip
def test_another_model_is_not_resumed_even_where_its_tensors_fit(
    trained: tuple[Path, Path], option: str, was: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (trained[1] / "metrics.json").read_bytes(), (trained[1] / "config.json").read_bytes()
    assert train(["--resume", str(trained[1]), option]) == 2
    assert f"was trained with {was}" in capsys.readouterr().err
    assert before == ((trained[1] / "metrics.json").read_bytes(), (trained[1] / "config.json").read_bytes())


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--num-heads=2"], "has 1 attention heads, the model 2"), (["--region-size=1,4,2"], "regions of (1, 2, 4) tok")],
)
def test_an_encoder_that_computes_something_else_is_not_begun_from(
    trained: tuple[Path, Path], tmp_path: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--data", str(trained[0]), "--output-dir", str(tmp_path / "run"), "--init-from", str(trained[1])]
    assert train([*command, *SMALL, *options]) == 2
    assert words in capsys.readouterr().err


def test_another_protocol_is_not_resumed(trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    for more in ([], ["--redo=finetune"]):
        assert train(["--resume", str(trained[1]), "--protocol=published", *more]) == 2
        assert "is trained with --protocol corrected" in capsys.readouterr().err
    assert train(["--resume", str(trained[1]), "--stage=evaluate", "--protocol=published"]) == 0


def test_no_run_lies_among_its_clips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_set(tmp_path / "set")
    assert train(["--data", str(folder), "--output-dir", str(folder / "."), *SMALL]) == 2
    assert "lies among the clips" in capsys.readouterr().err
    for listing in folder.glob("*.txt"):
        listing.unlink()
    for image in folder.glob("*.png"):
        (folder / image.stem).mkdir()
        image.rename(folder / image.stem / image.name)
    before = sorted(folder.iterdir())
    command = ["--data", str(folder), "--stage=pretrain", *SMALL, "--output-dir"]
    assert train([*command, str(folder / "runs" / "first")]) == 2
    assert "lies among the clips" in capsys.readouterr().err
    assert sorted(folder.iterdir()) == before


def test_runs_without_a_name_have_names_of_their_own(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Stopped:
            return cls(2026, 1, 2, 3, 4, 5, tzinfo=tz)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mae_dfer.training.run.datetime", Stopped)
    for _ in range(3):
        assert train(["--data", str(trained[0]), "--stage=pretrain", *SMALL]) == 0
    names = [path.name for path in sorted((tmp_path / "runs").iterdir())]
    assert names == ["tiny-20260102-030405", "tiny-20260102-030405-2", "tiny-20260102-030405-3"]


def test_a_warm_up_longer_than_its_stage_is_told(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--stage=finetune", "--finetune-warmup-epochs=2", "--output-dir", str(tmp_path / "run")]
    assert train(["--data", str(trained[0]), *SMALL, *options]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "finetune ends after 1 of 2 epochs of warm-up" in shown and "pretrain ends" not in shown


def test_an_evaluation_records_what_it_took_from_the_classifier(trained: tuple[Path, Path], tmp_path: Path) -> None:
    data, path = ["--data", str(trained[0])], tmp_path / "run"
    options = ["--stage=finetune", "--protocol=published", "--stride=2", "--output-dir", str(path)]
    assert train([*data, *SMALL, *options]) == 0
    before = (path / "config.json").read_bytes()
    score = ["--stage=evaluate", "--init-from", str(path), "--output-dir", str(tmp_path / "score")]
    assert train([*data, *SMALL, *score]) == 0
    settings = json.loads((tmp_path / "score" / "config.json").read_text())
    assert (settings["stride"], settings["protocol"]) == (2, "published")
    assert train(["--resume", str(path), "--stage=evaluate", "--stride=1"]) == 0
    assert (path / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[1, 2]", "settings are names and values"), ('{"pretrain": 5}', "settings are names and values"),
        ('{"pretrain": {"epochs": "many"}}', "epochs is 'many'"), ('{"sed": 1}', "did you mean 'seed'"),
    ],
)  # fmt: skip
def test_odd_settings_are_named_with_their_file(
    tmp_path: Path, content: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(content)
    assert train(["--resume", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert words in error and str(tmp_path / "config.json") in error and error.count("\n") == 1


def test_a_line_cut_short_spoils_no_other(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.log("first")
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"time": 17')
    run.log("second")
    run.log("third")
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert len(lines) == 4
    assert [json.loads(lines[index])["event"] for index in (0, 2, 3)] == ["first", "second", "third"]


def test_a_name_that_is_not_utf8_is_told(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/clip\xe9.mp4"
    with open(path, "wb") as file:
        file.write(b"x")
    with pytest.raises(VideoError, match="not valid UTF-8") as caught:
        open_video(os.fsdecode(path))
    str(caught.value).encode()


def test_a_quick_look_takes_no_larger_sets_place(tmp_path: Path) -> None:
    folder = ensure_demo(tmp_path / "set", progress=False, limit=2)
    with pytest.raises(UserError, match="holds a larger demo set"):
        ensure_demo(folder, progress=False, limit=1)
    assert len(list((folder / "clips").iterdir())) == 4


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder in which nobody can make a file")
def test_a_folder_that_cannot_be_made_is_named_at_once() -> None:
    with pytest.raises(UserError, match="cannot write the demo set"):
        ensure_demo("/proc/mae_dfer_demo", progress=False, limit=1)
