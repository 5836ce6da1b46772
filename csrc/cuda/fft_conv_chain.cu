// Launchers of the tensor-core fft_conv.
#include "cuda/fft_conv_chain.h"

#include <algorithm>
#include <utility>

#include "cuda/fft_conv.h"
#include "cuda/fft_conv_chain.cuh"
#include "cuda/fft_conv_launch.cuh"

namespace monarch::cuda::chain {
namespace {

template <class Use>
void with_chain(int64_t length, Use use) {
  for_each(ChainPlans{}, [&](auto plan) {
    if (decltype(plan)::kSize == chain_size(length)) use(plan);
  });
}

constexpr int64_t aligned(int64_t bytes) { return quotient(bytes, 256) * 256; }

bool in_fours(const ByteRows& rows) {
  return reinterpret_cast<uintptr_t>(rows.data) % 8 == 0 && rows.batch_bytes % 8 == 0 &&
         rows.channel_bytes % 8 == 0;
}

ByteRows in_bytes(const Rows& rows) {
  return {const_cast<void*>(rows.data), 2 * rows.batch_stride, 2 * rows.channel_stride};
}

struct Result {
  void* y = nullptr;
  Rows factor;
};

// One of the results may be absent.
ChainParams chain_params(const Rows& x, const Rows& gate, Result first, Result second,
                         const CallShape& shape, const float* spectrum) {
  ChainParams p{};
  if (first.y == nullptr) std::swap(first, second);
  p.x = in_bytes(x), p.gate = in_bytes(gate);
  p.batch = static_cast<int>(shape.batch), p.channels = static_cast<int>(shape.channels);
  p.length = static_cast<int>(shape.length);
  p.gated = gate.data != nullptr, p.both = second.y != nullptr;
  bool fours = shape.length % 4 == 0 && in_fours(p.x) && in_fours(p.gate);
  for (int i = 0; i < 2; ++i) {
    const Result& result = i == 0 ? first : second;
    p.y[i] = {result.y, 2 * shape.channels * shape.length, 2 * shape.length};
    p.factor[i] = in_bytes(result.factor);
    p.scaled[i] = result.factor.data != nullptr;
    fours &= in_fours(p.factor[i]) && in_fours(p.y[i]);
  }
  const bool whole = shape.length == chain_size(shape.length);
  p.access = !fours ? Access::kSingle : whole ? Access::kWholeRows : Access::kFours;
  p.spectrum = spectrum;
  return p;
}

template <class P, class T, int kParts>
void launch_chain(ChainParams p, const Launch& launch) {
  using Shape = ChainShape<P, kParts>;
  const int64_t rows_of_block = ChainTables<P>::kSingle ? Shape::kWarps : 1;
  const int64_t at_once =
      std::max<int64_t>(1, int64_t{launch.device.multiprocessors} * Shape::kBlocks);
  // Enough blocks for two turns of the GPU; none without a row.
  const int64_t wanted = std::max<int64_t>(1, quotient(2 * at_once, p.channels));
  p.slices = static_cast<int>(std::min<int64_t>(wanted, quotient(p.batch, rows_of_block)));
  if (launch.device.multiprocessors == 0) p.slices = 1;
  const CallShape shape{p.batch, p.channels, p.length};
  const int64_t grid = int64_t{p.channels} * p.slices;
  if constexpr (ChainTables<P>::kSingle) {
    start("chain_warp_kernel", shape, launch, chain_warp_kernel<P, T, kParts>, grid, P::kThreads,
          Shape::kSharedBytes, p);
  } else {
    start("chain_block_kernel", shape, launch, chain_block_kernel<P, T, kParts>, grid, P::kThreads,
          Shape::kSharedBytes, p);
  }
}

// Whether any GPU has the shared memory.
template <class P, int kParts>
constexpr bool kExists = ChainShape<P, kParts>::kSharedBytes <= 227 << 10;

void convolve(const ChainParams& p, Scalar scalar, Precision precision, const Launch& launch) {
  if (p.batch == 0 || p.channels == 0) return;
  with_chain(p.length, [&](auto plan) {
    using P = decltype(plan);
    const auto run = [&](auto type) {
      using T = decltype(type);
      if (precision == Precision::kFast) {
        launch_chain<P, T, 1>(p, launch);
      } else if constexpr (kExists<P, 2>) {
        launch_chain<P, T, 2>(p, launch);
      }
    };
    scalar == Scalar::kBFloat16 ? run(BFloat16{}) : run(Float16{});
  });
}

// ---- Spectra: by the float32 kernels, then in the order and on the scale of a chain

struct ReversedParams {
  const float* k;
  float* reversed;
  int64_t channels, taps, length;
};

// reversed[length - 1 - j] = k[j]: a circular filter is a bidirectional one (docs/math.md), of any
// period that the transform has room for.
__global__ void __launch_bounds__(256) reversed_taps_kernel(ReversedParams p) {
  const int64_t index = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (index >= p.channels * p.length) return;
  const int64_t j = p.length - 1 - index % p.length;
  p.reversed[index] = j < p.taps ? p.k[index / p.length * p.taps + j] : 0.0f;
}

// Scratch: the float32 spectrum; the reversed taps of a circular filter.
int64_t exact_bytes(const FilterSpectrumParams& p, const DeviceLimits& device) {
  return aligned(spectrum_floats(p.channels, chain_size(p.length), Precision::kExact, device) *
                 static_cast<int64_t>(sizeof(float)));
}

}  // namespace

int64_t filter_spectrum_scratch(const FilterSpectrumParams& p, const DeviceLimits& device) {
  const int64_t reversed = p.circular ? p.channels * p.length : 0;
  return exact_bytes(p, device) + reversed * static_cast<int64_t>(sizeof(float));
}

void filter_spectrum(const FilterSpectrumParams& p, void* scratch, const Launch& launch) {
  const CallShape shape{1, p.channels, p.length};
  FilterSpectrumParams exact = p;
  exact.precision = Precision::kExact, exact.circular = false, exact.length = chain_size(p.length);
  exact.spectrum = static_cast<float*>(scratch);
  if (p.circular) {
    auto* bytes = static_cast<unsigned char*>(scratch) + exact_bytes(p, launch.device);
    const ReversedParams reversed{p.k, reinterpret_cast<float*>(bytes), p.channels, p.taps,
                                  p.length};
    start("reversed_taps_kernel", shape, launch, reversed_taps_kernel,
          quotient(p.channels * p.length, 256), 256, 0, reversed);
    exact.k_rev = reversed.reversed, exact.reverse_taps = p.length;
  }
  cuda::filter_spectrum(exact, nullptr, launch);
  const TransformShape choice = choose(exact.length, launch.device);
  with_chain(p.length, [&](auto plan) {
    using P = decltype(plan);
    using Tables = ChainTables<P>;
    const ChainSpectrum<P> to(p.spectrum, p.channels);
    const int64_t entries = Tables::kTwiddles + Tables::kFirst * Tables::kFirst +
                            int64_t{Tables::kMatrices} * P::kBlock;
    start("chain_tables_kernel", shape, launch, chain_tables_kernel<P>, quotient(entries, 256), 256,
          0, p.spectrum);
    start("chain_spectrum_kernel", shape, launch, chain_spectrum_kernel<P>, p.channels, 256, 0,
          static_cast<const float4*>(Spectrum(exact.spectrum, choice).values), choice.inner,
          const_cast<float*>(to.scales), const_cast<float4*>(to.values));
  });
}

// ---- Forward

void fft_conv_fwd(const FftConvParams& p, const Launch& launch) {
  const CallShape shape{p.batch, p.channels, p.length};
  convolve(chain_params(p.u, p.pregate, {p.y, p.postgate}, {}, shape, p.spectrum), p.scalar,
           p.precision, launch);
}

// ---- Backward: the input's gradient is the transposed convolution of dy * postgate, the
// postgate's the convolution again. A filter's gradient needs the twiddles of the float32 kernels,
// but no spectrum.

namespace {

bool needs_filter(const FftConvBackwardParams& p) {
  return p.dk != nullptr || p.dk_rev != nullptr || p.dskip != nullptr;
}

int64_t twiddle_bytes(int64_t length, const DeviceLimits& device) {
  return aligned(spectrum_floats(0, length, Precision::kExact, device) *
                 static_cast<int64_t>(sizeof(float)));
}

FftConvBackwardParams filter_only(const FftConvBackwardParams& p, float* twiddles) {
  FftConvBackwardParams filter = p;
  filter.du = filter.dpregate = filter.dpostgate = nullptr;
  filter.spectrum = twiddles, filter.precision = Precision::kExact;
  return filter;
}

}  // namespace

int64_t fft_conv_bwd_scratch(const FftConvBackwardParams& p, const DeviceLimits& device) {
  if (!needs_filter(p)) return 0;
  return twiddle_bytes(p.length, device) +
         cuda::fft_conv_bwd_scratch(filter_only(p, nullptr), device);
}

void fft_conv_bwd(const FftConvBackwardParams& p, void* scratch, const Launch& launch) {
  const CallShape shape{p.batch, p.channels, p.length};
  if (p.du != nullptr || p.dpregate != nullptr) {
    ChainParams chain =
        chain_params(p.dy, p.postgate, {p.du, p.pregate}, {p.dpregate, p.u}, shape, p.spectrum);
    chain.conjugate = true;
    convolve(chain, p.scalar, p.precision, launch);
  }
  if (p.dpostgate != nullptr) {
    convolve(chain_params(p.u, p.pregate, {p.dpostgate, p.dy}, {}, shape, p.spectrum), p.scalar,
             p.precision, launch);
  }
  if (!needs_filter(p)) return;
  auto* twiddles = static_cast<float*>(scratch);
  twiddle_table(p.length, twiddles, launch);
  cuda::fft_conv_bwd(filter_only(p, twiddles),
                     static_cast<unsigned char*>(scratch) + twiddle_bytes(p.length, launch.device),
                     launch);
}

}  // namespace monarch::cuda::chain
