"""Finds the clips of a set that has no lists: their names say what they are.

Clips that lie together are a group: the videos as they are handed out, or a copy with cropped faces, which is usually
folders of frames named like the videos.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mae_dfer.data.prepare.layout import Wrong
from mae_dfer.data.prepare.official.clips import walk_clips
from mae_dfer.errors import UserError

_CROPPED = re.compile(r"(?<![a-z])face|crop|align", re.IGNORECASE)  # not as in "enterface database"


@dataclass
class Group:
    """Clips that lie together.

    Attributes:
        name: as ``--clips`` takes it; empty where there is one group.
        folder: the folder that ``paths`` start from.
        is_frames: whether the clips are folders of frames.
    """

    name: str
    folder: Path
    is_frames: bool
    paths: list[str]

    @property
    def is_cropped(self) -> bool:
        """Copies as frames were made to cut out faces; so were videos in folders that say so."""
        return self.is_frames or _CROPPED.search(self.folder.name) is not None

    def __str__(self) -> str:
        what = "folders of frames" if self.is_frames else "videos"
        return f"{self.name} ({len(self.paths):,} {what}, {'face crops' if self.is_cropped else 'whole frames'})"


def choose_group(
    title: str,
    root: Path,
    asked: str | None,
    is_clip: Callable[[str], bool],
    is_part: Callable[[str], bool],
    wrong: Wrong,
    *,
    expected: str,
    depth: int = 7,
) -> Group:
    """The group that was asked for, or else the only one.

    Args:
        title: the name of the set.
        is_clip: of a name without suffix.
        is_part: of the name of a folder within the set, such as that of an actor.
        expected: what the set's folder holds.

    Raises:
        UserError: there is none, several and none was asked for, or not the one asked for.
    """
    root = root.resolve()
    while is_part(root.name) or is_clip(root.name):
        root = root.parent
    found: dict[tuple[str, bool], list[str]] = {}
    for path, is_frames in walk_clips(root, is_clip, wrong, depth=depth):
        folders = path.split("/")[:-1]
        while folders and is_part(folders[-1]):
            folders.pop()
        found.setdefault(("/".join(folders), is_frames), []).append(path)
    groups = _name(root, found)
    if not groups:
        raise UserError(f"{root} holds no clips of {title}, such as {expected}; give the folder they are in as --root")
    chosen = [group for group in groups if asked is not None and group.name.casefold() == asked.casefold()]
    if asked is not None and not chosen:
        raise UserError(f"{root} has no clips {asked} of {title}; --clips takes {', '.join(map(str, groups))}")
    if asked is None and len(groups) > 1:
        raise UserError(
            f"{title} has several forms of its clips; choose one with --clips: {'; '.join(map(str, groups))}; "
            "the published results used face crops"
        )
    if len(groups) == 1:
        groups[0].name = ""
    return (chosen or groups)[0]


def _name(root: Path, found: dict[tuple[str, bool], list[str]]) -> list[Group]:
    """Groups are named by their folders, as seen from the folder that all are in, or by what they are."""
    common = posixpath.commonpath([f"/{prefix}" for prefix, _ in found])[1:] if found else ""
    prefixes = [prefix for prefix, _ in found]
    groups = []
    for (prefix, is_frames), paths in found.items():
        kind = "frames" if is_frames else "videos"
        parts = [prefix[len(common) :].strip("/")]
        if not parts[0] or prefixes.count(prefix) > 1:
            parts.append(kind)
        inside = [path[len(prefix) :].strip("/") for path in paths]
        groups.append(Group("/".join(filter(None, parts)), root / prefix, is_frames, inside))
    return groups
