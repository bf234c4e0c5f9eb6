// What Python hands over: numbers for addresses, and tensors of rows as tuples.
#pragma once

#include <cstdint>
#include <tuple>

#include "problem.h"

namespace mae_dfer {

// (address, group stride, row stride, dtype)
using RowsArgument = std::tuple<uintptr_t, int64_t, int64_t, int>;

inline StridedRows rows(const RowsArgument& given) {
  return {reinterpret_cast<const void*>(std::get<0>(given)), std::get<1>(given), std::get<2>(given),
          static_cast<DType>(std::get<3>(given))};
}

inline const void* input(uintptr_t address) { return reinterpret_cast<const void*>(address); }
inline void* output(uintptr_t address) { return reinterpret_cast<void*>(address); }

}  // namespace mae_dfer
