// The operators on a GPU. Addresses are of device memory, and work is queued on `stream`, a cudaStream_t of the current
// device. They throw std::invalid_argument for a problem that no kernel takes, std::runtime_error for what CUDA says.
#pragma once

#include "problem.h"

namespace mae_dfer {
namespace cuda {

void region_attention_forward(const RegionAttention& problem, void* stream);
// `statistics`: room for 3 · regions · heads · tokens floats.
void region_attention_backward(const RegionAttention& problem, float* statistics, void* stream);

void residual_layer_norm_forward(const ResidualLayerNorm& problem, void* stream);
// `partial_sums` has a row of (2, channels) for each of as many blocks as are asked for.
void residual_layer_norm_backward(const ResidualLayerNorm& problem, int64_t blocks, void* stream);

}  // namespace cuda
}  // namespace mae_dfer
