// Under g++, launches that go to a function which runs kernels somehow, such as
// test_fft_conv_ptx.py from their PTX. What is included after this uses it; nvcc sees nothing of
// it.
#pragma once
#include "cuda/device.cuh"

#if !defined(__CUDACC__)
namespace monarch::cuda::device {

// Runs a kernel somehow: its address, grid, block, dynamic shared memory, and parameters.
using Runner = void (*)(const void* kernel, int64_t grid, int64_t block, int64_t shared_bytes,
                        const void* const* parameters, const int64_t* sizes, int count);
inline Runner runner = nullptr;

template <class... Parameters>
const char* launch_by_runner(void (*kernel)(Parameters...), dim3 grid, dim3 block,
                             size_t shared_bytes, void* stream,
                             const std::type_identity_t<Parameters>&... parameters) {
  if (runner == nullptr) return launch(kernel, grid, block, shared_bytes, stream, parameters...);
  const void* const addresses[] = {&parameters...};
  const int64_t sizes[] = {static_cast<int64_t>(sizeof(Parameters))...};
  runner(reinterpret_cast<const void*>(kernel), grid.x, block.x, static_cast<int64_t>(shared_bytes),
         addresses, sizes, static_cast<int>(sizeof...(Parameters)));
  return nullptr;
}

}  // namespace monarch::cuda::device

extern "C" void run_kernels_by(monarch::cuda::device::Runner runner) {
  monarch::cuda::device::runner = runner;
}
#define launch launch_by_runner
#endif
