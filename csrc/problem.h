// What each kernel is given: addresses, sizes and strides, nothing of any framework.
#pragma once

#include <cstdint>

namespace mae_dfer {

enum class DType : int { float64 = 0, float32 = 1, bfloat16 = 2, float16 = 3 };

// Multi-head self-attention inside R regions of S tokens, H heads, D channels a head.
// Strides count elements; inside a token's row elements are adjacent.
struct RegionAttention {
  const void* qkv = nullptr;       // (R, S, 3*H*D), [q | k | v]
  int64_t qkv_region_stride = 0;
  int64_t qkv_token_stride = 0;
  const void* grad_out = nullptr;  // (R, S, H*D); backward only
  int64_t grad_out_region_stride = 0;
  int64_t grad_out_token_stride = 0;
  void* result = nullptr;          // contiguous: (R, S, H*D) forward, (R, S, 3*H*D) backward
  DType dtype = DType::float32;
  int64_t regions = 0;
  int64_t tokens = 0;
  int64_t heads = 0;
  int64_t head_dim = 0;
  double scale = 1.0;
  double dropout_p = 0.0;
  uint64_t seed = 0;
  int threads = 1;

  bool empty() const { return regions == 0 || tokens == 0; }

  // Throws std::invalid_argument. Defined in problem.cpp: code compiled for one instruction set must bring in no
  // inline function of the standard library, which the linker could then pick for all.
  void check(bool backward) const;
};

}  // namespace mae_dfer
