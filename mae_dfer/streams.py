"""Standard output and error of a command: neither a closed stream nor a character that it lacks ends the work."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast


class Stream:
    """A text stream whose ``write`` never fails.

    A character that the encoding lacks becomes "?". Once the stream cannot be written, because its reader has gone or
    a disk is full, the rest is dropped; that is said once on standard error.

    Attributes:
        failure: why the stream cannot be written; None while it can.
    """

    def __init__(self, stream: TextIO | None, name: str) -> None:
        self._stream = stream or open(os.devnull, "w", encoding="utf-8")  # None: it was closed before the start
        self._name = name
        self._is_last = False
        self.failure: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if self.failure is None:
            try:
                try:
                    self._stream.write(text)
                except UnicodeEncodeError:
                    encoding = self._stream.encoding
                    self._stream.write(text.encode(encoding, "replace").decode(encoding))
            except OSError as error:
                self._fail(error)
        return len(text)

    def flush(self) -> None:
        if self.failure is None:
            try:
                self._stream.flush()
            except OSError as error:
                self._fail(error)

    def finish(self) -> None:
        """The last :meth:`flush`: a reader that is gone by now, such as ``head``, has seen what it wanted."""
        self._is_last = True
        self.flush()

    @property
    def is_incomplete(self) -> bool:
        """Whether its reader, which is still there, misses a part of the text, as on a full disk."""
        return self.failure is not None and not isinstance(self.failure, BrokenPipeError)

    def _fail(self, error: OSError) -> None:
        self.failure = error
        # What Python still holds of the text would fail once more when it exits.
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        if self.is_incomplete or not self._is_last:
            consequence = "the end of it is missing" if self._is_last else "going on without it"
            print(f"note: {self._name} cannot be written ({error.strerror}); {consequence}", file=sys.stderr)


@contextlib.contextmanager
def guarded_streams() -> Iterator[Stream]:
    """``sys.stdout``, which is returned, and ``sys.stderr`` as :class:`Stream`."""
    out, err = Stream(sys.stdout, "stdout"), Stream(sys.stderr, "stderr")
    with contextlib.redirect_stdout(cast(TextIO, out)), contextlib.redirect_stderr(cast(TextIO, err)):
        try:
            yield out
        finally:
            out.finish()
            err.finish()
