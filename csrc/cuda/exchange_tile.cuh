// What the exchange kernels share: rows of a clip in shared memory, and the softmax of their scores in registers.
//
// A warp owns sixteen rows. Channels go by in chunks of 128 bytes, a clip's J = H·K pairs (of a head and a
// representative) in passes of 64. Whoever launches the kernels has padded H and K so that both are powers of two where
// that matters: K is one, at least 2, and J a multiple of 64. A head's columns then fill a quarter, a half, one or
// several of the 8-column blocks that a warp's registers hold, and its softmax needs no shared memory.
#pragma once

#include "cuda/exchange_options.cuh"
#include "cuda/fragments.cuh"
#include "cuda/rows.cuh"

namespace mae_dfer {
namespace cuda {

constexpr unsigned kPass = 64;              // columns: pairs
constexpr unsigned kPassBlocks = kPass / 8;
constexpr unsigned kChunkBytes = 128;       // of a row
constexpr unsigned kRowsOfWarp = 16;
// The most warps of a block: 80 rows are what masking leaves of a clip; the backward's shared memory holds fewer.
constexpr unsigned kForwardWarps = 5, kBackwardWarps = 4;

template <class E>
struct ExchangeShape {
  static constexpr int kChunk = kChunkBytes / sizeof(E);     // channels
  static constexpr int kSteps = kPass / Product<E>::kStep;  // of a product over a pass
  static constexpr size_t kWarpScoreBytes = kRowsOfWarp * kPass * sizeof(E);  // of a pass
};
template <class E>
using ChunkTile = Tile<E, ExchangeShape<E>::kChunk>;

// The numbers in a 32-bit word.
template <class E>
struct Word {
  static constexpr int kCount = 2;
  MAE_DFER_DEVICE static void get(uint32_t word, float (&values)[2]) { unpack(E(), word, values, values + 1); }
  MAE_DFER_DEVICE static uint32_t put(const float (&values)[2]) { return pack(E(), values[0], values[1]); }
};
template <>
struct Word<float> {
  static constexpr int kCount = 1;
  MAE_DFER_DEVICE static void get(uint32_t word, float (&values)[1]) { values[0] = bits_to_float(word); }
  MAE_DFER_DEVICE static uint32_t put(const float (&values)[1]) { return float_to_bits(values[0]); }
};

// Two neighbours of a row, as an accumulator holds them.
template <class E>
MAE_DFER_DEVICE void load_pair(const char* from, float* first, float* second) {
  if constexpr (sizeof(E) == 2) {
    unpack(E(), *reinterpret_cast<const uint32_t*>(from), first, second);
  } else {
    *first = reinterpret_cast<const float*>(from)[0];
    *second = reinterpret_cast<const float*>(from)[1];
  }
}
template <class E>
MAE_DFER_DEVICE void round_pair(float* first, float* second) {
  if constexpr (sizeof(E) == 2) unpack(E(), pack(E(), *first, *second), first, second);
}

// The sixteen-byte pieces of chunk `index` of rows of so many bytes: fewer than eight in the last one, perhaps.
MAE_DFER_DEVICE unsigned pieces_of_chunk(unsigned row_bytes, unsigned index) {
  const unsigned left = (row_bytes - index * kChunkBytes) / 16;
  return left < 8 ? left : 8;
}

// Mean and 1 / deviation of this thread's rows g and g + 8.
struct UnitRows {
  float mean[2], inverse[2];

  MAE_DFER_DEVICE float apply(float x, int half) const { return (x - mean[half]) * inverse[half]; }

  // u of x, in a left factor: its words 1 and 3 are of row g + 8.
  template <class E>
  MAE_DFER_DEVICE void apply(uint32_t (&a)[4]) const {
    MAE_DFER_UNROLL
    for (int i = 0; i < 4; ++i) {
      float values[Word<E>::kCount];
      Word<E>::get(a[i], values);
      MAE_DFER_UNROLL
      for (int e = 0; e < Word<E>::kCount; ++e) values[e] = apply(values[e], i % 2);
      a[i] = Word<E>::put(values);
    }
  }
};

// The sixteen rows of a warp, in chunks as its threads copy them: piece lane % 8 of rows lane / 8 + 4·i.
struct WarpRows {
  const char* at[4];
  int valid;  // of the sixteen

  // Rows from number `first` on; those that are not valid are not read.
  MAE_DFER_DEVICE WarpRows(const StridedRows& rows, unsigned rows_per_group, unsigned first, int valid_rows)
      : valid(valid_rows) {
    MAE_DFER_UNROLL
    for (int i = 0; i < 4; ++i) {
      const unsigned local = lane_index() / 8 + 4 * i, index = static_cast<int>(local) < valid ? first + local : 0;
      const unsigned group = index / rows_per_group, row = index - group * rows_per_group;
      at[i] = static_cast<const char*>(rows.data) +
              (group * rows.group_stride + row * rows.row_stride) * item_size(rows.dtype);
    }
  }

