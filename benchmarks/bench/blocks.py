"""One block of the base models: LGI-Former's by every path, VideoMAE's by SDPA and by ours. At one size, or at many.

In bfloat16 they compute as they train: float32 parameters and residual stream, under autocast.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.encoders import LGI, SLOW_TO_COMPILE, able_backends, draw_weights, run_model, use_sdpa
from bench.variants import Call, Case, Inputs, Problem, Variant, overall_errors
from mae_dfer.models import ModelConfig
from mae_dfer.models.lgi_former import LGIBlock
from mae_dfer.models.vit import ViTBlock

VIT_CHANNELS, VIT_HEADS = 768, 12
# In float64 and step by step, joint attention of more tokens than this would fill the memory of a small machine.
CHECKED_TOKENS = 1600


class Size(NamedTuple):
    """Clips of ``frames`` frames of ``side`` × ``side`` pixels; regions of (time, height, width) tokens."""

    frames: int
    side: int
    region: tuple[int, int, int]

    @property
    def config(self) -> ModelConfig:
        return ModelConfig(name=LGI, img_size=(self.side, self.side), num_frames=self.frames, region_size=self.region)


PAPER = Size(16, 160, (2, 5, 10))
LONGER = [Size(frames, 160, (2, 5, 10)) for frames in (16, 32, 64, 128)]
LARGER = [Size(16, side, (2, side // 32, side // 16)) for side in (160, 224, 320, 448)]


def block_case(
    device: torch.device, dtype: str, clips: int, size: Size, compile_which: str = "none", level: str = "block"
) -> Case:
    """All variants of LGI-Former's block share its weights; those of VideoMAE's, another width, its own."""
    torch.manual_seed(0)
    config = size.config
    case = Case(level, f"block, {size.frames} frames of {size.side}²: {config.num_tokens} tokens")
    shape = (clips, config.num_regions, 1 + config.num_tokens // config.num_regions, config.embed_dim)
    block = draw_weights(LGIBlock(_with(config, fused=False), 0.0)).to(device)
    lgi = make_problem("lgi_block", block, shape, dtype, device)

    def by_sdpa() -> nn.Module:
        return use_sdpa(_sharing(block, LGIBlock(_with(config, fused=False), 0.0)))

    def add(name: str, path: nn.Module, problem: Problem, backend: str | None = None, **more: Call) -> None:
        call = run_model(path, device, dtype, backend)
        case.variants.append(Variant(name, problem, call, leaves=list(path.parameters()), **more))

    add("eager", block, lgi)
    add("sdpa", by_sdpa(), lgi)
    if compile_which == "few":
        case.leave_out(lgi, "compile", SLOW_TO_COMPILE)
    elif compile_which == "all":
        compiled = by_sdpa()
        compiled.compile(dynamic=False)
        add("compile-sdpa", compiled, lgi, counted=case.variants[-1].call)
    fused = _sharing(block, LGIBlock(_with(config, fused=True), 0.0))
    for name in able_backends(case, lgi, config, device):
        add(f"fused-{name}", fused, lgi, backend=name)
    add_vit(case, add, device, dtype, clips, config.num_tokens)
    return case


def add_vit(
    case: Case, add: Callable[..., None], device: torch.device, dtype: str, clips: int, tokens: int
) -> None:
    """VideoMAE's block over all tokens of the same clips: as the opponent by SDPA, and with what of ours serves it."""
    vit = draw_weights(ViTBlock(VIT_CHANNELS, VIT_HEADS, 4.0, fused=False)).to(device)
    problem = make_problem("vit_block", vit, (clips, tokens, VIT_CHANNELS), dtype, device)
    opponent = use_sdpa(_sharing(vit, ViTBlock(VIT_CHANNELS, VIT_HEADS, 4.0, fused=False)))
    if tokens > CHECKED_TOKENS:
        # PyTorch's own; held against itself, since smaller sizes are checked and this one is too large for it.
        problem.exact = Variant("exact", problem, run_model(opponent, device, dtype),
                                leaves=list(opponent.parameters())).both  # fmt: skip
        problem.eager = run_model(opponent, device, dtype)
        problem.leaves = list(opponent.parameters())
    add("vit-sdpa", opponent, problem)
    if case.level == "block":
        add("vit-fused", _sharing(vit, ViTBlock(VIT_CHANNELS, VIT_HEADS, 4.0, fused=True)), problem)


def sweep_cases(device: torch.device, dtype: str) -> Iterator[tuple[str, Size, Case]]:
    """(axis, size, case): longer clips, then larger ones, one clip at a time."""
    for axis, sizes in (("frames", LONGER), ("side", LARGER)):
        for size in sizes:
            yield axis, size, block_case(device, dtype, 1, size, level="sweep")


def make_problem(op: str, block: nn.Module, shape: tuple[int, ...], dtype: str, device: torch.device) -> Problem:
    tensors = [torch.randn(shape).to(device) for _ in range(2)]
    inputs = [Inputs((tensors[0].requires_grad_(),), (tensors[1],))]
    exact = functools.cache(functools.partial(solve_exactly, block, inputs[0]))
    return Problem(op, list(shape), dtype, inputs, exact, run_model(block, device, dtype),
                   leaves=list(block.parameters()), errors=overall_errors)  # fmt: skip


def solve_exactly(block: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Output and gradients, of the input and of all parameters, in float64."""
    wide, x = copy.deepcopy(block).double(), inputs.tensors[0].detach().double().requires_grad_()
    out = wide(x)
    return [out.detach(), *torch.autograd.grad(out, [x, *wide.parameters()], inputs.grads[0].double())]


def _with(config: ModelConfig, *, fused: bool) -> ModelConfig:
    return ModelConfig(**{**config.to_dict(), "fused_attn": fused})


def _sharing(block: nn.Module, other: nn.Module) -> nn.Module:
    """``other`` on the memory of ``block``'s weights, as parameters of its own."""
    other.load_state_dict(block.state_dict(), assign=True)
    return other.requires_grad_()
