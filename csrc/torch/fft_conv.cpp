// torch operators of fft_conv on the CPU: threads, and the spectrum as a tensor.
#include <algorithm>
#include <array>

#include "torch/fft_conv_operators.h"

namespace monarch {
namespace {

// A spectrum is 16 floats that say what it is, then the numbers: its order depends on the
// instruction set. 16 keep the numbers aligned to a cache line.
constexpr int64_t kHeader = 16;

std::array<float, 4> header(int64_t channels, int64_t length) {
  return {static_cast<float>(cpu::kernel_lanes()), static_cast<float>(channels),
          static_cast<float>(length), static_cast<float>(transform_size(length))};
}

// Enough rows for a thread to be worth waking.
template <class Params>
int64_t grain(const Params& p, int64_t items) {
  const int64_t samples = p.batch * p.channels * p.length;
  return std::max<int64_t>(1, 16384 * items / std::max<int64_t>(1, samples));
}

class Cpu {
 public:
  Cpu(const Tensor& like, const char* operation) {
    MONARCH_CHECK(like.is_cpu(), operation, ": expected CPU tensors");
  }

  int64_t spectrum_numel(int64_t channels, int64_t length) const {
    return cpu::spectrum_floats(channels, length) + kHeader;
  }
  float* spectrum_numbers(Tensor& spectrum, int64_t channels, int64_t length) const {
    const auto head = header(channels, length);
    float* data = spectrum.data<float>();
    std::fill(std::copy(head.begin(), head.end(), data), data + kHeader, 0.0f);
    return data + kHeader;
  }
  const float* spectrum_numbers(const Tensor& spectrum, int64_t channels, int64_t length) const {
    MONARCH_CHECK(spectrum.numel() >= kHeader,
                  "fft_conv: spectrum is not one that filter_spectrum made");
    const float* data = spectrum.data<const float>();
    const auto expected = header(channels, length);
    MONARCH_CHECK(data[0] == expected[0],
                  "fft_conv: the spectrum was made for another CPU instruction set: make it again");
    MONARCH_CHECK(std::equal(expected.begin(), expected.end(), data) &&
                      spectrum.numel() == spectrum_numel(channels, length),
                  "fft_conv: the spectrum was made for ", data[1], " channels of length ", data[2],
                  ", u has ", channels, " of length ", length);
    return data + kHeader;
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

[[maybe_unused]] const bool registered = (FftConvOperators<Cpu>::register_for("CPU"), true);

}  // namespace
}  // namespace monarch
