"""Each mistake in a data set is found, with what to do; a sound set has no findings."""

import re
from pathlib import Path

import numpy as np
import pytest
from made_sets import TOTAL, Made, stay_in_one_process, write_frames
from videos import write_moving

from mae_dfer.data.prepare import face_shares, findings, inspection, report
from mae_dfer.data.prepare.counts import ALL, count_clips
from mae_dfer.data.prepare.layout import Entry, Finding, Layout
from mae_dfer.data.prepare.published import PUBLISHED, compare
from mae_dfer.data.prepare.store import Inspection, Store
from mae_dfer.data.sets import CLASSES


def test_a_sound_set_has_no_findings_and_is_fit(tmp_path):
    assert Made().find(tmp_path) == []
    assert report.verdict([]) == "fit for training"
    assert report.verdict([Finding("small", is_fault=False)]) == "fit for training"


def lose(made):
    made.inspect(1, fault="no such file or folder (check the path, or the root of the list)")


def cut_short(made):
    made.inspect(2, fault="the file is truncated: it holds 1 of 2 bytes")


def lose_a_class(made):
    for path in (path for path in made.paths if re.match(r"Actor_0[1-4]/3-", path)):
        made.inspections[path] = Inspection(path, "1 1", fault="it is a Git LFS pointer")


def delist(made):
    del made.entries[made.paths[7]]


def add(made):
    made.entries["more.mp4"] = Entry("more.mp4", 1, made.entries[made.paths[0]].splits)
    made.inspections["more.mp4"] = Inspection("more.mp4", "1 1", 100, 224, 224)


def exchange_takes(made):
    one, other = "Actor_01/5-0.mp4", "Actor_09/5-0.mp4"
    splits = made.entries[one].splits, made.entries[other].splits
    made.relist(one, splits=splits[1])
    made.relist(other, splits=splits[0])


def test_twice(made):
    made.relist(made.paths[0], splits=("test", "test", "train", "train", "train", "train"))


def test_never(made):
    made.relist(made.paths[0], splits=("train",) * 6)


def forget(made):
    made.relist(made.paths[0], splits=("test", "", "train", "train", "train", "train"))


test_twice.__test__ = test_never.__test__ = False


def copy(one, other):
    def plant(made):
        made.contents = {one: "aa", other: "aa", "Actor_20/1-1.mp4": "bb", "Actor_20/1-2.mp4": ""}

    return plant


SHARED = ["subjects are both in a training list and in the test list", "counts of clips differ"]  # of the moved clip

