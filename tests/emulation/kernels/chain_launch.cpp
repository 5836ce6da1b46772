// The entry points of csrc/cuda/fft_conv_chain.h for ctypes, as in fft_conv_launch.cpp.
#include <cstdint>
#include <cstdio>
#include <exception>

#include "cuda/fft_conv_chain.h"

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

int64_t chain_size(int64_t length, int circular, int precision, const cuda::DeviceLimits* device) {
  return cuda::chain_size(length, circular != 0, cuda::ChainPrecision{precision}, *device);
}

int64_t chain_spectrum_floats(int64_t channels, int64_t length, const cuda::DeviceLimits* device) {
  int64_t floats = 0;
  text_of_exception([&] { floats = cuda::chain_spectrum_floats(channels, length, *device); });
  return floats;
}

const char* chain_spectrum(const FilterSpectrumParams* params, void* scratch,
                           int64_t* scratch_bytes, const cuda::DeviceLimits* device) {
  return text_of_exception([&] {
    if (scratch == nullptr) {
      *scratch_bytes = cuda::chain_spectrum_scratch(*params, *device);
    } else {
      cuda::chain_spectrum(*params, scratch, {nullptr, *device});
    }
  });
}

// `_0`, `_1`: the two precisions.
#define CHAIN_CALLS(precision)                                                                  \
  const char* chain_fwd_##precision(const FftConvParams* params, void* scratch,                 \
                                    int64_t* scratch_bytes, const cuda::DeviceLimits* device) { \
    return text_of_exception([&] {                                                              \
      if (scratch == nullptr) {                                                                 \
        *scratch_bytes = 0;                                                                     \
      } else {                                                                                  \
        cuda::chain_fwd(*params, cuda::ChainPrecision{precision}, {nullptr, *device});          \
      }                                                                                         \
    });                                                                                         \
  }                                                                                             \
  const char* chain_bwd_##precision(const FftConvBackwardParams* params, void* scratch,         \
                                    int64_t* scratch_bytes, const cuda::DeviceLimits* device) { \
    return text_of_exception([&] {                                                              \
      if (scratch == nullptr) {                                                                 \
        *scratch_bytes = cuda::chain_bwd_scratch(*params, *device);                             \
      } else {                                                                                  \
        cuda::chain_bwd(*params, cuda::ChainPrecision{precision}, scratch, {nullptr, *device}); \
      }                                                                                         \
    });                                                                                         \
  }
CHAIN_CALLS(0)
CHAIN_CALLS(1)
}
