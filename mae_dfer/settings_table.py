"""Every setting of a run as a table, beside the published ones of its recipe."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from rich.table import Table

from .cli import flag
from .config import TrainConfig
from .models import configure_model
from .recipes import Recipe, flatten, load_recipe
from .training.progress import console

_GROUPS = {"": "run, clips and model", "pretrain": "pre-training", "finetune": "fine-tuning"}
_PER_256 = ("lr", "min_lr")


def print_settings(config: TrainConfig, given: Collection[str]) -> None:
    """Prints the settings that a run would have.

    Args:
        given: the options on the command line, by names such as ``finetune_lr``, or ``lr`` for both stages.

    Raises:
        UserError: a model that is impossible.
    """
    recipe = load_recipe(config.recipe) if config.recipe else None
    table, differ = _make_table(config, recipe, given)
    console.print(recipe.title if recipe else f"preset {config.preset}", style="bold")
    if recipe and recipe.note:
        console.print(recipe.note)
    console.print(table, soft_wrap=False)
    if recipe:
        console.print(f"{differ} settings differ from the published ones" if differ else "all settings as published")
        console.print("Besides, and without an option:")
        for one in recipe.unlike():
            console.print(f"  {one['what']}: {one['here']}; published: {one['published']}")


def _make_table(config: TrainConfig, recipe: Recipe | None, given: Collection[str]) -> tuple[Table, int]:
    """The table, and how many settings in it differ from the published ones."""
    stages = {"all": ("pretrain", "finetune")}.get(config.stage, (config.stage,))
    sizes = _sizes(config, stages)
    table = Table("setting", "value", *(["published", "why it differs"] if recipe else ["given"]))
    differ, last = 0, ""
    for name, value in flatten(config).items():
        group = name.rpartition(".")[0]
        if group and group not in stages:
            continue
        if group != last:
            table.add_section()
            table.add_row(_GROUPS[group], style="italic")
            last = group
        of_model = value is None and name in sizes
        value = sizes[name] if of_model else value
        text = _show(value)
        if name == "data" and "recipe" in given and "data" not in given:
            text = "to be given"
        if name.rpartition(".")[2] in _PER_256 and group:
            text += _scaled(value, getattr(config, group).batch_size)
        if recipe is None:
            table.add_row(flag(name), text, "yes" if _is_given(name, given) else "")
            continue
        published, why = _compare(recipe, name, value, given)
        if why and of_model:
            why = [f"of --model {config.model}"]
        differ += bool(why)
        reasons = "\n".join(f"• {reason}" if len(why) > 1 else reason for reason in why)
        table.add_row(flag(name), text, published, reasons, style="bold" if why else None)
    return table, differ


def _compare(recipe: Recipe, name: str, value: Any, given: Collection[str]) -> tuple[str, list[str]]:
    """The published value of a setting, and why that of the run is another; empty where it is not."""
    if name == "init_from" and recipe.starts_from:
        published = f"weights of --recipe {recipe.starts_from}"
        return published, [] if value else ["--init-from is not given: the run starts from scratch"]
    if name not in recipe.published:
        return "", []
    published = recipe.published[name]
    if value == published:
        return _show(published), []
    if name in recipe.differs and value == recipe.differs[name]:
        return _show(published), recipe.reasons(name)
    return _show(published), ["given on the command line" if _is_given(name, given) else "given when the run began"]


def _is_given(name: str, given: Collection[str]) -> bool:
    return name.replace(".", "_") in given or ("." in name and name.rpartition(".")[2] in given)


def _sizes(config: TrainConfig, stages: Collection[str]) -> dict[str, Any]:
    """The sizes and options of the models, for settings that leave them to these."""
    sizes: dict[str, Any] = {}
    if "pretrain" in stages:
        sizes |= configure_model(f"mae_{config.model}", config.model_overrides(pretraining=True)).to_dict()
    if stages != ("pretrain",):
        sizes |= configure_model(config.model, config.model_overrides(pretraining=False)).to_dict()
    return flatten(sizes)


def _show(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return ",".join(map(_show, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "–" if value is None else str(value)


def _scaled(rate: float, batch_size: int) -> str:
    return f" × {batch_size}/256 = {rate * batch_size / 256:.4g}"
