// The tensor-core kernels of fft_conv for 16-bit activations (docs/math.md, section 10): of rows of
// one block of points, which a warp convolves without shared memory, and of several, which a thread
// block does with two exchanges.
#pragma once
#include "cuda/chain_rows.cuh"
#include "cuda/chain_tables.cuh"

namespace monarch::cuda {

// ---- What a thread block keeps in shared memory

MONARCH_DEVICE void copy_to_shared(const void* from, unsigned char* to, int bytes, int threads) {
  for (int i = static_cast<int>(threadIdx.x); i < bytes / 16; i += threads)
    device::store_shared(reinterpret_cast<float4*>(to) + i,
                         device::load_readonly(static_cast<const float4*>(from) + i));
}

MONARCH_DEVICE void copy_spectrum(const float4* from, float4* to, int count, bool conjugate,
                                  int threads) {
  const float sign = conjugate ? -1.0f : 1.0f;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += threads) {
    const float4 pair = device::load_readonly(from + i);
    device::store_shared(to + i, make_float4(pair.x, sign * pair.y, pair.z, sign * pair.w));
  }
}

// ---- One block of points

template <class P, int kParts>
class SingleSource {
 public:
  static constexpr int kRadix = P::kRadix, kTiles = kRadix / 16;

  MONARCH_DEVICE SingleSource(unsigned char* tables, const float4* spectrum, int lane)
      : reader_(device::shared_address(tables + ChainTables<P>::kMatrixOffset), lane),
        twiddles_(reinterpret_cast<const float4*>(tables) + lane),
        spectrum_(spectrum + lane) {}

  MONARCH_DEVICE float4 twiddle(int m, int j, int half) const {
    return device::load_shared(twiddles_ + (m * 2 * kTiles + j) * 64 + half * 32);
  }
  MONARCH_DEVICE float4 inverse_twiddle(int m, int j, int half, int side) const {
    return device::load_shared(twiddles_ + P::kBlock / 2 + (j * 2 * kTiles + 2 * m + side) * 64 +
                               half * 32);
  }
  MONARCH_DEVICE float4 spectrum(int m, int j, int half) const {
    return device::load_shared(spectrum_ + (m * 2 * kTiles + j) * 64 + half * 32);
  }
  // The DFT over n2 is symmetric.
  MONARCH_DEVICE void forward(int row, int column, ComplexTile<kParts>& to) const {
    reader_.second(0, row, column, to);
  }
  MONARCH_DEVICE void inverse(int row, int column, ComplexTile<kParts>& to) const {
    reader_.first(0, row, column, to);
  }

 private:
  MatrixReader<kRadix, ChainTables<P>::kPartBytes> reader_;
  const float4 *twiddles_, *spectrum_;
};

