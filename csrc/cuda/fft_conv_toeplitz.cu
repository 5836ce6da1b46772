// Launchers of fft_conv as a product with the filter's Toeplitz matrix.
#include "cuda/fft_conv_toeplitz.h"

#include "cuda/fft_conv.h"
#include "cuda/fft_conv_launch.cuh"
#include "cuda/toeplitz.cuh"

namespace monarch::cuda::toeplitz {
namespace {

constexpr int kRowsATurn = 16;

template <class Use>
void with_plan(int64_t length, Use use) {
  for_each(ToeplitzPlans{}, [&](auto plan) {
    if (decltype(plan)::kSize == toeplitz_size(length)) use(plan);
  });
}

// Activations are bfloat16 or float16 (core/fft_conv_dispatch.h).
template <class Use>
void with_short_scalar(Scalar scalar, Use use) {
  if (scalar == Scalar::kBFloat16) return use(BFloat16{});
  use(Float16{});
}

// How many teams share the rows of a channel: what ends soonest, if a team needs one turn to load
// its part of the matrix.
template <class Shape>
int team_slices(int64_t channels, int64_t batch, const DeviceLimits& device) {
  const int64_t turns = quotient(batch, kRowsATurn);
  const int64_t at_once =
      std::max<int64_t>(1, int64_t{device.multiprocessors} * Shape::kBlocks * Shape::kTeams);
  const int64_t most = device.multiprocessors == 0 ? 1 : std::min<int64_t>(turns, 1024);
  int64_t best = 1, best_time = 0;
  for (int64_t slices = 1; slices <= most; ++slices) {
    const int64_t time = quotient(channels * slices, at_once) * (1 + quotient(turns, slices));
    if (slices == 1 || time < best_time) best = slices, best_time = time;
  }
  return static_cast<int>(best);
}

// Arrays of 16-bit numbers of one shape, and what their product is launched with.
class Product {
 public:
  template <class Params>
  Product(const Params& p, const Launch& launch)
      : shape_{p.batch, p.channels, p.length},
        words_(reinterpret_cast<const uint32_t*>(p.spectrum)),
        launch_(launch) {
    if (p.batch > 1 << 30) throw std::runtime_error("fft_conv: the batch has more than 2^30 rows");
  }

  ToeplitzArray array(const Rows& rows) const {
    constexpr int64_t kBytes = 2;
    return {rows.data, kBytes * rows.channel_stride, kBytes * rows.batch_stride,
            8 * kBytes * rows.batch_stride, 0};
  }
  ToeplitzArray result(const void* data) const {
    return array({data, shape_.channels * shape_.length, shape_.length});
  }

  template <class T, Gate kGate, Gate kFactor, bool kTransposed, int kResults>
  void run(ToeplitzTask<kResults> task) const {
    with_plan(shape_.length, [&](auto plan) {
      using Plan = decltype(plan);
      using Shape = ToeplitzShape<Plan, kPartsOf<T, kGate>>;
      const int slices = team_slices<Shape>(shape_.channels, shape_.batch, launch_.device);
      bool aligned = shape_.length % 4 == 0;
      const auto prepare = [&](ToeplitzArray& array) {
        array.turn = kRowsATurn * slices * array.row;
        if (array.data == nullptr) return;
        aligned = aligned && reinterpret_cast<uintptr_t>(array.data) % 8 == 0 &&
                  (shape_.batch == 1 || array.row % 8 == 0) &&
                  (shape_.channels == 1 || array.channel % 8 == 0);
      };
      prepare(task.input.x);
      prepare(task.input.gate);
      for (auto& result : task.result) prepare(result.y), prepare(result.factor);
      const ToeplitzWork work{static_cast<uint32_t>(shape_.channels),
                              static_cast<uint32_t>(slices),
                              static_cast<int>(shape_.batch),
                              static_cast<int>(shape_.length),
                              aligned,
                              aligned && shape_.length == Plan::kSize};
      start("toeplitz_kernel", shape_, launch_,
            toeplitz_kernel<Plan, T, kGate, kFactor, kTransposed, kResults>,
            shape_.batch == 0 ? 0 : quotient(shape_.channels * slices, Shape::kTeams),
            Shape::kThreads, 0, task, work, words_);
    });
  }

