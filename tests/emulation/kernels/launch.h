// Entry points of an operator for ctypes: no exception crosses, each returns its text.
#pragma once
#include <cstdint>
#include <cstdio>
#include <exception>

#include "cuda/launch.h"

namespace monarch {

inline char message[512];

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

// Without scratch memory its size is written, and nothing is run.
template <class Params>
const char* measure_or_run(int64_t (*bytes)(const Params&, const cuda::DeviceLimits&),
                           void (*run)(const Params&, void*, const cuda::Launch&),
                           const Params& params, void* scratch, int64_t* scratch_bytes,
                           const cuda::DeviceLimits& device) {
  return text_of_exception([&] {
    if (scratch == nullptr) {
      *scratch_bytes = bytes(params, device);
    } else {
      run(params, scratch, {nullptr, device});
    }
  });
}

}  // namespace monarch
