// The absorbed exchange over a chunk of a clip's rows, forward and backward. Compiled once for every instruction set.
//
// A step of rows is read and normalised, multiplied with the clip's keys, softened, multiplied with its values, and
// added to what was read: activations pass through memory once. Scores lie transposed, (pairs, rows), so that a
// head's softmax runs down its K lines with a vector of rows at a time, whatever K is. Letters: C channels, J = H·K
// pairs of a head and a representative token, L lanes a vector.

#include "cpu/gemm.h"
#include "cpu/kernels.h"
#include "cpu/pack.h"
#include "cpu/rows.h"
#include "cpu/workspace.h"

namespace mae_dfer {
namespace MAE_DFER_ISA {
namespace {

constexpr int kStep = static_cast<int>(Exchange::kStepRows);

// Sizes of one task and of its buffers. What a buffer holds beyond C is never used.
template <class T>
struct Layout {
  int width;    // C
  int vectors;  // of a row
  int stride;   // C rounded up to L, and off the strides that collide in the cache
  int pairs;    // J

  explicit Layout(const Exchange& problem)
      : width(static_cast<int>(problem.channels)), pairs(static_cast<int>(problem.pairs())) {
    const int padded = round_up(width, kLanes<T>);
    vectors = padded / kLanes<T>;
    stride = padded * sizeof(T) % 1024 == 0 ? padded + kLanes<T> : padded;
  }

  size_t matrix() const { return static_cast<size_t>(pairs) * stride; }
  size_t rows() const { return static_cast<size_t>(kStep) * stride; }
  size_t rows_t() const { return static_cast<size_t>(width) * kStep; }
  size_t scores() const { return static_cast<size_t>(pairs) * kStep; }
  size_t forward_elements() const { return matrix() + rows() + rows_t() + scores() + 2 * width + 6 * kSpacing<T>; }
  size_t backward_elements() const {
    return matrix() + 3 * rows() + rows_t() + 2 * scores() + 2 * width + kStep + 10 * kSpacing<T>;
  }
};

// What one task works on: a chunk of a clip's rows, and what the clip attends to.
template <class T>
struct Chunk {
  int64_t first, end;  // of all G·M rows
  const T *keys, *key_bias, *values;
  T row_scale;

  Chunk(const Exchange& problem, int64_t task) {
    const int64_t clip = task / problem.chunks(), clip_end = (clip + 1) * problem.clip_rows();
    first = clip * problem.clip_rows() + task % problem.chunks() * problem.chunk_rows();
    end = first + problem.chunk_rows() < clip_end ? first + problem.chunk_rows() : clip_end;
    const int64_t pairs = problem.pairs(), matrix = pairs * problem.channels;
    keys = static_cast<const T*>(problem.keys) + clip * matrix;
    key_bias = static_cast<const T*>(problem.key_bias) + clip * pairs;
    values = static_cast<const T*>(problem.values) + clip * matrix;
    row_scale = problem.row_scale ? static_cast<const T*>(problem.row_scale)[clip] : T(1);
  }

