"""Each known mistake, planted in a set's tree, is named by the report that a user sees."""

import official_trees as trees
import pytest

from mae_dfer.data.prepare.__main__ import main


def plant_label(root):
    path = root / "EmoLabel_DataSplit" / "train(single-labeled)" / "set_1.csv"
    trees.put_label_out_of_range(path, 9)


def plant_empty_folder(root):
    trees.empty_folder(root / "Clip" / "jpg_256" / "00007")


def plant_pointer(root):
    trees.put_pointer(root / "Clip" / "jpg_256" / "00007" / "00001.jpg")


def plant_truncated_frame(root):
    trees.truncate(root / "Clip" / "jpg_256" / "00007" / "00001.jpg")


def plant_copy(root):
    trees.copy_clip(root / "Clip" / "jpg_256" / "00001", root / "Clip" / "jpg_256" / "00008")


def plant_in_both_lists(root):
    lists = root / "EmoLabel_DataSplit"
    trees.put_in_both_lists(lists / "train(single-labeled)/set_1.csv", lists / "test(single-labeled)/set_1.csv")


def plant_lost_class(root):
    trees.drop_class(root / "EmoLabel_DataSplit" / "test(single-labeled)" / "set_2.csv", 3)


def plant_whole_frames(root):
    for clip in sorted((root / "Clip" / "jpg_256").iterdir())[:12]:
        trees.put_whole_frames(clip)


MISTAKES = {
    plant_label: "set_1.csv:3: label '9' is none of 1 … 7",
    plant_empty_folder: "1 of 35 clips cannot be read (folders without frames)",
    plant_pointer: "1 of 35 clips cannot be read (Git LFS pointers, which stand for files); fetch the files with git",
    plant_truncated_frame: "1 of 35 clips cannot be read (truncated)",
    plant_copy: "the same content",
    plant_in_both_lists: "same fold",
    plant_lost_class: "fold 2 test lacks neutral",
    plant_whole_frames: "the frames are not cropped to faces",
}


def prepare(root, output, *options):
    return main(["dfew", "--root", str(root), "--output", str(output), "--workers=2", *options])


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    root = trees.draw_dfew(tmp_path_factory.mktemp("sound") / "DFEW")
    return root


def shown(capsys):
    return " ".join(capsys.readouterr().out.split())


def test_a_sound_tree_has_none_of_them(sound, tmp_path, capsys):
    prepare(sound, tmp_path / "out")
    text = shown(capsys)
    assert not [words for words in MISTAKES.values() if words in text]


@pytest.mark.parametrize("plant", MISTAKES, ids=lambda plant: plant.__name__)
def test_a_planted_mistake_is_named(plant, tmp_path, capsys):
    root = trees.draw_dfew(tmp_path / "DFEW")
    plant(root)
    assert prepare(root, tmp_path / "out") == 1
    assert MISTAKES[plant] in shown(capsys)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert MISTAKES[plant].split("'")[0].split(";")[0] in page


def test_lists_of_another_machine_lead_to_the_clips_below_the_root(tmp_path):
    root = trees.draw_dfew(tmp_path / "DFEW")
    for path in (root / "EmoLabel_DataSplit").rglob("*.csv"):
        trees.write_from_another_machine(path)
    prepare(root, tmp_path / "out")
    listed = (tmp_path / "out" / "fold-1" / "test.txt").read_text().split()[::2]
    assert listed and all((root / "Clip" / "jpg_256" / name).is_dir() for name in listed)


def test_clips_of_16_frames_are_for_stride_1_and_training_says_so(tmp_path, capsys):
    root = trees.draw_dfew(tmp_path / "DFEW", form="clip_224x224_16f")
    (root / "Clip" / "clip_224x224_16f").rename(root / "Clip" / "jpg_256")  # mistaken for the others
    assert prepare(root, tmp_path / "out") == 1
    assert "have 16 frames, which are meant for stride 1 and not for 4" in shown(capsys)


def test_labels_that_start_at_0_are_refused(tmp_path, capsys):
    root = trees.draw_dfew(tmp_path / "DFEW")
    path = root / "EmoLabel_DataSplit" / "train(single-labeled)" / "set_1.csv"
    path.write_text("video_name,label\n1,0\n2,1\n")
    assert prepare(root, tmp_path / "out") == 2
    assert "labels seem to be counted from 0, and the set's start at 1" in capsys.readouterr().err


def test_a_frame_that_is_mended_in_its_folder_is_read_again(tmp_path, capsys):
    root = trees.draw_dfew(tmp_path / "DFEW")
    frame = root / "Clip" / "jpg_256" / "00007" / "00001.jpg"
    kept = frame.read_bytes()
    with frame.open("r+b") as file:
        file.truncate(len(kept) // 2)
    prepare(root, tmp_path / "out")
    assert "cannot be read (truncated)" in shown(capsys)
    with frame.open("wb") as file:
        file.write(kept)
    prepare(root, tmp_path / "out")
    assert "cannot be read" not in shown(capsys)


def test_folders_that_may_not_be_looked_into_stop_nothing(tmp_path, monkeypatch):
    root = trees.draw_dfew(tmp_path / "DFEW")
    private = root / "Clip" / "private"
    private.mkdir()
    is_file = type(root).is_file

    def deny(self):
        if private in self.parents:
            raise PermissionError(13, "Permission denied", str(self))
        return is_file(self)

    monkeypatch.setattr(type(root), "is_file", deny)
    assert prepare(root, tmp_path / "out") == 1


def test_the_downloads_name_and_the_authors_name_are_of_the_same_clips(tmp_path, capsys):
    root = trees.draw_dfew(tmp_path / "DFEW", form="clip_224x224")
    trees.draw_dfew_clip(root / "Clip", "clip_224x224_16f", 1, 1)
    assert prepare(root, tmp_path / "out", "--clips", "jpg_256") == 1
    assert "dfew, clips clip_224x224" in shown(capsys)
