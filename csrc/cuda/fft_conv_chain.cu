// Launchers of the tensor-core fft_conv.
#include "cuda/fft_conv_chain.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "cuda/fft_conv.h"
#include "cuda/fft_conv_chain.cuh"
#include "cuda/fft_conv_launch.cuh"

namespace monarch::cuda {
namespace {

template <class Use>
void with_chain(int64_t size, Use use) {
  for_each(ChainPlans{}, [&](auto plan) {
    if (decltype(plan)::kSize == size) use(plan);
  });
}

constexpr int64_t aligned(int64_t bytes) { return quotient(bytes, 256) * 256; }

// The smallest of all plans, whether or not the device has the shared memory for its kernel: what a
// spectrum is made for.
int64_t smallest(int64_t length) {
  int64_t best = 0;
  for_each(ChainPlans{}, [&](auto plan) {
    constexpr int64_t kSize = decltype(plan)::kSize;
    if (length >= 1 && kSize >= length && (best == 0 || kSize < best)) best = kSize;
  });
  return best;
}

// Whether any GPU has the shared memory; and whether this one has.
template <class P, int kParts>
constexpr bool kExists = ChainShape<P, kParts>::kSharedBytes <= 227 << 10;
template <class P, int kParts>
bool fits(const DeviceLimits& device) {
  return kExists<P, kParts> && ChainShape<P, kParts>::kSharedBytes <= device.shared_bytes;
}

// The filter as the float32 kernels transform it: as one of full length, except for a circular one,
// whose period is the length.
FilterSpectrumParams of_full_length(const FilterSpectrumParams& p) {
  FilterSpectrumParams full = p;
  if (!p.circular) full.length = smallest(p.length);
  return full;
}

void check(bool supported, int64_t length) {
  if (supported) return;
  std::ostringstream message;
  message << "fft_conv: no chain of tensor-core products for length " << length;
  throw std::runtime_error(message.str());
}

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
  const bool whole = shape.length == smallest(shape.length);
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

void convolve(const ChainParams& p, Scalar scalar, ChainPrecision precision, const Launch& launch) {
  check(scalar != Scalar::kFloat32, p.length);
  if (p.batch == 0 || p.channels == 0) return;
  with_chain(smallest(p.length), [&](auto plan) {
    using P = decltype(plan);
    const auto run = [&](auto type) {
      using T = decltype(type);
      if (precision == ChainPrecision::kFast) {
        launch_chain<P, T, 1>(p, launch);
      } else if constexpr (kExists<P, 2>) {
        launch_chain<P, T, 2>(p, launch);
      } else {
        check(false, p.length);
      }
    };
    scalar == Scalar::kBFloat16 ? run(BFloat16{}) : run(Float16{});
  });
}

}  // namespace

int64_t chain_size(int64_t length, bool circular, ChainPrecision precision,
                   const DeviceLimits& device) {
  const int64_t size = smallest(length);
  if (size == 0) return 0;
  const TransformShape exact = cuda_transform(circular ? length : size, device.shared_bytes);
  bool supported = exact.size == size && !exact.is_long();
  with_chain(size, [&](auto plan) {
    using P = decltype(plan);
    supported &= precision == ChainPrecision::kFast ? fits<P, 1>(device) : fits<P, 2>(device);
  });
  return supported ? size : 0;
}

int64_t chain_spectrum_floats(int64_t channels, int64_t length, const DeviceLimits&) {
  int64_t floats = 0;
  with_chain(smallest(length),
             [&](auto plan) { floats = ChainSpectrum<decltype(plan)>::floats(channels); });
  check(floats > 0, length);
  return floats;
}

int64_t chain_spectrum_scratch(const FilterSpectrumParams& p, const DeviceLimits& device) {
  return spectrum_floats(p.channels, of_full_length(p).length, device) *
         static_cast<int64_t>(sizeof(float));
}

void chain_spectrum(const FilterSpectrumParams& p, void* scratch, const Launch& launch) {
  check(chain_size(p.length, p.circular, ChainPrecision::kFast, launch.device) > 0, p.length);
  FilterSpectrumParams exact = of_full_length(p);
  exact.spectrum = static_cast<float*>(scratch);
  filter_spectrum(exact, nullptr, launch);
  const TransformShape choice = choose(exact.length, launch.device);
  const CallShape shape{1, p.channels, p.length};
  with_chain(smallest(p.length), [&](auto plan) {
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

void chain_fwd(const FftConvParams& p, ChainPrecision precision, const Launch& launch) {
  const CallShape shape{p.batch, p.channels, p.length};
  convolve(chain_params(p.u, p.pregate, {p.y, p.postgate}, {}, shape, p.spectrum), p.scalar,
           precision, launch);
}

// ---- Backward: the input's gradient is the transposed convolution of dy * postgate, the
// postgate's the convolution again. A filter's gradient needs the twiddles of the float32 kernels,
// but no spectrum.

namespace {

bool needs_filter(const FftConvBackwardParams& p) {
  return p.dk != nullptr || p.dk_rev != nullptr || p.dskip != nullptr;
}

int64_t twiddle_bytes(int64_t length, const DeviceLimits& device) {
  return aligned(spectrum_floats(0, length, device) * static_cast<int64_t>(sizeof(float)));
}

FftConvBackwardParams filter_only(const FftConvBackwardParams& p, float* twiddles) {
  FftConvBackwardParams filter = p;
  filter.du = filter.dpregate = filter.dpostgate = nullptr;
  filter.spectrum = twiddles;
  return filter;
}

}  // namespace

int64_t chain_bwd_scratch(const FftConvBackwardParams& p, const DeviceLimits& device) {
  if (!needs_filter(p)) return 0;
  return twiddle_bytes(p.length, device) + fft_conv_bwd_scratch(filter_only(p, nullptr), device);
}

void chain_bwd(const FftConvBackwardParams& p, ChainPrecision precision, void* scratch,
               const Launch& launch) {
  const CallShape shape{p.batch, p.channels, p.length};
  if (p.du != nullptr || p.dpregate != nullptr) {
    ChainParams chain =
        chain_params(p.dy, p.postgate, {p.du, p.pregate}, {p.dpregate, p.u}, shape, p.spectrum);
    chain.conjugate = true;
    convolve(chain, p.scalar, precision, launch);
  }
  if (p.dpostgate != nullptr) {
    convolve(chain_params(p.u, p.pregate, {p.dpostgate, p.dy}, {}, shape, p.spectrum), p.scalar,
             precision, launch);
  }
  if (!needs_filter(p)) return;
  auto* twiddles = static_cast<float*>(scratch);
  FilterSpectrumParams none;
  none.length = p.length, none.spectrum = twiddles;
  filter_spectrum(none, nullptr, launch);
  fft_conv_bwd(filter_only(p, twiddles),
               static_cast<unsigned char*>(scratch) + twiddle_bytes(p.length, launch.device),
               launch);
}

}  // namespace monarch::cuda