  int step(int64_t row) const { return static_cast<int>(end - row < kStep ? end - row : kStep); }
};

template <class T>
const T* read(const StridedRows& rows, const Exchange& problem, int64_t row, T* buffer) {
  return read_row<T>(row_address(rows, problem.rows, row), rows.dtype, buffer, static_cast<int>(problem.channels));
}

template <class T>
Vec<T> update_scale(const Exchange& problem, int64_t row) {
  return broadcast<T>(problem.update_scale ? static_cast<const T*>(problem.update_scale)[row / problem.rows] : T(1));
}

// A row of the stream: x, or x + update_scale · update, which is made in `buffer` every time that it is needed.
template <class T>
const T* read_stream(const Exchange& problem, int64_t row, T* buffer, T* update_buffer) {
  const T* const x = read<T>(problem.x, problem, row, buffer);
  if (!problem.has_update) return x;
  const T* const update = read<T>(problem.update, problem, row, update_buffer);
  const Vec<T> scale = update_scale<T>(problem, row);
  along_row<T>(static_cast<int>(problem.channels), [&](int c, auto lanes) {
    store_part<T>(buffer + c, load_part(x + c, lanes) + scale * load_part(update + c, lanes), lanes);
  });
  return buffer;
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

// Scores (J, rows) become probabilities: softmax down the K lines of each head.
template <class T>
void soften(T* scores, const T* key_bias, const Exchange& problem, int rows) {
  const int context = static_cast<int>(problem.context);
  for (int64_t head = 0; head < problem.heads; ++head, key_bias += context) {
    for (int i = 0; i < rows; i += kLanes<T>) {
      T* const column = scores + head * context * kStep + i;
      const Vec<T> to_powers = broadcast<T>(static_cast<T>(kLog2E));
      Vec<T> top = (load<T>(column) + broadcast<T>(key_bias[0])) * to_powers;
      for (int k = 0; k < context; ++k) {
        const Vec<T> score = (load<T>(column + k * kStep) + broadcast<T>(key_bias[k])) * to_powers;
        store<T>(column + k * kStep, score);
        top = maximum<T>(score, top);
      }
      Vec<T> sum = broadcast<T>(T(0));
      for (int k = 0; k < context; ++k) {
        const Vec<T> value = power_of_two<T>(load<T>(column + k * kStep) - top);
        store<T>(column + k * kStep, value);
        sum += value;
      }
      const Vec<T> factor = broadcast<T>(T(1)) / sum;
      for (int k = 0; k < context; ++k) store<T>(column + k * kStep, load<T>(column + k * kStep) * factor);
    }
  }
}

// dP becomes dS = P ∘ (dP - Σ P∘dP) down the lines of each head, whose sums over the rows are added to `sums`.
template <class T>
void soften_backward(const T* probs, T* grads, const Exchange& problem, int rows, T* sums) {
  const int context = static_cast<int>(problem.context);
  for (int64_t head = 0; head < problem.heads; ++head, sums += context) {
    for (int i = 0; i < rows; i += kLanes<T>) {
      const T* const p = probs + head * context * kStep + i;
      T* const grad = grads + head * context * kStep + i;
      Vec<T> delta = broadcast<T>(T(0));
      for (int k = 0; k < context; ++k) delta += load<T>(p + k * kStep) * load<T>(grad + k * kStep);
      for (int k = 0; k < context; ++k) {
        const Vec<T> value = load<T>(p + k * kStep) * (load<T>(grad + k * kStep) - delta);
        store<T>(grad + k * kStep, value);
        sums[k] += reduce_add<T>(value);  // rows of the padding have no gradient
      }
    }
  }
}

template <class T>
void forward_chunk(const Exchange& problem, int64_t task, void* memory) {
  const Layout<T> layout(problem);
  const Chunk<T> chunk(problem, task);
  const T* const out_bias = static_cast<const T*>(problem.out_bias);
  const Vec<T> scale = broadcast<T>(chunk.row_scale);

  Workspace<T> buffers(memory);
  T* const values = buffers.take(layout.matrix());
  T* const block = buffers.take(layout.rows());  // first of u, then of what is added to x
  T* const rows_t = buffers.take(layout.rows_t());
  T* const probs = buffers.take(layout.scores());
  T* const x_buffer = buffers.take(layout.width);
  T* const update_buffer = buffers.take(layout.width);

  pack_rows<T>(chunk.values, layout.width, layout.pairs, layout.width, values, layout.stride);
  for (int64_t first = chunk.first; first < chunk.end; first += kStep) {
    const int rows = chunk.step(first);
    normalise_rows<T>(problem, first, rows, layout, block, nullptr, update_buffer);
    multiply_transposed<T>(chunk.keys, block, rows, layout, rows_t, probs);
    soften<T>(probs, chunk.key_bias, problem, rows);
    multiply<T, true>({probs, kStep, values, layout.stride, layout.pairs}, rows, layout.vectors, block,
                      layout.stride, Epilogue<T>());
    for (int i = 0; i < rows; ++i) {
      const T* const branch = block + static_cast<ptrdiff_t>(i) * layout.stride;
      const T* const x = read_stream<T>(problem, first + i, x_buffer, update_buffer);
      const int64_t place = problem.place(first + i);
      T* const result = result_row<T>(problem.out, problem.x.dtype, place, x_buffer, layout.width);
      along_row<T>(layout.width, [&](int c, auto lanes) {
        const Vec<T> value = load<T>(branch + c) + load_part(out_bias + c, lanes);
        store_part<T>(result + c, load_part(x + c, lanes) + scale * value, lanes);
      });
      finish_row<T>(result, problem.out, problem.x.dtype, place, layout.width);
    }
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

// grad_x = grad_out + (du - mean(du) - u · mean(du · u)) / deviation; grad_update = update_scale · grad_x.
template <class T>
void write_gradients(const Exchange& problem, int64_t first, int rows, const Layout<T>& layout, const T* unit,
                     const T* inverse, const T* unit_grads, T* grad_buffer, T* update_buffer) {
  for (int i = 0; i < rows; ++i) {
    const T* const u = unit + static_cast<ptrdiff_t>(i) * layout.stride;
    const T* const du = unit_grads + static_cast<ptrdiff_t>(i) * layout.stride;
    RowSum<T> sum, turned;
    along_row<T>(layout.width, [&](int c, auto lanes) {
      const Vec<T> part = load_part(du + c, lanes);
      sum.parts[lanes.part] += part;
      turned.parts[lanes.part] += part * load_part(u + c, lanes);
    });
    const Vec<T> mean = broadcast<T>(sum.total() / static_cast<T>(layout.width));
    const Vec<T> mean_turned = broadcast<T>(turned.total() / static_cast<T>(layout.width));
    const Vec<T> factor = broadcast<T>(inverse[i]);
    const T* grad = read<T>(problem.grad_out, problem, first + i, grad_buffer);
    T* const result = result_row<T>(problem.grad_x, problem.x.dtype, first + i, grad_buffer, layout.width);
    along_row<T>(layout.width, [&](int c, auto lanes) {
      const Vec<T> through = (load<T>(du + c) - mean - load<T>(u + c) * mean_turned) * factor;
      store_part<T>(result + c, load_part(grad + c, lanes) + through, lanes);
    });
    if (problem.has_update) {
      const DType dtype = problem.update.dtype;
      T* const grad_update = result_row<T>(problem.grad_update, dtype, first + i, update_buffer, layout.width);
      const Vec<T> scale = update_scale<T>(problem, first + i);
      along_row<T>(layout.width, [&](int c, auto lanes) {
        store_part<T>(grad_update + c, load_part(result + c, lanes) * scale, lanes);
      });
      finish_row<T>(grad_update, problem.grad_update, dtype, first + i, layout.width);
    }
    finish_row<T>(result, problem.grad_x, problem.x.dtype, first + i, layout.width);
  }
}

// With r = row_scale · grad_out: dP = r valuesᵀ, dS from it, d(values) = Pᵀ r, d(keys) = dSᵀ u, du = dS keys.
template <class T>
void backward_chunk(const Exchange& problem, int64_t task, void* memory) {
  const Layout<T> layout(problem);
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

  const int64_t sums_width = problem.sums_width();
  T* const key_sums = static_cast<T*>(problem.sums) + task * (2 * pairs + 1) * sums_width;
  T* const value_sums = key_sums + pairs * sums_width;
  T* const out_bias_sums = value_sums + pairs * sums_width;
  T* const key_bias_sums = static_cast<T*>(problem.key_bias_sums) + task * pairs;
  for (int64_t c = 0; c < sums_width; ++c) out_bias_sums[c] = T(0);
  for (int j = 0; j < pairs; ++j) key_bias_sums[j] = T(0);

  pack_rows<T>(chunk.keys, layout.width, pairs, layout.width, keys, stride);
  Epilogue<T> add;
  for (int64_t first = chunk.first; first < chunk.end; first += kStep) {
    const int rows = chunk.step(first);
    normalise_rows<T>(problem, first, rows, layout, unit, inverse, update_buffer);
    multiply_transposed<T>(chunk.keys, unit, rows, layout, rows_t, probs);
    soften<T>(probs, chunk.key_bias, problem, rows);
    scale_gradients<T>(problem, first, rows, layout, chunk.row_scale, grads, out_bias_sums);
    multiply_transposed<T>(chunk.values, grads, rows, layout, rows_t, score_grads);
    soften_backward<T>(probs, score_grads, problem, rows, key_bias_sums);
    add.accumulate = first > chunk.first;
    multiply<T>({score_grads, kStep, unit, stride, rows}, pairs, layout.vectors, key_sums, sums_width, add);
    multiply<T>({probs, kStep, grads, stride, rows}, pairs, layout.vectors, value_sums, sums_width, add);
    multiply<T, true>({score_grads, kStep, keys, stride, pairs}, rows, layout.vectors, unit_grads, stride,
                      Epilogue<T>());
    write_gradients<T>(problem, first, rows, layout, unit, inverse, unit_grads, grad_buffer, update_buffer);
  }
}

size_t forward_workspace(const Exchange& problem) {
  return problem.x.dtype == DType::float64 ? Layout<double>(problem).forward_elements() * sizeof(double)
                                           : Layout<float>(problem).forward_elements() * sizeof(float);
}

size_t backward_workspace(const Exchange& problem) {
  return problem.x.dtype == DType::float64 ? Layout<double>(problem).backward_elements() * sizeof(double)
                                           : Layout<float>(problem).backward_elements() * sizeof(float);
}

void forward(const Exchange& problem, int64_t task, void* memory) {
  return problem.x.dtype == DType::float64 ? forward_chunk<double>(problem, task, memory)
                                           : forward_chunk<float>(problem, task, memory);
}

void backward(const Exchange& problem, int64_t task, void* memory) {
  return problem.x.dtype == DType::float64 ? backward_chunk<double>(problem, task, memory)
                                           : backward_chunk<float>(problem, task, memory);
}

}  // namespace

extern const ExchangeKernels exchange;
const ExchangeKernels exchange = {forward_workspace, forward, backward_workspace, backward};

}  // namespace MAE_DFER_ISA
}  // namespace mae_dfer
