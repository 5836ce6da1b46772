// What a chain needs beside its input: DFT matrices and twiddles, which depend on the plan only,
// and the filters' spectra in the order in which products leave frequencies in registers.
#pragma once
#include "core/chain.h"
#include "cuda/chain.cuh"
#include "cuda/twiddle.cuh"

namespace monarch::cuda {

// ---- Orders. Products leave row and column `position` of a block at k1 = point(position) and so
// on: the order that lets a lane load and store neighbouring samples.
template <class P>
struct ChainOrder {
  MONARCH_DEVICE static constexpr int point(int position) {
    return P::kOuter == 1 ? position % 8 * (P::kRadix / 8) + position / 8
                          : position % 8 / 2 * 4 + position / 8 * 2 + position % 2;
  }
  MONARCH_DEVICE static constexpr int position(int point) {
    return P::kOuter == 1 ? point % (P::kRadix / 8) * 8 + point / (P::kRadix / 8)
                          : point / 4 * 2 + point / 2 % 2 * 8 + point % 2;
  }
  // A pair of neighbouring columns in an array of float4, by lanes: of position (row, column).
  MONARCH_DEVICE static constexpr int pair(int row, int column) {
    return (row / 16 * (P::kRadix / 8) + column / 8) * 64 + row / 8 % 2 * 32 + row % 8 * 4 +
           column % 8 / 2;
  }
};

// Where the parts of a chain's spectrum lie. scales: what a channel's results are multiplied by.
template <class P>
struct ChainSpectrum {
  const float *tables, *scales;
  const float4* values;  // kSize / 2 a channel

  MONARCH_DEVICE ChainSpectrum(const float* data, int64_t channels)
      : tables(data),
        scales(data + ChainTables<P>::kBytes / 4),
        values(reinterpret_cast<const float4*>(scales + (channels + 3) / 4 * 4)) {}
};

// 1 / sqrt(n) of the sizes of DFTs: stages keep the norm, so that nothing outgrows 16 bits.
constexpr double unitary(int n) {
  return n == 8 ? 0.35355339059327376 : n == 16 ? 0.25 : 0.17677669529663687;
}

MONARCH_DEVICE void write_parts(double value, Float16* at, int part_numbers) {
  const Float16 high = device::from_float<Float16>(static_cast<float>(value));
  at[0] = high;
  const double rest = value - static_cast<double>(device::to_float(high));
  at[part_numbers] = device::from_float<Float16>(static_cast<float>(rest));
}

// Entry (row, column) of the first matrix (number -1) or of one of the others, as a phase.
template <class P>
MONARCH_DEVICE Phase matrix_phase(int number, int row, int column) {
  using Order = ChainOrder<P>;
  constexpr int64_t kOuter = P::kOuter, kRadix = P::kRadix;
  if (number < 0) {
    const int64_t frequency = kOuter == 1 ? Order::point(row) : row;
    return {(4 * frequency + 1) * column, 4 * (kOuter == 1 ? kRadix : kOuter)};
  }
  if (kOuter == 1) return {int64_t{Order::point(row)} * Order::point(column), kRadix};
  const int64_t root = 1 + 4 * (number / 2);  // of 4 kOuter turns
  if (number % 2 == 0)
    return {(4 * kOuter * Order::point(row) + root) * column, 4 * kOuter * kRadix};
  return {(4 * kOuter * kRadix * Order::point(column) + root) * Order::point(row),
          4 * kOuter * kRadix * kRadix};
}

// An outer DFT of 8 x 8 as real matrices of 16 x 16, so that no product is half empty. Forward:
// real parts in the upper rows, imaginary ones below; second parts to the right, to be multiplied
// with the same operand again. Its transpose: real parts left, imaginary ones right; second parts
// below.
MONARCH_DEVICE void write_eight(Root root, int row, int column, unsigned char* matrices) {
  auto* forward = reinterpret_cast<Float16*>(matrices);
  Float16* inverse = forward + 16 * 16;
  for (int imaginary = 0; imaginary < 2; ++imaginary) {
    Float16 parts[2];
    write_parts((imaginary == 0 ? root.cosine : root.sine) * unitary(8), parts, 1);
    for (int part = 0; part < 2; ++part) {
      forward[matrix_index<16>(row + 8 * imaginary, column + 8 * part)] = parts[part];
      inverse[matrix_index<16>(column + 8 * part, row + 8 * imaginary)] = parts[part];
    }
  }
}

// One thread an entry: twiddles, then matrices.
template <class P>
__global__ void __launch_bounds__(256) chain_tables_kernel(float* tables) {
  using Tables = ChainTables<P>;
  using Order = ChainOrder<P>;
  constexpr int kFirst = Tables::kFirst, kRadix = P::kRadix;
  int entry = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  auto* bytes = reinterpret_cast<unsigned char*>(tables);
  if (entry < Tables::kTwiddles) {
    // The inverse direction has n2 in the rows.
    const int row = entry % P::kBlock / kRadix, column = entry % kRadix;
    const int64_t a = Order::point(row), b = Order::point(column);
    const bool inverse = entry >= P::kBlock;
    const int64_t frequency = inverse ? b : a, n = inverse ? a : b;
    const Phase phase = Tables::kSingle ? Phase{(4 * frequency + 1) * n, 4 * P::kBlock}
                                        : Phase{frequency * n, P::kBlock};
    auto* pairs = reinterpret_cast<float2*>(bytes) + (inverse ? P::kBlock : 0);
    pairs[2 * Order::pair(row, column) + column % 2] = as_complex(root_of_unity(phase));
    return;
  }
  entry -= Tables::kTwiddles;
  const auto write = [&](int number, int index, auto size, unsigned char* matrix, int part_bytes) {
    constexpr int kSize = decltype(size)::value;
    const int row = index / kSize, column = index % kSize;
    const Root root = root_of_unity(matrix_phase<P>(number, row, column));
    auto* re = reinterpret_cast<Float16*>(matrix) + matrix_index<kSize>(row, column);
    write_parts(root.cosine * unitary(kSize), re, part_bytes / 2);
    write_parts(root.sine * unitary(kSize), re + kSize * kSize, part_bytes / 2);
  };
  if (kFirst == 8 && entry < 64) {
    const Root root = root_of_unity(matrix_phase<P>(-1, entry / 8, entry % 8));
    return write_eight(root, entry / 8, entry % 8, bytes + Tables::kTwiddleBytes);
  }
  if (entry < kFirst * kFirst) {
    return write(-1, entry, std::integral_constant<int, kFirst>{}, bytes + Tables::kTwiddleBytes,
                 Tables::kFirstBytes);
  }
  entry -= kFirst * kFirst;
  const int number = entry / P::kBlock;
  if (number >= Tables::kMatrices) return;
  write(number, entry % P::kBlock, std::integral_constant<int, kRadix>{},
        bytes + Tables::kMatrixOffset + number * Tables::kMatrixBytes, Tables::kPartBytes);
}

// ---- Scales

// Powers of two that bring the largest magnitude of a row between 8 and 16, and back; of a row with
// an infinity, the way back is a NaN, as all its results are in torch. (A NaN makes them so
// itself.)
struct RowScale {
  float forward, inverse;

