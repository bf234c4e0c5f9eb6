"""One process at a time writes to a run folder."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import UserError
from ..files import write_atomically

# What a file system without locks answers, such as NFS without its lock service.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_GRACE = 10.0  # seconds in which the decoding processes of a killed run notice that it is gone, and end


class RunLock:
    """The lock of the run folder ``path``, which must exist. The operating system releases it when its holder dies.

    ``.lock`` is what is locked; ``.holder.json`` says who holds it.

    Raises:
        UserError: another process has it; the message names process, machine and time.
    """

    def __init__(self, path: Path, say: Callable[[str], Any]) -> None:
        self._lock, self._holder = FileLock(path / ".lock"), path / ".holder.json"
        holder = self._read_holder()
        try:
            self._lock.acquire(timeout=_GRACE if _is_dead(holder) else 0)
        except Timeout:
            who = _describe(self._read_holder())
            raise UserError(f"{path} is in use by {who}; wait for its end, or end it") from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            say(f"{path}: its file system has no locks; see to it that no other process goes on with this run")
        since = f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S %z}"
        text = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since})
        write_atomically(self._holder, lambda temporary: temporary.write_text(text + "\n"))

    def release(self) -> None:
        with contextlib.suppress(OSError):
            self._holder.unlink(missing_ok=True)
            Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()

    def check_place(self) -> None:
        """Raises UserError where the folder was moved or removed: what is written to its old name is not in it."""
        held = self._lock._context.lock_file_fd
        with contextlib.suppress(OSError):
            if held is None or os.path.samestat(os.fstat(held), os.stat(self._lock.lock_file)):
                return
        folder = Path(self._lock.lock_file).parent
        raise UserError(f"{folder} was moved or removed while it was written; --resume goes on with it where it is now")

    def _read_holder(self) -> dict[str, Any]:
        try:
            holder = json.loads(self._holder.read_text())
        except (OSError, ValueError):
            return {}
        return holder if isinstance(holder, dict) else {}


def _is_dead(holder: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine that is no more. Its children may still have the lock."""
    if holder.get("host") != socket.gethostname() or not isinstance(holder.get("pid"), int) or os.name == "nt":
        return False  # on Windows, the call below would end the process
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


def _describe(holder: dict[str, Any]) -> str:
    if not holder:
        return "another process"
    return f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('since')}"
