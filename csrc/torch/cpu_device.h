// The CPU as a device of fft_conv_operators.h and mixer_conv.cpp: threads, and the spectrum as a
// tensor.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>

#include "core/fft_conv.h"
#include "core/plan.h"
#include "torch/stable_abi.h"

namespace monarch {

using abi::Tensor;

// A spectrum is 16 floats that say what it is, then the numbers: its order depends on the
// instruction set. 16 keep the numbers aligned to a cache line.
constexpr int64_t kSpectrumHeader = 16;

inline std::array<float, 4> spectrum_header(int64_t channels, int64_t length) {
  return {static_cast<float>(cpu::kernel_lanes()), static_cast<float>(channels),
          static_cast<float>(length), static_cast<float>(transform_size(length))};
}

// Enough rows for a thread to be worth waking.
template <class Params>
int64_t grain(const Params& p, int64_t items) {
  const int64_t samples = p.batch * p.channels * p.length;
  return std::max<int64_t>(1, 16384 * items / std::max<int64_t>(1, samples));
}

class CpuDevice {
 public:
  CpuDevice(const Tensor& like, const char* operation, Precision = Precision::kExact) {
    MONARCH_CHECK(like.is_cpu(), operation, ": expected CPU tensors");
  }

  int64_t spectrum_numel(int64_t channels, int64_t length) const {
    return cpu::spectrum_floats(channels, length) + kSpectrumHeader;
  }
  float* spectrum_numbers(Tensor& spectrum, int64_t channels, int64_t length) const {
    const auto head = spectrum_header(channels, length);
    float* data = spectrum.data<float>();
    std::fill(std::copy(head.begin(), head.end(), data), data + kSpectrumHeader, 0.0f);
    return data + kSpectrumHeader;
  }
  const float* spectrum_numbers(const Tensor& spectrum, int64_t channels, int64_t length) const {
    MONARCH_CHECK(spectrum.numel() >= kSpectrumHeader,
                  "fft_conv: spectrum is not one that filter_spectrum made");
    const float* data = spectrum.data<const float>();
    const auto expected = spectrum_header(channels, length);
    MONARCH_CHECK(data[0] == expected[0],
                  "fft_conv: the spectrum was made for another CPU instruction set: make it again");
    MONARCH_CHECK(std::equal(expected.begin(), expected.end(), data) &&
                      spectrum.numel() == spectrum_numel(channels, length),
                  "fft_conv: the spectrum was made for ", data[1], " channels of length ", data[2],
                  ", u has ", channels, " of length ", length);
    return data + kSpectrumHeader;
  }
  void fresh(void* data, int64_t bytes) const { cpu::advise_huge_pages(data, bytes); }

  void filter_spectrum(const FilterSpectrumParams& p) const {
    abi::parallel_for(0, cpu::filter_spectrum_items(p), 1,
                      [&](int64_t begin, int64_t end) { cpu::filter_spectrum(p, begin, end); });
  }
  void fft_conv_fwd(const FftConvParams& p) const {
    const int64_t items = cpu::fft_conv_fwd_items(p);
    abi::parallel_for(0, items, grain(p, items),
                      [&](int64_t begin, int64_t end) { cpu::fft_conv_fwd(p, begin, end); });
  }
  void fft_conv_bwd(const FftConvBackwardParams& p) const {
    abi::parallel_for(0, cpu::fft_conv_bwd_items(p), 1,
                      [&](int64_t begin, int64_t end) { cpu::fft_conv_bwd(p, begin, end); });
  }
};

}  // namespace monarch
