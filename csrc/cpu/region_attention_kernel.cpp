// Region attention for one (region, head), forward and backward. Compiled once for every instruction set.
//
// Scores are made for a block of queries at a time and all keys: no running maximum is needed, since even 1024 keys fit
// the second-level cache. They stand transposed, keys down and queries across, as the product of the keys with the
// transposed queries. Letters: S tokens, D channels a head, L lanes a vector.

#include "cpu/gemm.h"
#include "cpu/kernels.h"
#include "cpu/pack.h"
#include "cpu/region_attention_bf16.h"
#include "cpu/region_attention_head.h"
#include "cpu/softmax.h"
#include "cpu/workspace.h"

namespace mae_dfer {
namespace MAE_DFER_ISA {
namespace {

// Up to this many tokens a region's queries are one block, and the backward's sums over queries need no second pass.
constexpr int kOneBlockTokens = 128;
constexpr int kBlockTokens = 64;

// Sizes of one task, and its buffers in the order that they take in the workspace.
template <class T>
struct Layout {
  int tokens, head_dim;
  int block;         // queries whose scores are held at once
  int score_stride;  // the same, rounded up to L
  int width;         // D rounded up to L
  size_t dropout;    // elements

  explicit Layout(const RegionAttention& problem)
      : tokens(static_cast<int>(problem.tokens)), head_dim(static_cast<int>(problem.head_dim)) {
    block = tokens <= kOneBlockTokens ? tokens : kBlockTokens;
    score_stride = round_up(block, kLanes<T>);
    width = round_up(head_dim, kLanes<T>);
    dropout = Dropout<T>::elements(problem, block);
  }

  bool whole_vectors() const { return width == head_dim; }
  bool one_block() const { return block == tokens; }
  size_t scores() const { return static_cast<size_t>(tokens) * score_stride; }
  size_t transposed() const { return static_cast<size_t>(head_dim) * score_stride; }
  size_t rows() const { return static_cast<size_t>(tokens) * width; }
  size_t block_rows() const { return static_cast<size_t>(block) * width; }

