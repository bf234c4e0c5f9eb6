"""Models by name: LGI-Former and VideoMAE's ViT, each as a classifier and as a pre-training model."""

from __future__ import annotations

from typing import Any

from ..errors import UserError
from .base import VideoModel
from .classifier import VideoClassifier
from .config import ModelConfig, override_names, unknown
from .mae import MaskedAutoencoder

__all__ = [
    "MaskedAutoencoder",
    "ModelConfig",
    "VideoClassifier",
    "VideoModel",
    "configure_model",
    "create_autoencoder",
    "create_classifier",
    "create_model",
    "list_models",
]

# The base sizes of LGI-Former are ModelConfig's defaults.
_SMALL = {
    "embed_dim": 384,
    "depth": 12,
    "num_heads": 6,
    "decoder_embed_dim": 192,
    "decoder_depth": 4,
    "decoder_num_heads": 3,
}
_TINY = {
    "embed_dim": 128, "depth": 4, "num_heads": 2,
    "decoder_embed_dim": 128, "decoder_depth": 2, "decoder_num_heads": 2,
}
_VIT_BASE = {"embed_dim": 768, "depth": 12, "num_heads": 12}

_SIZES: dict[str, dict[str, Any]] = {
    "lgi_former_tiny_patch16_160": _TINY,
    "lgi_former_small_patch16_160": _SMALL,
    "lgi_former_base_patch16_160": {},
    "vit_tiny_patch16_160": {**_TINY, "pool": "all"},
    "vit_small_patch16_160": {**_SMALL, "pool": "all"},
    "vit_base_patch16_160": {**_VIT_BASE, "pool": "all"},
}


def list_models() -> list[str]:
    """Every name that :func:`create_model` knows."""
    return [*_SIZES, *(f"mae_{name}" for name in _SIZES)]


def create_model(name: str, **overrides: Any) -> VideoClassifier | MaskedAutoencoder:
    """A freshly initialised model: of :func:`create_classifier`, or of :func:`create_autoencoder` for ``mae_…``.

    Args:
        name: one of :func:`list_models`.
        overrides: any field of :class:`ModelConfig` but the name, in place of the model's own; ``decoder_…``
            for pre-training models only.

    Returns:
        :class:`VideoClassifier` or :class:`MaskedAutoencoder`, in training mode on torch's default device;
        ``model.config`` holds every setting.

    Raises:
        UserError: an unknown name or option (the message has the nearest one), values that do not fit together, or a
        model that is larger than the memory.
    """
    config = configure_model(name, overrides)
    return MaskedAutoencoder(config) if config.is_mae else VideoClassifier(config)


def create_classifier(name: str, **overrides: Any) -> VideoClassifier:
    """:func:`create_model` for a name without ``mae_``. ``num_classes=0`` leaves out the head: features come out."""
    config = configure_model(name, overrides)
    if config.is_mae:
        raise UserError(f"{name} is a pre-training model; the classifier is {name.removeprefix('mae_')}")
    return VideoClassifier(config)


def create_autoencoder(name: str, **overrides: Any) -> MaskedAutoencoder:
    """:func:`create_model` for a name with ``mae_``: the pre-training model."""
    config = configure_model(name, overrides)
    if not config.is_mae:
        raise UserError(f"{name} is a classifier; the pre-training model is mae_{name}")
    return MaskedAutoencoder(config)


def configure_model(name: str, overrides: dict[str, Any]) -> ModelConfig:
    """The configuration of the model that :func:`create_model` would make. Raises as it does, but for memory."""
    if name not in list_models():
        raise UserError(unknown("model", name, list_models()))
    known = override_names(name)
    for option in overrides:
        if option not in known:
            raise UserError(unknown("model option", option, known))
    sizes = {option: value for option, value in _SIZES[name.removeprefix("mae_")].items() if option in known}
    return ModelConfig(name=name, **{**sizes, **overrides})
