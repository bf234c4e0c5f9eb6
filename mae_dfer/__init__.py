"""MAE-DFER: masked auto-encoding for dynamic facial expression recognition (arXiv 2307.02227)."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import losses
    from .checkpoint import load_official
    from .models import create_autoencoder, create_classifier, create_model, list_models
    from .prediction import load

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "create_autoencoder",
    "create_classifier",
    "create_model",
    "list_models",
    "load",
    "load_official",
    "losses",
]

_MODULES = {
    "create_autoencoder": "models",
    "create_classifier": "models",
    "create_model": "models",
    "list_models": "models",
    "load": "prediction",
    "load_official": "checkpoint",
}


def __getattr__(name: str) -> Any:
    """Imports what is asked for: torch takes seconds, for which ``--help`` and a mistyped option need not wait."""
    if name in _MODULES:
        return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    if name == "losses":
        return importlib.import_module(".losses", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
