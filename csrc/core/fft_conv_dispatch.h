// Which kernels of fft_conv run on CUDA, and in which form they read the filter. Pure functions of
// the call and of two facts: what a GPU gives a block, and what was compiled.
#pragma once
#include <cstdint>

#include "core/chain.h"
#include "core/fft_conv.h"
#include "core/twiddle.h"

namespace monarch {

// kExact: float32 transforms. kToeplitz: the product with the filter's Toeplitz matrix. kChain:
// transforms as chains of matrix products. The last two use tensor cores and 16-bit activations.
enum class KernelKind : int { kExact = 0, kToeplitz = 1, kChain = 2 };

// Lengths that a family of kernels takes where a block has so much shared memory.
struct LengthRange {
  int64_t shortest = 1, longest = 0;
  int64_t shared_bytes = 0;

  constexpr bool has(int64_t length, int64_t available) const {
    return shortest <= length && length <= longest && shared_bytes <= available;
  }
};

struct TensorCoreKernels {
  LengthRange toeplitz, chain_fast, chain_high;
  LengthRange chain_long = {};  // kFast too, in more shared memory
};

// What was compiled.
inline constexpr TensorCoreKernels kTensorCoreKernels = {{1, toeplitz_longest(), 0},
                                                         {385, 4096, chain_shared_bytes(4096, 1)},
                                                         {385, 4096, chain_shared_bytes(4096, 2)},
                                                         {4097, 8192, chain_shared_bytes(8192, 1)}};

// bfloat16 and float16 always have the same kind: a spectrum is made before its activations are
// known.
constexpr KernelKind kernel_kind(int64_t length, Scalar scalar, Precision precision,
                                 int64_t shared_bytes,
                                 const TensorCoreKernels& compiled = kTensorCoreKernels) {
  if (scalar == Scalar::kFloat32 || precision == Precision::kExact) return KernelKind::kExact;
  if (compiled.toeplitz.has(length, shared_bytes)) return KernelKind::kToeplitz;
  const bool chain = precision == Precision::kFast
                         ? compiled.chain_fast.has(length, shared_bytes) ||
                               compiled.chain_long.has(length, shared_bytes)
                         : compiled.chain_high.has(length, shared_bytes);
  return chain ? KernelKind::kChain : KernelKind::kExact;
}

// The form of a spectrum made with `precision`.
constexpr KernelKind spectrum_kind(int64_t length, Precision precision, int64_t shared_bytes) {
  return kernel_kind(length, Scalar::kBFloat16, precision, shared_bytes);
}

// ---- Sizes of spectra. A spectrum has no header that the host could read without waiting for the
// GPU: its size tells its form. Modulo 4 it is the kind, so that no two kinds have the same.

constexpr int64_t with_kind(int64_t floats, KernelKind kind) {
  return (floats + 3) / 4 * 4 + static_cast<int64_t>(kind);
}

// 0 if there is no transform for the length with so little shared memory.
constexpr int64_t cuda_filter_floats(int64_t channels, int64_t length, Precision precision,
                                     int64_t shared_bytes) {
  switch (spectrum_kind(length, precision, shared_bytes)) {
    case KernelKind::kToeplitz:  // a word for each diagonal, and one more (cuda/toeplitz.cuh)
      return with_kind(2 * channels * toeplitz_size(length), KernelKind::kToeplitz);
    case KernelKind::kChain:
      return with_kind(chain_spectrum_floats(channels, length), KernelKind::kChain);
    case KernelKind::kExact:
      break;
  }
  const TransformShape shape = cuda_transform(length, shared_bytes);
  if (shape.size == 0) return 0;
  return with_kind(cuda_spectrum_floats(channels, shape), KernelKind::kExact);
}

}  // namespace monarch
