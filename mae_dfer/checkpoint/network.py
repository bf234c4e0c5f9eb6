"""Finds the network in a checkpoint of the published code, or of code that wraps it.

State dicts lie under ``model``, ``module``, ``state_dict``, … and their names may begin with ``module.``,
``_orig_mod.``, ``backbone.``, … So a network is found by its first layer, the patch embedding: what precedes that name
is the prefix of the network, and names without the prefix are of something else, such as a loss.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import UserError
from ..files import printable
from .own import is_safetensors, read_safetensors
from .report import first_few
from .torch_file import read_torch_file
from .unpickle import Placeholder

WEIGHTS = ("auto", "model", "ema")

_FIRST_LAYER = "patch_embed.proj.weight"
_AVERAGE = re.compile(r"(^|[^a-z])ema($|[^a-z])", re.IGNORECASE)
_MAX_DEPTH = 5  # of dictionaries in each other
_MAX_NETWORKS = 8  # in one dictionary


@dataclass
class Network:
    """One network of a checkpoint.

    Attributes:
        source: the file, for messages.
        place: keys and prefix that lead to it, such as ``state_dict: model.``; empty for a bare state dict.
        values: what its state dict holds by published name. Mostly tensors; who takes one checks that it is one.
        outside: names of the same state dict that do not have its prefix.
        note: one line on the choice of this network rather than another, or nothing.
    """

    source: str
    place: str
    values: dict[str, Any]
    outside: list[str]
    note: str = ""

    @property
    def is_average(self) -> bool:
        """Whether these are moving averages (EMA) of a network's weights."""
        return _AVERAGE.search(self.place) is not None

    @property
    def is_pretraining(self) -> bool:
        """Whether it is an encoder with a decoder; its encoder's names then start with ``encoder.``."""
        return "encoder." + _FIRST_LAYER in self.values

    def shape(self, name: str, dimensions: int) -> tuple[int, ...]:
        """The shape of one of its tensors.

        Raises:
            UserError: it is missing, not a tensor, or of another number of dimensions.
        """
        value = self.values.get(name)
        if not isinstance(value, Tensor) or value.dim() != dimensions:
            what = describe_value(value) if name in self.values else "missing"
            raise UserError(f"{self.source}: {name} is not a tensor of {dimensions} dimensions ({what})")
        return tuple(value.shape)


def read_network(source: str | Path | Mapping[str, Any], weights: str = "auto") -> Network:
    """The network of a checkpoint.

    Args:
        source: path of a file of ``torch.save`` or of safetensors, or what such a file holds.
        weights: ``model``; ``ema``, their moving average; or ``auto``, the first that there is.

    Raises:
        UserError: a file that cannot be read; no network, more than one, or not the one that is wanted.
    """
    if weights not in WEIGHTS:
        raise UserError(f"weights is {weights!r}; it must be one of {', '.join(WEIGHTS)}")
    if isinstance(source, Mapping):
        return _choose(source, "state dict", weights)
    path = Path(source)
    content = read_safetensors(path)[0] if path.is_file() and is_safetensors(path) else read_torch_file(path)
    return _choose(content, str(path), weights)


def describe_value(value: Any) -> str:
    """What stands where a tensor should, in a few words."""
    if isinstance(value, Tensor):
        return f"{value.dtype}, shape {tuple(value.shape)}"
    return printable(value.name) if isinstance(value, Placeholder) else type(value).__name__


def _choose(content: Any, source: str, weights: str) -> Network:
    networks = _find_all(content, source)
    if not networks:
        raise UserError(f"{source}: {_describe_content(content)}")
    plain = [network for network in networks if not network.is_average]
    averages = [network for network in networks if network.is_average]
    chosen = averages if weights == "ema" else plain
    if weights == "auto" and not plain:
        chosen = averages
    if not chosen and weights == "ema":
        raise UserError(f"{source} holds no moving average of the weights; leave out --weights ema")
    if not chosen:
        raise UserError(f"{source} holds the moving average of the weights alone; give --weights ema")
    if len(chosen) > 1:
        places = first_few([network.place or "top level" for network in chosen])
        raise UserError(f"{source} holds several networks ({places}); save the one you mean in a file of its own")
    if plain and averages:
        other = "model" if weights == "ema" else "ema"
        chosen[0].note = (
            f"{source} holds the weights and their moving average: took "
            f"{chosen[0].place or 'the weights'}, --weights {other} takes the other"
        )
    return chosen[0]


def _find_all(content: Any, source: str) -> list[Network]:
    """The networks of all dictionaries in a file, outer ones first."""
    found: list[Network] = []
    seen: set[int] = set()  # a pickle may put one dictionary in many places, and into itself
    pending: deque[tuple[tuple[str, ...], Any]] = deque([((), content)])
    while pending:
        keys, entries = pending.popleft()
        entries = entries.items if isinstance(entries, Placeholder) else entries
        if not isinstance(entries, Mapping) or id(entries) in seen or len(keys) > _MAX_DEPTH:
            continue
        seen.add(id(entries))
        found += _networks_of(entries, keys, source)
        pending.extend(((*keys, printable(key)), value) for key, value in entries.items() if isinstance(key, str))
    return found


def _networks_of(entries: Mapping[Any, Any], keys: tuple[str, ...], source: str) -> list[Network]:
    """The networks of one state dict, one for each prefix of a patch embedding."""
    names = [name for name in entries if isinstance(name, str)]
    prefixes = {
        name.removesuffix(_FIRST_LAYER).removesuffix("encoder.") for name in names if name.endswith(_FIRST_LAYER)
    }
    prefixes = {prefix for prefix in prefixes if prefix.endswith(".") or not prefix}
    if len(prefixes) > _MAX_NETWORKS:
        raise UserError(f"{source} holds {len(prefixes)} networks; save the one you mean in a file of its own")
    values: dict[str, dict[str, Any]] = {prefix: {} for prefix in sorted(prefixes)}
    outside = []
    for name in names:
        owners = [prefix for prefix in prefixes if name.startswith(prefix)]
        if owners:
            prefix = max(owners, key=len)
            values[prefix][name.removeprefix(prefix)] = entries[name]
        else:
            outside.append(name)
    place = " / ".join(keys)
    return [
        Network(source, ": ".join(part for part in (place, printable(prefix)) if part), values[prefix], outside)
        for prefix in values
    ]


def _describe_content(content: Any) -> str:
    """Why there is no network in what a file holds."""
    if isinstance(content, Placeholder) and not content.items:
        return f"it holds a whole object ({printable(content.name)}); save its state_dict() instead"
    entries = content.items if isinstance(content, Placeholder) else content
    if not isinstance(entries, Mapping):
        return f"it holds something other than a state dict ({describe_value(entries)})"
    names = first_few([key for key in entries if isinstance(key, str)]) or "nothing"
    return f"no state dict of this network in it: it has no {_FIRST_LAYER}; it holds {names}"
