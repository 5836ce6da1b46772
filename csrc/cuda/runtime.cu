#include "cuda/runtime.h"

#include <cuda_runtime_api.h>

namespace monarch::cuda {

int runtime_version() {
  int version = 0;
  return cudaRuntimeGetVersion(&version) == cudaSuccess ? version : 0;
}

int driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();  // a missing driver must not be reported by the next CUDA call
  return 0;
}

const char* architectures() { return MONARCH_CUDA_ARCHS; }

}  // namespace monarch::cuda
