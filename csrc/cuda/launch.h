// What a launch depends on beside its arguments.
#pragma once
#include <cstdint>

namespace monarch::cuda {

// The facts of a GPU that decide grids and plans; `limits_of` (runtime.h) reads them.
struct DeviceLimits {
  int index = 0;
  int multiprocessors = 1;
  int64_t shared_bytes = 48 << 10;  // that one block may have
  int64_t l2_bytes = 4 << 20;
};

struct Launch {
  void* stream = nullptr;  // cudaStream_t
  DeviceLimits device;
};

// Where a part of scratch memory ends so that the next one is aligned.
constexpr int64_t aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }

}  // namespace monarch::cuda
