"""The published settings of each data set: a TOML file for each, which a person reads at a glance.

A file has
    title, note       what it is of, and what else there is to know of its numbers
    set               the data set, as dataset.json names it
    starts_from       the recipe whose weights the published run starts from
    [settings]        the published value of each setting, by its name in config.json
    [differs]         settings that a run of this package has otherwise unless their options are given

``differences.toml`` says why those differ, and what differs and has no option.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from ..cli import letters
from ..config import RECIPES, TrainConfig
from ..errors import UserError
from ..settings_check import read_settings

# What makes up a model besides its clips: a recipe's values are of its own model.
_OF_THE_MODEL = (
    "patch_size", "region_size", "embed_dim", "depth", "num_heads", "local_attention", "global_attention", "exchange",
    "share_attention", "pool", "decoder_depth", "decoder_embed_dim", "decoder_num_heads",
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """A recipe file.

    Attributes:
        published: the published value of each setting that the file names, by names such as ``finetune.lr``.
        differs: what a run has instead of some of them.
    """

    name: str
    title: str
    set: str
    published: Mapping[str, Any]
    differs: Mapping[str, Any]
    starts_from: str | None = None
    note: str = ""

    def config(self, model: str | None = None) -> TrainConfig:
        """The settings of a run: the published ones, but for :attr:`differs`.

        Args:
            model: another model than the recipe's, which then has its own sizes.
        """
        values = {**self.published, **self.differs, "preset": "base", "recipe": self.name}
        if model not in (None, values["model"]):
            values = {name: value for name, value in values.items() if name not in _OF_THE_MODEL}
        return read_settings(TrainConfig, _nested(values))

    def reasons(self, name: str) -> list[str]:
        """Why a run has what :attr:`differs` says of the setting ``name``."""
        texts = _read("differences")[name][self.differs[name]]
        return [*texts.get(self.published["stage"], ()), *texts["both"]]

    def unlike(self) -> list[dict[str, str]]:
        """What differs and has no option: ``what``, ``here``, ``published``."""
        return [one for one in _read("differences")["unlike"] if one["stage"] in (self.published["stage"], "both")]


def find_recipe(name: str) -> str:
    """The name of a recipe from a spelling of it, in any case, with or without ``-``, ``_`` and the like.

    Raises:
        UserError: there is none of that name; the message has the nearest.
    """
    known = {letters(recipe): recipe for recipe in RECIPES}
    if letters(name) in known:
        return known[letters(name)]
    near = difflib.get_close_matches(letters(name), known, n=1)
    hint = f"; did you mean {known[near[0]]}?" if near else ""
    raise UserError(f"--recipe {name!r}: there are {', '.join(RECIPES)}{hint}")


def load_recipe(name: str) -> Recipe:
    """The recipe of a name in ``RECIPES``.

    Raises:
        UserError: its file has a setting that is none, or a value that is none of its setting.
    """
    values = _read(name)
    try:
        read_settings(TrainConfig, values["settings"])
    except UserError as error:
        raise UserError(f"recipe {name}: {error}") from None
    values["published"] = flatten(values.pop("settings"))
    return Recipe(name, **values)


def flatten(settings: Mapping[str, Any] | TrainConfig) -> dict[str, Any]:
    """Settings by names such as ``finetune.lr``; lists as tuples."""
    if isinstance(settings, TrainConfig):
        settings = dataclasses.asdict(settings)
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": one for inner, one in flatten(value).items()}
        else:
            flat[name] = tuple(value) if isinstance(value, list) else value
    return flat


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`flatten`."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        group, _, setting = name.rpartition(".")
        (nested.setdefault(group, {}) if group else nested)[setting] = value
    return nested


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads(resources.files(__name__).joinpath(f"{name}.toml").read_text(encoding="utf-8"))
