"""The operators of a block, one problem each, with everything that can solve it here.

Letters: B clips, N regions of a clip, R = B·N, S tokens of a region, L = S - 1 of them local, H heads, D channels a
head, C = H·D.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.peers import peers
from bench.variants import (
    SDPA_KERNELS,
    Call,
    Case,
    Inputs,
    Problem,
    Variant,
    attend_eager,
    attend_sdpa,
    compiled,
    sdpa_by,
)
from mae_dfer_kernels import BackendUnavailable, backends, exchange, region_attention, residual_layer_norm

HEADS, HEAD_DIM, CHANNELS = 8, 64, 512
VIT_HEADS = 12
EPS = 1e-6
# S of a region, regions of a clip, local tokens of a clip: a tenth is visible in pre-training; then all of them, by
# regions of (2, 2, 10) and of (2, 5, 10).
REGIONS = {11: (8, 80), 41: (20, 800), 101: (8, 800)}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def op_cases(device: torch.device, dtype: str, clips: int, compile_which: str) -> Iterator[Case]:
    """The cases of one dtype. ``compile_which``: ``none``, ``few`` (one region size), or ``all``."""
    for tokens in REGIONS:
        wanted = compile_which == "all" or (compile_which == "few" and tokens == 101)
        yield region_case(device, dtype, clips, tokens, wanted)
    yield exchange_case(device, dtype, clips, compile_which != "none")
    yield norm_case(device, dtype, clips, compile_which != "none")


def region_case(device: torch.device, dtype: str, clips: int, tokens: int, wanted: bool) -> Case:
    """Attention inside regions, and beside it the joint attention of a vanilla ViT over the same clips."""
    regions, joint = REGIONS[tokens]
    case = Case("op", f"region attention, S = {tokens}")
    problem = attention_problem("region_attention", device, dtype, clips * regions, tokens, HEADS)
    add_plain(case, problem, lambda attend: packed_attention(attend, HEADS), device, wanted)
    add_peers(case, problem, device)
    add_fused(case, problem, lambda name: lambda qkv: region_attention(qkv, HEADS, backend=name))
    for heads in (VIT_HEADS, HEADS):
        vit = attention_problem("vit_attention", device, dtype, clips, joint, heads)
        case.variants.append(Variant(f"vit-sdpa-{heads}-heads", vit, packed_attention(attend_sdpa, heads)))
    return case


def attention_problem(
    op: str, device: torch.device, dtype: str, rows: int, tokens: int, heads: int
) -> Problem:
    return make_problem(
        op, [rows, tokens, heads, HEAD_DIM], dtype, device, packed_attention(attend_eager, heads),
        [(rows, tokens, 3 * heads * HEAD_DIM)], [(rows, tokens, heads * HEAD_DIM)],
    )  # fmt: skip


def packed_attention(attend: Attend, heads: int) -> Call:
    """From the packed projection to what the output projection reads, with the copies that this takes."""

    def call(qkv: Tensor) -> Tensor:
        query, key, value = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        return attend(query, key, value).transpose(1, 2).flatten(2)

    return call


def exchange_case(device: torch.device, dtype: str, clips: int, wanted: bool) -> Case:
    """Local tokens query the representative tokens of their clip, from LayerNorm to residual."""
    regions, joint = REGIONS[101]
    local, context = (clips, regions, joint // regions, CHANNELS), (clips, regions, CHANNELS)
    vector, square = (CHANNELS,), (CHANNELS, CHANNELS)
    case = Case("op", "exchange")
    problem = make_problem(
        "exchange", [*local], dtype, device, plain_exchange(attend_eager),
        [local, context, vector, vector, (3 * CHANNELS, CHANNELS), vector, vector, square, vector], [local],
    )  # fmt: skip
    add_plain(case, problem, plain_exchange, device, wanted)
    add_fused(case, problem, lambda name: lambda *tensors: exchange(*tensors, HEADS, eps=EPS, backend=name))
    return case


def plain_exchange(attend: Attend) -> Call:
    """The exchange as the paper writes it."""

    def call(
        local: Tensor, context: Tensor, norm_weight: Tensor, norm_bias: Tensor, qkv_weight: Tensor, q_bias: Tensor,
        v_bias: Tensor, proj_weight: Tensor, proj_bias: Tensor,
    ) -> Tensor:  # fmt: skip
        normed = F.layer_norm(local, (CHANNELS,), norm_weight, norm_bias, EPS).flatten(1, 2)
        query = F.linear(normed, qkv_weight[:CHANNELS], q_bias)
        kv_bias = torch.cat((torch.zeros_like(v_bias), v_bias))
        key, value = F.linear(context, qkv_weight[CHANNELS:], kv_bias).chunk(2, dim=-1)
        heads = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (query, key, value))
        mixed = attend(*heads).transpose(1, 2).flatten(2)
        return local + F.linear(mixed, proj_weight, proj_bias).view(local.shape)

    return call


def norm_case(device: torch.device, dtype: str, clips: int, wanted: bool) -> Case:
    """The residual addition between two branches and the LayerNorm after it."""
    regions, joint = REGIONS[101]
    rows = (clips * regions, joint // regions + 1, CHANNELS)
    case = Case("op", "residual + LayerNorm")
    problem = make_problem(
        "residual_layer_norm", [*rows], dtype, device, plain_norm, [rows, rows, (CHANNELS,), (CHANNELS,)], [rows, rows]
    )
    case.variants.append(Variant("eager", problem, plain_norm))
    if wanted:
        case.variants.append(Variant("compile-eager", problem, compiled(plain_norm), counted=plain_norm))
    add_fused(case, problem, lambda name: lambda *tensors: residual_layer_norm(*tensors, eps=EPS, backend=name))
    return case


def plain_norm(x: Tensor, update: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    total = x + update
    return total, F.layer_norm(total, (CHANNELS,), weight, bias, EPS)


def make_problem(
    op: str,
    shape: list[int],
    dtype: str,
    device: torch.device,
    eager: Call,
    tensors: list[tuple[int, ...]],
    outputs: list[tuple[int, ...]],
) -> Problem:
    """Random inputs of these shapes. Vectors are around one, as norms' weights are; matrices are a layer's weights."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(size: tuple[int, ...]) -> Tensor:
        values = torch.randn(size, generator=generator, device=device, dtype=torch.float32)
        if len(size) == 1:
            values += 1.0
        elif len(size) == 2:
            values *= size[-1] ** -0.5
        return values.to(DTYPES[dtype])

    size = sum(math.prod(part) for part in tensors) * DTYPES[dtype].itemsize
    inputs = [
        Inputs(tuple(draw(part).requires_grad_() for part in tensors), tuple(draw(part) for part in outputs))
        for _ in range(input_sets(device, size))
    ]

    def exact() -> list[Tensor]:
        wide = Inputs(
            tuple(tensor.detach().double().requires_grad_() for tensor in inputs[0].tensors),
            tuple(grad.double() for grad in inputs[0].grads),
        )
        return Variant("exact", Problem(op, shape, "float64", [wide], list, eager), eager).both()

    return Problem(op, shape, dtype, inputs, exact, eager)


