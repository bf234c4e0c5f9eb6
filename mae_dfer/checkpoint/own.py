"""Our own files: safetensors, with the model's configuration and the classes in their metadata."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn, uint8

from ..errors import UserError
from ..files import describe_impostor, write_atomically
from ..models import ModelConfig, VideoClassifier, VideoModel
from .report import LoadReport, check_match, shapes

_DESCRIBED, _CHECKSUM = "mae_dfer", "mae_dfer_sha256"  # names in a file's metadata


def save_weights(model: VideoModel, path: str | Path, metadata: Mapping[str, Any] | None = None) -> None:
    """Writes a model's weights as safetensors, atomically, with its configuration, ``metadata`` and a checksum in them.

    Args:
        metadata: JSON-ready values; the name ``model`` is taken by the configuration.

    Raises:
        TypeError: not a model of this package, a wrapped one (unwrap it first), or metadata that is not JSON.
        ValueError: metadata with the name ``model``.
        OSError: the file cannot be written, as where the disk is full.
    """
    if not isinstance(model, VideoModel):
        raise TypeError(f"save_weights takes a model of create_model, unwrapped; got {type(model).__name__}")
    metadata = dict(metadata or {})
    if "model" in metadata:
        raise ValueError("metadata may not hold 'model': that is where the model's configuration goes")
    described = json.dumps({"model": model.config.to_dict()} | metadata)
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    header = {"format": "pt", _DESCRIBED: described, _CHECKSUM: _checksum(tensors, described)}
    write_atomically(path, lambda temporary: _write(tensors, temporary, header))


def _write(tensors: dict[str, Tensor], path: Path, header: dict[str, str]) -> None:
    try:
        save_file(tensors, path, metadata=header)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def _checksum(tensors: Mapping[str, Tensor], described: str) -> str:
    """SHA-256 of the metadata and of the tensors on the CPU, in the order of their names."""
    digest = hashlib.sha256(described.encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"\0{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.reshape(-1).view(uint8).numpy().data)
    return digest.hexdigest()


def load_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what :func:`save_weights` wrote.

    Returns:
        The state dict, on the CPU; and the metadata, with the model's configuration under ``model``
        (``ModelConfig.from_dict`` reads it).

    Raises:
        UserError: no such file, a truncated or otherwise damaged one, or one that is not of this package.
    """
    path = Path(path)
    tensors, described = read_safetensors(path)
    if described is None:
        raise UserError(f"{path}: no mae_dfer metadata in it; it is not a checkpoint of this package")
    try:
        metadata = json.loads(described)
        ModelConfig.from_dict(metadata["model"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{path}: its mae_dfer metadata do not describe a model; download or copy it again") from None
    return tensors, metadata


def load_metadata(path: str | Path) -> dict[str, Any]:
    """The metadata of :func:`load_weights` alone, from the file's header, whose checksum is not compared.

    Raises UserError as it does.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})[_DESCRIBED])
    except (SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"{path}: no mae_dfer metadata in it ({type(error).__name__})") from None
    return metadata if isinstance(metadata, dict) else {}


def is_safetensors(path: Path) -> bool:
    """Whether a file is safetensors, by its first bytes: the length of a JSON header, and the header."""
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000


def is_own(path: Path) -> bool:
    """Whether a file is safetensors of :func:`save_weights`; False also for one that cannot be read."""
    if not is_safetensors(path):
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return _DESCRIBED in (file.metadata() or {})
    except SafetensorError:
        return False


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """The tensors of a safetensors file, and what this package wrote into its metadata, if it was this package.

    Raises:
        UserError: a file that is missing, damaged, cut short, or of another kind.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        impostor = describe_impostor(path)
        if impostor is not None:
            raise UserError(f"{path} is {impostor}")
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is damaged or cut short ({reason}); download or copy it again") from None
    described = header.get(_DESCRIBED)
    # Files of earlier versions have no checksum.
    if described is not None and _CHECKSUM in header and header[_CHECKSUM] != _checksum(tensors, described):
        raise UserError(f"{path} is damaged: its contents do not have its checksum; download or copy it again")
    return tensors, described


def load_into(model: nn.Module, state_dict: Mapping[str, Tensor], source: str = "weights") -> LoadReport:
    """``model.load_state_dict``, strict, with a one-line error that names ``source``.

    Raises:
        UserError: any name or shape that differs; nothing is loaded then.
    """
    check_match(shapes(state_dict), shapes(model.state_dict()), source)
    model.load_state_dict(state_dict)
    return LoadReport(loaded=list(state_dict))


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
    check_match(shapes(encoder), shapes(expected), source)
    classifier.load_state_dict(encoder, strict=False)
    return LoadReport(
        loaded=list(expected),
        dropped=[name for name in state_dict if name not in encoder],
        fresh=[name for name in ours if name not in expected],
    )
