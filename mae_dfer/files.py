"""Writes files so that a kill at any moment leaves the old file or the new one, never half of one.

It also tells what a file holds that is not of the kind its name says, such as a web page saved as a video.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .errors import UserError

_HEAD = 1024  # bytes that tell what a file is
_HTML = re.compile(r"<(!doctype\s+html|html|head|body|title|script)\b", re.IGNORECASE)
_SHOWN = 60  # characters
_STEM = 40  # characters of a temporary file's name: with the rest, it is no longer than file systems allow


def write_atomically(path: Path | str, write: Callable[[Path], Any]) -> None:
    """Calls ``write(temporary_path)``, flushes the result to disk and renames it to ``path``.

    A symbolic link is kept, and its target is written. A file that is replaced keeps its permissions; a new one has
    those that the user's umask leaves.

    Raises:
        UserError: ``path`` is a folder, a device, or something else that is no file.
        OSError: it cannot be written; ``filename`` is ``path``.
    """
    target = Path(os.path.realpath(path))
    try:
        replaced = _stat_file(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        # The suffix stays last: libraries choose a format by it.
        temporary = target.with_name(f".{target.stem[:_STEM]}.{os.getpid()}.tmp{target.suffix}")
        temporary.unlink(missing_ok=True)
        try:
            created = _create(temporary)
            write(temporary)
            _finish(temporary, stat.S_IMODE((replaced or created).st_mode))
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _stat_file(path: Path) -> os.stat_result | None:
    """None where there is nothing. Raises UserError for what no file may replace."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISDIR(found.st_mode):
        raise UserError(f"{path} is a folder; give the name of a file in it")
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path} is a device, a pipe or a socket; give the name of a file")
    return found


def _create(path: Path) -> os.stat_result:
    """An empty file with the permissions that the umask leaves, which some libraries do not give to theirs."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
    try:
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)


def _finish(path: Path, permissions: int) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if stat.S_IMODE(os.stat(path).st_mode) != permissions:
        os.chmod(path, permissions)


def check_writable(path: Path, inputs: Iterable[Path | str] = ()) -> None:
    """Raises where a result cannot be written to ``path`` or would destroy something: before long work, not after.

    Args:
        inputs: files that must stay. ``path`` may not be one of them, under whatever name.

    Raises:
        UserError: a folder, a device, a place without permission to write, a place among the checkpoints of a run, or
            one of ``inputs``.
    """
    target = Path(os.path.realpath(path))
    found = _stat_file(target)
    folder = next(folder for folder in target.parents if folder.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"cannot write {path}: {folder} is not a folder that may be written to")
    if any(folder.name == "checkpoints" and (folder.parent / "config.json").exists() for folder in target.parents):
        raise UserError(f"{path} lies among the checkpoints of a run; give another place")
    for kept in inputs if found else ():
        with contextlib.suppress(OSError):
            if os.path.samefile(target, kept):
                raise UserError(f"{path} would replace {kept}, which this command reads; give another name")


def describe_impostor(path: Path | str) -> str | None:
    """What was saved under the name of a binary file instead of it, and what to do; None where nothing speaks for that.

    An empty file, a block of zeros, a Git LFS pointer, an HTML page, any other text.

    Returns:
        The rest of a sentence "FILE is …".

    Raises:
        OSError: a file that cannot be opened.
    """
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    if not head:
        return "empty; download or copy it again"
    if not head.strip(b"\0"):
        return "a block of zeros, as an unfinished download leaves it; download it again"
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return "a Git LFS pointer, which stands for the file; fetch the file itself with: git lfs pull"
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head).strip()  # the end may be half a character
    except UnicodeDecodeError:
        return None
    if not all(character.isprintable() or character.isspace() for character in text):
        return None
    if _HTML.search(text):
        return "an HTML page, such as a download page or an error message; download the file itself"
    return f"a text file ({printable(text, _SHOWN)}); download the file itself"


def printable(text: str, length: int = 100) -> str:
    """``text``, which came from a file, on one line, without control characters, at most ``length`` characters."""
    shown = "".join(character if character.isprintable() else " " for character in text[:length])
    return " ".join(shown.split()) + ("…" if len(text) > length else "")


def encodable(text: str) -> str:
    """``text`` with what is no UTF-8 in it, such as bytes of a file's name, as escapes (``\\udce9``)."""
    return text.encode(errors="backslashreplace").decode()
