// mixer_conv: parameters of the kernels and their entry points. Pointers only; no torch, no
// allocation of results. Formulas: monarch_kernels/mixer_conv.py; passes: docs/math.md.
#pragma once
#include <cstdint>

#include "core/fft_conv.h"

namespace monarch {

constexpr int64_t kMaxMixerTaps = 8;

struct MixerConvOperands {
  int64_t batch = 0, channels = 0, length = 0;
  Scalar scalar = Scalar::kFloat32;
  Rows q;                         // (B, 3H, L): x1, x2 and v before the short filter
  const float* s = nullptr;       // (3H, taps), contiguous, or nullptr: no short filter
  const float* s_bias = nullptr;  // (3H,) or nullptr
  int64_t taps = 1;
  const float* spectrum = nullptr;
  // The residual branch; u.data == nullptr: none. u may have any strides.
  Rows u;
  int64_t u_sample_stride = 1;
  const float* residual_spectrum = nullptr;
  // Instead of a spectrum that is nullptr: each channel's is made in scratch, for each batch row.
  FilterSpectrumParams filter, residual_filter;
};

struct MixerConvParams : MixerConvOperands {
  void* z = nullptr;  // (B, H, L), contiguous
};

// Gradients of one filter, contiguous; nullptr where not wanted.
struct FilterGradients {
  float *dk = nullptr, *dk_rev = nullptr, *dskip = nullptr;  // (H, taps), (H, reverse_taps), (H,)
  int64_t taps = 0, reverse_taps = 0;

  bool wanted() const { return dk || dk_rev || dskip; }
};

struct MixerConvBackwardParams : MixerConvOperands {
  Rows dz;
  // Results, contiguous; nullptr where not wanted.
  void *dq = nullptr, *du = nullptr;        // (B, 3H, L), (B, H, L), scalar
  float *ds = nullptr, *ds_bias = nullptr;  // (3H, taps), (3H,)
  FilterGradients dfilter, dresidual_filter;
};

namespace cpu {

// As in core/fft_conv.h: items are independent, and results do not depend on how they are grouped.
int64_t mixer_conv_fwd_items(const MixerConvParams& params);
void mixer_conv_fwd(const MixerConvParams& params, int64_t begin, int64_t end);
int64_t mixer_conv_bwd_items(const MixerConvBackwardParams& params);
void mixer_conv_bwd(const MixerConvBackwardParams& params, int64_t begin, int64_t end);

}  // namespace cpu
}  // namespace monarch
