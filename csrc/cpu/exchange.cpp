#include "cpu/dispatch.h"
#include "cpu/ops.h"

namespace mae_dfer {
namespace cpu {
namespace {

double multiplications(const Exchange& problem, int products) {
  const double rows = static_cast<double>(problem.groups * problem.rows);
  return products * rows * static_cast<double>(problem.channels * problem.pairs());
}

}  // namespace

void exchange_forward(const Exchange& problem) {
  problem.check(false);
  if (problem.empty()) return;
  const ExchangeKernels& kernel = *kernels().exchange;
  run(problem.clips * problem.chunks(), problem.threads, multiplications(problem, 2),
      kernel.forward_workspace(problem),
      [&](int64_t task, void* workspace) { kernel.forward(problem, task, workspace); });
}

void exchange_backward(const Exchange& problem) {
  problem.check(true);
  if (problem.empty()) return;
  const ExchangeKernels& kernel = *kernels().exchange;
  run(problem.clips * problem.chunks(), problem.threads, multiplications(problem, 5),
      kernel.backward_workspace(problem),
      [&](int64_t task, void* workspace) { kernel.backward(problem, task, workspace); });
}

}  // namespace cpu
}  // namespace mae_dfer
