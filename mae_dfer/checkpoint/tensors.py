"""The calls in a checkpoint's pickle that make tensors, carried out on memory of the file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .mapped import DamagedFile
from .unpickle import Placeholder, make_dict

_MAX_DIMENSIONS = 64
_DTYPES = {f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}

_STORAGE_KINDS = {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64", "Int": "int32",
    "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool", "ComplexDouble": "complex128",
    "ComplexFloat": "complex64", "Untyped": "uint8",
    # Quantised tensors are not read; what follows their storages in a file is.
    "QUInt8": "quint8", "QInt8": "qint8", "QInt32": "qint32", "QUInt4x2": "quint4x2", "QUInt2x4": "quint2x4",
}  # fmt: skip
STORAGE_DTYPES = {
    f"{module}.{kind}Storage": _DTYPES[f"torch.{name}"]
    for module in ("torch", "torch.cuda", "torch.storage")
    for kind, name in _STORAGE_KINDS.items()
    if f"torch.{name}" in _DTYPES
}


@dataclass(frozen=True)
class Storage:
    """Flat memory, (bytes,) uint8, and the dtype of its elements."""

    memory: Tensor
    dtype: torch.dtype


def storage_of(memory: Tensor, dtype: torch.dtype, first: int, count: int) -> Storage:
    """``count`` elements of ``memory`` (bytes,), from element ``first`` on."""
    start, end = first * dtype.itemsize, (first + count) * dtype.itemsize
    if not 0 <= start <= end <= len(memory):
        raise DamagedFile("a storage is shorter than it should be")
    return Storage(memory[start:end], dtype)


def storage_loader(take: Callable[[str, torch.dtype, int, list[Any]], Any]) -> Callable[[Any], Any]:
    """What persistent ids stand for: ``take(key, dtype, count, view)`` for a storage, and a placeholder otherwise."""

    def load(identity: Any) -> Any:
        match identity:
            case ("storage", Placeholder() as kind, str(key), _, int(count), *view):
                dtype = STORAGE_DTYPES.get(kind.name)
                return Placeholder(kind.name) if dtype is None else take(key, dtype, count, view)
            case ("module", Placeholder() as kind, *_):  # a class, with its source code
                return kind
        return Placeholder("persistent id")

    return load


def make_tensor(storage: Storage, dtype: torch.dtype, offset: Any, size: Any, stride: Any) -> Tensor | Placeholder:
    """The tensor of these sizes in a storage, checked: nothing about them can be believed.

    Returns:
        A view of the storage; a placeholder where it has more elements than its storage, so that no later copy of
        it can take more memory than the file is long.

    Raises:
        DamagedFile: numbers that are no sizes, or that reach beyond the storage.
    """
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or len(size) > _MAX_DIMENSIONS:
        raise DamagedFile("a tensor has an impossible number of dimensions")
    if not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        raise DamagedFile("a tensor has impossible sizes")
    room, count = len(storage.memory) // dtype.itemsize, math.prod(size)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if last >= room if count else offset > room:
        raise DamagedFile("a tensor reaches beyond its storage")
    if count > room:
        return Placeholder("expanded tensor")
    try:
        elements = storage.memory[: room * dtype.itemsize].view(dtype)
        return elements.as_strided(size, stride, elements.storage_offset() + offset)
    except RuntimeError:  # a dtype that memory of bytes cannot be viewed as
        return Placeholder(f"tensor of {dtype}")


def _rebuild_tensor(arguments: tuple[Any, ...]) -> Tensor | Placeholder:
    """In further arguments: whether it wants a gradient, hooks, and what marks conjugated or negated memory."""
    match arguments:
        case (Storage() as storage, offset, tuple(size), tuple(stride), *more):
            return _marked(more[2:]) or make_tensor(storage, storage.dtype, offset, size, stride)
    return _without_storage(arguments)


def _rebuild_tensor_v3(arguments: tuple[Any, ...]) -> Tensor | Placeholder:
    """Has the dtype before the marks; the storage is of bytes."""
    match arguments:
        case (Storage() as storage, offset, tuple(size), tuple(stride), _, _, Placeholder() as kind, *marks):
            dtype = _DTYPES.get(kind.name)
            return _marked(marks) or (
                Placeholder(kind.name) if dtype is None else make_tensor(storage, dtype, offset, size, stride)
            )
    return _without_storage(arguments)


def _marked(marks: list[Any]) -> Placeholder | None:
    return Placeholder("conjugated tensor") if any(type(mark) is dict and mark for mark in marks) else None


def _without_storage(arguments: tuple[Any, ...]) -> Placeholder:
    """A tensor of a kind of storage that is not read here, such as a quantised one."""
    match arguments:
        case (Placeholder() as storage, *_):
            return storage
    raise DamagedFile("a tensor has impossible arguments")


def _first_argument(arguments: tuple[Any, ...]) -> Any:
    """Of what wraps a tensor (a parameter), or a size."""
    return arguments[0]


def _rebuild_subclass(arguments: tuple[Any, ...]) -> Any:
    """A tensor with attributes, or of a subclass: the plain tensor, if its function makes one of a storage."""
    match arguments:
        case (Placeholder(name=name), _, tuple(inner), *_) if name in _TENSOR_CALLS:
            return _TENSOR_CALLS[name](inner)
    return Placeholder("tensor of a subclass")


def _make_ordered_dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """Empty, except in files of Python 2, where a list of pairs is the argument."""
    match arguments:
        case (list(pairs),):
            return make_dict((key, value) for key, value in pairs)
    return {}


_TENSOR_CALLS: Mapping[str, Callable[[tuple[Any, ...]], Any]] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
}
CALLS: Mapping[str, Callable[[tuple[Any, ...]], Any]] = {
    **_TENSOR_CALLS,
    "torch._utils._rebuild_parameter": _first_argument,
    "torch._utils._rebuild_parameter_with_state": _first_argument,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _first_argument,
    "torch._tensor._rebuild_from_type": _rebuild_subclass,
    "torch._tensor._rebuild_from_type_v2": _rebuild_subclass,
    "torch.Size": _first_argument,
    "collections.OrderedDict": _make_ordered_dict,
}
"""By the full name in the pickle, what is done instead of the call; every other call gives a placeholder."""