FAULTS = {
    "missing": (lose, ["1 of 1,440 clips cannot be read (missing); copy"]),
    "truncated": (cut_short, ["2 of 1,440 clips cannot be read (truncated); copy"]),
    "no class": (lose_a_class, ["a class has no clips in some list", "32 of 1,440 clips cannot be read (Git LFS"]),
    "fewer clips": (delist, ["counts of clips differ from the published; complete"]),
    "more clips": (add, ["counts of clips differ from the published; complete"]),
    "shared subjects": (exchange_takes, ["subjects are both in a training list and in the test list"]),
    "tested twice": (test_twice, ["1 clip is in the test lists of several folds", *SHARED]),
    "tested never": (test_never, ["1 clip is in no fold's test list", *SHARED]),
    "forgotten": (forget, ["1 clip is in neither list of some fold", "counts of clips differ"]),
    "labels differ": (
        copy("Actor_01/1-0.mp4", "Actor_02/2-0.mp4"),
        ["1 group of clips has the same content and different labels"],
    ),
    "splits differ": (
        copy("Actor_01/1-0.mp4", "Actor_07/1-3.mp4"),
        ["1 group of clips has the same content in the training and the test list"],
    ),
    "16 frames": (
        lambda made: made.inspect(1400, frames=16),
        ["1,400 of 1,440 clips have 16 frames, which are meant for stride 1 and not for 4"],
    ),
    "wide": (
        lambda made: made.inspect(TOTAL, width=1280, height=720),
        ["1,440 of 1,440 clips have frames that are not square, as crops of faces are; take the crops"],
    ),
    "whole frames": (
        lambda made: made.share(TOTAL, 0.2),
        ["the frames are not cropped to faces; the largest face fills less than 25% of the frame in 1,440 of 1,440"],
    ),
    "no faces": (lambda made: made.share(800, 0.0), ["no face was found in 800 of 1,440 clips"]),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_mistake_is_a_fault_and_alone(tmp_path, name):
    plant, texts = FAULTS[name]
    made = Made()
    plant(made)
    found = made.find(tmp_path)
    assert all(text in finding.text for text, finding in zip(texts, found, strict=True)), found
    assert found[0].is_fault
    assert report.verdict(found).startswith("not fit for training: ")


NOTES = {
    "short": (lambda made: made.inspect(1, frames=63), "1 of 1,440 clips has fewer than 64 frames"),
    "small": (lambda made: made.inspect(1, width=79, height=79), "1 of 1,440 clips has frames with a side below 80"),
    "oblong": (lambda made: made.inspect(2, width=200), "2 of 1,440 clips have frames that are not square"),
    "copies": (copy("Actor_01/1-0.mp4", "Actor_01/1-1.mp4"), "1 group of clips has the same content; each"),
    "small faces": (
        lambda made: made.share(3, 0.24),
        "less than 25% of the frame in 3 of 1,440 clips looked at; look at them",
    ),
    "faces not found": (lambda made: made.share(200, 0.0), "no face was found in 200 of 1,440 clips"),
}


@pytest.mark.parametrize("name", NOTES)
def test_what_leaves_a_run_right_is_a_note_and_alone(tmp_path, name):
    plant, text = NOTES[name]
    made = Made()
    plant(made)
    (found,) = made.find(tmp_path)
    assert text in found.text
    assert not found.is_fault
    assert found.examples


def test_clips_of_16_frames_are_right_at_stride_1(tmp_path):
    made = Made()
    made.inspect(TOTAL, frames=16)
    made.layout.stride = 1
    assert made.find(tmp_path) == []


def test_whole_frames_of_a_set_without_crops_call_for_crops(tmp_path):
    made = Made()
    made.inspect(TOTAL, width=1280, height=720)
    made.share(TOTAL, 0.1)
    made.layout.is_cropped = False
    (found,) = made.find(tmp_path)
    assert "run this again with --crop-faces" in found.text


def test_faces_of_voxceleb2_are_measured_in_the_part_that_is_trained_on():
    assert face_shares.least_share(Layout("voxceleb2", Path(), ())) == pytest.approx(0.25 * 160**2 / 224**2)


def test_one_clip_in_a_thousand_may_be_damaged_or_in_excess(tmp_path):
    """As in CREMA-D and VoxCeleb2, as they are handed out."""
    layout = Layout("ferv39k", Path("/ferv"), (), stride=1)
    parts = PUBLISHED["ferv39k"].parts
    tests = [(label, "test") for label, number in enumerate(parts[1, "test"].per_class) for _ in range(number)]
    trains = [(index % 7, "train") for index in range(parts[1, "train"].clips + 1)]
    entries = [Entry(f"{i}.mp4", label, (split,)) for i, (label, split) in enumerate(tests + trains)]
    with Store(tmp_path / "s") as store:
        store.list_clips(entries)
        store.save(
            Inspection(entry.path, "1", 20, 224, 224, fault="no video stream" if index < 38 else "")
            for index, entry in enumerate(entries)
        )
        store.set("face_share", ((0.5, entry.path) for entry in entries))
        found = findings.find_faults(layout, store)
    assert [finding.is_fault for finding in found] == [False, False]
    assert found[0].examples[0] == "all: 38,936 clips, published 38,935"
    assert "38 of 38,936 clips cannot be read (damaged" in found[1].text


def test_the_reason_of_each_unreadable_file_is_named_with_what_to_do(tmp_path):
    root = tmp_path / "empty truncated text file"  # a path is no reason
    root.mkdir()
    good = write_moving(root / "good.mp4", frames=5).read_bytes()
    (root / "truncated.mp4").write_bytes(good[: len(good) // 2])
    (root / "blank.mp4").write_bytes(b"")
    (root / "folder").mkdir()
    (root / "pointer").mkdir()
    (root / "pointer/1.jpg").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:a\nsize 5\n")
    (root / "page.mp4").write_text("<!DOCTYPE html><html><body>Sign in</body></html>")
    (root / "zeros.mp4").write_bytes(bytes(5000))
    (root / "link.mp4").symlink_to(root / "nothing.mp4")
    (root / "broken").mkdir()
    (root / "broken/1.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(range(256)))
    expected = {
        "absent.mp4": "missing", "truncated.mp4": "truncated", "blank.mp4": "empty", "folder": "folders without frames",
        "pointer": "Git LFS pointers", "page.mp4": "HTML pages", "zeros.mp4": "zeros", "link.mp4": "links to files",
        "broken": "damaged",
    }  # fmt: skip
    layout = Layout("nameless", root, ())
    with Store(tmp_path / "s") as store:
        store.list_clips(Entry(path) for path in expected)
        store.save(inspection._inspect((str(root / path), path, "1")) for path in expected)
        found = findings.find_faults(layout, store)
    named = {
        example.partition(":")[0]: finding.text
        for finding in found if "cannot be read" in finding.text for example in finding.examples
    }  # fmt: skip
    assert {path: f"({what}" in named[path] for path, what in expected.items()} == dict.fromkeys(expected, True)
    assert "git lfs pull" in named["pointer"]


@pytest.fixture
def one_process(monkeypatch):
    stay_in_one_process(monkeypatch)


def test_faces_are_looked_for_in_a_sample_once(tmp_path, one_process, monkeypatch):
    write_frames(tmp_path / "clip")
    layout = Layout("nameless", tmp_path, ())
    looked = []
    monkeypatch.setattr(face_shares, "_look", lambda item: looked.append(item[1]) or (0.5, item[1]))
    with Store(tmp_path / "s") as store:
        store.list_clips(Entry(f"{index}") for index in range(1001))
        store.save(Inspection(f"{index}", "1", 100, 224, 224) for index in range(1001))
        store.save([Inspection("1000", "1", fault="the file is empty")])  # the 1001st of them
        told = []
        face_shares.look_for_faces(layout, store, 1, told.append)
        assert 150 < len(looked) <= face_shares.SAMPLE
        assert np.diff([int(path) for path in looked]).tolist() == [6] * (len(looked) - 1)
        assert int(looked[-1]) > 990
        assert "1000" not in looked
        assert sum(told) == face_shares.sample_size(store) == len(looked)
        face_shares.look_for_faces(layout, store, 1, told.append)
        assert len(looked) == len(set(looked))


def test_a_clip_without_face_has_a_share_of_0_and_a_lost_one_none(tmp_path, one_process):
    write_frames(tmp_path / "face", brightness=102)
    write_frames(tmp_path / "wall", brightness=0)
    shares = [face_shares._look((str(tmp_path / name), name, "")) for name in ("face", "wall", "gone")]
    assert shares == [(pytest.approx(0.2), "face"), (0.0, "wall"), (None, "gone")]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts_add_up(name):
    parts = PUBLISHED[name].parts
    whole = parts[0, "all"]
    assert PUBLISHED[name].source
    for part in parts.values():
        assert len(part.per_class) in (0, len(CLASSES.get(name, ())))
        known = [number for number in part.per_class if number is not None]
        assert sum(known) == part.clips if len(known) == len(part.per_class) > 0 else sum(known) < part.clips
    folds = {fold for fold, _ in parts} - {0}
    for fold in folds:
        assert parts[fold, "train"].clips + parts[fold, "test"].clips == whole.clips
        assert parts[fold, "test"].clips < parts[fold, "train"].clips
    if len(folds) > 1:
        assert sum(parts[fold, "test"].clips for fold in folds) == whole.clips
        for label, number in enumerate(whole.per_class):
            tests = [parts[fold, "test"].per_class[label] for fold in folds if parts[fold, "test"].per_class]
            if number is not None and len(tests) == len(folds) and None not in tests:
                assert sum(tests) == number


def test_only_known_counts_are_compared(tmp_path):
    with Made().open(tmp_path) as store:
        counts = count_clips(Made().layout, store)
    assert counts[ALL].total() == TOTAL
    assert list(compare("ravdess", counts)) == []
    assert list(compare("nameless", counts)) == []
    counts[0, "test"][3] += 2
    assert [(one.fold, one.split, one.name, one.found, one.published) for one in compare("ravdess", counts)] == [
        (1, "test", "", 242, 240), (1, "test", "sad", 34, 32)
    ]  # fmt: skip