  size_t forward_elements() const {
    return 2 * rows() + transposed() + scores() + score_stride + block_rows() + dropout + 7 * kSpacing<T>;
  }
  size_t backward_elements() const {
    return 4 * rows() + 2 * transposed() + 3 * block_rows() + 2 * scores() + dropout + 12 * kSpacing<T>;
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
  if constexpr (sizeof(E) == sizeof(T)) return {reinterpret_cast<const T*>(from), stride};
  pack_rows<T>(from, stride, rows, layout.head_dim, copy, layout.width);
  return {copy, layout.width};
}

// The same of a factor whose elements are read again with every block: the tensor's own only for one block.
template <class T, class E>
Rows<T> factor_as(const E* from, ptrdiff_t stride, const Layout<T>& layout, T* copy) {
  if (layout.one_block()) return rows_as(from, stride, layout.tokens, layout, copy);
  pack_rows<T>(from, stride, layout.tokens, layout.head_dim, copy, layout.width);
  return {copy, layout.width};
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
  const TaskHeads<E> heads(problem, task, false);
  const Head<E>&head = heads.head, &next = heads.next;
  const ptrdiff_t model = head.model, stride = problem.qkv_token_stride;
  const int tokens = layout.tokens, width = layout.width, score_stride = layout.score_stride;

  Workspace<T> workspace(memory);
  T* const key_rows = workspace.take(layout.rows());
  T* const values = workspace.take(layout.rows());
  T* const queries_t = workspace.take(layout.transposed());
  T* const score_memory = workspace.take(layout.scores());
  T* const inverse_sums = workspace.take(score_stride);
  T* const scratch = workspace.take(layout.block_rows());
  Dropout<T> dropout(problem, task, layout.block, workspace.take(layout.dropout));
  Epilogue<T> to_powers, normalise;
  to_powers.scale = static_cast<T>(problem.scale * kLog2E);
  normalise.row_scale = inverse_sums;
  const auto ahead = [&](const E* rows, ptrdiff_t apart) { return Ahead(rows, apart, layout.head_dim); };

  const Rows<T> keys = factor_as(head.key, stride, layout, key_rows);
  pack_rows<T>(head.value, stride, tokens, layout.head_dim, values, width);
  for (int first = 0; first < tokens; first += layout.block) {
    const int rows = tokens - first < layout.block ? tokens - first : layout.block;
    const Scores<T> scores{score_memory, score_stride, tokens, round_up(rows, kLanes<T>) / kLanes<T>};
    const Rows<T> queries = rows_as(head.query + first * stride, stride, rows, layout, scratch);
    pack_transposed<T>(queries.data, queries.stride, rows, layout.head_dim, queries_t, score_stride,
                       scores.vectors * kLanes<T>);
    Operands<T> for_scores{keys.data, keys.stride, queries_t, score_stride, layout.head_dim};
    if (first == 0) for_scores = for_scores.asking(ahead(head.result, model), ahead(next.key, stride));
    multiply(for_scores, tokens, scores.vectors, scores.data, score_stride, to_powers);
    dropout.draw(first, rows, tokens);
    soften<T, 1, kPanel>(scores, dropout, Power<T>::kTerms, inverse_sums,
                         [&](int j, int i, const Vec<T>* probs) { store<T>(scores.at(j, i), probs[0]); });
    const Operands<T> for_result{scores.data, score_stride, values, width, tokens};
    multiply_into<T, true>(
        for_result.asking(ahead(next.value + first * stride, stride), ahead(next.query + first * stride, stride)), rows,
        layout, head.result + first * model, model, normalise, scratch);
  }
}

template <class T, class E>
void backward_task(const RegionAttention& problem, int64_t task, void* memory) {
  const Layout<T> layout(problem);
  const TaskHeads<E> heads(problem, task, true);
  const Head<E>&head = heads.head, &next = heads.next;
  const ptrdiff_t model = head.model, packed = 3 * model;
  const ptrdiff_t stride = problem.qkv_token_stride, grad_stride = problem.grad_out_token_stride;
  E *const grad_query = head.result, *const grad_key = grad_query + model, *const grad_value = grad_key + model;
  const int tokens = layout.tokens, head_dim = layout.head_dim, width = layout.width;
  const int score_stride = layout.score_stride, vectors = width / kLanes<T>;

  Workspace<T> workspace(memory);
  T* const keys = workspace.take(layout.rows());
  T* const value_rows = workspace.take(layout.rows());
  T* const key_sums = workspace.take(layout.rows());
  T* const value_sums = workspace.take(layout.rows());
  T* const queries_t = workspace.take(layout.transposed());
  T* const grads_t = workspace.take(layout.transposed());
  T* const queries = workspace.take(layout.block_rows());
  T* const grads = workspace.take(layout.block_rows());
  T* const scratch = workspace.take(layout.block_rows());
  T* const score_memory = workspace.take(layout.scores());
  T* const grad_memory = workspace.take(layout.scores());
  Dropout<T> dropout(problem, task, layout.block, workspace.take(layout.dropout));
  Epilogue<T> to_powers, scaled, plain;
  to_powers.scale = static_cast<T>(problem.scale * kLog2E);
  scaled.scale = static_cast<T>(problem.scale);
  const auto ahead = [&](const E* rows, ptrdiff_t apart) { return Ahead(rows, apart, head_dim); };

  pack_rows<T>(head.key, stride, tokens, head_dim, keys, width);
  const Rows<T> values = factor_as(head.value, stride, layout, value_rows);
  for (int first = 0; first < tokens; first += layout.block) {
    const int rows = tokens - first < layout.block ? tokens - first : layout.block;
    const Scores<T> scores{score_memory, score_stride, tokens, round_up(rows, kLanes<T>) / kLanes<T>};
    const Scores<T> grad_scores{grad_memory, score_stride, tokens, scores.vectors};
    const int padded = scores.vectors * kLanes<T>;
    pack_rows<T>(head.query + first * stride, stride, rows, head_dim, queries, width);
    pack_rows<T>(head.grad_out + first * grad_stride, grad_stride, rows, head_dim, grads, width);
    pack_transposed<T>(queries, width, rows, head_dim, queries_t, score_stride, padded);
    pack_transposed<T>(grads, width, rows, head_dim, grads_t, score_stride, padded);
    Operands<T> for_scores{keys, width, queries_t, score_stride, head_dim};
    Operands<T> for_grads{values.data, values.stride, grads_t, score_stride, head_dim};
    if (first == 0) {
      for_scores = for_scores.asking(ahead(grad_query, packed), ahead(next.key, stride));
      for_grads = for_grads.asking(ahead(grad_key, packed), ahead(grad_value, packed));
    }
    multiply(for_scores, tokens, scores.vectors, scores.data, score_stride, to_powers);
    multiply(for_grads, tokens, scores.vectors, grad_scores.data, score_stride, plain);
    dropout.draw(first, rows, tokens);
    soften_backward<T, 1, kPanel>(scores, grad_scores, dropout,
                                  [&](int j, int i, const Vec<T>* probs, const Vec<T>* gradients) {
                                    store<T>(scores.at(j, i), probs[0]);
                                    store<T>(grad_scores.at(j, i), gradients[0]);
                                  });
    // dQ = scale · dS K
    const Operands<T> for_queries{grad_scores.data, score_stride, keys, width, tokens};
    multiply_into<T, true>(for_queries.asking(ahead(next.value + first * stride, stride)), rows, layout,
                           grad_query + first * packed, packed, scaled, scratch);
    // dK = scale · dSᵀ Q and dV = Pᵀ dO, summed over the blocks of queries
    const Operands<T> for_keys{grad_scores.data, score_stride, queries, width, rows};
    const Operands<T> for_values{scores.data, score_stride, grads, width, rows};
    if (layout.one_block()) {
      multiply_into(for_keys.asking(ahead(next.query, stride)), tokens, layout, grad_key, packed, scaled, scratch);
      multiply_into(for_values.asking(ahead(next.grad_out, grad_stride)), tokens, layout, grad_value, packed, plain,
                    scratch);
    } else {
      scaled.accumulate = plain.accumulate = first > 0;
      multiply(for_keys, tokens, vectors, key_sums, width, scaled);
      multiply(for_values, tokens, vectors, value_sums, width, plain);
      scaled.accumulate = plain.accumulate = false;
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
