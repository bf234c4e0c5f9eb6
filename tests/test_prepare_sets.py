"""From an official data set, as it lies on disk, to lists that train: each set, its variants, and what goes wrong."""

import csv
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import official_trees as trees
import pytest
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_train_refusals import SMALL

from mae_dfer.data import read_list
from mae_dfer.data.prepare import inspection, tables
from mae_dfer.data.prepare.__main__ import main
from mae_dfer.data.prepare.layout import TEST, TRAIN, Entry, find_folder
from mae_dfer.data.prepare.official import READERS
from mae_dfer.data.prepare.store import Store
from mae_dfer.data.sets import CLASSES
from mae_dfer.errors import UserError
from mae_dfer.train import main as train

# --- Each set, from its tree to a score -------------------------------------------------------------------------------


def prepare(name, root, output, *options):
    """The exit code: 2 where nothing was prepared. A miniature is unfit for training: it lacks most clips."""
    return main([name, "--root", str(root), "--output", str(output), "--workers", "2", *options])


def train_on(prepared, run, fold=None, stage="finetune"):
    """Trains two epochs on a prepared folder, or a fold of it; returns metrics.json of the last epoch's model."""
    facts = json.loads((prepared / "dataset.json").read_text())
    data = prepared
    if fold is not None:
        data = shutil.copytree(prepared / f"fold-{fold}", run.with_name("fold"))
        shutil.copy(prepared / "classes.txt", data)
    options = ["--data", str(data), "--data-root", facts["root"], "--stage", stage, "--stride", str(facts["stride"])]
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


# --- Variants of the layouts ------------------------------------------------------------------------------------------


def read(name, root, clips=None):
    layout = READERS[name](root, clips)
    return layout, [(entry.path, entry.label, entry.splits) for entry in layout.entries]


def texts(layout):
    return [finding.text for finding in layout.findings]


def faults(layout):
    return [finding.text for finding in layout.findings if finding.is_fault]


@pytest.fixture(scope="module")
def dfew(tmp_path_factory):
    """A DFEW tree and what is read of it. Tests change copies."""
    root = trees.draw_dfew(tmp_path_factory.mktemp("official") / "DFEW")
    return root, read("dfew", root)[1]


@pytest.fixture
def copy(dfew, tmp_path):
    return Path(shutil.copytree(dfew[0], tmp_path / "DFEW"))


def dfew_list(root, split=TRAIN, fold=1):
    return root / f"EmoLabel_DataSplit/{split}(single-labeled)/set_{fold}.csv"


@pytest.mark.parametrize(
    ("form", "path", "stride", "is_cropped", "is_published"),
    [
        ("jpg_256", "00035", 4, True, True),
        ("clip_224x224", "00035", 4, True, True),
        ("clip_224x224_16f", "00035", 1, True, False),
        ("clip_224x224_avi", "00035.avi", 4, True, False),
        ("original", "part_5/35.mp4", 4, False, False),
    ],
)
def test_the_form_of_dfew_clips_decides_stride_and_crops(form, path, stride, is_cropped, is_published, tmp_path):
    layout, entries = read("dfew", trees.draw_dfew(tmp_path, form))
    assert (layout.convention, layout.stride, layout.is_cropped) == (form, stride, is_cropped)
    assert path in [entry[0] for entry in entries]
    assert bool([text for text in texts(layout) if "the published results used" in text]) != is_published
    assert len(entries) == len(trees.DFEW_CLIPS) and not faults(layout)


def test_several_forms_are_a_question_that_names_the_published_one(copy):
    trees.draw_dfew_clip(copy / "Clip", "clip_224x224_16f", 1, 1)
    with pytest.raises(UserError, match=r"--clips: jpg_256 \(.*which the published results used\); clip_224x224_16f"):
        read("dfew", copy)
    layout, _ = read("dfew", copy, "CLIP_224x224_16F")
    assert (layout.convention, layout.stride, layout.root) == ("clip_224x224_16f", 1, copy / "Clip/clip_224x224_16f")
    with pytest.raises(UserError, match="no clips original of DFEW, only jpg_256, clip_224x224_16f"):
        read("dfew", copy, "original")


