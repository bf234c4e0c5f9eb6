"""Whether values may be settings, told by the types of their fields and by the choices and bounds of their options."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar

from .cli import Bounds
from .errors import UserError
from .files import printable

Settings = TypeVar("Settings")

_ANY_NUMBER = Bounds(-1e30, 1e30)  # what float32 holds, and products with it
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_SEVERAL = {int: "whole numbers", float: "numbers"}


def read_settings(kind: type[Settings], values: Any, place: str = "") -> Settings:
    """A dataclass of settings from what JSON holds of it: names and values, lists in place of tuples.

    Args:
        place: what precedes the names in messages, such as ``pretrain.``.

    Raises:
        UserError: a name that is no field (with the nearest that is), a value of another type than its field, one that
            is no choice of its option, or one that is out of its bounds.
    """
    if not isinstance(values, dict):
        raise UserError(f"{place.rstrip('.') or 'settings'}: settings are names and values, not {_show(values)}")
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    read: dict[str, Any] = {}
    for name, value in values.items():
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            raise UserError(
                f"unknown setting {_show(place + name)}" + (f"; did you mean {place + near[0]!r}?" if near else "")
            )
        if dataclasses.is_dataclass(hints[name]):
            read[name] = read_settings(hints[name], value, f"{place}{name}.")
        else:
            read[name] = _read(f"{place}{name}", value, hints[name], fields[name].metadata)
    return kind(**read)


def check_settings(settings: Any, spell: Callable[[str, str], str], group: str = "") -> None:
    """Raises :class:`UserError` where a value of a dataclass of settings is none that :func:`read_settings` takes.

    Args:
        spell: the name of a setting in messages, from its group, such as ``pretrain``, and its own name.
    """
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            check_settings(value, spell, field.name)
        else:
            _read(spell(group, field.name), value, hints[field.name], field.metadata)


def _read(name: str, value: Any, hint: Any, metadata: typing.Mapping[str, Any]) -> Any:
    try:
        value = _fit(value, hint)
    except TypeError:
        raise UserError(f"{name} is {_show(value)}, where {_describe(hint)} belongs") from None
    problem = _find_problem(value, metadata)
    if problem:
        raise UserError(f"{name} {problem}")
    return value


def _fit(value: Any, hint: Any) -> Any:
    """``value`` in the type that ``hint`` wants. Raises TypeError where it is of another."""
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) is tuple:
        parts = typing.get_args(hint)
        if not isinstance(value, (list, tuple)):
            raise TypeError
        if Ellipsis in parts:
            parts = (parts[0],) * max(len(value), 1)
        if len(value) != len(parts):
            raise TypeError
        return tuple(_fit(item, part) for item, part in zip(value, parts, strict=True))
    if type(value) is not hint and not (hint is float and type(value) is int):
        raise TypeError
    return value


def _describe(hint: Any) -> str:
    if isinstance(hint, types.UnionType):
        return " or ".join("null" if part is type(None) else _describe(part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        parts = typing.get_args(hint)
        count = "a list of" if Ellipsis in parts else f"{len(parts)}"
        return f"{count} {_SEVERAL[parts[0]]}"
    return _KINDS[hint]


def _find_problem(value: Any, metadata: typing.Mapping[str, Any]) -> str | None:
    """What is wrong with a value of the right type, as the rest of a sentence that its name begins."""
    choices = metadata.get("choices")
    if value is None or isinstance(value, bool):
        return None
    if choices:
        return None if value in choices else f"is {_show(value)}; it must be one of {', '.join(choices)}"
    if isinstance(value, str):
        return _find_problem_of_text(value, bool(metadata.get("may_be_empty")))
    bounds = metadata.get("bounds") or _ANY_NUMBER
    numbers = value if isinstance(value, tuple) else (value,)
    return next((_describe_bounds(number, bounds) for number in numbers if not _lies_within(number, bounds)), None)


def _find_problem_of_text(text: str, may_be_empty: bool) -> str | None:
    if not text and not may_be_empty:
        return "is empty; give a name, or leave it out"
    if "\0" in text:
        return f"is {_show(text)}, which holds a zero byte"
    try:
        text.encode()
    except UnicodeEncodeError:
        return f"is {_show(text)}, which is not valid UTF-8; rename what it names"
    return None


def _lies_within(number: float, bounds: Bounds) -> bool:
    low, high, low_open, high_open = bounds
    return (low < number if low_open else low <= number) and (number < high if high_open else number <= high)


def _describe_bounds(number: float, bounds: Bounds) -> str:
    low, high, low_open, high_open = bounds
    if high <= 1:
        text = f"must lie in {'(' if low_open else '['}{low}, {high}{')' if high_open else ']'}"
    elif number > low:
        text = f"must be {'below' if high_open else 'at most'} {high}"
    elif low_open:
        text = f"must be above {low}"
    else:
        text = "must be 0 or more" if low == 0 else f"must be at least {low}"
    return f"{text}, got {_show(number)}"


def _show(value: Any) -> str:
    return printable(repr(value), 60)
