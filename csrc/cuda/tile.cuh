// Tiles of matrices: from global to shared memory by asynchronous copies, from there to registers
// and into sums. A tile is made of panels, whose rows have 128 bytes: 8 chunks of 16 bytes. The
// chunk lies at its number xor the row, so that 8 rows of one chunk, which is what a matrix load
// reads at a time, are in different banks, and so are the 8 chunks of a row, which is what copies
// write.
//
// Sums of 16-bit numbers are products of tensor cores. Those of float32 are multiply-adds in the
// same places: lane 4 r + c has rows r and r + 8 and columns 2 c and 2 c + 1 of 16 x 8 sums.
#pragma once
#include "cuda/device.cuh"

namespace monarch::cuda {

inline constexpr int kChunkBytes = 16, kRowBytes = 128;

// Elements in a chunk, and in a row of a panel: the terms of a sum that one step adds.
template <class T>
inline constexpr int kChunk = kChunkBytes / static_cast<int>(sizeof(T));
template <class T>
inline constexpr int kDepth = kRowBytes / static_cast<int>(sizeof(T));

// Transposed tiles of float32 are read by rows and need no exchange of chunks.
template <class T, bool kTransposed>
inline constexpr bool kExchanged = sizeof(T) == 2 || !kTransposed;

// Where a chunk is, in bytes, if a panel has kRows rows.
template <int kRows, bool kExchange>
MONARCH_DEVICE int chunk_offset(int row, int chunk) {
  const int place = kExchange ? (chunk ^ row) % 8 : chunk % 8;
  return (chunk / 8 * kRows + row) * kRowBytes + place * kChunkBytes;
}

// A matrix in global memory. What lies beyond its rows and columns reads as zero.
template <class T>
struct Matrix {
  const T* data;
  int64_t stride;  // elements from row to row
  int64_t rows, columns;
  bool aligned;  // every chunk is a multiple of 16 bytes
};

// The longest way that copies may go along a matrix, so that 32 bits count what is left.
inline constexpr int64_t kMostTerms = 1 << 30;

// One thread's part of copies into tiles of kRows rows and kChunks chunks: the same chunk of every
// kStep-th row. Complete after copy_async_wait and a barrier.
template <class T, int kRows, int kChunks, int kThreads, bool kExchange>
class TileCopy {
 public:
  static constexpr int kBytes = kRows * ((kChunks + 7) / 8) * kRowBytes;

  MONARCH_DEVICE TileCopy(const Matrix<T>& from, int64_t row, int64_t column, int thread)
      : chunk_(thread % kSpan), row_(thread / kSpan), aligned_(from.aligned) {
    const int64_t first_row = row + row_, first_column = column + chunk_ * kChunk<T>;
    source_ = from.data + first_row * from.stride + first_column;
    stride_ = from.stride;
    rows_ = static_cast<int>(min(from.rows - first_row, kMostTerms));
    columns_ = static_cast<int>(min(from.columns - first_column, kMostTerms));
  }

  MONARCH_DEVICE void copy(unsigned char* tile) const {
    if (kChunks < kSpan && chunk_ >= kChunks) return;
    const int valid = max(min(columns_, kChunk<T>), 0);
    const T* source = source_;
    if (aligned_) {
      const auto bytes = static_cast<uint32_t>(valid * static_cast<int>(sizeof(T)));
      const uint32_t panel = device::shared_address(tile) + chunk_ / 8 * kRows * kRowBytes;
      const int place = kExchange ? (chunk_ ^ row_) % 8 : chunk_ % 8;
#pragma unroll
      for (int n = 0; n < kRows; n += kStep) {
        const int moved = kExchange ? place ^ n % 8 : place;  // row_ and n share no bits
        device::copy_async_16(panel + (row_ + n) * kRowBytes + moved * kChunkBytes, source,
                              n < rows_ ? bytes : 0);
        source = device::opaque(source + kStep * stride_);
      }
    } else {
#pragma unroll 1
      for (int n = 0; n < kRows; n += kStep, source += kStep * stride_) {
        T* const elements =
            reinterpret_cast<T*>(tile + chunk_offset<kRows, kExchange>(row_ + n, chunk_));
#pragma unroll 1
        for (int j = 0; j < kChunk<T>; ++j) elements[j] = j < valid && n < rows_ ? source[j] : T{};
      }
    }
  }
  MONARCH_DEVICE void next_rows(int count) {
    source_ += count * stride_;
    rows_ -= count;
  }
  MONARCH_DEVICE void next_columns(int count) {
    source_ += count;
    columns_ -= count;
  }

 private:
  static constexpr int kSpan = kChunks <= 8 ? 8 : kChunks <= 16 ? 16 : 32;
  static constexpr int kStep = kThreads / kSpan;
  static_assert(kChunks <= kSpan && kThreads % kSpan == 0 && kRows % kStep == 0);