  // Into rows `row` … of the tile; zeros beyond the valid rows and the chunk's `pieces`.
  template <class E>
  MAE_DFER_DEVICE void load_async(const ChunkTile<E>& tile, unsigned row, unsigned chunk, unsigned pieces) const {
    const unsigned piece = lane_index() % 8;
    MAE_DFER_UNROLL
    for (int i = 0; i < 4; ++i) {
      const unsigned local = lane_index() / 8 + 4 * i;
      const bool inside = static_cast<int>(local) < valid && piece < pieces;
      copy_async(tile.piece(row + local, piece), at[i] + (inside ? chunk * kChunkBytes + piece * 16 : 0), inside);
    }
  }
};

// What a block works on, and the shared memory of its rows' x: chunk after chunk, a tile each.
template <class E>
struct RowsTask {
  unsigned clip, first, row;  // first row of this warp within the clip, and within the block
  int valid;                  // rows of this warp
  unsigned rows, chunks, row_bytes;
  char* memory;

  MAE_DFER_DEVICE RowsTask(const Exchange& problem, const ExchangeOptions& options) {
    rows = kRowsOfWarp * (block_threads() / 32);
    const unsigned block = static_cast<unsigned>(block_index()), clip_rows = options.clip_rows;
    clip = block / options.tiles;
    row = kRowsOfWarp * warp_index();
    first = block % options.tiles * rows + row;
    const unsigned left = first < clip_rows ? clip_rows - first : 0;
    valid = static_cast<int>(left < kRowsOfWarp ? left : kRowsOfWarp);
    row_bytes = static_cast<unsigned>(problem.channels * sizeof(E));
    chunks = (row_bytes + kChunkBytes - 1) / kChunkBytes;
    memory = shared_memory();
  }
  MAE_DFER_DEVICE ChunkTile<E> chunk(unsigned index) const { return {memory + index * rows * kChunkBytes}; }
  MAE_DFER_DEVICE unsigned pieces(unsigned index) const { return pieces_of_chunk(row_bytes, index); }
  // Of the whole problem.
  MAE_DFER_DEVICE unsigned first_row(const ExchangeOptions& options) const { return clip * options.clip_rows + first; }
  // This warp's sixteen rows among all of the scratch, where every clip has whole sixteens.
  MAE_DFER_DEVICE int64_t group(const ExchangeOptions& options) const {
    return int64_t{clip} * options.clip_groups + first / kRowsOfWarp;
  }

  MAE_DFER_DEVICE void load_async(const WarpRows& x) const {
    for (unsigned index = 0; index < chunks; ++index) x.load_async<E>(chunk(index), row, index, pieces(index));
    copy_commit();
  }
  // This warp's rows of chunk `index` to the contiguous matrix `to`, which has `front` rows before each group's.
  MAE_DFER_DEVICE void store(unsigned index, void* to, const ExchangeOptions& options, unsigned front) const {
    sync_warp();
    const unsigned piece = lane_index() % 8;
    MAE_DFER_UNROLL
    for (int i = 0; i < 4; ++i) {
      const unsigned local = lane_index() / 8 + 4 * i;
      if (static_cast<int>(local) < valid && piece < pieces(index)) {
        const unsigned number = first_row(options) + local;
        const unsigned place = front == 0 ? number : number + (number / options.group_rows + 1) * front;
        char* const target = static_cast<char*>(to) + int64_t{place} * row_bytes;
        copy_16(target + index * kChunkBytes + piece * 16, chunk(index).piece(row + local, piece));
      }
    }
  }

  // The address of columns 8·block + 2p and + 1 of row g (half 0) or g + 8 in a tile of this block's rows.
  MAE_DFER_DEVICE char* pair(const ChunkTile<E>& tile, unsigned block, unsigned half) const {
    const unsigned byte = (8 * block + lane_index() % 4 * 2) * static_cast<unsigned>(sizeof(E));
    return tile.piece(row + lane_index() / 4 + 8 * half, byte / 16) + byte % 16;
  }

