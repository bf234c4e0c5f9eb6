// The absorbed exchange over a chunk of a clip's rows with bf16 operands, by the instruction that multiplies pairs of
// bf16 and sums in fp32.
//
// A sum over channels takes its pairs as they lie in rows of keys and values, and of u and the gradient in their
// transposes, word by word. A sum over (head, representative) pairs or over rows needs two of those interleaved in one
// factor; the other, probabilities or their gradients, is rounded from fp32 scores into the layout that is needed.
// `row_scale` is a factor on sums in fp32, so that a gradient in bf16 is never rounded.
#pragma once

#include "cpu/exchange_rows.h"
#include "cpu/gemm.h"
#include "cpu/pack.h"
#include "cpu/pairs.h"
#include "cpu/workspace.h"

#if defined(__AVX512BF16__)

namespace mae_dfer {
namespace MAE_DFER_ISA {
namespace {

// Whether these tasks take the problem: rows must be whole vectors.
inline bool takes_pairs(const Exchange& problem) {
  return problem.bf16_operands && problem.channels % kPairLanes == 0;
}

// Sizes of one task and of its buffers, in words: pairs, or floats.
struct ExchangePairs {
  int width, half, vectors;  // C, C / 2, and vectors of floats in a row
  int pairs, halves;         // J, and words of two, the last one filled with zeros where J is odd
  int stride;                // C, off the strides that collide in the cache

  explicit ExchangePairs(const Exchange& problem)
      : width(static_cast<int>(problem.channels)), pairs(static_cast<int>(problem.pairs())) {
    half = width / 2;
    vectors = width / kPairLanes;
    halves = (pairs + 1) / 2;
    stride = width * sizeof(float) % 1024 == 0 ? width + kPairLanes : width;
  }