// A row a warp. Grid: channels * slices.
template <class P, class T, int kParts>
__global__ void __launch_bounds__(P::kThreads, ChainShape<P, kParts>::kBlocks)
    chain_warp_kernel(ChainParams p) {
  using Shape = ChainShape<P, kParts>;
  using Tables = ChainTables<P>;
  constexpr int kRadix = P::kRadix, kTiles = kRadix / 16;
  static_assert(kRadix == 32, "a lane has four neighbouring columns");
  MONARCH_DYNAMIC_SHARED(shared);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const auto channel = static_cast<int>(blockIdx.x / p.slices);
  const auto slice = static_cast<int>(blockIdx.x % p.slices);
  const ChainSpectrum<P> spectrum(p.spectrum, p.channels);
  auto* values = reinterpret_cast<float4*>(shared + Shape::kTableBytes);
  copy_to_shared(spectrum.tables, shared, Shape::kTableBytes, P::kThreads);
  copy_spectrum(spectrum.values + int64_t{channel} * (P::kSize / 2), values, P::kSize / 2,
                p.conjugate, P::kThreads);
  device::sync_threads();
  const float channel_scale = spectrum.scales[channel];
  const MatrixReader<kRadix, Tables::kFirstBytes> reader(
      device::shared_address(shared + Tables::kTwiddleBytes), lane);
  const SingleSource<P, kParts> source(shared, values, lane);
  const ChainInput<T> input(p, channel, lane / 4 * 4 + lane % 4 * 2 * kRadix);
  const ChainOutput<T> output(p, channel, lane / 4 * kRadix + lane % 4 * 8);

  // All warps take the same turns, or the compiler could not tell that lanes are together.
  for (int turn = slice * Shape::kWarps; turn < p.batch; turn += p.slices * Shape::kWarps) {
    // The last turn's warps without a row do another one's work and write nothing.
    const int row = min(turn + warp, p.batch - 1);
    RealTile<kParts> x[kTiles][2];
    RowScale scale;
    {
      float values[4 * kTiles][4];
      load_input<T>(p, input, row, [](int i) { return (i % 2 + i / 2 * 8) * kRadix; }, values);
      scale = RowScale::of(largest_of(values));
#pragma unroll
      for (int k = 0; k < kTiles; ++k) scaled_tiles<kParts>(values, k, scale.forward, x[k]);
    }
    float y[kTiles][4][4] = {};
#pragma unroll(kParts == 1 ? kTiles : 1)
    for (int m = 0; m < kTiles; ++m) {
      ComplexSums sums[4] = {};
#pragma unroll
      for (int k = 0; k < kTiles; ++k) {
        ComplexTile<2> dft;
        reader.first(0, m, k, dft);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          accumulate<2, kParts>(sums[j].re, dft.re, x[k][j / 2], j % 2);
          accumulate<2, kParts>(sums[j].im, dft.im, x[k][j / 2], j % 2);
        }
      }
      ComplexTile<kParts> columns[kTiles];
      convolve_columns<kRadix, kParts>(source, m, sums, columns);
#pragma unroll
      for (int o = 0; o < kTiles; ++o) {
        ComplexTile<kParts> dft;
        reader.transposed(0, m, o, dft);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          accumulate<kParts, kParts>(y[o][j], dft.re, columns[j / 2].re, j % 2);
          accumulate<kParts, kParts>(y[o][j], dft.im, columns[j / 2].im, j % 2);
        }
      }
    }
    // Rows 8 i + lane / 4, columns 8 (lane % 4) + ...
    float values[4 * kTiles][4];
#pragma unroll
    for (int i = 0; i < 16 * kTiles; ++i)
      values[i / 4][i % 4] = y[i / 16][i % 4][i / 8 % 2 * 2 + i / 4 % 2];
    if (turn + warp < p.batch) {
      store_results<T>(
          p, output, row, channel_scale * scale.inverse,
          [](int i) { return i / 2 * 8 * kRadix + i % 2 * 4; }, values);
    }
  }
}

// ---- Several blocks of points

// Matrices and spectrum of the blocks of a warp: blocks warp, warp + kWarps, ...
template <class P, int kParts>
class BlockSource {
  using Tables = ChainTables<P>;
  static constexpr int kWarps = ChainShape<P, kParts>::kWarps;

