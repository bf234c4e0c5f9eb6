// Region attention for one (region, head) in bf16, by the instruction that multiplies pairs of bf16 and sums in fp32.
//
// A sum over channels takes its pairs as they lie in memory: a row of q, read as 32-bit words, is a row of pairs, and
// the transpose of k, word by word, holds the matching ones. A sum over tokens needs rows 2i and 2i + 1 interleaved.
// Scores, softmax and its gradient are fp32, a few rows at a time; probabilities and their gradients are rounded to
// bf16 before they enter a product, as they are where PyTorch multiplies in bf16.
#pragma once

#include "cpu/gemm.h"
#include "cpu/pack.h"
#include "cpu/softmax.h"
#include "cpu/workspace.h"

#if defined(__AVX512BF16__)

namespace mae_dfer {
namespace MAE_DFER_ISA {
namespace {

constexpr int kPairLanes = kLanes<float>;  // words, and so pairs, in a vector
// Rows of scores at once: a multiple of the register blocks' rows and of a pair's, small enough for the first cache.
constexpr int kPairBlock = 24;
// The backward keeps the probabilities of some rows as pairs: of all up to this many tokens, beyond it of fewer, so that
// they stay in the second-level cache. A multiple of kPairBlock.
constexpr int kPairTokens = 240;
constexpr int kPairRows = 120;

// Whether these tasks take the problem: rows must be whole vectors, and pairs must not straddle two rows.
inline bool takes_pairs(const RegionAttention& problem, bool backward) {
  return problem.dtype == DType::bfloat16 && problem.head_dim % kPairLanes == 0 &&
         problem.qkv_token_stride % 2 == 0 &&
         (!backward || problem.grad_out_token_stride % 2 == 0);
}

// Sizes of one task. Widths count pairs, or the floats that a row of them was made of.
struct PairLayout {
  int tokens, head_dim;
  int token_pairs;   // pairs of tokens, the last one filled with zeros where S is odd
  int kept_rows;     // rows of probabilities that the backward keeps at once
  int score_width;   // S rounded up to a vector
  int score_stride;  // the same, off the strides that collide in the cache

  explicit PairLayout(const RegionAttention& problem)
      : tokens(static_cast<int>(problem.tokens)), head_dim(static_cast<int>(problem.head_dim)) {
    token_pairs = (tokens + 1) / 2;
    kept_rows = tokens <= kPairTokens ? tokens : kPairRows;
    score_width = round_up(tokens, kPairLanes);
    score_stride = score_width % 256 == 0 ? score_width + kPairLanes : score_width;
  }

  size_t transposed() const { return static_cast<size_t>(head_dim) / 2 * score_stride; }
  size_t interleaved() const { return static_cast<size_t>(token_pairs) * head_dim; }
  size_t block_scores() const { return static_cast<size_t>(kPairBlock) * score_stride; }
  size_t block_pairs() const { return block_scores() / 2; }
  size_t kept_pairs() const { return static_cast<size_t>((kept_rows + 1) / 2) * score_stride; }
  bool keeps_all() const { return kept_rows == tokens; }
  size_t sums() const { return keeps_all() ? 0 : static_cast<size_t>(tokens) * head_dim; }
  size_t dropout() const { return static_cast<size_t>(round_up(tokens, 4 * kGroups)); }

