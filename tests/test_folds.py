"""Folders with folds: which lists are read, and runs of several folds that are skipped, resumed and summed up."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_train_refusals import SMALL, make_set

from mae_dfer.checkpoint import load_weights
from mae_dfer.data import open_dataset
from mae_dfer.errors import UserError
from mae_dfer.notes import keep_quiet
from mae_dfer.train import main as train
from mae_dfer.training.run import RunFolder

FOLDS = ["--stage=finetune", "--folds=all", *SMALL, "--finetune-epochs=2"]


def make_folds(folder: Path, count: int = 3) -> Path:
    """``count`` folds of the same twelve images; the clips and dataset.json's root lie beside the folder."""
    clips = folder.parent / "clips of it"
    for place in (folder, clips):
        place.mkdir()
    rng = np.random.default_rng(0)
    for index in range(4 * count):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(clips / f"{index}.png")
    (folder / "classes.txt").write_text("left\nright\n")
    (folder / "dataset.json").write_text(json.dumps({"set": "toy", "root": "../clips of it", "folds": count}))
    for fold in range(1, count + 1):
        (folder / f"fold-{fold}").mkdir()
        test = range(4 * (fold - 1), 4 * fold)
        for name, indices in (("test", test), ("train", sorted({*range(4 * count)} - {*test}))):
            text = "".join(f"{index}.png {index % 2}\n" for index in indices)
            (folder / f"fold-{fold}" / f"{name}.txt").write_text(text)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folds(tmp_path / "set")


# Which lists are read.


def names(samples: list) -> list[str]:
    return [os.path.basename(sample.path) for sample in samples]


def test_a_fold_has_its_own_lists_and_the_root_of_the_folder(folder: Path, tmp_path: Path) -> None:
    data = open_dataset(folder, fold=2)
    assert names(data.test) == ["4.png", "5.png", "6.png", "7.png"] and len(data.train) == 8 and data.fold == 2
    assert all(os.path.isfile(sample.path) for sample in data.test) and data.description.set == "toy"
    other = open_dataset(folder, fold=2, root=tmp_path / "elsewhere")
    assert other.test[0].path == str(tmp_path / "elsewhere" / "4.png")
    (folder / "dataset.json").unlink()
    assert open_dataset(folder, fold=2).test[0].path == str(folder / "4.png")


def test_pretraining_takes_the_list_of_all_folds_or_one_folds(folder: Path) -> None:
    with pytest.raises(UserError, match="in folds"):
        open_dataset(folder, stage="pretrain")
    assert len(open_dataset(folder, stage="pretrain", fold=1).pretrain) == 8
    (folder / "pretrain.txt").write_text("0.png\n1.png\n")
    for fold in (None, 1):
        assert names(open_dataset(folder, stage="pretrain", fold=fold).pretrain) == ["0.png", "1.png"]
    (folder / "fold-1" / "pretrain.txt").write_text("2.png\n")
    assert names(open_dataset(folder, stage="pretrain", fold=1).pretrain) == ["2.png"]


