// Launchers of fft_conv: spectra and forward.
#include "cuda/fft_conv.h"
#include "cuda/fft_conv_chain.h"
#include "cuda/fft_conv_launch.cuh"
#include "cuda/fft_conv_toeplitz.h"
#include "cuda/twiddle.cuh"

namespace monarch::cuda {

// ---- Spectra

int64_t spectrum_floats(int64_t channels, int64_t length, Precision precision,
                        const DeviceLimits& device) {
  const int64_t floats = cuda_filter_floats(channels, length, precision, device.shared_bytes);
  if (floats == 0) choose(length, device);  // throws
  return floats;
}

KernelKind kind_of(const FilterSpectrumParams& p, const DeviceLimits& device) {
  return spectrum_kind(p.length, p.precision, device.shared_bytes);
}

void twiddle_table(int64_t length, float* table, const Launch& launch) {
  const TransformShape choice = choose(length, launch.device);
  start("twiddle_kernel", {1, 1, length}, launch, twiddle_kernel, quotient(choice.pairs(), 256),
        256, 0, TableParams{choice, reinterpret_cast<float4*>(table)});
}

int64_t filter_spectrum_scratch(const FilterSpectrumParams& p, const DeviceLimits& device) {
  if (kind_of(p, device) == KernelKind::kToeplitz) return 0;
  if (kind_of(p, device) == KernelKind::kChain) return chain::filter_spectrum_scratch(p, device);
  const TransformShape choice = choose(p.length, device);
  if (!choice.is_long()) return 0;
  return group_for(p.channels, 1, choice, 1, device).channels * choice.size *
         static_cast<int64_t>(sizeof(float2));
}

void filter_spectrum(const FilterSpectrumParams& p, void* scratch, const Launch& launch) {
  if (kind_of(p, launch.device) == KernelKind::kToeplitz) {
    return toeplitz::filter_spectrum(p, launch);
  }
  if (kind_of(p, launch.device) == KernelKind::kChain) {
    return chain::filter_spectrum(p, scratch, launch);
  }
  const TransformShape choice = choose(p.length, launch.device);
  const Spectrum spectrum(p.spectrum, choice);
  const CallShape shape{1, p.channels, p.length};
  twiddle_table(p.length, p.spectrum, launch);
  const FilterInput filter{p.k,      p.k_rev,     p.skip,    p.taps, p.reverse_taps,
                           p.length, choice.size, p.circular};
  const float scale = scale_of(choice);
  const auto transform = [&](auto block, const auto& input, int64_t units, float4* values) {
    using S = FilterShape<decltype(block)>;
    using Input = std::decay_t<decltype(input)>;
    start("filter_spectrum_kernel", shape, launch, filter_spectrum_kernel<decltype(block), Input>,
          quotient(units, S::kTeams), S::kThreads, S::kSharedBytes, input, units,
          spectrum.inner_table(choice), values, scale);
  };
  if (!choice.is_long()) {
    with_block(BlockPlans{}, choice.columns(),
               [&](auto block) { transform(block, filter, p.channels, spectrum.values); });
    return;
  }
  auto* data = static_cast<float2*>(scratch);
  const Group group = group_for(p.channels, 1, choice, 1, launch.device);
  each_group(p.channels, 1, group, [&](int64_t channel, int64_t channels, int64_t, int64_t) {
    const LongRows rows = long_rows(choice, spectrum, data, channel, 0, 1);
    outer_forward(choice, filter, rows, channels, shape, launch);
    with_block(InnerPlans{}, choice.columns(), [&](auto block) {
      transform(block, complex_rows(choice, data, 1), channels * choice.rows(),
                spectrum.values + channel * (choice.size / 2));
    });
  });
}

// ---- Forward

int64_t fft_conv_fwd_scratch(const FftConvParams& p, const DeviceLimits& device) {
  if (kind_of(p, device) == KernelKind::kToeplitz) return 0;
  if (kind_of(p, device) == KernelKind::kChain) return 0;
  const TransformShape choice = choose(p.length, device);
  if (!choice.is_long()) return 0;
  const Group group = group_for(p.channels, p.batch, choice, 1, device);
  return group.channels * group.rows * choice.size * static_cast<int64_t>(sizeof(float2));
}

namespace {

template <class Plans, class Input, class Output>
void convolve(Plans plans, const TransformShape& choice, const Input& input, const Output& output,
              int64_t units, int64_t rows, const Spectrum& spectrum, const float4* values,
              const CallShape& shape, const Launch& launch) {
  with_block(plans, choice.columns(), [&](auto block) {
    using S = BlockShape<decltype(block)>;
    const Work work{units, rows, slices_for<decltype(block)>(units, rows, launch.device)};
    start("fft_conv_kernel", shape, launch, fft_conv_kernel<decltype(block), Input, Output>,
          blocks_of<decltype(block)>(work), S::kThreads, S::kSharedBytes, input, output, work,
          spectrum.inner_table(choice), values);
  });
}

}  // namespace

void fft_conv_fwd(const FftConvParams& p, void* scratch, const Launch& launch) {
  if (kind_of(p, launch.device) == KernelKind::kToeplitz) return toeplitz::fft_conv_fwd(p, launch);
  if (kind_of(p, launch.device) == KernelKind::kChain) {
    return chain::fft_conv_fwd(p, launch);
  }
  const TransformShape choice = choose(p.length, launch.device);
  const Spectrum spectrum(p.spectrum, choice);
  const CallShape shape{p.batch, p.channels, p.length};
  with_scalar(p.scalar, [&](auto scalar) {
    using T = decltype(scalar);
    const RealInput<T> input{p.u, p.pregate, p.length};
    const RealOutput<T, 1> output{{{static_cast<T*>(p.y), p.postgate}}, p.channels, p.length};
    if (!choice.is_long()) {
      return convolve(BlockPlans{}, choice, input, output, p.channels, p.batch, spectrum,
                      spectrum.values, shape, launch);
    }
    auto* data = static_cast<float2*>(scratch);
    const Group group = group_for(p.channels, p.batch, choice, 1, launch.device);
    each_group(p.channels, p.batch, group,
               [&](int64_t c, int64_t channels, int64_t b, int64_t rows) {
                 const LongRows all = long_rows(choice, spectrum, data, c, b, rows);
                 const ComplexRows<false> inner = complex_rows(choice, data, rows);
                 outer_forward(choice, input, all, channels * rows, shape, launch);
                 convolve(InnerPlans{}, choice, inner, inner, channels * choice.rows(), rows,
                          spectrum, spectrum.values + c * (choice.size / 2), shape, launch);
                 outer_inverse(choice, output, all, channels * rows, shape, launch);
               });
  });
}

}  // namespace monarch::cuda
