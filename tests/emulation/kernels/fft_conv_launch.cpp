// The entry points of csrc/cuda/fft_conv.h for ctypes: no exception crosses, each returns its text.
#include <cstdint>
#include <cstdio>
#include <exception>

#include "cuda/fft_conv.h"

namespace {

using namespace monarch;

char message[512];

template <class Call>
const char* text_of_exception(Call call) {
  try {
    call();
    return nullptr;
  } catch (const std::exception& error) {
    std::snprintf(message, sizeof message, "%s", error.what());
    return message;
  }
}

}  // namespace

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

// `scratch_bytes` functions first: with scratch == nullptr the size is written, nothing is run.
const char* launch_filter_spectrum(const FilterSpectrumParams* params, void* scratch,
                                   int64_t* scratch_bytes, const cuda::DeviceLimits* device) {
  return text_of_exception([&] {
    if (scratch == nullptr) {
      *scratch_bytes = cuda::filter_spectrum_scratch(*params, *device);
    } else {
      cuda::filter_spectrum(*params, scratch, {nullptr, *device});
    }
  });
}

const char* launch_fft_conv_fwd(const FftConvParams* params, void* scratch, int64_t* scratch_bytes,
                                const cuda::DeviceLimits* device) {
  return text_of_exception([&] {
    if (scratch == nullptr) {
      *scratch_bytes = cuda::fft_conv_fwd_scratch(*params, *device);
    } else {
      cuda::fft_conv_fwd(*params, scratch, {nullptr, *device});
    }
  });
}

const char* launch_fft_conv_bwd(const FftConvBackwardParams* params, void* scratch,
                                int64_t* scratch_bytes, const cuda::DeviceLimits* device) {
  return text_of_exception([&] {
    if (scratch == nullptr) {
      *scratch_bytes = cuda::fft_conv_bwd_scratch(*params, *device);
    } else {
      cuda::fft_conv_bwd(*params, scratch, {nullptr, *device});
    }
  });
}
}
