// Buffers of one task, cut from the memory that its thread keeps.
#pragma once

#include "cpu/vec.h"

namespace mae_dfer {
namespace MAE_DFER_ISA {
namespace {

template <class T>
constexpr size_t kSpacing = 64 / sizeof(T);

// Hands out buffers of a workspace one after another, each on its own cache line.
template <class T>
class Workspace {
 public:
  explicit Workspace(void* base) : next_(static_cast<T*>(base)) {}
  T* take(size_t elements) {
    T* buffer = next_;
    next_ += (elements + kSpacing<T> - 1) / kSpacing<T> * kSpacing<T>;
    return buffer;
  }

 private:
  T* next_;
};

}  // namespace
}  // namespace MAE_DFER_ISA
}  // namespace mae_dfer
