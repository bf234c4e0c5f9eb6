"""What is known about the clips of a data set, in one SQLite file beside the lists that are made from it.

A set of a million files never lies in memory; what was learnt about a file is kept until its size or time changes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from mae_dfer.data.prepare.layout import Entry
from mae_dfer.errors import UserError

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
"""


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
    """The tables ``clips`` (what the lists say) and ``inspections`` (what the files say).

    Raises:
        UserError: the file is damaged, or of another version of this package.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection = sqlite3.connect(path)
        try:
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            if version not in (0, _VERSION):
                raise UserError(f"{path} is of another version of this package; remove it to read the clips again")
            self._connection.executescript(_TABLES + f"PRAGMA user_version = {_VERSION};")
        except sqlite3.DatabaseError as error:
            self.close()
            raise UserError(f"{path} is damaged ({error}); remove it, and the clips are read again") from None

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def list_clips(self, entries: Iterable[Entry]) -> int:
        """Replaces the clips by ``entries``; returns how many they are. A kill leaves those that were there."""
        rows = ((entry.path, entry.label, ",".join(entry.splits), entry.subject) for entry in entries)
        with self._connection:
            self._connection.execute("DELETE FROM clips")
            self._connection.executemany("INSERT INTO clips (path, label, splits, subject) VALUES (?, ?, ?, ?)", rows)
            (count,) = self._connection.execute("SELECT count(*) FROM clips").fetchone()
        return int(count)

    def stamps(self) -> Iterator[tuple[str, str]]:
        """Each clip's path, and its stamp when it was last inspected (empty for never), in order."""
        query = "SELECT clips.path, coalesce(stamp, '') FROM clips LEFT JOIN inspections USING (path) ORDER BY number"
        return self.ask(query)

    def save(self, inspections: Iterable[Inspection]) -> None:
        with self._connection:
            self._connection.executemany(
                f"INSERT OR REPLACE INTO inspections ({_COLUMNS}) VALUES ({_MARKS})", map(astuple, inspections)
            )

    def set(self, column: str, values: Iterable[tuple[Any, str]]) -> None:
        """Sets ``content`` or ``face_share`` of clips: pairs of the value and the path."""
        with self._connection:
            self._connection.executemany(f"UPDATE inspections SET {column} = ? WHERE path = ?", values)

    def ask(self, query: str, *values: Any) -> Iterator[Any]:
        """The rows of a query over the tables, a thousand at a time."""
        with closing(self._connection.cursor()) as cursor:
            cursor.execute(query, values)
            while rows := cursor.fetchmany(_BATCH):
                yield from rows


def first_paths(store: Store, where: str, *values: Any) -> tuple[str, ...]:
    """The first paths of ``SELECT path FROM where``: examples of what was found."""
    query = f"SELECT path FROM {where} ORDER BY number LIMIT {SHOWN}"
    return tuple(path for (path,) in store.ask(query, *values))
