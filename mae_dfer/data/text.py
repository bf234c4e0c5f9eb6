"""Text files as people save them: their encodings and line ends."""

from __future__ import annotations

import codecs
from pathlib import Path

from mae_dfer.errors import UserError

# UTF-32 first: its little-endian mark starts with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path) -> str:
    """The text of a file: UTF-8, or UTF-16 or UTF-32 that starts with a byte order mark.

    Raises: UserError naming the file where it is missing, cannot be read or is encoded otherwise.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"list file not found: {path} (check the path)") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; it must be a UTF-8 text file") from None
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        where = f"line {data.count(10, 0, error.start) + 1} is not UTF-8 text"
        if not encoding.startswith("utf-8"):
            where = f"it has the byte order mark of {encoding.upper()} but is no such text"
        raise UserError(
            f"cannot read {path}: {where}; save it as UTF-8 (in an editor, or with iconv -f OLD_ENCODING -t UTF-8)"
        ) from None
    if "\0" in text:
        raise UserError(f"cannot read {path}: it holds zero bytes, so it is not UTF-8 text; save it as UTF-8")
    return text


def read_lines(path: Path) -> list[tuple[int, str]]:
    """(line number, stripped text) of the lines that say something; ``#`` starts a comment line."""
    text = read_text(path).replace("\r\n", "\n").replace("\r", "\n")
    # Files that were joined keep the byte order marks of their parts.
    lines = ((number, line.lstrip("\ufeff").strip()) for number, line in enumerate(text.split("\n"), start=1))
    return [(number, line) for number, line in lines if line and not line.startswith("#")]
