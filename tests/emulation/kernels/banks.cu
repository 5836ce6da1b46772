// A kernel whose bank conflicts are known: lane i stores a vector at vector i * stride.
#include "cuda/device.cuh"

namespace {

namespace device = monarch::cuda::device;

template <class T>
__global__ void strided_store_kernel(const T* __restrict__ x, int stride, int lanes) {
  MONARCH_DYNAMIC_SHARED(shared);
  const auto lane = static_cast<int>(threadIdx.x);
  if (lane < lanes) device::store_shared(reinterpret_cast<T*>(shared) + lane * stride, x[lane]);
}

}  // namespace

extern "C" int strided_store(const void* x, int bytes, int stride, int lanes) {
  const auto run = [&](auto vector) {
    using T = decltype(vector);
    const char* error = device::launch(strided_store_kernel<T>, dim3(1), dim3(32), 32768, nullptr,
                                       static_cast<const T*>(x), stride, lanes);
    return error == nullptr ? 0 : 1;
  };
  return bytes == 4 ? run(float{}) : bytes == 8 ? run(float2{}) : run(float4{});
}
