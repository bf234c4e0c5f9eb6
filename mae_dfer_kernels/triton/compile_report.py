"""What the Triton kernels compile to, without a GPU: registers, spills and shared memory.

``python -m mae_dfer_kernels.triton.compile_report`` prints a table for the shapes that must be fast.
Compiles ahead of time with Triton and reads the resources back with the `cuobjdump` that Triton ships.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mae_dfer_kernels.triton import launch, residual_layer_norm
from mae_dfer_kernels.triton import region_attention_loop as loop_kernels
from mae_dfer_kernels.triton import region_attention_tile as tile_kernels
from mae_dfer_kernels.triton import residual_layer_norm_rows as norm_kernels
from mae_dfer_kernels.triton.device import compile_options

FAST_TOKENS = (11, 41, 51, 101)
CAPABILITIES = (80, 90, 100)
_NUM_HEADS = 8
_ITEMSIZE = {"bf16": 2, "fp16": 2, "fp32": 4}
# Types of the parameters that are neither pointers to `dtype`, nor strides, nor compile-time constants.
_TYPES = {
    "p_statistics": "*fp32", "num_regions": "i32", "statistic": "i64", "scale": "fp32",
    "scale_log2": "fp32", "keep_scale": "fp32", "seed": "i64", "threshold": "u32",
    "p_scale": "*fp32", "p_weight": "*fp32", "p_bias": "*fp32", "p_partial": "*fp32",
    "num_rows": "i32", "rows_per_group": "i32", "eps": "fp32",
}  # fmt: skip


class Resources(NamedTuple):
    """Resources of one compiled kernel; `stack` is the memory of spilled registers."""

    kernel: str
    registers: int
    stack: int
    shared: int


def cuobjdump() -> Path | None:
    """Triton's own copy of the tool, or None where a build of Triton lacks it."""
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return path if path.is_file() else None


def compile_shape(
    tokens: int, head_dim: int = 64, dtype: str = "bf16", capability: int = 90, dropout: bool = False
) -> list[Resources]:
    """Compile every kernel that regions of `tokens` tokens launch, forward and backward.

    Args:
        dtype: "bf16", "fp16" or "fp32".
        capability: 80, 90, 100 and so on.
    """
    constants = {"H": _NUM_HEADS, "D": head_dim, "DROPOUT": dropout}
    return [
        _compile(kernel, dtype, capability, {**constants, **settings}, num_warps)
        for kernel, settings, num_warps in _kernels(tokens, head_dim, _ITEMSIZE[dtype], dropout)
    ]


def compile_residual_layer_norm(channels: int = 512, dtype: str = "bf16", capability: int = 90) -> list[Resources]:
    """Compile residual + LayerNorm for rows of `channels` channels, forward and backward, with stochastic depth."""
    settings = dict(residual_layer_norm.settings(channels))
    num_warps = settings.pop("num_warps")
    constants = {**settings, "SCALED": True}
    return [
        _compile(norm_kernels.forward_rows, dtype, capability, constants, num_warps),
        _compile(norm_kernels.backward_rows, dtype, capability, {**constants, "HAS_GRAD_SUM": True}, num_warps),
    ]


def _kernels(tokens: int, head_dim: int, itemsize: int, dropout: bool) -> Iterator[tuple[Any, dict[str, int], int]]:
    """(kernel, its tile constants, warps), as `region_attention.forward` and `backward` launch them."""
    shape = (tokens, head_dim, itemsize, dropout)
    tile = launch.tile_forward(*shape)
    if tile is not None:
        yield tile_kernels.forward_tile, _tile_constants(tokens, tile), tile.num_warps
    else:
        loop = launch.loop_forward(head_dim, itemsize)
        yield loop_kernels.forward_loop, _loop_constants(tokens, loop), loop.num_warps
    tile = launch.tile_backward(*shape)
    if tile is not None:
        yield tile_kernels.backward_tile, _tile_constants(tokens, tile), tile.num_warps
        return
    loop = launch.loop_backward_dq(head_dim, itemsize)
    yield loop_kernels.backward_loop_dq, _loop_constants(tokens, loop), loop.num_warps
    loop = launch.loop_backward_dkdv(head_dim, itemsize)
    yield loop_kernels.backward_loop_dkdv, _loop_constants(tokens, loop), loop.num_warps


def _tile_constants(tokens: int, tile: launch.Tile) -> dict[str, int]:
    return {"S": tokens, "REGIONS": tile.regions, "BLOCK": tile.block, "CHUNK": tile.chunk}


def _loop_constants(tokens: int, loop: launch.Loop) -> dict[str, int]:
    return {"S": tokens, "ROWS": loop.rows, "COLUMNS": loop.columns}


def _compile(kernel: Any, dtype: str, capability: int, constants: dict[str, int | bool], num_warps: int) -> Resources:
    signature = {name: _parameter_type(name, dtype, constants) for name in kernel.arg_names}
    # What a launch finds out about its arguments: aligned pointers, strides that 16 divides.
    aligned: dict[tuple[int, ...], list[list[Any]]] = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(kernel.arg_names)
        if name.startswith(("p_", "stride_"))
    }
    compiled = triton.compile(
        ASTSource(kernel, signature, constants, aligned),
        target=GPUTarget("cuda", capability, 32),
        options=compile_options(num_warps),
    )
    registers, stack = _read_resources(compiled.asm["cubin"])
    return Resources(kernel.__name__, registers, stack, compiled.metadata.shared)


def _parameter_type(name: str, dtype: str, constants: dict[str, int | bool]) -> str:
    if name in constants:
        return "constexpr"
    if name in _TYPES:
        return _TYPES[name]
    return "i32" if name.startswith("stride_") else f"*{dtype}"


def _read_resources(cubin: bytes) -> tuple[int, int]:
    """(registers, bytes of stack)."""
    tool = cuobjdump()
    if tool is None:
        raise FileNotFoundError("this build of Triton has no cuobjdump")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        text = subprocess.run(
            [str(tool), "--dump-resource-usage", str(path)], check=True, capture_output=True, text=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise ValueError(f"no register count in the output of cuobjdump: {text!r}")
    return int(found[1]), int(found[2])


def main() -> None:
    """Print the tables."""
    print("Region attention, bf16, D = 64, 8 heads\n")
    print("| S | compute capability | kernel | registers | stack, bytes | shared memory, bytes |")
    print("|---|---|---|---|---|---|")
    for tokens in (*FAST_TOKENS, 201):
        for capability in CAPABILITIES:
            for kernel, registers, stack, shared in compile_shape(tokens, capability=capability):
                print(f"| {tokens} | {capability} | {kernel} | {registers} | {stack} | {shared} |")
    print("\nResidual + LayerNorm, bf16\n")
    print("| C | compute capability | kernel | registers | stack, bytes | shared memory, bytes |")
    print("|---|---|---|---|---|---|")
    for channels in (384, 512, 768):
        for capability in CAPABILITIES:
            for kernel, registers, stack, shared in compile_residual_layer_norm(channels, capability=capability):
                print(f"| {channels} | {capability} | {kernel} | {registers} | {stack} | {shared} |")


if __name__ == "__main__":
    main()