 public:
  // tables: in global memory; matrices: an address of shared memory.
  MONARCH_DEVICE BlockSource(const float* tables, uint32_t matrices, const float4* spectrum,
                             int warp, int lane)
      : reader_(matrices + warp * 2 * Tables::kMatrixBytes, lane),
        spectrum_(spectrum),
        first_(device::opaque(static_cast<uint32_t>(warp * (P::kBlock / 2) + lane))) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      twiddles_[i] = device::load_readonly(reinterpret_cast<const float4*>(tables) + i * 32 + lane);
  }
  MONARCH_DEVICE void begin(int number) { number_ = number * kWarps; }

  // The DFT over n1, as first operand and transposed as first operand.
  MONARCH_DEVICE void first(ComplexTile<kParts>& to) const { reader_.first(matrix(0), 0, 0, to); }
  MONARCH_DEVICE void transposed(ComplexTile<kParts>& to) const {
    reader_.transposed(matrix(0), 0, 0, to);
  }
  // Twiddles without the block's root are symmetric.
  MONARCH_DEVICE float4 twiddle(int, int j, int half) const { return twiddles_[2 * j + half]; }
  MONARCH_DEVICE float4 inverse_twiddle(int, int, int half, int side) const {
    return twiddles_[2 * side + half];
  }
  MONARCH_DEVICE float4 spectrum(int, int j, int half) const {
    return device::load_shared(spectrum_ + first_ +
                               (number_ * (P::kBlock / 2) + j * 64 + half * 32));
  }
  MONARCH_DEVICE void forward(int, int, ComplexTile<kParts>& to) const {
    reader_.second(matrix(1), 0, 0, to);
  }
  MONARCH_DEVICE void inverse(int, int, ComplexTile<kParts>& to) const {
    reader_.first(matrix(1), 0, 0, to);
  }

 private:
  MONARCH_DEVICE int matrix(int which) const {
    return (2 * number_ + which) * Tables::kMatrixBytes;
  }

  MatrixReader<P::kRadix, Tables::kPartBytes> reader_;
  const float4* spectrum_;
  uint32_t first_;
  int number_ = 0;
  float4 twiddles_[4];
};

// Where the blocks of a row lie between the stages: a plane of real parts and one of imaginary
// parts, for each part of a number; in each plane, a block after the other, 16 rows of 16 numbers
// in the order of ChainOrder. Chunks of 8 numbers are exchanged so that all patterns of access are
// free of bank conflicts: 8 neighbouring rows of a block, 8 neighbouring blocks, and 4 blocks by 2
// rows.
template <class P, int kParts>
class Exchange {
 public:
  MONARCH_DEVICE Exchange(unsigned char* planes, int warp, int lane) : planes_(planes) {
    const uint32_t address = device::shared_address(planes);
    write_columns_ = device::opaque(lane % 2 * 8 + offset(lane / 4, 2 * warp + lane % 4 / 2, 0));
    read_block_ = device::opaque(address + offset(warp, lane % 16, lane / 16));
    write_block_ = device::opaque(lane % 4 * 4 + offset(warp, lane / 4, 0));
    // Of 8 blocks, a second operand has the real parts and, as its lower half, the imaginary ones.
    read_columns_ =
        device::opaque(address + (P::kOuter == 8 ? offset(lane % 8, 2 * warp, lane / 16) +
                                                       lane / 8 % 2 * kPlaneBytes
                                                 : offset(lane % 16, 2 * warp, lane / 16)));
  }

  // Of columns, a warp has 32, from 32 warp on: two rows of every block. Tile register i: of block
  // lane / 4 + `block`, a multiple of 8, columns 8 (lane % 4) + 4 (i % 2) + i / 2 * 2, and the
  // next.
  MONARCH_DEVICE void put_columns(int block, const ComplexTile<kParts>& tile) const {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      unsigned char* at = planes_ + (write_columns_ ^ side * kHalf) + block * kBlockBytes;
#pragma unroll
      for (int part = 0; part < kParts; ++part, at += kPartBytes) {
        device::store_shared(reinterpret_cast<uint2*>(at),
                             make_uint2(tile.re[part][2 * side], tile.re[part][2 * side + 1]));
        device::store_shared(reinterpret_cast<uint2*>(at + kPlaneBytes),
                             make_uint2(tile.im[part][2 * side], tile.im[part][2 * side + 1]));
      }
    }
  }
  // Row `row` of the two, of 16 blocks from `block` on, as second operand.
  MONARCH_DEVICE void get_columns(int block, int row, ComplexTile<kParts>& to) const {
    read((read_columns_ ^ row * kRow) + block * kBlockBytes, to);
  }
  MONARCH_DEVICE void get_columns(int row, RealTile<kParts>& to) const {
#pragma unroll
    for (int part = 0; part < kParts; ++part)
      device::load_matrix_x4_transposed(to[part], (read_columns_ ^ row * kRow) + part * kPartBytes);
  }
  // Of blocks, a warp has warp + `block`, multiples of 8. As second operand; and tile register i:
  // rows lane / 4 + i / 2 * 8, columns 8 (i % 2) + 2 (lane % 4) and the next.
  MONARCH_DEVICE void get_block(int block, ComplexTile<kParts>& to) const {
    read(read_block_ + block * kBlockBytes, to);
  }
  MONARCH_DEVICE void put_block(int block, const ComplexTile<kParts>& tile) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      unsigned char* at =
          planes_ + (write_block_ ^ i % 2 * kHalf) + block * kBlockBytes + i / 2 * 8 * kRow;
