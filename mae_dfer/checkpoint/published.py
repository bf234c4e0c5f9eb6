"""The names of the published checkpoints.

They differ from ours in spelling, in that LGI attention keeps ``q`` and ``kv`` apart where ours packs ``qkv``, and in
that an attention shared by several steps of a block appears under each step's name.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import UserError
from ..files import write_atomically
from ..models import ModelConfig, VideoClassifier, VideoModel
from .network import Network, describe_value, read_network
from .report import LoadReport, check_match, shapes

_LGI_NAMES = {
    "local_norm": "first_attn_norm0", "local_context_norm": "first_attn_norm1", "local_attn": "first_attn",
    "global_norm": "second_attn_norm0", "global_attn": "second_attn",
    "exchange_norm": "third_attn_norm0", "exchange_context_norm": "third_attn_norm1",
    "exchange_attn": "third_attn", "mlp_norm": "norm2",
}  # fmt: skip
_VIT_NAMES = {"attn_norm": "norm1", "mlp_norm": "norm2"}


class _Source(NamedTuple):
    """Where a published tensor lives in our state dict: rows ``start`` to ``stop`` of ``name``."""

    name: str
    start: int
    stop: int


def load_official(
    model: VideoModel, source: str | Path | Mapping[str, Any], *, weights: str = "auto"
) -> LoadReport:
    """Loads a checkpoint of the published MAE-DFER (or VideoMAE) code, strictly.

    A pre-training model takes a pre-training file, a classifier a classifier's or a pre-training file. In the
    last case, as in the published code, the encoder is taken, its final norm and the decoder are dropped, and
    ``fc_norm`` and ``head`` stay as they were. A classifier's head is dropped where the model has none
    (``num_classes=0``).

    Args:
        source: path of a file of ``torch.save`` or safetensors, or what such a file holds: a state dict, bare or
            under any key, its names with or without a prefix such as ``module.``. Of a file only the tensors are
            taken: no code in it runs.
        weights: ``model``; ``ema``, their moving average; or ``auto``, the first that there is.

    Returns:
        What was loaded, dropped and left fresh. Where attention is shared, one tensor has several published
        names; the last in the file's order wins, as in the published code.

    Raises:
        UserError: a file that cannot be read, or any name or shape that differs; nothing is loaded then.
    """
    return load_network(model, read_network(source, weights))


def load_network(model: VideoModel, network: Network) -> LoadReport:
    """:func:`load_official` for a network that has been read."""
    if model.config.is_mae and not network.is_pretraining:
        raise UserError(f"{network.source} holds a classifier; pre-training starts from a pre-training checkpoint")
    expected, names, fresh = _published_sources(model), {name: name for name in network.values}, []
    if network.is_pretraining and isinstance(model, VideoClassifier):
        names = {
            name: name.removeprefix("encoder.")
            for name in names
            if name.startswith("encoder.") and not name.startswith("encoder.norm.")
        }
        fresh = [name for name in model.state_dict() if not name.startswith("encoder.")]
        expected = {name: part for name, part in expected.items() if part.name not in fresh}
    elif not model.config.num_classes:
        names = {name: name for name in names if not name.startswith("head.")}
    tensors = _weights_of({ours: network.values[theirs] for theirs, ours in names.items()}, expected, network.source)
    state = model.state_dict()
    check_match(
        shapes(tensors),
        {name: (part.stop - part.start, *state[part.name].shape[1:]) for name, part in expected.items()},
        network.source,
    )
    with torch.no_grad():
        for name, value in tensors.items():
            part = expected[name]
            state[part.name][part.start : part.stop].copy_(value)
    return LoadReport(
        loaded=list(dict.fromkeys(part.name for part in expected.values())),
        dropped=[name for name in network.values if names.get(name) not in tensors] + network.outside,
        fresh=fresh,
        note=network.note,
    )


def describe_classifier(network: Network) -> tuple[str, dict[str, Any]]:
    """The model that a published classifier is of, as far as its tensors tell.

    They tell neither its frames' size and number, nor its regions, nor what it averages. The number of heads is that
    of the published models: one for 64 channels.

    Returns:
        Name and options for ``create_model``.

    Raises:
        UserError: a tensor that tells a size is missing.
    """
    embed_dim, _, tubelet_size, patch_size, _ = network.shape("patch_embed.proj.weight", 5)
    hidden, _ = network.shape("blocks.0.mlp.fc1.weight", 2)
    classes, _ = network.shape("head.weight", 2)
    sizes: dict[str, Any] = {
        "embed_dim": embed_dim,
        "depth": len({name.split(".")[1] for name in network.values if name.startswith("blocks.")}),
        "num_heads": max(embed_dim // 64, 1),
        "mlp_ratio": hidden / max(embed_dim, 1),
        "patch_size": patch_size,
        "tubelet_size": tubelet_size,
        "num_classes": classes,
    }
    if "lg_region_tokens" not in network.values:
        return "vit_base_patch16_160", sizes
    first_block = {name.split(".")[2] for name in network.values if name.startswith("blocks.0.")}
    exchange = "cross" if "third_attn_norm1" in first_block else "self" if "third_attn" in first_block else "none"
    return "lgi_former_base_patch16_160", sizes | {
        "local_attention": "representative" if "first_attn_norm1" in first_block else "self",
        "global_attention": "second_attn" in first_block,
        "exchange": exchange,
    }


def _weights_of(values: Mapping[str, Any], expected: Container[str], source: str) -> dict[str, Tensor]:
    """The tensors among ``values``. What else stands beside them, such as an epoch's number, is no weight."""
    for name, value in values.items():
        if name in expected and not (isinstance(value, Tensor) and value.is_floating_point()):
            what = describe_value(value)
            raise UserError(f"{source}: {name} is not a plain tensor of floating-point numbers ({what})")
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def to_official(model: VideoModel) -> dict[str, Tensor]:
    """The model's weights (detached copies) under the published names."""
    ours = model.state_dict()
    return {
        name: ours[part.name][part.start : part.stop].detach().clone()
        for name, part in _published_sources(model).items()
    }


