// The plans of fft_conv on tensor cores (docs/math.md, section 10), and what their kernels keep in
// memory: tables, spectra, shared memory.
#pragma once
#include <cstdint>

#include "core/plan.h"

namespace monarch {

// Chains of tensor-core products, for 16-bit activations: an outer DFT (1: none) and, on each of
// its blocks, a pair of DFTs of one radix (docs/math.md, section 10).
template <int outer, int radix, int threads>
struct ChainPlan {
  static constexpr int kOuter = outer, kRadix = radix, kThreads = threads;
  static constexpr int kBlock = radix * radix, kSize = outer * kBlock;
};
using ChainPlans = PlanList<ChainPlan<1, 32, 128>, ChainPlan<8, 16, 256>, ChainPlan<16, 16, 256>,
                            ChainPlan<32, 16, 256>>;

// The smallest size of a plan that a length fits; 0 if there is none.
constexpr int64_t chain_size(int64_t length) {
  int64_t best = 0;
  for_each(ChainPlans{}, [&](auto plan) {
    constexpr int64_t kSize = decltype(plan)::kSize;
    if (kSize >= length && (best == 0 || kSize < best)) best = kSize;
  });
  return best;
}

// Bytes of a complex matrix: the real parts, then the imaginary ones.
constexpr int plane_bytes(int size) { return size * size * 2; }
constexpr int matrix_bytes(int size) { return 2 * plane_bytes(size); }

// ---- Tables. [twiddles][the matrix of the first stage, two parts][other matrices, first parts]
// [second parts]
template <class P>
struct ChainTables {
  static constexpr int kOuter = P::kOuter, kRadix = P::kRadix;
  static constexpr bool kSingle = kOuter == 1;  // one block: its first stage is the row's
  static constexpr int kFirst = kSingle ? kRadix : kOuter;
  // Of one block: the twiddles with its root, for both directions. Of several: without, for the
  // roots are in the matrices of each block, DFTs over n1 and over n2.
  static constexpr int kTwiddles = P::kBlock * (kSingle ? 2 : 1);
  static constexpr int kMatrices = kSingle ? 1 : 2 * kOuter;

  static constexpr int kTwiddleBytes = kTwiddles * 8;
  // Of a part. Of 8 x 8, the parts share one matrix of 16 x 16, and its transpose another.
  static constexpr int kFirstBytes = kFirst == 8 ? plane_bytes(16) : matrix_bytes(kFirst);
  static constexpr int kMatrixBytes = matrix_bytes(kRadix);
  static constexpr int kPartBytes = kMatrices * kMatrixBytes;
  static constexpr int kMatrixOffset = kTwiddleBytes + 2 * kFirstBytes;
  static constexpr int kBytes = kMatrixOffset + 2 * kPartBytes;
  static constexpr int bytes(int parts) { return kMatrixOffset + parts * kPartBytes; }
  static_assert(kTwiddleBytes % 128 == 0 && kFirstBytes % 128 == 0 && kMatrixBytes % 128 == 0);
};

template <class P, int kParts>
struct ChainShape {
  using Tables = ChainTables<P>;
  static constexpr int kThreads = P::kThreads, kWarps = kThreads / 32;
  static constexpr int kSpectrumBytes = P::kSize * 8;
  // Of one block of points, twiddles are read from shared memory; of several they are registers.
  static constexpr int kTableBegin = Tables::kSingle ? 0 : Tables::kTwiddleBytes;
  static constexpr int kTableBytes = Tables::bytes(kParts) - kTableBegin;
  static constexpr int kExchangeBytes = Tables::kSingle ? 0 : P::kSize * 4 * kParts;
  static constexpr int kLargestBytes = Tables::kSingle ? 0 : 128;
  static constexpr int kSharedBytes = kTableBytes + kSpectrumBytes + kExchangeBytes + kLargestBytes;
  // Thread blocks on a multiprocessor, for the registers that leaves a thread.
  static constexpr int kBlocks = Tables::kSingle ? 2 : (kParts == 1 && P::kSize <= 4096 ? 2 : 1);
};

// Size of a spectrum: tables, a scale for each channel, and two numbers a point.
constexpr int64_t chain_spectrum_floats(int64_t channels, int64_t length) {
  int64_t floats = 0;
  for_each(ChainPlans{}, [&](auto plan) {
    using P = decltype(plan);
    if (P::kSize == chain_size(length))
      floats = ChainTables<P>::kBytes / 4 + (channels + 3) / 4 * 4 + 2 * P::kSize * channels;
  });
  return floats;
}

// Shared memory of the kernel for a length, of operands of `parts` numbers of 16 bits.
constexpr int64_t chain_shared_bytes(int64_t length, int parts) {
  int64_t bytes = 0;
  for_each(ChainPlans{}, [&](auto plan) {
    using P = decltype(plan);
    if (P::kSize == chain_size(length))
      bytes = parts == 1 ? ChainShape<P, 1>::kSharedBytes : ChainShape<P, 2>::kSharedBytes;
  });
  return bytes;
}

}  // namespace monarch
