// mixer_conv on CUDA: entry points for the binding and for the emulated tests. Device pointers and
// a stream; nothing is allocated and nothing waits, so every call can be captured in a CUDA graph.
#pragma once
#include <cstdint>

#include "core/mixer_conv.h"
#include "cuda/launch.h"

namespace monarch::cuda {

// Both filters come as spectra that filter_spectrum (fft_conv.h) made; the operands' `filter` and
// `residual_filter` are not used; without a residual spectrum there is no residual branch. A
// backward reads u by rows only: u_sample_stride must be 1.

// Bytes of scratch memory (256-byte aligned, contents irrelevant) that a call needs; may be 0.
int64_t mixer_conv_fwd_scratch(const MixerConvParams& params, const DeviceLimits& device);
int64_t mixer_conv_bwd_scratch(const MixerConvBackwardParams& params, const DeviceLimits& device);

// Enqueue the kernels on launch.stream. Throw std::runtime_error, naming kernel, shape and device,
// if a launch fails. Results do not depend on the order in which blocks run.
void mixer_conv_fwd(const MixerConvParams& params, void* scratch, const Launch& launch);
void mixer_conv_bwd(const MixerConvBackwardParams& params, void* scratch, const Launch& launch);

}  // namespace monarch::cuda
