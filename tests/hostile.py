"""Arguments that an operator was not made for, by kind, and memory that no kernel can read past the end of."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

JUNK: dict[str, Any] = {
    "None": None, "True": True, "'x'": "x", "b''": b"", "[]": [], "{}": {}, "object": object(), "[1.0]": [1.0],
    "1j": 1j, "a class": Tensor, "a dtype": torch.float32, "a tensor": torch.ones(2), "1": 1, "-0.5": -0.5,
    "a fraction": Fraction(1, 2),
}  # fmt: skip
"""For any argument: mostly of a wrong type."""

INTEGERS: dict[str, Any] = {
    str(value): value for value in (-(2**63), -1, 0, 1, 2, 3, 5, 2**31, 2**63 - 1, 2**63, 10**400)
}
NUMBERS: dict[str, Any] = {
    str(value): value
    for value in (-1.0, -1e-300, -0.0, 0.0, 5e-324, 1e-30, 0.5, 1 - 2**-53, 1.0, 2, 1e4, 1e30, 1e300,
                  float("inf"), float("-inf"), float("nan"))
} | {"10**400": 10**400}  # fmt: skip
STRINGS: dict[str, Any] = {
    text: text for text in ("", "auto", "eager", "cpu", "cuda", "triton", "CPU", "none", "cpu\0", "\ud800", "é" * 300)
}
DTYPES: dict[str, Any] = {
    str(dtype): dtype
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int64,
                  torch.uint8, torch.bool, torch.complex64, torch.quint8)
} | {"float": float, "'float32'": "float32"}  # fmt: skip


class Subclass(Tensor):
    pass


def _shaped(change: Callable[[list[int]], list[int]]) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor.detach().new_ones(change(list(tensor.shape)))


def _strided(tensor: Tensor, *strides: int) -> Tensor:
    room = sum((size - 1) * stride for size, stride in zip(tensor.shape, strides, strict=True) if size) + 1
    return torch.linspace(-1, 1, max(room, 1)).to(tensor.dtype).as_strided(tensor.shape, strides)


def _apart(tensor: Tensor) -> Tensor:
    """The same numbers, two elements from each other and one beyond the start of the memory."""
    spread = torch.full((2 * tensor.numel() + 1,), float("nan"), dtype=tensor.dtype)
    spread[1::2] = tensor.detach().flatten()
    return spread[1::2].view(tensor.shape)


def _turned(tensor: Tensor) -> Tensor:
    axes = tuple(reversed(range(tensor.dim())))
    return tensor.permute(axes).contiguous().permute(axes)


def _negated(tensor: Tensor) -> Tensor:
    """The same numbers, in memory that holds their negatives: a view of a complex tensor's conjugate."""
    if tensor.dtype not in (torch.float32, torch.float64):
        return tensor
    detached = tensor.detach()
    return torch.complex(detached, -detached).conj().imag


LIES: dict[str, Callable[[Tensor], Any]] = {
    "apart": _apart,
    "axes turned": _turned,
    "overlapping": lambda t: _strided(t, *(1 for _ in t.shape)),
    "zero strides": lambda t: _strided(t, *(0 for _ in t.shape)),
    "rows repeated": lambda t: _strided(t, *(0 for _ in t.shape[1:]), 1) if t.dim() else t,
    "negated": _negated,
    "wants a gradient": lambda t: t.detach().requires_grad_(t.is_floating_point()),
    "in a graph": lambda t: t.detach().requires_grad_() * 1 if t.is_floating_point() else t,
    "parameter": lambda t: torch.nn.Parameter(t.detach(), requires_grad=t.is_floating_point()),
    "subclass": lambda t: t.as_subclass(Subclass),  # type: ignore[arg-type]
}
"""Other ways to hold a tensor of the same shape and dtype, which every operator must take."""

WANT_GRADIENT = ("wants a gradient", "in a graph", "parameter")
"""Those of them that ask for a gradient."""

