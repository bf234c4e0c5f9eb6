"""Every operator on every backend of a GPU, against float64. Without a GPU the same by the CPU's kernels.

Letters: R regions, S tokens, D channels a head, B clips.
"""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from mae_dfer import create_model
from mae_dfer.data.masks import region_window_tube_mask
from mae_dfer.training.graphs import GraphedModel
from mae_dfer.training.hardware import Hardware
from mae_dfer_kernels import BackendUnavailable, exchange, layer_norm, region_attention, residual_layer_norm

GPU = torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1"
DEVICE, BACKENDS = ("cuda", ["triton", "cuda"]) if GPU else ("cpu", ["cpu"])
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
HEADS, CHANNELS = 4, 256
Call = Callable[..., "Tensor | tuple[Tensor, ...]"]
Shapes = list[tuple[int, ...]]


def attend(qkv: Tensor, backend: str, dropout_p: float) -> Tensor:
    seed = 2**40 + 3 if dropout_p else None
    return region_attention(qkv, HEADS, dropout_p=dropout_p, seed=seed, backend=backend)


def add_and_norm(*tensors: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return residual_layer_norm(*tensors, backend=backend)


def exchanged(*tensors: Tensor, backend: str) -> Tensor:
    # Eager as the paper writes it: what the kernels compute is the absorbed form.
    form = "plain" if backend == "eager" else "absorbed"
    return exchange(*tensors, HEADS, form=form, backend=backend)


def cases() -> Iterator[tuple[str, Call, Shapes]]:
    """Name, operator, shapes of what it takes."""
    # More regions than a GPU has multiprocessors; regions packed in a tile, in a tile each, in a loop over tiles.
    many = 300 if GPU else 7
    for regions, tokens, head_dim in ((many, 11, 64), (5, 41, 64), (40, 101, 64), (3, 200, 32), (2, 130, 128)):
        for dropout_p in (0.0, 0.2):
            name = f"region-S{tokens}-D{head_dim}" + ("-dropout" if dropout_p else "")
            yield name, functools.partial(attend, dropout_p=dropout_p), [(regions, tokens, 3 * HEADS * head_dim)]
    rows, vector, square = (3, 7, 101, CHANNELS), (CHANNELS,), (CHANNELS, CHANNELS)
    yield "norm", add_and_norm, [rows, rows, vector, vector]
    yield "norm-alone", layer_norm, [rows, vector, vector]
    weights = [vector, vector, (3 * CHANNELS, CHANNELS), vector, vector, square, vector]
    # The base model's number of representative tokens, fewer and more; the last are several passes of the CUDA kernels.
    for name, tokens in (("exchange", 8), ("exchange-K3", 3), ("exchange-K40", 40)):
        yield name, exchanged, [(3, 4, 50, CHANNELS), (3, tokens, CHANNELS), *weights]


CASES = {name: (call, shapes) for name, call, shapes in cases()}
# Enough to see that this file is right; the CPU's kernels have tests of their own.
RUN = list(CASES) if GPU else ["region-S11-D64-dropout", "norm", "norm-alone", "exchange"]


def draw(shapes: Shapes, dtype: torch.dtype, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = [torch.randn(shape, generator=generator) for shape in shapes]
    scaled = [tensor * tensor.shape[-1] ** -0.5 if tensor.dim() == 2 else tensor for tensor in found]
    return [tensor.to(dtype).to(DEVICE) for tensor in scaled]


def results(call: Call, tensors: list[Tensor]) -> list[Tensor]:
    """Outputs, then the gradients of all tensors."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    outputs = call(*leaves)
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    drawn = draw([output.shape for output in outputs], torch.float32, 1)
    grads = [grad.to(output) for grad, output in zip(drawn, outputs, strict=True)]
    return [tensor.detach().double() for tensor in (*outputs, *torch.autograd.grad(outputs, leaves, grads))]


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("case", RUN)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gpu_no_less_exact_than_plain_pytorch(backend: str, case: str, dtype: str) -> None:
    call, shapes = CASES[case]
    tensors = draw(shapes, DTYPES[dtype], 0)
    try:
        found = results(functools.partial(call, backend=backend), tensors)
    except BackendUnavailable as unavailable:
        pytest.skip(str(unavailable))
    eager = functools.partial(call, backend="eager")
    exact, plain = results(eager, [tensor.double() for tensor in tensors]), results(eager, tensors)
    for index, (right, rough, ours) in enumerate(zip(exact, plain, found, strict=True)):
        # Root mean squares: the largest of a few roundings is luck.
        error, eager_error, size = (part.square().mean().sqrt() for part in (ours - right, rough - right, right))
        allowed = 2 * eager_error + torch.finfo(DTYPES[dtype]).eps / 8 * size
        assert error <= allowed, f"result {index}: error {error:.3g}, allowed {allowed:.3g}"
    again = results(functools.partial(call, backend=backend), tensors)
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True)), "other bits on a second run"


@pytest.mark.skipif(not GPU, reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("case", ["region-S101-D64", "norm", "exchange"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gpu_graphs_replay_the_operators(backend: str, case: str) -> None:
    """Launches queue on the stream of the capture, and allocate from torch alone."""
    call, shapes = CASES[case]
    tensors = draw(shapes, torch.bfloat16, 0)
    try:
        with torch.no_grad():
            call(*tensors, backend=backend)  # compiles, which a capture does not allow
    except BackendUnavailable as unavailable:
        pytest.skip(str(unavailable))
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        captured = call(*tensors, backend=backend)
    for tensor, fresh in zip(tensors, draw(shapes, torch.bfloat16, 2), strict=True):
        tensor.copy_(fresh)
    graph.replay()
    with torch.no_grad():
        right = call(*tensors, backend=backend)
    for one, other in zip(*((part,) if isinstance(part, Tensor) else part for part in (captured, right)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("amp", [None, torch.bfloat16], ids=["fp32", "bf16"])
def test_gpu_fused_model_errs_no_more_than_the_eager_one(amp: torch.dtype | None) -> None:
    """Of logits, and of all gradients together: the root mean square of relative errors against float64."""
    torch.manual_seed(0)
    eager = create_model("lgi_former_tiny_patch16_160", fused_attn=False, drop_path_rate=0.0)
    for parameter in eager.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    fused = create_model("lgi_former_tiny_patch16_160", fused_attn=True, drop_path_rate=0.0)
    fused.load_state_dict(eager.state_dict())
    clip = torch.randn(2, 3, 16, 160, 160)
    found = []
    for model, kind in ((copy.deepcopy(eager).double(), None), (eager, amp), (fused, amp)):
        model.to(DEVICE).train()
        with torch.autocast(DEVICE, dtype=kind, enabled=kind is not None):
            out = model(clip.to(DEVICE, next(model.parameters()).dtype))
        grads = torch.autograd.grad(out.float().square().sum(), list(model.parameters()))
        found.append([out.detach().double(), *(grad.double() for grad in grads)])
    exact, plain, ours = found
    norm = torch.linalg.vector_norm
    errors = [[norm(part - right) / norm(right).clamp_min(1e-30) for part, right in zip(parts, exact, strict=True)]
              for parts in (plain, ours)]  # fmt: skip
    (eager_logits, *eager_grads), (logits, *grads) = errors
    assert logits <= 2 * eager_logits + 1e-6
    assert torch.stack(grads).square().mean().sqrt() <= 2 * torch.stack(eager_grads).square().mean().sqrt() + 1e-6


@pytest.mark.skipif(not GPU, reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("amp", [None, torch.bfloat16])
@pytest.mark.parametrize("name", ["lgi_former_tiny_patch16_160", "mae_lgi_former_tiny_patch16_160"])
def test_gpu_graphed_training_steps_are_those_without_graphs(name: str, amp: torch.dtype | None) -> None:
    torch.manual_seed(0)
    hardware = Hardware(torch.device("cuda", torch.cuda.current_device()), amp)
    plain = create_model(name).to(hardware.device).train()
    for parameter in plain.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)  # the first weights of a head are almost zero
    rng = np.random.default_rng(0)
    masks = [torch.stack([region_window_tube_mask((8, 10, 10), 0.9, (5, 10), rng) for _ in range(2)]) for _ in range(3)]
    batches = [(torch.randn(2, 3, 16, 160, 160, device=hardware.device), mask) for mask in masks]
    batches = [batch if name.startswith("mae") else batch[:1] for batch in batches]
    graphed = GraphedModel(copy.deepcopy(plain), batches.pop(), hardware.autocast(cache=False))
    for batch in batches:  # the second with weights that are no longer those of the capture
        found = []
        for model in (plain, graphed):
            with hardware.autocast():
                loss = model(*batch).float().square().mean()
            loss.backward()
            found.append([loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
            torch.optim.SGD(model.parameters(), lr=0.1).step()
            model.zero_grad(set_to_none=True)
        for right, ours in zip(*found, strict=True):
            error, size = (torch.linalg.vector_norm(part) for part in (ours - right, right))
            # In 16 bits some gradients nearly cancel: what is left of them is much the rounding of their terms.
            assert error <= (1e-4 if amp is None else 0.1) * size
