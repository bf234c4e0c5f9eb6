"""Cuts the face out of each clip that shows whole frames, and says where none was found."""

from __future__ import annotations

import csv
import functools
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from mae_dfer.data.faces import FaceDetector, find_tracks, main_track, write_crops, write_frames
from mae_dfer.data.faces.crops import SIZE
from mae_dfer.data.folders import VIDEO_SUFFIXES
from mae_dfer.data.prepare.inspection import Item, in_processes
from mae_dfer.data.prepare.layout import Entry, Finding, Layout
from mae_dfer.data.prepare.store import MISSING, SHOWN, Inspection, Store
from mae_dfer.data.video import VideoError, open_video
from mae_dfer.errors import UserError
from mae_dfer.files import encodable, write_atomically

FOLDER, STORE, TABLE = "faces", "crops.sqlite3", "faces.csv"
_CHUNK = 2  # clips that a process is given at a time: few, since a kill costs those that are not recorded yet
FORMATS = ("mp4", "frames")
NO_FACE = "no face was found in it"
_MARKER = ".crops"  # in a folder that this command made
_SHORT = 0.9  # of a clip's frames, that its crop should have
_LEFTOVER = re.compile(r"\..+\.\d+\.tmp(\..+)?")
_COLUMNS = ("path", "crop", "frames", "first_frame", "frames_cropped", "faces", "fault")


@dataclass(frozen=True)
class Cropping:
    """How faces are cut out.

    Attributes:
        format: ``mp4``, or ``frames`` for a folder of JPEG images for each clip.
        face_model: a YuNet network in ONNX; None takes the one of this package.
    """

    format: str = "mp4"
    face_model: Path | None = None

    def key(self, convention: str) -> str:
        """Changes with what would change the crops."""
        model = self.face_model and (str(self.face_model.resolve()), self.face_model.stat().st_mtime_ns)
        return f"{convention} {self.format} {SIZE} {model}"


class Crop(NamedTuple):
    """What came of one clip; its fields are the columns of the table ``crops``.

    Attributes:
        crop: its path from the folder of crops on.
        key: how it was made, and of which state of the clip.
        frames: of the clip; ``cropped`` of them, from ``first`` on, show the face that was cut out.
        faces: how many different ones the clip shows.
        fault: why there is no crop; empty where there is.
    """

    path: str
    crop: str
    key: str
    frames: int = 0
    first: int = 0
    cropped: int = 0
    faces: int = 0
    fault: str = ""


def crop_faces(
    layout: Layout, store: Store, output: Path, how: Cropping, workers: int, advance: Callable[[int], None]
) -> Layout:
    """Writes the crop of each clip of ``store`` that is new, has changed, or whose crop is gone.

    Where a clip shows several faces, it is the one that is largest for longest.

    Args:
        store: the clips, inspected.
        output: the prepared folder; crops lie in ``faces`` in it, and ``faces.csv`` tells of each.
        advance: is called with how many more clips are done.

    Returns:
        The layout of the crops. Clips without one are in it, too: see :func:`save_faults`.

    Raises:
        UserError: ``faces`` is there and is not of this command.
    """
    folder = output / FOLDER
    _claim(layout, folder)
    _remove_leftovers(folder)
    work = functools.partial(_crop, folder=str(folder), how=how)
    for done in in_processes(work, _changed(layout, store, folder, how, advance), workers, _lost, _CHUNK):
        store.save_crops(done)
        advance(len(done))
    _remove_others(store, folder)
    _write_table(store, output / TABLE)
    findings = [*layout.findings, *_find_faults(layout, store)]
    return replace(layout, root=folder, entries=_entries(store), findings=findings, is_cropped=True,
                   cropped_by="prepare")  # fmt: skip


def _claim(layout: Layout, folder: Path) -> None:
    """Makes the folder of the crops, in which what is no crop is removed. Refuses one of somebody else."""
    if layout.root.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"the clips lie in {folder}, where crops would be written; give another --output")
    if folder.is_symlink() or (folder.is_dir() and any(folder.iterdir()) and not (folder / _MARKER).exists()):
        raise UserError(f"{folder} is there and was not written by this command; give another --output")
    folder.mkdir(exist_ok=True)
    (folder / _MARKER).touch()


def save_faults(store: Store, crops: Store) -> None:
    """Says in the store of the crops why clips have none; after its ``set_root``."""
    query = "SELECT crop, crops.fault FROM clips JOIN crops USING (path) WHERE crops.fault != ''"
    crops.save(Inspection(crop, MISSING, fault=fault) for crop, fault in store.ask(query))


def _changed(
    layout: Layout, store: Store, folder: Path, how: Cropping, advance: Callable[[int], None]
) -> Iterator[Item]:
    query = (
        "SELECT path, stamp, inspections.fault, crops.crop, key, crops.fault FROM clips JOIN inspections USING (path) "
        "LEFT JOIN crops USING (path) ORDER BY number"
    )
    taken: set[str] = set()
    made_by = how.key(layout.convention)
    faulty: list[Crop] = []
    for path, stamp, fault, known_crop, known_key, known_fault in list(store.ask(query)):
        crop, key = _name(path, how.format, taken), f"{made_by} {stamp}"
        if fault:
            if stamp != MISSING:  # else its disk may be back tomorrow
                _remove(folder / crop)
            faulty.append(Crop(path, crop, key, fault=fault))
        elif (
            (known_crop, known_key) != (crop, key)
            or known_fault not in ("", NO_FACE)
            or not (known_fault or (folder / crop).exists())
        ):
            yield os.path.join(layout.root, path), f"{path}\0{crop}", key
            continue
        advance(1)
    store.save_crops(faulty)


