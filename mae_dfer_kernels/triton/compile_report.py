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

from mae_dfer_kernels.triton import column_sums, exchange, gelu_gradient, launch, residual_layer_norm
from mae_dfer_kernels.triton import column_sums_rows as column_kernels
from mae_dfer_kernels.triton import exchange_rows as exchange_kernels
from mae_dfer_kernels.triton import gelu_gradient_rows as gelu_kernels
from mae_dfer_kernels.triton import region_attention_loop as loop_kernels
from mae_dfer_kernels.triton import region_attention_tile as tile_kernels
from mae_dfer_kernels.triton import residual_layer_norm_rows as norm_kernels
from mae_dfer_kernels.triton.device import compile_options

FAST_TOKENS = (11, 41, 51, 101)
# (C, H, K): encoder and decoder of the base model with 8 regions, then its encoder with 16 and with 20.
FAST_EXCHANGES = ((512, 8, 8), (384, 6, 8), (512, 8, 16), (512, 8, 20))
CAPABILITIES = (80, 90, 100)
_NUM_HEADS = 8
_ITEMSIZE = {"bf16": 2, "fp16": 2, "fp32": 4}
# Types of the parameters that are neither pointers to `dtype`, nor strides, nor compile-time constants.
_TYPES = {
    "p_statistics": "*fp32", "num_regions": "i32", "statistic": "i64", "scale": "fp32",
    "scale_log2": "fp32", "keep_scale": "fp32", "seed": "i64", "threshold": "u32",
    "p_scale": "*fp32", "p_update_scale": "*fp32", "p_weight": "*fp32", "p_bias": "*fp32", "p_partial": "*fp32",
    "num_rows": "i32", "rows_per_group": "i32", "eps": "fp32", "clips": "i32", "clip_rows": "i32",
    "p_key_bias": "*fp32", "p_out_bias": "*fp32", "p_grad_keys": "*fp32", "p_grad_values": "*fp32",
    "p_grad_key_bias": "*fp32", "p_grad_out_bias": "*fp32",
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


def compile_residual_layer_norm(
    channels: int = 512, dtype: str = "bf16", capability: int = 90, alone: bool = False
) -> list[Resources]:
    """Compile residual + LayerNorm for rows of `channels` channels, forward and backward, with stochastic depth; or
    the LayerNorm `alone`, without an update."""
    settings = dict(residual_layer_norm.settings(channels))
    num_warps = settings.pop("num_warps")
    constants = {**settings, "SCALED": not alone}
    forward = {**constants, "HAS_UPDATE": not alone}
    backward = {**constants, "HAS_GRAD_SUM": True, "SHARED": alone}
    return [
        _compile(norm_kernels.forward_rows, dtype, capability, forward, num_warps),
        _compile(norm_kernels.backward_rows, dtype, capability, backward, num_warps),
    ]


def compile_gelu_gradient(channels: int = 2048, dtype: str = "bf16", capability: int = 90) -> list[Resources]:
    """Compile GELU's gradient for rows of `channels` channels."""
    constants = gelu_gradient.settings(channels)
    return [_compile(gelu_kernels.gelu_gradient_rows, dtype, capability, constants, gelu_gradient.NUM_WARPS)]


def compile_column_sums(channels: int = 512, dtype: str = "bf16", capability: int = 90) -> list[Resources]:
    """Compile sums over rows of `channels` channels."""
    num_warps = column_sums.NUM_WARPS
    first = column_sums.settings(channels, _ITEMSIZE[dtype])
    second = {"C": channels, **column_sums.PARTIAL_TILE}
    return [
        _compile(column_kernels.partial_sums, dtype, capability, first, num_warps),
        _compile(column_kernels.add_partial_sums, dtype, capability, second, num_warps),
    ]


def compile_exchange(
    channels: int = 512,
    num_heads: int = 8,
    tokens: int = 8,
    dtype: str = "bf16",
    capability: int = 90,
    stream_dtype: str | None = None,
    scaled: bool = True,
    splits: int = 1,
    update_dtype: str | None = None,
) -> list[Resources]:
    """Compile the exchange with `tokens` representative tokens, forward and backward.

    Args:
        dtype: of the operands of matrix products.
        stream_dtype: of the residual stream and its gradients; None: `dtype`.
        scaled: with stochastic depth.
        splits: programs among which the rows of a clip are split in the last kernel.
        update_dtype: of a branch that is still to be added to the stream; None: without one.
    """
    stream = dict.fromkeys(("p_x", "p_out", "p_grad_out", "p_grad_x"), f"*{stream_dtype or dtype}")
    stream |= dict.fromkeys(("p_update", "p_grad_update"), f"*{update_dtype or stream_dtype or dtype}")
    updated = update_dtype is not None
    given = (scaled, updated, updated)
    layout = exchange.layout(channels, num_heads * tokens, num_heads)
    shape = (layout["HP"] * layout["KP"], _ITEMSIZE[dtype], _ITEMSIZE[stream_dtype or dtype])
    backward = (*shape, capability >= 90, updated)
    launches = [
        (exchange_kernels.exchange_forward, exchange.tile_forward(*shape, updated), {"FRONT": 1}),
        (exchange_kernels.exchange_backward_rows, exchange.tile_backward_rows(*backward), {}),
        (exchange_kernels.exchange_backward_pairs, exchange.tile_backward_pairs(*backward), {"SPLITS": splits}),
    ]
    return [
        _compile(
            kernel, dtype, capability, {**layout, **exchange.constants(tile, *given), **more}, tile.num_warps, stream,
            tile.num_stages,
        )  # fmt: skip
        for kernel, tile, more in launches
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


def _compile(
    kernel: Any,
    dtype: str,
    capability: int,
    constants: dict[str, int | bool],
    num_warps: int,
    types: dict[str, str] | None = None,
    num_stages: int = 2,
) -> Resources:
    """`types` are those of parameters that are pointers to something else than `dtype`."""
    defaults = {name: "i32" if name.startswith("stride_") else f"*{dtype}" for name in kernel.arg_names}
    given = {**_TYPES, **(types or {}), **dict.fromkeys(constants, "constexpr")}
    signature = {name: given.get(name, default) for name, default in defaults.items()}
    # What a launch finds out about its arguments: aligned pointers, strides that 16 divides.
    aligned: dict[tuple[int, ...], list[list[Any]]] = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(kernel.arg_names)
        if name.startswith(("p_", "stride_"))
    }
    compiled = triton.compile(
        ASTSource(kernel, signature, constants, aligned),
        target=GPUTarget("cuda", capability, 32),
        options=compile_options(num_warps, num_stages),
    )
    registers, stack = _read_resources(compiled.asm["cubin"])
    return Resources(kernel.__name__, registers, stack, compiled.metadata.shared)


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
    attention = [
        (f"{tokens} | {capability}", compile_shape(tokens, capability=capability))
        for tokens in (*FAST_TOKENS, 201)
        for capability in CAPABILITIES
    ]
    _print_table("Region attention, bf16, D = 64, 8 heads", "S", attention)
    for title, compiled, widths in (
        ("Residual + LayerNorm", compile_residual_layer_norm, (384, 512, 768)),
        ("GELU's gradient", compile_gelu_gradient, (1536, 2048)),
        ("Sums over rows", compile_column_sums, (512, 1536)),
    ):
        rows = [
            (f"{dtype} | {channels} | {capability}", compiled(channels, dtype, capability))
            for dtype in ("bf16", "fp32")
            for channels in widths
            for capability in CAPABILITIES
        ]
        _print_table(title, "dtype | C", rows)
    exchanges = [
        (" | ".join(map(str, (*shape, capability))), compile_exchange(*shape, capability=capability))
        for shape in FAST_EXCHANGES
        for capability in CAPABILITIES
    ]
    _print_table("Exchange, bf16", "C | H | K", exchanges)


def _print_table(title: str, columns: str, rows: list[tuple[str, list[Resources]]]) -> None:
    head = f"| {columns} | compute capability | kernel | registers | stack, bytes | shared memory, bytes |"
    print(f"\n{title}\n\n{head}\n{'|---' * head.count(' | ')}|---|")
    for shape, resources in rows:
        for kernel in resources:
            print(f"| {shape} | {' | '.join(map(str, kernel))} |")


if __name__ == "__main__":
    main()
