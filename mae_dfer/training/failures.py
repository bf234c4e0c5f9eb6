"""What ends a run from outside: signals, a full disk, a decoding process that was killed."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from ..errors import UserError


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM ends this process as Ctrl-C does, through every ``finally``; its exit code is 143.

    Child processes that are forked meanwhile ignore Ctrl-C, which a terminal sends to them too: their parent ends them.
    On SIGTERM, which a scheduler sends to all, they end without a failure, which their parent would report as its own.
    A second signal ends this process at once. Outside the main thread, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    parent, received = os.getpid(), list[int]()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != parent:
            if number == signal.SIGTERM:
                os._exit(0)
            return
        for one in before:
            signal.signal(one, signal.SIG_DFL)
        received.append(number)
        if number == signal.SIGTERM:
            os.write(2, b"terminated\n")  # print may have been interrupted itself
        raise _end_by(number)

    handlers = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    # One that is ignored stays so, as for a command that a script has put in the background.
    before = {one: handler for one, handler in handlers.items() if handler not in (None, signal.SIG_IGN)}
    for one in before:
        signal.signal(one, end)
    try:
        yield
    except Exception:
        if received:  # what was interrupted made another failure of it, as torch.save does
            raise _end_by(received[0]) from None
        raise
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _end_by(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)


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
