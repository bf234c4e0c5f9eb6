"""A file as memory, and what can be wrong with a file."""

from __future__ import annotations

import mmap
import struct
from io import BufferedReader
from typing import IO, Any, cast

import torch
from torch import Tensor

_ALIGNMENT = 16  # bytes, the size of the largest element


class DamagedFile(Exception):
    """A file that contradicts its format. The message is the reason, without the file's name."""


class WrongFile(Exception):
    """A file of another kind. The message continues "FILE is …" and says what to do."""


class MappedFile:
    """The bytes of a file, which must stay open: read as numbers, as pickles, or as tensors that share the memory.

    Attributes:
        stream: all bytes, with a position. It is the map itself: a read of more bytes than there are, as a damaged
            file may ask for, allocates no more than there are.
    """

    def __init__(self, file: BufferedReader) -> None:
        self._file = file
        # Copied on write: PyTorch wants memory that may be written to, and the file must stay as it is.
        self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._bytes = torch.frombuffer(self._map, dtype=torch.uint8)
        self._left = len(self._map)  # bytes that no storage has taken
        self.stream = cast(IO[bytes], self._map)

    def read(self, start: int, size: int) -> bytes:
        self._check(start, size)
        return self._map[start : start + size]

    def unpack(self, layout: str, start: int) -> tuple[Any, ...]:
        """Numbers at ``start``; ``layout`` as for the module ``struct``."""
        self._check(start, struct.calcsize(layout))
        return struct.unpack_from(layout, self._map, start)

    def storage(self, start: int, size: int) -> Tensor:
        """(size,) uint8 that can be viewed as any dtype: memory of the map, or a copy where that is not aligned.

        Storages of a file do not overlap; if they did, copies could take far more memory than the file is long.
        """
        self._check(start, size)
        self._left -= size
        if self._left < 0:
            raise DamagedFile("its storages overlap")
        if start % _ALIGNMENT == 0:
            return self._bytes[start : start + size]
        memory = torch.empty(size, dtype=torch.uint8)
        self._file.seek(start)
        if self._file.readinto(memory.numpy().data) != size:
            raise DamagedFile("it became shorter while it was read")
        return memory

    def counted_storage(self, start: int, dtype: torch.dtype) -> tuple[Tensor, int]:
        """A storage that its number of elements precedes, and the position after it."""
        (count,) = self.unpack("<q", start)
        size = count * dtype.itemsize
        return self.storage(start + 8, size), start + 8 + size

    def _check(self, start: int, size: int) -> None:
        if not 0 <= start <= start + size <= len(self._map):
            raise DamagedFile("it ends before its data do")
