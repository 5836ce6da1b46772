// short_conv: parameters of the kernels and their entry points. Pointers only; no torch, no
// allocation of results. Formulas: monarch_kernels/short_conv.py.
#pragma once
#include <cstdint>

#include "core/scalar.h"

namespace monarch {

// A (B, H, L) array with rows that are contiguous in L, or in H for `channels_last`; strides in
// elements, of the dimensions that are not contiguous.
struct ShortConvArray {
  const void* data = nullptr;
  int64_t batch_stride = 0;
  int64_t row_stride = 0;  // to the next channel, or for `channels_last` to the next sample
};

struct ShortConvParams {
  int64_t batch = 0, channels = 0, length = 0;
  Scalar scalar = Scalar::kFloat32;
  bool channels_last = false;
  ShortConvArray x;
  const float* s = nullptr;       // (H, taps), contiguous
  const float* s_bias = nullptr;  // (H,) or nullptr
  int64_t taps = 0;
  int64_t left = 0;  // taps before the present: c[t] = s_bias + sum_j s[j] x[t - left + j]
  bool silu = false;
  void* y = nullptr;  // contiguous
};

struct ShortConvBackwardParams : ShortConvParams {  // y is not used
  ShortConvArray dy;
  // Results, contiguous; nullptr where not wanted.
  void* dx = nullptr;                       // scalar
  float *ds = nullptr, *ds_bias = nullptr;  // (H, taps), (H,)
};

namespace cpu {

// As in core/fft_conv.h: items are independent, and results do not depend on how they are grouped.
int64_t short_conv_fwd_items(const ShortConvParams& params);
void short_conv_fwd(const ShortConvParams& params, int64_t begin, int64_t end);
int64_t short_conv_bwd_items(const ShortConvBackwardParams& params);
void short_conv_bwd(const ShortConvBackwardParams& params, int64_t begin, int64_t end);

}  // namespace cpu
}  // namespace monarch
