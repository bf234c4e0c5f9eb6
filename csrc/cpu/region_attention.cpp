#include "cpu/region_attention.h"

#include <atomic>
#include <cstdlib>
#include <new>
#include <stdexcept>

#include "cpu/kernels.h"

namespace mae_dfer {
namespace cpu {
namespace {

std::vector<const Kernels*> runnable() {
  std::vector<const Kernels*> found{&portable::kernels};
#if defined(MAE_DFER_X86_64)
  __builtin_cpu_init();
  // These ask whether the operating system saves the registers, too.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&avx2::kernels);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    found.push_back(&avx512::kernels);
#if defined(MAE_DFER_AVX512_BF16)
    if (__builtin_cpu_supports("avx512bf16")) found.push_back(&avx512_bf16::kernels);
#endif
  }
#endif
  return found;
}

std::atomic<const Kernels*>& chosen() {
  static std::atomic<const Kernels*> kernels{runnable().back()};
  return kernels;
}

// Memory that a thread keeps from call to call: fresh pages would cost as much as a small problem's arithmetic.
class ThreadMemory {
 public:
  ~ThreadMemory() { std::free(base_); }
  void* at_least(size_t bytes) {
    if (bytes > size_) {
      std::free(base_);
      size_ = (bytes + 4095) / 4096 * 4096;
      base_ = std::aligned_alloc(64, size_);
      if (base_ == nullptr) size_ = 0;
    }
    return base_;
  }

 private:
  void* base_ = nullptr;
  size_t size_ = 0;
};

thread_local ThreadMemory thread_memory;

using Task = void (*)(const RegionAttention&, int64_t, void*);

void run(const RegionAttention& problem, Task task, size_t workspace_bytes) {
  const int64_t tasks = problem.regions * problem.heads;
  // Waking threads costs some microseconds: more than a small problem takes.
  const double work = static_cast<double>(tasks) * problem.tokens * problem.tokens * problem.head_dim;
  const int threads = work < 1e5 ? 1 : static_cast<int>(tasks < problem.threads ? tasks : problem.threads);
  const int64_t chunk = tasks / (threads * 8) + 1;
  std::atomic<bool> out_of_memory{false};
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    void* const workspace = thread_memory.at_least(workspace_bytes);
    if (workspace == nullptr) out_of_memory = true;
#pragma omp for schedule(dynamic, chunk)
    for (int64_t index = 0; index < tasks; ++index) {
      if (workspace != nullptr) task(problem, index, workspace);
    }
  }
  if (out_of_memory) throw std::bad_alloc();
}

}  // namespace

void region_attention_forward(const RegionAttention& problem) {
  problem.check(false);
  if (problem.empty()) return;
  const Kernels* kernels = chosen();
  run(problem, kernels->forward, kernels->forward_workspace(problem));
}

void region_attention_backward(const RegionAttention& problem) {
  problem.check(true);
  if (problem.empty()) return;
  const Kernels* kernels = chosen();
  run(problem, kernels->backward, kernels->backward_workspace(problem));
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Kernels* kernels : runnable()) names.emplace_back(kernels->name);
  return names;
}

std::string chosen_instruction_set() { return chosen().load()->name; }

void choose_instruction_set(const std::string& name) {
  std::string known;
  for (const Kernels* kernels : runnable()) {
    if (name == kernels->name) {
      chosen() = kernels;
      return;
    }
    known += (known.empty() ? "" : ", ") + std::string(kernels->name);
  }
  throw std::invalid_argument("'" + name + "' is none of the instruction sets that can run here: " + known);
}

}  // namespace cpu
}  // namespace mae_dfer
