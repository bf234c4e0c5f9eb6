"""``python -m mae_dfer_kernels``: which backends can run here, and why not the others."""

from __future__ import annotations

import sys

import torch

from mae_dfer_kernels import backends, native, profiling


def main() -> int:
    print(f"{'backend':<9}{'can run':<9}how, or why not")
    for name, available, text in backends.status():
        print(f"{name:<9}{'yes' if available else 'no':<9}{text}")
    if native.LOAD_ERROR is None:
        compiled, chosen = ", ".join(native.instruction_sets()), native.chosen_instruction_set()
        print(f"\ninstruction sets  {compiled}; in use: {chosen} ({native.ISA_VARIABLE} chooses another)")
    state = "on" if profiling.enabled else "off"
    print(f"profiler ranges   {state} ({profiling.NVTX_VARIABLE}=1 turns them on)")
    print(f"threads           {torch.get_num_threads()}")
    print(f"torch             {torch.__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