def _name(path: str, format: str, taken: set[str]) -> str:
    """Of a crop: that of its clip, with another suffix. A second one of that name keeps both."""
    stem, suffix = os.path.splitext(path)
    ending = ".mp4" if format == "mp4" else ""
    name = (stem if suffix.lower() in VIDEO_SUFFIXES else path) + ending
    if name in taken:
        name = path + (ending or ".frames")
    taken.add(name)
    return name


def _crop(item: Item, folder: str, how: Cropping) -> Crop:
    full, names, key = item
    path, crop = names.split("\0")
    target = Path(folder, crop)
    _remove(target)  # that of an earlier state of the clip
    try:
        with open_video(full) as video:
            tracks = find_tracks(video, _detector(how.face_model))
            track = main_track(tracks)
            if track is None:
                return Crop(path, crop, key, video.num_frames, fault=NO_FACE)
            target.parent.mkdir(parents=True, exist_ok=True)
            if how.format == "mp4":
                write_crops(video, track, target)
            else:
                write_frames(video, track, target)
            return Crop(path, crop, key, video.num_frames, track.first_frame, len(track.boxes), len(tracks))
    except VideoError as error:
        return Crop(path, crop, key, fault=error.reason)


def _lost(item: Item) -> Crop:
    path, crop = item[1].split("\0")
    return Crop(path, crop, item[2], fault="the process that cut out its face was ended: by a defect, or out of memory")


@functools.cache
def _detector(model: Path | None) -> FaceDetector:
    return FaceDetector(model)


def _remove(crop: Path) -> None:
    if crop.is_dir():
        shutil.rmtree(crop)
    else:
        crop.unlink(missing_ok=True)


def _remove_leftovers(folder: Path) -> None:
    """What a kill has left half-written."""
    for parent, folders, files in os.walk(folder):
        for name in [name for name in folders if _LEFTOVER.fullmatch(name)]:
            folders.remove(name)
            shutil.rmtree(Path(parent, name))
        for name in files:
            if _LEFTOVER.fullmatch(name):
                Path(parent, name).unlink()


def _entries(store: Store) -> Iterator[Entry]:
    query = "SELECT crop, label, splits, subject FROM clips JOIN crops USING (path) ORDER BY number"
    for crop, label, splits, subject in store.ask(query):
        yield Entry(crop, label, tuple(splits.split(",")), subject)


def _find_faults(layout: Layout, store: Store) -> Iterator[Finding]:
    """What was cut out, but perhaps not as it should be. Clips without a crop are unreadable ones of the new set."""
    if layout.is_cropped:
        text = "the set's own frames are said to be faces already; without --crop-faces they are taken as published"
        yield Finding(text, False)
    else:
        yield Finding(
            "faces were cut out by this package, which does not align them; published results have other crops (of the "
            "lab sets: OpenFace's), so scores may differ", False,
        )  # fmt: skip
    query = "SELECT path, crops.frames, cropped, faces FROM clips JOIN crops USING (path) WHERE crops.fault = ''"
    short, several = [], []
    for path, frames, cropped, faces in store.ask(f"{query} ORDER BY number"):
        if cropped < _SHORT * frames:
            short.append(f"{path}: {cropped} of {frames} frames")
        if faces > 1:
            several.append(f"{path}: {faces} times")
    for what, found in (
        ("less than 90 % of the frames show the face; the crop has those alone", short),
        ("several faces were followed (one that goes and comes back counts twice); the largest for longest is cut out",
         several),
    ):  # fmt: skip
        if found:
            clips = "in 1 clip" if len(found) == 1 else f"in {len(found):,} clips"
            yield Finding(f"{clips}, {what}; {TABLE} has a line for each clip", False, tuple(found[:SHOWN]))


def _remove_others(store: Store, folder: Path) -> None:
    """Removes crops of clips that are gone, or of another format."""
    query = (
        "SELECT crop FROM clips JOIN crops USING (path) JOIN inspections USING (path) "
        "WHERE crops.fault = '' OR inspections.stamp = ?"
    )
    known = {crop for (crop,) in store.ask(query, MISSING)}
    for parent, folders, files in os.walk(folder, topdown=False):
        place = Path(parent).relative_to(folder)
        if place.as_posix() in known:
            continue
        for name in files:
            if name != _MARKER and place.joinpath(name).as_posix() not in known:
                Path(parent, name).unlink()
        if place.parts and not any(Path(parent, name).exists() for name in (*folders, *files)):
            os.rmdir(parent)


def _write_table(store: Store, path: Path) -> None:
    query = (
        "SELECT path, crop, crops.frames, first, cropped, faces, crops.fault FROM clips JOIN crops USING (path) "
        "ORDER BY number"
    )

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(_COLUMNS)
            for *cells, fault in store.ask(query):
                writer.writerow([*cells, encodable(fault)])

    write_atomically(path, write)