def test_a_link_to_clips_is_no_second_form(copy):
    (copy / "Clip/clip_224x224").symlink_to(copy / "Clip/jpg_256")
    assert read("dfew", copy)[0].convention == "jpg_256"


@pytest.mark.parametrize(
    "form",
    [
        {"lists": "{split}/set_{fold}.csv"},
        {"lists": "{split}(single_labeled)/set_{fold}.csv"},
        {"lists": "{split}(single-labeled)/{split}_set_{fold}.csv"},
        {"lists": "{split}(single-labeled)/{split}(single-labeled)/set_{fold}.txt"},
        {"name": "{:05d}"},
        {"name": "{}.mp4"},
        {"name": "/mnt/data1/DFEW/Clip/jpg_256/{:05d}"},
        {"name": "D:\\DFEW\\Clip\\jpg_256\\{:05d}\\"},
        {"name": '"{}"'},
    ],
)
def test_names_of_dfew_lists_and_clips_are_read_in_all_their_forms(form, dfew, tmp_path):
    layout, entries = read("dfew", trees.draw_dfew(tmp_path, **form))
    assert entries == dfew[1] and not layout.findings


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\ufeff" + text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", "  \n") + "\n\n",
        lambda text: text.split("\n", 1)[1],
        lambda text: text.replace(",", ";"),
        lambda text: text.replace(",", "\t"),
        lambda text: text.replace("\n", ",\n"),
        lambda text: text.replace(",1\n", ",1.0\n").replace(",2\n", ",Sad\n"),
    ],
)
def test_dfew_lists_are_read_as_people_save_them(change, dfew, copy):
    for path in copy.rglob("*.csv"):
        path.write_bytes(change(path.read_text()).encode())
    layout, entries = read("dfew", copy)
    assert entries == dfew[1] and not layout.findings


LOWER = ["Clip", "Clip/jpg_256", "Clip/jpg_256/00001", "EmoLabel_DataSplit"]


@pytest.mark.parametrize("root", ["..", "../..", ".", *LOWER])
def test_a_root_too_high_or_too_low_gives_the_same_lists(root, dfew, tmp_path):
    copy = Path(shutil.copytree(dfew[0], tmp_path / "data/sets/DFEW"))
    layout, entries = read("dfew", copy / root)
    assert entries == dfew[1] and layout.root == copy / "Clip/jpg_256"


def test_two_copies_below_the_root_are_both_named(copy):
    shutil.copytree(copy, copy.parent / "DFEW again")
    with pytest.raises(UserError, match=r"DFEW/EmoLabel_DataSplit and .*DFEW again/EmoLabel_DataSplit may both be"):
        read("dfew", copy.parent)


def test_clips_and_lists_of_dfew_may_be_in_different_parts(copy, dfew):
    (copy / "DFEW-part2").mkdir()
    (copy / "EmoLabel_DataSplit").rename(copy / "DFEW-part2/EmoLabel_DataSplit")
    assert read("dfew", copy)[1] == dfew[1]


def test_a_folder_in_a_folder_of_the_same_name_is_found(copy, dfew):
    (copy / "Clip/jpg_256").rename(copy / "Clip/inner")
    (copy / "Clip/jpg_256/part_1").mkdir(parents=True)
    (copy / "Clip/inner").rename(copy / "Clip/jpg_256/jpg_256")
    assert read("dfew", copy)[1] == dfew[1]


@pytest.mark.parametrize("form", ["2_ClipsforFaceCrop", "3_ClipsforScenImages", "0_7_LabelClips"])
def test_forms_of_ferv39k(form, tmp_path):
    layout, entries = read("ferv39k", trees.draw_ferv39k(tmp_path, form))
    suffix = ".mp4" if form == "0_7_LabelClips" else ""
    assert {entry[0]: entry[1] for entry in entries} == {f"{p}{suffix}": x for p, x in trees.FERV39K_CLIPS.items()}
    assert (layout.stride, layout.is_cropped) == (1, form == "2_ClipsforFaceCrop")


