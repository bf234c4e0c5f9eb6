// The operators on the CPU. Each throws std::invalid_argument for a problem that makes no sense.
#pragma once

#include "problem.h"

namespace mae_dfer {
namespace cpu {

void region_attention_forward(const RegionAttention& problem);
void region_attention_backward(const RegionAttention& problem);

void residual_layer_norm_forward(const ResidualLayerNorm& problem);
void residual_layer_norm_backward(const ResidualLayerNorm& problem);

void exchange_forward(const Exchange& problem);
void exchange_backward(const Exchange& problem);

void gelu_gradient(const GeluGradient& problem);

void weight_gradient(const WeightGradient& problem);

}  // namespace cpu
}  // namespace mae_dfer
