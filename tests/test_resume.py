"""What a kill, a full disk and damaged files leave of a run, and how it goes on."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import EPOCHS, assert_same_end, begin, error_of, settings, state, weights
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_train_refusals import SMALL, make_set

from mae_dfer.checkpoint import load_weights, save_weights
from mae_dfer.predict import main as predict
from mae_dfer.train import main as train
from mae_dfer.training.lock import RunLock
from mae_dfer.training.optim import Optimizers
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


def test_curves_hold_every_epoch(whole: Path) -> None:
    curves = EventAccumulator(str(whole / "tensorboard")).Reload()
    logged = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    for stage in ("pretrain", "finetune"):
        expected = [(event["step"], event["loss"]) for event in logged if event["event"] == stage]
        drawn = [(point.step, point.value) for point in curves.Scalars(f"{stage}/loss")]
        assert len(drawn) == 2 and drawn == [(step, pytest.approx(loss)) for step, loss in expected]


# -- kills -----------------------------------------------------------------------------------------------------------


def test_weights_without_a_state_are_set_aside_and_their_stage_begins_again(
    run: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in (state(run, epoch=1), state(run, epoch=2), weights(run, epoch=1)):
        file.unlink()
    kept = weights(run).read_bytes()
    weights(run).rename(weights(run, epoch=9))  # as if it were of a longer run: it must not stay the newest
    assert train(["--resume", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "weights of finetune without a trainer state" in shown and "finetune starts at its beginning" in shown
    assert (run / "checkpoints" / "set-aside-1" / weights(run, epoch=9).name).read_bytes() == kept
    assert_same_end(run, whole)


def test_a_kill_between_the_two_files_of_a_checkpoint_costs_nothing(
    folder: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, path, renamed = os.replace, tmp_path / "run", []

    def killed(source: Path, target: Path) -> None:
        replace(source, target)
        if target.parent.name == "checkpoints":
            renamed.append(target)
            if len(renamed) in (1, 4, 7):  # the first and the last of pre-training, the first of fine-tuning
                raise KeyboardInterrupt

    monkeypatch.setattr("mae_dfer.files.os.replace", killed)
    assert begin(folder, path) == 130
    assert [train(["--resume", str(path)]) for _ in range(3)] == [130, 130, 0]
    assert_same_end(path, whole)


def test_what_a_user_put_into_a_run_folder_stays(run: Path) -> None:
    kept = [run / "checkpoints" / "best.state.pt", run / ".notes.12.tmp.txt", run / "checkpoints" / "copy.safetensors"]
    for path in kept:
        path.write_bytes(b"mine")
    assert train(["--resume", str(run), "--stage=evaluate"]) == 0
    assert all(path.read_bytes() == b"mine" for path in kept)


def test_what_a_kill_left_is_removed_and_nothing_else(run: Path) -> None:
    checkpoints = run / "checkpoints"
    dead = [run / ".config.77.tmp.json", run / "..holder.7.tmp.json"]
    dead += [checkpoints / name for name in (".tmpAb12Cd", ".pretrain-epoch-0001.state.99.tmp.pt")]
    dead += [checkpoints / "finetune-epoch-0003.state.pt"]
    kept = [run / ".hidden", run / "notes.1.tmp.txt", checkpoints / ".tmp", checkpoints / "best.state.pt.bak"]
    for file in (*dead, *kept):
        file.write_bytes(b"x")
    assert train(["--resume", str(run)]) == 0
    assert not [file for file in dead if file.exists()] and all(file.exists() for file in kept)


# -- damage ----------------------------------------------------------------------------------------------------------


def zero_the_tail(run: Path) -> None:
    content = weights(run).read_bytes()
    weights(run).write_bytes(content[:-64] + bytes(64))


def exchange_weights(run: Path) -> None:
    first, second = weights(run, epoch=1).read_bytes(), weights(run, epoch=2).read_bytes()
    weights(run, epoch=1).write_bytes(second)
    weights(run, epoch=2).write_bytes(first)
    weights(run, epoch=1).unlink()
    shutil.copy(weights(run), weights(run, epoch=1))  # the one before is as it was


def take_another_state(run: Path) -> None:
    shutil.copy(state(run, epoch=1), state(run, epoch=2))


def flip_a_bit_of_the_state(run: Path) -> None:
    content = bytearray(state(run).read_bytes())
    content[len(content) // 2] ^= 1
    state(run).write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [zero_the_tail, exchange_weights, take_another_state, flip_a_bit_of_the_state])
def test_a_damaged_checkpoint_is_found_by_its_checksum_and_the_one_before_taken(
    damage: Any, run: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(run)
    assert train(["--resume", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "finetune-epoch-0002.safetensors cannot be resumed" in shown and "damaged checkpoints: set aside" in shown
    assert "finetune: going on after 1 epochs" in shown
    assert_same_end(run, whole)


@pytest.mark.parametrize(("damage", "words"), [(zero_the_tail, "is damaged"), (exchange_weights, "epoch 1, step 0")])
def test_damaged_weights_are_refused_by_name_wherever_they_are_read(
    damage: Any, words: str, run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(run)
    start = ["--data", str(folder), "--output-dir", str(tmp_path / "x"), "--init-from", str(weights(run)), *SMALL]
    commands: list[tuple[Any, list[str]]] = [
        (train, [*start, "--stage=finetune"]),
        (train, [*start, "--stage=evaluate"]),
        (train, ["--resume", str(run), "--stage=evaluate"]),
        (predict, [str(folder / "test0.png"), "--checkpoint", str(run), "--output", str(tmp_path / "x.csv")]),
    ]
    for command, arguments in commands:
        error = error_of(arguments, capsys, command)
        assert str(weights(run)) in error and words in error


def test_checkpoints_without_checksums_are_still_resumed(run: Path) -> None:
    for file in (run / "checkpoints").glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            metadata = json.loads(opened.metadata()["mae_dfer"])
        for name in ("state_sha256", "step", "init"):
            del metadata[name]
        save_file(load_file(file), file, metadata={"format": "pt", "mae_dfer": json.dumps(metadata)})
    for file in (run / "checkpoints").glob("*.state.pt"):
        values = torch.load(file)
        torch.save({name: values[name] for name in ("position", "batch_size", "optimizers", "scaler")}, file)
    assert train(["--resume", str(run), "--finetune-epochs=3"]) == 0
    assert weights(run, epoch=3).exists()


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {"position": {}},
        {"position": {"when": 3}, "optimizers": [], "scaler": {}},
        {"position": {}, "optimizers": 0, "scaler": {}},
    ],
)
def test_a_state_of_another_kind_is_told(content: Any, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in (run / "checkpoints").glob("finetune*.state.pt"):
        torch.save(content, file)
        tensors, metadata = load_weights(file.with_name(file.name.replace(".state.pt", ".safetensors")))
        del metadata["state_sha256"]
        header = {"format": "pt", "mae_dfer": json.dumps(metadata)}
        save_file(tensors, file.with_name(file.name.replace(".state.pt", ".safetensors")), metadata=header)
    assert str(run) in error_of(["--resume", str(run)], capsys)


def test_what_says_nothing_about_a_file_sets_none_aside(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ESTALE, "Stale file handle", str(run))

    before = sorted((run / "checkpoints").iterdir())
    monkeypatch.setattr(torch, "load", fail)
    assert "Stale file handle" in error_of(["--resume", str(run), "--finetune-epochs=3"], capsys)
    assert sorted((run / "checkpoints").iterdir()) == before


def test_two_checkpoints_with_each_others_names_are_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = weights(run, epoch=1), weights(run, epoch=2)
    for one, other in ((first, second), (state(run, epoch=1), state(run, epoch=2))):
        one.rename(run / "aside")
        other.rename(one)
        (run / "aside").rename(other)
    error = error_of(["--resume", str(run)], capsys)
    assert "it was given the name of another checkpoint" in error and "move them elsewhere" in error
    assert first.exists() and second.exists()


# -- full disks ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    disk = tmp_path / "disk"
    disk.mkdir()
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4M", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_named_and_costs_no_checkpoint(
    folder: Path, whole: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With more and more room, it is the lock's file, the log, the state or the weights that cannot be written."""
    run, filler = small_disk / "run", small_disk / "filler"
    assert begin(folder, run, "--finetune-epochs=1") == 0
    needed = sum(file.stat().st_size for file in (weights(run, epoch=1), state(run, epoch=1)))
    for room in (0, 8192, needed // 3, needed - 4096):
        filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - room))
        error = error_of(["--resume", str(run), "--finetune-epochs=2"], capsys)
        assert "No space left on device" in error and str(run) in error, room
        assert list((run / "checkpoints").glob("finetune*.safetensors")) == [weights(run, epoch=1)]
        assert not list(run.rglob(".*.tmp*")) and settings(run)["finetune"]["epochs"] == 1
        filler.unlink()
    assert train(["--resume", str(run), "--finetune-epochs=2"]) == 0
    assert_same_end(run, whole)
    assert all(json.loads(line) for line in (run / "log.jsonl").read_text().splitlines())


