"""Weights in and out: our own files (safetensors), and the checkpoints of the published code."""

from .own import load_into, load_pretrained_encoder, load_weights, save_weights
from .published import load_official, save_official, to_official
from .report import LoadReport

__all__ = [
    "LoadReport",
    "load_into",
    "load_official",
    "load_pretrained_encoder",
    "load_weights",
    "save_official",
    "save_weights",
    "to_official",
]
