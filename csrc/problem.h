// What each kernel is given: addresses, sizes and strides, nothing of any framework.
#pragma once

#include <cstdint>

namespace mae_dfer {

enum class DType : int { float64 = 0, float32 = 1, bfloat16 = 2, float16 = 3 };

// Multi-head self-attention inside R regions of S tokens, H heads, D channels a head.
// Strides count elements; inside a token's row elements are adjacent.
struct RegionAttention {
  const void* qkv = nullptr;       // (R, S, 3*H*D), [q | k | v]
  int64_t qkv_region_stride = 0;
  int64_t qkv_token_stride = 0;
  const void* grad_out = nullptr;  // (R, S, H*D); backward only
  int64_t grad_out_region_stride = 0;
  int64_t grad_out_token_stride = 0;
  void* result = nullptr;          // contiguous: (R, S, H*D) forward, (R, S, 3*H*D) backward
  DType dtype = DType::float32;
  int64_t regions = 0;
  int64_t tokens = 0;
  int64_t heads = 0;
  int64_t head_dim = 0;
  double scale = 1.0;
  double dropout_p = 0.0;
  uint64_t seed = 0;
  int threads = 1;

  bool empty() const { return regions == 0 || tokens == 0; }

  // Defined in problem.cpp: code compiled for one instruction set must bring in no inline function of the standard
  // library, which the linker could then pick for all.
  void check(bool backward) const;  // throws std::invalid_argument
  // Dropout keeps an element whose random 32-bit word is at least this: p · 2^32, rounded half to even.
  uint32_t dropout_threshold() const;
};

// Rows of G groups of M rows, where only a row's own elements need be adjacent. Strides count elements.
struct StridedRows {
  const void* data = nullptr;
  int64_t group_stride = 0;
  int64_t row_stride = 0;
  DType dtype = DType::float32;
};

// Rows are shared out in chunks whose number and borders do not depend on the threads.
inline int64_t rows_a_chunk(int64_t rows) {
  const int64_t share = (rows + 255) / 256;
  return share < 16 ? 16 : share;
}

// sum = x + row_scale · update, and normed = LayerNorm(sum) · weight + bias, for G groups of M rows of C channels.
// Without an update the sum is x, and not written. What is not `StridedRows` is contiguous.
struct ResidualLayerNorm {
  int64_t groups = 0;
  int64_t rows = 0;
  int64_t channels = 0;
  double eps = 0.0;
  StridedRows x;                           // in the backward the sum; its dtype is that of `sum` and of its gradient
  StridedRows update;                      // forward only, but for its dtype; no data: nothing is added
  const void* row_scale = nullptr;  // (G,) in the type computed in, or null for 1
  const void* weight = nullptr;     // (C,) in the type computed in: float64 where x is, else float32
  const void* bias = nullptr;       // forward only
  void* sum = nullptr;              // (G, M, C), forward only, as the next; null without an update
  void* normed = nullptr;           // (G, M, C) of normed_dtype
  DType normed_dtype = DType::float32;
  StridedRows grad_sum;                    // backward from here on; no data: zero
  StridedRows grad_normed;
  void* grad_x = nullptr;
  void* grad_update = nullptr;      // null where it equals grad_x
  void* partial_sums = nullptr;     // (chunks(), 2, C) in the type computed in: of the weight's gradient, the bias's
  int threads = 1;

  bool empty() const { return groups == 0 || rows == 0; }
  int64_t chunk_rows() const { return rows_a_chunk(groups * rows); }
  int64_t chunks() const { return (groups * rows + chunk_rows() - 1) / chunk_rows(); }
  void check(bool backward) const;
};

// grad_x = grad · gelu'(x), gelu_x = gelu(x) and the sums of grad_x over rows, for M rows of C channels. What is not
// `StridedRows`, of one group, is contiguous; all but the sums is of one dtype.
struct GeluGradient {
  int64_t rows = 0;
  int64_t channels = 0;
  StridedRows grad;
  StridedRows x;
  void* grad_x = nullptr;        // (M, C)
  void* gelu_x = nullptr;        // (M, C)
  void* partial_sums = nullptr;  // (chunks(), C) in the type computed in: float64 where x is, else float32
  int threads = 1;

