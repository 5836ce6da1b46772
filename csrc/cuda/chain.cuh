// Matrices in registers, and the part of a convolution that never leaves them: on a block of R x R
// points, twiddle, DFT, product with the spectrum, inverse DFT, twiddle. What a product leaves is
// the operand of the next one (docs/math.md, section 10). Matrices have up to two parts of 16 bits,
// a number and what is left of it; products of two second parts are left out.
#pragma once
#include "core/chain.h"
#include "cuda/dft.cuh"

namespace monarch::cuda {

// 16 x 8 sums of a product.
struct ComplexSums {
  float re[4], im[4];
};

// A 16 x 16 matrix as first operand, registers as device.cuh has them; or as second operand, where
// registers 2 half and 2 half + 1 are those of the columns 8 half ...
template <int kParts>
using RealTile = uint32_t[kParts][4];
template <int kParts>
struct ComplexTile {
  RealTile<kParts> re, im;
};

MONARCH_DEVICE uint32_t negated(uint32_t pair) { return pair ^ 0x80008000u; }
template <int kParts>
MONARCH_DEVICE void negate(const RealTile<kParts>& from, RealTile<kParts>& to) {
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
#pragma unroll
    for (int i = 0; i < 4; ++i) to[part][i] = negated(from[part][i]);
  }
}

// Register i of a tile from two numbers.
template <int kParts>
MONARCH_DEVICE void put(float low, float high, int i, RealTile<kParts>& to) {
  to[0][i] = device::pack_f16(low, high);
  if constexpr (kParts == 2) {
    const Float16 a{static_cast<uint16_t>(to[0][i])}, b{static_cast<uint16_t>(to[0][i] >> 16)};
    to[1][i] = device::pack_f16(low - device::to_float(a), high - device::to_float(b));
  }
}
template <int kParts>
MONARCH_DEVICE void put(float2 low, float2 high, int i, ComplexTile<kParts>& to) {
  put<kParts>(low.x, high.x, i, to.re);
  put<kParts>(low.y, high.y, i, to.im);
}

// sums += a b, of b the columns 8 half, 8 half + 1, ...
template <int kA, int kB>
MONARCH_DEVICE void accumulate(float (&sums)[4], const RealTile<kA>& a, const RealTile<kB>& b,
                               int half) {
#pragma unroll
  for (int i = 0; i < kA; ++i) {
#pragma unroll
    for (int j = 0; j < kB; ++j) {
      if (i + j == 2) continue;
      const uint32_t columns[2] = {b[j][2 * half], b[j][2 * half + 1]};
      device::multiply_accumulate_f16(sums, a[i], columns);
    }
  }
}

// sums += a b and sums += conj(a) b. The negative of one operand is made once for all its products.
template <int kA, int kB>
MONARCH_DEVICE void accumulate(ComplexSums& sums, const ComplexTile<kA>& a,
                               const RealTile<kA>& minus_im, const ComplexTile<kB>& b, int half) {
  accumulate<kA, kB>(sums.re, a.re, b.re, half);
  accumulate<kA, kB>(sums.im, a.im, b.re, half);
  accumulate<kA, kB>(sums.re, minus_im, b.im, half);
  accumulate<kA, kB>(sums.im, a.re, b.im, half);
}
template <int kA, int kB>
MONARCH_DEVICE void accumulate_conjugate(ComplexSums& sums, const ComplexTile<kA>& a,
                                         const ComplexTile<kB>& b, const RealTile<kB>& minus_re,
                                         int half) {
  accumulate<kA, kB>(sums.re, a.re, b.re, half);
  accumulate<kA, kB>(sums.im, a.im, minus_re, half);
  accumulate<kA, kB>(sums.re, a.im, b.im, half);
  accumulate<kA, kB>(sums.im, a.re, b.im, half);
}

// ---- Matrices in shared memory: kSize columns, in chunks of 8 that are exchanged within a row so
// that the same chunk of 8 neighbouring rows is in 8 different groups of banks.
template <int kSize>
MONARCH_DEVICE constexpr int matrix_index(int row, int column) {
  constexpr int kChunks = kSize / 8;
  return row * kSize + ((column / 8) ^ (row * kChunks / 8 & (kChunks - 1))) * 8 + column % 8;
}

// Reads 16 x 16 tiles of the complex matrices that lie from an address of shared memory on, a
// multiple of 128. Parts of a number are kPartBytes apart.
template <int kSize, int kPartBytes>
class MatrixReader {
 public:
  MONARCH_DEVICE MatrixReader(uint32_t address, int lane)
      : plain_(device::opaque(address + 2 * matrix_index<kSize>(lane % 16, lane / 16 * 8))),
        transposed_(device::opaque(
            address + 2 * matrix_index<kSize>(lane % 8 + lane / 16 * 8, lane / 8 % 2 * 8))) {}