@pytest.mark.parametrize("stage", ["all", "finetune", "evaluate", "pretrain"])
def test_folds_that_are_not_there_are_named(folder: Path, tmp_path: Path, stage: str) -> None:
    plain = make_set(tmp_path / "plain")
    for place, fold, words in (
        (folder, None, r"are in folds: give one as --fold \(1, 2, 3\)"),
        (folder, 7, "has no fold 7; --fold takes one of 1, 2, 3"),
        (plain, 1, "has no folds.*leave out --fold 1"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            open_dataset(place, stage=stage, fold=fold)
        assert "\n" not in str(caught.value)
    (folder / "fold-02").mkdir()
    (folder / "fold-02" / "test.txt").touch()
    with pytest.raises(UserError, match="both fold 2"):
        open_dataset(folder, stage=stage, fold=1)


def test_a_list_that_a_fold_lacks_is_named(folder: Path) -> None:
    (folder / "fold-1" / "train.txt").unlink()
    with pytest.raises(UserError, match=r"fold-1.train\.txt missing"):
        open_dataset(folder, fold=1)
    assert open_dataset(folder, stage="evaluate", fold=1).train == []


def test_clips_in_folders_called_folds_are_no_folds(tmp_path: Path) -> None:
    for name in ("fold-1", "fold-2"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "1.png")
    assert len(open_dataset(tmp_path, stage="pretrain", say=keep_quiet).pretrain) == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "not valid JSON"), (b"\xff\xfe\x00", "not valid JSON"), (b"[1]", "not a JSON object"),
        (b"[" * 100_000, "not valid JSON"), (b'{"root": 5}', "root is 5, where text or null belongs"),
        (b'{"stride": 0}', "stride must be at least 1"), (b'{"set": ""}', "set is empty"),
    ],
    ids=["cut", "binary", "list", "deep", "root", "stride", "empty"],
)  # fmt: skip
def test_an_odd_description_is_named(folder: Path, content: bytes, words: str) -> None:
    (folder / "dataset.json").write_bytes(content)
    with pytest.raises(UserError) as caught:
        open_dataset(folder, fold=1)
    assert str(caught.value).startswith(str(folder / "dataset.json")) and words in str(caught.value)
    assert "\n" not in str(caught.value)
    (folder / "dataset.json").write_text('{"set": null, "of a later version": [1]}')
    assert open_dataset(folder, fold=1).description.set is None


# Runs of several folds.


def run(folder: Path, output: Path, *options: str) -> int:
    return train(["--data", str(folder), "--output-dir", str(output), *FOLDS, *options])


def contents(output: Path, *folds: int) -> dict[Path, bytes]:
    return {
        path: path.read_bytes()
        for fold in folds
        for path in (output / f"fold-{fold}").rglob("*")
        if path.is_file()
    }


def summary(output: Path) -> dict:
    return json.loads((output / "folds.json").read_text())


