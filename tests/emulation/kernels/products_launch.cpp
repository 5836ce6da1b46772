// The entry points of csrc/cuda/products.h for ctypes: no exception crosses, each returns its text.
// With scratch == nullptr the size of the scratch memory is written, and nothing is run.
#include <cstdint>
#include <cstdio>
#include <exception>

#include "cuda/products.h"

namespace {

using namespace monarch;

template <class Params>
const char* call(const Params* params, void* scratch, int64_t* scratch_bytes,
                 const cuda::DeviceLimits* device,
                 int64_t (*bytes)(const Params&, const cuda::DeviceLimits&),
                 void (*enqueue)(const Params&, void*, const cuda::Launch&)) {
  static char message[512];
  try {
    if (scratch == nullptr) {
      *scratch_bytes = bytes(*params, *device);
    } else {
      enqueue(*params, scratch, {nullptr, *device});
    }
    return nullptr;
  } catch (const std::exception& error) {
    std::snprintf(message, sizeof message, "%s", error.what());
    return message;
  }
}

}  // namespace

#define MONARCH_LAUNCH(function, Params)                                                        \
  extern "C" const char* launch_##function(const Params* params, void* scratch, int64_t* bytes, \
                                           const cuda::DeviceLimits* device) {                  \
    return call(params, scratch, bytes, device, cuda::function##_scratch, cuda::function);      \
  }
MONARCH_LAUNCH(block_diagonal_fwd, BlockDiagonalParams)
MONARCH_LAUNCH(block_diagonal_bwd, BlockDiagonalBackwardParams)
MONARCH_LAUNCH(monarch_matmul_fwd, MonarchMatmulParams)
MONARCH_LAUNCH(glu_mlp_fwd, GluMlpParams)
MONARCH_LAUNCH(glu_mlp_bwd, GluMlpBackwardParams)
