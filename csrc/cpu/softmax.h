// Scores to probabilities and back, with dropout.
//
// Scores stand with keys down and queries across: a lane is a query, so that maxima and sums are taken lane by lane and
// nothing is reduced across them.
#pragma once

#include "cpu/philox.h"
#include "cpu/vec.h"
#include "problem.h"

namespace mae_dfer {
namespace MAE_DFER_ISA {
namespace {

// Vectors of queries that are worked on side by side, to fill the pipelines.
#if defined(__AVX512F__)
constexpr int kPanel = 4;
#else
constexpr int kPanel = 2;
#endif
// So many terms are summed on their own before their sum is added to the others': a long sum keeps its precision.
constexpr int kSumKeys = 32;

// The factors of the probabilities of a block of queries: 0 where dropped, 1 / (1 - p) where kept.
template <class T>
class Dropout {
 public:
  static int stride(int block) { return (block + kCounters - 1) / kCounters * kCounters; }
  static size_t elements(const RegionAttention& problem, int block) {
    return problem.dropout_p > 0.0 ? static_cast<size_t>((problem.tokens + 3) / 4 * 4) * stride(block) : 0;
  }

  Dropout(const RegionAttention& problem, int64_t task, int block, T* buffer)
      : on_(problem.dropout_p > 0.0),
        seed_(problem.seed),
        threshold_(problem.dropout_threshold()),
        matrix_(static_cast<uint32_t>(task)),
        kept_(static_cast<T>(1.0 / (1.0 - problem.dropout_p))),
        stride_(stride(block)),
        factors_(buffer) {}

  void draw(int first_query, int queries, int keys) {
    if (!on_) return;
    for (int query = 0; query < queries; query += kCounters) {
      dropout_columns<T>(seed_, threshold_, kept_, matrix_, static_cast<uint32_t>(first_query + query), keys,
                         factors_ + query, stride_);
    }
  }

  // What a vector of probabilities is multiplied with.
  Vec<T> times(Vec<T> value, int key, int query) const {
    return on_ ? value * load<T>(factors_ + static_cast<ptrdiff_t>(key) * stride_ + query) : value;
  }

 private:
  bool on_;
  uint64_t seed_;
  uint32_t threshold_;
  uint32_t matrix_;
  T kept_;
  int stride_;
  T* factors_;
};

// A block of scores: `keys` rows, `stride` apart, of `vectors` vectors of queries.
template <class T>
struct Scores {
  T* data;
  int stride;
  int keys;
  int vectors;

