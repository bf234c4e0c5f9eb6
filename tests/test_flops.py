"""What torch's FLOP counter sees: an operator without a formula counts as nothing, and nobody notices."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import mae_dfer
import mae_dfer_kernels  # noqa: F401  # registers the operators

SIZES = {"img_size": (32, 64), "num_frames": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "region_size": (1, 2, 2)}
CLASSIFIER, AUTOENCODER = "lgi_former_tiny_patch16_160", "mae_lgi_former_tiny_patch16_160"


def without_formula(namespace: str) -> list[str]:
    """The operators that are registered in a namespace of the dispatcher, but not with the FLOP counter."""
    names = [name.split(".")[0].split("::") for name in torch._C._dispatch_get_all_op_names()]
    ops = {name: getattr(getattr(torch.ops, space), name) for space, name in names if space == namespace}
    assert ops, f"no operator is registered in {namespace}"
    return sorted(name for name, op in ops.items() if op not in flop_registry)


def test_every_operator_has_a_formula() -> None:
    assert without_formula("mae_dfer_kernels") == []


def test_an_operator_without_a_formula_would_be_found() -> None:
    library = torch.library.Library("mae_dfer_kernels", "FRAGMENT")
    try:
        library.define("nobody_counts_this(Tensor x) -> Tensor")
        assert without_formula("mae_dfer_kernels") == ["nobody_counts_this"]
    finally:
        library._destroy()


class Recorder(TorchDispatchMode):
    """Counts the operators that reach the dispatcher's Python modes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[Any] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func._overloadpacket] += 1
        return func(*args, **(kwargs or {}))


def count(model: nn.Module, backward: bool) -> tuple[dict[Any, int], Counter[Any]]:
    """FLOPs by operator, and calls by operator, of one small batch."""
    clip = torch.randn(2, 3, 4, 32, 64)
    # An autoencoder sees two tokens of each region.
    mask = torch.ones(2, 16, dtype=torch.bool)
    mask[:, [0, 1, 2, 3, 8, 9, 10, 11]] = False
    inputs = (clip, mask) if hasattr(model, "decoder") else (clip,)
    with torch.set_grad_enabled(backward), Recorder() as recorder, FlopCounterMode(display=False) as counter:
        output = model(*inputs)
        if backward:
            output.sum().backward()
    return counter.get_flop_counts()["Global"], recorder.calls


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward and backward"])
@pytest.mark.parametrize("name", [CLASSIFIER, AUTOENCODER])
def test_a_fused_models_count_has_all_that_was_dispatched(name: str, backward: bool) -> None:
    flops, calls = count(mae_dfer.create_model(name, fused_attn=True, **SIZES), backward)
    ours = {op for op in calls if str(op).startswith("mae_dfer_kernels.")}
    assert torch.ops.mae_dfer_kernels.region_attention in ours
    assert not backward or torch.ops.mae_dfer_kernels.region_attention_backward in ours
    # torch's own products and attentions, too: by name, since it has no list of what ought to be counted.
    heavy = ("mm", "bmm", "addmm", "baddbmm", "convolution", "attention")
    products = {op for op in calls if any(word in str(op).split(".")[1].split("_") for word in heavy)}
    assert len(products) >= 2
    assert sorted(map(str, (ours | products) - set(flops))) == []


def test_fused_and_eager_count_alike_where_they_do_the_same() -> None:
    """Forward passes without the exchange, whose fused form multiplies less, and with all tokens needed to the end."""
    fused, eager = (
        count(mae_dfer.create_model(CLASSIFIER, fused_attn=fused, exchange="none", pool="all", **SIZES), False)[0]
        for fused in (True, False)
    )
    assert sum(fused.values()) == sum(eager.values()) > 0
