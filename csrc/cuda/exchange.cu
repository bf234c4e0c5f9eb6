#include <stdexcept>

#include "cuda/ops.h"
#include "cuda/primitives.cuh"

namespace mae_dfer {
namespace cuda {

// Instantiated in one translation unit an element type: exchange_launch.cuh.
template <class E>
void run_exchange(const Exchange& problem, const ExchangeBackward* backward, void* stream);
template <class E>
size_t exchange_shared_bytes(int64_t channels, int64_t pairs);

namespace {

constexpr int64_t kMaxPairs = 512;

void require(bool holds, const char* complaint) {
  if (!holds) throw std::invalid_argument(complaint);
}

bool aligned(const StridedRows& rows) {
  const int64_t item_size = rows.dtype == DType::float32 ? 4 : 2;
  return reinterpret_cast<uintptr_t>(rows.data) % 16 == 0 && rows.group_stride * item_size % 16 == 0 &&
         rows.row_stride * item_size % 16 == 0;
}

bool aligned(const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; }

void check_backward(const Exchange& problem, const ExchangeBackward& backward) {
  require(backward.key_sums && backward.probs && backward.grad_scores && backward.statistics && backward.grad_keys &&
              backward.grad_key_bias && backward.grad_values && backward.grad_out_bias,
          "an address is null");
  require(backward.splits >= 1 && backward.splits <= 1 << 16, "splits must be between 1 and 2^16");
  require(problem.grad_out.dtype == problem.x.dtype, "grad_out must have the dtype of x");
  require(aligned(problem.grad_out) && aligned(problem.grad_x) && aligned(backward.probs) &&
              aligned(backward.grad_scores) && aligned(backward.statistics),
          "rows must begin at multiples of 16 bytes");
}

void run(const Exchange& problem, const ExchangeBackward* backward, void* stream) {
  problem.check(backward != nullptr);
  if (problem.empty()) return;
  require(problem.channels % 8 == 0, "channels must be a multiple of 8");
  const int64_t context = problem.context;
  require(context >= 2 && (context & (context - 1)) == 0, "context must be padded to a power of two");
  require(problem.pairs() % 64 == 0 && problem.pairs() <= kMaxPairs, "pairs must be padded to 64, at most 512");
  require(aligned(problem.x) && aligned(problem.keys) && aligned(problem.values) && aligned(problem.out),
          "rows must begin at multiples of 16 bytes");
  require(problem.groups * (problem.rows + problem.front) < int64_t{1} << 31, "2^31 rows or more");  // their numbers are 32-bit
  require(exchange_shared_memory(problem.x.dtype, problem.channels, problem.pairs()) <= shared_memory_limit(),
          "the GPU has too little shared memory for so many channels and pairs");
  if (backward != nullptr) check_backward(problem, *backward);
  switch (problem.x.dtype) {
    case DType::float32: return run_exchange<float>(problem, backward, stream);
    case DType::bfloat16: return run_exchange<BFloat16>(problem, backward, stream);
    default: return run_exchange<Float16>(problem, backward, stream);
  }
}

}  // namespace

void exchange_forward(const Exchange& problem, void* stream) { run(problem, nullptr, stream); }

void exchange_backward(const Exchange& problem, const ExchangeBackward& backward, void* stream) {
  run(problem, &backward, stream);
}

size_t exchange_shared_memory(DType dtype, int64_t channels, int64_t pairs) {
  switch (dtype) {
    case DType::float32: return exchange_shared_bytes<float>(channels, pairs);
    case DType::bfloat16: return exchange_shared_bytes<BFloat16>(channels, pairs);
    case DType::float16: return exchange_shared_bytes<Float16>(channels, pairs);
    default: throw std::invalid_argument("the CUDA kernels take float32, bfloat16 and float16");
  }
}

size_t available_shared_memory() { return shared_memory_limit(); }

}  // namespace cuda
}  // namespace mae_dfer
