"""Finds the clips of a set on disk: videos, and folders of frames, that have the names of its clips."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

from mae_dfer.data.folders import VIDEO_SUFFIXES
from mae_dfer.data.prepare.layout import MANY, Finding, Wrong, children, find_folder, is_prepared
from mae_dfer.errors import UserError

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Form:
    """One of several forms in which a set hands out its clips.

    Attributes:
        name: as ``--clips`` takes it.
        folders: names of the folder that holds the clips, in the copies that are met.
        text: what the clips are.
        is_published: whether the published results used them.
        stride: every how many frames the published training takes one; of clips made for another stride, that one.
        is_cropped: whether the frames are faces that were cut out.
        renamed: another name of the same clips, which is taken for this one where they are not there.
    """

    name: str
    folders: tuple[str, ...]
    text: str
    is_published: bool = False
    stride: int = 4
    is_cropped: bool = True
    renamed: str = ""


def choose_form(title: str, forms: Sequence[Form], asked: str | None, root: Path, home: Path) -> tuple[Form, Path]:
    """The form that was asked for, or else the only one there is, and its folder.

    Args:
        title: the name of the set.
        root: the folder that the user gave; a part of the set where it lies in ``home``.
        home: the folder that the lists of the set are in.

    Raises:
        UserError: several forms are there and none was asked for; or the one asked for is not.
    """
    root = root.resolve()
    there: dict[Path, Form] = {}
    for place in (root, home) if root.is_relative_to(home) else (home, root):
        for form in () if there else forms:
            folder = find_folder(place, *form.folders)
            if folder is not None:
                there.setdefault(folder, form)  # of a link and what it leads to, one
    known = "; ".join(f"{form.name} ({form.text})" for form in forms)
    if not there:
        raise UserError(f"{root} has no clips of {title}; it must hold a folder of one of these names: {known}")
    chosen = {folder: form for folder, form in there.items() if asked is None or _is_called(form, asked)}
    if asked is not None and not chosen:
        chosen = {folder: form for folder, form in there.items() if form.renamed == asked.lower()}
    if not chosen:
        held = ", ".join(form.name for form in there.values())
        raise UserError(f"there are no clips {asked} of {title}, only {held}; --clips takes one of these: {known}")
    if len(chosen) > 1:
        raise UserError(f"{title} has several forms of its clips; choose one with --clips: {_describe(there.values())}")
    ((folder, form),) = chosen.items()
    return form, folder


def _is_called(form: Form, name: str) -> bool:
    return name.lower() in [known.split("/")[-1].lower() for known in (form.name, *form.folders)]


def _describe(forms: Iterable[Form]) -> str:
    used = ", which the published results used"
    return "; ".join(f"{form.name} ({form.text}{used if form.is_published else ''})" for form in forms)


def note_form(form: Form, forms: Sequence[Form]) -> list[Finding]:
    """A finding where the published results used another form."""
    if form.is_published:
        return []
    used = " or ".join(other.name for other in forms if other.is_published)
    return [Finding(f"the clips are {form.name} ({form.text}); the published results used {used}", is_fault=False)]


def walk_clips(
    folder: Path, is_clip: Callable[[str], bool], wrong: Wrong, *, depth: int, skip: Sequence[str] = ()
) -> Iterator[tuple[str, bool]]:
    """(path from ``folder`` on, whether it is a folder) of each clip, in order of the paths.

    Args:
        is_clip: of a name without suffix. What it accepts is not looked into.
        depth: of folders to look into.
        skip: names of folders that are left out.
        wrong: gathers folders that cannot be read, and videos of other names.
    """
    try:
        found = children(folder)
    except OSError as error:
        wrong.add(str(folder), f"the folder cannot be read ({error.strerror})")
        return
    others = [name for name, is_folder in found if is_folder and not is_clip(stem(name)) and name not in skip]
    entered = set(others) if depth and len(others) <= MANY else set()
    for name, is_folder in found:
        if is_clip(stem(name)) and (is_folder or name.lower().endswith(VIDEO_SUFFIXES)):
            yield name, is_folder
        elif not is_folder and name.lower().endswith(VIDEO_SUFFIXES):
            wrong.add(str(folder / name), "the name is of no clip of the set; the video is left out", is_fault=False)
        elif name in entered and not is_prepared(folder / name):
            for path, is_frames in walk_clips(folder / name, is_clip, wrong, depth=depth - 1, skip=skip):
                yield f"{name}/{path}", is_frames


def stem(name: str) -> str:
    """A name without the suffix of videos, which folders of frames keep in some copies."""
    root, suffix = os.path.splitext(name)
    return root if suffix.lower() in VIDEO_SUFFIXES else name


def index_clips(paths: Iterable[str], key_of: Callable[[str], Key | None], wrong: Wrong) -> dict[Key, str]:
    """The clips by what lists call them; the first of two that lists cannot tell from each other."""
    found: dict[Key, str] = {}
    for path in paths:
        key = key_of(path)
        if key is not None and found.setdefault(key, path) != path:
            wrong.add(path, f"the lists cannot tell it from {found[key]}, which is taken; remove one of them")
    return found


def spell_number(number: int, clips: Iterable[str]) -> str:
    """The name that a clip would have beside ``clips``, whose names are numbers: as many digits, and their suffix."""
    looks = Counter((len(stem(name)), PurePosixPath(name).suffix) for name in (path.split("/")[-1] for path in clips))
    (width, suffix), _ = looks.most_common(1)[0] if looks else ((5, ""), 0)
    return f"{number:0{width}d}{suffix}"
