#include <stdexcept>

#include "cuda/ops.h"
#include "cuda/primitives.cuh"

namespace mae_dfer {
namespace cuda {

// Instantiated in one translation unit an element type: region_attention_launch.cuh.
template <class E>
void run_region_attention(const RegionAttention& problem, bool backward, float* statistics, void* stream);

namespace {

bool aligned(const void* address, int64_t first_stride, int64_t second_stride, int64_t item_size) {
  return reinterpret_cast<uintptr_t>(address) % 16 == 0 && first_stride * item_size % 16 == 0 &&
         second_stride * item_size % 16 == 0;
}

void run(const RegionAttention& problem, bool backward, float* statistics, void* stream) {
  problem.check(backward);
  if (problem.empty()) return;
  const int64_t item_size = problem.dtype == DType::float32 ? 4 : 2;
  if (!aligned(problem.qkv, problem.qkv_region_stride, problem.qkv_token_stride, item_size) ||
      (backward && !aligned(problem.grad_out, problem.grad_out_region_stride, problem.grad_out_token_stride, item_size))) {
    throw std::invalid_argument("rows must begin at multiples of 16 bytes");
  }
  if (backward && statistics == nullptr) throw std::invalid_argument("an address is null");
  // No kernel owns fewer than sixteen tokens a block.
  if ((problem.tokens + 15) / 16 * problem.regions * problem.heads >= int64_t{1} << 31) {
    throw std::invalid_argument("more blocks than a launch can have");
  }
  switch (problem.dtype) {
    case DType::float32: return run_region_attention<float>(problem, backward, statistics, stream);
    case DType::bfloat16: return run_region_attention<BFloat16>(problem, backward, statistics, stream);
    case DType::float16: return run_region_attention<Float16>(problem, backward, statistics, stream);
    default: throw std::invalid_argument("the CUDA kernels take float32, bfloat16 and float16");
  }
}

}  // namespace

void region_attention_forward(const RegionAttention& problem, void* stream) { run(problem, false, nullptr, stream); }

void region_attention_backward(const RegionAttention& problem, float* statistics, void* stream) {
  run(problem, true, statistics, stream);
}

}  // namespace cuda
}  // namespace mae_dfer
