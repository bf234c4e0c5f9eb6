// The tables through which an instruction set's kernels are reached. Nothing here depends on an instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "problem.h"

namespace mae_dfer {

// A task is one (region, head). Workspaces are bytes a thread needs, aligned to 64.
struct RegionAttentionKernels {
  size_t (*forward_workspace)(const RegionAttention&);
  void (*forward)(const RegionAttention&, int64_t task, void* workspace);
  size_t (*backward_workspace)(const RegionAttention&);
  void (*backward)(const RegionAttention&, int64_t task, void* workspace);
};

// A task is one chunk of rows.
struct ResidualLayerNormKernels {
  size_t (*workspace)(const ResidualLayerNorm&);
  void (*forward)(const ResidualLayerNorm&, int64_t task, void* workspace);
  void (*backward)(const ResidualLayerNorm&, int64_t task, void* workspace);
};

// A task is one chunk of rows.
struct GeluGradientKernels {
  void (*run)(const GeluGradient&, int64_t task);
};

// A task is one part of the result.
struct WeightGradientKernels {
  bool (*takes)(DType);
  size_t (*workspace)();
  void (*run)(const WeightGradient&, int64_t task, void* workspace);
};

// A task is one chunk of a clip's rows.
struct ExchangeKernels {
  size_t (*forward_workspace)(const Exchange&);
  void (*forward)(const Exchange&, int64_t task, void* workspace);
  size_t (*backward_workspace)(const Exchange&);
  void (*backward)(const Exchange&, int64_t task, void* workspace);
};

struct Kernels {
  const char* name;
  const RegionAttentionKernels* region_attention;
  const ResidualLayerNormKernels* residual_layer_norm;
  const ExchangeKernels* exchange;
  const GeluGradientKernels* gelu_gradient;
  const WeightGradientKernels* weight_gradient;
};

#define MAE_DFER_DECLARE_KERNELS(isa)                              \
  namespace isa {                                                  \
  extern const RegionAttentionKernels region_attention;            \
  extern const ResidualLayerNormKernels residual_layer_norm;       \
  extern const ExchangeKernels exchange;                           \
  extern const GeluGradientKernels gelu_gradient;                  \
  extern const WeightGradientKernels weight_gradient;              \
  }
MAE_DFER_DECLARE_KERNELS(portable)
MAE_DFER_DECLARE_KERNELS(avx2)
MAE_DFER_DECLARE_KERNELS(avx512)
MAE_DFER_DECLARE_KERNELS(avx512_bf16)
#undef MAE_DFER_DECLARE_KERNELS

}  // namespace mae_dfer