def test_ferv39k_names_differ_in_case_zeros_and_folders(tmp_path):
    root = trees.draw_ferv39k(tmp_path / "FERV39k")
    (root / "2_ClipsforFaceCrop").rename(root / "x")
    (root / "2_ClipsforFaceCrop-002").mkdir()
    (root / "x").rename(root / "2_ClipsforFaceCrop-002/2_ClipsforFaceCrop")
    path = root / "4_setups/All_scenes/train_All.csv"
    path.write_text(path.read_text().replace("Action/Happy/0001 Happy", "D:\\Face\\action\\HAPPY\\1.mp4 HAPPY"))
    layout, entries = read("ferv39k", root)
    assert {entry[0]: entry[1] for entry in entries} == trees.FERV39K_CLIPS and not layout.findings


@pytest.mark.parametrize("lists", ["split", "Train_Test_Set", "anno", "Labels of mine"])
@pytest.mark.parametrize("form", ["frames", "clips", "frames_crop_align_224"])
def test_forms_of_mafw(form, lists, tmp_path):
    layout, entries = read("mafw", trees.draw_mafw(tmp_path, form, lists))
    assert {entry[0]: entry[1] for entry in entries} == {
        f"{number:05d}{'.mp4' if form == 'clips' else ''}": label for number, label in trees.MAFW_CLIPS.items()
    }
    assert layout.is_cropped == (form != "clips") and layout.convention == form


@pytest.mark.parametrize(("name", "root"), [
    ("mafw", "Train & Test Set/single/no_caption/set_1"), ("mafw", "data"), ("mafw", ".."), ("ferv39k", "../.."),
    ("ferv39k", "4_setups/All_scenes"), ("ferv39k", "2_ClipsforFaceCrop/Action"),
])  # fmt: skip
def test_a_root_too_high_or_too_low_is_found_for_other_sets_with_lists(name, root, tmp_path):
    tree = trees.DRAW[name](tmp_path / "sets/a/b")
    layout, entries = read(name, tree / root)
    assert entries == read(name, tree)[1] and layout.root.is_relative_to(tree) and not layout.findings


def test_mafw_crops_inside_the_frames_are_a_form_of_their_own(tmp_path):
    root = trees.draw_mafw(tmp_path)
    shutil.copytree(root / "data/frames", root / "data/frames/frames_crop_align_224")
    with pytest.raises(UserError, match="choose one with --clips: frames .*; frames_crop_align_224"):
        read("mafw", root)
    assert {len(read("mafw", root, form)[1]) for form in ("frames", "frames_crop_align_224")} == {55}


# --- Sets without lists -----------------------------------------------------------------------------------------------


def test_ravdess_takes_each_utterance_once_and_speech_alone(tmp_path):
    root = trees.draw_ravdess(tmp_path, ("01", "02"))
    folder = root / "Video_Speech_Actor_01/Actor_01"
    (folder / "02-01-01-01-01-01-01.mp4").unlink()
    for name in ("02-02-01-01-01-01-01", "03-01-01-01-01-01-01", "02-01-09-01-01-01-01"):
        (root / f"Video_Song_Actor_01/Actor_01/{name}.mp4").parent.mkdir(parents=True, exist_ok=True)
        (root / f"Video_Song_Actor_01/Actor_01/{name}.mp4").touch()
    layout, entries = read("ravdess", root)
    assert [entry[0].split("/")[-1][:2] for entry in entries].count("01") == 1 and len(entries) == len(RAVDESS)
    assert not faults(layout)
    for text in ("are songs: 1", "sound alone: 1", "not there without (02-…): 1", "there without (02-…): 55",
                 "no emotion or actor of the set: 1"):  # fmt: skip
        assert any(found.endswith(text) for found in texts(layout)), text


