"""What a run refuses before it trains, that only a later stage would meet; and what each stage needs of a data set."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_train_refusals import SMALL, make_set
from videos import write_moving

from mae_dfer import create_model
from mae_dfer.checkpoint import save_official
from mae_dfer.data import check_containers, open_dataset
from mae_dfer.data.lists import Sample
from mae_dfer.data.video_file import VideoFile
from mae_dfer.errors import UserError
from mae_dfer.models import configure_model
from mae_dfer.models.memory import bytes_to_make, count_parameters, total_memory
from mae_dfer.train import main as train
from mae_dfer.train import parse_config
from mae_dfer.training import checks
from mae_dfer.training.checks import check_models
from mae_dfer.training.hardware import Hardware
from mae_dfer.training.pictures import draw_confusion_matrix

CPU = torch.device("cpu")


def refuse(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a run that is refused, without the notes before it, and before anything is trained."""
    assert train(arguments) == 2
    shown = capsys.readouterr()
    lines = [line for line in shown.err.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1 and lines[0].startswith("error: "), shown.err
    assert "epoch 1/" not in shown.out
    return lines[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_set(tmp_path / "set")


def options(folder: Path, *more: str) -> list[str]:
    return ["--data", str(folder), "--output-dir", str(folder.parent / "run"), *SMALL, *more]


# Memory.


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--img-size=1000000", "--patch-size=16", "--region-size=1,5,10"], "× 1000000 pixels (7,812,500,000 tokens)"),
        (["--img-size=1000000000", "--patch-size=1", "--region-size=1,1,1"], "needs at least"),
        (["--depth=1000000000"], "of 1000000000 blocks"),
        (["--embed-dim=1000000000"], "1000000000 wide"),
        (["--num-frames=1000000000", "--region-size=1,2,4"], "clips of 1000000000 frames"),
        (["--decoder-depth=1000000000"], "needs at least"),
        (["--pretrain-batch-size=100000000"], "training mae_lgi_former_tiny_patch16_160 of 1 blocks"),
        (["--finetune-batch-size=100000000"], "give a smaller --finetune-batch-size"),
    ],
)  # fmt: skip
def test_what_no_memory_holds_is_refused_before_it_is_allocated(
    more: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started = time.monotonic()
    line = refuse(options(tmp_path / "no set", *more), capsys)
    assert words in line and "GB of memory, and cpu has" in line and not (tmp_path / "run").exists()
    assert time.monotonic() - started < 20


def test_a_model_that_no_memory_holds_is_not_made() -> None:
    with pytest.raises(UserError, match="needs at least .* GB of memory"):
        create_model("lgi_former_base_patch16_160", img_size=1_000_000)
    with torch.device("meta"):  # which has any size
        assert create_model("vit_tiny_patch16_160", img_size=16_000).config.num_tokens == 8_000_000


def test_a_region_that_does_not_divide_a_large_grid_is_told_at_once() -> None:
    with pytest.raises(UserError, match="does not divide the token grid") as caught:
        configure_model("lgi_former_tiny_patch16_160", {"img_size": 720_720 * 16, "region_size": (2, 7, 17)})
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "name", ["mae_lgi_former_tiny_patch16_160", "lgi_former_small_patch16_160", "vit_tiny_patch16_160"]
)
@pytest.mark.parametrize("share", ["none", "all"])
def test_what_is_told_of_a_models_size_is_nearly_all_of_it(name: str, share: str) -> None:
    more = {} if "vit" in name else {"share_attention": share}
    with torch.device("meta"):
        model = create_model(name, **more)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert 0.9 * count < count_parameters(model.config) <= count


def test_the_memory_of_this_machine_is_known() -> None:
    total = total_memory(CPU)
    assert total is None or 2**28 < total < 2**50
    assert bytes_to_make(configure_model("lgi_former_base_patch16_160", {})) < 2**30