UNFIT: dict[str, Callable[[Tensor], Any]] = {
    "an axis more": _shaped(lambda shape: [1, *shape]),
    "an axis less": _shaped(lambda shape: shape[1:]),
    "no axes": _shaped(lambda shape: []),
    "first axis longer": _shaped(lambda shape: [*(size + 1 for size in shape[:1]), *shape[1:]]),
    "last axis longer": _shaped(lambda shape: [*shape[:-1], *(size + 1 for size in shape[-1:])]),
    "last axis shorter": _shaped(lambda shape: [*shape[:-1], *(max(size - 1, 0) for size in shape[-1:])]),
    "one axis of 1": _shaped(lambda shape: [1 for _ in shape]),
    "first axis empty": _shaped(lambda shape: [0 for _ in shape[:1]] + shape[1:]),
    "middle axes empty": _shaped(lambda shape: [*shape[:1], *(0 for _ in shape[1:-1]), *shape[-1:]]),
    "last axis empty": _shaped(lambda shape: shape[:-1] + [0 for _ in shape[-1:]]),
    "long and empty": _shaped(lambda shape: [70_000, 0, *shape[2:]]),
    **{
        f"as {name}": lambda t, dtype=dtype: t.detach().to(dtype)
        for name, dtype in DTYPES.items()
        if isinstance(dtype, torch.dtype) and dtype != torch.quint8
    },
    "quantised": lambda t: torch.quantize_per_tensor(t.detach().float(), 0.1, 0, torch.quint8),
    "on meta": lambda t: t.detach().to("meta"),
    "sparse": lambda t: t.detach().to_sparse(),
    "sparse rows": lambda t: t.detach().to_sparse_csr() if t.dim() == 2 else t.detach().flatten().to_sparse(),
    "mkldnn": lambda t: t.detach().float().to_mkldnn() if torch.backends.mkldnn.is_available() else t,
    "nested": lambda t: torch.nested.nested_tensor([t.detach(), t.detach()]) if t.dim() else t,
    "all NaN": lambda t: t.detach() * float("nan"),
    "all infinite": lambda t: t.detach() * float("inf"),
    "huge": lambda t: t.detach() * 1e30,
    "a list": lambda t: t.tolist(),
    "an array": lambda t: t.detach().float().numpy(),
}
"""What differs in shape, dtype, device, layout, value or type; an operator takes it if it fits all the same."""


class Fence:
    """Memory of one tensor that ends where the next page cannot be read: one element further is the process's end."""

    def __init__(self, size: int = 1 << 16) -> None:
        self.size = size
        self.memory = mmap.mmap(-1, size + mmap.PAGESIZE)
        if sys.platform == "linux":
            last = ctypes.addressof(ctypes.c_char.from_buffer(self.memory, size))
            libc = ctypes.CDLL(None, use_errno=True)
            no_access = 0
            if libc.mprotect(ctypes.c_void_p(last), ctypes.c_size_t(mmap.PAGESIZE), no_access) != 0:
                raise OSError(ctypes.get_errno(), "mprotect")

    def hold(self, tensor: Tensor) -> Tensor:
        """The same numbers at the same strides, ending with this memory; what it held before is overwritten."""
        if tensor.numel() == 0:
            return tensor
        span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        start = self.size - span * tensor.element_size()
        memory = torch.frombuffer(self.memory, dtype=tensor.dtype, count=span, offset=start)
        memory.copy_(tensor.detach().as_strided((span,), (1,)))
        held = memory.as_strided(tensor.shape, tensor.stride())
        return held.requires_grad_(tensor.requires_grad)


def can_be_held(value: Any) -> bool:
    """Whether a value is a tensor with memory of its own and nothing else about it."""
    return (
        type(value) is Tensor
        and value.layout == torch.strided
        and not value.is_nested
        and not value.is_quantized
        and not value.is_neg()
        and value.device.type == "cpu"
        and value.is_leaf
        and value.untyped_storage().nbytes() > 0
    )
