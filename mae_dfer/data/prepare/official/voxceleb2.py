"""VoxCeleb2: 1,091,726 clips of faces who speak, for pre-training; they have no labels.

``dev/mp4/id00012/21Uxsk56VDQ/00001.mp4``: person, film and clip; faces, 224 × 224. A set of this size is never held
in memory: its clips are listed folder by folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from mae_dfer.data.prepare.layout import (
    MANY,
    PRETRAIN,
    Entry,
    Finding,
    Layout,
    Wrong,
    children,
    is_prepared,
    subfolders,
)
from mae_dfer.errors import UserError

_PERSON = re.compile(r"id\d{5}")
_TEST = re.compile(r"(vox\w*_)?test(_mp4)?", re.IGNORECASE)
_DEPTH = 5


def read(root: Path, clips: str | None) -> Layout:
    if clips is not None:
        raise UserError("VoxCeleb2 has one form of its clips; leave out --clips")
    top = root.resolve()
    person = next((folder for folder in (top, *top.parents[:2]) if _PERSON.fullmatch(folder.name)), None)
    parts = list(_parts(person.parent if person else top, _DEPTH))
    tests = [part for part in parts if _is_test(part, top)]
    parts = [part for part in parts if part not in tests]
    if not parts:
        rest = f"only the test part, {tests[0]}" if tests else "no folder of people such as dev/mp4/id00012"
        raise UserError(f"{root} holds {rest}; give the folder that the dev part of VoxCeleb2 is in as --root")
    wrong = Wrong()
    for part in tests:
        wrong.note(f"{part} is the test part of the set, which published pre-training leaves out")
    base = Path(os.path.commonpath(parts))
    layout = Layout("voxceleb2", base, (), findings=wrong.findings())
    layout.entries = _entries(base, parts, layout.findings)
    return layout


def _is_test(part: Path, top: Path) -> bool:
    names = [part.parent.name, *(part.relative_to(top).parts if part.is_relative_to(top) else ())]
    return any(_TEST.fullmatch(name) for name in names)


def _parts(folder: Path, depth: int) -> Iterator[Path]:
    """The folders that hold folders of people: one, or several where archives were unpacked side by side."""
    inner = subfolders(folder)
    if any(_PERSON.fullmatch(child.name) for child in inner):
        yield folder
    elif depth and len(inner) <= MANY:
        for child in inner:
            yield from _parts(child, depth - 1)


def _entries(base: Path, parts: list[Path], findings: list[Finding]) -> Iterator[Entry]:
    wrong = Wrong()
    for part in parts:
        for person in _list(part, wrong, folders=True):
            if _PERSON.fullmatch(person):
                for film in _list(part / person, wrong, folders=True):
                    place = part.joinpath(person, film).relative_to(base).as_posix()
                    for name in _list(part / person / film, wrong, folders=False):
                        yield Entry(f"{place}/{name}", splits=(PRETRAIN,), subject=person)
            elif not is_prepared(part / person):
                wrong.add(str(part / person), "the folder is not named like a person of the set, and is left out")
    findings += wrong.findings()


def _list(folder: Path, wrong: Wrong, *, folders: bool) -> list[str]:
    """Names of the folders, or of the videos, in a folder. What else it holds is noted."""
    try:
        found = children(folder)
    except OSError as error:
        wrong.add(str(folder), f"the folder cannot be read ({error.strerror})")
        return []
    names = [name for name, is_folder in found if is_folder == folders and (folders or name.lower().endswith(".mp4"))]
    if len(names) < len(found):
        wrong.add(str(folder), f"it holds more than {'folders' if folders else 'mp4 files'}", is_fault=False)
    if not names:
        wrong.add(str(folder), "the folder holds no clips", is_fault=False)
    return names