  size_t forward_words() const {
    return transposed() + interleaved() + block_scores() + block_pairs() + kPairBlock + dropout() +
           6 * kSpacing<float>;
  }
  size_t backward_words() const {
    return 2 * transposed() + 3 * interleaved() + 2 * block_scores() + block_pairs() + 2 * kept_pairs() +
           2 * sums() + dropout() + 12 * kSpacing<float>;
  }
};

inline BFloat16Pair* as_pairs(float* words) { return reinterpret_cast<BFloat16Pair*>(words); }
inline const BFloat16Pair* as_pairs(const BFloat16* row) { return reinterpret_cast<const BFloat16Pair*>(row); }

inline __m512i interleave(__m256i first, __m256i second) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(first), _mm512_slli_epi32(_mm512_cvtepu16_epi32(second), 16));
}

// to[pair][column] = (from[2·pair][column], from[2·pair + 1][column]), zero for the row after the last.
inline void pack_interleaved(const BFloat16* from, ptrdiff_t stride, int rows, int width, BFloat16Pair* to) {
  for (int row = 0; row < rows; row += 2, to += width) {
    const BFloat16* source = from + row * stride;
    prefetch_next_head(source, width);
    if (row + 1 < rows) prefetch_next_head(source + stride, width);
    for (int column = 0; column < width; column += kPairLanes) {
      const auto load_row = [&](const BFloat16* at) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + column));
      };
      const __m256i second = row + 1 < rows ? load_row(source + stride) : _mm256_setzero_si256();
      _mm512_storeu_si512(to + column, interleave(load_row(source), second));
    }
  }
}

// The transpose of rows of bf16, as words: to[pair of channels][row].
inline void pack_pairs_transposed(const BFloat16* from, ptrdiff_t stride, const PairLayout& layout, float* to) {
  pack_transposed<float>(reinterpret_cast<const Word*>(from), stride / 2, layout.tokens, layout.head_dim / 2, to,
                         layout.score_stride, layout.score_width);
}

inline void round_vector(Vec<float> values, BFloat16Pair* to) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh((__m512)values));
}

// A row of floats, rounded to bf16.
inline void round_row(const float* from, int width, BFloat16Pair* to) {
  for (int column = 0; column < width; column += kPairLanes) round_vector(load<float>(from + column), to + column / 2);
}

// Two rows of floats, rounded to bf16 and interleaved; `second` may be null, for zeros.
inline void round_rows_interleaved(const float* first, const float* second, int width, BFloat16Pair* to) {
  for (int column = 0; column < width; column += kPairLanes) {
    const auto round = [&](const float* row) { return (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(row + column)); };
    _mm512_storeu_si512(to + column, interleave(round(first), second ? round(second) : _mm256_setzero_si256()));
  }
}

void forward_pairs(const RegionAttention& problem, int64_t task, void* memory) {
  const PairLayout layout(problem);
  const int64_t region = task / problem.heads, head = task % problem.heads;
  const ptrdiff_t model = static_cast<ptrdiff_t>(problem.heads * problem.head_dim), stride = problem.qkv_token_stride;
  const BFloat16* query =
      static_cast<const BFloat16*>(problem.qkv) + region * problem.qkv_region_stride + head * problem.head_dim;
  const BFloat16 *key = query + model, *value = key + model;
  BFloat16* out = static_cast<BFloat16*>(problem.result) + region * problem.tokens * model + head * problem.head_dim;

  Workspace<float> workspace(memory);
  float* const keys_t = workspace.take(layout.transposed());
  BFloat16Pair* const values = as_pairs(workspace.take(layout.interleaved()));
  float* const scores = workspace.take(layout.block_scores());
  BFloat16Pair* const probs = as_pairs(workspace.take(layout.block_pairs()));
  float* const inverse_sums = workspace.take(kPairBlock);
  const Dropout<float> dropout(problem, task, workspace.take(layout.dropout()));
  Epilogue<float> to_powers, normalise;
  to_powers.scale = static_cast<float>(problem.scale * kLog2E);
  normalise.row_scale = inverse_sums;

  pack_pairs_transposed(key, stride, layout, keys_t);
  pack_interleaved(value, stride, layout.tokens, layout.head_dim, values);
  for (int first = 0; first < layout.tokens; first += kPairBlock) {
    const int rows = layout.tokens - first < kPairBlock ? layout.tokens - first : kPairBlock;
    for (int i = 0; i < rows; ++i) prefetch_next_head(query + (first + i) * stride, layout.head_dim);
    multiply<BFloat16Pair>({as_pairs(query + first * stride), stride / 2, as_pairs(keys_t), layout.score_stride,
                            layout.head_dim / 2},
                           rows, layout.score_width / kPairLanes, scores, layout.score_stride, to_powers);
    for (int i = 0; i < rows; ++i) {
      const float* const row = scores + static_cast<ptrdiff_t>(i) * layout.score_stride;
      BFloat16Pair* const rounded = probs + static_cast<ptrdiff_t>(i) * layout.score_stride / 2;
      const float* const factors = dropout.row(first + i, layout.tokens);
      inverse_sums[i] = exponentiate<float>(row, layout.tokens, layout.score_width, Power<float>::kRoughTerms,
                                            [&](int j, Vec<float> value) {
                                              if (factors) value *= load<float>(factors + j);
                                              round_vector(value, rounded + j / 2);
                                            });
    }
    multiply<BFloat16Pair>({probs, layout.score_stride / 2, values, layout.head_dim, layout.token_pairs}, rows,
                           layout.head_dim / kPairLanes, out + first * model, model, normalise);
  }
}

