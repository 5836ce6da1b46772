// fft_conv on CUDA as a product with the filter's Toeplitz matrix: the same entry points as those
// of fft_conv.h, for calls whose kernel_kind is kToeplitz.
#pragma once
#include <cstdint>

#include "core/fft_conv.h"
#include "cuda/launch.h"

namespace monarch::cuda::toeplitz {

int64_t fft_conv_bwd_scratch(const FftConvBackwardParams& params, const DeviceLimits& device);

void filter_spectrum(const FilterSpectrumParams& params, const Launch& launch);
void fft_conv_fwd(const FftConvParams& params, const Launch& launch);
void fft_conv_bwd(const FftConvBackwardParams& params, void* scratch, const Launch& launch);

}  // namespace monarch::cuda::toeplitz