  // Sums of term(half, value) over this thread's two rows, of which it adds up a quarter: chunk after chunk, so that
  // long rows are no long sums. Of two rows that lie side by side, one starts with a chunk's other half: they would
  // want the same banks.
  template <class Term>
  MAE_DFER_DEVICE void add_up(float (&sums)[2], Term term) const {
    const unsigned g = lane_index() / 4, p = lane_index() % 4;
    sums[0] = sums[1] = 0.0f;
    for (unsigned index = 0; index < chunks; ++index) {
      float part[2] = {0.0f, 0.0f};
      for (unsigned side = 0; side < 2; ++side) {
        const unsigned piece = p + 4 * ((side + g) % 2);
        if (piece < pieces(index)) {
          MAE_DFER_UNROLL
          for (int half = 0; half < 2; ++half) {
            alignas(16) uint32_t words[4];
            copy_16(words, chunk(index).piece(row + g + 8 * half, piece));
            MAE_DFER_UNROLL
            for (int i = 0; i < 4; ++i) {
              float values[Word<E>::kCount];
              Word<E>::get(words[i], values);
              MAE_DFER_UNROLL
              for (int e = 0; e < Word<E>::kCount; ++e) part[half] += term(half, values[e]);
            }
          }
        }
      }
      sums[0] += part[0];
      sums[1] += part[1];
    }
    sums[0] = row_sum(sums[0]);
    sums[1] = row_sum(sums[1]);
  }
  // Of rows that are not valid the inverse is 0, so that u is 0 whatever eps.
  MAE_DFER_DEVICE UnitRows statistics(const Exchange& problem, float eps) const {
    const float channels = static_cast<float>(problem.channels);
    UnitRows found;
    float sums[2];
    add_up(sums, [](int, float value) { return value; });
    MAE_DFER_UNROLL
    for (int half = 0; half < 2; ++half) found.mean[half] = sums[half] / channels;
    add_up(sums, [&](int half, float value) { return (value - found.mean[half]) * (value - found.mean[half]); });
    MAE_DFER_UNROLL
    for (int half = 0; half < 2; ++half) {
      const bool inside = static_cast<int>(lane_index() / 4) + 8 * half < valid;
      found.inverse[half] = inside ? inverse_square_root(sums[half] / channels + eps) : 0.0f;
    }
    return found;
  }
};

// Scores += rows `row` … of `left`, a chunk of channels, times the transpose of a pass of keys or values. In fp32, sums
// over a chunk come first: of all steps' rounding errors, thousands of channels would make a long sum.
template <class E, class Change>
MAE_DFER_DEVICE void add_scores(Accumulator (&scores)[kPassBlocks], const ChunkTile<E>& left, unsigned row,
                                const ChunkTile<E>& right, Change change) {
  Accumulator part[kPassBlocks];
  clear(part);
  Accumulator(&sums)[kPassBlocks] = sizeof(E) == 2 ? scores : part;
  MAE_DFER_ROLL
  for (unsigned step = 0; step < kChunkBytes / 32; ++step) {
    uint32_t a[4];
    left.load_left(a, row, step);
    change(a);
    MAE_DFER_UNROLL
    for (unsigned n = 0; n < kPassBlocks / 2; ++n) {
      uint32_t b[2][2];
      right.load_right_of_transpose(b, 16 * n, step);
      Product<E>::add(sums[2 * n], a, b[0]);
      Product<E>::add(sums[2 * n + 1], a, b[1]);
    }
  }
  if constexpr (sizeof(E) == 4) {
    MAE_DFER_UNROLL
    for (unsigned n = 0; n < kPassBlocks; ++n) {
      MAE_DFER_UNROLL
      for (int i = 0; i < 4; ++i) scores[n][i] += part[n][i];
    }
  }
}

// A warp's scores, rounded to E, as left factors: 512 bytes a step of a product, word w of thread `lane` at
// 128·w + 4·lane. Sixteen 16-bit columns, or eight of fp32 in the order of Product<float>::to_left.
template <class E>
struct ScoreBlocks {
  static constexpr unsigned kBytes = 512;

  MAE_DFER_DEVICE static void store(char* base, const Accumulator (&scores)[kPassBlocks]) {
    MAE_DFER_UNROLL
    for (int step = 0; step < ExchangeShape<E>::kSteps; ++step) {
      uint32_t a[4];
      Product<E>::to_left(a, scores, step);
      MAE_DFER_UNROLL
      for (unsigned w = 0; w < 4; ++w) {
        *reinterpret_cast<uint32_t*>(base + step * kBytes + 128 * w + 4 * lane_index()) = a[w];
      }
    }
  }
  MAE_DFER_DEVICE static void load_left(uint32_t (&a)[4], const char* base, unsigned step) {
    load_matrices(a, base + step * kBytes + 16 * lane_index());
  }
};

// C (16 rows × a chunk of channels) += scores of a pass times `right`, its pairs' keys or values.
template <class E, int kBlocks>
MAE_DFER_DEVICE void add_mixture(Accumulator (&c)[kBlocks], const char* scores, const ChunkTile<E>& right) {
  MAE_DFER_ROLL
  for (int step = 0; step < ExchangeShape<E>::kSteps; ++step) {
    uint32_t a[4];
    ScoreBlocks<E>::load_left(a, scores, step);
    MAE_DFER_UNROLL
    for (int n = 0; n < kBlocks / 2; ++n) {
      uint32_t b[2][2];
      Product<E>::load_right(b, right, step * Product<E>::kStep, 16 * n);
      Product<E>::add(c[2 * n], a, b[0]);
      Product<E>::add(c[2 * n + 1], a, b[1]);
    }
  }
}

}  // namespace cuda
}  // namespace mae_dfer
