"""What options, lists and weights that change leave of a run, and how its stages build on each other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import begin, error_of, settings, state, weights
from test_train_refusals import SMALL, make_set

from mae_dfer.checkpoint import load_weights
from mae_dfer.train import main as train
from mae_dfer.training.checkpoints import hash_file
from mae_dfer.training.run import RunFolder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("resume") / "set")


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    path = folder.parent / "whole"
    assert begin(folder, path) == 0
    return path


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "run")


# -- options that change ---------------------------------------------------------------------------------------------


def test_settings_are_written_with_the_first_checkpoint_made_with_them(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, save, saved = (run / "config.json").read_bytes(), RunFolder.save, []

    def fail_later(self: RunFolder, stage: str, epoch: int, *rest: Any) -> None:
        if epoch == saved[0]:
            raise KeyboardInterrupt
        save(self, stage, epoch, *rest)

    monkeypatch.setattr(RunFolder, "save", fail_later)
    for failing, epochs in ((3, 2), (4, 4)):
        saved[:] = [failing]
        assert train(["--resume", str(run), "--finetune-epochs=4"]) == 130
        assert settings(run)["finetune"]["epochs"] == epochs
        assert ((run / "config.json").read_bytes() == before) == (epochs == 2)
    monkeypatch.undo()
    assert train(["--resume", str(run)]) == 0
    assert weights(run, epoch=4).exists()


def test_mixed_precision_may_change(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    assert begin(folder, path, "--stage=pretrain", "--amp=bf16") == 0
    assert train(["--resume", str(path), "--pretrain-epochs=3", "--amp=fp16"]) == 0
    assert torch.load(state(path, "pretrain", 3))["scaler"]["scale"] > 0
    assert train(["--resume", str(path), "--pretrain-epochs=4", "--amp=off"]) == 0
    assert train(["--resume", str(path), "--pretrain-epochs=5", "--amp=fp16"]) == 0


def test_a_changed_list_is_said_between_epochs_and_refused_within_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, path, save = make_set(tmp_path / "set"), tmp_path / "run", RunFolder.save

    def kill_within(self: RunFolder, stage: str, epoch: int, step: int, *rest: Any) -> None:
        save(self, stage, epoch, step, *rest)
        if stage == "finetune" and (epoch, step) in ((0, 1), (1, 0)):
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "save", kill_within)
    assert begin(data, path, "--batch-size=2", "--save-every=0", "--finetune-label-smoothing=0.1") == 130
    labels = (data / "train.txt").read_text()
    (data / "train.txt").write_text(labels.replace("train3.png 1", "train3.png 0"))
    error = error_of(["--resume", str(path)], capsys)
    assert "list of finetune clips changed" in error and "restore the list" in error and "--init-from" in error
    shutil.move(data, tmp_path / "moved")  # the same clips in another folder are the same clips
    (tmp_path / "moved" / "train.txt").write_text(labels)
    moved = ["--resume", str(path), "--data", str(tmp_path / "moved")]
    assert train(moved) == 130
    assert "clips changed" not in capsys.readouterr().out
    monkeypatch.undo()
    (tmp_path / "moved" / "train.txt").write_text(labels.replace("train3.png 1", "train3.png 0"))
    assert train(moved) == 0
    shown = capsys.readouterr().out
    assert "the list of finetune clips changed" in shown and "list of pretrain clips" not in shown


def test_processes_share_one_log_and_a_change_of_their_number_is_said(run: Path, tmp_path: Path) -> None:
    """The loss of a step is that of its whole batch, however many processes share it."""
    alone = shutil.copytree(run, tmp_path / "alone")
    options = ["--stage=pretrain", "--pretrain-epochs=3", "--redo=finetune"]
    assert train(["--resume", str(alone), *options]) == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29547"]
    child = subprocess.run(
        [*command, "-m", "mae_dfer.train", "--resume", str(run), *options],
        capture_output=True, text=True, timeout=240, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert child.returncode == 0, child.stderr[-3000:]
    assert "trained by 1 processes so far, by 2 from here on" in child.stdout
    records = []
    for path in (alone, run):
        events = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
        records.append(next(event for event in events if event["event"] == "pretrain" and event["epoch"] == 3))
    for name in ("loss", "zero"):
        assert records[1][name] == pytest.approx(records[0][name], rel=1e-6), name


# -- stages that build on each other ---------------------------------------------------------------------------------


def test_a_stage_is_not_trained_on_below_one_that_began_from_it(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    for stage in ("all", "pretrain"):
        error = error_of(["--resume", str(run), "--epochs=3", f"--stage={stage}"], capsys)
        assert "2 of now 3 epochs of pre-training" in error
        assert "--redo finetune" in error and "--stage finetune" in error
    assert before == {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    assert train(["--resume", str(run), "--epochs=3", "--redo=finetune"]) == 0
    aside = {file.name for file in (run / "checkpoints" / "set-aside-1").iterdir()}
    assert {"finetune-epoch-0002.safetensors", "finetune-epoch-0002.state.pt", "metrics.json"} <= aside
    figures = json.loads((run / "metrics.json").read_text())
    assert figures["pretrain_init"] is None
    assert figures["finetune_init"]["path"] == str(weights(run, "pretrain", 3))
    assert figures["finetune_init"]["sha256"] == hash_file(weights(run, "pretrain", 3))
    assert figures["checkpoint"] == str(weights(run, epoch=3)) and settings(run)["pretrain"]["epochs"] == 3
    assert train(["--resume", str(run), "--stage=finetune", "--finetune-epochs=4"]) == 0
    later = json.loads((run / "metrics.json").read_text())
    assert later["finetune_init"] == figures["finetune_init"]


def test_fine_tuning_is_set_aside_only_where_it_can_begin_again(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    later = tmp_path / "later"
    options = ["--stage=finetune", "--init-from", str(run), "--output-dir", str(later)]
    assert train(["--data", str(folder), *SMALL, *options]) == 0
    before = sorted(later.rglob("*.safetensors"))
    run.rename(tmp_path / "moved")
    for more in ([], ["--init-from", str(tmp_path / "moved"), "--depth=2"]):
        error_of(["--resume", str(later), "--redo=finetune", *more], capsys)
        assert sorted(later.rglob("*.safetensors")) == before
    assert train(["--resume", str(later), "--redo=finetune", "--init-from", str(tmp_path / "moved")]) == 0


def test_a_kill_after_setting_aside_leaves_the_settings_that_were_given(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mae_dfer.training.stages.finetune", kill)
    assert train(["--resume", str(run), "--redo=finetune", "--finetune-epochs=3"]) == 130
    monkeypatch.undo()
    assert not (run / "metrics.json").exists()
    assert train(["--resume", str(run)]) == 0
    assert weights(run, epoch=3).exists()


def test_a_refused_redo_changes_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    for more in (["--num-heads=2"], ["--pretrain-batch-size=2"], ["--pretrain-optimizer=adamw", "--epochs=3"],
                 ["--seed=4", "--epochs=3"]):  # fmt: skip
        error_of(["--resume", str(run), "--redo=finetune", *more], capsys)
        assert before == {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}, more


@pytest.mark.parametrize("moved", [0, 1, 3])
def test_a_redo_that_a_kill_ends_begins_again(
    run: Path, moved: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rename, count = Path.rename, []

    def kill(self: Path, target: Path) -> Path:
        count.append(target)
        if len(count) > moved:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", kill)
    assert train(["--resume", str(run), "--redo=finetune", "--finetune-epochs=1"]) == 130
    monkeypatch.undo()
    capsys.readouterr()
    assert train(["--resume", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "finetune: going on" not in shown and "finetune epoch 1/1" in shown and not (run / ".redo").exists()


def test_a_redo_from_other_weights_begins_from_them_however_often_it_is_ended(
    run: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: Any) -> None:
        raise KeyboardInterrupt

    other = tmp_path / "other"
    assert train(["--data", str(folder), "--stage=pretrain", "--output-dir", str(other), *SMALL]) == 0
    monkeypatch.setattr("mae_dfer.training.stages.finetune", kill)
    redo = ["--resume", str(run), "--stage=finetune", "--redo=finetune", "--init-from", str(other)]
    for arguments in (redo, redo[:2], redo[:2]):
        assert train(arguments) == 130
    monkeypatch.undo()
    assert train(redo[:2]) == 0
    init = json.loads((run / "metrics.json").read_text())["finetune_init"]
    assert init["path"] == str(weights(other, "pretrain", 1)) and not (run / ".redo").exists()


def test_randomness_and_labels_of_a_run_stay_its_own(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--seed=3", "--shuffle-labels"):
        assert f"is trained with {option.split('=')[0]}" in error_of(["--resume", str(run), option], capsys)
    assert train(["--resume", str(run), "--redo=finetune", "--seed=3"]) == 0
    assert json.loads((run / "metrics.json").read_text())["seed"] == 3


def test_the_scores_of_a_run_are_not_replaced_by_those_on_other_clips(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "metrics.json").read_bytes()
    other = shutil.copytree(folder, tmp_path / "other")
    error = error_of(["--resume", str(run), "--stage=evaluate", "--data", str(other)], capsys)
    assert f"--init-from {run}" in error and (run / "metrics.json").read_bytes() == before


def test_options_that_would_have_no_effect_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for stage in ("all", "finetune", "evaluate"):
        error = error_of(["--resume", str(run), "--init-from", str(run), f"--stage={stage}"], capsys)
        assert "--init-from would have no effect" in error
    error = error_of(["--resume", str(run), "--init-from", str(run), "--redo=finetune"], capsys)
    assert "has pretrain checkpoints" in error and weights(run).exists()
    assert "--redo needs --resume RUN" in error_of(["--redo=finetune", *SMALL], capsys)
    error = error_of(["--resume", str(run), "--redo=finetune", "--stage=evaluate"], capsys)
    assert "--redo needs --resume RUN" in error


def test_where_a_classifier_begins_is_said(
    folder: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--data", str(folder), "--stage=finetune", *SMALL]
    assert train([*common, "--output-dir", str(tmp_path / "scratch")]) == 0
    assert "trained from scratch" in capsys.readouterr().out
    assert json.loads((tmp_path / "scratch" / "metrics.json").read_text())["finetune_init"] is None
    assert train([*common, "--output-dir", str(tmp_path / "given"), "--init-from", str(whole)]) == 0
    shown = capsys.readouterr().out
    assert f"from {weights(whole, 'pretrain')}" in shown
    assert f"also holds a classifier: --init-from {weights(whole)}" in shown
    path = tmp_path / "later"
    assert train(["--data", str(folder), "--stage=pretrain", "--output-dir", str(path), *SMALL]) == 0
    assert train(["--resume", str(path), "--stage=finetune"]) == 0
    assert f"from {weights(path, 'pretrain', 1)}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("classes", "words", "rows"),
    [
        ("left\nright\n", "", [0, 1]),
        ("right\nleft\n", "the same classes in another order (left, right)", [1, 0]),
        ("left\nup\n", "was trained on other classes (left, right); the head starts untrained", None),
        ("left\nright\nup\n", "was trained on other classes (left, right); the head starts untrained", None),
    ],
)
def test_a_classifier_hands_on_its_head_by_the_names_of_the_classes(
    classes: str, words: str, rows: list[int] | None, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, path = make_set(tmp_path / "set", classes), tmp_path / "run"
    options = ["--stage=finetune", "--init-from", str(weights(whole)), "--finetune-lr=1e-30", "--finetune-min-lr=0"]
    options += ["--allow-empty-classes"]
    assert train(["--data", str(data), "--output-dir", str(path), *SMALL, *options]) == 0
    shown = capsys.readouterr().out
    assert words in shown and ("reordered" in shown) == (rows == [1, 0])
    ours, theirs = load_weights(weights(path, epoch=1))[0], load_weights(weights(whole))[0]
    assert torch.equal(ours["encoder.patch_embed.proj.weight"], theirs["encoder.patch_embed.proj.weight"])
    event = next(json.loads(line) for line in (path / "log.jsonl").read_text().splitlines() if "init_from" in line)
    if rows is None:
        assert event["fresh"] == ["head.weight", "head.bias"] and "head.weight" not in event["taken_over"]
        assert not torch.allclose(ours["head.weight"][0], theirs["head.weight"][0])
    else:
        assert torch.equal(ours["head.weight"], theirs["head.weight"][rows]) and event["fresh"] == []
        assert torch.equal(ours["head.bias"], theirs["head.bias"][rows])


def test_a_published_classifier_of_other_outputs_hands_on_all_but_its_head(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mae_dfer.checkpoint import save_official
    from mae_dfer.training.weights import load_classifier

    model, _ = load_classifier(weights(whole))
    save_official(model, tmp_path / "published.pth")
    for classes, words in (("a\nb\n", "does not name its classes"), ("a\nb\nc\n", "the head starts untrained")):
        data = make_set(tmp_path / f"set {len(classes)}", classes)
        options = ["--stage=finetune", "--init-from", str(tmp_path / "published.pth"), "--finetune-drop-path=0"]
        options += ["--allow-empty-classes"]
        assert train(["--data", str(data), "--output-dir", str(data / "run"), *SMALL, *options]) == 0
        assert words in capsys.readouterr().out
