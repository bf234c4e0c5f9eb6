"""What ends a run from outside: a full disk, a decoding process that was killed."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import UserError


@contextmanager
def explained(run: Path) -> Iterator[None]:
    """Says in one line what the run in folder ``run`` met and could not help.

    Raises:
        UserError: its disk is full, or a decoding process was killed.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(next(folder for folder in run.absolute().parents if folder.exists())).free / 1e6
        raise UserError(
            f"{run}: {error.strerror}, {free:.1f} MB are free on its disk; make room there{_how_to_go_on(run)}"
        ) from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        if "DataLoader worker (pid" in reason:
            raise UserError(
                f"a decoding process died ({reason}), perhaps because memory ran out; "
                f"try fewer --workers or a smaller --cache-gb{_how_to_go_on(run)}"
            ) from error
        if "torch_" in reason and "No space left on device" in reason:
            raise UserError(
                "the shared memory through which decoding processes pass clips is full; "
                f"try fewer --workers{_how_to_go_on(run)}"
            ) from error
        raise


def _how_to_go_on(run: Path) -> str:
    """Nothing where the run has not begun: its folder is removed."""
    return f"; --resume {run} goes on from its last checkpoint" if (run / "log.jsonl").exists() else ""
