// fft_conv on tensor cores as chains of products: what the entry points of fft_conv.h call where
// core/fft_conv_dispatch.h says so. Same contract.
#pragma once
#include <cstdint>

#include "core/fft_conv.h"
#include "cuda/launch.h"

namespace monarch::cuda::chain {

int64_t filter_spectrum_scratch(const FilterSpectrumParams& params, const DeviceLimits& device);
void filter_spectrum(const FilterSpectrumParams& params, void* scratch, const Launch& launch);
void fft_conv_fwd(const FftConvParams& params, const Launch& launch);

// The gradients of filters are sums by the float32 kernels.
int64_t fft_conv_bwd_scratch(const FftConvBackwardParams& params, const DeviceLimits& device);
void fft_conv_bwd(const FftConvBackwardParams& params, void* scratch, const Launch& launch);

}  // namespace monarch::cuda::chain
