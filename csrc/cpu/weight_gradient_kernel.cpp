// One part of the gradient of a linear layer's weight, G = gradᵀ · input. Compiled once for every instruction set.
//
// A block of the input, no deeper than leaves it in the second-level cache, is copied into panels of columns, and the
// gradient's columns, which are rows of G, in groups into the first-level one. Their products are summed in registers,
// a tile of G at a time, and added to what the blocks before have left there. A term is what one multiplication takes:
// a float, or two bf16 of neighbouring rows. The order of sums depends on the number of rows alone.

#include "cpu/gemm.h"
#include "cpu/kernels.h"
#include "cpu/pack.h"
#include "cpu/pairs.h"
#include "cpu/workspace.h"

namespace mae_dfer {
namespace MAE_DFER_ISA {
namespace {

// A tile is as large as registers hold.
constexpr int kTileVectors = 2;
constexpr int kTileRows = kBlockRows[kTileVectors];
constexpr int kTileColumns = kTileVectors * kLanes<float>;

// A group of a block takes a third of the first-level cache.
constexpr int kBlockTerms = static_cast<int>(WeightGradient::kBlockTerms);
constexpr int kBlockColumns = 512;
constexpr int kGroupsAtOnce = 8;  // copied: whole lines of memory are read

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t parts_of(int64_t whole, int64_t part) { return (whole + part - 1) / part; }

// From where to where a task's rows or columns go: whole units, shared out evenly.
struct Range {
  int64_t first, end;
  Range(int64_t size, int unit, int64_t parts, int64_t index) {
    const int64_t units = parts_of(size, unit);
    first = smaller(units * index / parts * unit, size);
    end = smaller(units * (index + 1) / parts * unit, size);
  }
};

// to[term][0..kWidth) = `width` columns of `rows` rows, zero beyond them.
template <int kWidth>
inline void copy_terms(const float* from, ptrdiff_t stride, int rows, int64_t width, float* to) {
  if (width < kWidth) return pack_rows<float>(from, stride, rows, static_cast<int>(width), to, kWidth);
  for (int row = 0; row < rows; ++row, from += stride, to += kWidth) std::memcpy(to, from, kWidth * sizeof(float));
}

#if defined(__AVX512BF16__)

inline __mmask16 first_lanes(int64_t count) {
  return static_cast<__mmask16>(count <= 0 ? 0 : count >= 16 ? 0xffff : (1 << count) - 1);
}

// Rows 2k and 2k + 1 side by side; the last one of an odd number has zeros beside it.
template <int kWidth>
inline void copy_terms(const BFloat16* from, ptrdiff_t stride, int rows, int64_t width, float* to) {
  for (int row = 0; row < rows; row += 2, to += kWidth) {
    const BFloat16* const first = from + row * stride;
    for (int column = 0; column < kWidth; column += kLanes<float>) {
      const __mmask16 there = first_lanes(width - column);
      const __m256i even = _mm256_maskz_loadu_epi16(there, first + column);
      const __m256i odd = _mm256_maskz_loadu_epi16(row + 1 < rows ? there : 0, first + stride + column);
      _mm512_mask_storeu_epi32(to + column, first_lanes(kWidth - column), interleave(even, odd));
    }
  }
}

#endif

// What one multiplication takes of elements E.
template <class E>
struct Terms {
  using Term = E;
  static constexpr int kRows = 1;
  static Term one() { return 1.0f; }
};

#if defined(__AVX512BF16__)
template <>
struct Terms<BFloat16> {
  using Term = BFloat16Pair;
  static constexpr int kRows = 2;
  static Term one() { return {{0x3f80}, {0x3f80}}; }
};
#endif

// sums (kTileRows, kTileColumns), rows `apart`, += the products of a group and a panel.
template <class Term>
void add_product(const Term* group, const Term* panel, int terms, float* sums, ptrdiff_t apart) {
  Vec<float> found[kTileRows][kTileVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) {
    __builtin_prefetch(sums + r * apart);
    __builtin_prefetch(sums + r * apart + kTileColumns - 1);
#pragma GCC unroll 2
    for (int v = 0; v < kTileVectors; ++v) found[r][v] = broadcast(0.0f);
  }
  for (int k = 0; k < terms; ++k, group += kTileRows, panel += kTileColumns) {
    typename Product<Term>::Row columns[kTileVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kTileVectors; ++v) columns[v] = Product<Term>::load_row(panel + v * kLanes<float>);
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) {
      const auto element = Product<Term>::spread(group[r]);
#pragma GCC unroll 2
      for (int v = 0; v < kTileVectors; ++v) found[r][v] = Product<Term>::add(found[r][v], element, columns[v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kTileVectors; ++v) {
      float* const to = sums + r * apart + v * kLanes<float>;
      store<float>(to, load<float>(to) + found[r][v]);
    }
  }
}

// One task's part, of operands of element type E.
template <class E>
class Part {
 public:
  static constexpr size_t kPanelWords = kBlockColumns * kBlockTerms;
  static constexpr size_t kGroupWords = kGroupsAtOnce * kTileRows * kBlockTerms + kLanes<float>;
  static constexpr size_t kWords = kPanelWords + kGroupWords + kTileRows * kTileColumns + 3 * kSpacing<float>;

  Part(const WeightGradient& problem, void* memory) : problem_(problem) {
    Workspace<float> workspace(memory);
    panels_ = workspace.take(kPanelWords);
    groups_ = workspace.take(kGroupWords);
    tile_ = workspace.take(kTileRows * kTileColumns);
  }

  void run(const Range& outputs, const Range& inputs) {
    for (int64_t column = inputs.first; column < inputs.end; column += kBlockColumns) {
      for (block_ = 0; block_ < problem_.blocks(); ++block_) {
        begin_block(column, smaller(column + kBlockColumns, inputs.end));
        multiply_block(outputs);
      }
    }
  }

 private:
  using Term = typename Terms<E>::Term;

  void begin_block(int64_t column, int64_t column_end) {
    first_ = smaller(block_ * problem_.block_rows(), problem_.rows);
    rows_ = static_cast<int>(smaller(problem_.block_rows(), problem_.rows - first_));
    terms_ = (rows_ + Terms<E>::kRows - 1) / Terms<E>::kRows;
    column_ = column, column_end_ = column_end;
    const E* const input = static_cast<const E*>(problem_.input.data) + first_ * problem_.input.row_stride;
    for (int64_t c = column; c < column_end; c += kTileColumns) {
      copy_terms<kTileColumns>(input + c, problem_.input.row_stride, rows_, column_end - c,
                               panels_ + (c - column) * terms_);
    }
  }

  void multiply_block(const Range& outputs) {
    const E* const grad = static_cast<const E*>(problem_.grad.data) + first_ * problem_.grad.row_stride;
    for (int64_t row = outputs.first; row < outputs.end; row += kGroupsAtOnce * kTileRows) {
      const int64_t end = smaller(row + kGroupsAtOnce * kTileRows, outputs.end);
      for (int64_t r = row; r < end; r += kTileRows) {
        copy_terms<kTileRows>(grad + r, problem_.grad.row_stride, rows_, end - r, groups_ + (r - row) * terms_);
      }
      for (int64_t r = row; r < end; r += kTileRows) {
        multiply_group(r, reinterpret_cast<const Term*>(groups_ + (r - row) * terms_));
      }
    }
  }

  void multiply_group(int64_t row, const Term* group) {
    const int rows = static_cast<int>(smaller(kTileRows, problem_.outputs - row));
    if (problem_.partial_sums != nullptr && column_ == 0) {
      sum_terms(group, problem_.partial_sums + block_ * problem_.outputs + row, rows);
    }
    for (int64_t column = column_; column < column_end_; column += kTileColumns) {
      const int columns = static_cast<int>(smaller(kTileColumns, column_end_ - column));
      const Term* const panel = reinterpret_cast<const Term*>(panels_ + (column - column_) * terms_);
      float* const to = problem_.grad_weight + row * problem_.inputs + column;
      if (rows == kTileRows && columns == kTileColumns) {
        if (block_ == 0) clear(to, problem_.inputs);
        add_product(group, panel, terms_, to, problem_.inputs);
      } else {
        clear(tile_, kTileColumns);
        add_product(group, panel, terms_, tile_, kTileColumns);
        add_tile(to, rows, columns);
      }
    }
  }

  static void clear(float* sums, ptrdiff_t apart) {
    for (int r = 0; r < kTileRows; ++r) {
      for (int c = 0; c < kTileColumns; c += kLanes<float>) store<float>(sums + r * apart + c, broadcast(0.0f));
    }
  }

  void add_tile(float* to, int rows, int columns) const {
    for (int r = 0; r < rows; ++r, to += problem_.inputs) {
      for (int c = 0; c < columns; ++c) to[c] = (block_ == 0 ? 0.0f : to[c]) + tile_[r * kTileColumns + c];
    }
  }

  // A vector holds a group's term and the beginning of what follows it, whose sums are left. Several chains of sums
  // round less than one.
  void sum_terms(const Term* group, float* to, int rows) const {
    constexpr int kChains = 8;
    Vec<float> sums[kChains];
    for (Vec<float>& sum : sums) sum = broadcast(0.0f);
    const auto one = Product<Term>::spread(Terms<E>::one());
    for (int k = 0; k < terms_; ++k) {
      Vec<float>& sum = sums[k % kChains];
      sum = Product<Term>::add(sum, Product<Term>::load_row(group + k * kTileRows), one);
    }
    for (int half = kChains / 2; half > 0; half /= 2) {
      for (int chain = 0; chain < half; ++chain) sums[chain] += sums[chain + half];
    }
    for (int r = 0; r < rows; ++r) to[r] = sums[0][r];
  }

  const WeightGradient& problem_;
  float *panels_, *groups_, *tile_;
  // The block that is multiplied: of the rows, and of the input's columns.
  int64_t block_, first_, column_, column_end_;
  int rows_, terms_;
};

bool takes(DType dtype) {
#if defined(__AVX512BF16__)
  if (dtype == DType::bfloat16) return true;
#endif
  return dtype == DType::float32;
}

size_t workspace() { return Part<float>::kWords * sizeof(float); }

template <class E>
void part_of(const WeightGradient& problem, int64_t task, void* memory) {
  const int64_t parts = problem.input_parts();
  Part<E>(problem, memory)
      .run(Range(problem.outputs, kTileRows, problem.output_parts(), task / parts),
           Range(problem.inputs, kTileColumns, parts, task % parts));
}

void part(const WeightGradient& problem, int64_t task, void* memory) {
#if defined(__AVX512BF16__)
  if (problem.grad.dtype == DType::bfloat16) return part_of<BFloat16>(problem, task, memory);
#endif
  part_of<float>(problem, task, memory);
}

}  // namespace

extern const WeightGradientKernels weight_gradient;
const WeightGradientKernels weight_gradient = {takes, workspace, part};

}  // namespace MAE_DFER_ISA
}  // namespace mae_dfer
