"""Function transforms and forward-mode differentiation: the right result, though no kernel knows of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from mae_dfer_kernels import exchange, layer_norm, region_attention, residual_layer_norm
from mae_dfer_kernels.reference import region_attention as region_attention_reference
from mae_dfer_kernels.reference import residual_layer_norm as residual_layer_norm_reference

DTYPE = torch.float64
Function = Callable[[Tensor], Tensor]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=DTYPE, generator=torch.Generator().manual_seed(seed))


def attention_pair() -> tuple[Tensor, Function, Function]:
    factors = draw(2, 3, 8, seed=1)
    return (
        draw(2, 3, 24),
        lambda qkv: (region_attention(qkv, 2) * factors).sum(),
        lambda qkv: (region_attention_reference.region_attention(qkv, 2, 0.5) * factors).sum(),
    )


def norm_pair() -> tuple[Tensor, Function, Function]:
    update, weight, bias, factors = draw(2, 3, 5, seed=1), draw(5, seed=2), draw(5, seed=3), draw(2, 3, 5, seed=4)

    def plain(x: Tensor) -> Tensor:
        total, normed = residual_layer_norm_reference.residual_layer_norm(x, update, None, weight, bias, 1e-6, DTYPE)
        return (total * normed * factors).sum()

    def ours(x: Tensor) -> Tensor:
        total, normed = residual_layer_norm(x, update, weight, bias)
        return (total * normed * factors).sum()

    return draw(2, 3, 5), ours, plain


def norm_alone_pair() -> tuple[Tensor, Function, Function]:
    weight, bias, factors = draw(5, seed=1), draw(5, seed=2), draw(2, 3, 5, seed=3)
    return (
        draw(2, 3, 5),
        lambda x: (layer_norm(x, weight, bias) * factors).sum(),
        lambda x: (torch.nn.functional.layer_norm(x, (5,), weight, bias, 1e-6) * factors).sum(),
    )


def exchange_pair() -> tuple[Tensor, Function, Function]:
    context, vector, matrix = draw(2, 3, 4, seed=1), draw(4, seed=2), draw(12, 4, seed=3)
    weights = (vector, vector, matrix, vector, vector, matrix[:4], vector)

    def run(form: str) -> Function:
        return lambda local: exchange(local, context, *weights, 2, form=form).pow(2).sum()

    return draw(2, 2, 5, 4), run("absorbed"), run("plain")


PAIRS = {
    "region_attention": attention_pair, "residual_layer_norm": norm_pair, "layer_norm": norm_alone_pair,
    "exchange": exchange_pair,
}  # fmt: skip


def by_forward_ad(function: Function, x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(function(forward_ad.make_dual(x, x.cos()))).tangent
        assert tangent is not None, "the tangent was dropped"
        return tangent.clone()


TRANSFORMS: dict[str, Callable[[Function, Tensor], Tensor]] = {
    "grad": lambda function, x: torch.func.grad(function)(x),
    "vmap of grad": lambda function, x: torch.func.vmap(torch.func.grad(function))(torch.stack([x, x.sin()])),
    "grad of vmap": lambda function, x: torch.func.grad(lambda x: torch.func.vmap(function)(x).sum())(
        torch.stack([x, x.sin()])
    ),
    "jvp": lambda function, x: torch.func.jvp(function, (x,), (x.cos(),))[1],
    "forward_ad": by_forward_ad,
    "hessian": lambda function, x: torch.func.hessian(function)(x),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("op", PAIRS)
def test_transformed_as_plain_pytorch_is(op: str, transform: str) -> None:
    x, ours, plain = PAIRS[op]()
    # PyTorch's own attention takes part in the exchange's plain form; only its mathematical one can be transformed.
    with sdpa_kernel(SDPBackend.MATH):
        found, right = (TRANSFORMS[transform](function, x) for function in (ours, plain))
    assert right.abs().max() > 0
    torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-9)
