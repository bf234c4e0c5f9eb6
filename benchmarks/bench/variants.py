"""What is compared: a problem with its inputs and its exact answer, and the variants that solve it.

A variant is a function of a problem's tensors. Its leaves are what its gradient is taken of: the tensors that ask for
one, and a model's parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from mae_dfer_kernels import backends

Call = Callable[..., "Tensor | tuple[Tensor, ...]"]

SDPA_KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def single_errors(found: list[Tensor], exact: list[Tensor]) -> list[float]:
    """Of each result the root mean square of its error, as a share of that of its values.

    The largest of a few roundings would be luck.
    """
    return [_share(result, right) for result, right in zip(found, exact, strict=True)]


def overall_errors(found: list[Tensor], exact: list[Tensor]) -> list[float]:
    """Of the first result, and of all others together: the root mean square of their relative errors.

    For models, with hundreds of parameters: that some gradient errs a little more than twice as much as another
    path's is chance, and that one is wrong shows in the mean as well.
    """
    first, *others = single_errors(found, exact)
    return [first, *([(sum(error**2 for error in others) / len(others)) ** 0.5] if others else [])]


def _share(found: Tensor, exact: Tensor) -> float:
    error, size = (torch.linalg.vector_norm(part) for part in (found.double() - exact, exact))
    return float(error / size.clamp_min(torch.finfo(torch.float64).tiny))


class Inputs(NamedTuple):
    """What a variant is called with, and the gradients of what it returns."""

    tensors: tuple[Tensor, ...]
    grads: tuple[Tensor, ...]


@dataclass
class Problem:
    """One computation at one shape and dtype.

    Attributes:
        inputs: several sets of the same shapes, so that on a GPU they do not all fit into its cache.
        exact: outputs, then gradients of all leaves, of the first set in float64.
        eager: plain PyTorch in the dtype at hand; variants may err twice as much.
        leaves: what gradients are taken of besides the inputs.
        errors: of results, compared with the exact ones.
    """

    op: str
    shape: list[int]
    dtype: str
    inputs: list[Inputs]
    exact: Callable[[], list[Tensor]]
    eager: Call
    leaves: Sequence[Tensor] = ()
    errors: Callable[[list[Tensor], list[Tensor]], list[float]] = single_errors


@dataclass
class Variant:
    """A way to solve a problem.

    Attributes:
        call: takes the tensors of one set of inputs.
        counted: stands for ``call`` where FLOPs are counted; torch's counter sees nothing of a compiled graph.
        leaves: those of ``call`` where they are others than the problem's, in the same order.
    """

    name: str
    problem: Problem
    call: Call
    counted: Call | None = None
    leaves: Sequence[Tensor] | None = None

    @property
    def ours(self) -> bool:
        return "fused" in self.name

    def forward(self, turn: int = 0) -> tuple[Tensor, ...]:
        output = self.call(*self._set(turn).tensors)
        return (output,) if isinstance(output, Tensor) else tuple(output)

    def backward(self, outputs: tuple[Tensor, ...], turn: int = 0) -> list[Tensor]:
        """Gradients of the leaves; zero for one that the outputs do not depend on."""
        inputs = self._set(turn)
        found = [tensor for tensor in inputs.tensors if tensor.requires_grad]
        found += self.problem.leaves if self.leaves is None else self.leaves
        return list(torch.autograd.grad(outputs, found, inputs.grads, materialize_grads=True))

    def both(self, turn: int = 0) -> list[Tensor]:
        """Outputs, then gradients."""
        outputs = self.forward(turn)
        return [*(tensor.detach() for tensor in outputs), *self.backward(outputs, turn)]

    def _set(self, turn: int) -> Inputs:
        return self.problem.inputs[turn % len(self.problem.inputs)]


class LeftOut(NamedTuple):
    """A variant that is not measured, and why."""

    op: str
    shape: list[int]
    dtype: str
    variant: str
    reason: str


@dataclass
class Case:
    """Variants that take turns. The first problem is what ours solves; others are for comparison alone."""

    level: str
    title: str
    variants: list[Variant] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def leave_out(self, problem: Problem, variant: str, reason: object) -> None:
        text = " ".join(str(reason).split()).partition(" Set TORCHDYNAMO_VERBOSE")[0]  # advice to its developers
        self.left_out.append(LeftOut(problem.op, problem.shape, problem.dtype, variant, text[:300]))


def attend_eager(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(D^-½ q kᵀ) v of (…, S, D), step by step."""
    return torch.softmax((query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1), dim=-1) @ value


def attend_sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value)


def sdpa_by(kernel: SDPBackend) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(kernel):
            return F.scaled_dot_product_attention(query, key, value)

    return attend


def compiled(call: Call) -> Call:
    """``call`` through torch.compile, for the shapes at hand. Nothing is compiled before the first call."""
    return torch.compile(call, dynamic=False)


@contextmanager
def auto_is(backend: str) -> Iterator[None]:
    """Inside, operators asked for ``auto`` run on ``backend`` wherever it can run them."""
    choose = backends.choose

    def chosen(op: str, asked: str, *problem: Any) -> str:
        if asked == "auto" and backends.unavailable(op, backend, *problem) is None:
            return backend
        return choose(op, asked, *problem)

    backends.choose = chosen
    try:
        yield
    finally:
        backends.choose = choose
