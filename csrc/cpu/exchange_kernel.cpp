// The absorbed exchange over a chunk of a clip's rows, forward and backward. Compiled once for every instruction set.
//
// A step of rows is read and normalised, multiplied with the clip's keys, softened, multiplied with its values, and
// added to what was read: activations pass through memory once. Scores lie transposed, (pairs, rows), so that a
// head's softmax runs down its K lines with a vector of rows at a time, whatever K is. Letters: C channels, J = H·K
// pairs of a head and a representative token, L lanes a vector.
//
// Here the products are in the type computed in. Those of bf16 operands are in exchange_bf16.h, where the instruction
// set has them; where it has not, or C does not fit, keys and values in bf16 are widened.

#include "cpu/exchange_bf16.h"
#include "cpu/exchange_rows.h"
#include "cpu/gemm.h"
#include "cpu/kernels.h"
#include "cpu/pack.h"
#include "cpu/workspace.h"

namespace mae_dfer {
namespace MAE_DFER_ISA {
namespace {

// Sizes of one task and of its buffers. What a buffer holds beyond C is never used.
template <class T>
struct Layout {
  int width;    // C
  int vectors;  // of a row
  int stride;   // C rounded up to L, and off the strides that collide in the cache
  int pairs;    // J
  int widened;  // of keys and values, those that are not in T and are used as they lie

  Layout(const Exchange& problem, bool backward)
      : width(static_cast<int>(problem.channels)), pairs(static_cast<int>(problem.pairs())) {
    widened = !problem.bf16_operands ? 0 : backward ? 2 : 1;
    const int padded = round_up(width, kLanes<T>);
    vectors = padded / kLanes<T>;
    stride = padded * sizeof(T) % 1024 == 0 ? padded + kLanes<T> : padded;
  }