@pytest.mark.parametrize(
    ("name", "draw", "asked", "count"),
    [
        ("ravdess", lambda root: trees.draw_ravdess(root, parent="crops/Actor_{0}", frames=True), "crops", 56),
        ("crema-d", lambda root: trees.draw_crema_d(root, "faces/aligned", ""), "faces/aligned", 42),
        ("enterface05", lambda root: trees.draw_enterface05(root, "face_aligned", frames=True), "face_aligned", 72),
    ],
)
def test_a_copy_with_cropped_faces_is_another_form(name, draw, asked, count, tmp_path):
    root = draw(tmp_path / "set")
    layout, alone = read(name, root)
    assert layout.is_cropped and layout.convention == "" and len(alone) == count
    trees.DRAW[name](root)
    with pytest.raises(UserError, match="--clips.*whole frames.*used face crops"):
        read(name, root)
    layout, entries = read(name, root, asked)
    assert entries == alone and layout.root == root / asked and layout.convention == asked


@pytest.mark.parametrize("inside", ["", "Actor_01", "Actor_01/02-01-01-01-01-01-01"])
def test_a_root_inside_ravdess_is_the_set(inside, tmp_path):
    trees.draw_ravdess(tmp_path / "set", parent="Actor_{0}", frames=True)
    layout, entries = read("ravdess", tmp_path / "set" / inside)
    assert layout.root == tmp_path / "set" and len(entries) == 56


def test_crema_d_as_other_videos_and_the_same_clip_with_two_suffixes(tmp_path):
    root = trees.draw_crema_d(tmp_path, "VideoMP4", ".mp4")
    (root / "VideoMP4/1001_IEO_ANG_HI.flv").touch()
    layout, entries = read("crema-d", root)
    assert entries[0][0] == "1001_IEO_ANG_HI.flv", "as it is handed out"
    assert len(entries) == 42 and texts(layout) == ["clips left out because they are there twice: 1"]


def test_folders_decide_in_enterface05_and_subject_6_is_left_out(tmp_path):
    layout, entries = read("enterface05", trees.draw_enterface05(tmp_path))
    assert dict(entry[:2] for entry in entries)["subject 1/anger/sentence 1/s1_an_2.avi"] == 0
    assert not any("subject 6" in entry[0] for entry in entries)
    assert texts(layout) == ["clips of subject 6 left out, as in the published lists: 1"]


@pytest.mark.parametrize("folder", ["dev/mp4", "file~/dev/mp4", "vox2_dev_mp4/dev/mp4", "mp4"])
@pytest.mark.parametrize("root", ["", "+", "+/id00012", "+/id00012/21Uxsk56VDQ"])
def test_layouts_of_voxceleb2(folder, root, tmp_path):
    trees.draw_voxceleb2(tmp_path, folder)
    layout, entries = read("voxceleb2", tmp_path / root.replace("+", folder))
    assert layout.root == tmp_path / folder and [entry[0] for entry in entries] == sorted(trees.VOXCELEB2_CLIPS)


def test_parts_of_voxceleb2_are_joined_and_its_test_part_is_left_out(tmp_path):
    for part, person in (("partaa/dev", 1), ("partab/dev", 2), ("test", 3)):
        trees.write_clip(tmp_path / part / f"mp4/id{person:05d}/film/00001.mp4", 0, person)
    layout, entries = read("voxceleb2", tmp_path)
    assert [entry[0] for entry in entries] == [
        "partaa/dev/mp4/id00001/film/00001.mp4",
        "partab/dev/mp4/id00002/film/00001.mp4",
    ]
    assert "is the test part" in texts(layout)[0] and not faults(layout)
    with pytest.raises(UserError, match="holds only the test part"):
        read("voxceleb2", tmp_path / "test/mp4")


def test_what_is_no_clip_of_voxceleb2_is_noted(tmp_path):
    root = trees.draw_voxceleb2(tmp_path)
    (root / "dev/mp4/id00012/empty").mkdir()
    (root / "dev/mp4/id00012/21Uxsk56VDQ/00001.txt").touch()
    (root / "dev/mp4/notes").mkdir()
    layout, entries = read("voxceleb2", root)
    assert len(entries) == len(trees.VOXCELEB2_CLIPS) and faults(layout) == [
        f"{root}/dev/mp4/notes: the folder is not named like a person of the set, and is left out"
    ]
    assert any("21Uxsk56VDQ: it holds more than mp4 files" in text for text in texts(layout))
    assert any("empty: the folder holds no clips" in text for text in texts(layout))


