// The table through which an instruction set's kernels are reached. Nothing here depends on an instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "problem.h"

namespace mae_dfer {

// A task is one (region, head); tasks share nothing, so any order and any number of threads give the same bits.
struct Kernels {
  const char* name;
  size_t (*forward_workspace)(const RegionAttention&);   // bytes a thread needs
  void (*forward)(const RegionAttention&, int64_t task, void* workspace);  // workspace aligned to 64 bytes
  size_t (*backward_workspace)(const RegionAttention&);
  void (*backward)(const RegionAttention&, int64_t task, void* workspace);
};

namespace portable {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
namespace avx512_bf16 {
extern const Kernels kernels;
}

}  // namespace mae_dfer
