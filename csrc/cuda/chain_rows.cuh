// How rows of 16-bit activations come from global memory into operands of tensor cores, and how
// results go back.
#pragma once
#include "cuda/chain_tables.cuh"
#include "cuda/memory.cuh"

namespace monarch::cuda {

// How the samples of rows are moved: one by one, four neighbours at once, or so without a test for
// the end of the row, as it has as many samples as the transform has points.
enum class Access { kSingle, kFours, kWholeRows };

// Rows with strides in bytes, so that a row is found with one multiplication.
struct ByteRows {
  void* data;
  int64_t batch_bytes, channel_bytes;
};

// y = factor * convolution of x * gate, twice if there are two results. Rows of a channel are
// shared by `slices` blocks.
struct ChainParams {
  ByteRows x, gate, factor[2], y[2];
  int batch, channels, length, slices;
  bool gated, scaled[2], both;  // what there is of gate, factors and second result
  Access access;
  bool conjugate;  // with the conjugate spectrum: the transposed convolution
  const float* spectrum;
};

// ---- Rows in global memory, four neighbouring samples at a time

template <class T>
MONARCH_DEVICE void unpack(uint32_t pair, float& low, float& high) {
  low = device::to_float(T{static_cast<uint16_t>(pair)});
  high = device::to_float(T{static_cast<uint16_t>(pair >> 16)});
}

// Four samples of each of kCount groups, which begin at row[offset(i)]; those at `left` and beyond
// are 0. One branch for all groups: they are loaded together.
template <int kCount, class T, class Offset>
MONARCH_DEVICE void load_fours(const T* row, int left, Access access, Offset offset,
                               float (&to)[kCount][4]) {
  row = device::opaque(row);
  const auto load = [&](auto is_there) {
    uint2 bits[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      bits[i] = make_uint2(0, 0);
      if (is_there(i))
        bits[i] = device::load_streaming(reinterpret_cast<const uint2*>(row + offset(i)));
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      unpack<T>(bits[i].x, to[i][0], to[i][1]);
      unpack<T>(bits[i].y, to[i][2], to[i][3]);
    }
  };
  if (access == Access::kWholeRows) {
    load([](int) { return true; });
  } else if (access == Access::kFours) {
    load([&](int i) { return offset(i) < left; });
  } else {
#pragma unroll
    for (int i = 0; i < 4 * kCount; ++i) {
      const int n = offset(i / 4) + i % 4;
      to[i / 4][i % 4] = n < left ? load_once(row + n) : 0.0f;
    }
  }
}

template <int kCount, class T, class Offset>
MONARCH_DEVICE void store_fours(T* row, int left, Access access, Offset offset,
                                const float (&from)[kCount][4]) {
  row = device::opaque(row);
  const auto store = [&](auto is_there) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const uint2 bits = make_uint2(device::pack<T>(from[i][0], from[i][1]),
                                    device::pack<T>(from[i][2], from[i][3]));
      if (is_there(i)) device::store_streaming(reinterpret_cast<uint2*>(row + offset(i)), bits);
    }
  };
  if (access == Access::kWholeRows) {
    store([](int) { return true; });
  } else if (access == Access::kFours) {
    store([&](int i) { return offset(i) < left; });
  } else {
#pragma unroll
    for (int i = 0; i < 4 * kCount; ++i) {
      const int n = offset(i / 4) + i % 4;
      if (n < left) store_once(row + n, from[i / 4][i % 4]);
    }
  }
}

template <int kCount>
MONARCH_DEVICE void multiply_all(float (&x)[kCount][4], const float (&by)[kCount][4]) {
#pragma unroll
  for (int i = 0; i < 4 * kCount; ++i) x[i / 4][i % 4] *= by[i / 4][i % 4];
}

// Rows of a channel, from the first sample that this lane has.
template <class T>
class LaneRows {
 public:
  MONARCH_DEVICE LaneRows(const ByteRows& rows, int channel, int first)
      : data_(static_cast<unsigned char*>(rows.data) + channel * rows.channel_bytes +
              first * static_cast<int>(sizeof(T))),
        stride_(static_cast<uint64_t>(rows.batch_bytes)) {}
  // Modulo 2^64, so that strides may be negative.
  MONARCH_DEVICE T* row(int row) const {
    return reinterpret_cast<T*>(data_ + static_cast<uint32_t>(row) * stride_);
  }