# --- Faults of lists --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["0", "8", "-1", "neutral-ish", ""])
def test_a_label_out_of_range_is_named_with_its_line_and_left_out(label, copy, dfew):
    name = trees.put_label_out_of_range(dfew_list(copy), label)
    layout, entries = read("dfew", copy)
    expected = f"train(single-labeled)/set_1.csv:3: label {label!r} is none of 1 … 7; the line is left out"
    assert expected in faults(layout)
    (clip,) = [entry for entry in entries if entry[0] == f"{int(name):05d}"]
    assert clip[2][0] == "" and TEST in clip[2]


def test_a_missing_list_is_named_and_a_spreadsheet_is_refused(copy):
    path = dfew_list(copy, TEST, 3)
    path.unlink()
    layout, entries = read("dfew", copy)
    assert faults(layout) == ["test(single-labeled)/set_3.csv: the test list of fold 3 is missing; download it again"]
    assert {entry[2][2] for entry in entries} == {"", TRAIN}
    path.with_suffix(".xlsx").write_bytes(b"PK\3\4")
    with pytest.raises(UserError, match=r"set_3\.xlsx is a spreadsheet; save it as CSV"):
        read("dfew", copy)


def test_contradicting_and_repeated_lines_are_found(copy):
    listed = dfew_list(copy).read_text().splitlines()[1]
    with dfew_list(copy).open("a") as file:
        file.write(f"{listed}\n{listed}\n")
    other = dfew_list(copy, TRAIN, 2)
    changed = next(line for line in other.read_text().splitlines()[1:] if line.endswith(",3"))
    other.write_text(other.read_text().replace(changed, changed[:-1] + "4"))
    both = trees.put_in_both_lists(dfew_list(copy, TRAIN, 4), dfew_list(copy, TEST, 4))
    layout, entries = read("dfew", copy)
    found = " ".join(texts(layout))
    assert "and 1 more: the clip is in this list twice, and is taken once" in found
    assert "set_2.csv:" in found and "has another label in an earlier line" in found
    assert "the clip is in the train list of the same fold" in found and len(faults(layout)) == 2
    (clip,) = [entry for entry in entries if entry[0] == f"{int(both.split(',')[0]):05d}"]
    assert clip[2][3] == TRAIN


def test_two_lists_for_one_fold_are_refused_unless_they_are_the_same(copy):
    path = dfew_list(copy)
    double = path.parent / "inner" / path.name
    double.parent.mkdir()
    shutil.copy(path, double)
    read("dfew", copy)
    double.write_text("video_name,label\n1,1\n")
    with pytest.raises(UserError, match=r"set_1\.csv and .*set_1\.csv may both be the train list of fold 1"):
        read("dfew", copy)


def test_missing_clips_keep_their_place_and_others_are_counted(copy):
    shutil.rmtree(copy / "Clip/jpg_256/00003")
    trees.write_frames(copy / "Clip/jpg_256/00099", 0, 99)
    layout, entries = read("dfew", copy)
    assert "00003" in [entry[0] for entry in entries]
    assert texts(layout) == ["clips left out because no list names them: 1"]
    assert layout.findings[0].examples == ("00099",) and not layout.findings[0].is_fault


@pytest.mark.parametrize("name", sorted(READERS))
def test_a_folder_of_another_kind_is_refused_in_one_line(name, tmp_path, capsys):
    (tmp_path / "set").mkdir()
    (tmp_path / "set/notes.txt").touch()
    assert prepare(name, tmp_path / "set", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and str(tmp_path / "set") in error
    assert not (tmp_path / "out").exists()


# --- What the folder promises -----------------------------------------------------------------------------------------


def outputs(folder):
    """The bytes of the files that training takes."""
    kept = {"inspection.sqlite3", ".lock", "report.html"}
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
            and path.name not in kept}  # fmt: skip


