// The entry points of csrc/cuda/fft_conv.h for ctypes: no exception crosses, each returns its text.
#include "cuda/fft_conv.h"

#include "emulation/kernels/launch.h"

using namespace monarch;

extern "C" {

// 0 if there is no transform for the length on this device.
int64_t launch_spectrum_floats(int64_t channels, int64_t length, int precision,
                               const cuda::DeviceLimits* device) {
  int64_t floats = 0;
  text_of_exception([&] {
    floats = cuda::spectrum_floats(channels, length, static_cast<Precision>(precision), *device);
  });
  return floats;
}

const char* launch_filter_spectrum(const FilterSpectrumParams* params, void* scratch,
                                   int64_t* scratch_bytes, const cuda::DeviceLimits* device) {
  return measure_or_run(cuda::filter_spectrum_scratch, cuda::filter_spectrum, *params, scratch,
                        scratch_bytes, *device);
}

const char* launch_fft_conv_fwd(const FftConvParams* params, void* scratch, int64_t* scratch_bytes,
                                const cuda::DeviceLimits* device) {
  return measure_or_run(cuda::fft_conv_fwd_scratch, cuda::fft_conv_fwd, *params, scratch,
                        scratch_bytes, *device);
}

const char* launch_fft_conv_bwd(const FftConvBackwardParams* params, void* scratch,
                                int64_t* scratch_bytes, const cuda::DeviceLimits* device) {
  return measure_or_run(cuda::fft_conv_bwd_scratch, cuda::fft_conv_bwd, *params, scratch,
                        scratch_bytes, *device);
}
}