 private:
  unsigned char* data_;
  uint64_t stride_;
};

template <class T>
struct ChainInput {
  LaneRows<T> x, gate;
  int left;  // samples from the first one on

  MONARCH_DEVICE ChainInput(const ChainParams& p, int channel, int first)
      : x(p.x, channel, first), gate(p.gate, channel, first), left(p.length - first) {}
};
template <class T>
struct ChainOutput {
  LaneRows<T> y[2], factor[2];
  int left;

  MONARCH_DEVICE ChainOutput(const ChainParams& p, int channel, int first)
      : y{{p.y[0], channel, first}, {p.y[1], channel, first}},
        factor{{p.factor[0], channel, first}, {p.factor[1], channel, first}},
        left(p.length - first) {}
};

// x * gate.
template <class T, int kCount, class Offset>
MONARCH_DEVICE void load_input(const ChainParams& p, const ChainInput<T>& input, int row,
                               Offset offset, float (&values)[kCount][4]) {
  load_fours(input.x.row(row), input.left, p.access, offset, values);
  if (!p.gated) return;
  float by[kCount][4];
  load_fours(input.gate.row(row), input.left, p.access, offset, by);
  multiply_all(values, by);
}

template <int kCount>
MONARCH_DEVICE float largest_of(const float (&values)[kCount][4]) {
  float most = fabsf(values[0][0]);
#pragma unroll
  for (int i = 1; i < 4 * kCount; ++i) most = fmaxf(most, fabsf(values[i / 4][i % 4]));
  return largest_of_warp(most);
}

// Second operands of 16 rows and 32 columns of a matrix, as two tiles: values 4 k ... are operand
// k. values[i] is of row 2 (lane % 4) + i % 2 + 8 (i / 2 % 2) and four neighbouring columns, and
// column 8 j + lane / 4 of the operand is column 4 (lane / 4) + j of the matrix.
template <int kParts, int kCount>
MONARCH_DEVICE void scaled_tiles(const float (&values)[kCount][4], int k, float scale,
                                 RealTile<kParts> (&to)[2]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int j = i % 4, rows = 4 * k + i / 4 * 2;
    put<kParts>(values[rows][j] * scale, values[rows + 1][j] * scale, j % 2 * 2 + i / 4, to[j / 2]);
  }
}

// The same of 8 rows: values[i] is of row 2 (lane % 4) + i. The first parts fill the contracted
// index twice, for a matrix that has its second parts there.
template <int kParts>
MONARCH_DEVICE void scaled_tiles(const float (&values)[2][4], float scale,
                                 RealTile<kParts> (&to)[2]) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    RealTile<kParts>& tile = to[j / 2];
    put<kParts>(values[0][j] * scale, values[1][j] * scale, j % 2 * 2, tile);
    tile[0][j % 2 * 2 + 1] = tile[0][j % 2 * 2];
    if constexpr (kParts == 2) tile[1][j % 2 * 2 + 1] = 0;
  }
}

// results = factor * scale * values. The first result is there.
template <class T, int kCount, class Offset>
MONARCH_DEVICE void store_results(const ChainParams& p, const ChainOutput<T>& output, int row,
                                  float scale, Offset offset, float (&values)[kCount][4]) {
#pragma unroll
  for (int i = 0; i < 4 * kCount; ++i) values[i / 4][i % 4] *= scale;
  const auto write = [&](int i, float (&from)[kCount][4]) {
    if (p.scaled[i]) {
      float by[kCount][4];
      load_fours(output.factor[i].row(row), output.left, p.access, offset, by);
      multiply_all(from, by);
    }
    store_fours(output.y[i].row(row), output.left, p.access, offset, from);
  };
  if (p.both) {
    float copy[kCount][4];
#pragma unroll
    for (int i = 0; i < 4 * kCount; ++i) copy[i / 4][i % 4] = values[i / 4][i % 4];
    write(1, copy);
  }
  write(0, values);
}

}  // namespace monarch::cuda