@pytest.mark.parametrize(
    "writer", ["mae_dfer.checkpoint.own.save_file", "torch.save", "mae_dfer.training.run.Curves.add"]
)
def test_a_full_disk_is_told_however_a_library_words_it(
    writer: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*given: Any, **options: Any) -> None:
        if writer.endswith("save_file"):
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            if writer == "torch.save":
                raise RuntimeError("unexpected pos 704 vs 598")  # noqa: B904
            raise

    monkeypatch.setattr(writer, full)
    error = error_of(["--resume", str(run), "--finetune-epochs=3"], capsys)
    assert "No space left on device" in error and f"--resume {run} goes on" in error


# -- one process at a time -------------------------------------------------------------------------------------------

HOLD = "import sys; from pathlib import Path; from mae_dfer.training.lock import RunLock as L; " \
       "lock = L(Path(sys.argv[1]), print); print('held', flush=True); sys.stdin.read()"  # fmt: skip


def test_a_run_in_use_is_not_resumed_and_is_free_when_its_process_is_killed(
    run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None and other.stdout.readline() == b"held\n"
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*")}
    try:
        error = error_of(["--resume", str(run)], capsys)
        assert f"{run} is in use by process {other.pid} on " in error and " since 20" in error
        assert before == {file: file.stat().st_mtime_ns for file in run.rglob("*")}
        (aside := run.parent / "aside").mkdir()
        for file in sorted(run.glob("[!.]*")):  # as if the other had only just begun
            file.rename(aside / file.name)
        error = error_of(["--data", str(folder), "--output-dir", str(run), *SMALL], capsys)
        assert f"is in use by process {other.pid}" in error
        for file in sorted(aside.iterdir()):
            file.rename(run / file.name)
    finally:
        other.kill()
        other.wait()
    assert train(["--resume", str(run)]) == 0
    assert not (run / ".lock").exists() and not (run / ".holder.json").exists()


def test_a_file_system_without_locks_is_told_and_used(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*given: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    assert train(["--resume", str(run)]) == 0
    assert "its file system has no locks" in capsys.readouterr().out


def test_a_lock_is_released_for_the_next(tmp_path: Path) -> None:
    for _ in range(2):
        RunLock(tmp_path, print).release()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_moved_while_it_is_written_writes_no_second_one(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save = RunFolder.save

    def move_first(self: RunFolder, stage: str, epoch: int, *rest: Any) -> None:
        if epoch == 3:
            run.rename(run.with_name("elsewhere"))
            run.mkdir()
        save(self, stage, epoch, *rest)

    monkeypatch.setattr(RunFolder, "save", move_first)
    error = error_of(["--resume", str(run), "--finetune-epochs=3"], capsys)
    assert "was moved or removed while it was written" in error
    assert not list(run.rglob("*.safetensors"))


# -- numbers that are none -------------------------------------------------------------------------------------------


def test_what_the_last_update_broke_is_no_result(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The loss of the only step is that before its update."""
    path = tmp_path / "run"
    rates = ["--stage=finetune", "--finetune-warmup-epochs=0", "--finetune-epochs=1", "--finetune-lr=1e30"]
    error = error_of(["--data", str(folder), "--output-dir", str(path), *SMALL, *rates], capsys)
    assert "weights are not finite or above 1e+08" in error and not list(path.rglob("*.safetensors"))
    assert not (path / "metrics.json").exists() and not (path / "predictions.csv").exists()


def test_weights_that_are_not_finite_are_never_saved(
    folder: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, step, calls = tmp_path / "run", Optimizers.step, []

    def overflow(self: Optimizers, *given: Any) -> None:
        step(self, *given)
        calls.append(given)
        if len(calls) == 4:
            self.all[0].param_groups[0]["params"][0].data.fill_(float("inf"))

    monkeypatch.setattr(Optimizers, "step", overflow)
    error = error_of(["--data", str(folder), "--output-dir", str(path), *SMALL, *EPOCHS], capsys)
    assert "after 2 epochs and 0 steps of finetune, weights are not finite" in error and "--lr" in error
    assert not weights(path).exists() and weights(path, epoch=1).exists()
    monkeypatch.undo()
    assert train(["--resume", str(path)]) == 0
    assert_same_end(path, whole)


def test_a_classifier_whose_outputs_are_not_finite_is_not_scored(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mae_dfer import create_model

    tensors, metadata = load_weights(weights(run))
    names = dict(metadata.pop("model"))
    model = create_model(names.pop("name"), **names)
    model.load_state_dict(tensors)
    model.head.bias.data[1] = float("-inf")  # its softmax is finite
    save_weights(model, tmp_path / "broken.safetensors", metadata)
    arguments = ["--data", str(folder), "--stage=evaluate", "--device=cpu", "--workers=0"]
    broken = ["--init-from", str(tmp_path / "broken.safetensors"), "--output-dir", str(tmp_path / "x")]
    error = error_of([*arguments, *broken], capsys)
    assert "broken.safetensors: its outputs are not finite for 2 of 2 clips" in error and "test0.png" in error
    assert not (tmp_path / "x" / "predictions.csv").exists()


def test_a_loss_of_nothing_to_predict_has_no_ratio(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    assert begin(folder, path, "--pretrain-appearance-weight=0") == 0  # stills: no motion to predict
    for _ in range(2):
        figures = json.loads((path / "metrics.json").read_text())
        assert figures["pretrain_loss_predicting_zero"] == 0 and figures["pretrain_loss_ratio"] is None
        assert train(["--resume", str(path)]) == 0


def test_a_training_set_of_which_nothing_can_be_read_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = make_set(tmp_path / "set")
    for index in range(4):
        (broken / f"train{index}.png").write_bytes(b"not an image")
    command = ["--data", str(broken), "--output-dir", str(tmp_path / "run"), *SMALL]
    assert "4 of 4 pre-training videos that were looked into cannot be read" in error_of(command, capsys)
    monkeypatch.setattr("mae_dfer.training.checks.check_containers", lambda samples: [])  # they break afterwards
    assert "no clip of this epoch could be read; see bad_files.txt" in error_of(command, capsys)


def test_pretraining_that_diverged_in_its_last_step_is_no_result(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    options = ["--stage=pretrain", "--pretrain-warmup-epochs=0", "--pretrain-lr=1e30", "--epochs=1"]
    command = ["--data", str(folder), "--output-dir", str(path), *SMALL, *options]
    assert "weights are not finite or above 1e+08" in error_of(command, capsys)
    assert not list(path.rglob("*.safetensors")) and not (path / "metrics.json").exists()


def test_bad_files_of_all_stages_are_named(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set")
    (folder / "pretrain.txt").write_text("pré.png\n" + "".join(f"train{index}.png\n" for index in range(4)))
    (folder / "pré.png").write_bytes(b"not an image")
    (folder / "train.txt").write_text((folder / "train.txt").read_text() + "late.png 0\n")
    (folder / "late.png").write_bytes(b"not an image")
    options = ["--epochs=1", "--batch-size=5", "--finetune-mixup=0", "--finetune-cutmix=0"]
    assert train(["--data", str(folder), "--output-dir", str(tmp_path / "run"), *SMALL, *options]) == 0
    named = (tmp_path / "run" / "bad_files.txt").read_text(encoding="utf-8").splitlines()
    assert [Path(line.split("\t")[0]).name for line in named] == ["pré.png", "late.png"]