  const T* source_;
  int64_t stride_;
  int rows_, columns_, chunk_, row_;  // rows and columns from here on
  bool aligned_;
};

MONARCH_DEVICE int lane_of_warp() { return static_cast<int>(threadIdx.x) % 32; }

// Registers of 16 x 16 elements of an operand, terms 16 k to 16 k + 15 of a step. A tile has the
// terms in its rows, or, transposed, in its columns. As left factor `outer`, a multiple of 8, is a
// row of the product, as right factor a column.
template <bool kTransposed>
MONARCH_DEVICE void load_left(uint32_t (&a)[4], uint32_t tile, int outer, int k) {
  const int lane = lane_of_warp();
  if constexpr (kTransposed) {
    const int row = 16 * k + lane / 16 * 8 + lane % 8, chunk = outer / 8 + lane / 8 % 2;
    device::load_matrix_x4_transposed(a, tile + chunk_offset<64, true>(row, chunk));
  } else {
    const int place = (2 * k + lane / 16) ^ (lane % 8);
    device::load_matrix_x4(a, tile + (outer + lane % 16) * kRowBytes + place * kChunkBytes);
  }
}
template <bool kTransposed>
MONARCH_DEVICE void load_right(uint32_t (&b)[4], uint32_t tile, int outer, int k) {
  const int lane = lane_of_warp();
  if constexpr (kTransposed) {
    const int row = 16 * k + lane % 16, chunk = outer / 8 + lane / 16;
    device::load_matrix_x4_transposed(b, tile + chunk_offset<64, true>(row, chunk));
  } else {
    const int place = (2 * k + lane / 8 % 2) ^ (lane % 8);
    const int row = outer + lane / 16 * 8 + lane % 8;
    device::load_matrix_x4(b, tile + row * kRowBytes + place * kChunkBytes);
  }
}

// The four terms from 4 k on of one row (or column) of a product, float32. `inner` is outer % 8.
template <bool kTransposed>
MONARCH_DEVICE void load_terms(float (&x)[4], const unsigned char* tile, int outer, int inner,
                               int k) {
  if constexpr (kTransposed) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int offset = (outer / 32 * kDepth<float> + 4 * k + i) * kRowBytes + outer % 32 * 4;
      x[i] = device::load_shared(reinterpret_cast<const float*>(tile + offset));
    }
  } else {
    const int offset = outer * kRowBytes + (k ^ inner) * kChunkBytes;
    const float4 four = device::load_shared(reinterpret_cast<const float4*>(tile + offset));
    x[0] = four.x, x[1] = four.y, x[2] = four.z, x[3] = four.w;
  }
}

// c += a b for the 16 kTall x 8 kWide sums of a warp at (row, column) of the product, over the
// terms of one step. Terms are the columns of both tiles, or, of a transposed one, its rows.
template <class T, bool kTransposedA, bool kTransposedB, int kTall, int kWide>
MONARCH_DEVICE void multiply_tiles(float (&c)[kTall][kWide][4], const unsigned char* a, int row,
                                   const unsigned char* b, int column) {
  if constexpr (sizeof(T) == 2) {
    static_assert(kWide % 2 == 0);
    const uint32_t a_tile = device::shared_address(a), b_tile = device::shared_address(b);
#pragma unroll
    for (int k = 0; k < kDepth<T> / 16; ++k) {
      uint32_t left[kTall][4];
#pragma unroll
      for (int i = 0; i < kTall; ++i) load_left<kTransposedA>(left[i], a_tile, row + 16 * i, k);
#pragma unroll
      for (int j = 0; j < kWide; j += 2) {
        uint32_t right[4];
        load_right<kTransposedB>(right, b_tile, column + 8 * j, k);
        const uint32_t first[2] = {right[0], right[1]}, second[2] = {right[2], right[3]};
#pragma unroll
        for (int i = 0; i < kTall; ++i) {
          device::multiply_accumulate<T>(c[i][j], left[i], first);
          device::multiply_accumulate<T>(c[i][j + 1], left[i], second);
        }
      }
    }
  } else {
    const int r = lane_of_warp() / 4, n = lane_of_warp() % 4 * 2;
#pragma unroll 1
    for (int k = 0; k < kDepth<T> / 4; ++k) {
      float left[2 * kTall][4];
#pragma unroll
      for (int i = 0; i < 2 * kTall; ++i)
        load_terms<kTransposedA>(left[i], a, row + 8 * i + r, r, k);
#pragma unroll
      for (int j = 0; j < 2 * kWide; ++j) {
        float right[4];
        load_terms<kTransposedB>(right, b, column + j / 2 * 8 + n + j % 2, n + j % 2, k);
#pragma unroll
        for (int i = 0; i < 2 * kTall; ++i) {
          // Four terms by themselves first: of a long sum, a quarter of the roundings are of it.
          float four = left[i][0] * right[0];
#pragma unroll
          for (int term = 1; term < 4; ++term) four = device::fma(left[i][term], right[term], four);
          c[i / 2][j / 2][i % 2 * 2 + j % 2] += four;
        }
      }
    }
  }
}

template <int kTall, int kWide>
MONARCH_DEVICE void set_zero(float (&sums)[kTall][kWide][4]) {
#pragma unroll
  for (int i = 0; i < kTall; ++i) {
#pragma unroll
    for (int j = 0; j < kWide; ++j) {
#pragma unroll
      for (int n = 0; n < 4; ++n) sums[i][j][n] = 0;
    }
  }
}

// use(row, column, low, high) for the sums in columns `column` and `column` + 1 of the product.
template <int kTall, int kWide, class Use>
MONARCH_DEVICE void each_pair(const float (&c)[kTall][kWide][4], int row, int column, Use use) {
  const int lane = lane_of_warp();
#pragma unroll
  for (int i = 0; i < kTall; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int j = 0; j < kWide; ++j) {
        use(row + 16 * i + 8 * half + lane / 4, column + 8 * j + lane % 4 * 2, c[i][j][2 * half],
            c[i][j][2 * half + 1]);
      }
    }
  }
}

}  // namespace monarch::cuda
