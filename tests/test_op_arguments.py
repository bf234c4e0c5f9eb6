"""Every operator under arguments that it was not made for: the right result, or an exception that names the argument.

Thousands of calls an operator, in a child process, so that a crash is a failing test with the call that caused it.
What the calls are made of is in `op_calls.py`.
"""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from op_calls import PUBLIC, REGISTERED, Arguments, Draw, normal
from torch import Tensor

import mae_dfer_kernels
from mae_dfer_kernels import BackendUnavailable

# Set in the child processes alone: the file that says which call is running, so that its end can be told.
CALL_FILE = os.environ.get("MAE_DFER_HOSTILE_CALLS")
EXAMPLES = {"public": 1000, "registered": 500}


class Call:
    """Arguments by name, and which of them were changed to what."""

    def __init__(self, op: str, arguments: Arguments, changes: dict[str, str], summed: bool) -> None:
        self.op, self.arguments, self.changes, self.summed = op, arguments, changes, summed

    def __repr__(self) -> str:
        # Tensors by type and size alone: to print what some of them hold would be a crash of its own.
        shown = {
            name: f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else value
            for name, value in self.arguments.items()
            if name not in self.changes
        }
        return f"{self.op}: changed {self.changes}; the others {shown}"

    @property
    def must_succeed(self) -> bool:
        constants = PUBLIC[self.op].constants if self.op in PUBLIC else ()
        return all(
            change in hostile.LIES and not (name in constants and change in hostile.WANT_GRADIENT)
            for name, change in self.changes.items()
        )


def kinds(op: str, registered: bool) -> dict[str, str]:
    """The kind of each argument: tensor, int, float, bool, dtype or str."""
    if registered:
        schema = getattr(torch.ops.mae_dfer_kernels, op).default._schema
        types = {argument.name: str(argument.real_type) for argument in schema.arguments}
    else:
        parameters = inspect.signature(getattr(mae_dfer_kernels, op)).parameters
        types = {name: str(parameter.annotation) for name, parameter in parameters.items()}
    known = {"Tensor": "tensor", "dtype": "dtype", "ScalarType": "dtype", "SymInt": "int", "int": "int",
             "float": "float", "bool": "bool", "str": "str"}  # fmt: skip
    return {name: next(known[key] for key in known if key in text) for name, text in types.items()}


VALUES = {"int": hostile.INTEGERS, "float": hostile.NUMBERS, "dtype": hostile.DTYPES, "str": hostile.STRINGS,
          "bool": {"true": True, "false": False}}  # fmt: skip
CHANGES = {
    "tensor": (*hostile.LIES, *hostile.UNFIT, *hostile.JUNK),
    **{kind: (*values, *(key for key in hostile.JUNK if key not in values)) for kind, values in VALUES.items()},
}


def changed(value: Any, kind: str, change: str) -> Any:
    if kind != "tensor":
        return VALUES[kind][change] if change in VALUES[kind] else hostile.JUNK[change]
    if change in hostile.JUNK:
        return hostile.JUNK[change]
    if value is None and change in hostile.LIES:
        return None
    function = hostile.LIES[change] if change in hostile.LIES else hostile.UNFIT[change]
    try:
        return function(torch.ones(2) if value is None else value)
    except (RuntimeError, ValueError, TypeError):
        return value  # this tensor cannot be changed so: it has no such axes, or no such type


@st.composite
def calls(draw: Draw, op: str, registered: bool) -> Call:
    arguments = REGISTERED[op](draw) if registered else PUBLIC[op].good(draw)
    kind_of = kinds(op, registered)
    changes: dict[str, str] = {}
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 0)))):
        name = draw(st.sampled_from([name for name in arguments if name not in changes]))
        changes[name] = draw(st.sampled_from(CHANGES[kind_of[name]]))
        arguments[name] = changed(arguments[name], kind_of[name], changes[name])
    return Call(op, arguments, changes, draw(st.booleans()))


def plainly(arguments: Arguments, exact: bool) -> Arguments:
    """Fresh, contiguous copies of what is in the tensors; in float64 if ``exact``."""

    def copy(name: str, value: Any) -> Any:
        if name.endswith("dtype") and value is not None:
            return torch.float64 if exact else value
        if not isinstance(value, Tensor):
            return value
        plain = value.detach().as_subclass(Tensor).resolve_neg().contiguous().clone()  # type: ignore
        plain = plain.double() if exact else plain
        return plain.requires_grad_(value.requires_grad)

    return {name: copy(name, value) for name, value in arguments.items()}


def results(function: Callable[..., Any], call: Call, arguments: Arguments, positional: bool) -> list[Tensor | None]:
    """What is returned, and the gradient of each argument that wants one."""
    returned = function(*arguments.values()) if positional else function(**arguments)
    outputs = returned if isinstance(returned, (tuple, list)) else (returned,)
    wanting = [value for value in arguments.values() if isinstance(value, Tensor) and value.requires_grad]
    differentiable = [output for output in outputs if output.requires_grad]
    if not differentiable:
        return list(outputs)
    cotangents = [
        torch.ones((), dtype=output.dtype, device=output.device).expand(output.shape)
        if call.summed
        else normal(*output.shape, dtype=torch.bfloat16).to(output)
        for output in differentiable
    ]
    grads = torch.autograd.grad(differentiable, wanting, cotangents, allow_unused=True)
    return [*(output.detach() for output in outputs), *grads]


