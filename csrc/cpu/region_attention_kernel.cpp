// Region attention for one (region, head), forward and backward. Compiled once for every instruction set.
//
// Rows of scores are made a block at a time, whole: no running maximum is needed, since even 1024 columns fit the
// second-level cache. Letters: S tokens, D channels a head, L lanes a vector.

#include "cpu/gemm.h"
#include "cpu/kernels.h"
#include "cpu/pack.h"
#include "cpu/region_attention_bf16.h"
#include "cpu/softmax.h"
#include "cpu/workspace.h"

namespace mae_dfer {
namespace MAE_DFER_ISA {
namespace {

// Up to this many tokens a region's rows are one block, and the backward's sums over rows need no second pass.
constexpr int kOneBlockTokens = 128;
constexpr int kBlockTokens = 64;

// Sizes of one task, and its buffers in the order that they take in the workspace.
template <class T>
struct Layout {
  int tokens, head_dim;
  int block;         // rows of scores held at once
  int score_stride;  // S rounded up to L, and off the strides that collide in the cache
  int score_width;   // S rounded up to L
  int width;         // D rounded up to L

  explicit Layout(const RegionAttention& problem)
      : tokens(static_cast<int>(problem.tokens)), head_dim(static_cast<int>(problem.head_dim)) {
    block = tokens <= kOneBlockTokens ? tokens : kBlockTokens;
    score_width = round_up(tokens, kLanes<T>);
    score_stride = score_width * sizeof(T) % 1024 == 0 ? score_width + kLanes<T> : score_width;
    width = round_up(head_dim, kLanes<T>);
  }

  bool whole_vectors() const { return width == head_dim; }
  bool one_block() const { return block == tokens; }
  size_t scores() const { return static_cast<size_t>(block) * score_stride; }
  size_t transposed() const { return static_cast<size_t>(head_dim) * score_stride; }
  size_t rows() const { return static_cast<size_t>(tokens) * width; }
  size_t block_rows() const { return static_cast<size_t>(block) * width; }
  size_t per_row() const { return static_cast<size_t>(round_up(block, kLanes<T>)); }
  size_t dropout() const { return static_cast<size_t>(round_up(tokens, 4 * kGroups)); }

