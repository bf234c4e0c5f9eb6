"""What the user should know although nothing is wrong: one line on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable

Say = Callable[[str], None]


def print_note(message: str) -> None:
    """Prints ``note: message`` on stderr: the default of functions that take ``say``."""
    print(f"note: {message}", file=sys.stderr)


def print_notes_once() -> Say:
    """:func:`print_note`, but for messages that it has printed before."""
    said: set[str] = set()

    def say(message: str) -> None:
        if message not in said:
            said.add(message)
            print_note(message)

    return say


def keep_quiet(message: str) -> None:
    """Drops ``message``: for ``say`` where another process prints it."""
