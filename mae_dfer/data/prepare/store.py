"""What is known about the clips of a data set, in one SQLite file beside the lists that are made from it.

A set of a million files never lies in memory; what was learnt about a file is kept until its size or time changes.
"""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from mae_dfer.data.prepare.layout import Entry
from mae_dfer.errors import UserError
from mae_dfer.files import encodable

_VERSION = 1  # of the tables below
_BATCH = 1000
SHOWN = 5  # paths that are given as examples
_TABLES = """
CREATE TABLE IF NOT EXISTS clips (
    number INTEGER PRIMARY KEY, path TEXT UNIQUE NOT NULL, label INTEGER NOT NULL, splits TEXT NOT NULL,
    subject TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS inspections (
    path TEXT PRIMARY KEY, stamp TEXT NOT NULL, frames INTEGER, width INTEGER, height INTEGER, rate REAL, bytes INTEGER,
    sample TEXT, content TEXT, face_share REAL, fault TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS roots (path TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS crops (
    path TEXT PRIMARY KEY, crop TEXT NOT NULL, key TEXT NOT NULL, frames INTEGER NOT NULL, first INTEGER NOT NULL,
    cropped INTEGER NOT NULL, faces INTEGER NOT NULL, fault TEXT NOT NULL
) WITHOUT ROWID;
"""
_DAMAGED = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_SCHEMA")

MISSING = "missing"
"""The stamp of a clip that is not there."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found in one clip.

    Attributes:
        stamp: changes when the file or folder does.
        rate: frames per second; None where nothing tells it.
        bytes: of all its files.
        sample: hash of a few parts of its content: different for clips that differ, but for rare coincidences.
        fault: why it cannot be read; empty where it can.
    """

    path: str
    stamp: str
    frames: int | None = None
    width: int | None = None
    height: int | None = None
    rate: float | None = None
    bytes: int | None = None
    sample: str | None = None
    fault: str = ""


_COLUMNS = ", ".join(field.name for field in fields(Inspection))
_MARKS = ", ".join("?" for _ in fields(Inspection))


class Store:
    """The tables ``clips`` (what the lists say), ``inspections`` (what the files say) and ``crops`` (their faces).

    Raises, in every method:
        UserError: the file is damaged, of another version of this package, or cannot be written.
        OSError: the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._told():
            self._connection = sqlite3.connect(path)
        try:
            with self._told():
                (version,) = self._connection.execute("PRAGMA user_version").fetchone()
                if version not in (0, _VERSION):
                    raise UserError(f"{path} is of another version of this package; remove it to read the clips again")
                self._connection.executescript(_TABLES + f"PRAGMA user_version = {_VERSION};")
                self._connection.execute("SELECT * FROM clips JOIN inspections USING (path), roots LIMIT 1")
        except BaseException:
            self.close()
            raise

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Says in one line what is wrong with the file."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            name = getattr(error, "sqlite_errorname", "")
            if name == "SQLITE_FULL":
                raise OSError(errno.ENOSPC, "no space left on the disk", str(self.path)) from None
            if name.startswith(_DAMAGED) or "no such column" in str(error):
                what = f"{self.path} is damaged ({error}); remove it, and the clips are read again"
            else:
                what = f"cannot read or write {self.path} ({error}); check the folder's permissions, or give another"
            raise UserError(what) from None

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def list_clips(self, entries: Iterable[Entry]) -> int:
        """Replaces the clips by ``entries``; returns how many they are. A kill leaves those that were there.

        A clip whose name no list can hold is kept under a name that can be written, with its fault.
        """
        unnameable: list[Inspection] = []

        def rows() -> Iterator[tuple[str, int, str, str]]:
            for entry in entries:
                fault = _fault_of_name(entry.path)
                path = encodable(entry.path)
                if fault:
                    path = path.replace("\r", "\\r").replace("\n", "\\n")
                    unnameable.append(Inspection(path, MISSING, fault=fault))
                yield path, entry.label, ",".join(entry.splits), entry.subject

        with self._told(), self._connection:
            self._connection.execute("DELETE FROM clips")
            self._connection.executemany("INSERT INTO clips (path, label, splits, subject) VALUES (?, ?, ?, ?)", rows())
        self.save(unnameable)
        return self.count()

    def count(self) -> int:
        """How many clips there are."""
        (count,) = next(self.ask("SELECT count(*) FROM clips"))
        return int(count)

    def set_root(self, root: Path) -> None:
        """Says which folder the paths start from. What was learnt about the clips of another one is forgotten."""
        path = encodable(str(root.resolve()))
        if [(path,)] != list(self.ask("SELECT path FROM roots")):
            with self._told(), self._connection:
                self._connection.execute("DELETE FROM inspections WHERE stamp != ?", (MISSING,))
                self._connection.execute("DELETE FROM roots")
                self._connection.execute("INSERT INTO roots VALUES (?)", (path,))

    def stamps(self) -> Iterator[tuple[str, str]]:
        """Each clip's path, and its stamp when it was last inspected, in order; empty for one to inspect in any case.

        Such are new ones, and those with a fault: mending a frame in its folder leaves the folder's time as it is.
        """
        stamp = "CASE WHEN fault != '' AND stamp != ? THEN '' ELSE coalesce(stamp, '') END"
        query = f"SELECT clips.path, {stamp} FROM clips LEFT JOIN inspections USING (path) ORDER BY number"
        return self.ask(query, MISSING)

    def save(self, inspections: Iterable[Inspection]) -> None:
        with self._told(), self._connection:
            self._connection.executemany(
                f"INSERT OR REPLACE INTO inspections ({_COLUMNS}) VALUES ({_MARKS})", map(astuple, inspections)
            )

    def save_crops(self, crops: Iterable[tuple[Any, ...]]) -> None:
        """Rows of the table ``crops``, as in :class:`mae_dfer.data.prepare.crop.Crop`."""
        with self._told(), self._connection:
            self._connection.executemany("INSERT OR REPLACE INTO crops VALUES (?, ?, ?, ?, ?, ?, ?, ?)", crops)

    def set(self, column: str, values: Iterable[tuple[Any, str]]) -> None:
        """Sets ``content`` or ``face_share`` of clips: pairs of the value and the path."""
        with self._told(), self._connection:
            self._connection.executemany(f"UPDATE inspections SET {column} = ? WHERE path = ?", values)

    def ask(self, query: str, *values: Any) -> Iterator[Any]:
        """The rows of a query over the tables, a thousand at a time."""
        with closing(self._connection.cursor()) as cursor:
            with self._told():
                rows = cursor.execute(query, values).fetchmany(_BATCH)
            while rows:
                yield from rows
                with self._told():
                    rows = cursor.fetchmany(_BATCH)


def _fault_of_name(path: str) -> str:
    """Why no list can hold a path; empty where one can."""
    if path != encodable(path):
        return "its name is not valid UTF-8; rename it"
    return "its name has a line break; rename it" if "\n" in path or "\r" in path else ""


def first_paths(store: Store, where: str, *values: Any) -> tuple[str, ...]:
    """The first paths of ``SELECT path FROM where``: examples of what was found."""
    query = f"SELECT path FROM {where} ORDER BY number LIMIT {SHOWN}"
    return tuple(path for (path,) in store.ask(query, *values))
