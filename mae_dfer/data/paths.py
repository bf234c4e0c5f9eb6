"""Where the paths of a list lead on this machine."""

from __future__ import annotations

import ntpath
import os
import re
from pathlib import Path

from mae_dfer.errors import UserError

ON_WINDOWS = os.name == "nt"

_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


class Paths:
    """Joins the paths of one list to ``base`` and finds the files of paths that were written on Windows.

    To locate a path costs system calls only if it has a backslash or a drive: two, once its folder has been found.
    """

    def __init__(self, base: Path, remap: tuple[str, str] | None) -> None:
        self.base, self._remap = str(base), remap
        # Windows folders in whose place ``base`` has the files; each is its own value, so that equal ones are shared.
        self._folders: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._folder_of: dict[str, tuple[str, ...]] = {}  # by file

    def exists(self, path: str) -> bool:
        """Whether the file of the list's ``path`` is there."""
        path = self._remapped(path)
        if os.path.lexists(self._join(path)):
            return True
        if path.startswith("/"):
            return "\\" in path and os.path.lexists(path.replace("\\", "/"))
        return _is_foreign(path) and self._find(_parts(path)) is not None

    def locate(self, path: str) -> str | None:
        """The path on this machine; None for a Windows path while ``base`` has no file of such a path.

        Raises: UserError where two Windows paths lead to the same file.
        """
        path = self._remapped(path)
        joined = self._join(path)
        if not _is_foreign(path) or os.path.lexists(joined):
            return joined
        if path.startswith("/"):  # a folder of this machine, to which a Windows path was added
            return path.replace("\\", "/")
        parts = _parts(path)
        length = self._find(parts)
        if length is None:  # a missing file of a folder that was found
            length = next(iter(self._known(parts)), None)
        return None if length is None else self._claim(parts, length)

    def _claim(self, parts: tuple[str, ...], length: int) -> str:
        located, folder = self._join("/".join(parts[length:])), self._folders[parts[:length]]
        other = self._folder_of.setdefault(located, folder)
        if other != folder:
            paths = ("\\".join(start + parts[length:]) for start in (other, folder))
            raise UserError(
                f"{' and '.join(paths)} lead to the same file, {located}; "
                "give the folder in which they are different files as --data-root"
            )
        return located

    def _remapped(self, path: str) -> str:
        if self._remap is None:
            return path
        old, new = self._remap[0].rstrip("/\\"), self._remap[1].rstrip("/")
        compared = path
        if _is_foreign(old + "/") and _is_foreign(path):
            old, compared = old.replace("\\", "/"), path.replace("\\", "/")
        return new + compared[len(old) :] if compared == old or compared.startswith(old + "/") else path

    def _join(self, path: str) -> str:
        path = os.path.expanduser(path)
        return path if os.path.isabs(path) else os.path.normpath(os.path.join(self.base, path))

    def _known(self, parts: tuple[str, ...]) -> list[int]:
        return [length for length in _lengths(parts) if parts[:length] in self._folders]

    def _find(self, parts: tuple[str, ...]) -> int | None:
        """How many of the first parts to leave out so that the rest is there: as found before, else the fewest."""
        known = self._known(parts)
        for length in [*known, *(length for length in _lengths(parts) if length not in known)]:
            if os.path.lexists(self._join("/".join(parts[length:]))):
                self._folders.setdefault(parts[:length], parts[:length])
                return length
        return None


def _is_foreign(path: str) -> bool:
    return not ON_WINDOWS and ("\\" in path or _DRIVE.match(path) is not None)


def _parts(path: str) -> tuple[str, ...]:
    """``("C:", "data", "a.mp4")``; the first part of ``\\\\server\\share`` and of ``\\data`` is empty."""
    first, *others = ntpath.normpath(path).split("\\")
    return (first.upper() if len(first) == 2 and first.endswith(":") else first, *filter(None, others))


def _lengths(parts: tuple[str, ...]) -> range:
    """How many first parts may be left out: none of a relative path, all but the file's name of an absolute one."""
    is_absolute = parts[0] == "" or _DRIVE.match(parts[0] + "/")
    return range(1, len(parts)) if is_absolute else range(1)
