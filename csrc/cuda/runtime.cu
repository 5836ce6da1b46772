#include "cuda/runtime.h"

#include <cuda_runtime_api.h>

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

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

namespace {

int attribute(int index, cudaDeviceAttr name) {
  int value = 0;
  const cudaError_t error = cudaDeviceGetAttribute(&value, name, index);
  if (error == cudaSuccess) return value;
  cudaGetLastError();
  throw std::runtime_error("CUDA device " + std::to_string(index) +
                           " cannot be asked for its limits: " + cudaGetErrorString(error));
}

}  // namespace

DeviceLimits device_limits(int index) {
  static std::mutex mutex;
  static std::map<int, DeviceLimits> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(index);
  if (found != known.end()) return found->second;
  DeviceLimits limits;
  limits.index = index;
  limits.multiprocessors = attribute(index, cudaDevAttrMultiProcessorCount);
  limits.shared_bytes = attribute(index, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  limits.l2_bytes = attribute(index, cudaDevAttrL2CacheSize);
  return known[index] = limits;
}

const char* architectures() { return MONARCH_CUDA_ARCHS; }

}  // namespace monarch::cuda
