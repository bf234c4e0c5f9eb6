// The softmax of a pass of scores, and its gradient, in a warp's registers.
#pragma once

#include "cuda/exchange_tile.cuh"

namespace mae_dfer {
namespace cuda {

constexpr float kLog2E = 1.4426950408889634f;

// One number a block of eight columns, in each of the four threads of a row; afterwards all that belong to one head,
// of `context` columns in this pass, hold what `combine` makes of them. Blocks are indexed by constants alone, so that
// they stay in registers whatever the context.
template <class Combine>
MAE_DFER_DEVICE void over_heads(float (&values)[kPassBlocks], unsigned context, Combine combine) {
  MAE_DFER_UNROLL
  for (int mask = 1; mask < 4; mask *= 2) {
    if (context >= 4u * mask) {
      MAE_DFER_UNROLL
      for (unsigned n = 0; n < kPassBlocks; ++n) values[n] = combine(values[n], shuffle_xor(values[n], mask));
    }
  }
  MAE_DFER_UNROLL
  for (unsigned distance = 1; distance < kPassBlocks; distance *= 2) {
    if (context >= 16 * distance) {
      MAE_DFER_UNROLL
      for (unsigned n = 0; n < kPassBlocks; ++n) {
        if (n % (2 * distance) < distance) {
          values[n] = values[n + distance] = combine(values[n], values[n + distance]);
        }
      }
    }
  }
}

struct Larger {
  MAE_DFER_DEVICE float operator()(float a, float b) const { return fmaxf(a, b); }
};
struct Sum {
  MAE_DFER_DEVICE float operator()(float a, float b) const { return a + b; }
};

// Where a head has more columns than a pass: what its passes know of one another, for rows g and g + 8.
struct LongHead {
  float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f}, delta[2] = {0.0f, 0.0f};

  MAE_DFER_DEVICE void add_scores(const Accumulator (&scores)[kPassBlocks]) {
    MAE_DFER_UNROLL
    for (int half = 0; half < 2; ++half) {
      float high = top[half], added = 0.0f;
      MAE_DFER_UNROLL
      for (unsigned n = 0; n < kPassBlocks; ++n) {
        high = fmaxf(high, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
      }
      high = row_max(high);
      MAE_DFER_UNROLL
      for (unsigned n = 0; n < kPassBlocks; ++n) {
        MAE_DFER_UNROLL
        for (int i = 0; i < 2; ++i) added += exp2_approx((scores[n][2 * half + i] - high) * kLog2E);
      }
      sum[half] = sum[half] * exp2_approx((top[half] - high) * kLog2E) + row_sum(added);
      top[half] = high;
    }
  }
  MAE_DFER_DEVICE void add_grads(const Accumulator (&probs)[kPassBlocks], const Accumulator (&grads)[kPassBlocks]) {
    MAE_DFER_UNROLL
    for (int half = 0; half < 2; ++half) {
      float added = 0.0f;
      MAE_DFER_UNROLL
      for (unsigned n = 0; n < kPassBlocks; ++n) {
        MAE_DFER_UNROLL
        for (int i = 2 * half; i < 2 * half + 2; ++i) added += probs[n][i] * grads[n][i];
      }
      delta[half] += row_sum(added);
    }
  }
};

// The columns of which a thread holds two, of one pass.
MAE_DFER_DEVICE unsigned first_column(unsigned block) { return 8 * block + lane_index() % 4 * 2; }

// Scores become probabilities; `head` is asked only where `context` is more than a pass.
MAE_DFER_DEVICE void soften(Accumulator (&scores)[kPassBlocks], unsigned context, const LongHead& head) {
  MAE_DFER_UNROLL
  for (int half = 0; half < 2; ++half) {
    float top[kPassBlocks], sum[kPassBlocks];
    MAE_DFER_UNROLL
    for (unsigned n = 0; n < kPassBlocks; ++n) top[n] = fmaxf(scores[n][2 * half], scores[n][2 * half + 1]);
    if (context > kPass) {
      MAE_DFER_UNROLL
      for (unsigned n = 0; n < kPassBlocks; ++n) top[n] = head.top[half];
    } else {
      over_heads(top, context, Larger());
    }
    MAE_DFER_UNROLL
    for (unsigned n = 0; n < kPassBlocks; ++n) {
      MAE_DFER_UNROLL
      for (int i = 2 * half; i < 2 * half + 2; ++i) scores[n][i] = exp2_approx((scores[n][i] - top[n]) * kLog2E);
      sum[n] = scores[n][2 * half] + scores[n][2 * half + 1];
    }
    if (context > kPass) {
      MAE_DFER_UNROLL
      for (unsigned n = 0; n < kPassBlocks; ++n) sum[n] = head.sum[half];
    } else {
      over_heads(sum, context, Sum());
    }
    MAE_DFER_UNROLL
    for (unsigned n = 0; n < kPassBlocks; ++n) {
      const float inverse = 1.0f / sum[n];
      MAE_DFER_UNROLL
      for (int i = 2 * half; i < 2 * half + 2; ++i) scores[n][i] *= inverse;
    }
  }
}

// dP becomes dS = P ∘ (dP - Σ P∘dP).
MAE_DFER_DEVICE void soften_backward(const Accumulator (&probs)[kPassBlocks], Accumulator (&grads)[kPassBlocks],
                                     unsigned context, const LongHead& head) {
  MAE_DFER_UNROLL
  for (int half = 0; half < 2; ++half) {
    float delta[kPassBlocks];
    MAE_DFER_UNROLL
    for (unsigned n = 0; n < kPassBlocks; ++n) {
      delta[n] = probs[n][2 * half] * grads[n][2 * half] + probs[n][2 * half + 1] * grads[n][2 * half + 1];
    }
    if (context > kPass) {
      MAE_DFER_UNROLL
      for (unsigned n = 0; n < kPassBlocks; ++n) delta[n] = head.delta[half];
    } else {
      over_heads(delta, context, Sum());
    }
    MAE_DFER_UNROLL
    for (unsigned n = 0; n < kPassBlocks; ++n) {
      MAE_DFER_UNROLL
      for (int i = 2 * half; i < 2 * half + 2; ++i) grads[n][i] = probs[n][i] * (grads[n][i] - delta[n]);
    }
  }
}

// The passes over a clip's pairs, in order. Where a head has more columns than a pass, each of its passes is gone
// through `rounds` times: softmax needs sums over all of them first.
struct Turn {
  unsigned passes, parts, rounds;
  unsigned first = 0, part = 0, round;

  MAE_DFER_DEVICE Turn(const ExchangeOptions& options, unsigned rounds_of_long_heads)
      : passes(options.columns / kPass), parts(options.context > kPass ? options.context / kPass : 1),
        rounds(rounds_of_long_heads), round(parts > 1 ? 0 : rounds_of_long_heads - 1) {}

  MAE_DFER_DEVICE bool done() const { return first >= passes; }
  MAE_DFER_DEVICE unsigned pass() const { return first + part; }
  MAE_DFER_DEVICE bool last_round() const { return round + 1 == rounds; }
  MAE_DFER_DEVICE bool new_head() const { return round == 0 && part == 0; }
  MAE_DFER_DEVICE void advance() {
    if (++part < parts) return;
    part = 0;
    if (++round < rounds) return;
    round = parts > 1 ? 0 : rounds - 1;
    first += parts;
  }
};

}  // namespace cuda
}  // namespace mae_dfer
