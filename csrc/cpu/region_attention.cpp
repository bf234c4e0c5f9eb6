#include "cpu/dispatch.h"
#include "cpu/ops.h"

namespace mae_dfer {
namespace cpu {
namespace {

double multiplications(const RegionAttention& problem) {
  return static_cast<double>(problem.regions * problem.heads) * problem.tokens * problem.tokens * problem.head_dim;
}

}  // namespace

void region_attention_forward(const RegionAttention& problem) {
  problem.check(false);
  if (problem.empty()) return;
  const RegionAttentionKernels& kernel = *kernels().region_attention;
  run(problem.regions * problem.heads, problem.threads, multiplications(problem), kernel.forward_workspace(problem),
      [&](int64_t task, void* workspace) { kernel.forward(problem, task, workspace); });
}

void region_attention_backward(const RegionAttention& problem) {
  problem.check(true);
  if (problem.empty()) return;
  const RegionAttentionKernels& kernel = *kernels().region_attention;
  run(problem.regions * problem.heads, problem.threads, multiplications(problem), kernel.backward_workspace(problem),
      [&](int64_t task, void* workspace) { kernel.backward(problem, task, workspace); });
}

}  // namespace cpu
}  // namespace mae_dfer