  T* at(int key, int query) const { return data + static_cast<ptrdiff_t>(key) * stride + query; }
};

// Scores, in powers of two, of kColumns vectors of queries from `query` on become 2^(score - maximum). These come
// kKeys keys at a time to `put(key, n, values)`, zero for a key after the last. `inverse_sums`: 1 / Σ of every query.
template <class T, int kColumns, int kKeys, int kCount, class Put>
inline void exponentiate_panel(const Scores<T>& scores, int query, const T (&terms)[kCount], Vec<T>* inverse_sums,
                               const Put& put) {
  static_assert(kSumKeys % kKeys == 0, "keys that are put together are summed together");
  Vec<T> highest[kColumns], sums[kColumns];
#pragma GCC unroll 4
  for (int n = 0; n < kColumns; ++n) {
    highest[n] = load<T>(scores.at(0, query + n * kLanes<T>));
    sums[n] = broadcast<T>(T(0));
  }
  for (int key = 1; key < scores.keys; ++key) {
#pragma GCC unroll 4
    for (int n = 0; n < kColumns; ++n) {
      highest[n] = maximum<T>(load<T>(scores.at(key, query + n * kLanes<T>)), highest[n]);
    }
  }
  for (int first = 0; first < scores.keys; first += kSumKeys) {
    const int end = scores.keys - first < kSumKeys ? scores.keys : first + kSumKeys;
    Vec<T> partial[kColumns];
#pragma GCC unroll 4
    for (int n = 0; n < kColumns; ++n) partial[n] = broadcast<T>(T(0));
    for (int key = first; key < end; key += kKeys) {
#pragma GCC unroll 4
      for (int n = 0; n < kColumns; ++n) {
        Vec<T> values[kKeys];
        for (int i = 0; i < kKeys; ++i) {
          values[i] = i > 0 && key + i >= end
                          ? broadcast<T>(T(0))
                          : power_of_two<T>(load<T>(scores.at(key + i, query + n * kLanes<T>)) - highest[n], terms);
          partial[n] += values[i];
        }
        put(key, n, values);
      }
    }
#pragma GCC unroll 4
    for (int n = 0; n < kColumns; ++n) sums[n] += partial[n];
  }
#pragma GCC unroll 4
  for (int n = 0; n < kColumns; ++n) inverse_sums[n] = broadcast<T>(T(1)) / sums[n];
}

// `panel(query, columns)` for all vectors of a block, where `columns` is an integral constant of at most kMost.
template <int kCount>
struct Columns {
  static constexpr int value = kCount;
};

template <class T, int kMost, class Panel>
inline void for_panels(int vectors, const Panel& panel) {
  int vector = 0;
  for (; vector + kMost <= vectors; vector += kMost) panel(vector * kLanes<T>, Columns<kMost>());
  if constexpr (kMost > 2) {
    for (; vector + 2 <= vectors; vector += 2) panel(vector * kLanes<T>, Columns<2>());
  }
  for (; vector < vectors; ++vector) panel(vector * kLanes<T>, Columns<1>());
}

// Unnormalised probabilities, dropped, go to `put(key, query, values)`, kKeys keys at a time; `inverse_sums` has
// one factor a query.
template <class T, int kKeys, int kMost, int kCount, class Put>
void soften(const Scores<T>& scores, const Dropout<T>& dropout, const T (&terms)[kCount], T* inverse_sums,
            const Put& put) {
  for_panels<T, kMost>(scores.vectors, [&](int query, auto columns) {
    constexpr int kColumns = decltype(columns)::value;
    Vec<T> inverse[kColumns];
    exponentiate_panel<T, kColumns, kKeys>(scores, query, terms, inverse, [&](int key, int n, Vec<T>* values) {
      for (int i = 0; i < kKeys; ++i) values[i] = dropout.times(values[i], key + i, query + n * kLanes<T>);
      put(key, query + n * kLanes<T>, values);
    });
    for (int n = 0; n < kColumns; ++n) store<T>(inverse_sums + query + n * kLanes<T>, inverse[n]);
  });
}

// From scores and from dP, as `grads`, to dropped probabilities and dS = P ∘ (dP - Σ P∘dP), which go to
// `put(key, query, probabilities, gradients)`, kKeys keys at a time, zeros for a key after the last.
template <class T, int kKeys, int kMost, class Put>
void soften_backward(const Scores<T>& scores, const Scores<T>& grads, const Dropout<T>& dropout, const Put& put) {
  for_panels<T, kMost>(scores.vectors, [&](int query, auto columns) {
    constexpr int kColumns = decltype(columns)::value;
    Vec<T> inverse[kColumns], delta[kColumns];
    const auto grad_at = [&](int key, int n) {
      const int column = query + n * kLanes<T>;
      return dropout.times(load<T>(grads.at(key, column)), key, column);
    };
    for (int n = 0; n < kColumns; ++n) delta[n] = broadcast<T>(T(0));
    exponentiate_panel<T, kColumns, 1>(scores, query, Power<T>::kTerms, inverse, [&](int key, int n, Vec<T>* values) {
      store<T>(scores.at(key, query + n * kLanes<T>), values[0]);
      delta[n] += values[0] * grad_at(key, n);
    });
#pragma GCC unroll 4
    for (int n = 0; n < kColumns; ++n) delta[n] *= inverse[n];
    for (int key = 0; key < scores.keys; key += kKeys) {
#pragma GCC unroll 4
      for (int n = 0; n < kColumns; ++n) {
        Vec<T> probs[kKeys], gradients[kKeys];
        for (int i = 0; i < kKeys; ++i) {
          if (i > 0 && key + i >= scores.keys) {
            probs[i] = gradients[i] = broadcast<T>(T(0));
            continue;
          }
          const int column = query + n * kLanes<T>;
          const Vec<T> p = load<T>(scores.at(key + i, column)) * inverse[n];
          gradients[i] = p * (grad_at(key + i, n) - delta[n]);
          probs[i] = dropout.times(p, key + i, column);
        }
        put(key, query + n * kLanes<T>, probs, gradients);
      }
    }
  });
}

}  // namespace
}  // namespace MAE_DFER_ISA
}  // namespace mae_dfer
