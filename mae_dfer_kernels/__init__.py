"""Operators for attention inside small windows, each with a plain PyTorch twin and several backends.

Needs PyTorch alone. ``python -m mae_dfer_kernels`` says which backends can run here.
"""

from mae_dfer_kernels.backends import BackendUnavailable
from mae_dfer_kernels.column_sums import column_sums
from mae_dfer_kernels.exchange import exchange
from mae_dfer_kernels.gelu_gradient import gelu_gradient
from mae_dfer_kernels.layer_norm import layer_norm
from mae_dfer_kernels.region_attention import region_attention
from mae_dfer_kernels.residual_layer_norm import residual_layer_norm
from mae_dfer_kernels.weight_gradient import weight_gradient

# Last: the formulas are registered for operators that the line above defines.
from mae_dfer_kernels import flops  # isort: skip

__all__ = [
    "BackendUnavailable",
    "column_sums",
    "exchange",
    "flops",
    "gelu_gradient",
    "layer_norm",
    "region_attention",
    "residual_layer_norm",
    "weight_gradient",
]