  // y = factor * (matrix (gate * x)), with kernels of its own for each way of gating bfloat16.
  template <class T>
  void run_forward(const ToeplitzTask<1>& task) const {
    constexpr Gate kAbsent = Gate::kAbsent, kPresent = Gate::kPresent, kEither = Gate::kEither;
    const bool gated = task.input.gate.data != nullptr;
    const bool scaled = task.result[0].factor.data != nullptr;
    if constexpr (std::is_same_v<T, BFloat16>) {
      if (gated) {
        scaled ? run<T, kPresent, kPresent, false>(task) : run<T, kPresent, kAbsent, false>(task);
      } else {
        scaled ? run<T, kAbsent, kPresent, false>(task) : run<T, kAbsent, kAbsent, false>(task);
      }
    } else {
      run<T, kEither, kEither, false>(task);
    }
  }

 private:
  CallShape shape_;
  const uint32_t* words_;
  const Launch& launch_;
};

bool need_filter(const FftConvBackwardParams& p) {
  return p.dk != nullptr || p.dk_rev != nullptr || p.dskip != nullptr;
}

// The gradients of the filter alone, by transforms in float32: of the spectrum they read only its
// table.
FftConvBackwardParams exact_filter_gradient(const FftConvBackwardParams& p, void* table) {
  FftConvBackwardParams exact = p;
  exact.du = exact.dpregate = exact.dpostgate = nullptr;
  exact.precision = Precision::kExact;
  exact.spectrum = static_cast<const float*>(table);
  return exact;
}

int64_t table_bytes(int64_t length, const DeviceLimits& device) {
  return quotient(choose(length, device).pairs() * 16, 256) * 256;
}

}  // namespace

void filter_spectrum(const FilterSpectrumParams& p, const Launch& launch) {
  const int size = toeplitz_size(p.length);
  const ToeplitzFilter filter{
      p.k,    p.k_rev,        p.skip, p.channels, p.length,
      p.taps, p.reverse_taps, size,   p.circular, reinterpret_cast<uint32_t*>(p.spectrum)};
  start("toeplitz_filter_kernel", {1, p.channels, p.length}, launch, toeplitz_filter_kernel,
        quotient(p.channels * 2 * size, 256), 256, 0, filter);
}

void fft_conv_fwd(const FftConvParams& p, const Launch& launch) {
  const Product product(p, launch);
  const ToeplitzTask<1> task{{product.array(p.u), product.array(p.pregate)},
                             {{product.result(p.y), product.array(p.postgate)}}};
  with_short_scalar(p.scalar, [&](auto scalar) { product.run_forward<decltype(scalar)>(task); });
}

int64_t fft_conv_bwd_scratch(const FftConvBackwardParams& p, const DeviceLimits& device) {
  if (!need_filter(p)) return 0;
  return table_bytes(p.length, device) +
         cuda::fft_conv_bwd_scratch(exact_filter_gradient(p, nullptr), device);
}

void fft_conv_bwd(const FftConvBackwardParams& p, void* scratch, const Launch& launch) {
  const Product product(p, launch);
  const ToeplitzArray dy = product.array(p.dy), u = product.array(p.u);
  const ToeplitzArray pregate = product.array(p.pregate), postgate = product.array(p.postgate);
  with_short_scalar(p.scalar, [&](auto scalar) {
    using T = decltype(scalar);
    if (p.du != nullptr || p.dpregate != nullptr) {
      const bool gated = p.pregate.data != nullptr || p.postgate.data != nullptr;
      if constexpr (std::is_same_v<T, BFloat16>) {
        if (!gated) {
          product.run<T, Gate::kAbsent, Gate::kAbsent, true>(
              ToeplitzTask<1>{{dy, {}}, {{product.result(p.du), {}}}});
        }
      }
      if (gated || std::is_same_v<T, Float16>) {
        product.run<T, Gate::kEither, Gate::kEither, true>(ToeplitzTask<2>{
            {dy, postgate}, {{product.result(p.du), pregate}, {product.result(p.dpregate), u}}});
      }
    }
    if (p.dpostgate != nullptr) {
      product.run_forward<T>({{u, pregate}, {{product.result(p.dpostgate), dy}}});
    }
  });
  if (!need_filter(p)) return;
  twiddle_table(p.length, static_cast<float*>(scratch), launch);
  cuda::fft_conv_bwd(exact_filter_gradient(p, scratch),
                     static_cast<char*>(scratch) + table_bytes(p.length, launch.device), launch);
}

}  // namespace monarch::cuda::toeplitz
