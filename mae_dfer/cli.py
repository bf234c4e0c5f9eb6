"""Command lines derived from dataclasses, and failures in one line.

A field declared with :func:`option` becomes ``--its-name``; a nested dataclass becomes a group whose options
carry the group's name (``pretrain.lr`` is ``--pretrain-lr``). So a setting is written down once: its type,
default, help and choices stand beside each other in ``config.py``.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import functools
import re
import sys
import types
import typing
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from .errors import UserError
from .notes import print_note
from .streams import guarded_streams


class Bounds(typing.NamedTuple):
    """The numbers that an option takes: from ``low`` to ``high``, each without the number itself where it is open."""

    low: float
    high: float
    low_open: bool = False
    high_open: bool = False


def option(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] | None = None,
    metavar: str | None = None,
    bounds: Bounds | None = None,
    may_be_empty: bool = False,
) -> Any:
    """A dataclass field that is also a command-line option.

    Args:
        bounds: of a number, or of each number of a tuple.
        may_be_empty: whether the empty text is a value.
    """
    metadata = {"help": help, "choices": choices, "metavar": metavar, "bounds": bounds, "may_be_empty": may_be_empty}
    return dataclasses.field(default=default, metadata=metadata)


def flag(name: str) -> str:
    """How a setting such as ``finetune.lr`` is spelled on the command line: ``--finetune-lr``."""
    return "--" + name.replace(".", "-").replace("_", "-")


def spell(value: Any) -> str:
    """A setting's value as its option takes it."""
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def letters(name: str) -> str:
    """What spellings of a name have in common: its letters and digits, in lower case."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


class Parser(argparse.ArgumentParser):
    """``argparse`` with ``--version``, that raises :class:`UserError`, and names the nearest valid option."""

    def __init__(self, **kwargs: Any) -> None:
        from . import __version__  # the package is whole by now

        kwargs.setdefault("formatter_class", HelpFormatter)
        super().__init__(allow_abbrev=False, **kwargs)
        self.register("type", Path, _path)
        self.add_argument("--version", action="version", version=f"mae_dfer {__version__}")

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists every option)")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        values, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(self._describe_unknown(unknown[0]))
        return values

    def _describe_unknown(self, argument: str) -> str:
        if not argument.startswith("-"):
            return f"unexpected argument {argument!r}"
        name = argument.split("=")[0]
        near = difflib.get_close_matches(name, self._option_string_actions, n=1, cutoff=0.5)
        return f"unknown option {name}" + (f"; did you mean {near[0]}?" if near else "")


def _path(text: str) -> Path:
    if not text:  # which Path takes for the current folder
        raise argparse.ArgumentTypeError("the name is empty; give that of a file or folder")
    return Path(text)


class HelpFormatter(argparse.HelpFormatter):
    """Wide enough that an option and its help stand on one line."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=110)


class RawHelp(HelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of the examples."""


def add_options(
    parser: argparse._ActionsContainer, config: Any, prefix: str = "", skip: Sequence[str] = ()
) -> None:
    """Adds an option for each :func:`option` field of the dataclass instance (or type) ``config``."""
    hints = typing.get_type_hints(config if isinstance(config, type) else type(config))
    for field in dataclasses.fields(config):
        if "help" not in field.metadata or field.name in skip:
            continue
        flag = f"--{prefix}{field.name}".replace("_", "-")
        kind, text = _scalar_type(hints[field.name]), field.metadata["help"]
        # SUPPRESS: an option that was not given leaves no trace, so presets and given options can be told apart.
        common: dict[str, Any] = {
            "dest": f"{prefix}{field.name}".replace("-", "_"),
            "default": argparse.SUPPRESS,
        }
        if kind is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=text, **common)
        else:
            choices = field.metadata["choices"]
            metavar = None if choices else (field.metadata["metavar"] or _metavar(kind))
            parser.add_argument(
                flag, type=_converter(kind), choices=choices, metavar=metavar, help=text, **common
            )


def _scalar_type(hint: Any) -> Any:
    """``int | None`` → ``int``: an absent value is the default, never typed."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return next(part for part in typing.get_args(hint) if part is not type(None))
    return hint


def _metavar(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        return "N,N…" if Ellipsis in typing.get_args(kind) else ",".join("N" for _ in typing.get_args(kind))
    return {int: "N", float: "X"}.get(kind, "TEXT")


def _converter(kind: Any) -> Callable[[str], Any]:
    if typing.get_origin(kind) is not tuple:
        return kind
    parts = typing.get_args(kind)

    def convert(text: str) -> tuple[Any, ...]:
        items = text.replace("x", ",").split(",")
        if Ellipsis in parts:
            return tuple(parts[0](item) for item in items)
        if len(items) == 1 and parts == (int, int):
            items *= 2  # a square
        if len(items) != len(parts):
            raise argparse.ArgumentTypeError(f"{text!r}: {len(parts)} numbers separated by commas are needed")
        return tuple(part(item) for part, item in zip(parts, items, strict=True))

    convert.__name__ = "list of numbers"
    return convert


def command(main: Callable[[Sequence[str] | None], int]) -> Callable[..., int]:
    """Makes ``main(argv) -> exit code`` end as a command line should.

    It fails in one line and with exit code 2 for what the user can put right, with 130 for Ctrl-C, and with a full
    traceback only for what is our fault. Where standard output is closed, the work is done without it; where it is
    incomplete for another reason, such as a full disk, the exit code is 2 after the work is done.
    """

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None) -> int:
        with guarded_streams() as output, warnings.catch_warnings():
            warnings.showwarning = _show_warning
            code = _exit_code(main, argv)
        return code or (2 if output.is_incomplete else 0)

    return wrapped


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    """In one line, without the place in our code, what we warn of; other packages' warnings as ever."""
    if category.__module__.startswith("mae_dfer"):
        print_note(str(message))
    else:
        text = warnings.formatwarning(message, category, filename, lineno, line)
        print(text, end="", file=file or sys.stderr)


def _exit_code(main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None) -> int:
    try:
        return main(argv)
    except SystemExit as end:  # --help and --version
        if end.code:
            raise
        return 0
    except UserError as error:
        message = " ".join(str(error).split())
        print(f"error: {message}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
