"""How the official data sets lie on disk, in the variants that people have, and what is wrong with their lists."""

import shutil
from pathlib import Path

import official_trees as trees
import pytest
from test_prepare_sets import RAVDESS, prepare

from mae_dfer.data.prepare.layout import TEST, TRAIN
from mae_dfer.data.prepare.official import READERS
from mae_dfer.errors import UserError


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


def test_a_link_to_clips_is_no_second_form_and_broken_links_are_no_obstacle(copy):
    for folder in (copy, copy / "Clip", copy / "Clip/jpg_256"):
        (folder / "loop").symlink_to("loop")
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


@pytest.mark.parametrize("label", ["8", "-1", "neutral-ish", ""])
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
