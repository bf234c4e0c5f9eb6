"""The names of the published checkpoints.

They differ from ours in spelling, in that LGI attention keeps ``q`` and ``kv`` apart where ours packs ``qkv``, and in
that an attention shared by several steps of a block appears under each step's name.
"""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import UserError
from ..files import write_atomically
from ..models import ModelConfig, VideoClassifier, VideoModel
from .report import LoadReport, check_match, one_line

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


def load_official(model: VideoModel, source: str | Path | Mapping[str, Any]) -> LoadReport:
    """Loads a checkpoint of the published MAE-DFER (or VideoMAE) code, strictly.

    A pre-training model takes a pre-training file, a classifier a classifier's or a pre-training file. In the
    last case, as in the published code, the encoder is taken, its final norm and the decoder are dropped, and
    ``fc_norm`` and ``head`` stay as they were.

    Args:
        source: path of a file with the state dict under ``model`` or ``module``, or that state dict. The file
            is read with ``weights_only=True``; of Python objects only an ``argparse.Namespace`` is let in.

    Returns:
        What was loaded, dropped and left fresh. Where attention is shared, one tensor has several published
        names; the last in the file's order wins, as in the published code.

    Raises:
        UserError: a file that cannot be read, or any name or shape that differs; nothing is loaded then.
    """
    is_path = isinstance(source, (str, Path))
    where = str(source) if is_path else "state dict"
    tensors = _read_official(Path(source)) if is_path else _find_state_dict(source, where)  # type: ignore[arg-type]
    expected = _published_sources(model)
    report = LoadReport()
    if isinstance(model, VideoClassifier) and any(name.startswith("encoder.") for name in tensors):
        kept = {
            name.removeprefix("encoder."): value
            for name, value in tensors.items()
            if name.startswith("encoder.") and not name.startswith("encoder.norm.")
        }
        report.dropped = [name for name in tensors if name.removeprefix("encoder.") not in kept]
        report.fresh = [name for name in model.state_dict() if not name.startswith("encoder.")]
        expected = {name: part for name, part in expected.items() if part.name not in report.fresh}
        tensors = kept

    ours = model.state_dict()
    check_match(
        {name: tuple(value.shape) for name, value in tensors.items()},
        {name: (part.stop - part.start, *ours[part.name].shape[1:]) for name, part in expected.items()},
        where,
    )
    with torch.no_grad():
        for name, value in tensors.items():
            part = expected[name]
            ours[part.name][part.start : part.stop].copy_(value)
    report.loaded = list(dict.fromkeys(expected[name].name for name in expected))
    return report


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


def _read_official(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        # torch's own message advises an unsafe load.
        raise UserError(
            f"{path}: not a checkpoint, or one that holds more than tensors and options; only those are loaded"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not a whole checkpoint ({one_line(error)})") from None
    return _find_state_dict(loaded, str(path))


def _find_state_dict(loaded: Any, where: str) -> dict[str, Tensor]:
    """The state dict itself, or under ``model`` or ``module``."""
    for key in ("model", "module"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise UserError(f"{where}: no state dict in it, neither at the top nor under 'model' or 'module'")
    return dict(loaded)


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