#pragma unroll
      for (int part = 0; part < kParts; ++part, at += kPartBytes) {
        device::store_shared(reinterpret_cast<uint32_t*>(at), tile.re[part][i]);
        device::store_shared(reinterpret_cast<uint32_t*>(at + kPlaneBytes), tile.im[part][i]);
      }
    }
  }

 private:
  static constexpr int kPlaneBytes = P::kSize * 2, kPartBytes = 2 * kPlaneBytes;
  static constexpr int kBlockBytes = P::kBlock * 2;
  static constexpr uint32_t kHalf = 16, kRow = 32;  // bytes of half a row, and of a row

  MONARCH_DEVICE static void read(uint32_t address, ComplexTile<kParts>& to) {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      device::load_matrix_x4_transposed(to.re[part], address + part * kPartBytes);
      device::load_matrix_x4_transposed(to.im[part], address + part * kPartBytes + kPlaneBytes);
    }
  }

  MONARCH_DEVICE static int offset(int block, int row, int half) {
    const int of_block = block % 2 * 64 + block / 2 % 2 * 16 + block / 4 % 2 * 32;
    return block * kBlockBytes + (((2 * row + half) ^ (row / 4 % 2)) * 16 ^ of_block);
  }

  // Addresses of this lane in each pattern: the others differ by constants.
  unsigned char* planes_;
  uint32_t write_columns_, read_block_, write_block_, read_columns_;
};

// From the row's columns to the blocks: the outer DFT of 32 columns, on real numbers.
template <class P, int kParts, class Reader>
MONARCH_DEVICE void split_into_eight(const Reader& reader, const RealTile<kParts> (&x)[2],
                                     const Exchange<P, kParts>& exchange) {
  RealTile<1> dft;
  reader.first(0, dft);
  float sums[4][4] = {};  // of each, two real and two imaginary parts
#pragma unroll
  for (int j = 0; j < 4; ++j) accumulate<1, kParts>(sums[j], dft, x[j / 2], j % 2);
  ComplexTile<kParts> out;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int j = i / 2 * 2, e = i % 2;
    put<kParts>(make_float2(sums[j][e], sums[j][2 + e]),
                make_float2(sums[j + 1][e], sums[j + 1][2 + e]), i, out);
  }
  exchange.put_columns(0, out);
}

template <class P, int kParts, class Reader>
MONARCH_DEVICE void split_into_blocks(const Reader& reader,
                                      const RealTile<kParts> (&x)[P::kOuter / 16][2],
                                      const Exchange<P, kParts>& exchange) {
  constexpr int kTiles = P::kOuter / 16;
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
    ComplexSums sums[4] = {};
#pragma unroll
    for (int k = 0; k < kTiles; ++k) {
      ComplexTile<2> dft;
      reader.first(0, m, k, dft);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        accumulate<2, kParts>(sums[j].re, dft.re, x[k][j / 2], j % 2);
        accumulate<2, kParts>(sums[j].im, dft.im, x[k][j / 2], j % 2);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      ComplexTile<kParts> out;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int j = i / 2 * 2, e = 2 * half + i % 2;
        put<kParts>(make_float2(sums[j].re[e], sums[j].im[e]),
                    make_float2(sums[j + 1].re[e], sums[j + 1].im[e]), i, out);
      }
      exchange.put_columns(16 * m + 8 * half, out);
    }
  }
}