  size_t matrix() const { return static_cast<size_t>(halves) * stride; }
  size_t rows() const { return static_cast<size_t>(kStep) * half; }
  size_t interleaved() const { return static_cast<size_t>(kStep) / 2 * stride; }
  size_t products() const { return static_cast<size_t>(kStep) * stride; }
  size_t scores() const { return static_cast<size_t>(pairs) * kStep; }
  size_t score_pairs() const { return static_cast<size_t>(halves) * kStep; }
  size_t forward_words() const {
    return matrix() + 2 * rows() + products() + scores() + score_pairs() + 2 * width + 8 * kSpacing<float>;
  }
  size_t backward_words() const {
    return matrix() + 3 * rows() + 2 * interleaved() + products() + 3 * scores() + score_pairs() + 2 * width + kStep +
           14 * kSpacing<float>;
  }
};

inline BFloat16* as_rows(float* words) { return reinterpret_cast<BFloat16*>(words); }

// Rows of the stream become u = (x - mean) / deviation in bf16; 1 / deviation goes to `inverse` where it is asked for.
inline void normalise_to_bf16(const Exchange& problem, int64_t first, int rows, const ExchangePairs& sizes,
                              BFloat16* unit, float* inverse, float* x_buffer, float* update_buffer) {
  for (int i = 0; i < rows; ++i, unit += sizes.width) {
    const float* const x = read_stream<float>(problem, first + i, x_buffer, update_buffer);
    const RowStatistics<float> statistics(x, sizes.width, static_cast<float>(problem.eps));
    const Vec<float> mean = broadcast<float>(statistics.mean);
    const Vec<float> factor = broadcast<float>(statistics.inverse_deviation);
    for (int c = 0; c < sizes.width; c += kPairLanes) round_vector((load<float>(x + c) - mean) * factor, unit + c);
    if (inverse) inverse[i] = statistics.inverse_deviation;
  }
}

// Rows of the gradient in bf16; their sum, times row_scale, is added to `sums`.
inline void round_gradients(const Exchange& problem, int64_t first, int rows, const ExchangePairs& sizes,
                            float row_scale, BFloat16* grads, float* sums, float* buffer) {
  const Vec<float> scale = broadcast<float>(row_scale);
  for (int i = 0; i < rows; ++i, grads += sizes.width) {
    const float* const grad = read<float>(problem.grad_out, problem, first + i, buffer);
    for (int c = 0; c < sizes.width; c += kPairLanes) {
      const Vec<float> value = load<float>(grad + c);
      round_vector(value, grads + c);
      store<float>(sums + c, load<float>(sums + c) + value * scale);
    }
  }
}

// products (J, rows) = scale · matrix · rowsᵀ, zero for rows up to a whole vector; `rows_t` is room for the transpose.
inline void multiply_transposed(const BFloat16* matrix, const BFloat16* block, int rows, const ExchangePairs& sizes,
                                float scale, float* rows_t, float* products) {
  const int padded_rows = round_up(rows, kPairLanes);
  pack_transposed<float>(reinterpret_cast<const float*>(block), sizes.half, rows, sizes.half, rows_t, kStep,
                         padded_rows);
  Epilogue<float> scaled;
  scaled.scale = scale;
  multiply<BFloat16Pair>({as_pairs(matrix), sizes.half, as_pairs(rows_t), kStep, sizes.half}, sizes.pairs,
                         padded_rows / kPairLanes, products, kStep, scaled);
}

// to[j / 2][row] = (scores[j][row], scores[j + 1][row]), rounded.
inline void pair_lines(const float* scores, int rows, const ExchangePairs& sizes, BFloat16Pair* to) {
  for (int j = 0; j < sizes.pairs; j += 2, scores += 2 * kStep, to += kStep) {
    for (int i = 0; i < rows; i += kPairLanes) {
      const Vec<float> second = j + 1 < sizes.pairs ? load<float>(scores + kStep + i) : broadcast<float>(0.0f);
      const Vec<float> two[2] = {load<float>(scores + i), second};
      round_interleaved(two, to + i);
    }
  }
}

// to[j][row / 2] = (scores[j][row], scores[j][row + 1]), rounded.
inline void pair_rows(const float* scores, int rows, const ExchangePairs& sizes, BFloat16Pair* to) {
  for (int j = 0; j < sizes.pairs; ++j, scores += kStep, to += kStep / 2) {
    for (int i = 0; i < rows; i += kPairLanes) round_vector(load<float>(scores + i), to + i / 2);
  }
}

void forward_pairs(const Exchange& problem, int64_t task, void* memory) {
  const ExchangePairs sizes(problem);
  const Chunk<float> chunk(problem, task);
  const BFloat16* const keys = chunk.matrix<BFloat16>(problem, problem.keys);

  Workspace<float> buffers(memory);
  BFloat16Pair* const values = as_pairs(buffers.take(sizes.matrix()));
  BFloat16* const unit = as_rows(buffers.take(sizes.rows()));
  float* const rows_t = buffers.take(sizes.rows());
  float* const branch = buffers.take(sizes.products());
  float* const scores = buffers.take(sizes.scores());
  BFloat16Pair* const probs = as_pairs(buffers.take(sizes.score_pairs()));
  float* const x_buffer = buffers.take(sizes.width);
  float* const update_buffer = buffers.take(sizes.width);

  pack_interleaved(chunk.matrix<BFloat16>(problem, problem.values), sizes.width, sizes.pairs, sizes.width, values,
                   sizes.stride);
  for (int64_t first = chunk.first; first < chunk.end; first += kStep) {
    const int rows = chunk.step(first);
    normalise_to_bf16(problem, first, rows, sizes, unit, nullptr, x_buffer, update_buffer);
    multiply_transposed(keys, unit, rows, sizes, 1.0f, rows_t, scores);
    soften<float>(scores, chunk.key_bias, problem, rows);
    pair_lines(scores, rows, sizes, probs);
    multiply<BFloat16Pair, true>({probs, kStep, values, sizes.stride, sizes.halves}, rows, sizes.vectors, branch,
                                 sizes.stride, Epilogue<float>());
    write_rows<float>(problem, first, rows, branch, sizes.stride, chunk.row_scale, x_buffer, update_buffer);
  }
}

// With g = grad_out: dP = row_scale · g valuesᵀ, dS from it, d(values) = row_scale · Pᵀ g, d(keys) = dSᵀ u,
// du = dS keys.
void backward_pairs(const Exchange& problem, int64_t task, void* memory) {
  const ExchangePairs sizes(problem);
  const Chunk<float> chunk(problem, task);
  const BFloat16* const key_rows = chunk.matrix<BFloat16>(problem, problem.keys);
  const BFloat16* const value_rows = chunk.matrix<BFloat16>(problem, problem.values);

  Workspace<float> buffers(memory);
  BFloat16Pair* const keys = as_pairs(buffers.take(sizes.matrix()));
  BFloat16* const unit = as_rows(buffers.take(sizes.rows()));
  BFloat16* const grads = as_rows(buffers.take(sizes.rows()));
  float* const rows_t = buffers.take(sizes.rows());
  BFloat16Pair* const unit_pairs = as_pairs(buffers.take(sizes.interleaved()));
  BFloat16Pair* const grad_pairs = as_pairs(buffers.take(sizes.interleaved()));
  float* const unit_grads = buffers.take(sizes.products());
  float* const probs = buffers.take(sizes.scores());
  float* const score_grads = buffers.take(sizes.scores());
  BFloat16Pair* const by_rows = as_pairs(buffers.take(sizes.scores()));
  BFloat16Pair* const by_lines = as_pairs(buffers.take(sizes.score_pairs()));
  float* const row_buffer = buffers.take(sizes.width);
  float* const update_buffer = buffers.take(sizes.width);
  float* const inverse = buffers.take(kStep);
  const ChunkSums<float> sums(problem, task);

  pack_interleaved(key_rows, sizes.width, sizes.pairs, sizes.width, keys, sizes.stride);
  Epilogue<float> add, add_scaled;
  add_scaled.scale = chunk.row_scale;
  for (int64_t first = chunk.first; first < chunk.end; first += kStep) {
    const int rows = chunk.step(first), row_pairs = (rows + 1) / 2;
    normalise_to_bf16(problem, first, rows, sizes, unit, inverse, row_buffer, update_buffer);
    multiply_transposed(key_rows, unit, rows, sizes, 1.0f, rows_t, probs);
    soften<float>(probs, chunk.key_bias, problem, rows);
    round_gradients(problem, first, rows, sizes, chunk.row_scale, grads, sums.out_bias, row_buffer);
    multiply_transposed(value_rows, grads, rows, sizes, chunk.row_scale, rows_t, score_grads);
    soften_backward<float>(probs, score_grads, problem, rows, sums.key_bias);
    add.accumulate = add_scaled.accumulate = first > chunk.first;
    pack_interleaved(unit, sizes.width, rows, sizes.width, unit_pairs, sizes.stride);
    pair_rows(score_grads, rows, sizes, by_rows);
    multiply<BFloat16Pair>({by_rows, kStep / 2, unit_pairs, sizes.stride, row_pairs}, sizes.pairs, sizes.vectors,
                           sums.keys, sums.width, add);
    pack_interleaved(grads, sizes.width, rows, sizes.width, grad_pairs, sizes.stride);
    pair_rows(probs, rows, sizes, by_rows);
    multiply<BFloat16Pair>({by_rows, kStep / 2, grad_pairs, sizes.stride, row_pairs}, sizes.pairs, sizes.vectors,
                           sums.values, sums.width, add_scaled);
    pair_lines(score_grads, rows, sizes, by_lines);
    multiply<BFloat16Pair, true>({by_lines, kStep, keys, sizes.stride, sizes.halves}, rows, sizes.vectors, unit_grads,
                                 sizes.stride, Epilogue<float>());
    write_gradients<float>(problem, first, rows, unit, sizes.width, inverse, unit_grads, sizes.stride, row_buffer,
                           update_buffer);
  }
}

}  // namespace
}  // namespace MAE_DFER_ISA
}  // namespace mae_dfer

#endif
