// Rows of scores to probabilities and back, with dropout.
#pragma once

#include "cpu/philox.h"
#include "cpu/vec.h"
#include "problem.h"

namespace mae_dfer {
namespace MAE_DFER_ISA {
namespace {

template <class T>
struct Dropout {
  explicit Dropout(const RegionAttention& problem, int64_t task, T* buffer)
      : on(problem.dropout_p > 0.0),
        seed(problem.seed),
        threshold(problem.dropout_threshold()),
        matrix(static_cast<uint32_t>(task)),
        kept(static_cast<T>(1.0 / (1.0 - problem.dropout_p))),
        factors(buffer) {}

  // The factors of a row, or null where nothing is dropped.
  const T* row(int index, int tokens) const {
    if (!on) return nullptr;
    dropout_row<T>(seed, threshold, kept, matrix, static_cast<uint32_t>(index), tokens, factors);
    return factors;
  }

  bool on;
  uint64_t seed;
  uint32_t threshold;
  uint32_t matrix;
  T kept;
  T* factors;
};

// One row of scores, in powers of two, becomes 2^(score - maximum), zero in the padding; `put(column, values)` takes it.
// Returns 1 / Σ.
template <class T, int kCount, class Put>
inline T exponentiate(const T* row, int tokens, int padded, const T (&terms)[kCount], const Put& put) {
  const int last = padded - kLanes<T>;
  const IntVec<T> columns = lane_numbers<T>() + splat<IntVec<T>>(static_cast<typename VecTypes<T>::Lane>(last));
  const IntVec<T> inside = columns < splat<IntVec<T>>(static_cast<typename VecTypes<T>::Lane>(tokens));
  // The padding takes the first score, which can raise no maximum.
  Vec<T> top = inside ? load<T>(row + last) : broadcast<T>(row[0]);
  for (int j = 0; j < last; j += kLanes<T>) top = maximum<T>(load<T>(row + j), top);
  const Vec<T> highest = broadcast<T>(reduce_max<T>(top));
  Vec<T> sum = broadcast<T>(T(0));
  for (int j = 0; j < last; j += kLanes<T>) {
    const Vec<T> value = power_of_two<T>(load<T>(row + j) - highest, terms);
    put(j, value);
    sum += value;
  }
  const Vec<T> value = power_of_two<T>(load<T>(row + last) - highest, terms);
  const Vec<T> tail = inside ? value : broadcast<T>(T(0));
  put(last, tail);
  return T(1) / reduce_add<T>(sum + tail);
}

template <class T>
T exponentiate_row(T* row, int tokens, int padded) {
  return exponentiate<T>(row, tokens, padded, Power<T>::kTerms, [&](int j, Vec<T> value) { store<T>(row + j, value); });
}

template <class T>
void multiply_row(T* row, const T* factors, int padded) {
  for (int j = 0; j < padded; j += kLanes<T>) store<T>(row + j, load<T>(row + j) * load<T>(factors + j));
}

// Rows of probabilities (unnormalised) and of dP become rows of dropped probabilities and of dS:
// dS = P ∘ (dP - Σ P∘dP).
template <class T>
void softmax_backward_row(T* probs, T* grads, T inverse_sum, const T* factors, int padded) {
  const Vec<T> scale = broadcast<T>(inverse_sum);
  Vec<T> sum = broadcast<T>(T(0));
  for (int j = 0; j < padded; j += kLanes<T>) {
    const Vec<T> p = load<T>(probs + j) * scale;
    Vec<T> grad = load<T>(grads + j);
    if (factors) {
      grad *= load<T>(factors + j);
      store<T>(grads + j, grad);
    }
    store<T>(probs + j, p);
    sum += p * grad;
  }
  const Vec<T> delta = broadcast<T>(reduce_add<T>(sum));
  for (int j = 0; j < padded; j += kLanes<T>) {
    const Vec<T> p = load<T>(probs + j);
    store<T>(grads + j, p * (load<T>(grads + j) - delta));
    if (factors) store<T>(probs + j, p * load<T>(factors + j));
  }
}

}  // namespace
}  // namespace MAE_DFER_ISA
}  // namespace mae_dfer
