// Memory asked for before it is needed, a little at a time.
//
// A head's rows lie scattered over the packed projection, which no hardware prefetcher follows, and asking for them all
// at once would fill the processor's buffers for misses and hold up what is being calculated. So the products of one
// task ask, with every block of their rows, for rows that the task will write and that the next one will read.
#pragma once

#include <cstddef>

#include "cpu/vec.h"

namespace mae_dfer {
namespace MAE_DFER_ISA {
namespace {

// Rows of memory; none where it is made of nothing.
class Ahead {
 public:
  Ahead() = default;
  template <class E>
  Ahead(const E* first, ptrdiff_t stride, int width)
      : first_(reinterpret_cast<const char*>(first)),
        stride_(stride * static_cast<ptrdiff_t>(sizeof(E))),
        bytes_(width * static_cast<int>(sizeof(E))) {}

  void prefetch(int row, int rows) const {
    if (first_ == nullptr) return;
    const char* line = first_ + row * stride_;
    for (int r = 0; r < rows; ++r, line += stride_) {
      for (int byte = 0; byte < bytes_; byte += 64) __builtin_prefetch(line + byte, 0, 2);
    }
  }

 private:
  const char* first_ = nullptr;
  ptrdiff_t stride_ = 0;
  int bytes_ = 0;
};

}  // namespace
}  // namespace MAE_DFER_ISA
}  // namespace mae_dfer
