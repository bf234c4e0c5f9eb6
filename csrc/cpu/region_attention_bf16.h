// Region attention for one (region, head) in bf16, by the instruction that multiplies pairs of bf16 and sums in fp32.
//
// Scores stand with keys down and queries across, fp32, for a few queries at a time. A sum over channels takes its pairs
// as they lie in memory: a row of k, read as 32-bit words, is a row of pairs, and the transpose of q, word by word, holds
// the matching ones. So do rows of scores for a sum over queries; a sum over keys needs rows 2j and 2j + 1 interleaved.
// Probabilities and their gradients are rounded to bf16 before they enter a product, as they are where PyTorch
// multiplies in bf16.
#pragma once

#include "cpu/gemm.h"
#include "cpu/pack.h"
#include "cpu/pairs.h"
#include "cpu/region_attention_head.h"
#include "cpu/softmax.h"
#include "cpu/workspace.h"

#if defined(__AVX512BF16__)

namespace mae_dfer {
namespace MAE_DFER_ISA {
namespace {

// Queries at once: whole vectors, whole register blocks, and scores that are small enough for the first cache.
constexpr int kPairBlock = 48;
// The backward keeps the probabilities of some queries as pairs: of all up to this many tokens, beyond it of fewer, so
// that they stay in the second-level cache. A multiple of kPairBlock.
constexpr int kPairTokens = 240;
constexpr int kPairQueries = 96;

// Whether these tasks take the problem: rows must be whole vectors, and pairs must not straddle two rows.
inline bool takes_pairs(const RegionAttention& problem, bool backward) {
  return problem.dtype == DType::bfloat16 && problem.head_dim % kPairLanes == 0 &&
         problem.qkv_token_stride % 2 == 0 &&
         (!backward || problem.grad_out_token_stride % 2 == 0);
}

// Sizes of one task, in words: pairs, or the floats that they were made of.
struct PairLayout {
  int tokens, head_dim;
  int token_pairs;  // pairs of tokens, the last one filled with zeros where S is odd
  int block;        // queries whose scores are held at once, rounded up to a vector
  int kept;         // queries whose probabilities the backward keeps at once
  int kept_stride;  // pairs of them, on whole vectors of bf16
  size_t dropout;

  explicit PairLayout(const RegionAttention& problem)
      : tokens(static_cast<int>(problem.tokens)), head_dim(static_cast<int>(problem.head_dim)) {
    token_pairs = (tokens + 1) / 2;
    block = tokens < kPairBlock ? round_up(tokens, kPairLanes) : kPairBlock;
    kept = tokens <= kPairTokens ? tokens : kPairQueries;
    kept_stride = round_up(kept, kPairLanes) / 2;
    dropout = Dropout<float>::elements(problem, block);
  }

  size_t rows() const { return static_cast<size_t>(tokens) * head_dim / 2; }
  size_t transposed() const { return static_cast<size_t>(head_dim) / 2 * block; }
  size_t interleaved() const { return static_cast<size_t>(token_pairs) * head_dim; }
  size_t scores() const { return static_cast<size_t>(tokens) * block; }
  size_t key_pairs() const { return static_cast<size_t>(token_pairs) * block; }
  size_t kept_pairs() const { return static_cast<size_t>(tokens) * kept_stride; }
  bool keeps_all() const { return kept == tokens; }
  size_t sums() const { return keeps_all() ? 0 : static_cast<size_t>(tokens) * head_dim; }

