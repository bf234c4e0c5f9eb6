#include <stdexcept>

#include "cpu/dispatch.h"
#include "cpu/ops.h"

namespace mae_dfer {
namespace cpu {

void weight_gradient(const WeightGradient& problem) {
  problem.check();
  const WeightGradientKernels& kernel = *kernels().weight_gradient;
  if (!kernel.takes(problem.grad.dtype)) throw std::invalid_argument("this instruction set does not multiply bfloat16");
  const double work = static_cast<double>(problem.rows) * static_cast<double>(problem.outputs) *
                      static_cast<double>(problem.inputs);
  run(problem.parts(), problem.threads, work, kernel.workspace(),
      [&](int64_t task, void* workspace) { kernel.run(problem, task, workspace); });
}

}  // namespace cpu
}  // namespace mae_dfer
