"""What a load did, and the one check that everything fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ..errors import UserError
from ..files import printable

_NAMES_SHOWN = 3


@dataclass
class LoadReport:
    """What a load did with every tensor.

    Attributes:
        loaded: the model's names that were taken from the file.
        dropped: the file's names that the model has no use for.
        fresh: the model's names that keep their initialisation.
        note: one line on a choice that the load made, or nothing.
    """

    loaded: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    note: str = ""


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items()}


def check_match(given: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Raises :class:`UserError` with the first few names that are missing, unexpected or of another shape."""
    problems = []
    for what, names in (
        ("missing", [name for name in expected if name not in given]),
        ("unexpected", [name for name in given if name not in expected]),
    ):
        if names:
            problems.append(f"{what} {first_few(names)}")
    wrong = [f"{name} {given[name]} for {shape}" for name, shape in expected.items() if given.get(name, shape) != shape]
    if wrong:
        problems.append(f"other shape (file for model): {first_few(wrong)}")
    if problems:
        raise UserError(
            f"{where} does not fit the model: {'; '.join(problems)}; "
            "check the model's name, sizes and number of classes"
        )


def first_few(names: Sequence[str]) -> str:
    """The first names, on one line, and how many more there are."""
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(printable(name) for name in names[:_NAMES_SHOWN]) + more