def test_unreadable_clips_are_in_the_table_alone(tmp_path):
    root = trees.draw_crema_d(tmp_path / "set")
    videos = sorted((root / "VideoFlash").iterdir())
    trees.put_pointer(videos[0])
    videos[1].write_bytes(b"")
    trees.truncate(videos[2], 0.3)
    prepare("crema-d", root, tmp_path / "out")
    with (tmp_path / "out/clips.csv").open() as file:
        rows = {row["path"]: row["fault"] for row in csv.DictReader(file)}
    assert "Git LFS pointer" in rows[videos[0].name] and "empty" in rows[videos[1].name] and rows[videos[2].name]
    assert json.loads((tmp_path / "out/dataset.json").read_text())["unreadable"] == 3
    listed = "".join(lines(tmp_path / "out/fold-1/test.txt") + lines(tmp_path / "out/fold-1/train.txt"))
    assert not any(video.name in listed for video in videos[:3]) and videos[3].name in listed
    shutil.copy(videos[3], videos[0])
    prepare("crema-d", root, tmp_path / "out")
    assert videos[0].name in (tmp_path / "out/fold-1/test.txt").read_text(), "it was mended meanwhile"


def test_a_second_run_reads_and_writes_nothing(tmp_path, monkeypatch):
    root = trees.draw_crema_d(tmp_path / "set")
    (root / "VideoFlash/1001_IEO_ANG_HI.flv").write_bytes(b"")
    trees.copy_clip(root / "VideoFlash/1018_IEO_ANG_HI.flv", root / "VideoFlash/1018_IEO_DIS_HI.flv")
    prepare("crema-d", root, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in map((tmp_path / "out").joinpath, outputs(tmp_path / "out"))}

    def none_left(work, items, *rest, **options):
        assert list(items) == []
        return iter(())

    monkeypatch.setattr(inspection, "in_processes", none_left)
    prepare("crema-d", root, tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_clips_of_another_form_are_read_again(copy, tmp_path):
    for number, label in trees.DFEW_CLIPS.items():
        trees.draw_dfew_clip(copy / "Clip", "clip_224x224_16f", number, label)
    for form in ("jpg_256", "clip_224x224_16f"):
        for folder in (copy / "Clip" / form).iterdir():
            os.utime(folder, (10**9, 10**9))  # as archives set them
        prepare("dfew", copy, tmp_path / "out", "--clips", form)
    with (tmp_path / "out/clips.csv").open() as file:
        assert {row["frames"] for row in csv.DictReader(file)} == {"16"}


def test_lists_never_lie_beside_facts_of_others(copy, tmp_path, monkeypatch):
    prepare("dfew", copy, tmp_path / "out")
    dfew_list(copy).write_text("\n".join(lines(dfew_list(copy))[:-2]) + "\n")
    (tmp_path / "out/fold-2/test.txt").unlink()
    monkeypatch.setattr(tables, "_write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left", "out")))
    assert prepare("dfew", copy, tmp_path / "out") == 2
    assert not (tmp_path / "out/dataset.json").exists()
    monkeypatch.undo()
    prepare("dfew", copy, tmp_path / "out")
    prepare("dfew", copy, tmp_path / "other")
    assert outputs(tmp_path / "out") == outputs(tmp_path / "other")


def test_a_list_that_became_empty_goes(copy, tmp_path):
    prepare("dfew", copy, tmp_path / "out")
    dfew_list(copy, TEST, 3).unlink()
    assert prepare("dfew", copy, tmp_path / "out") == 1, "the missing list is a fault"
    assert not (tmp_path / "out/fold-3/test.txt").exists() and (tmp_path / "out/fold-3/train.txt").exists()


