"""Each official data set from its tree to lists, to two epochs of training, to a score."""

import csv
import json
from pathlib import Path

import official_trees as trees
import pytest
from test_train_refusals import SMALL

from mae_dfer.data.prepare.__main__ import main
from mae_dfer.data.prepare.layout import TEST, TRAIN
from mae_dfer.data.sets import CLASSES
from mae_dfer.train import main as train


def prepare(name, root, output, *options):
    """The exit code: 2 where nothing was prepared. A miniature is unfit for training: it lacks most clips."""
    return main([name, "--root", str(root), "--output", str(output), "--workers", "2", *options])


def train_on(prepared, run, fold=None, stage="finetune"):
    """Trains two epochs on a prepared folder, or a fold of it; returns metrics.json of the last epoch's model."""
    facts = json.loads((prepared / "dataset.json").read_text())
    options = ["--data", str(prepared), "--stage", stage, "--recipe", facts["set"], "--stride", str(facts["stride"])]
    options += [] if fold is None else ["--fold", str(fold)]
    if stage == "pretrain":  # the recipe's face box is larger than the frames
        options += ["--pretrain-face-box=4,4,24,24"]
    assert train([*options, "--output-dir", str(run), *SMALL, "--epochs=2"]) == 0
    return json.loads((run / "metrics.json").read_text())


def lines(path):
    return path.read_text(encoding="utf-8").splitlines()


def scored(run):
    with (run / "predictions.csv").open() as file:
        return [Path(row["path"]) for row in csv.DictReader(file)]


def numbered(clips, fold_of):
    """{(fold, split): lines} for clips named by numbers."""
    return {
        (fold, split): [
            f"{number:05d} {label}" for number, label in clips.items() if (fold_of(number) == fold) == (split == TEST)
        ]
        for fold in range(1, 6)
        for split in (TRAIN, TEST)
    }


def by_subject(clips, tested):
    """{(fold, split): lines}: ``clips`` are (path, label, subject), ``tested`` the subjects that each fold tests."""
    return {
        (fold, split): [
            f'"{path}" {label}' if " " in path else f"{path} {label}"
            for path, label, subject in sorted(clips)
            if (subject in subjects) == (split == TEST)
        ]
        for fold, subjects in enumerate(tested, 1)
        for split in (TRAIN, TEST)
    }


RAVDESS = [(f"Video_Speech_Actor_{n[-2:]}/Actor_{n[-2:]}/{n}.mp4", x, n[-2:]) for n, x in trees.ravdess_names()]
CREMA_D = [(f"{name}.flv", label, name[:4]) for name, label in trees.crema_d_names()]
ENTERFACE05 = [(f"{name}.avi", label, name.split("/")[0].split()[1]) for name, label in trees.enterface05_names()]
RAVDESS_TESTED = (("01", "04"), ("05",), ("09",), ("13",), ("17",), ("24",))
CREMA_D_TESTED = (("1001", "1018"), ("1019",), ("1040",), ("1060",), ("1073", "1091"))
ENTERFACE05_TESTED = (("1", "10"), ("11",), ("20",), ("29",), ("44",))


@pytest.mark.parametrize(
    ("name", "expected", "subjects", "is_cropped"),
    [
        ("dfew", numbered(trees.DFEW_CLIPS, trees.dfew_fold), {""}, True),
        ("mafw", numbered(trees.MAFW_CLIPS, trees.mafw_fold), {""}, True),
        ("ravdess", by_subject(RAVDESS, RAVDESS_TESTED), {clip[2] for clip in RAVDESS}, False),
        ("crema-d", by_subject(CREMA_D, CREMA_D_TESTED), {clip[2] for clip in CREMA_D}, False),
        ("enterface05", by_subject(ENTERFACE05, ENTERFACE05_TESTED), {clip[2] for clip in ENTERFACE05}, False),
    ],
)
def test_a_set_with_folds_is_prepared_trained_and_scored(name, expected, subjects, is_cropped, tmp_path):
    root = trees.DRAW[name](tmp_path / "a set")
    assert prepare(name, root, tmp_path / "out") < 2
    assert lines(tmp_path / "out/classes.txt") == list(CLASSES[name])
    for (fold, split), listed in expected.items():
        assert sorted(lines(tmp_path / f"out/fold-{fold}/{split}.txt")) == sorted(listed)
    facts = json.loads((tmp_path / "out/dataset.json").read_text())
    assert (facts["folds"], facts["unreadable"], facts["stride"]) == (max(expected)[0], 0, 4)
    assert facts["clips"] == {"dfew": "jpg_256", "mafw": "frames"}.get(name)
    assert facts["faces"] == ("cropped by the set" if is_cropped else "whole frames")
    with (tmp_path / "out/clips.csv").open() as file:
        assert {row["subject"] for row in csv.DictReader(file)} == subjects
    metrics = train_on(tmp_path / "out", tmp_path / "run", fold=1)
    assert metrics["clips"] == len(expected[1, TEST]) == len(scored(tmp_path / "run"))
    assert all(path.exists() for path in scored(tmp_path / "run"))


def test_ferv39k_is_prepared_trained_and_scored(tmp_path):
    root = trees.draw_ferv39k(tmp_path / "FERV39k")
    assert prepare("ferv39k", root, tmp_path / "out") < 2
    clips = {f"{path} {label}": path for path, label in trees.FERV39K_CLIPS.items()}
    tested = [line for seed, line in enumerate(clips) if line.startswith("DailyLife") and seed % 2]
    assert lines(tmp_path / "out/test.txt") == tested
    assert lines(tmp_path / "out/train.txt") == [line for line in clips if line not in tested]
    assert json.loads((tmp_path / "out/dataset.json").read_text())["stride"] == 1
    assert train_on(tmp_path / "out", tmp_path / "run")["clips"] == len(tested)


def test_voxceleb2_is_prepared_and_pre_trained_on(tmp_path):
    root = trees.draw_voxceleb2(tmp_path / "VoxCeleb2")
    assert prepare("voxceleb2", root, tmp_path / "out") < 2
    assert lines(tmp_path / "out/pretrain.txt") == sorted(trees.VOXCELEB2_CLIPS)
    assert not (tmp_path / "out/classes.txt").exists()
    with (tmp_path / "out/clips.csv").open() as file:
        assert {row["subject"] for row in csv.DictReader(file)} == {"id00012", "id00015", "id09272"}
    assert 0 < train_on(tmp_path / "out", tmp_path / "run", stage="pretrain")["pretrain_loss"] < 2
