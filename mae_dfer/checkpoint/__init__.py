"""Weights in and out: our own files (safetensors), and the checkpoints of the published code."""

from .network import WEIGHTS, Network, read_network
from .own import is_own, load_into, load_pretrained_encoder, load_weights, save_weights
from .published import describe_classifier, load_network, load_official, save_official, to_official
from .report import LoadReport
from .sizes import check_sizes

__all__ = [
    "WEIGHTS",
    "LoadReport",
    "Network",
    "check_sizes",
    "describe_classifier",
    "is_own",
    "load_into",
    "load_network",
    "load_official",
    "load_pretrained_encoder",
    "load_weights",
    "read_network",
    "save_official",
    "save_weights",
    "to_official",
]
