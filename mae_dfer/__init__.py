"""MAE-DFER: masked auto-encoding for dynamic facial expression recognition (arXiv 2307.02227)."""

from . import losses
from .checkpoint import load_official
from .models import create_model, list_models

__version__ = "0.1.0"

__all__ = ["__version__", "create_model", "list_models", "load_official", "losses"]
