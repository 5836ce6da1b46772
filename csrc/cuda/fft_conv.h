// fft_conv on CUDA: entry points for the binding and for the emulated tests. Device pointers and a
// stream; nothing is allocated and nothing waits, so every call can be captured in a CUDA graph.
#pragma once
#include <cstdint>

#include "core/fft_conv.h"
#include "cuda/launch.h"

namespace monarch::cuda {

// Size of a spectrum, whose form depends on the kernels that run (core/fft_conv_dispatch.h): exact,
// the twiddles of its transform, then 2 numbers for each channel and point. One made for (channels,
// length, precision) serves every batch size, and every GPU that uses the same kernels; a spectrum
// for others has another size.
int64_t spectrum_floats(int64_t channels, int64_t length, Precision precision,
                        const DeviceLimits& device);

// Bytes of scratch memory (256-byte aligned, contents irrelevant) that a call needs; may be 0.
int64_t filter_spectrum_scratch(const FilterSpectrumParams& params, const DeviceLimits& device);
int64_t fft_conv_fwd_scratch(const FftConvParams& params, const DeviceLimits& device);
int64_t fft_conv_bwd_scratch(const FftConvBackwardParams& params, const DeviceLimits& device);

// Enqueue the kernels on launch.stream. Throw std::runtime_error, naming kernel, shape and device,
// if a launch fails. Results do not depend on the order in which blocks run.
void filter_spectrum(const FilterSpectrumParams& params, void* scratch, const Launch& launch);
void fft_conv_fwd(const FftConvParams& params, void* scratch, const Launch& launch);
void fft_conv_bwd(const FftConvBackwardParams& params, void* scratch, const Launch& launch);

}  // namespace monarch::cuda