def test_folds_are_trained_once_and_summed_up(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert run(folder, output, "--folds=3") == 0
    capsys.readouterr()
    assert list(summary(output)["folds"]) == ["3"]
    before = contents(output, 3)
    assert run(folder, output) == 0
    shown = capsys.readouterr().out
    assert "fold 3 (3 of 3): finished already" in shown and "mean over folds (as published scores are)" in shown
    assert contents(output, 3) == before
    found = summary(output)
    assert list(found["folds"]) == ["1", "2", "3"] and found["published_scores_are"] == "mean_over_folds"
    rows = []
    for fold in (1, 2, 3):
        metrics = json.loads((output / f"fold-{fold}" / "metrics.json").read_text())
        assert found["folds"][str(fold)]["uar"] == metrics["uar"] and metrics["fold"] == fold
        with (output / f"fold-{fold}" / "predictions.csv").open() as file:
            rows += list(csv.DictReader(file))
    assert found["mean_over_folds"]["uar"] == pytest.approx(np.mean([one["uar"] for one in found["folds"].values()]))
    right = [row["label"] == row["prediction"] for row in rows]
    assert found["pooled_over_clips"]["war"] == pytest.approx(np.mean(right)) and len(rows) == 12
    assert found["pooled_over_clips"]["clips"] == 12
    before = contents(output, 1, 2, 3)
    assert run(folder, output, "--workers=1", "--save-every=1", "--folds=2,1") == 0
    assert contents(output, 1, 2, 3) == before, "what changes no result does not train again"
    assert summary(output)["pooled_over_clips"]["clips"] == 12


def test_a_killed_run_of_folds_goes_on_where_it_was(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, output = tmp_path / "whole", tmp_path / "killed"
    start = tmp_path / "start"
    assert train(["--data", str(folder), "--fold=1", "--stage=pretrain", "--output-dir", str(start), *SMALL]) == 0
    assert run(folder, whole, "--init-from", str(start)) == 0
    save = RunFolder.save

    def kill(self, stage, epoch, step, *rest):  # type: ignore[no-untyped-def]
        save(self, stage, epoch, step, *rest)
        if self.path.name == "fold-2" and epoch == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "save", kill)
    assert run(folder, output, "--init-from", str(start)) == 130
    assert list(summary(output)["folds"]) == ["1"]
    before = contents(output, 1)
    monkeypatch.undo()
    capsys.readouterr()
    assert run(folder, output, "--init-from", str(start)) == 0
    shown = capsys.readouterr().out
    assert "fold 2 (2 of 3): goes on" in shown and "finetune: going on after 1 epochs" in shown
    assert contents(output, 1) == before
    for fold in (1, 2, 3):
        name = f"fold-{fold}/checkpoints/finetune-epoch-0002.safetensors"
        ours, theirs = load_weights(output / name)[0], load_weights(whole / name)[0]
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert summary(output)["mean_over_folds"] == summary(whole)["mean_over_folds"]


def test_a_fold_of_other_settings_or_lists_is_refused_before_anything_is_trained(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert run(folder, output, "--folds=2") == 0
    capsys.readouterr()

    def error(*options: str) -> str:
        assert run(folder, output, *options) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1 and not (output / "fold-1").exists()
        return line

    line = error("--finetune-lr=0.5", "--seed=3")
    assert str(output / "fold-2") in line and "--seed is 0 there and 3 here" in line
    assert "--finetune-lr is 0.008 there and 0.5 here" in line
    text = (folder / "fold-2" / "train.txt").read_text()
    (folder / "fold-2" / "train.txt").write_text(text.replace("0.png 0", "0.png 1"))
    assert "trained on other lists than fold 2" in error() and "train.txt" in error()
    (folder / "fold-2" / "train.txt").write_text(text)
    (folder / "fold-3" / "test.txt").write_text("gone.png 0\n")
    assert "gone.png" in error(), "a fold that would fail at the end of days"


def test_a_finished_fold_without_its_predictions_is_scored_again(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert run(folder, output) == 0
    before = summary(output)
    predictions = output / "fold-1" / "predictions.csv"
    rows = predictions.read_text().splitlines(keepends=True)
    for damage in ("path,label\nx,y\n", "".join(rows[:-1]), "".join(rows[:-1]) + rows[-1].replace("0.5", "nan"), None):
        predictions.unlink() if damage is None else predictions.write_text(damage)
        assert run(folder, output) == 0
        assert summary(output) == before and predictions.read_text() == "".join(rows)
    metrics = json.loads((output / "fold-1" / "metrics.json").read_text())
    for damage in ({"uar": "x"}, {"clips": 3}, {"provenance": {"data": {"lists": {"x": 1}}}}):
        (output / "fold-1" / "metrics.json").write_text(json.dumps(metrics | damage))
        assert run(folder, output) == 0 and summary(output) == before
    # A score under other settings is none of this run's.
    assert train(["--resume", str(output / "fold-1"), "--stage=evaluate", "--stride=1"]) == 0
    assert run(folder, output) == 0
    assert json.loads((output / "fold-1" / "metrics.json").read_text())["provenance"]["views"]["stride"] == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--folds=4"], "has no fold 4; --folds takes some of 1,2,3, or all"),
        (["--folds=1;2"], "give all, or numbers such as 1,3"),
        (["--folds="], "--folds is empty"),
        (["--fold=1"], "give one of the two"),
        (["--stage=pretrain"], "which --stage pretrain does not"),
        (["--data=demo"], "demo has no folds"),
    ],
)
def test_folds_that_cannot_be_are_refused(
    folder: Path, tmp_path: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, tmp_path / "out", *options) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_folds_need_a_folder_that_is_not_the_sets(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(["--data", str(folder), *FOLDS]) == 2
    assert "--folds needs --output-dir" in capsys.readouterr().err
    assert run(folder, folder) == 2
    assert "lies among the clips" in capsys.readouterr().err
    assert run(folder, folder / "runs", "--folds=1") == 0


def test_a_run_stays_with_its_fold(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run"
    data = ["--data", str(folder)]
    assert train([*data, "--fold=1", "--stage=finetune", *SMALL, "--output-dir", str(path)]) == 0
    for options in (["--fold=2"], ["--fold=2", "--stage=evaluate"], ["--folds=all"]):
        assert train(["--resume", str(path), *options]) == 2
    assert "contradicts --resume" in capsys.readouterr().err
    assert train(["--resume", str(path), "--fold=1"]) == 0
    capsys.readouterr()
    score = ["--stage=evaluate", "--init-from", str(path), *SMALL, "--output-dir"]
    assert train([*data, "--fold=2", *score, str(tmp_path / "score")]) == 0
    assert "was trained on fold 1, so it has seen clips that fold 2 tests on" in capsys.readouterr().out


def test_processes_train_folds_together(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert run(folder, output, "--folds=2") == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29553"]
    child = subprocess.run(
        [*command, "-m", "mae_dfer.train", "--data", str(folder), "--output-dir", str(output), *FOLDS],
        capture_output=True, text=True, timeout=240, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert child.returncode == 0, child.stderr[-3000:]
    assert child.stdout.count("fold 2 (2 of 3): finished already") == 1 and child.stdout.count("mean over folds") == 1
    assert list(summary(output)["folds"]) == ["1", "2", "3"]


def test_folds_of_other_clips_classes_or_weights_are_not_mixed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start, output = tmp_path / "start", tmp_path / "out"
    data = shutil.copytree(folder, tmp_path / "data")
    options = ["--data", str(data), "--stage=pretrain", "--fold=1", "--output-dir", str(start)]
    assert train([*options, *SMALL]) == 0
    init = ["--stage=finetune", "--init-from", str(start)]
    assert run(data, output, "--folds=1", *init) == 0
    (output / "fold-1" / "metrics.json").unlink()  # begun, and not yet scored
    capsys.readouterr()
    kept = (data / "fold-1" / "train.txt").read_text()
    (data / "fold-1" / "train.txt").write_text("".join(kept.splitlines(keepends=True)[1:]))
    assert run(data, output, *init) == 2 and "other lists than fold 1" in capsys.readouterr().err
    (data / "fold-1" / "train.txt").write_text(kept)
    names = (data / "classes.txt").read_text()
    (data / "classes.txt").write_text("".join(reversed(names.splitlines(keepends=True))))
    assert run(data, output, *init) == 2 and "was trained on the classes" in capsys.readouterr().err
    (data / "classes.txt").write_text(names)
    assert train(["--resume", str(start), "--epochs=2"]) == 0
    capsys.readouterr()
    assert run(data, output, *init) == 2 and "began from other weights" in capsys.readouterr().err
    assert not (output / "fold-2").exists()


@pytest.mark.parametrize("name", ["folds.json", "fold-2/metrics.json", "fold-3"])
def test_what_others_wrote_is_told_before_the_first_fold(
    folder: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    assert run(folder, tmp_path / "out") == 2
    assert str(path) in (error := capsys.readouterr().err) or path.name in error
    assert not (tmp_path / "out" / "fold-1").exists() and path.read_text() == "mine"


def test_folds_that_pre_train_begin_from_given_weights_too(folder: Path, tmp_path: Path) -> None:
    start, output = tmp_path / "start", tmp_path / "out"
    assert train(["--data", str(folder), "--stage=pretrain", "--fold=1", "--output-dir", str(start), *SMALL]) == 0
    assert run(folder, output, "--stage=all", "--init-from", str(start)) == 0
    assert run(folder, output, "--stage=all", "--init-from", str(start)) == 0
