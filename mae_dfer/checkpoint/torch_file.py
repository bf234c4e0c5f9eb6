"""Reads files of ``torch.save``, in both of their formats, without running anything that they hold.

A file is a pickle and storages, which are flat memory. ``unpickle.py`` reads the pickle, ``tensors.py`` makes tensors
of the storages.

- *Zip* (since PyTorch 1.6): an archive with ``data.pkl`` and a record for each storage.
- *Stream* (before, and ``_use_new_zipfile_serialization=False`` since): pickles, then the storages.
"""

from __future__ import annotations

import io
import itertools
import pickletools
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..files import describe_impostor
from .mapped import DamagedFile, MappedFile, WrongFile
from .tensors import CALLS, Storage, storage_loader, storage_of
from .unpickle import Placeholder, read_pickle

_STREAM_MAGIC = 0x1950A86A20F9469CFC6C
_OTHER_FORMATS = {
    b"\x89HDF\r\n\x1a\n": "an HDF5 file, as Keras writes it; only checkpoints of PyTorch can be read",
    b"\x1f\x8b": "compressed by gzip; unpack it first",
    b"BZh": "compressed by bzip2; unpack it first",
    b"\xfd7zXZ\x00": "compressed by xz; unpack it first",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive; unpack it first",
    b"Rar!": "a RAR archive; unpack it first",
}


def read_torch_file(path: Path) -> Any:
    """The object that ``torch.save`` wrote to ``path``, with its tensors on the CPU.

    Parameters and other subclasses become plain tensors. Sparse, quantised, nested, meta, conjugated and expanded
    tensors become placeholders, and so does every object that is not a plain value (see ``read_pickle``). Tensors
    share the memory of the file, copied on write.

    Raises:
        UserError: a file that is missing, damaged, cut short, or of another kind; the message says which.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        impostor = describe_impostor(path)
        if impostor is not None:
            raise WrongFile(impostor)
        with path.open("rb") as file:
            return _read(MappedFile(file))
    except WrongFile as error:
        raise UserError(f"{path} is {error}") from None
    except DamagedFile as error:
        raise UserError(f"{path} is damaged or cut short ({error}); download or copy it again") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def _read(file: MappedFile) -> Any:
    head = file.stream.read(16)
    for start, description in _OTHER_FORMATS.items():
        if head.startswith(start):
            raise WrongFile(description)
    if head.startswith(b"PK"):
        return _read_zip(file)
    if head.startswith(b"\x80"):
        return _read_stream(file)
    raise WrongFile(f"not a checkpoint: it begins with {head[:8]!r}, as no file of torch.save or safetensors does")


def _read_zip(file: MappedFile) -> Any:
    try:
        with zipfile.ZipFile(file.stream) as archive:
            records = {record.filename: record for record in archive.infolist()}
    except (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError, OverflowError, OSError):
        raise DamagedFile("the directory at the end of its zip archive cannot be read") from None
    pickles = [name for name in records if name.endswith("/data.pkl")]
    if not pickles:
        raise WrongFile("a zip archive without a checkpoint's data.pkl; if a checkpoint is in it, unzip it first")
    folder = min(pickles, key=len).removesuffix("data.pkl")
    if folder + "constants.pkl" in records:
        raise WrongFile("a TorchScript archive, a program; load it with torch.jit.load and save its state_dict()")

    def locate(name: str) -> tuple[int, int]:
        """Where the bytes of a record start, and how many there are."""
        record = records.get(folder + name)
        if record is None:
            raise DamagedFile("its zip archive lacks a record")
        if record.compress_type != zipfile.ZIP_STORED or record.file_size != record.compress_size:
            raise WrongFile("a checkpoint that was compressed afterwards; unzip it and zip it without compression")
        signature, name_length, extra_length = file.unpack("<4s22xHH", record.header_offset)
        if signature != b"PK\x03\x04":
            raise DamagedFile("its zip archive has no record where there should be one")
        return record.header_offset + 30 + name_length + extra_length, record.file_size

    _check_byte_order(file.read(*locate("byteorder")) if folder + "byteorder" in records else b"little")
    storages: dict[str, Tensor] = {}

    def take(key: str, dtype: torch.dtype, count: int, view: list[Any]) -> Storage:
        if key not in storages:
            storages[key] = file.storage(*locate(f"data/{key}"))
            expected = records[f"{folder}data/{key}"].CRC
            if expected and zlib.crc32(storages[key].numpy().data) != expected:  # 0: it was written without
                raise DamagedFile("a storage does not have its checksum")
        return storage_of(storages[key], dtype, 0, count)

    return read_pickle(io.BytesIO(file.read(*locate("data.pkl"))), CALLS, storage_loader(take))


def _read_stream(file: MappedFile) -> Any:
    stream = file.stream
    dtypes: dict[str, torch.dtype] = {}
    storages: dict[str, Tensor] = {}

    def note_dtype(key: str, dtype: torch.dtype, count: int, view: list[Any]) -> Placeholder:
        dtypes.setdefault(key, dtype)
        return Placeholder("storage")

    def take(key: str, dtype: torch.dtype, count: int, view: list[Any]) -> Storage:
        if key not in storages:
            raise DamagedFile("it lacks a storage")
        storage = storage_of(storages[key], dtype, 0, count)
        match view:
            case [(_, int(first), int(length))]:
                return storage_of(storage.memory, dtype, first, length)
        return storage

    def read_next(take: Callable[..., Storage | Placeholder] = note_dtype) -> Any:
        return read_pickle(stream, CALLS, storage_loader(take))

    _check_magic(file)
    _check_byte_order(b"little")
    stream.seek(0)
    for _ in ("magic number", "version", "platform"):
        read_next()
    start = stream.tell()
    # The storages follow the pickle that says of which dtype they are, so the pickle is read twice.
    read_next()
    keys = read_next()
    position = stream.tell()
    for key in keys if type(keys) is list else ():
        if type(key) is not str or key not in dtypes:
            raise DamagedFile("it has a storage of an unknown type")
        storages[key], position = file.counted_storage(position, dtypes[key])
    stream.seek(start)
    return read_next(take)


def _check_magic(file: MappedFile) -> None:
    """A stream begins with a number of its own, pickled; another pickle is no checkpoint."""
    file.stream.seek(0)
    try:
        first = [argument for _, argument, _ in itertools.islice(pickletools.genops(file.stream), 3)]
    except ValueError:
        raise DamagedFile("its first pickle is invalid") from None
    if _STREAM_MAGIC not in first:
        raise WrongFile("a plain pickle, not a checkpoint; save the state_dict() of its model with torch.save")


def _check_byte_order(written: bytes) -> None:
    if written != sys.byteorder.encode():
        raise WrongFile(f"of the byte order {written!r:.20}; load and save it on a machine of that order")