// A block, in place.
template <class P, int kParts>
MONARCH_DEVICE void convolve_block(const BlockSource<P, kParts>& source, int block,
                                   const Exchange<P, kParts>& exchange) {
  ComplexTile<kParts> tile, columns[1], dft;
  RealTile<kParts> minus;
  exchange.get_block(block, tile);
  ComplexSums sums[2] = {}, y[2] = {};
  source.first(dft);
  negate<kParts>(dft.im, minus);
#pragma unroll
  for (int half = 0; half < 2; ++half)
    accumulate<kParts, kParts>(sums[half], dft, minus, tile, half);
  convolve_columns<P::kRadix, kParts>(source, 0, sums, columns);
  source.transposed(dft);
  negate<kParts>(columns[0].re, minus);
#pragma unroll
  for (int half = 0; half < 2; ++half)
    accumulate_conjugate<kParts, kParts>(y[half], dft, columns[0], minus, half);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int half = i % 2, e = i / 2 * 2;
    put<kParts>(make_float2(y[half].re[e], y[half].im[e]),
                make_float2(y[half].re[e + 1], y[half].im[e + 1]), i, tile);
  }
  device::sync_warp();  // all lanes have read the block
  exchange.put_block(block, tile);
}

// From the blocks to 32 columns of the row, real parts: results[(2 m + half) 2 + pair] are four
// neighbours 4 (lane % 4) ... of the columns 16 pair ..., of row 16 m + 8 half + lane / 4.
template <class P, int kParts, class Reader>
MONARCH_DEVICE void join_blocks(const Reader& reader, const Exchange<P, kParts>& exchange,
                                float (&results)[P::kOuter / 4][4]) {
  constexpr int kTiles = P::kOuter / 16;
#pragma unroll
  for (int pair = 0; pair < 2; ++pair) {
    ComplexTile<kParts> tile[kTiles];
#pragma unroll
    for (int k = 0; k < kTiles; ++k) exchange.get_columns(16 * k, pair, tile[k]);
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      float y[2][4] = {};
#pragma unroll
      for (int k = 0; k < kTiles; ++k) {
        ComplexTile<kParts> dft;
        reader.transposed(0, k, m, dft);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          accumulate<kParts, kParts>(y[half], dft.re, tile[k].re, half);
          accumulate<kParts, kParts>(y[half], dft.im, tile[k].im, half);
        }
      }
#pragma unroll
      for (int i = 0; i < 8; ++i)
        results[(2 * m + i / 4) * 2 + pair][i % 4] = y[i % 4 / 2][i / 4 * 2 + i % 2];
    }
  }
}

template <class P, int kParts, class Reader>
MONARCH_DEVICE void join_eight(const Reader& reader, const Exchange<P, kParts>& exchange,
                               float (&results)[2][4]) {
  RealTile<1> dft;
  reader.first(plane_bytes(16), dft);
#pragma unroll
  for (int pair = 0; pair < 2; ++pair) {
    RealTile<kParts> tile;
    exchange.get_columns(pair, tile);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float y[4] = {};
      accumulate<1, kParts>(y, dft, tile, half);
#pragma unroll
      for (int e = 0; e < 2; ++e)  // the lower rows are of the matrix's second parts
        results[pair][2 * half + e] = kParts == 1 ? y[e] : y[e] + y[2 + e];
    }
  }
}

