// torch operators of fft_conv on CUDA. Nothing here waits for the GPU or reads its memory, so that
// a CUDA graph can capture every call.
#include "cuda/fft_conv.h"

#include <cstdint>

#include "torch/cuda_call.h"
#include "torch/fft_conv_operators.h"

namespace monarch {
namespace {

class Cuda {
 public:
  Cuda(const Tensor& like, const char* operation, Precision precision)
      : call_(like, operation), precision_(precision) {}

  int64_t spectrum_numel(int64_t channels, int64_t length) const {
    return cuda::spectrum_floats(channels, length, precision_, call_.launch().device);
  }
  float* spectrum_numbers(Tensor& spectrum, int64_t, int64_t) const {
    return spectrum.data<float>();
  }
  // Only its size can tell: to read what it holds would wait for the GPU. It differs between
  // channels, lengths, transforms and forms (core/fft_conv_dispatch.h).
  const float* spectrum_numbers(const Tensor& spectrum, int64_t channels, int64_t length) const {
    MONARCH_CHECK(spectrum.numel() == spectrum_numel(channels, length),
                  "fft_conv: the spectrum has ", spectrum.numel(), " numbers, that of ", channels,
                  " channels of length ", length, " has ", spectrum_numel(channels, length),
                  " on this GPU with this precision");
    const float* data = spectrum.data<const float>();
    MONARCH_CHECK(reinterpret_cast<uintptr_t>(data) % 16 == 0,
                  "fft_conv: the spectrum is a view that is not aligned to 16 bytes");
    return data;
  }
  void fresh(void*, int64_t) const {}

  void filter_spectrum(FilterSpectrumParams p) const {
    p.precision = precision_;
    run(p, cuda::filter_spectrum_scratch, cuda::filter_spectrum);
  }
  void fft_conv_fwd(const FftConvParams& p) const {
    run(p, cuda::fft_conv_fwd_scratch, cuda::fft_conv_fwd);
  }
  void fft_conv_bwd(const FftConvBackwardParams& p) const {
    run(p, cuda::fft_conv_bwd_scratch, cuda::fft_conv_bwd);
  }

 private:
  template <class Params>
  void run(const Params& p, int64_t (*bytes)(const Params&, const cuda::DeviceLimits&),
           void (*enqueue)(const Params&, void*, const cuda::Launch&)) const {
    const Tensor scratch = call_.scratch(bytes(p, call_.launch().device));
    enqueue(p, scratch.data(), call_.launch());
  }

  CudaCall call_;
  Precision precision_;
};

[[maybe_unused]] const bool registered =
    (FftConvOperators<Cuda>::register_for(CudaCall::kDispatchKey), true);

}  // namespace
}  // namespace monarch
