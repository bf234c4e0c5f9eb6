"""The whole command line on a toy set: squares that move left or right, told apart by motion alone."""

import csv
import json
import os
import re
import subprocess
import sys

import av
import numpy as np
import pytest
import torch

from mae_dfer.checkpoint import load_weights
from mae_dfer.predict import main as predict
from mae_dfer.train import main as train
from mae_dfer.train import parse_config
from mae_dfer.training.finetune import blend_still
from mae_dfer.training.loop import Position
from mae_dfer.training.metrics import classification_report
from mae_dfer.training.optim import learning_rate, parameter_groups
from mae_dfer.training.run import RunFolder

SMALL = [
    "--img-size",
    "32",
    "--patch-size",
    "8",
    "--num-frames",
    "4",
    "--stride",
    "1",
    "--region-size",
    "1,2,4",
    "--embed-dim",
    "32",
    "--depth",
    "2",
    "--num-heads",
    "2",
    "--decoder-embed-dim",
    "16",
    "--decoder-depth",
    "1",
    "--decoder-num-heads",
    "1",
    "--pretrain-mask-ratio",
    "0.5",
    "--batch-size",
    "4",
    "--workers",
    "0",
    "--device",
    "cpu",
    "--finetune-warmup-epochs",
    "0",
    "--pretrain-warmup-epochs",
    "0",
]


def write_video(path, frames):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def moving_square(rng, direction, length=6):
    frames = np.full((length, 32, 32, 3), 60, np.uint8)
    top, start = rng.integers(2, 18), 2 if direction > 0 else 18
    for time in range(length):
        left = start + direction * 3 * time
        frames[time, top : top + 12, left : left + 12] = rng.integers(150, 250, 3, dtype=np.uint8)
    return frames


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("squares set")  # a path with a space
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 6)):
        lines = []
        for index in range(count):
            name = f"{split} {index}.mp4"
            write_video(root / name, moving_square(rng, 1 if index % 2 else -1))
            lines.append(f"{name} {index % 2}\n")
        (root / f"{split}.txt").write_text("".join(lines))
    (root / "classes.txt").write_text("left\nright\n")
    return root


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "whole"
    assert train(["--data", str(folder), "--output-dir", str(path), "--epochs", "2", *SMALL]) == 0
    return path


def test_a_run_leaves_what_the_readme_says(run):
    metrics = json.loads((run / "metrics.json").read_text())
    assert 0 <= metrics["uar"] <= 1 and 0 <= metrics["war"] <= 1
    assert np.array(metrics["confusion_matrix"]).sum() == 6
    assert set(metrics["per_class_recall"]) == {"left", "right"}
    assert metrics["attention_backend"] and metrics["finetune_clips_per_second"] > 0
    with (run / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert all(float(row["left"]) + float(row["right"]) == pytest.approx(1, abs=1e-5) for row in rows)
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert {
        "pretrain-epoch-0002.safetensors",
        "finetune-epoch-0002.safetensors",
        "finetune-epoch-0002.state.pt",
    } <= names
    assert not [name for name in names if "tmp" in name]
    for picture in ("reconstruction.png", "confusion_matrix.png"):
        assert (run / picture).read_bytes().startswith(b"\x89PNG")
    assert list((run / "tensorboard").iterdir())
    events = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    taken = next(event for event in events if event["event"] == "init_from")["taken_over"]
    assert "encoder.blocks.0.local_attn.qkv.weight" in taken and not any("head" in name for name in taken)


def test_the_same_seed_gives_the_same_weights_with_other_workers(run, folder, tmp_path):
    again = tmp_path / "again"
    arguments = ["--data", str(folder), "--output-dir", str(again), "--epochs", "2", *SMALL]
    arguments[arguments.index("--workers") + 1] = "2"
    assert train(arguments) == 0
    assert_same_weights(run, again)


def test_a_killed_run_resumes_exactly(run, folder, tmp_path, monkeypatch):
    """Killed in the middle of an epoch of each stage, it ends with the weights of the run that was not."""
    path, save = tmp_path / "killed", RunFolder.save

    def kill_after_saving(self, stage, epoch, step, *rest):
        save(self, stage, epoch, step, *rest)
        if step == 1 and epoch == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "save", kill_after_saving)
    arguments = [
        "--data",
        str(folder),
        "--output-dir",
        str(path),
        "--epochs",
        "2",
        "--save-every",
        "0",
        *SMALL,
    ]
    assert train(arguments) == 130
    assert train(["--resume", str(path)]) == 130  # pre-training ends; fine-tuning is killed in turn
    monkeypatch.undo()
    assert train(["--resume", str(path)]) == 0
    assert_same_weights(run, path)