def save_official(model: VideoModel, path: str | Path) -> None:
    """Writes :func:`to_official` under ``model``, as the published code reads it; atomically."""
    weights = {name: value.cpu() for name, value in to_official(model).items()}
    write_atomically(path, lambda temporary: torch.save({"model": weights}, temporary))


def _published_sources(model: VideoModel) -> dict[str, _Source]:
    """Published name → where it lives in our state dict."""
    sources: dict[str, _Source] = {}
    for name, value in model.state_dict().items():
        for published, thirds in _published_names(name, model.config):
            start, stop = 0, value.shape[0]
            if thirds is not None:
                start, stop = (third * value.shape[0] // 3 for third in thirds)
            sources[published] = _Source(name, start, stop)
    return sources


def _published_names(name: str, config: ModelConfig) -> list[tuple[str, tuple[int, int] | None]]:
    """Published names of one of our tensors, each with the thirds (first, last + 1) of a packed qkv."""
    if name.startswith("encoder_norm."):
        return [(name.replace("encoder_norm.", "encoder.norm."), None)]
    if name.startswith("decoder."):
        return [(_rename_block(name, _VIT_NAMES), None)]
    if not name.startswith("encoder."):
        return [(name, None)]
    prefix, inner = ("encoder." if config.is_mae else ""), name.removeprefix("encoder.")
    if config.is_vit:
        return [(prefix + _rename_block(inner, _VIT_NAMES), None)]
    if inner == "representative_tokens":
        return [(prefix + "lg_region_tokens", None)]
    published = [_rename_block(inner, _LGI_NAMES)]
    if ".local_attn." in inner:
        published += [published[0].replace(".first_attn.", f".{step}_attn.") for step in _steps_that_share(config)]
    if not inner.endswith(".qkv.weight"):
        return [(prefix + each, None) for each in published]
    return [
        (prefix + each.replace(".qkv.", f".{part}."), thirds)
        for each in published
        for part, thirds in (("q", (0, 1)), ("kv", (1, 3)))
    ]


def _steps_that_share(config: ModelConfig) -> list[str]:
    """Published names of the steps, after the first, that use the first's attention."""
    second = ["second"] if config.share_attention == "all" and config.global_attention else []
    third = ["third"] if config.share_attention != "none" and config.exchange != "none" else []
    return second + third


def _rename_block(name: str, names: Mapping[str, str]) -> str:
    """``blocks.3.<module>.…`` with the module's published name; other names as they are."""
    found = re.fullmatch(r"(.*\bblocks\.\d+\.)(\w+)(\..*)", name)
    return found[1] + names.get(found[2], found[2]) + found[3] if found else name
