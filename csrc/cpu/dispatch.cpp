#include "cpu/dispatch.h"

#include <atomic>
#include <cstdlib>
#include <new>
#include <stdexcept>

namespace mae_dfer {
namespace cpu {
namespace {

#define MAE_DFER_KERNELS(isa) \
  const Kernels isa##_kernels{#isa, &isa::region_attention, &isa::residual_layer_norm, &isa::exchange, \
                              &isa::gelu_gradient, &isa::weight_gradient}
MAE_DFER_KERNELS(portable);
#if defined(MAE_DFER_X86_64)
MAE_DFER_KERNELS(avx2);
MAE_DFER_KERNELS(avx512);
#if defined(MAE_DFER_AVX512_BF16)
MAE_DFER_KERNELS(avx512_bf16);
#endif
#endif
#undef MAE_DFER_KERNELS

std::vector<const Kernels*> runnable() {
  std::vector<const Kernels*> found{&portable_kernels};
#if defined(MAE_DFER_X86_64)
  __builtin_cpu_init();
  // These ask whether the operating system saves the registers, too.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&avx2_kernels);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    found.push_back(&avx512_kernels);
#if defined(MAE_DFER_AVX512_BF16)
    if (__builtin_cpu_supports("avx512bf16")) found.push_back(&avx512_bf16_kernels);
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

}  // namespace

const Kernels& kernels() { return *chosen().load(); }

void run(int64_t tasks, int threads, double work, size_t workspace_bytes, const Task& task) {
  // Waking threads costs some microseconds: more than a small problem takes.
  const int team = work < 1e5 ? 1 : static_cast<int>(tasks < threads ? tasks : threads);
  if (team <= 1) {  // without OpenMP, which takes a microsecond to form a team of one
    void* const workspace = thread_memory.at_least(workspace_bytes);
    if (workspace == nullptr) throw std::bad_alloc();
    for (int64_t index = 0; index < tasks; ++index) task(index, workspace);
    return;
  }
  const int64_t chunk = tasks / (team * 8) + 1;
  std::atomic<bool> out_of_memory{false};
#pragma omp parallel num_threads(team)
  {
    void* const workspace = thread_memory.at_least(workspace_bytes);
    if (workspace == nullptr) out_of_memory = true;
#pragma omp for schedule(dynamic, chunk)
    for (int64_t index = 0; index < tasks; ++index) {
      if (workspace != nullptr) task(index, workspace);
    }
  }
  if (out_of_memory) throw std::bad_alloc();
}

bool is_amd() {
#if defined(MAE_DFER_X86_64)
  __builtin_cpu_init();
  return __builtin_cpu_is("amd");
#else
  return false;
#endif
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
