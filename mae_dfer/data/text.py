"""Text files as people save them: their encodings, line ends, quoted fields and separators."""

from __future__ import annotations

import codecs
import re
from collections import deque
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
_QUOTED = r'"[^"]*(?:""[^"]*)*"'
_QUOTED_FIELD = re.compile(_QUOTED)
_SEPARATOR = r"\s*[,;]\s*|\s+"
SEPARATOR = re.compile(_SEPARATOR)
# Quotation marks count around a whole field; inside a name they are part of it.
_FIELD_OR_SEPARATOR = re.compile(rf"{_QUOTED}(?=[\s,;]|$)|(?P<separator>{_SEPARATOR})|[^\s,;]+")


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


def read_lines(path: Path, *, comments: bool = True) -> list[tuple[int, str]]:
    """(line number, stripped text) of the lines that say something. With ``comments``, ``#`` starts one."""
    text = read_text(path).replace("\r\n", "\n").replace("\r", "\n")
    # Files that were joined keep the byte order marks of their parts.
    lines = ((number, line.lstrip("\ufeff").strip()) for number, line in enumerate(text.split("\n"), start=1))
    return [(number, line) for number, line in lines if line and not (comments and line.startswith("#"))]


def unquote(field: str) -> str | None:
    """What ``field`` quotes, as in CSV (``""`` is a quotation mark); None where it is not quoted."""
    if not field.startswith('"') or not _QUOTED_FIELD.fullmatch(field):
        return None
    return field[1:-1].replace('""', '"')


def cut(line: str, most: int) -> list[tuple[str, str]]:
    """(text before, text after) for each of the last ``most`` separators of a line, the last one first.

    A separator is a comma, a semicolon or white space outside quoted fields. The text before is never empty.
    """
    matches = (match for match in _FIELD_OR_SEPARATOR.finditer(line) if match.lastgroup and match.start())
    return [(line[: match.start()], line[match.end() :]) for match in reversed(deque(matches, maxlen=most))]


def columns(line: str) -> list[str]:
    """The fields of a header: separated by tabs, commas or semicolons, or by white space where there are none."""
    fields = re.split(r"\s*[,;\t]\s*", line)
    return [field.strip().strip("\"'") for field in (fields if len(fields) > 1 else line.split())]