def assert_same_weights(first, second):
    for stage in ("pretrain", "finetune"):
        ours, theirs = (
            load_weights(path / "checkpoints" / f"{stage}-epoch-0002.safetensors")[0]
            for path in (first, second)
        )
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), stage


def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(run, folder, tmp_path, capsys):
    path = tmp_path / "damaged"
    assert (
        train(
            ["--data", str(folder), "--output-dir", str(path), "--epochs", "2", "--stage", "pretrain", *SMALL]
        )
        == 0
    )
    newest = path / "checkpoints" / "pretrain-epoch-0002.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    assert train(["--resume", str(path)]) == 0
    assert "pretrain-epoch-0002.safetensors cannot be resumed" in " ".join(capsys.readouterr().out.split())
    assert_same = [load_weights(p / "checkpoints" / newest.name)[0] for p in (run, path)]
    assert all(torch.equal(assert_same[0][name], assert_same[1][name]) for name in assert_same[0])


def test_a_trained_run_is_evaluated_to_the_same_score(run, folder, tmp_path):
    path = tmp_path / "score"
    assert (
        train(
            [
                "--data",
                str(folder),
                "--stage",
                "evaluate",
                "--init-from",
                str(run),
                "--output-dir",
                str(path),
                "--workers",
                "0",
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    first, second = (json.loads((p / "metrics.json").read_text()) for p in (run, path))
    assert first["uar"] == second["uar"] and first["confusion_matrix"] == second["confusion_matrix"]


def test_predict_writes_probabilities_over_time(run, folder, tmp_path, capsys):
    output = tmp_path / "out.csv"
    assert (
        predict(
            [
                str(folder),
                "--checkpoint",
                str(run),
                "--output",
                str(output),
                "--window-step",
                "1",
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    with output.open() as file:
        rows = list(csv.DictReader(file))
    assert len({row["path"] for row in rows}) == 18 and len(rows) == 18 * 3  # windows of 4 in 6 frames
    assert all(float(row["left"]) + float(row["right"]) == pytest.approx(1, abs=1e-5) for row in rows)
    assert [row["start_frame"] for row in rows[:3]] == ["0", "1", "2"]


def test_mistakes_are_named(run, folder, tmp_path, capsys):
    output = ["--output-dir", str(tmp_path / "x")]
    cases = [
        (["--data", str(folder), *output, *SMALL, "--region-size", "1,3,4"], "does not divide"),
        (["--data", str(folder), "--output-dir", str(run), *SMALL], "already holds a run"),
        (["--data", str(folder), *output, *SMALL, "--batch-size", "64"], "do not fill one batch"),
        (
            [
                "--data",
                str(folder),
                *output,
                *SMALL,
                "--embed-dim",
                "64",
                "--stage",
                "finetune",
                "--init-from",
                str(run),
            ],
            "shape",
        ),
        (["--data", str(folder), *output, *SMALL, "--model", "lgi_former_tini"], "did you mean"),
    ]
    for arguments, expected in cases:
        assert train(arguments) == 2, arguments
        error = capsys.readouterr().err
        assert re.fullmatch(r"error: .+\n", error) and expected in error, error
        assert not (tmp_path / "x").exists(), "a refused run leaves no folder in the way of the next"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--seed", "-1"], "--seed must be 0 or more"),
        (["--lr", "nan"], "--lr"),
        (["--finetune-label-smoothing", "2"], r"must lie in [0, 1)"),
        (["--pretrain-beta2", "2"], r"must lie in [0, 1)"),
        (["--workers", "-1"], "--workers must be 0 or more"),
        (["--finetune-mixup", "0.5", "--finetune-batch-size", "3"], "pairs of clips"),
        (["--pretrain-crop-scales", "1,x"], "--pretrain-crop-scales"),
        (["--wokers", "1"], "did you mean --workers?"),
        (["--resume", __file__], "is not the folder of an earlier run"),
        (["--output-dir", __file__ + "/x"], "Not a directory"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_written(
    arguments, expected, folder, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert train(["--data", str(folder), *SMALL, *arguments]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"error: .+\n", error) and expected in error, error
    assert not list(tmp_path.iterdir())


def test_crop_scales_are_as_many_as_one_likes():
    config, _, given = parse_config(["--pretrain-crop-scales", "1,0.9,0.8"])
    assert config.pretrain.crop_scales == (1.0, 0.9, 0.8) and given == {"pretrain_crop_scales"}


def test_a_resumed_run_scores_itself_and_keeps_its_figures(run, folder, tmp_path):
    path = tmp_path / "tuned"
    common = ["--data", str(folder), "--output-dir", str(path), "--stage", "finetune", "--init-from", str(run)]
    assert train([*common, "--epochs", "1", *SMALL]) == 0
    first = json.loads((path / "metrics.json").read_text())
    assert train(["--resume", str(path), "--stage", "evaluate"]) == 0
    second = json.loads((path / "metrics.json").read_text())
    assert second["checkpoint"].startswith(str(path))
    assert second["finetune_loss"] == first["finetune_loss"] and second["uar"] == first["uar"]
    assert json.loads((path / "config.json").read_text())["stage"] == "finetune"


def test_classes_of_another_name_or_order_are_not_scored(run, folder, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    for name in ("train.txt", "test.txt"):
        (other / name).write_text((folder / name).read_text())
    (other / "classes.txt").write_text("right\nleft\n")
    data = ["--data", str(other), "--data-root", str(folder)]
    assert train([*data, "--stage", "evaluate", "--init-from", str(run), "--output-dir", str(tmp_path / "x")]) == 2
    assert "trained on other classes (left, right)" in capsys.readouterr().err


def test_predict_keeps_what_it_could_read(run, folder, tmp_path, capsys):
    (tmp_path / "talk [dQw4].mp4").write_bytes((folder / "test 0.mp4").read_bytes())
    (tmp_path / "text.mp4").write_text("not a video")
    output = ["--checkpoint", str(run), "--output", str(tmp_path / "out.csv"), "--device", "cpu"]
    assert predict([str(tmp_path / "talk [dQw4].mp4"), str(tmp_path / "text.mp4"), *output]) == 2
    shown = capsys.readouterr()
    assert "talk [dQw4].mp4" in shown.out and "text.mp4" in shown.err
    with (tmp_path / "out.csv").open() as file:
        assert len(list(csv.DictReader(file))) >= 1
    assert predict([str(folder / "test 0.mp4"), *output[:2], "--output", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err
    (tmp_path / "thumb.png").write_bytes(b"")
    assert predict([str(tmp_path), *output]) == 2
    assert "holds videos and images" in capsys.readouterr().err


def test_two_processes_skip_an_unreadable_clip_together(folder, tmp_path):
    broken = tmp_path / "set"
    broken.mkdir()
    (broken / "classes.txt").write_text("left\nright\n")
    (broken / "test.txt").write_text((folder / "test.txt").read_text())
    (broken / "text.mp4").write_text("not a video")
    lines = [str(folder / line) for line in (folder / "train.txt").read_text().splitlines()[:5]]
    (broken / "train.txt").write_text("\n".join([*lines, f"{broken / 'text.mp4'} 1\n"]))
    arguments = ["--data", str(broken), "--data-root", str(folder), "--stage", "finetune", "--epochs", "1"]
    sizes = [*SMALL[: SMALL.index("--batch-size")], *SMALL[SMALL.index("--batch-size") + 2 :], "--batch-size", "2"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29541"]
    child = subprocess.run(
        [*command, "-m", "mae_dfer.train", *arguments, *sizes, "--output-dir", str(tmp_path / "run")],
        capture_output=True, text=True, timeout=240, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert child.returncode == 0, child.stderr[-3000:]
    assert "text.mp4" in (tmp_path / "run" / "bad_files.txt").read_text()
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["clips"] == 6


def test_unreadable_videos_are_skipped_in_training_and_refused_in_evaluation(folder, tmp_path, capsys):
    broken = tmp_path / "set"
    broken.mkdir()
    for name in ("classes.txt", "train.txt", "test.txt"):
        (broken / name).write_text((folder / name).read_text())
    (broken / "train.txt").write_text((folder / "train.txt").read_text() + "cut.mp4 0\n")
    whole = (folder / "train 0.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    arguments = [
        "--data",
        str(broken),
        "--data-root",
        str(folder),
        "--stage",
        "finetune",
        "--epochs",
        "3",
        *SMALL,
    ]
    try:
        assert train([*arguments, "--output-dir", str(tmp_path / "run")]) == 0
        assert "cut.mp4" in (tmp_path / "run" / "bad_files.txt").read_text()
        assert train([*arguments, "--output-dir", str(tmp_path / "strict"), "--max-bad-files", "0"]) == 2
        assert "1 of 13 training videos that were looked into cannot be read" in capsys.readouterr().err
        (broken / "test.txt").write_text("cut.mp4 0\n")
        assert train([*arguments, "--output-dir", str(tmp_path / "test")]) == 2
        assert "every test clip must be readable" in capsys.readouterr().err
    finally:
        (folder / "cut.mp4").unlink()


def test_schedule_is_the_published_one():
    values = [learning_rate(step, 10, 4, 1.0, 0.1) for step in range(10)]
    assert values[:4] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert values[4:] == pytest.approx([0.1 + 0.45 * (1 + np.cos(np.pi * i / 6)) for i in range(6)])


def test_parameter_groups_decay_layers_and_spare_tokens():
    from mae_dfer import create_model

    model = create_model("lgi_former_tiny_patch16_160", depth=2)
    groups = {
        id(p): group
        for group in parameter_groups(model, 0.05, 0.5, patch_embed_lr_scale=0.1)
        for p in group["params"]
    }
    assert len(groups) == len(list(model.parameters()))
    expected = {
        "encoder.patch_embed.proj.weight": (0.05, 0.1 * 0.125),
        "encoder.blocks.0.mlp.fc1.weight": (0.05, 0.25),
        "encoder.blocks.1.mlp.fc1.bias": (0.0, 0.5),
        "encoder.representative_tokens": (0.0, 1.0),
        "head.weight": (0.05, 1.0),
    }
    parameters = dict(model.named_parameters())
    for name, (decay, scale) in expected.items():
        group = groups[id(parameters[name])]
        assert (group["weight_decay"], group["lr_scale"]) == (decay, scale), name


def test_a_blended_still_changes_looks_and_not_motion():
    torch.manual_seed(0)
    clip = torch.randn(6, 3, 5, 4, 4, dtype=torch.float64)
    blended = blend_still(clip, 0.4)
    assert torch.equal(blend_still(clip, 0.0), clip)
    motion, mixed = clip.diff(dim=2), blended.diff(dim=2)
    share = 1 - (mixed * motion).sum((1, 2, 3, 4)) / motion.square().sum((1, 2, 3, 4))
    assert 0 < share.min() and share.max() < 0.4 and share.std() > 0.01
    torch.testing.assert_close(mixed, motion * (1 - share).view(-1, 1, 1, 1, 1))
    # What was blended in is one frame of one clip.
    still = (blended - clip * (1 - share).view(-1, 1, 1, 1, 1)) / share.view(-1, 1, 1, 1, 1)
    frames = clip.transpose(1, 2).reshape(30, -1)
    distance = (still[:, None, :, 0].flatten(2) - frames).norm(dim=-1)
    assert distance.min(dim=1).values.max() < 1e-9


def test_uar_is_the_mean_recall():
    report = classification_report(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]), ["a", "b", "unseen"])
    assert report["uar"] == pytest.approx((2 / 3 + 1) / 2) and report["war"] == 0.75
    assert report["per_class_recall"]["unseen"] is None
    assert report["confusion_matrix"] == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_a_position_is_made_of_what_a_safe_load_allows():
    assert all(isinstance(value, (int, float, dict)) for value in vars(Position()).values())


def test_decoding_processes_are_left_out_only_where_they_would_compete():
    from mae_dfer.config import preset
    from mae_dfer.training.inputs import num_workers

    config, cpu, gpu = preset("tiny"), torch.device("cpu"), torch.device("cuda")
    assert config.cache_gb and num_workers(config, cpu) == 0
    assert num_workers(config, gpu) > 0 and num_workers(config) > 0
    config.workers = 3
    assert num_workers(config, cpu) == 3