  // Rows 16 row ... and columns 16 column ... of the matrix `offset` bytes on: as first operand, as
  // second operand, or the transpose as first operand.
  template <int kParts>
  MONARCH_DEVICE void first(int offset, int row, int column, ComplexTile<kParts>& to) const {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const uint32_t at = (plain_ ^ column * 32) + part * kPartBytes + row * 32 * kSize + offset;
      device::load_matrix_x4(to.re[part], at);
      device::load_matrix_x4(to.im[part], at + plane_bytes(kSize));
    }
  }
  MONARCH_DEVICE void first(int offset, RealTile<1>& to) const {
    device::load_matrix_x4(to[0], plain_ + offset);
  }
  template <int kParts>
  MONARCH_DEVICE void second(int offset, int row, int column, ComplexTile<kParts>& to) const {
    read_transposed(plain_, offset, row, column, to);
  }
  template <int kParts>
  MONARCH_DEVICE void transposed(int offset, int row, int column, ComplexTile<kParts>& to) const {
    read_transposed(transposed_, offset, row, column, to);
  }

 private:
  template <int kParts>
  MONARCH_DEVICE static void read_transposed(uint32_t address, int offset, int row, int column,
                                             ComplexTile<kParts>& to) {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const uint32_t at = (address ^ column * 32) + part * kPartBytes + row * 32 * kSize + offset;
      device::load_matrix_x4_transposed(to.re[part], at);
      device::load_matrix_x4_transposed(to.im[part], at + plane_bytes(kSize));
    }
  }

  uint32_t plain_, transposed_;
};

// ---- The middle of a convolution

// Rows 16 m ... of a block of R x R points, sums[column / 8]: from the result of the DFT over n1
// (rows k1, columns n2) to the operand of the inverse DFT over k1 (contracted rows k1), tile by
// tile of 16 columns n2. Source: twiddle(m, j, half) for k1 rows 8 half ... and n2 columns 8 j ...,
// two numbers; inverse_twiddle(m, j, half, side) for n2 rows 16 j + 8 half ... and k1 columns
// 8 side ...; spectrum(m, j, half); forward(row, column, tile) and inverse(row, column, tile), the
// DFT over n2 as second operand and, transposed, as first one.
template <int kRadix, int kParts, class Source>
MONARCH_DEVICE void convolve_columns(const Source& source, int m,
                                     const ComplexSums (&sums)[kRadix / 8],
                                     ComplexTile<kParts> (&result)[kRadix / 16]) {
  constexpr int kTiles = kRadix / 16;
  ComplexTile<kParts> x[kTiles];
  RealTile<kParts> minus[kTiles];
  const auto times = [](const ComplexSums& s, int half, float4 w, int i, auto& to) {
    put<kParts>(
        multiply(make_float2(s.re[2 * half], s.im[2 * half]), make_float2(w.x, w.y)),
        multiply(make_float2(s.re[2 * half + 1], s.im[2 * half + 1]), make_float2(w.z, w.w)), i,
        to);
  };
#pragma unroll
  for (int j = 0; j < 2 * kTiles; ++j) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
      times(sums[j], half, source.twiddle(m, j, half), j % 2 * 2 + half, x[j / 2]);
  }
#pragma unroll
  for (int k = 0; k < kTiles; ++k) negate<kParts>(x[k].im, minus[k]);
  ComplexSums frequencies[2 * kTiles] = {};
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int k = 0; k < kTiles; ++k) {
      ComplexTile<kParts> dft;
      source.forward(k, n, dft);
#pragma unroll
      for (int half = 0; half < 2; ++half)
        accumulate<kParts, kParts>(frequencies[2 * n + half], x[k], minus[k], dft, half);
    }
  }
#pragma unroll
  for (int j = 0; j < 2 * kTiles; ++j) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
      times(frequencies[j], half, source.spectrum(m, j, half), 2 * half + j % 2, x[j / 2]);
  }
#pragma unroll
  for (int k = 0; k < kTiles; ++k) negate<kParts>(x[k].re, minus[k]);
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    ComplexSums columns[2] = {};
#pragma unroll
    for (int k = 0; k < kTiles; ++k) {
      ComplexTile<kParts> dft;
      source.inverse(j, k, dft);
#pragma unroll
      for (int side = 0; side < 2; ++side)
        accumulate_conjugate<kParts, kParts>(columns[side], dft, x[k], minus[k], side);
    }
#pragma unroll
    for (int side = 0; side < 2; ++side) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const ComplexSums& s = columns[side];
        const float4 w = source.inverse_twiddle(m, j, half, side);
        put<kParts>(
            multiply_conjugate(make_float2(s.re[2 * half], s.im[2 * half]), make_float2(w.x, w.y)),
            multiply_conjugate(make_float2(s.re[2 * half + 1], s.im[2 * half + 1]),
                               make_float2(w.z, w.w)),
            2 * half + side, result[j]);
      }
    }
  }
}

}  // namespace monarch::cuda