// Scores of a block of rows and their gradients: rounded to bf16 as rows, and as pairs of rows.
struct PairScores {
  float *probs, *grads;
  BFloat16Pair *grad_rows, *prob_pairs, *grad_pairs;
};

// From S and dP of a block of rows to P and dS; `pair` is the first pair of rows that it fills.
inline void soften_pairs(const PairScores& scores, const PairLayout& layout, const Dropout<float>& dropout, int first,
                         int rows, int pair) {
  const int stride = layout.score_stride, width = layout.score_width;
  for (int i = 0; i < rows; ++i) {
    float* const row = scores.probs + static_cast<ptrdiff_t>(i) * stride;
    float* const grad_row = scores.grads + static_cast<ptrdiff_t>(i) * stride;
    const float inverse_sum = exponentiate_row<float>(row, layout.tokens, width);
    softmax_backward_row<float>(row, grad_row, inverse_sum, dropout.row(first + i, layout.tokens), width);
    round_row(grad_row, width, scores.grad_rows + static_cast<ptrdiff_t>(i) * stride / 2);
  }
  for (int i = 0; i < rows; i += 2) {
    const ptrdiff_t at = static_cast<ptrdiff_t>(i) * stride, to = static_cast<ptrdiff_t>(pair + i / 2) * stride;
    const bool last = i + 1 == rows;
    const auto next = [&](const float* rows_of) { return last ? nullptr : rows_of + at + stride; };
    round_rows_interleaved(scores.probs + at, next(scores.probs), width, scores.prob_pairs + to);
    round_rows_interleaved(scores.grads + at, next(scores.grads), width, scores.grad_pairs + to);
  }
}

