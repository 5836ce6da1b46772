// Makes the table of a transform (core/twiddle.h) on the GPU: nothing has to be copied there, kept
// for each device, or built before a CUDA graph is captured.
#pragma once
#include "core/twiddle.h"
#include "cuda/device.cuh"

namespace monarch::cuda {

struct TableParams {
  TransformShape shape;
  float4* table;
};

struct Root {
  double cosine, sine;
};
MONARCH_DEVICE Root root_of_unity(Phase phase) {
  Root root;
  const int64_t reduced = phase.numerator % phase.denominator;
  device::sincospi(2.0 * static_cast<double>(reduced) / static_cast<double>(phase.denominator),
                   &root.sine, &root.cosine);
  return root;
}

// (cosine, tangent), the tangent such that their product is the sine as exactly as one number can
// be. The tangent of a quarter turn has to stay finite: a cosine of 2^-28 is as good as 0 beside a
// sine of 1.
MONARCH_DEVICE float2 as_twiddle(Root root) {
  constexpr double kLeast = 1.0 / (1 << 28);
  const bool tiny = -kLeast < root.cosine && root.cosine < kLeast;
  const float cosine = static_cast<float>(tiny ? kLeast : root.cosine);
  return make_float2(cosine, static_cast<float>(root.sine / cosine));
}
MONARCH_DEVICE float2 as_complex(Root root) {
  return make_float2(static_cast<float>(root.cosine), static_cast<float>(root.sine));
}
// What is left beside (cosine, cosine * tangent), the product rounded.
MONARCH_DEVICE float2 rest_of_twiddle(Root root) {
  const float2 w = as_twiddle(root);
  const float sine = w.x * w.y;
  return as_complex({root.cosine - w.x, root.sine - sine});
}

// e^(2 pi i phase) - 1; the real part is -2 sin^2 of half the angle.
MONARCH_DEVICE float2 minus_one(Phase phase) {
  const Root half = root_of_unity({phase.numerator, 2 * phase.denominator});
  return make_float2(static_cast<float>(-2.0 * half.sine * half.sine),
                     static_cast<float>(2.0 * half.sine * half.cosine));
}

MONARCH_DEVICE float2 table_entry(const PlanShape& plan, int pair, int half, int64_t size) {
  const Root root = root_of_unity(plan.phase(pair, half));
  if (pair < plan.untwist_offset()) return as_twiddle(root);
  if (pair >= plan.low_offset()) return rest_of_twiddle(root);
  const auto divisor = static_cast<double>(odd_part(size));
  return as_complex({root.cosine / divisor, root.sine / divisor});
}

// A number and its rounding error.
MONARCH_DEVICE float4 in_two_parts(Root root) {
  const float2 high = as_complex(root);
  const float2 low = as_complex({root.cosine - high.x, root.sine - high.y});
  return make_float4(high.x, high.y, low.x, low.y);
}

// One thread a pair. In double precision, rounded once.
static __global__ void __launch_bounds__(256) twiddle_kernel(TableParams params) {
  const TransformShape& shape = params.shape;
  const int64_t pair = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (pair >= shape.pairs()) return;
  const int64_t coarse = pair - shape.phase_offset() - kFinePhases / 2;
  if (coarse >= 0) {
    params.table[pair] = in_two_parts(root_of_unity({coarse * kFinePhases, 4 * shape.size}));
    return;
  }
  const auto entry = [&](int half) {
    if (pair < shape.inner_offset()) {
      return table_entry(shape.outer, static_cast<int>(pair), half, shape.size);
    }
    if (pair < shape.phase_offset()) {
      const auto inner = static_cast<int>(pair - shape.inner_offset());
      return table_entry(shape.inner, inner, half, shape.size);
    }
    return minus_one({2 * (pair - shape.phase_offset()) + half, 4 * shape.size});
  };
  const float2 a = entry(0), b = entry(1);
  params.table[pair] = make_float4(a.x, a.y, b.x, b.y);
}

}  // namespace monarch::cuda