def test_two_at_once_and_the_folder_of_another_set_are_refused(copy, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out/.lock"):
        assert prepare("dfew", copy, tmp_path / "out") == 2
    assert "is being written by another process" in capsys.readouterr().err
    prepare("dfew", copy, tmp_path / "out")
    root = trees.draw_mafw(tmp_path / "MAFW")
    assert prepare("mafw", root, tmp_path / "out") == 2
    assert "holds the lists of dfew; give another folder as --output for mafw" in capsys.readouterr().err
    assert prepare("mafw", root, root / "data/frames") == 2
    assert "is the folder of the clips" in capsys.readouterr().err


def test_a_prepared_folder_inside_the_set_is_no_part_of_it(tmp_path):
    root = trees.draw_ravdess(tmp_path, parent="Actor_{0}")
    prepare("ravdess", root, root / "prepared")
    trees.draw_ravdess(root / "prepared", parent="faces/Actor_{0}")
    before = outputs(root / "prepared")
    assert prepare("ravdess", root, root / "prepared") < 2
    assert {path: before[path] for path in outputs(root / "prepared")} == before
    assert find_folder(root, "faces") is None


NAMES = [
    "a b", "a\tb", " a", "a ", "#a", 'a "b" c', '"a"', "a,b", "a;b", "~", "~root", "\u3000a\xa0", "a\x85b", "'a b'",
    "a\\b", "C:\\a", "path", "-1", "3", "a 3", "\ufeffa", "表情 1", "a\x1cb", "a\x0bb", "path label", "e\u0301",
]  # fmt: skip
CHARACTERS = st.characters(exclude_characters="/\0\n\r", exclude_categories=["Cs"])


def check_names(names, folder):
    """Lists of clips with these names lead to the clips, with and without labels."""
    entries = []
    for name in names:
        (folder / f"{name}.mp4").touch()
        entries.append(Entry(f"{name}.mp4", 1))
    for labelled in (True, False):
        text = "".join(f"{tables._quoted(entry.path)}{' 1' if labelled else ''}\n" for entry in entries)
        (folder / "list.txt").write_text(text, encoding="utf-8")
        samples = read_list(folder / "list.txt", num_classes=2 if labelled else None, labelled=labelled)
        assert [sample.path for sample in samples] == [str(folder / entry.path) for entry in entries]


def test_names_of_clips_survive_the_lists(tmp_path):
    check_names(NAMES, tmp_path)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(CHARACTERS, min_size=1, max_size=12), min_size=1, max_size=3, unique=True))
def test_any_name_survives_the_lists(tmp_path, names):
    check_names(names, tmp_path)


