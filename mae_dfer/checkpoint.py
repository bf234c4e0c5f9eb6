"""Weights in and out: our own files (safetensors), and the names of the published checkpoints.

Published names differ from ours in spelling, in that LGI attention keeps ``q`` and ``kv`` apart where ours
packs ``qkv``, and in that an attention shared by several steps of a block appears under each step's name.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .errors import UserError
from .files import write_atomically
from .models import ModelConfig, VideoClassifier, VideoModel

_NAMES_SHOWN = 3
_LGI_NAMES = {
    "local_norm": "first_attn_norm0", "local_context_norm": "first_attn_norm1", "local_attn": "first_attn",
    "global_norm": "second_attn_norm0", "global_attn": "second_attn",
    "exchange_norm": "third_attn_norm0", "exchange_context_norm": "third_attn_norm1",
    "exchange_attn": "third_attn", "mlp_norm": "norm2",
}  # fmt: skip
_VIT_NAMES = {"attn_norm": "norm1", "mlp_norm": "norm2"}


@dataclass
class LoadReport:
    """What a load did with every tensor.

    Attributes:
        loaded: the model's names that were taken from the file.
        dropped: the file's names that the model has no use for.
        fresh: the model's names that keep their initialisation.
    """

    loaded: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)


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
    _check_match(
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


def load_pretrained_encoder(
    classifier: VideoClassifier, state_dict: Mapping[str, Tensor], source: str = "the pre-trained encoder"
) -> LoadReport:
    """Starts a classifier from a pre-training model of this package: takes the encoder, strictly.

    Args:
        state_dict: our names, as of ``mae.state_dict()`` or :func:`load_weights`.

    Returns:
        What was loaded, dropped (final norm, decoder, mask token) and left fresh (``fc_norm``, ``head``).

    Raises:
        UserError: an encoder of other names or shapes; nothing is loaded then.
    """
    ours = classifier.state_dict()
    encoder = {name: value for name, value in state_dict.items() if name.startswith("encoder.")}
    expected = {name: value for name, value in ours.items() if name.startswith("encoder.")}
    _check_match(_shapes(encoder), _shapes(expected), source)
    classifier.load_state_dict(encoder, strict=False)
    return LoadReport(
        loaded=list(expected),
        dropped=[name for name in state_dict if name not in encoder],
        fresh=[name for name in ours if name not in expected],
    )


def load_into(model: nn.Module, state_dict: Mapping[str, Tensor], source: str = "weights") -> LoadReport:
    """``model.load_state_dict``, strict, with a one-line error that names ``source``.

    Raises:
        UserError: any name or shape that differs; nothing is loaded then.
    """
    _check_match(_shapes(state_dict), _shapes(model.state_dict()), source)
    model.load_state_dict(state_dict)
    return LoadReport(loaded=list(state_dict))


def save_weights(model: VideoModel, path: str | Path, metadata: Mapping[str, Any] | None = None) -> None:
    """Writes a model's weights as safetensors, atomically, with its configuration and ``metadata`` in them.

    Args:
        metadata: JSON-ready values; the name ``model`` is taken by the configuration.

    Raises:
        TypeError: not a model of this package, a wrapped one (unwrap it first), or metadata that is not JSON.
        ValueError: metadata with the name ``model``.
    """
    if not isinstance(model, VideoModel):
        raise TypeError(f"save_weights takes a model of create_model, unwrapped; got {type(model).__name__}")
    metadata = dict(metadata or {})
    if "model" in metadata:
        raise ValueError("metadata may not hold 'model': that is where the model's configuration goes")
    described = json.dumps({"model": model.config.to_dict()} | metadata)
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    write_atomically(
        path,
        lambda temporary: save_file(tensors, temporary, metadata={"format": "pt", "mae_dfer": described}),
    )


def load_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what :func:`save_weights` wrote.

    Returns:
        The state dict, on the CPU; and the metadata, with the model's configuration under ``model``
        (``ModelConfig.from_dict`` reads it).

    Raises:
        UserError: no such file, a truncated one, or one that is not of this package.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            described = (file.metadata() or {}).get("mae_dfer")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({_one_line(error)})") from None
    if described is None:
        raise UserError(f"{path}: no mae_dfer metadata in it; it is not a checkpoint of this package")
    metadata = json.loads(described)
    try:
        ModelConfig.from_dict(metadata["model"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return tensors, metadata


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
        raise UserError(f"{path}: not a whole checkpoint ({_one_line(error)})") from None
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


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items()}


def _check_match(given: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Raises :class:`UserError` with the first few names that are missing, unexpected or of another shape."""
    problems = []
    for what, names in (
        ("missing", [name for name in expected if name not in given]),
        ("unexpected", [name for name in given if name not in expected]),
    ):
        if names:
            problems.append(f"{what} {_first(names)}")
    wrong = [f"{name} {given[name]} for {shape}" for name, shape in expected.items() if given.get(name, shape) != shape]
    if wrong:
        problems.append(f"other shape (file for model): {_first(wrong)}")
    if problems:
        raise UserError(
            f"{where} does not fit the model: {'; '.join(problems)}; "
            "check the model's name, sizes and number of classes"
        )


def _first(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more


def _one_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
