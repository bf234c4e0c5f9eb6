"""The demo set: what the classes are, that clips repeat, and that a folder is whole or not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from mae_dfer.data import open_dataset
from mae_dfer.data.demo import CLASSES, MOTION_DEFINED, VERSION, default_folder, ensure_demo, store
from mae_dfer.data.demo.__main__ import main
from mae_dfer.data.demo.draw import FacePainter
from mae_dfer.data.demo.expression import (
    BROWS_DOWN,
    FIRST,
    FRAMES,
    LAST,
    LIP_UP,
    NEUTRAL_POSE,
    STARTLED,
    UNITS,
    Pose,
    sample_course,
)
from mae_dfer.data.demo.render import IDENTITIES, clips_of, course_of, describe, frames_of, identity_of
from mae_dfer.data.demo.scene import sample_scene
from mae_dfer.errors import UserError

LIMIT = 14  # per split: two people, every expression
EVERYDAY = {"blink", "jaw", "pucker", "gaze_x", "gaze_y"}  # units that move whatever the class


@pytest.fixture(scope="module")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_demo(tmp_path_factory.mktemp("demo") / "set", progress=False, limit=LIMIT)


def _rng(seed: int) -> np.random.Generator:
    return np.random.default_rng([99, seed])


def _unit(course: np.ndarray, name: str) -> np.ndarray:
    return course[:, UNITS.index(name)]


def _centre(envelope: np.ndarray) -> float:
    weight = envelope - envelope.min()
    return float((weight * np.arange(FRAMES)).sum() / weight.sum())


# -- the classes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("forwards", "backwards"), [("surprise", "fear"), ("angry", "disgust")])
def test_each_pair_is_one_course_and_its_reversal(forwards: str, backwards: str) -> None:
    for seed in range(20):
        one, other = (sample_course(_rng(seed), name).units for name in (forwards, backwards))
        np.testing.assert_array_equal(other, one[::-1])
        assert not np.array_equal(other, one), "a palindrome has no direction in time"


def test_motion_defined_names_the_four_classes_of_the_pairs() -> None:
    assert set(MOTION_DEFINED) == {"angry", "surprise", "disgust", "fear"}
    assert set(MOTION_DEFINED) < set(CLASSES) and len(CLASSES) == 7


def test_time_order_tells_the_pairs_apart() -> None:
    for seed in range(50):
        brows, lip = (_unit(sample_course(_rng(seed), "angry").units, name) for name in ("brow_lower", "lip_raise"))
        assert _centre(lip) - _centre(brows) > 4, "in anger the brows lead, by frames one can see"
        # Opening is the only use of eye_wide, so blinks and talking do not blur it.
        steps = np.diff(_unit(sample_course(_rng(seed), "surprise").units, "eye_wide"))
        assert steps.max() > 2.5 * -steps.min(), "surprise rises faster than it falls"


@pytest.mark.parametrize("expression", CLASSES)
def test_the_unfolding_lies_inside_every_window(expression: str) -> None:
    columns = [column for column, unit in enumerate(UNITS) if unit not in EVERYDAY]
    found = 0
    for seed in range(50):
        active = np.flatnonzero(sample_course(_rng(seed), expression).units[:, columns].max(1) > 1e-6)
        assert FIRST <= active.min() and active.max() <= LAST
        found += len(active)
    assert found > 50 * 8


def test_only_its_own_units_separate_a_motion_class_from_rest() -> None:
    for name, parts in (("surprise", [STARTLED]), ("disgust", [BROWS_DOWN, LIP_UP])):
        own = {unit for part in parts for unit in part}
        moved = {unit for unit in UNITS if np.abs(_unit(sample_course(_rng(3), name).units, unit)).max() > 0}
        assert own <= moved <= own | EVERYDAY


# -- clips -------------------------------------------------------------------------------------------------


def test_full_size_is_balanced_and_identities_are_disjoint() -> None:
    people = {}
    for split, count in (("train", 1344), ("test", 210)):
        clips = clips_of(split)
        assert len(clips) == count and len({clip.file for clip in clips}) == count
        per_person = {(clip.identity, clip.label) for clip in clips}
        people[split] = {clip.identity for clip in clips}
        assert len(per_person) == len(people[split]) * len(CLASSES), "each person shows each expression"
        assert len(people[split]) == len(IDENTITIES[split])
        assert {clip.label: sum(other.label == clip.label for other in clips) for clip in clips} == {
            label: count // 7 for label in range(7)
        }
    assert not people["train"] & people["test"]


def test_a_clip_is_a_function_of_split_and_index() -> None:
    clip = clips_of("test")[3]
    first, again = (np.stack(list(frames_of(clip))) for _ in range(2))
    assert first.shape == (FRAMES, 96, 96, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert describe(clip) == describe(clip)
    other = np.stack(list(frames_of(clips_of("test")[10])))
    assert np.abs(first.astype(int) - other).mean() > 5, "another index is another clip"


@pytest.mark.parametrize("expression", CLASSES[1:])
def test_the_expression_shows_in_the_face_and_nowhere_else(expression: str) -> None:
    clip = next(clip for clip in clips_of("train") if clip.expression == expression)
    painter = FacePainter(identity_of(clip.identity), sample_scene(_rng(5)), identity_seed=clip.identity)
    units = course_of(clip).units
    peak = int(units[:, [UNITS.index(name) for name in UNITS if name not in EVERYDAY]].sum(1).argmax())
    posed, rest = (painter.frame(pose, 0).astype(int) for pose in (Pose(*units[peak].tolist()), NEUTRAL_POSE))
    change = np.abs(posed - rest).mean(2)
    assert change[20:85, 15:80].mean() > 2.5
    assert change[:, :3].max() == change[:, -3:].max() == 0


# -- the folder --------------------------------------------------------------------------------------------


def test_lists_open_with_the_right_counts(small_set: Path) -> None:
    data = open_dataset(small_set)
    assert tuple(data.classes) == CLASSES
    assert len(data.train) == len(data.test) == LIMIT
    assert [sample.label for sample in data.train] == [index % 7 for index in range(LIMIT)]
    assert all(Path(sample.path).is_file() for sample in [*data.train, *data.test])
    metadata = json.loads((small_set / "metadata.json").read_text())
    assert metadata["version"] == VERSION and len(metadata["clips"]) == 2 * LIMIT
    assert all((small_set / clip["path"]).is_file() for clip in metadata["clips"])


def test_clips_decode_to_what_was_drawn(small_set: Path) -> None:
    decord = pytest.importorskip("decord")
    clip = clips_of("train")[4]
    reader = decord.VideoReader(str(small_set / clip.file))
    assert len(reader) == FRAMES and reader.get_avg_fps() == 16
    for index, drawn in enumerate(frames_of(clip)):
        assert np.abs(reader[index].asnumpy().astype(int) - drawn).mean() < 6, f"frame {index}"


def test_a_whole_set_is_left_alone_and_a_broken_one_is_drawn_again(tmp_path: Path) -> None:
    folder = ensure_demo(tmp_path / "set", progress=False, limit=2)
    before = (folder / "train.txt").stat().st_mtime_ns
    assert ensure_demo(folder, progress=False, limit=2) == folder
    assert (folder / "train.txt").stat().st_mtime_ns == before
    lost = folder / clips_of("test")[0].file
    content = lost.read_bytes()
    lost.unlink()
    ensure_demo(folder, progress=False, limit=2)
    assert lost.read_bytes() == content


def test_a_leftover_of_a_killed_run_is_replaced(tmp_path: Path) -> None:
    partial = tmp_path / ".set.partial"
    (partial / "clips").mkdir(parents=True)
    (partial / "clips" / clips_of("train")[0].file.split("/")[1]).write_bytes(b"half a file")
    folder = ensure_demo(tmp_path / "set", progress=False, limit=2)
    assert not partial.exists()
    assert (folder / clips_of("train")[0].file).stat().st_size > 1000
    assert sorted(entry.name for entry in folder.iterdir()) == [
        "classes.txt", "clips", "metadata.json", "test.txt", "train.txt",
    ]  # fmt: skip


def test_two_callers_at_once_agree(tmp_path: Path) -> None:
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(ensure_demo(tmp_path / "set", progress=False, limit=2)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [tmp_path / "set"] * 2
    assert len(list((tmp_path / "set" / "clips").iterdir())) == 4


def test_workers_draw_the_same_bytes_as_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_FEW", 2)  # so that a handful of clips is worth a second process
    limit = 3
    alone = ensure_demo(tmp_path / "one", progress=False, workers=1, limit=limit)
    shared = ensure_demo(tmp_path / "two", progress=False, workers=2, limit=limit)
    for file in sorted(path.relative_to(alone) for path in alone.rglob("*.*")):
        assert (alone / file).read_bytes() == (shared / file).read_bytes(), file


def test_a_killed_run_leaves_no_folder(tmp_path: Path) -> None:
    code = f"from mae_dfer.data.demo import ensure_demo; ensure_demo({str(tmp_path / 'set')!r}, workers=1)"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    clips = tmp_path / ".set.partial" / "clips"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (clips.is_dir() and any(clips.iterdir())):
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert clips.is_dir() and not (tmp_path / "set").exists()


# -- what the user can get wrong ---------------------------------------------------------------------------


def test_foreign_files_are_never_deleted(tmp_path: Path, small_set: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="thesis.txt"):
        ensure_demo(tmp_path, progress=False, limit=2)
    note = small_set / "clips" / "note.txt"
    note.write_text("mine")
    try:
        with pytest.raises(UserError, match="note.txt"):
            ensure_demo(small_set, progress=False, limit=2)
    finally:
        note.unlink()
    own_lists = tmp_path / "own"
    own_lists.mkdir()
    (own_lists / "train.txt").write_text("a.mp4 0\n")
    with pytest.raises(UserError, match="not of the demo set"):
        ensure_demo(own_lists, progress=False, limit=2)
    assert (own_lists / "train.txt").read_text() == "a.mp4 0\n"


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set").write_text("")
    with pytest.raises(UserError, match="is a file"):
        ensure_demo(tmp_path / "set", progress=False)


@pytest.mark.parametrize("option", ["workers", "limit"])
def test_counts_below_one_are_refused(tmp_path: Path, option: str) -> None:
    with pytest.raises(UserError, match=option):
        ensure_demo(tmp_path / "set", progress=False, **{option: 0})


def test_default_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MAE_DFER_CACHE", raising=False)
    if os.name != "nt":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert default_folder() == tmp_path / "xdg" / "mae_dfer" / f"demo-v{VERSION}"
    monkeypatch.setenv("MAE_DFER_CACHE", str(tmp_path / "own"))
    assert default_folder() == tmp_path / "own" / f"demo-v{VERSION}"


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = tmp_path / "sheet.png"
    assert main(["--output", str(tmp_path / "set"), "--limit", "2", "--contact-sheet", str(sheet)]) == 0
    assert sheet.read_bytes().startswith(b"\x89PNG")
    assert main(["--output", str(tmp_path / "set"), "--limit", "nought"]) == 2
    assert main(["--output", str(tmp_path / "set"), "--limit", "2", "--contact-sheet", str(tmp_path / "x.what")]) == 2
    assert "unknown picture format" in capsys.readouterr().err
