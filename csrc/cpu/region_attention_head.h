// Where one (region, head) of the packed tensors lies.
#pragma once

#include "cpu/prefetch.h"
#include "problem.h"

namespace mae_dfer {
namespace MAE_DFER_ISA {
namespace {

template <class E>
struct Head {
  ptrdiff_t model;  // H·D
  const E *query, *key, *value;
  const E* grad_out;  // backward only
  E* result;          // rows of the output, forward; of the gradient of q, backward

  Head(const RegionAttention& problem, int64_t region, int64_t head, bool backward)
      : model(static_cast<ptrdiff_t>(problem.heads * problem.head_dim)) {
    const int64_t channel = head * problem.head_dim;
    query = static_cast<const E*>(problem.qkv) + region * problem.qkv_region_stride + channel;
    key = query + model;
    value = key + model;
    grad_out = backward ? static_cast<const E*>(problem.grad_out) + region * problem.grad_out_region_stride + channel
                        : nullptr;
    result = static_cast<E*>(problem.result) + region * problem.tokens * model * (backward ? 3 : 1) + channel;
  }
};

// A task's head, and that of the next task, which mostly follows on the same thread: the same again after the last.
template <class E>
struct TaskHeads {
  Head<E> head, next;

  TaskHeads(const RegionAttention& problem, int64_t task, bool backward)
      : TaskHeads(problem, task / problem.heads, task % problem.heads, backward) {}
  TaskHeads(const RegionAttention& problem, int64_t region, int64_t index, bool backward)
      : head(problem, region, index, backward),
        next(index + 1 < problem.heads       ? Head<E>(problem, region, index + 1, backward)
             : region + 1 < problem.regions ? Head<E>(problem, region + 1, 0, backward)
                                            : head) {}
};

}  // namespace
}  // namespace MAE_DFER_ISA
}  // namespace mae_dfer