  size_t matrix() const { return static_cast<size_t>(pairs) * stride; }
  size_t rows() const { return static_cast<size_t>(kStep) * stride; }
  size_t rows_t() const { return static_cast<size_t>(width) * kStep; }
  size_t scores() const { return static_cast<size_t>(pairs) * kStep; }
  size_t as_they_lie() const { return static_cast<size_t>(widened) * pairs * width; }
  size_t forward_elements() const {
    return matrix() + as_they_lie() + rows() + rows_t() + scores() + 2 * width + 7 * kSpacing<T>;
  }
  size_t backward_elements() const {
    return matrix() + as_they_lie() + 3 * rows() + rows_t() + 2 * scores() + 2 * width + kStep + 12 * kSpacing<T>;
  }
};

// The clip's keys or values, widened to T with rows `stride` apart.
template <class T>
void pack_matrix(const Exchange& problem, const Chunk<T>& chunk, const void* all, const Layout<T>& layout, T* to,
                 int stride) {
  if (problem.bf16_operands) {
    pack_rows<T>(chunk.template matrix<BFloat16>(problem, all), layout.width, layout.pairs, layout.width, to, stride);
  } else {
    pack_rows<T>(chunk.template matrix<T>(problem, all), layout.width, layout.pairs, layout.width, to, stride);
  }
}

// The same with rows C apart: as they lie, where that is in T.
template <class T>
const T* matrix_rows(const Exchange& problem, const Chunk<T>& chunk, const void* all, const Layout<T>& layout,
                     Workspace<T>* buffers) {
  if (!problem.bf16_operands) return chunk.template matrix<T>(problem, all);
  T* const rows = buffers->take(static_cast<size_t>(layout.pairs) * layout.width);
  pack_matrix<T>(problem, chunk, all, layout, rows, layout.width);
  return rows;
}

// Rows of the stream become u = (x - mean) / deviation; 1 / deviation goes to `inverse` where it is asked for.
template <class T>
void normalise_rows(const Exchange& problem, int64_t first, int rows, const Layout<T>& layout, T* unit, T* inverse,
                    T* update_buffer) {
  for (int i = 0; i < rows; ++i) {
    T* const row = unit + static_cast<ptrdiff_t>(i) * layout.stride;
    const T* const x = read_stream<T>(problem, first + i, row, update_buffer);
    const RowStatistics<T> statistics(x, layout.width, static_cast<T>(problem.eps));
    const Vec<T> mean = broadcast<T>(statistics.mean), factor = broadcast<T>(statistics.inverse_deviation);
    along_row<T>(layout.width, [&](int c, auto lanes) {
      store_part<T>(row + c, (load_part(x + c, lanes) - mean) * factor, lanes);
    });
    if (inverse) inverse[i] = statistics.inverse_deviation;
  }
}

// products (J, rows) = matrix · rowsᵀ, zero for rows up to a whole vector; `rows_t` is room for the transpose.
template <class T>
void multiply_transposed(const T* matrix, const T* block, int rows, const Layout<T>& layout, T* rows_t, T* products) {
  const int padded_rows = round_up(rows, kLanes<T>);
  pack_transposed<T>(block, layout.stride, rows, layout.width, rows_t, kStep, padded_rows);
  multiply<T>({matrix, layout.width, rows_t, kStep, layout.width}, layout.pairs, padded_rows / kLanes<T>, products,
              kStep, Epilogue<T>());
}

template <class T>
void forward_chunk(const Exchange& problem, int64_t task, void* memory) {
  const Layout<T> layout(problem, false);
  const Chunk<T> chunk(problem, task);

  Workspace<T> buffers(memory);
  T* const values = buffers.take(layout.matrix());
  T* const block = buffers.take(layout.rows());  // first of u, then of what is added to x
  T* const rows_t = buffers.take(layout.rows_t());
  T* const probs = buffers.take(layout.scores());
  T* const x_buffer = buffers.take(layout.width);
  T* const update_buffer = buffers.take(layout.width);
  const T* const keys = matrix_rows<T>(problem, chunk, problem.keys, layout, &buffers);

  pack_matrix<T>(problem, chunk, problem.values, layout, values, layout.stride);
  for (int64_t first = chunk.first; first < chunk.end; first += kStep) {
    const int rows = chunk.step(first);
    normalise_rows<T>(problem, first, rows, layout, block, nullptr, update_buffer);
    multiply_transposed<T>(keys, block, rows, layout, rows_t, probs);
    soften<T>(probs, chunk.key_bias, problem, rows);
    multiply<T, true>({probs, kStep, values, layout.stride, layout.pairs}, rows, layout.vectors, block,
                      layout.stride, Epilogue<T>());
    write_rows<T>(problem, first, rows, block, layout.stride, chunk.row_scale, x_buffer, update_buffer);
  }
}

// Rows of r = row_scale · grad_out; their sum is added to `sums`.
template <class T>
void scale_gradients(const Exchange& problem, int64_t first, int rows, const Layout<T>& layout, T row_scale, T* grads,
                     T* sums) {
  const Vec<T> scale = broadcast<T>(row_scale);
  for (int i = 0; i < rows; ++i) {
    T* const row = grads + static_cast<ptrdiff_t>(i) * layout.stride;
    const T* grad = read<T>(problem.grad_out, problem, first + i, row);
    along_row<T>(layout.width, [&](int c, auto lanes) {
      const Vec<T> value = load_part(grad + c, lanes) * scale;
      store_part<T>(row + c, value, lanes);
      store<T>(sums + c, load<T>(sums + c) + value);
    });
  }
}

// With r = row_scale · grad_out: dP = r valuesᵀ, dS from it, d(values) = Pᵀ r, d(keys) = dSᵀ u, du = dS keys.
template <class T>
void backward_chunk(const Exchange& problem, int64_t task, void* memory) {
  const Layout<T> layout(problem, true);
  const Chunk<T> chunk(problem, task);
  const int pairs = layout.pairs, stride = layout.stride;

  Workspace<T> buffers(memory);
  T* const keys = buffers.take(layout.matrix());
  T* const unit = buffers.take(layout.rows());
  T* const grads = buffers.take(layout.rows());
  T* const unit_grads = buffers.take(layout.rows());
  T* const rows_t = buffers.take(layout.rows_t());
  T* const probs = buffers.take(layout.scores());
  T* const score_grads = buffers.take(layout.scores());
  T* const grad_buffer = buffers.take(layout.width);
  T* const update_buffer = buffers.take(layout.width);
  T* const inverse = buffers.take(kStep);

  const T* const key_rows = matrix_rows<T>(problem, chunk, problem.keys, layout, &buffers);
  const T* const value_rows = matrix_rows<T>(problem, chunk, problem.values, layout, &buffers);
  const ChunkSums<T> sums(problem, task);

  pack_matrix<T>(problem, chunk, problem.keys, layout, keys, stride);
  Epilogue<T> add;
  for (int64_t first = chunk.first; first < chunk.end; first += kStep) {
    const int rows = chunk.step(first);
    normalise_rows<T>(problem, first, rows, layout, unit, inverse, update_buffer);
    multiply_transposed<T>(key_rows, unit, rows, layout, rows_t, probs);
    soften<T>(probs, chunk.key_bias, problem, rows);
    scale_gradients<T>(problem, first, rows, layout, chunk.row_scale, grads, sums.out_bias);
    multiply_transposed<T>(value_rows, grads, rows, layout, rows_t, score_grads);
    soften_backward<T>(probs, score_grads, problem, rows, sums.key_bias);
    add.accumulate = first > chunk.first;
    multiply<T>({score_grads, kStep, unit, stride, rows}, pairs, layout.vectors, sums.keys, sums.width, add);
    multiply<T>({probs, kStep, grads, stride, rows}, pairs, layout.vectors, sums.values, sums.width, add);
    multiply<T, true>({score_grads, kStep, keys, stride, pairs}, rows, layout.vectors, unit_grads, stride,
                      Epilogue<T>());
    write_gradients<T>(problem, first, rows, unit, stride, inverse, unit_grads, stride, grad_buffer, update_buffer);
  }
}

size_t forward_workspace(const Exchange& problem) {
#if defined(__AVX512BF16__)
  if (takes_pairs(problem)) return ExchangePairs(problem).forward_words() * sizeof(float);
#endif
  return problem.x.dtype == DType::float64 ? Layout<double>(problem, false).forward_elements() * sizeof(double)
                                           : Layout<float>(problem, false).forward_elements() * sizeof(float);
}

size_t backward_workspace(const Exchange& problem) {
#if defined(__AVX512BF16__)
  if (takes_pairs(problem)) return ExchangePairs(problem).backward_words() * sizeof(float);
#endif
  return problem.x.dtype == DType::float64 ? Layout<double>(problem, true).backward_elements() * sizeof(double)
                                           : Layout<float>(problem, true).backward_elements() * sizeof(float);
}

void forward(const Exchange& problem, int64_t task, void* memory) {
#if defined(__AVX512BF16__)
  if (takes_pairs(problem)) return forward_pairs(problem, task, memory);
#endif
  return problem.x.dtype == DType::float64 ? forward_chunk<double>(problem, task, memory)
                                           : forward_chunk<float>(problem, task, memory);
}

void backward(const Exchange& problem, int64_t task, void* memory) {
#if defined(__AVX512BF16__)
  if (takes_pairs(problem)) return backward_pairs(problem, task, memory);
#endif
  return problem.x.dtype == DType::float64 ? backward_chunk<double>(problem, task, memory)
                                           : backward_chunk<float>(problem, task, memory);
}

}  // namespace

extern const ExchangeKernels exchange;
const ExchangeKernels exchange = {forward_workspace, forward, backward_workspace, backward};

}  // namespace MAE_DFER_ISA
}  // namespace mae_dfer
