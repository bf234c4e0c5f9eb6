"""Muon, in the precision that the device is fast in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Muon(torch.optim.Muon):
    """`torch.optim.Muon` with ``adjust_lr_fn="match_rms_adamw"``: same formula, same state, another arithmetic.

    PyTorch's orthogonalises in bf16 alone, which a CPU without bf16 instructions emulates, thirty times slower than
    fp32; and matrix by matrix, where here all of one shape go together.

    Args:
        params: parameters, all two-dimensional, or groups of them.
        dtype: in which matrices are orthogonalised.
        lr, weight_decay: as in `torch.optim.Muon`.
    """

    def __init__(self, params: Any, dtype: torch.dtype, lr: float = 1e-3, weight_decay: float = 0.1) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            same_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    same_shape[parameter.shape].append(parameter)
            for shape, parameters in same_shape.items():
                updates = torch.stack([self._momentum(parameter, group) for parameter in parameters])
                updates = _orthogonalize(updates.to(self.dtype), group).to(parameters[0].dtype)
                # The root mean square of AdamW's updates is about 0.2.
                rate = group["lr"] * 0.2 * max(shape) ** 0.5
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(parameters, list(updates), alpha=-rate)
        return loss

    def _momentum(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        """The gradient, smoothed (Nesterov)."""
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        return gradient.lerp(state["momentum_buffer"], group["momentum"])


def _orthogonalize(matrices: Tensor, group: dict[str, Any]) -> Tensor:
    """About U Vᵀ of each matrix U Σ Vᵀ of (M, rows, columns), by Newton-Schulz steps of degree five."""
    a, b, c = group["ns_coefficients"]
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.transpose(1, 2)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.transpose(1, 2)