  MONARCH_DEVICE static RowScale of(float largest) {
    // Exponents with their bias: 2^(3 - (e - 127)), at most 2^126, so that the inverse is normal.
    const uint32_t exponent = min(257u - (device::float_as_bits(largest) >> 23), 253u);
    return {device::bits_as_float(exponent << 23),
            device::bits_as_float((254u - exponent) << 23) + largest * 0.0f};
  }
};

// Of magnitudes, which are in the order of their bits.
MONARCH_DEVICE float largest_of_warp(float magnitude) {
  return device::bits_as_float(device::reduce_max(device::float_as_bits(magnitude)));
}

// ---- Spectra

// From the order of the float32 kernels (PlanShape), with 1/S in it, to that of a chain, scaled so
// that the largest value is between 8 and 16. One block a channel.
template <class P>
__global__ void __launch_bounds__(256)
    chain_spectrum_kernel(const float4* from, PlanShape plan, float* scales, float4* to) {
  using Order = ChainOrder<P>;
  MONARCH_STATIC_SHARED(float, largest, 8);
  const int64_t channel = blockIdx.x;
  const auto thread = static_cast<int>(threadIdx.x);
  from += channel * (P::kSize / 2);
  auto* own = reinterpret_cast<float2*>(to + channel * (P::kSize / 2));
  float most = 0.0f;
  for (int i = thread; i < P::kSize / 2; i += 256) {
    const float4 pair = from[i];
    most = fmaxf(most, fmaxf(fabsf(pair.x) + fabsf(pair.y), fabsf(pair.z) + fabsf(pair.w)));
  }
  most = largest_of_warp(most);
  if (thread % 32 == 0) largest[thread / 32] = most;
  device::sync_threads();
  for (int i = 0; i < 8; ++i) most = fmaxf(most, largest[i]);
  const RowScale scale = RowScale::of(most);
  if (thread == 0) scales[channel] = scale.inverse * P::kSize;

  const int last = plan.stages - 1, blocks = plan.above(last);
  for (int i = thread; i < P::kSize / 2; i += 256) {
    const float4 pair = from[i];
    const int64_t low = plan.frequency(last, i % blocks);
    for (int half = 0; half < 2; ++half) {
      const int digit = residue(plan.radix[last], 2 * (i / blocks) + half);
      const auto frequency = static_cast<int>(low) + blocks * digit;
      const int block = frequency % P::kOuter, inner = frequency / P::kOuter;
      const int row = Order::position(inner % P::kRadix),
                column = Order::position(inner / P::kRadix);
      own[block * P::kBlock + 2 * Order::pair(row, column) + column % 2] =
          half == 0 ? make_float2(pair.x * scale.forward, pair.y * scale.forward)
                    : make_float2(pair.z * scale.forward, pair.w * scale.forward);
    }
  }
}

}  // namespace monarch::cuda