def check_results(found: list[Tensor | None], rough: list[Tensor | None], exact: list[Tensor | None]) -> None:
    """At most twice the error of plain PyTorch (``rough``) from float64 (``exact``)."""
    assert len(found) == len(rough) == len(exact)
    present = [value.dtype for value in (*found, *rough) if value is not None]
    epsilon = max((torch.finfo(dtype).eps for dtype in present), default=0.0)
    for ours, eager, right in zip(found, rough, exact, strict=True):
        if ours is None or eager is None or right is None:
            assert ours is eager is right is None
            continue
        assert ours.shape == eager.shape and ours.dtype == eager.dtype
        if ours.device.type == "meta" or ours.numel() == 0 or not (eager.isfinite().all() and right.isfinite().all()):
            continue
        error, allowed = (ours - right).abs().max(), 2 * (eager - right).abs().max()
        # Of a few elements the largest rounding is luck, so a few units in the last place (of 1, at least) are free.
        assert error <= allowed + 8 * epsilon * right.abs().max().clamp(min=1.0), (ours, eager, right)


def well_conditioned(call: Call) -> bool:
    """Whether a rounding may not become the result: no scores in the thousands, no rows divided by next to nothing."""
    scale, eps = call.arguments.get("scale"), call.arguments.get("eps", 1.0)
    return abs(scale or 1.0) <= 10 and eps >= 1e-3 and not EXTREME & set(call.changes.values())


EXTREME = {"huge", "all NaN", "all infinite"}


def hold(call: Call) -> None:
    for name, value in call.arguments.items():
        if hostile.can_be_held(value):
            call.arguments[name] = FENCES.setdefault(name, hostile.Fence()).hold(value)


FENCES: dict[str, hostile.Fence] = {}


def say(call: object) -> None:
    """Leaves word of the call that runs next, at the price of one system call."""
    assert CALL_FILE is not None
    if "file" not in OPENED:
        OPENED["file"] = os.open(CALL_FILE, os.O_WRONLY | os.O_CREAT)
    text = ascii(call).encode()
    os.ftruncate(OPENED["file"], os.pwrite(OPENED["file"], text, 0))


OPENED: dict[str, int] = {}


def check_public(call: Call) -> None:
    say(call)
    hold(call)
    public = getattr(mae_dfer_kernels, call.op)
    try:
        found = results(public, call, call.arguments, False)
    except (TypeError, ValueError, BackendUnavailable) as error:
        assert not call.must_succeed, f"refused: {error}"
        named = [name for name in call.changes if re.search(rf"(?<!\w){name}(?!\w)", str(error))]
        assert named, f"names none of {list(call.changes)}: {error}"
        return
    if any(isinstance(value, Tensor) and value.device.type == "meta" for value in call.arguments.values()):
        assert all(value is None or value.device.type == "meta" for value in found)
        return
    rough, exact = (
        results(PUBLIC[call.op].plain, call, plainly(call.arguments, double), False) for double in (False, True)
    )
    if well_conditioned(call):
        check_results(found, rough, exact)


def check_registered(call: Call) -> None:
    say(call)
    hold(call)
    function = getattr(torch.ops.mae_dfer_kernels, call.op).default
    # Second derivatives do not go through the functions that are the first ones.
    with torch.set_grad_enabled(not call.op.endswith(("_backward", "_gradient"))):
        try:
            found = results(function, call, call.arguments, True)
        except (TypeError, ValueError, RuntimeError) as error:
            assert not call.must_succeed, f"refused: {error}"
            return
        rough, exact = (
            results(function, call, {**plainly(call.arguments, double), "backend": "eager"}, True)
            for double in (False, True)
        )
    if well_conditioned(call):
        check_results(found, rough, exact)


def crash() -> None:
    """Reads the first byte behind a fence."""
    import ctypes

    say("a read beyond the end")
    held = hostile.Fence().hold(torch.ones(5))
    ctypes.string_at(held.data_ptr() + held.nbytes, 1)


def main(what: str, op: str) -> None:
    """The child process."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if what == "crash":
        return crash()
    check = check_registered if what == "registered" else check_public
    options = settings(
        max_examples=EXAMPLES[what], deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck), print_blob=False, report_multiple_bugs=False,
    )  # fmt: skip
    options(given(calls(op, what == "registered"))(check))()


def run_child(what: str, op: str, folder: Path) -> None:
    """Passes if the child does; else fails with what it printed, and with the call that ended it."""
    file = folder / "call"
    package = Path(mae_dfer_kernels.__file__).parent.parent
    child = subprocess.run(
        [sys.executable, "-X", "faulthandler", __file__, what, op],
        env={**os.environ, "MAE_DFER_HOSTILE_CALLS": str(file), "PYTHONPATH": str(package)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    ended = f"by signal {-child.returncode}, during: {file.read_text()}" if child.returncode < 0 else "with an error"
    assert child.returncode == 0, f"{op}: the child ended {ended}\n{child.stdout[-3000:]}{child.stderr[-6000:]}"


@pytest.mark.parametrize("op", PUBLIC)
def test_any_argument_is_taken_or_named(op: str, tmp_path: Path) -> None:
    run_child("public", op, tmp_path)


@pytest.mark.parametrize("op", REGISTERED)
def test_a_direct_call_is_right_or_refused(op: str, tmp_path: Path) -> None:
    run_child("registered", op, tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="fences are Linux's mprotect")
def test_a_read_beyond_the_end_is_seen(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="by signal .*, during: 'a read beyond the end'"):
        run_child("crash", "fence", tmp_path)


def test_every_operator_is_listed() -> None:
    functions = {name for name in mae_dfer_kernels.__all__ if inspect.isfunction(getattr(mae_dfer_kernels, name))}
    assert functions == set(PUBLIC)
    names = [name.split("::") for name in torch._C._dispatch_get_all_op_names()]
    assert {parts[1] for parts in names if parts[0] == "mae_dfer_kernels"} == set(REGISTERED)


if __name__ == "__main__":
    main(*sys.argv[1:])
