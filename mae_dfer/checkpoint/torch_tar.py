"""Checkpoints in the tar format of PyTorch before 0.1.10: ``storages``, ``tensors`` and ``pickle``.

The first two are pickles with binary numbers among them; the third is the object, which refers to tensors by number.
"""

from __future__ import annotations

import io
import struct
import tarfile
from typing import Any

from .mapped import DamagedFile, MappedFile, WrongFile
from .tensors import CALLS, STORAGE_DTYPES, Storage, make_tensor, storage_of
from .unpickle import read_pickle


def is_tar(head: bytes) -> bool:
    """Whether the first block of a file, 512 bytes, is that of a tar archive."""
    return head[257:262] == b"ustar"


def read_tar(file: MappedFile) -> Any:
    """The object of a checkpoint in the tar format.

    Raises:
        DamagedFile, WrongFile.
    """
    stream = file.stream
    stream.seek(0)
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            members = {member.name: member for member in archive.getmembers()}
    except (tarfile.TarError, ValueError, OverflowError, RecursionError, OSError):
        raise DamagedFile("its tar headers cannot be read") from None
    if not {"storages", "tensors", "pickle"} <= set(members):
        raise WrongFile("a tar archive without a checkpoint's records; if a checkpoint is in it, unpack it first")
    reader = _TarReader(file)
    try:
        for name, read in (
            ("storages", reader.read_storages), ("tensors", reader.read_tensors), ("pickle", reader.read_next)
        ):  # fmt: skip
            stream.seek(members[name].offset_data)
            result = read()
    except (ValueError, TypeError, KeyError, AttributeError, struct.error) as error:
        raise DamagedFile(f"its records do not belong together: {type(error).__name__}") from None
    return result


class _TarReader:
    """The three members in turn; storages and tensors are kept by their number."""

    def __init__(self, file: MappedFile) -> None:
        self._file, self._stream = file, file.stream
        self._objects: dict[str, Any] = {}

    def read_next(self) -> Any:
        return read_pickle(self._stream, CALLS, self._load)

    def _load(self, identity: Any) -> Any:
        if isinstance(identity, tuple) and identity:  # a class, with its source code
            return identity[0]
        return self._objects[_key(identity)]

    def read_storages(self) -> None:
        for _ in range(self.read_next()):
            key, _, kind = self.read_next()
            dtype = STORAGE_DTYPES[kind.name]
            memory, end = self._file.counted_storage(self._stream.tell(), dtype)
            self._objects[_key(key)] = Storage(memory, dtype)
            self._stream.seek(end)
        for key, root, first, count in self.read_next():
            storage = self._objects[_key(root)]
            self._objects[_key(key)] = storage_of(storage.memory, storage.dtype, first, count)

    def read_tensors(self) -> None:
        for _ in range(self.read_next()):
            key, root, _ = self.read_next()
            start, storage = self._stream.tell(), self._objects[_key(root)]
            (dimensions,) = self._file.unpack("<i4x", start)
            numbers = self._file.unpack(f"<{2 * dimensions + 1}q", start + 8)
            size, stride, offset = numbers[:dimensions], numbers[dimensions:-1], numbers[-1]
            self._objects[_key(key)] = make_tensor(storage, storage.dtype, offset, size, stride)
            self._stream.seek(8 + 8 * len(numbers), io.SEEK_CUR)


def _key(number: Any) -> str:
    """Numbers of objects are integers in some places and text in others."""
    if type(number) not in (int, str):
        raise TypeError
    return str(number)
