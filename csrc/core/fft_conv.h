// fft_conv: parameters of the kernels and their entry points. Pointers only; no torch, no
// allocation of results. Formulas: monarch_kernels/fft_conv.py; derivation: docs/math.md.
#pragma once
#include <cstdint>

#include "core/scalar.h"

namespace monarch {

// The least accuracy asked for (docs/numerics.md). The numbers are those of the registered
// operators. The CPU's kernels are exact always.
enum class Precision : int { kExact = 0, kHigh = 1, kFast = 2 };

// A (B, H, L) array whose rows are contiguous; strides in elements. data == nullptr: absent.
struct Rows {
  const void* data = nullptr;
  int64_t batch_stride = 0, channel_stride = 0;
};

struct FilterSpectrumParams {
  int64_t channels = 0, length = 0;
  const float* k = nullptr;  // (H, taps), contiguous
  int64_t taps = 0;
  const float* k_rev = nullptr;  // (H, reverse_taps), contiguous, or nullptr
  int64_t reverse_taps = 0;
  const float* skip = nullptr;  // (H,) or nullptr
  bool circular = false;
  float* spectrum = nullptr;  // out: cpu::spectrum_floats(channels, length)
  Precision precision = Precision::kExact;
};

struct FftConvParams {
  int64_t batch = 0, channels = 0, length = 0;
  Scalar scalar = Scalar::kFloat32;
  Rows u, pregate, postgate;
  const float* spectrum = nullptr;
  void* y = nullptr;  // (B, H, L), contiguous
  Precision precision = Precision::kExact;
};

struct FftConvBackwardParams {
  int64_t batch = 0, channels = 0, length = 0;
  Scalar scalar = Scalar::kFloat32;
  Rows dy, u, pregate, postgate;
  const float* spectrum = nullptr;
  // Results, contiguous; nullptr where not wanted.
  void *du = nullptr, *dpregate = nullptr, *dpostgate = nullptr;  // (B, H, L), scalar
  float *dk = nullptr, *dk_rev = nullptr, *dskip = nullptr;  // (H, taps), (H, reverse_taps), (H,)
  int64_t taps = 0, reverse_taps = 0;
  bool circular = false;
  Precision precision = Precision::kExact;
};

namespace cpu {

// Size of a spectrum. Its order depends on the vector width of the kernels in use: one made with
// another width must not be given to them.
int64_t spectrum_floats(int64_t channels, int64_t length);
int kernel_lanes();

// Each call does the items [begin, end) of 0 .. *_items(params) - 1 on the calling thread; items
// are independent, and the result does not depend on how they are grouped.
int64_t filter_spectrum_items(const FilterSpectrumParams& params);
void filter_spectrum(const FilterSpectrumParams& params, int64_t begin, int64_t end);
int64_t fft_conv_fwd_items(const FftConvParams& params);
void fft_conv_fwd(const FftConvParams& params, int64_t begin, int64_t end);
int64_t fft_conv_bwd_items(const FftConvBackwardParams& params);
void fft_conv_bwd(const FftConvBackwardParams& params, int64_t begin, int64_t end);

// Asks the kernel to back a large fresh result with huge pages: first touch is then several times
// cheaper. A hint; does nothing where unsupported.
void advise_huge_pages(void* data, int64_t bytes);

}  // namespace cpu
}  // namespace monarch
