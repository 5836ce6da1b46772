// short_conv on CUDA: entry points for the binding, for mixer_conv and for the emulated tests.
// Device pointers and a stream; nothing is allocated and nothing waits, so every call can be
// captured in a CUDA graph.
#pragma once
#include <cstdint>

#include "core/short_conv.h"
#include "cuda/launch.h"

namespace monarch::cuda {

// Bytes of scratch memory (256-byte aligned, contents irrelevant) that a backward needs; may be 0.
int64_t short_conv_bwd_scratch(const ShortConvBackwardParams& params, const DeviceLimits& device);

// Enqueue the kernels on launch.stream. Throw std::runtime_error, naming kernel, shape and device,
// if a launch fails. Results do not depend on the order in which blocks run.
void short_conv_fwd(const ShortConvParams& params, const Launch& launch);
void short_conv_bwd(const ShortConvBackwardParams& params, void* scratch, const Launch& launch);

// ---- Their parts, of which strides may differ, and storage types: one of x and y is float32 or
// both are the same, and d is float32 or as x.

struct SampleArray {
  const void* data = nullptr;  // results: written all the same
  Scalar scalar = Scalar::kFloat32;
  int64_t batch_stride = 0, channel_stride = 0, sample_stride = 1;  // in elements
  int64_t part_stride = 0;                                          // between parts (ShortRows)
};

struct ShortRows {
  const char* operation;  // for messages
  int64_t batch, channels, length;
  const float *s, *s_bias;  // (channels, taps), (channels,) or nullptr
  int64_t taps, left;
  bool channels_last;  // neighbouring threads take neighbouring channels, not samples
  // Channels come in parts, each with a stride of its own; rows of s between the parts' first.
  int64_t parts = 1, filter_part_stride = 0;
};

// y[t] = s_bias + sum_j s[j] x[t - left + j], then SiLU if wanted; reversed: the adjoint of this,
// y[t] = sum_j s[j] x[t + left - j].
struct ShortForm {
  bool reversed = false, silu = false;
};
void filter_rows(const ShortRows& rows, const SampleArray& x, const SampleArray& y, ShortForm form,
                 const Launch& launch);

// ds[j] = sum_bt d[t] x[t - left + j] and ds_bias = sum_bt d[t], each if it is there, by way of
// `partials`.
int64_t short_partial_floats(const ShortRows& rows);
void short_filter_gradient(const ShortRows& rows, const SampleArray& x, const SampleArray& d,
                           float* partials, float* ds, float* ds_bias, const Launch& launch);

}  // namespace monarch::cuda