  size_t forward_elements() const {
    return transposed() + rows() + block_rows() + scores() + per_row() + dropout() + 6 * kSpacing<T>;
  }
  size_t backward_elements() const {
    return 2 * transposed() + 3 * rows() + 3 * block_rows() + 2 * scores() + dropout() + 10 * kSpacing<T>;
  }
};

// Rows in the type computed in: the tensor's own where that is its type, else a copy.
template <class T>
struct Rows {
  const T* data;
  ptrdiff_t stride;
};

template <class T, class E>
Rows<T> rows_as(const E* from, ptrdiff_t stride, int rows, const Layout<T>& layout, T* copy) {
  if constexpr (sizeof(E) == sizeof(T)) {
    for (int row = 0; row < rows; ++row) prefetch_next_head(from + row * stride, layout.head_dim);
    return {reinterpret_cast<const T*>(from), stride};
  } else {
    pack_rows<T>(from, stride, rows, layout.head_dim, copy, layout.width);
    return {copy, layout.width};
  }
}

// C = epilogue(A B) into rows of the result, through `scratch` where the last vector of a row is not whole.
template <class T, bool kTransposedA = false, class E>
void multiply_into(const Operands<T>& operands, int rows, const Layout<T>& layout, E* result, ptrdiff_t stride,
                   const Epilogue<T>& epilogue, T* scratch) {
  const int vectors = layout.width / kLanes<T>;
  if (layout.whole_vectors()) {
    multiply<T, kTransposedA>(operands, rows, vectors, result, stride, epilogue);
    return;
  }
  multiply<T, kTransposedA>(operands, rows, vectors, scratch, layout.width, epilogue);
  for (int row = 0; row < rows; ++row) {
    for (int c = 0; c < layout.head_dim; ++c) narrow(scratch[row * layout.width + c], result + row * stride + c);
  }
}

template <class T, class E>
void unpack_rows(const T* from, const Layout<T>& layout, E* result, ptrdiff_t stride) {
  for (int row = 0; row < layout.tokens; ++row) {
    const T* source = from + static_cast<ptrdiff_t>(row) * layout.width;
    int c = 0;
    for (; c + kLanes<T> <= layout.head_dim; c += kLanes<T>) store_as<T>(result + row * stride + c, load<T>(source + c));
    for (; c < layout.head_dim; ++c) narrow(source[c], result + row * stride + c);
  }
}

template <class T, class E>
void forward_task(const RegionAttention& problem, int64_t task, void* memory) {
  const Layout<T> layout(problem);
  const int64_t region = task / problem.heads, head = task % problem.heads;
  const ptrdiff_t model = static_cast<ptrdiff_t>(problem.heads * problem.head_dim);
  const E* query = static_cast<const E*>(problem.qkv) + region * problem.qkv_region_stride + head * problem.head_dim;
  const E *key = query + model, *value = key + model;
  E* out = static_cast<E*>(problem.result) + region * problem.tokens * model + head * problem.head_dim;
  const int score_vectors = layout.score_width / kLanes<T>;

  Workspace<T> workspace(memory);
  T* const keys_t = workspace.take(layout.transposed());
  T* const values = workspace.take(layout.rows());
  T* const block_rows = workspace.take(layout.block_rows());
  T* const scores = workspace.take(layout.scores());
  T* const inverse_sums = workspace.take(layout.per_row());
  const Dropout<T> dropout(problem, task, workspace.take(layout.dropout()));

  pack_transposed<T>(key, problem.qkv_token_stride, layout.tokens, layout.head_dim, keys_t,
                     layout.score_stride, layout.score_width);
  pack_rows<T>(value, problem.qkv_token_stride, layout.tokens, layout.head_dim, values, layout.width);

  for (int first = 0; first < layout.tokens; first += layout.block) {
    const int rows = layout.tokens - first < layout.block ? layout.tokens - first : layout.block;
    const Rows<T> q = rows_as<T>(query + first * problem.qkv_token_stride, problem.qkv_token_stride, rows, layout,
                                 block_rows);
    Epilogue<T> to_powers, normalise;
    to_powers.scale = static_cast<T>(problem.scale * kLog2E);
    normalise.row_scale = inverse_sums;
    multiply<T>({q.data, q.stride, keys_t, layout.score_stride, layout.head_dim}, rows, score_vectors, scores,
                layout.score_stride, to_powers);
    for (int i = 0; i < rows; ++i) {
      T* const row = scores + static_cast<ptrdiff_t>(i) * layout.score_stride;
      inverse_sums[i] = exponentiate_row<T>(row, layout.tokens, layout.score_width);
      if (const T* factors = dropout.row(first + i, layout.tokens)) multiply_row<T>(row, factors, layout.score_width);
    }
    multiply_into<T>({scores, layout.score_stride, values, layout.width, layout.tokens}, rows, layout,
                     out + first * model, model, normalise, block_rows);
  }
}

template <class T, class E>
void backward_task(const RegionAttention& problem, int64_t task, void* memory) {
  const Layout<T> layout(problem);
  const int64_t region = task / problem.heads, head = task % problem.heads;
  const ptrdiff_t model = static_cast<ptrdiff_t>(problem.heads * problem.head_dim), packed = 3 * model;
  const ptrdiff_t stride = problem.qkv_token_stride, grad_stride = problem.grad_out_token_stride;
  const E* query = static_cast<const E*>(problem.qkv) + region * problem.qkv_region_stride + head * problem.head_dim;
  const E *key = query + model, *value = key + model;
  const E* grad_out = static_cast<const E*>(problem.grad_out) + region * problem.grad_out_region_stride +
                      head * problem.head_dim;
  E* grad_query = static_cast<E*>(problem.result) + region * problem.tokens * packed + head * problem.head_dim;
  E *grad_key = grad_query + model, *grad_value = grad_key + model;
  const int tokens = layout.tokens, width = layout.width, score_stride = layout.score_stride;
  const int score_vectors = layout.score_width / kLanes<T>, vectors = width / kLanes<T>;

  Workspace<T> workspace(memory);
  T* const keys_t = workspace.take(layout.transposed());
  T* const values_t = workspace.take(layout.transposed());
  T* const keys = workspace.take(layout.rows());
  T* const key_sums = workspace.take(layout.rows());
  T* const value_sums = workspace.take(layout.rows());
  T* const queries = workspace.take(layout.block_rows());
  T* const grads = workspace.take(layout.block_rows());
  T* const scratch = workspace.take(layout.block_rows());
  T* const probs = workspace.take(layout.scores());
  T* const grad_scores = workspace.take(layout.scores());
  const Dropout<T> dropout(problem, task, workspace.take(layout.dropout()));

  pack_transposed<T>(key, stride, tokens, layout.head_dim, keys_t, score_stride, layout.score_width);
  pack_transposed<T>(value, stride, tokens, layout.head_dim, values_t, score_stride, layout.score_width);
  pack_rows<T>(key, stride, tokens, layout.head_dim, keys, width);

  for (int first = 0; first < tokens; first += layout.block) {
    const int rows = tokens - first < layout.block ? tokens - first : layout.block;
    pack_rows<T>(query + first * stride, stride, rows, layout.head_dim, queries, width);
    pack_rows<T>(grad_out + first * grad_stride, grad_stride, rows, layout.head_dim, grads, width);
    Epilogue<T> to_powers, scaled, plain;
    to_powers.scale = static_cast<T>(problem.scale * kLog2E);
    scaled.scale = static_cast<T>(problem.scale);
    multiply<T>({queries, width, keys_t, score_stride, layout.head_dim}, rows, score_vectors, probs, score_stride,
                to_powers);
    multiply<T>({grads, width, values_t, score_stride, layout.head_dim}, rows, score_vectors, grad_scores,
                score_stride, plain);
    for (int i = 0; i < rows; ++i) {
      T* const row = probs + static_cast<ptrdiff_t>(i) * score_stride;
      const T inverse_sum = exponentiate_row<T>(row, tokens, layout.score_width);
      softmax_backward_row<T>(row, grad_scores + static_cast<ptrdiff_t>(i) * score_stride, inverse_sum,
                              dropout.row(first + i, tokens), layout.score_width);
    }
    // dQ = scale · dS K
    multiply_into<T>({grad_scores, score_stride, keys, width, tokens}, rows, layout, grad_query + first * packed,
                     packed, scaled, scratch);
    // dK = scale · dSᵀ Q and dV = Pᵀ dO, summed over the blocks of rows
    const Operands<T> for_keys{grad_scores, score_stride, queries, width, rows};
    const Operands<T> for_values{probs, score_stride, grads, width, rows};
    if (layout.one_block()) {
      multiply_into<T, true>(for_keys, tokens, layout, grad_key, packed, scaled, scratch);
      multiply_into<T, true>(for_values, tokens, layout, grad_value, packed, plain, scratch);
    } else {
      scaled.accumulate = plain.accumulate = first > 0;
      multiply<T, true>(for_keys, tokens, vectors, key_sums, width, scaled);
      multiply<T, true>(for_values, tokens, vectors, value_sums, width, plain);
    }
  }
  if (!layout.one_block()) {
    unpack_rows<T>(key_sums, layout, grad_key, packed);
    unpack_rows<T>(value_sums, layout, grad_value, packed);
  }
}

size_t forward_workspace(const RegionAttention& problem) {
#if defined(__AVX512BF16__)
  if (takes_pairs(problem, false)) return PairLayout(problem).forward_words() * sizeof(float);
#endif
  if (problem.dtype == DType::float64) return Layout<double>(problem).forward_elements() * sizeof(double);
  return Layout<float>(problem).forward_elements() * sizeof(float);
}

size_t backward_workspace(const RegionAttention& problem) {
#if defined(__AVX512BF16__)
  if (takes_pairs(problem, true)) return PairLayout(problem).backward_words() * sizeof(float);
#endif
  if (problem.dtype == DType::float64) return Layout<double>(problem).backward_elements() * sizeof(double);
  return Layout<float>(problem).backward_elements() * sizeof(float);
}

void forward(const RegionAttention& problem, int64_t task, void* workspace) {
#if defined(__AVX512BF16__)
  if (takes_pairs(problem, false)) return forward_pairs(problem, task, workspace);
#endif
  switch (problem.dtype) {
    case DType::float64: return forward_task<double, double>(problem, task, workspace);
    case DType::float32: return forward_task<float, float>(problem, task, workspace);
    case DType::bfloat16: return forward_task<float, BFloat16>(problem, task, workspace);
    case DType::float16: return forward_task<float, Float16>(problem, task, workspace);
  }
}

void backward(const RegionAttention& problem, int64_t task, void* workspace) {
#if defined(__AVX512BF16__)
  if (takes_pairs(problem, true)) return backward_pairs(problem, task, workspace);
#endif
  switch (problem.dtype) {
    case DType::float64: return backward_task<double, double>(problem, task, workspace);
    case DType::float32: return backward_task<float, float>(problem, task, workspace);
    case DType::bfloat16: return backward_task<float, BFloat16>(problem, task, workspace);
    case DType::float16: return backward_task<float, Float16>(problem, task, workspace);
  }
}

}  // namespace

extern const RegionAttentionKernels region_attention;
const RegionAttentionKernels region_attention = {forward_workspace, forward, backward_workspace, backward};

}  // namespace MAE_DFER_ISA
}  // namespace mae_dfer