  size_t forward_words() const {
    return rows() + interleaved() + transposed() + scores() + key_pairs() + block + dropout + 7 * kSpacing<float>;
  }
  size_t backward_words() const {
    return 2 * rows() + 3 * interleaved() + 2 * transposed() + 2 * scores() + key_pairs() + 2 * kept_pairs() +
           2 * sums() + dropout + 14 * kSpacing<float>;
  }
};

// Rows of bf16, one beside the other.
inline const BFloat16Pair* pack_pairs(const BFloat16* from, ptrdiff_t stride, const PairLayout& layout, float* to) {
  pack_rows<float>(reinterpret_cast<const Word*>(from), stride / 2, layout.tokens, layout.head_dim / 2, to,
                   layout.head_dim / 2);
  return as_pairs(to);
}

// The transpose of a block's rows of bf16, as words: to[pair of channels][row].
inline const BFloat16Pair* pack_pairs_transposed(const BFloat16* from, ptrdiff_t stride, int rows, int padded_rows,
                                                 const PairLayout& layout, float* to) {
  pack_transposed<float>(reinterpret_cast<const float*>(from), stride / 2, rows, layout.head_dim / 2, to, layout.block,
                         padded_rows);
  return as_pairs(to);
}

void forward_pairs(const RegionAttention& problem, int64_t task, void* memory) {
  const PairLayout layout(problem);
  const TaskHeads<BFloat16> heads(problem, task, false);
  const Head<BFloat16>&head = heads.head, &next = heads.next;
  const ptrdiff_t model = head.model, stride = problem.qkv_token_stride;
  const int tokens = layout.tokens, head_dim = layout.head_dim, block = layout.block;

  Workspace<float> workspace(memory);
  const BFloat16Pair* const keys = pack_pairs(head.key, stride, layout, workspace.take(layout.rows()));
  BFloat16Pair* const values = as_pairs(workspace.take(layout.interleaved()));
  float* const transposed = workspace.take(layout.transposed());
  float* const score_memory = workspace.take(layout.scores());
  BFloat16Pair* const probs = as_pairs(workspace.take(layout.key_pairs()));
  float* const inverse_sums = workspace.take(block);
  Dropout<float> dropout(problem, task, block, workspace.take(layout.dropout));
  Epilogue<float> to_powers, normalise;
  to_powers.scale = static_cast<float>(problem.scale * kLog2E);
  normalise.row_scale = inverse_sums;
  const auto ahead = [&](const BFloat16* rows, ptrdiff_t apart) { return Ahead(rows, apart, head_dim); };

  pack_interleaved(head.value, stride, tokens, head_dim, values, head_dim);
  for (int first = 0; first < tokens; first += block) {
    const int rows = tokens - first < block ? tokens - first : block;
    const Scores<float> scores{score_memory, block, tokens, round_up(rows, kPairLanes) / kPairLanes};
    const BFloat16Pair* const queries_t = pack_pairs_transposed(head.query + first * stride, stride, rows,
                                                                scores.vectors * kPairLanes, layout, transposed);
    Operands<BFloat16Pair> for_scores{keys, head_dim / 2, queries_t, block, head_dim / 2};
    if (first == 0) for_scores = for_scores.asking(ahead(head.result, model), ahead(next.key, stride));
    multiply(for_scores, tokens, scores.vectors, scores.data, block, to_powers);
    dropout.draw(first, rows, tokens);
    soften<float, 2, 2>(scores, dropout, Power<float>::kRoughTerms, inverse_sums,
                        [&](int j, int i, const Vec<float>* two) { round_interleaved(two, probs + j / 2 * block + i); });
    const Operands<BFloat16Pair> for_result{probs, block, values, head_dim, layout.token_pairs};
    multiply<BFloat16Pair, true>(
        for_result.asking(ahead(next.value + first * stride, stride), ahead(next.query + first * stride, stride)), rows,
        head_dim / kPairLanes, head.result + first * model, model, normalise);
  }
}

// The query after the last, which makes a pair of it, counts for nothing: not even where it is NaN, which a zero in the
// other factor would leave so.
inline void clear_last_halves(BFloat16Pair* probs, BFloat16Pair* grads, int pair, const PairLayout& layout) {
  for (int key = 0; key < layout.tokens; ++key) {
    const ptrdiff_t at = static_cast<ptrdiff_t>(key) * layout.kept_stride + pair;
    probs[at].second.bits = grads[at].second.bits = 0;
  }
}

void backward_pairs(const RegionAttention& problem, int64_t task, void* memory) {
  const PairLayout layout(problem);
  const TaskHeads<BFloat16> heads(problem, task, true);
  const Head<BFloat16>&head = heads.head, &next = heads.next;
  const ptrdiff_t model = head.model, packed = 3 * model;
  const ptrdiff_t stride = problem.qkv_token_stride, grad_stride = problem.grad_out_token_stride;
  BFloat16 *const grad_query = head.result, *const grad_key = grad_query + model, *const grad_value = grad_key + model;
  const int tokens = layout.tokens, head_dim = layout.head_dim, block = layout.block, vectors = head_dim / kPairLanes;

  Workspace<float> workspace(memory);
  const BFloat16Pair* const key_rows = pack_pairs(head.key, stride, layout, workspace.take(layout.rows()));
  const BFloat16Pair* const value_rows = pack_pairs(head.value, stride, layout, workspace.take(layout.rows()));
  BFloat16Pair* const keys = as_pairs(workspace.take(layout.interleaved()));
  BFloat16Pair* const queries = as_pairs(workspace.take(layout.interleaved()));
  BFloat16Pair* const grads = as_pairs(workspace.take(layout.interleaved()));
  float* const transposed = workspace.take(layout.transposed());
  float* const grads_transposed = workspace.take(layout.transposed());
  float* const score_memory = workspace.take(layout.scores());
  float* const grad_memory = workspace.take(layout.scores());
  BFloat16Pair* const key_pairs = as_pairs(workspace.take(layout.key_pairs()));
  BFloat16Pair* const kept_probs = as_pairs(workspace.take(layout.kept_pairs()));
  BFloat16Pair* const kept_grads = as_pairs(workspace.take(layout.kept_pairs()));
  float* const key_sums = workspace.take(layout.sums());
  float* const value_sums = workspace.take(layout.sums());
  Dropout<float> dropout(problem, task, block, workspace.take(layout.dropout));
  Epilogue<float> to_powers, scaled, plain;
  to_powers.scale = static_cast<float>(problem.scale * kLog2E);
  scaled.scale = static_cast<float>(problem.scale);
  const auto ahead = [&](const BFloat16* rows, ptrdiff_t apart) { return Ahead(rows, apart, head_dim); };

  pack_interleaved(head.key, stride, tokens, head_dim, keys, head_dim);
  pack_interleaved(head.query, stride, tokens, head_dim, queries, head_dim);
  pack_interleaved(head.grad_out, grad_stride, tokens, head_dim, grads, head_dim);
  for (int kept = 0; kept < tokens; kept += layout.kept) {
    const int end = tokens - kept < layout.kept ? tokens : kept + layout.kept;
    for (int first = kept; first < end; first += block) {
      const int rows = end - first < block ? end - first : block;
      const Scores<float> scores{score_memory, block, tokens, round_up(rows, kPairLanes) / kPairLanes};
      const Scores<float> grad_scores{grad_memory, block, tokens, scores.vectors};
      const int padded = scores.vectors * kPairLanes;
      const BFloat16Pair* const queries_t =
          pack_pairs_transposed(head.query + first * stride, stride, rows, padded, layout, transposed);
      const BFloat16Pair* const grads_t =
          pack_pairs_transposed(head.grad_out + first * grad_stride, grad_stride, rows, padded, layout, grads_transposed);
      Operands<BFloat16Pair> for_scores{key_rows, head_dim / 2, queries_t, block, head_dim / 2};
      Operands<BFloat16Pair> for_grads{value_rows, head_dim / 2, grads_t, block, head_dim / 2};
      if (first == 0) {
        for_scores = for_scores.asking(ahead(grad_query, packed), ahead(next.key, stride));
        for_grads = for_grads.asking(ahead(grad_key, packed), ahead(grad_value, packed));
      }
      multiply(for_scores, tokens, scores.vectors, scores.data, block, to_powers);
      multiply(for_grads, tokens, scores.vectors, grad_scores.data, block, plain);
      dropout.draw(first, rows, tokens);
      soften_backward<float, 2, 2>(
          scores, grad_scores, dropout, [&](int j, int i, const Vec<float>* probs, const Vec<float>* gradients) {
            for (int odd = 0; odd < 2 && j + odd < tokens; ++odd) {
              const ptrdiff_t at = static_cast<ptrdiff_t>(j + odd) * layout.kept_stride + (first - kept + i) / 2;
              round_vector(probs[odd], kept_probs + at);
              round_vector(gradients[odd], kept_grads + at);
            }
            round_interleaved(gradients, key_pairs + j / 2 * block + i);
          });
      if (rows % 2 != 0) clear_last_halves(kept_probs, kept_grads, (first - kept + rows) / 2, layout);
      // dQ = scale · dS K
      const Operands<BFloat16Pair> for_queries{key_pairs, block, keys, head_dim, layout.token_pairs};
      multiply<BFloat16Pair, true>(for_queries.asking(ahead(next.value + first * stride, stride)), rows, vectors,
                                   grad_query + first * packed, packed, scaled);
    }
    // dK = scale · dSᵀ Q and dV = Pᵀ dO, summed over the queries
    const ptrdiff_t at = static_cast<ptrdiff_t>(kept / 2) * head_dim;
    const int pairs = (end - kept + 1) / 2;
    const Operands<BFloat16Pair> for_keys{kept_grads, layout.kept_stride, queries + at, head_dim, pairs};
    const Operands<BFloat16Pair> for_values{kept_probs, layout.kept_stride, grads + at, head_dim, pairs};
    if (layout.keeps_all()) {
      multiply(for_keys.asking(ahead(next.query, stride)), tokens, vectors, grad_key, packed, scaled);
      multiply(for_values.asking(ahead(next.grad_out, grad_stride)), tokens, vectors, grad_value, packed, plain);
    } else {
      scaled.accumulate = plain.accumulate = kept > 0;
      multiply(for_keys, tokens, vectors, key_sums, head_dim, scaled);
      multiply(for_values, tokens, vectors, value_sums, head_dim, plain);
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
