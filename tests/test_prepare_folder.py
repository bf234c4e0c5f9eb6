"""What a prepared folder promises: whatever names, damage, kills and repetitions there are, its lists are right."""

import csv
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time

import official_trees as trees
import pytest
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_prepare_sets import lines, prepare

from mae_dfer.data import read_list
from mae_dfer.data.prepare import inspection, tables
from mae_dfer.data.prepare.__main__ import main
from mae_dfer.data.prepare.layout import TEST, TRAIN, Entry, find_folder
from mae_dfer.data.prepare.store import Store
from mae_dfer.errors import UserError


@pytest.fixture
def dfew(tmp_path):
    return trees.draw_dfew(tmp_path / "DFEW")


def dfew_list(root, split=TRAIN, fold=1):
    return root / f"EmoLabel_DataSplit/{split}(single-labeled)/set_{fold}.csv"


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
        # What could not be read is tried again: in a folder of frames, nothing may tell that it was mended.
        assert [path for _, path, _ in items] in ([], ["1001_IEO_ANG_HI.flv"])
        return iter(())

    monkeypatch.setattr(inspection, "in_processes", none_left)
    prepare("crema-d", root, tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_clips_of_another_form_are_read_again(dfew, tmp_path):
    for number, label in trees.DFEW_CLIPS.items():
        trees.draw_dfew_clip(dfew / "Clip", "clip_224x224_16f", number, label)
    for form in ("jpg_256", "clip_224x224_16f"):
        for folder in (dfew / "Clip" / form).iterdir():
            os.utime(folder, (10**9, 10**9))  # as archives set them
        prepare("dfew", dfew, tmp_path / "out", "--clips", form)
    with (tmp_path / "out/clips.csv").open() as file:
        assert {row["frames"] for row in csv.DictReader(file)} == {"16"}


def test_lists_never_lie_beside_facts_of_others(dfew, tmp_path, monkeypatch):
    prepare("dfew", dfew, tmp_path / "out")
    dfew_list(dfew).write_text("\n".join(lines(dfew_list(dfew))[:-2]) + "\n")
    (tmp_path / "out/fold-2/test.txt").unlink()
    monkeypatch.setattr(tables, "_write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left", "out")))
    assert prepare("dfew", dfew, tmp_path / "out") == 2
    assert not (tmp_path / "out/dataset.json").exists()
    monkeypatch.undo()
    prepare("dfew", dfew, tmp_path / "out")
    prepare("dfew", dfew, tmp_path / "other")
    assert outputs(tmp_path / "out") == outputs(tmp_path / "other")


def test_a_list_that_became_empty_goes(dfew, tmp_path):
    prepare("dfew", dfew, tmp_path / "out")
    dfew_list(dfew, TEST, 3).unlink()
    assert prepare("dfew", dfew, tmp_path / "out") == 1, "the missing list is a fault"
    assert not (tmp_path / "out/fold-3/test.txt").exists() and (tmp_path / "out/fold-3/train.txt").exists()


def test_two_at_once_and_the_folder_of_another_set_are_refused(dfew, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out/.lock"):
        assert prepare("dfew", dfew, tmp_path / "out") == 2
    assert "is being written by another process" in capsys.readouterr().err
    prepare("dfew", dfew, tmp_path / "out")
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
def test_a_damaged_store_is_named_in_one_line(damage, dfew, tmp_path, capsys):
    prepare("dfew", dfew, tmp_path / "out")
    damage(tmp_path / "out/inspection.sqlite3")
    capsys.readouterr()
    assert prepare("dfew", dfew, tmp_path / "out") == 2
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
        # One at a time, so that a process may be gone when it is given the next clip.
        items = [(str(clip), "die" if number == 4 else f"{number}.mp4", "1") for number in range(12)]
        found = inspection.in_processes(die_of_one, items, 1, inspection._lost, 1)
        assert [bool(one.fault) for some in found for one in some] == [number == 4 for number in range(12)]
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
    print("peak", re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
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
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    few, many = map(int, re.findall(r"^peak (\d+)$", printed, re.MULTILINE))
    assert len(lines(tmp_path / "many/out/pretrain.txt")) == 20_000
    assert many - few < 5_500, "KiB; the clips alone would take more"


def test_a_folder_with_lists_of_somebody_else_is_not_written_to(dfew, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.txt").write_text("a.mp4 0\n")
    assert prepare("dfew", dfew, tmp_path / "mine") == 2
    assert "holds train.txt, which this command did not write" in capsys.readouterr().err
    assert (tmp_path / "mine" / "train.txt").read_text() == "a.mp4 0\n"
