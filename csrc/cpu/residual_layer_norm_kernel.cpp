// Residual + LayerNorm over a chunk of rows, forward and backward. Compiled once for every instruction set.
//
// Memory bounds it: each row is read once, worked on in the first-level cache, and written once.

#include "cpu/kernels.h"
#include "cpu/rows.h"
#include "cpu/workspace.h"

namespace mae_dfer {
namespace MAE_DFER_ISA {
namespace {

// Rows that a task holds at once: buffers of C elements, each rounded up to a cache line by Workspace.
constexpr int kBuffers = 5;

size_t workspace(const ResidualLayerNorm& problem) {
  const size_t item = problem.x.dtype == DType::float64 ? sizeof(double) : sizeof(float);
  return kBuffers * (static_cast<size_t>(problem.channels) * item + 64);
}

template <class T>
T row_scale(const ResidualLayerNorm& problem, int64_t row) {
  return problem.row_scale ? static_cast<const T*>(problem.row_scale)[row / problem.rows] : T(1);
}

template <class T>
void forward_chunk(const ResidualLayerNorm& problem, int64_t task, void* memory) {
  const int width = static_cast<int>(problem.channels);
  Workspace<T> buffers(memory);
  T *const x_buffer = buffers.take(width), *const update_buffer = buffers.take(width);
  T *const total = buffers.take(width), *const normed = buffers.take(width);
  const T* const weight = static_cast<const T*>(problem.weight);
  const T* const bias = static_cast<const T*>(problem.bias);
  const bool rounds = item_size(problem.x.dtype) != static_cast<int64_t>(sizeof(T));

  const int64_t first = task * problem.chunk_rows(), end = first + problem.chunk_rows();
  for (int64_t row = first; row < end && row < problem.groups * problem.rows; ++row) {
    const T* x = read_row<T>(row_address(problem.x, problem.rows, row), problem.x.dtype, x_buffer, width);
    const T* update =
        read_row<T>(row_address(problem.update, problem.rows, row), problem.update.dtype, update_buffer, width);
    const Vec<T> scale = broadcast<T>(row_scale<T>(problem, row));
    for (int c = 0; c < width; c += kLanes<T>) {
      const int lanes = width - c;
      store_part<T>(total + c, load_part(x + c, lanes) + scale * load_part(update + c, lanes), lanes);
    }
    write_row<T>(total, problem.sum, problem.x.dtype, row, width);
    // What is normalised is the sum as it is stored: the backward and the next block know no other.
    if (rounds) {
      const char* stored = static_cast<const char*>(problem.sum) + row * width * item_size(problem.x.dtype);
      read_row<T>(stored, problem.x.dtype, total, width);
    }
    const RowStatistics<T> statistics(total, width, static_cast<T>(problem.eps));
    const Vec<T> mean = broadcast<T>(statistics.mean), inverse = broadcast<T>(statistics.inverse_deviation);
    for (int c = 0; c < width; c += kLanes<T>) {
      const int lanes = width - c;
      const Vec<T> unit = (load_part(total + c, lanes) - mean) * inverse;
      store_part<T>(normed + c, unit * load_part(weight + c, lanes) + load_part(bias + c, lanes), lanes);
    }
    write_row<T>(normed, problem.normed, problem.normed_dtype, row, width);
  }
}

// With u = (sum - mean) / deviation and g = grad_normed · weight:
// grad_x = grad_sum + (g - mean(g) - u · mean(g · u)) / deviation; grad_update = row_scale · grad_x.
template <class T>
void backward_chunk(const ResidualLayerNorm& problem, int64_t task, void* memory) {
  const int width = static_cast<int>(problem.channels);
  Workspace<T> buffers(memory);
  T *const total_buffer = buffers.take(width), *const grad_buffer = buffers.take(width);
  T *const sum_buffer = buffers.take(width), *const unit = buffers.take(width), *const result = buffers.take(width);
  const T* const weight = static_cast<const T*>(problem.weight);
  T* const weight_sums = static_cast<T*>(problem.partial_sums) + task * 2 * width;
  T* const bias_sums = weight_sums + width;
  for (int c = 0; c < 2 * width; ++c) weight_sums[c] = T(0);

  const StridedRows total_rows{problem.sum, problem.rows * problem.channels, problem.channels, problem.x.dtype};
  const int64_t first = task * problem.chunk_rows(), end = first + problem.chunk_rows();
  for (int64_t row = first; row < end && row < problem.groups * problem.rows; ++row) {
    const T* total =
        read_row<T>(row_address(total_rows, problem.rows, row), total_rows.dtype, total_buffer, width);
    const T* grad = read_row<T>(row_address(problem.grad_normed, problem.rows, row), problem.grad_normed.dtype,
                                grad_buffer, width);
    const T* grad_sum = nullptr;
    if (problem.grad_sum.data) {
      grad_sum = read_row<T>(row_address(problem.grad_sum, problem.rows, row), problem.grad_sum.dtype, sum_buffer,
                             width);
    }
    const RowStatistics<T> statistics(total, width, static_cast<T>(problem.eps));
    const Vec<T> mean = broadcast<T>(statistics.mean), inverse = broadcast<T>(statistics.inverse_deviation);
    Vec<T> sum_g = broadcast<T>(T(0)), sum_gu = broadcast<T>(T(0));
    for (int c = 0; c < width; c += kLanes<T>) {
      const int lanes = width - c;
      const Vec<T> u = (load_part(total + c, lanes) - mean) * inverse;
      const Vec<T> outer = load_part(grad + c, lanes);
      store_part<T>(unit + c, u, lanes);
      store_part<T>(weight_sums + c, load_part(weight_sums + c, lanes) + outer * u, lanes);
      store_part<T>(bias_sums + c, load_part(bias_sums + c, lanes) + outer, lanes);
      const Vec<T> g = outer * load_part(weight + c, lanes);
      sum_g += g;
      sum_gu += g * u;
    }
    const Vec<T> mean_g = broadcast<T>(reduce_add<T>(sum_g) / static_cast<T>(width));
    const Vec<T> mean_gu = broadcast<T>(reduce_add<T>(sum_gu) / static_cast<T>(width));
    for (int c = 0; c < width; c += kLanes<T>) {
      const int lanes = width - c;
      const Vec<T> g = load_part(grad + c, lanes) * load_part(weight + c, lanes);
      Vec<T> value = (g - mean_g - load_part(unit + c, lanes) * mean_gu) * inverse;
      if (grad_sum) value += load_part(grad_sum + c, lanes);
      store_part<T>(result + c, value, lanes);
    }
    write_row<T>(result, problem.grad_x, problem.x.dtype, row, width);
    if (problem.grad_update) {
      const Vec<T> scale = broadcast<T>(row_scale<T>(problem, row));
      for (int c = 0; c < width; c += kLanes<T>) {
        store_part<T>(result + c, load_part(result + c, width - c) * scale, width - c);
      }
      write_row<T>(result, problem.grad_update, problem.update.dtype, row, width);
    }
  }
}

void forward(const ResidualLayerNorm& problem, int64_t task, void* memory) {
  return problem.x.dtype == DType::float64 ? forward_chunk<double>(problem, task, memory)
                                           : forward_chunk<float>(problem, task, memory);
}

void backward(const ResidualLayerNorm& problem, int64_t task, void* memory) {
  return problem.x.dtype == DType::float64 ? backward_chunk<double>(problem, task, memory)
                                           : backward_chunk<float>(problem, task, memory);
}

}  // namespace

extern const ResidualLayerNormKernels residual_layer_norm;
const ResidualLayerNormKernels residual_layer_norm = {workspace, forward, backward};

}  // namespace MAE_DFER_ISA
}  // namespace mae_dfer
