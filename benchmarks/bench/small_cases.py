"""One small call of every operator, kernel and backend, forward and backward, for a checker to watch.

    python -m bench.small_cases --backends triton cuda      (in benchmarks/)

Inputs are made on the CPU, so that nearly all that runs on the GPU is kernels of ours. Results are not looked at:
the tests do that. Prints a line a case, and how many there were.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from mae_dfer_kernels import BackendUnavailable, exchange, layer_norm, region_attention, residual_layer_norm

HEADS = 2
# Several regions in a tile, one region in a tile, a loop over tiles; not full ones.
REGIONS = [(7, 11, 64), (3, 41, 64), (2, 101, 64), (1, 150, 32)]
DTYPES = [torch.float32, torch.bfloat16]
Call = Callable[..., "Tensor | tuple[Tensor, ...]"]


def cases(device: str) -> Iterator[tuple[str, Call, tuple[Tensor, ...]]]:
    """Name, a call that takes the backend's name and tensors, and these."""
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(dtype).to(device)

    for dtype in DTYPES:
        kind = str(dtype).removeprefix("torch.")
        for regions, tokens, head_dim in REGIONS:
            qkv = draw(regions, tokens, 3 * HEADS * head_dim)
            for dropout_p in (0.0, 0.2):
                name = f"region_attention S={tokens} D={head_dim} {kind} dropout={dropout_p}"
                yield name, functools.partial(_attend, dropout_p), (qkv,)
        yield f"residual_layer_norm {kind}", _add_and_norm, (draw(3, 37, 512), draw(3, 37, 512), draw(512), draw(512))
        yield f"layer_norm {kind}", _norm, (draw(3, 37, 512), draw(512), draw(512))
        channels = 128
        local, context = draw(2, 3, 21, channels), draw(2, 3, channels)
        norm, biases = (draw(channels), draw(channels)), (draw(channels), draw(channels))
        projection = draw(channels, channels) / 11, draw(channels)
        yield f"exchange {kind}", _exchange, (local, context, *norm, draw(3 * channels, channels) / 11, *biases,
                                              *projection)  # fmt: skip


def _attend(dropout_p: float, backend: str, qkv: Tensor) -> Tensor:
    seed = 2**40 + 3 if dropout_p else None
    return region_attention(qkv, HEADS, dropout_p=dropout_p, seed=seed, backend=backend)


def _add_and_norm(backend: str, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    return residual_layer_norm(*tensors, backend=backend)


def _norm(backend: str, *tensors: Tensor) -> Tensor:
    return layer_norm(*tensors, backend=backend)


def _exchange(backend: str, *tensors: Tensor) -> Tensor:
    return exchange(*tensors, HEADS, form="absorbed", backend=backend)


def run(call: Call, backend: str, tensors: tuple[Tensor, ...]) -> None:
    """Forward and backward."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    outputs = call(backend, *leaves)
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    grads = [torch.ones(output.shape, dtype=output.dtype).to(output.device) for output in outputs]
    torch.autograd.grad(outputs, leaves, grads)
    if outputs[0].is_cuda:
        torch.cuda.synchronize()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.small_cases", description=__doc__.splitlines()[0])
    parser.add_argument("--backends", nargs="+", default=["triton", "cuda"])
    options = parser.parse_args(argv)
    count = 0
    for backend in options.backends:
        for name, call, tensors in cases("cpu" if backend in ("eager", "cpu") else "cuda"):
            try:
                run(call, backend, tensors)
            except BackendUnavailable as unavailable:
                print(f"left out: {backend} {name}: {unavailable}", flush=True)
            else:
                count += 1
                print(f"{backend} {name}", flush=True)
    print(f"{count} cases ran")
    return 0


if __name__ == "__main__":
    sys.exit(main())
