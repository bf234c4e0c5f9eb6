#include "cpu/dispatch.h"
#include "cpu/ops.h"

namespace mae_dfer {
namespace cpu {

void gelu_gradient(const GeluGradient& problem) {
  problem.check();
  if (problem.rows == 0) return;
  const GeluGradientKernels& kernel = *kernels().gelu_gradient;
  const double work = 30.0 * static_cast<double>(problem.rows) * static_cast<double>(problem.channels);
  run(problem.chunks(), problem.threads, work, 64, [&](int64_t task, void*) { kernel.run(problem, task); });
}

}  // namespace cpu
}  // namespace mae_dfer