// A row at a time; a warp has 32 columns, and blocks. Grid: channels * slices.
template <class P, class T, int kParts>
__global__ void __launch_bounds__(P::kThreads, ChainShape<P, kParts>::kBlocks)
    chain_block_kernel(ChainParams p) {
  using Shape = ChainShape<P, kParts>;
  using Tables = ChainTables<P>;
  constexpr int kOuter = P::kOuter, kBlock = P::kBlock, kWarps = Shape::kWarps;
  constexpr int kTiles = kOuter / 16, kFours = kOuter / 4;
  constexpr bool kEight = kOuter == 8;
  static_assert(P::kRadix == 16 && kWarps * 32 == kBlock && kOuter % kWarps == 0);
  MONARCH_DYNAMIC_SHARED(shared);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const auto channel = static_cast<int>(blockIdx.x / p.slices);
  const ChainSpectrum<P> spectrum(p.spectrum, p.channels);
  auto* values = reinterpret_cast<float4*>(shared + Shape::kTableBytes);
  unsigned char* planes = shared + Shape::kTableBytes + Shape::kSpectrumBytes;
  auto* largest = reinterpret_cast<float*>(planes + Shape::kExchangeBytes);
  copy_to_shared(spectrum.tables + Shape::kTableBegin / 4, shared, Shape::kTableBytes, P::kThreads);
  copy_spectrum(spectrum.values + int64_t{channel} * (P::kSize / 2), values, P::kSize / 2,
                p.conjugate, P::kThreads);
  const float channel_scale = spectrum.scales[channel];
  const MatrixReader<kEight ? 16 : kOuter, Tables::kFirstBytes> reader(
      device::shared_address(shared), lane);
  const Exchange<P, kParts> exchange(planes, warp, lane);
  BlockSource<P, kParts> source(spectrum.tables,
                                device::shared_address(shared + 2 * Tables::kFirstBytes), values,
                                warp, lane);
  // One lane of each warp notes the largest value.
  const uint32_t note = device::opaque(static_cast<uint32_t>(lane == 0 ? warp : kWarps));
  const ChainInput<T> input(p, channel, warp * 32 + lane / 4 * 4 + lane % 4 * 2 * kBlock);
  const ChainOutput<T> output(p, channel, lane / 4 * kBlock + warp * 32 + lane % 4 * 4);

#pragma unroll 1
  for (int row = static_cast<int>(blockIdx.x % p.slices); row < p.batch; row += p.slices) {
    float data[kFours][4];
    load_input<T>(
        p, input, row, [](int i) { return (i / 4 * 16 + i % 2 + i / 2 % 2 * 8) * kBlock; }, data);
    const float most = largest_of(data);
    if (note < kWarps) largest[note] = most;
    // Of the last row, everyone has read its columns, too.
    device::sync_threads();
    float of_row = largest[0];
#pragma unroll
    for (int i = 1; i < kWarps; ++i) of_row = fmaxf(of_row, largest[i]);
    const RowScale scale = RowScale::of(of_row);
    if constexpr (kEight) {
      RealTile<kParts> x[2];
      scaled_tiles<kParts>(data, scale.forward, x);
      split_into_eight<P, kParts>(reader, x, exchange);
    } else {
      RealTile<kParts> x[kTiles][2];
#pragma unroll
      for (int k = 0; k < kTiles; ++k) scaled_tiles<kParts>(data, k, scale.forward, x[k]);
      split_into_blocks<P, kParts>(reader, x, exchange);
    }
    device::sync_threads();
#pragma unroll(kParts == 1 ? kOuter / kWarps : 1)
    for (int q = 0; q < kOuter / kWarps; ++q) {
      source.begin(q);
      convolve_block<P, kParts>(source, q * kWarps, exchange);
    }
    device::sync_threads();
    if constexpr (kEight) {
      join_eight<P, kParts>(reader, exchange, data);
    } else {
      join_blocks<P, kParts>(reader, exchange, data);
    }
    store_results<T>(
        p, output, row, channel_scale * scale.inverse,
        [](int i) { return i / 2 * 8 * kBlock + i % 2 * 16; }, data);
  }
}

}  // namespace monarch::cuda
