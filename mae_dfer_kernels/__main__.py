"""``python -m mae_dfer_kernels``: which backends can run here, and why not the others."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from mae_dfer.cli import Parser, command
from mae_dfer_kernels import backends, native, profiling


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        prog="python -m mae_dfer_kernels",
        description="Which backends of the kernels can run on this machine, and why not the others.",
    )
    parser.parse_args(argv or [])
    print(describe())
    return 0


def describe() -> str:
    """A table of the backends, and how the rest is set up."""
    lines = [f"{'backend':<9}{'can run':<9}how, or why not"]
    lines += [f"{name:<9}{'yes' if available else 'no':<9}{text}" for name, available, text in backends.status()]
    lines.append("")
    if native.LOAD_ERROR is None:
        compiled, chosen = ", ".join(native.instruction_sets()), native.chosen_instruction_set()
        lines.append(f"instruction sets  {compiled}; in use: {chosen} ({native.ISA_VARIABLE} chooses another)")
    state = "on" if profiling.enabled else "off"
    lines.append(f"profiler ranges   {state} ({profiling.NVTX_VARIABLE}=1 turns them on)")
    lines.append(f"threads           {torch.get_num_threads()}")
    lines.append(f"torch             {torch.__version__}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
