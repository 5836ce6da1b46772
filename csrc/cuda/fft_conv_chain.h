// fft_conv on tensor cores, for 16-bit activations: entry points for the binding and for the
// emulated tests, with the contract of fft_conv.h. Filters, spectra and sums are as there; a chain
// has spectra of its own form.
#pragma once
#include <cstdint>

#include "core/fft_conv.h"
#include "cuda/launch.h"

namespace monarch::cuda {

// kFast: operands of 16 bits. kHigh: of two parts.
enum class ChainPrecision { kFast, kHigh };

// Points of the transform that serves `length`; 0 if there is none on this device. A circular
// filter needs one that the float32 kernels would take, too (they transform it).
int64_t chain_size(int64_t length, bool circular, ChainPrecision precision,
                   const DeviceLimits& device);

// As their namesakes in fft_conv.h. One spectrum serves both precisions.
int64_t chain_spectrum_floats(int64_t channels, int64_t length, const DeviceLimits& device);
int64_t chain_spectrum_scratch(const FilterSpectrumParams& params, const DeviceLimits& device);
void chain_spectrum(const FilterSpectrumParams& params, void* scratch, const Launch& launch);
void chain_fwd(const FftConvParams& params, ChainPrecision precision, const Launch& launch);

// The gradients of filters are sums in float32 by the kernels of fft_conv.h.
int64_t chain_bwd_scratch(const FftConvBackwardParams& params, const DeviceLimits& device);
void chain_bwd(const FftConvBackwardParams& params, ChainPrecision precision, void* scratch,
               const Launch& launch);

}  // namespace monarch::cuda