void backward_pairs(const RegionAttention& problem, int64_t task, void* memory) {
  const PairLayout layout(problem);
  const int64_t region = task / problem.heads, head = task % problem.heads;
  const ptrdiff_t model = static_cast<ptrdiff_t>(problem.heads * problem.head_dim), packed = 3 * model;
  const ptrdiff_t stride = problem.qkv_token_stride, grad_stride = problem.grad_out_token_stride;
  const BFloat16* query =
      static_cast<const BFloat16*>(problem.qkv) + region * problem.qkv_region_stride + head * problem.head_dim;
  const BFloat16 *key = query + model, *value = key + model;
  const BFloat16* grad_out = static_cast<const BFloat16*>(problem.grad_out) +
                             region * problem.grad_out_region_stride + head * problem.head_dim;
  BFloat16* grad_query =
      static_cast<BFloat16*>(problem.result) + region * problem.tokens * packed + head * problem.head_dim;
  BFloat16 *grad_key = grad_query + model, *grad_value = grad_key + model;
  const int tokens = layout.tokens, score_stride = layout.score_stride, head_dim = layout.head_dim;
  const int score_vectors = layout.score_width / kPairLanes, vectors = head_dim / kPairLanes;

  Workspace<float> workspace(memory);
  float* const keys_t = workspace.take(layout.transposed());
  float* const values_t = workspace.take(layout.transposed());
  BFloat16Pair* const keys = as_pairs(workspace.take(layout.interleaved()));
  BFloat16Pair* const queries = as_pairs(workspace.take(layout.interleaved()));
  BFloat16Pair* const grads = as_pairs(workspace.take(layout.interleaved()));
  PairScores scores;
  scores.probs = workspace.take(layout.block_scores());
  scores.grads = workspace.take(layout.block_scores());
  scores.grad_rows = as_pairs(workspace.take(layout.block_pairs()));
  scores.prob_pairs = as_pairs(workspace.take(layout.kept_pairs()));
  scores.grad_pairs = as_pairs(workspace.take(layout.kept_pairs()));
  float* const key_sums = workspace.take(layout.sums());
  float* const value_sums = workspace.take(layout.sums());
  const Dropout<float> dropout(problem, task, workspace.take(layout.dropout()));
  Epilogue<float> to_powers, scaled, plain;
  to_powers.scale = static_cast<float>(problem.scale * kLog2E);
  scaled.scale = static_cast<float>(problem.scale);

  pack_pairs_transposed(key, stride, layout, keys_t);
  pack_pairs_transposed(value, stride, layout, values_t);
  pack_interleaved(key, stride, tokens, head_dim, keys);
  pack_interleaved(query, stride, tokens, head_dim, queries);
  pack_interleaved(grad_out, grad_stride, tokens, head_dim, grads);
  for (int kept = 0; kept < tokens; kept += layout.kept_rows) {
    const int end = tokens - kept < layout.kept_rows ? tokens : kept + layout.kept_rows;
    for (int first = kept; first < end; first += kPairBlock) {
      const int rows = end - first < kPairBlock ? end - first : kPairBlock;
      multiply<BFloat16Pair>(
          {as_pairs(query + first * stride), stride / 2, as_pairs(keys_t), score_stride, head_dim / 2}, rows,
          score_vectors, scores.probs, score_stride, to_powers);
      multiply<BFloat16Pair>(
          {as_pairs(grad_out + first * grad_stride), grad_stride / 2, as_pairs(values_t), score_stride, head_dim / 2},
          rows, score_vectors, scores.grads, score_stride, plain);
      soften_pairs(scores, layout, dropout, first, rows, (first - kept) / 2);
      // dQ = scale · dS K
      multiply<BFloat16Pair>({scores.grad_rows, score_stride / 2, keys, head_dim, layout.token_pairs}, rows, vectors,
                             grad_query + first * packed, packed, scaled);
    }
    // dK = scale · dSᵀ Q and dV = Pᵀ dO, summed over the rows
    const ptrdiff_t at = static_cast<ptrdiff_t>(kept / 2) * head_dim;
    const int pairs = (end - kept + 1) / 2;
    const Operands<BFloat16Pair> for_keys{scores.grad_pairs, score_stride, queries + at, head_dim, pairs};
    const Operands<BFloat16Pair> for_values{scores.prob_pairs, score_stride, grads + at, head_dim, pairs};
    if (layout.keeps_all()) {
      multiply<BFloat16Pair, true>(for_keys, tokens, vectors, grad_key, packed, scaled);
      multiply<BFloat16Pair, true>(for_values, tokens, vectors, grad_value, packed, plain);
    } else {
      scaled.accumulate = plain.accumulate = kept > 0;
      multiply<BFloat16Pair, true>(for_keys, tokens, vectors, key_sums, head_dim, scaled);
      multiply<BFloat16Pair, true>(for_values, tokens, vectors, value_sums, head_dim, plain);
      scaled.accumulate = plain.accumulate = false;
    }
  }
  for (int row = 0; row < tokens && !layout.keeps_all(); ++row) {
    const ptrdiff_t from = static_cast<ptrdiff_t>(row) * head_dim, to = row * packed;
    for (int c = 0; c < head_dim; c += kPairLanes) {
      store_as<float>(grad_key + to + c, load<float>(key_sums + from + c));
      store_as<float>(grad_value + to + c, load<float>(value_sums + from + c));
    }
  }
}

}  // namespace
}  // namespace MAE_DFER_ISA
}  // namespace mae_dfer

#endif
