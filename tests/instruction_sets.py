"""Tests of the compiled library on one instruction set after another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mae_dfer_kernels import native


@contextmanager
def running(runner: str) -> Iterator[str]:
    """The backend of ``runner``; inside, of "cpu-avx2" say, with that instruction set."""
    backend, _, instruction_set = runner.partition("-")
    before = native.chosen_instruction_set()
    if instruction_set:
        native.choose_instruction_set(instruction_set)
    yield backend
    native.choose_instruction_set(before)
