"""What the user should know although nothing is wrong: one line on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable

Say = Callable[[str], None]


def print_note(message: str) -> None:
    """Prints ``note: message`` on stderr: the default of functions that take ``say``."""
    print(f"note: {message}", file=sys.stderr)


def keep_quiet(message: str) -> None:
    """Drops ``message``: for ``say`` where another process prints it."""