def test_names_that_no_list_can_hold_are_faults(tmp_path):
    root = trees.draw_voxceleb2(tmp_path / "set")
    folder = root / "dev/mp4/id00012/21Uxsk56VDQ"
    for name in (b"/br\neak.mp4", b"/\xe9t\xe9.mp4"):
        shutil.copy(folder / "00001.mp4", os.fsencode(folder) + name)
    for _ in range(2):
        prepare("voxceleb2", root, tmp_path / "out")
        with (tmp_path / "out/clips.csv").open() as file:
            odd = {row["path"].split("/")[-1]: row["fault"] for row in csv.DictReader(file) if row["fault"]}
        assert odd == {
            "br\\neak.mp4": "its name has a line break; rename it",
            "\\udce9t\\udce9.mp4": "its name is not valid UTF-8; rename it",
        }
    assert lines(tmp_path / "out/pretrain.txt") == sorted(trees.VOXCELEB2_CLIPS)


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"no database" * 999), trees.truncate])
def test_a_damaged_store_is_named_in_one_line(damage, copy, tmp_path, capsys):
    prepare("dfew", copy, tmp_path / "out")
    damage(tmp_path / "out/inspection.sqlite3")
    capsys.readouterr()
    assert prepare("dfew", copy, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "inspection.sqlite3 is damaged" in error and "remove it" in error and error.count("\n") == 1


def test_a_store_of_another_version_or_on_a_full_disk_is_named(tmp_path):
    with sqlite3.connect(tmp_path / "other") as connection:
        connection.execute("PRAGMA user_version = 9")
    connection.close()
    with pytest.raises(UserError, match="of another version"):
        Store(tmp_path / "other")
    with Store(tmp_path / "store") as store:
        store._connection.execute("PRAGMA max_page_count = 8")
        with pytest.raises(OSError, match=r"no space left on the disk.*store"):
            store.list_clips(Entry(f"{number:09d}.mp4") for number in range(5000))
        assert store.list_clips([]) == 0


def test_a_process_that_is_ended_or_a_clip_that_is_lost_is_the_fault_of_that_clip(tmp_path):
    clip = trees.write_clip(tmp_path / "a.mp4", 1, 1)
    with Store(tmp_path / "store") as store:
        items = [(str(clip), "a.mp4", "1"), (str(clip), "die", "1"), (str(clip), "b.mp4", "1")]
        done = [x for some in inspection.in_processes(die_of_one, items, 2, inspection._lost) for x in some]
        assert [bool(found.fault) for found in done] == [False, True, False]
        store.list_clips([Entry("a.mp4"), Entry("gone.mp4"), Entry("gone")])
        inspection.inspect_clips(tmp_path, store, 1, lambda some: None)
        found = dict(store.ask("SELECT path, fault FROM inspections"))
    assert found["a.mp4"] == "" and "no such file or folder" in found["gone.mp4"] and found["gone"]


def die_of_one(item):
    if item[1] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return inspection._inspect(item)


# --- In processes of their own ----------------------------------------------------------------------------------------


def group_is_empty(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.skipif(sys.platform == "win32", reason="kills groups of processes")
def test_killed_at_any_moment_it_goes_on_to_the_same_files(tmp_path):
    clip = trees.write_clip(tmp_path / "clip.flv", 1, 1)
    (tmp_path / "set").mkdir()
    for actor in trees.CREMA_D_ACTORS:
        for sentence in ("DFA", "IEO", "IOM", "ITH", "ITS", "IWL", "IWW", "MTI", "TAI", "TIE"):
            for code in trees.CODES:
                os.link(clip, tmp_path / f"set/{actor}_{sentence}_{code}_XX.flv")
    store = tmp_path / "out/inspection.sqlite3"
    options = ["crema-d", "--root", str(tmp_path / "set"), "--workers", "2", "--output"]
    rng = random.Random()
    for _ in range(2):
        before = store.stat().st_mtime_ns if store.exists() else 0
        command = [sys.executable, "-m", "mae_dfer.data.prepare", *options, str(tmp_path / "out")]
        child = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 60
        while child.poll() is None and (not store.exists() or store.stat().st_mtime_ns == before):
            time.sleep(0.01)
        time.sleep(delay := rng.uniform(0, 4))
        child.kill()
        child.wait()
        while not group_is_empty(child.pid):
            assert time.monotonic() < end, "its processes outlive it"
            time.sleep(0.02)
    assert main([*options, str(tmp_path / "out")]) == main([*options, str(tmp_path / "whole")])
    assert outputs(tmp_path / "out") == outputs(tmp_path / "whole"), f"last killed after {delay:.3f} s"


MEASURE = """
import re, sys
from pathlib import Path
from mae_dfer.data.prepare import __main__ as prepare, inspection
from mae_dfer.data.prepare.store import Inspection

def probe(work, items, workers, lost):
    for batch in inspection._batched(items, 1000):
        if work is inspection._inspect:
            yield [Inspection(path, stamp, 75, 224, 224, 25.0, 10**5, path) for _, path, stamp in batch]

inspection.in_processes = probe
for folder in sys.argv[1:]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak is measured from here on
    prepare.main(["voxceleb2", "--root", folder, "--output", folder + "/out"])
    print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of memory as Linux gives it")
def test_twenty_thousand_clips_take_no_more_memory_than_two_thousand(tmp_path):
    clip = trees.write_clip(tmp_path / "clip.mp4", 1, 1)
    for folder, persons in (("few", 10), ("many", 100)):
        for person in range(persons):
            for film in range(10):
                place = tmp_path / folder / f"dev/mp4/id{person:05d}/film{film:07d}"
                place.mkdir(parents=True)
                for number in range(20):
                    os.link(clip, place / f"{number:05d}.mp4")
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "few"), str(tmp_path / "many")]
    few, many = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-2:])
    assert len(lines(tmp_path / "many/out/pretrain.txt")) == 20_000
    assert many - few < 6_000, "KiB; the clips alone would take more"
