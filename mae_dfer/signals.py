"""Ends commands by signals as by Ctrl-C: through every ``finally``, in one line, wherever the signal comes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# Of this process: how many blocks hold signals back, those that came meanwhile, and what ends the process.
_held, _waiting = 0, list[int]()
_end: Callable[[int], None] | None = None


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM ends this process as Ctrl-C does, through every ``finally``; its exit code is 143.

    Child processes that are forked meanwhile ignore Ctrl-C, which a terminal sends to them too: their parent ends them.
    On SIGTERM, which a scheduler sends to all, they end without a failure, which their parent would report as its own.
    A second signal ends this process at once. Outside the main thread, nothing changes.
    """
    global _end
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    parent, received = os.getpid(), list[int]()

    def end(number: int) -> None:
        for one in before:
            signal.signal(one, signal.SIG_DFL)
        received.append(number)
        if number == signal.SIGTERM:
            os.write(2, b"terminated\n")  # print may have been interrupted itself
        raise _ending(number)

    def hear(number: int, frame: FrameType | None) -> None:
        if os.getpid() != parent:
            if number == signal.SIGTERM:
                os._exit(0)
        elif _held:
            _waiting.append(number)
        else:
            end(number)

    handlers = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    # One that is ignored stays so, as for a command that a script has put in the background.
    before = {one: handler for one, handler in handlers.items() if handler not in (None, signal.SIG_IGN)}
    for one in before:
        signal.signal(one, hear)
    outer, _end = _end, end
    try:
        yield
    except Exception:
        if received:  # what was interrupted made another failure of it, as torch.save does
            raise _ending(received[0]) from None
        raise
    finally:
        _end = outer
        _waiting.clear()
        for one, handler in before.items():
            signal.signal(one, handler)


@contextmanager
def held_signals() -> Iterator[None]:
    """Lets a signal wait for the end of this block: what a handler raises within a fork, Python prints and drops."""
    global _held
    _held += 1
    try:
        yield
    finally:
        _held -= 1
        if _waiting and not _held and _end is not None:
            _end(_waiting.pop())


def _ending(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
