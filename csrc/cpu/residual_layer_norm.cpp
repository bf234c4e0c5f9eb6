#include "cpu/dispatch.h"
#include "cpu/ops.h"

namespace mae_dfer {
namespace cpu {
namespace {

double work(const ResidualLayerNorm& problem) {
  return 8.0 * static_cast<double>(problem.groups * problem.rows) * static_cast<double>(problem.channels);
}

}  // namespace

void residual_layer_norm_forward(const ResidualLayerNorm& problem) {
  problem.check(false);
  if (problem.empty()) return;
  const ResidualLayerNormKernels& kernel = *kernels().residual_layer_norm;
  run(problem.chunks(), problem.threads, work(problem), kernel.workspace(problem),
      [&](int64_t task, void* workspace) { kernel.forward(problem, task, workspace); });
}

void residual_layer_norm_backward(const ResidualLayerNorm& problem) {
  problem.check(true);
  if (problem.empty()) return;
  const ResidualLayerNormKernels& kernel = *kernels().residual_layer_norm;
  run(problem.chunks(), problem.threads, work(problem), kernel.workspace(problem),
      [&](int64_t task, void* workspace) { kernel.backward(problem, task, workspace); });
}

}  // namespace cpu
}  // namespace mae_dfer
