// The operators on a GPU. Addresses are of device memory, and work is queued on `stream`, a cudaStream_t of the current
// device. They throw std::invalid_argument for a problem that no kernel takes, std::runtime_error for what CUDA says.
#pragma once

#include <cstddef>

#include "problem.h"

namespace mae_dfer {
namespace cuda {

void region_attention_forward(const RegionAttention& problem, void* stream);
// `statistics`: room for 3 · regions · heads · tokens floats.
void region_attention_backward(const RegionAttention& problem, float* statistics, void* stream);

void residual_layer_norm_forward(const ResidualLayerNorm& problem, void* stream);
// `partial_sums` has a row of (2, channels) for each of as many blocks as are asked for.
void residual_layer_norm_backward(const ResidualLayerNorm& problem, int64_t blocks, void* stream);

// The exchange's keys and values have the dtype of x. Heads and context are padded so that context is a power of two
// from 2 on, and heads · context a multiple of 64. The padding's keys and values are 0; its key_bias is minus infinity
// within a head, and 0 in heads of nothing but padding.
void exchange_forward(const Exchange& problem, void* stream);

// What the backward is given besides the problem, whose `sums` it does not use. Rows of the scratch are those of a clip
// rounded up to sixteens; J = heads · context.
struct ExchangeBackward {
  const float* key_sums = nullptr;  // (clips, J), over channels
  void* probs = nullptr;            // scratch: (clips, rows, J) of the dtype of x
  void* grad_scores = nullptr;      // likewise
  float* statistics = nullptr;      // scratch: (clips, rows, 2)
  float* grad_keys = nullptr;       // (splits, clips, J, C): sums over as many parts of a clip's rows
  float* grad_key_bias = nullptr;   // (splits, clips, J)
  float* grad_values = nullptr;     // (splits, clips, J, C)
  float* grad_out_bias = nullptr;   // (splits, clips, C)
  int64_t splits = 1;
};
void exchange_backward(const Exchange& problem, const ExchangeBackward& backward, void* stream);

// The shared memory that the most demanding of the exchange's kernels needs at least, and how much a block can have on
// the current device.
size_t exchange_shared_memory(DType dtype, int64_t channels, int64_t pairs);
size_t available_shared_memory();

}  // namespace cuda
}  // namespace mae_dfer
