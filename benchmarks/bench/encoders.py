"""Whole classifiers: LGI-Former base by every path, and VideoMAE's ViT-B with joint attention by SDPA.

In bfloat16 they compute as they train: float32 parameters, under autocast.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from bench.variants import Call, Case, Inputs, Problem, Variant, attend_sdpa, auto_is, overall_errors
from mae_dfer import create_model
from mae_dfer.models import ModelConfig, VideoModel
from mae_dfer.models.layers import Attention
from mae_dfer_kernels import backends

Eager = TypeVar("Eager", bound=nn.Module)
LGI, VIT = "lgi_former_base_patch16_160", "vit_base_patch16_160"
CLIP = (3, 16, 160, 160)
SLOW_TO_COMPILE = "a block takes a minute to compile on two cores; --compile all does"


def encoder_cases(device: torch.device, dtypes: list[str], clips: int, compile_which: str) -> Iterator[Case]:
    """One case a dtype. All variants of a model share its weights."""
    torch.manual_seed(0)
    inputs = [draw_inputs(device, clips) for _ in range(1 if device.type == "cpu" else 2)]
    models = {name: draw_weights(create_model(name, fused_attn=False)).to(device) for name in (LGI, VIT)}
    exact = {name: functools.cache(functools.partial(solve_exactly, models[name], inputs[0])) for name in models}
    for dtype in dtypes:
        yield encoder_case(device, dtype, inputs, models, exact, compile_which)


def encoder_case(
    device: torch.device,
    dtype: str,
    inputs: list[Inputs],
    models: dict[str, VideoModel],
    exact: Mapping[str, Callable[[], list[Tensor]]],
    compile_which: str,
) -> Case:
    case = Case("encoder", "classifier")
    shape = list(inputs[0].tensors[0].shape)
    problems = {
        name: Problem(name.removesuffix("_patch16_160"), shape, dtype, inputs, exact[name],
                      run_model(model, device, dtype), leaves=list(model.parameters()), errors=overall_errors)
        for name, model in models.items()
    }  # fmt: skip

    def add(name: str, model: VideoModel, of: str, backend: str | None = None, eager: VideoModel | None = None) -> None:
        call = run_model(model, device, dtype, backend)
        counted = None if eager is None else run_model(eager, device, dtype)
        case.variants.append(Variant(name, problems[of], call, counted, list(model.parameters())))

    eager, sdpa = models[LGI], with_sdpa(models[LGI])
    add("eager", eager, LGI)
    add("sdpa", sdpa, LGI)
    if compile_which == "all":
        add("compile-eager", compile_blocks(sharing(eager)), LGI, eager=eager)
        add("compile-sdpa", compile_blocks(with_sdpa(eager)), LGI, eager=sdpa)
    elif compile_which == "few":
        case.leave_out(problems[LGI], "compile", SLOW_TO_COMPILE)
    for name in able_backends(case, problems[LGI], models[LGI].config, device):
        add(f"fused-{name}", sharing(models[LGI], fused_attn=True), LGI, backend=name)
    add("vit-sdpa", with_sdpa(models[VIT]), VIT)
    return case


def able_backends(case: Case, problem: Problem, config: ModelConfig, device: torch.device) -> Iterator[str]:
    """Our backends that can run this model's regions; the others are left out with their reason."""
    tokens = 1 + config.num_tokens // config.num_regions
    probe = torch.empty(1, tokens, 3 * config.embed_dim, device=device, dtype=getattr(torch, problem.dtype))
    for name in backends.NAMES[1:]:
        reason = backends.unavailable("region_attention", name, probe, config.num_heads)
        if reason is None:
            yield name
        else:
            case.leave_out(problem, f"fused-{name}", reason)


def draw_inputs(device: torch.device, clips: int) -> Inputs:
    clip, grad = torch.randn(clips, *CLIP), torch.randn(clips, 7)
    return Inputs((clip.to(device),), (grad.to(device),))


@torch.no_grad()
def draw_weights(model: Eager) -> Eager:
    """Weights as no initialisation leaves them: there many are zero, and what is wrong with those would not show."""
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return model


def run_model(model: nn.Module, device: torch.device, dtype: str, backend: str | None = None) -> Call:
    """``model``, or a block of one, to a float32 result."""
    low = dtype != "float32"

    def call(clip: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=low):
            if backend is None:
                return model(clip).float()
            with auto_is(backend):
                return model(clip).float()

    return call


def sharing(model: VideoModel, **overrides: bool) -> VideoModel:
    """The same model with other options, on the same memory for its weights."""
    with torch.device("meta"):
        other = create_model(model.config.name, **{"fused_attn": model.config.fused_attn, **overrides})
    other.load_state_dict(model.state_dict(), assign=True)
    for name, buffer in model.named_buffers():  # tables, which are no part of the state
        owner, _, attribute = name.rpartition(".")
        setattr(other.get_submodule(owner), attribute, buffer)
    return other.requires_grad_()


def with_sdpa(model: VideoModel) -> VideoModel:
    """The eager model with every attention by SDPA, those inside regions too."""
    return use_sdpa(sharing(model))


def use_sdpa(module: Eager) -> Eager:
    """Changes every attention of an eager module."""
    for attention in [part for part in module.modules() if isinstance(part, Attention)]:
        attention._attend = functools.partial(_attend_heads, attention.num_heads)
    return module


def _attend_heads(num_heads: int, *parts: Tensor) -> Tensor:
    heads = (part.unflatten(-1, (num_heads, -1)).transpose(1, 2) for part in parts)
    return attend_sdpa(*heads).transpose(1, 2).flatten(2)


def compile_blocks(model: VideoModel) -> VideoModel:
    """Every block through torch.compile. They share their code, so that one is compiled for all of them."""
    for block in model.encoder.blocks:
        block.compile(dynamic=False)
    return model


def solve_exactly(model: VideoModel, inputs: Inputs) -> list[Tensor]:
    """Logits and the gradients of all parameters in float64, a clip at a time to spare memory."""
    wide = copy.deepcopy(model).double()
    parameters, outputs = list(wide.parameters()), []
    for clip, grad in zip(inputs.tensors[0].split(1), inputs.grads[0].split(1), strict=True):
        output = wide(clip.double())
        output.backward(grad.double())
        outputs.append(output.detach())
    return [torch.cat(outputs), *(parameter.grad for parameter in parameters)]
