"""MAE-DFER: masked auto-encoding for dynamic facial expression recognition (arXiv 2307.02227)."""

from typing import TYPE_CHECKING, Any

from . import losses
from .checkpoint import load_official
from .models import create_autoencoder, create_classifier, create_model, list_models

if TYPE_CHECKING:
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


def __getattr__(name: str) -> Any:
    if name == "load":  # on demand: what reads videos takes longer to import than all the rest
        from .prediction import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