  int64_t chunk_rows() const { return rows_a_chunk(rows); }
  int64_t chunks() const { return (rows + chunk_rows() - 1) / chunk_rows(); }
  void check() const;
};

// Gradients of a linear layer of I inputs and O outputs, summed over M rows: gradᵀ · input, and grad's own sums. The
// operands, of one group, are both float32 or both bfloat16.
struct WeightGradient {
  int64_t rows = 0;
  int64_t outputs = 0;
  int64_t inputs = 0;
  StridedRows grad;               // (M, O)
  StridedRows input;              // (M, I)
  float* grad_weight = nullptr;   // (O, I), contiguous
  float* partial_sums = nullptr;  // (blocks(), O) of grad, if they are wanted
  int threads = 1;

  // Rows are summed in blocks of one size, an even number. A term is one row, in bfloat16 two.
  static constexpr int64_t kBlockTerms = 256;  // at most
  int64_t blocks() const;
  int64_t block_rows() const;

  // The result is shared out among the threads, so that copies of operands cost least.
  int64_t output_parts() const;
  int64_t input_parts() const { return threads / output_parts(); }
  int64_t parts() const { return output_parts() * input_parts(); }
  void check() const;
};

// Every row of a clip attends to the clip's J = H·K (head, representative) pairs, whose keys and values hold the
// query and output projections already: out = x + row_scale · (softmax_h(u keysᵀ + key_bias) values + out_bias) with
// u = (x - mean) / deviation. G groups of M rows, G / clips groups a clip. What is not `StridedRows` is contiguous and
// in the type computed in (float64 where x is, else float32), but for `out` and `grad_x`, which are as x, and for keys
// and values in bfloat16: with them, other operands of products may be rounded to it as well.
struct Exchange {
  int64_t clips = 0;
  int64_t groups = 0;
  int64_t rows = 0;
  int64_t channels = 0;
  int64_t heads = 0;
  int64_t context = 0;  // K
  double eps = 0.0;
  StridedRows x;
  bool has_update = false;
  StridedRows update;                  // added to x
  const void* update_scale = nullptr;  // (G,), factors on it, or null for 1
  const void* keys = nullptr;       // (clips, J, C)
  const void* key_bias = nullptr;   // (clips, J)
  const void* values = nullptr;     // (clips, J, C)
  bool bf16_operands = false;       // keys and values are in bfloat16
  const void* out_bias = nullptr;   // (C,)
  const void* row_scale = nullptr;  // (clips,), or null for 1
  void* out = nullptr;              // (G, front + M, C)
  int64_t front = 0;                // rows of `out` before each group's, left as they are
  StridedRows grad_out;             // backward from here on
  void* grad_x = nullptr;
  void* grad_update = nullptr;    // of the dtype of update, where there is one
  void* sums = nullptr;           // (clips, chunks(), 2 J + 1, sums_width()): of gradients of keys, values, out_bias
  void* key_bias_sums = nullptr;  // (clips, chunks(), J)
  int threads = 1;

  static constexpr int64_t kStepRows = 48;  // rows worked on at once: whole vectors and register blocks of any width
  int64_t pairs() const { return heads * context; }
  int64_t clip_rows() const { return groups / clips * rows; }
  // Where the result of row `index` of all G·M is.
  int64_t place(int64_t index) const { return index + (index / rows + 1) * front; }
  bool empty() const { return clips == 0 || groups == 0 || rows == 0; }
  // A clip's rows are shared out in whole steps, about 16 chunks in all: each leaves as many sums as some 130 rows have
  // elements. None of it depends on the threads.
  int64_t chunk_rows() const;
  int64_t chunks() const { return empty() ? 0 : (clip_rows() + chunk_rows() - 1) / chunk_rows(); }
  // Rows of sums end on a whole vector of any instruction set.
  int64_t sums_width() const { return (channels + 15) / 16 * 16; }
  void check(bool backward) const;
};

}  // namespace mae_dfer
