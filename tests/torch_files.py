"""Files of ``torch.save`` in each format, and the same files with other pickles or records in them."""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

FORMATS = ("zip", "stream")


def save(value: Any, path: Path, layout: str = "zip", protocol: int = 2) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=layout == "zip", pickle_protocol=protocol)
    return path


def rewrite_zip(path: Path, change: Callable[[dict[str, bytes]], Any], compression: int = zipfile.ZIP_STORED) -> None:
    """Applies ``change`` to the records of a zip checkpoint, by their name within its folder."""
    with zipfile.ZipFile(path) as archive:
        records = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
    change(records)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in records.items():
            archive.writestr(f"archive/{name}", content)


def pickle_ends(content: bytes, count: int) -> list[int]:
    """Where each of the first ``count`` pickles of a file ends."""
    stream, ends = io.BytesIO(content), []
    for _ in range(count):
        for _ in pickletools.genops(stream):
            pass
        ends.append(stream.tell())
    return ends


def add_entry(path: Path, instructions: bytes) -> None:
    """Adds ``payload`` to the dictionary that a checkpoint holds: the value that these instructions push."""
    entry = b"X\x07\x00\x00\x00payload" + instructions + b"s."
    if zipfile.is_zipfile(path):
        rewrite_zip(path, lambda records: records.update({"data.pkl": records["data.pkl"][:-1] + entry}))
    else:
        content = path.read_bytes()
        end = pickle_ends(content, 4)[3]
        path.write_bytes(content[: end - 1] + entry + content[end:])