def test_memory_that_runs_out_while_training_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mae_dfer.training.stages.pretrain", lambda *_: torch.empty(2**60, dtype=torch.uint8))
    assert "memory ran out" in refuse(options(folder), capsys)
    monkeypatch.setattr("mae_dfer.training.stages.pretrain", lambda *_: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size"):
        train(options(folder))


# Both models and their batches, whatever the stage that comes first.


@pytest.mark.parametrize(
    ("more", "processes", "words"),
    [
        (["--finetune-batch-size=6"], 4, "--finetune-batch-size 6 does not divide among 4 processes"),
        (["--pretrain-batch-size=6"], 4, "--pretrain-batch-size 6 does not divide among 4 processes"),
        (["--finetune-batch-size=4", "--finetune-mixup=0.8"], 4, "gives 1 to each of 4 processes: give a mult"),
        (["--pool=representative", "--model=vit_tiny_patch16_160"], 1, "needs regions"),
        (["--decoder-embed-dim=10", "--decoder-num-heads=3"], 1, "decoder_embed_dim 10 is not a multiple"),
    ],
)  # fmt: skip
def test_no_stage_finds_a_model_or_batch_impossible_at_its_turn(more: list[str], processes: int, words: str) -> None:
    config, _, _ = parse_config([*SMALL, *more])
    with pytest.raises(UserError) as caught:
        check_models(config, Hardware(CPU, None, world_size=processes))
    assert words in str(caught.value)


def test_a_mask_that_regions_cannot_use_is_told_before_a_folder_is_made(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "leave it at region_window_tube" in refuse(options(folder, "--pretrain-mask=random"), capsys)
    assert not (folder.parent / "run").exists()


# Labels.


def test_labels_counted_from_1_are_told_from_a_class_without_clips(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "classes.txt").write_text("left\nright\nup\n")
    line = refuse(options(folder), capsys)
    assert "train.txt has no clip of up (label 2);" in line and "--allow-empty-classes" in line and "from 1" not in line
    train_list = folder / "train.txt"
    train_list.write_text("".join(f"train{index}.png {1 + index % 2}\n" for index in range(4)))
    line = refuse(options(folder), capsys)
    assert "no clip of left (label 0); the labels seem to be counted from 1" in line
    assert train([*options(folder), "--stage=finetune", "--allow-empty-classes"]) == 0


# Test videos.


def test_a_corrupt_test_video_is_named_before_pretraining(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = write_moving(folder / "whole.mp4", frames=10).read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "test.txt").write_text("test0.png 0\ntest1.png 1\nwhole.mp4 0\ncut.mp4 1\n")
    line = refuse(options(folder), capsys)
    assert "1 of 4 test videos cannot be read" in line and "cut.mp4" in line and "truncated" in line
    assert "every test clip must be readable" in line and not (folder.parent / "run").exists()


def test_containers_are_probed_without_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = [write_moving(tmp_path / f"v.{suffix}", codec=codec, frames=40, b_frames=0)
            for suffix, codec in (("mp4", "libx264"), ("avi", "mpeg4"), ("mkv", "ffv1"), ("mpg", "mpeg2video"))]
    Image.new("RGB", (8, 8)).save(tmp_path / "still.png")
    bad = {name: tmp_path / name for name in ("text.mp4", "empty.avi", "torn.png", "none.mp4", "cut.avi")}
    bad["text.mp4"].write_text("not a video")
    bad["empty.avi"].touch()
    bad["torn.png"].write_bytes((tmp_path / "still.png").read_bytes()[:40])
    bad["cut.avi"].write_bytes(good[1].read_bytes()[:2000])
    os.mkfifo(tmp_path / "fifo.mp4")
    decoded, frames = [], VideoFile._frames

    def count(self: VideoFile, *arguments: Any) -> Iterator[Any]:
        for frame in frames(self, *arguments):
            decoded.append(self.path)
            yield frame

    monkeypatch.setattr(VideoFile, "_frames", count)
    paths = [*good, tmp_path / "still.png", *bad.values()]
    failures = check_containers([Sample(str(path), 0) for path in paths])
    assert [failure.path for failure in failures] == [str(path) for path in bad.values()]
    assert len(decoded) <= len(good) + 1


def test_of_a_long_test_list_a_part_is_probed_and_that_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "_PROBED", 3)
    probed: list[int] = []
    monkeypatch.setattr(checks, "check_containers", lambda samples: probed.append(len(samples)) or [])
    (folder / "test.txt").write_text("test0.png 0\ntest1.png 1\n" * 4)
    assert train(options(folder, "--stage=finetune")) == 0
    assert probed == [4, 3] and "looked into 3 of 8 test videos" in capsys.readouterr().err


# What a stage needs.


def test_pretraining_needs_a_list_without_labels_alone(folder: Path) -> None:
    (folder / "pretrain.txt").write_text("".join(f"train{index}.png\n" for index in range(4)))
    for name in ("classes.txt", "train.txt", "test.txt"):
        (folder / name).unlink()
    assert train(options(folder, "--stage=pretrain")) == 0
    run = folder.parent / "run"
    assert (run / "reconstruction.png").is_file() and json.loads((run / "metrics.json").read_text())["uar"] is None


def test_pretraining_takes_any_folder_of_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "videos"
    (root / "a" / "frames").mkdir(parents=True)
    (root / ".thumbnails").mkdir()
    for path in (root / "one.mp4", root / "a" / "two.MP4", root / ".thumbnails" / "no.mp4"):
        write_moving(path, frames=8, size=(32, 32), format="mp4")
    for index in range(3):
        Image.fromarray(np.full((32, 32, 3), 80 * index, np.uint8)).save(root / "a" / "frames" / f"{index}.png")
    (root / "a" / "loop").symlink_to(root)
    run = ["--output-dir", str(tmp_path / "run"), *SMALL, "--stage=pretrain", "--batch-size=3"]
    assert train(["--data", str(root), *run]) == 0
    assert f"{root} has no lists: took its 2 videos and 1 folders of frames" in capsys.readouterr().err
    found = open_dataset(root, stage="pretrain").pretrain
    assert [os.path.relpath(sample.path, root) for sample in found] == ["a/frames", "a/two.MP4", "one.mp4"]
    assert "only --stage pretrain takes a folder of videos" in refuse(["--data", str(root), *run[:-2]], capsys)
    line = refuse(["--data", str(root), "--data-root", str(root), *run], capsys)
    assert "has no lists, whose paths --data-root is for" in line
    (tmp_path / "nothing").mkdir()
    assert "holds no videos" in refuse(["--data", str(tmp_path / "nothing"), *run], capsys)


def test_a_list_for_pretraining_alone_may_name_anything_as_label(folder: Path) -> None:
    (folder / "train.txt").write_text("train0.png 7\ntrain1.png\ntrain2.png 0\ntrain3.png happy\n")
    data = open_dataset(folder, stage="pretrain", say=lambda message: None)
    assert [os.path.basename(sample.path) for sample in data.pretrain] == [f"train{index}.png" for index in range(4)]


def test_evaluation_needs_the_test_list_alone(folder: Path) -> None:
    assert train(options(folder)) == 0
    (folder / "train.txt").unlink()
    (folder / "pretrain.txt").write_text("a\0b")
    score = folder.parent / "score"
    assert train(["--data", str(folder), "--stage=evaluate", "--init-from", str(folder.parent / "run"),
                  "--output-dir", str(score), "--device=cpu", "--workers=0"]) == 0  # fmt: skip
    assert json.loads((score / "metrics.json").read_text())["clips"] == 2


# The picture of the score.


@pytest.mark.parametrize("count", [1, 30, 31, 100, 1000])
def test_the_confusion_picture_of_any_number_of_classes_is_bounded(count: int, tmp_path: Path) -> None:
    names = [rf"$\frac{{{index}$ {'very ' * 50} long" for index in range(count)]
    started = time.monotonic()
    draw_confusion_matrix(np.eye(count, dtype=int), names, None, 1.0, tmp_path / "c.png")
    assert time.monotonic() - started < 30  # it took minutes and more
    with Image.open(tmp_path / "c.png") as picture:
        assert max(picture.size) < 2000


def test_results_are_written_before_their_picture(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise UserError("no picture today")

    monkeypatch.setattr("mae_dfer.training.pictures.draw_confusion_matrix", fail)
    assert train(options(folder)) == 2
    run = folder.parent / "run"
    assert 0 <= json.loads((run / "metrics.json").read_text())["uar"] <= 1 and (run / "predictions.csv").is_file()


# Starting from a file of other sizes.


@pytest.mark.parametrize(
    ("name", "sizes", "stage", "words"),
    [
        ("lgi_former_small_patch16_160", {}, "finetune", "is 384 wide and 12 deep, the model 128 wide and 4 deep; give"
         " --preset small"),
        ("mae_lgi_former_small_patch16_160", {}, "finetune", "give --preset small"),
        ("mae_lgi_former_base_patch16_160", {"depth": 1}, "pretrain", "512 wide and 1 deep"),
        ("vit_small_patch16_160", {}, "finetune", "is a ViT, 384 wide and 12 deep, the model 128 wide and 4 deep; give"
         " --model vit_small_patch16_160"),
        ("lgi_former_tiny_patch16_160", {"img_size": 320}, "finetune", "has 32 regions, the model 2; give the --im"),
    ],
)  # fmt: skip
def test_a_file_of_another_preset_names_it(
    name: str, sizes: dict[str, int], stage: str, words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_official(create_model(name, **sizes), folder / "published.pth")
    run = ["--data", str(folder), "--output-dir", str(folder.parent / "run"), "--device=cpu", "--workers=0",
           "--batch-size=4", "--stage", stage, "--init-from", str(folder / "published.pth")]  # fmt: skip
    line = refuse(run, capsys)
    assert words in line and "published.pth does not fit the model" in line and "blocks.0" not in line


@pytest.mark.parametrize("content", ["hello, a text", "{}", "12345678{}", "\n" * 5000])
def test_a_text_file_is_no_checkpoint(content: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "notes.txt").write_text(content)
    for stage in ("all", "finetune", "evaluate"):
        line = refuse(options(folder, "--stage", stage, "--init-from", str(folder / "notes.txt")), capsys)
        assert str(folder / "notes.txt") in line
