// Launchers of short_conv.
#include "cuda/short_conv.h"

#include "cuda/fft_conv_launch.cuh"
#include "cuda/short_conv.cuh"

namespace monarch::cuda {
namespace {

ShortGrid grid_of(const ShortRows& rows, int turns) {
  ShortGrid grid{};
  grid.channels = static_cast<uint32_t>(rows.channels);
  grid.part = static_cast<uint32_t>(std::max<int64_t>(1, rows.channels / rows.parts));
  grid.length = rows.length;
  const int64_t runs = quotient(rows.length, kRun), items = rows.batch * runs;
  if (items > 0x7fffffff) {
    std::ostringstream message;
    message << rows.operation << ": " << rows.batch << " rows of " << rows.length
            << " samples a channel are too many";
    throw std::runtime_error(message.str());
  }
  grid.runs = static_cast<uint32_t>(runs);
  grid.items = static_cast<uint32_t>(items);
  grid.lanes = rows.channels_last ? kChannelLanes : 1;
  grid.groups = static_cast<uint32_t>(quotient(rows.channels, grid.lanes));
  const int64_t items_of_block = int64_t{turns} * kShortThreads / grid.lanes;
  grid.chunks = static_cast<uint32_t>(quotient(items, items_of_block));
  return grid;
}

ShortFilter filter_of(const ShortRows& rows, bool reversed) {
  return {rows.s, rows.s_bias, rows.taps, rows.left, rows.filter_part_stride, reversed};
}

CallShape shape_of(const ShortRows& rows) {
  return {rows.batch, rows.channels, rows.length, rows.operation};
}

template <class T>
Samples<const T> source(const SampleArray& a) {
  return {static_cast<const T*>(a.data), a.batch_stride, a.channel_stride, a.sample_stride,
          a.part_stride};
}
template <class T>
Samples<T> target(const SampleArray& a) {
  return {static_cast<T*>(const_cast<void*>(a.data)), a.batch_stride, a.channel_stride,
          a.sample_stride, a.part_stride};
}

// use(a, b) with numbers of the two types, the second of which is the first or float.
template <class Use>
void with_second(Scalar first, Scalar second, Use use) {
  with_scalar(first, [&](auto a) {
    if (second == first) {
      use(a, a);
    } else {
      use(a, float{});
    }
  });
}

// One of the two is float, or both are the same.
template <class Use>
void with_scalars(Scalar first, Scalar second, Use use) {
  if (first != Scalar::kFloat32) return with_second(first, second, use);
  with_scalar(second, [&](auto b) { use(float{}, b); });
}

void filter_rows_with(const ShortRows& rows, const SampleArray& x, const SampleArray& dy,
                      const SampleArray& y, ShortForm form, const Launch& launch) {
  const ShortGrid grid = grid_of(rows, 1);
  with_scalars(x.scalar, y.scalar, [&](auto in, auto out) {
    using In = decltype(in);
    using Out = decltype(out);
    start("short_conv_kernel", shape_of(rows), launch, short_conv_kernel<In, Out>,
          int64_t{grid.groups} * grid.chunks, kShortThreads, 0, grid,
          filter_of(rows, form.reversed), source<In>(x), source<In>(dy), target<Out>(y), form.silu);
  });
}

}  // namespace

void filter_rows(const ShortRows& rows, const SampleArray& x, const SampleArray& y, ShortForm form,
                 const Launch& launch) {
  filter_rows_with(rows, x, {}, y, form, launch);
}

int64_t short_partial_floats(const ShortRows& rows) {
  return rows.channels * (rows.taps + 1) * grid_of(rows, kGradientTurns).chunks;
}

void short_filter_gradient(const ShortRows& rows, const SampleArray& x, const SampleArray& d,
                           float* partials, float* ds, float* ds_bias, const Launch& launch) {
  const ShortGrid grid = grid_of(rows, kGradientTurns);
  const int64_t blocks = int64_t{grid.groups} * grid.chunks * quotient(rows.taps, kTapGroup);
  with_second(x.scalar, d.scalar, [&](auto in, auto gradient) {
    using X = decltype(in);
    using D = decltype(gradient);
    start("short_filter_gradient_kernel", shape_of(rows), launch,
          short_filter_gradient_kernel<X, D>, blocks, kShortThreads, 0, grid,
          filter_of(rows, false), source<X>(x), source<D>(d), partials);
  });
  start("short_sum_kernel", shape_of(rows), launch, short_sum_kernel,
        quotient(rows.channels * (rows.taps + 1), kShortThreads), kShortThreads, 0, grid,
        filter_of(rows, false), partials, ds, ds_bias);
}

// ---- The operator

namespace {

ShortRows rows_of(const ShortConvParams& p) {
  return {"short_conv", p.batch, p.channels, p.length,       p.s,
          p.s_bias,     p.taps,  p.left,     p.channels_last};
}

SampleArray array_of(const ShortConvParams& p, const ShortConvArray& a) {
  return p.channels_last ? SampleArray{a.data, p.scalar, a.batch_stride, 1, a.row_stride}
                         : SampleArray{a.data, p.scalar, a.batch_stride, a.row_stride, 1};
}
SampleArray contiguous(const ShortConvParams& p, const void* data, Scalar scalar) {
  SampleArray a =
      array_of(p, {data, p.channels * p.length, p.channels_last ? p.channels : p.length});
  a.scalar = scalar;
  return a;
}

// Before an activation, in float32; nothing without one.
int64_t gradient_bytes(const ShortConvParams& p) {
  return p.silu ? aligned(p.batch * p.channels * p.length * 4) : 0;
}

}  // namespace

void short_conv_fwd(const ShortConvParams& p, const Launch& launch) {
  filter_rows(rows_of(p), array_of(p, p.x), contiguous(p, p.y, p.scalar), {false, p.silu}, launch);
}

int64_t short_conv_bwd_scratch(const ShortConvBackwardParams& p, const DeviceLimits&) {
  return gradient_bytes(p) + short_partial_floats(rows_of(p)) * 4;
}

void short_conv_bwd(const ShortConvBackwardParams& p, void* scratch, const Launch& launch) {
  const ShortRows rows = rows_of(p);
  const SampleArray x = array_of(p, p.x);
  SampleArray d = array_of(p, p.dy);
  if (p.silu && (p.dx != nullptr || p.ds != nullptr || p.ds_bias != nullptr)) {
    const SampleArray before = contiguous(p, scratch, Scalar::kFloat32);
    filter_rows_with(rows, x, d, before, {}, launch);
    d = before;
  }
  if (p.dx != nullptr) {
    ShortRows adjoint = rows;
    adjoint.s_bias = nullptr;
    filter_rows(adjoint, d, contiguous(p, p.dx, p.scalar), {true, false}, launch);
  }
  if (p.ds == nullptr && p.ds_bias == nullptr) return;
  auto* partials =
      reinterpret_cast<float*>(static_cast<unsigned char*>(scratch) + gradient_bytes(p));
  short_filter_gradient(rows, x, d, partials, p.ds, p.ds_bias, launch);
}

}  // namespace monarch::cuda