def input_sets(device: torch.device, size: int) -> int:
    """Sets of ``size`` bytes to go round, so that a GPU finds none of them in its cache; one on a CPU, where the
    step before leaves an operator's input in the cache in a model too."""
    if device.type != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return min(max(2, 1 + math.ceil(2 * cache / size)), 32)


def add_plain(
    case: Case, problem: Problem, make: Callable[[Attend], Call], device: torch.device, wanted: bool
) -> None:
    """PyTorch's own: explicit softmax, SDPA, each compiled; on a GPU also every kernel of SDPA, and FlexAttention."""
    attends: dict[str, Attend] = {"eager": attend_eager, "sdpa": attend_sdpa}
    if device.type == "cuda":
        attends |= {f"sdpa-{name}": sdpa_by(kernel) for name, kernel in SDPA_KERNELS.items()}
    for name, attend in attends.items():
        case.variants.append(Variant(name, problem, make(attend)))
    if not wanted:
        return
    for name in ("eager", "sdpa"):
        call = make(attends[name])
        case.variants.append(Variant(f"compile-{name}", problem, compiled(call), counted=call))
    if device.type == "cuda" and problem.op == "region_attention":
        from torch.nn.attention.flex_attention import flex_attention

        counted = make(attend_sdpa)
        case.variants.append(Variant("compile-flex", problem, compiled(make(flex_attention)), counted=counted))


def add_peers(case: Case, problem: Problem, device: torch.device) -> None:
    """Attention of other packages, or why not."""
    attends, reasons = peers(device, problem.dtype)
    for name, attend in attends.items():
        case.variants.append(Variant(name, problem, packed_attention(attend, HEADS)))
    for name, reason in reasons.items():
        case.leave_out(problem, name, reason)


def add_fused(case: Case, problem: Problem, make: Callable[[str], Call]) -> None:
    """Ours on each backend that can run these inputs; the others with their reason."""
    for name in backends.NAMES[1:]:
        variant = Variant(f"fused-{name}", problem, make(name))
        try:
            with torch.no_grad():
                variant.forward()
        except BackendUnavailable as unavailable:
            case.leave_out(problem, variant.name, unavailable)
        else:
            case.variants.append(variant)
