// The kernels of short_conv (docs/math.md, section 7). An item is a run of consecutive samples of
// one row, which share most of what their sums read: a thread loads taps + kRun - 1 numbers for
// kRun results. Neighbouring threads take neighbouring runs, or channels where these lie side by
// side.
#pragma once
#include "cuda/memory.cuh"

namespace monarch::cuda {

constexpr int kRun = 4;
constexpr int kShortThreads = 256;
constexpr int kChannelLanes = 32;   // side by side in a block, where channels are
constexpr int kTapGroup = 8;        // taps whose gradients a thread sums at a time
constexpr int kGradientTurns = 16;  // items a thread sums in float32, before sums of sums

// A channel as number `inside` of a part.
struct ShortChannel {
  uint32_t part, inside;
};

template <class T>
struct Samples {
  T* data;
  int64_t batch_stride, channel_stride, sample_stride, part_stride;

  MONARCH_DEVICE T* row(const ShortChannel& channel, int64_t batch) const {
    return data + batch * batch_stride + channel.part * part_stride +
           channel.inside * channel_stride;
  }
};

struct ShortGrid {
  uint32_t channels, part;  // of all parts; of one
  int64_t length;
  uint32_t runs, items;    // of a row; of a channel
  uint32_t lanes, groups;  // channels of a block; how many blocks have all channels
  uint32_t chunks;         // blocks that share the items of a channel
};

struct ShortFilter {
  const float *s, *bias;
  int64_t taps, left, part_stride;
  bool reversed;

  MONARCH_DEVICE int64_t row(const ShortChannel& channel) const {
    return channel.part * part_stride + channel.inside;
  }
};

// A block's channels and items.
struct ShortShare {
  uint32_t index;  // of the channel
  ShortChannel channel;
  uint32_t chunk, first, step;  // this thread's items of a turn: first, first + step, ...
  bool active;

  MONARCH_DEVICE static ShortShare of(const ShortGrid& grid, uint32_t block) {
    // Neighbouring blocks should be neighbours in memory.
    const bool rows = grid.lanes == 1;
    const uint32_t group = rows ? block / grid.chunks : block % grid.groups;
    const uint32_t index = group * grid.lanes + threadIdx.x % grid.lanes;
    return {index,
            {index / grid.part, index % grid.part},
            rows ? block % grid.chunks : block / grid.groups,
            threadIdx.x / grid.lanes,
            kShortThreads / grid.lanes,
            index < grid.channels};
  }
};

// A row that is zero outside of its length.
template <class T>
struct ShortInput {
  const T* row;
  int64_t stride;
  int length;

  MONARCH_DEVICE float operator()(int t) const {
    return 0 <= t && t < length ? load_cached(row + t * stride) : 0.0f;
  }
};

// c[i] = bias + sum_j s[j] x[first + i - left + j], or its adjoint.
template <class T>
MONARCH_DEVICE void filter_run(const ShortInput<T>& x, const ShortFilter& filter, int64_t row,
                               int first, float (&c)[kRun]) {
  const auto taps = static_cast<int>(filter.taps), left = static_cast<int>(filter.left);
  const float* s = filter.s == nullptr ? nullptr : filter.s + row * filter.taps;
  const float bias = filter.bias == nullptr ? 0.0f : filter.bias[row];
  // The adjoint has the taps in reverse order, and those after the present before it.
  int at = first - (filter.reversed ? taps - 1 - left : left);
  float window[kRun];
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    c[i] = bias;
    if (i > 0) window[i] = x(at + i - 1);
  }
#pragma unroll 1
  for (int j = 0; j < taps; ++j, ++at) {
    const float tap =
        s == nullptr ? 1.0f : device::load_readonly(s + (filter.reversed ? taps - 1 - j : j));
#pragma unroll
    for (int i = 0; i + 1 < kRun; ++i) window[i] = window[i + 1];
    window[kRun - 1] = x(at + kRun - 1);
#pragma unroll
    for (int i = 0; i < kRun; ++i) c[i] = device::fma(tap, window[i], c[i]);
  }
}

template <class T>
MONARCH_DEVICE void store_sample(T* p, float value) {
  if constexpr (sizeof(T) == 4) {
    *p = value;
  } else {
    *p = device::from_float<T>(value);
  }
}

MONARCH_DEVICE float sigmoid(float x) { return 1.0f / (1.0f + device::exp(-x)); }

// y = the filtered x. With dy: y = dy silu'(filtered x). Grid: groups * chunks.
template <class In, class Out>
__global__ void __launch_bounds__(kShortThreads)
    short_conv_kernel(ShortGrid grid, ShortFilter filter, Samples<const In> x, Samples<const In> dy,
                      Samples<Out> y, bool silu) {
  const ShortShare share = ShortShare::of(grid, blockIdx.x);
  const uint32_t item = share.chunk * share.step + share.first;
  if (!share.active || item >= grid.items) return;
  const int64_t batch = item / grid.runs;
  const int first = static_cast<int>(item % grid.runs) * kRun;
  const auto length = static_cast<int>(grid.length);
  float c[kRun];
  filter_run(ShortInput<In>{x.row(share.channel, batch), x.sample_stride, length}, filter,
             filter.row(share.channel), first, c);
  Out* out = y.row(share.channel, batch);
  const In* gradient = dy.data == nullptr ? nullptr : dy.row(share.channel, batch);
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    const int t = first + i;
    if (t >= length) continue;
    float value = c[i];
    if (gradient != nullptr) {
      const float part = sigmoid(value);
      value = load_cached(gradient + t * dy.sample_stride) * part *
              device::fma(value, 1.0f - part, 1.0f);
    } else if (silu) {
      value = value / (1.0f + device::exp(-value));
    }
    store_sample(out + t * y.sample_stride, value);
  }
}

// partials[channel][tap][chunk] = sum over the items of a chunk of d[t] x[t - left + tap]; tap
// `taps` is the bias, whose x is 1. Sums are those of a tree: the same bits every time. Grid:
// groups
// * chunks * quotient(taps, kTapGroup).
template <class X, class D>
__global__ void __launch_bounds__(kShortThreads, 4)
    short_filter_gradient_kernel(ShortGrid grid, ShortFilter filter, Samples<const X> x,
                                 Samples<const D> d, float* partials) {
  MONARCH_STATIC_SHARED(float, sums, (kTapGroup + 1) * kShortThreads);
  const uint32_t blocks = grid.groups * grid.chunks;
  const ShortShare share = ShortShare::of(grid, blockIdx.x % blocks);
  const auto length = static_cast<int>(grid.length), left = static_cast<int>(filter.left);
  const int tap = static_cast<int>(blockIdx.x / blocks) * kTapGroup;
  const int count = min(kTapGroup, static_cast<int>(filter.taps) - tap);
  float sum[kTapGroup + 1];
#pragma unroll
  for (int j = 0; j <= kTapGroup; ++j) sum[j] = 0.0f;
  uint32_t item = share.chunk * share.step * kGradientTurns + share.first;
#pragma unroll 1
  for (int turn = 0; turn < kGradientTurns; ++turn, item += share.step) {
    if (!share.active || item >= grid.items) break;
    const int64_t batch = item / grid.runs;
    const int first = static_cast<int>(item % grid.runs) * kRun;
    const ShortInput<D> in_d{d.row(share.channel, batch), d.sample_stride, length};
    const ShortInput<X> in_x{x.row(share.channel, batch), x.sample_stride, length};
    float gradient[kRun], window[kRun];
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      gradient[i] = in_d(first + i);
      sum[kTapGroup] += gradient[i];
      if (i > 0) window[i] = in_x(first - left + tap + i - 1);
    }
#pragma unroll
    for (int j = 0; j < kTapGroup; ++j) {
      if (j >= count) break;
#pragma unroll
      for (int i = 0; i + 1 < kRun; ++i) window[i] = window[i + 1];
      window[kRun - 1] = in_x(first - left + tap + j + kRun - 1);
#pragma unroll
      for (int i = 0; i < kRun; ++i) sum[j] = device::fma(gradient[i], window[i], sum[j]);
    }
  }
#pragma unroll
  for (int j = 0; j <= kTapGroup; ++j) sums[j * kShortThreads + threadIdx.x] = sum[j];
  // Threads of a channel are `lanes` apart.
  for (uint32_t half = kShortThreads / 2; half >= grid.lanes; half /= 2) {
    device::sync_threads();
    if (threadIdx.x >= half) continue;
#pragma unroll
    for (int j = 0; j <= kTapGroup; ++j) {
      sums[j * kShortThreads + threadIdx.x] += sums[j * kShortThreads + threadIdx.x + half];
    }
  }
  if (threadIdx.x >= grid.lanes || !share.active) return;
  float* own = partials + share.index * (filter.taps + 1) * grid.chunks + share.chunk;
  for (int j = 0; j < count; ++j) {
    own[static_cast<int64_t>(tap + j) * grid.chunks] = sums[j * kShortThreads + threadIdx.x];
  }
  if (tap == 0)
    own[static_cast<int64_t>(filter.taps) * grid.chunks] =
        sums[kTapGroup * kShortThreads + threadIdx.x];
}

// ds and ds_bias from the partial sums, in float64. One thread a number.
static __global__ void __launch_bounds__(kShortThreads)
    short_sum_kernel(ShortGrid grid, ShortFilter filter, const float* partials, float* ds,
                     float* ds_bias) {
  const int64_t index = int64_t{blockIdx.x} * kShortThreads + threadIdx.x;
  const int64_t taps = filter.taps;
  if (index >= grid.channels * (taps + 1)) return;
  const auto channel = static_cast<uint32_t>(index / (taps + 1));
  const int64_t tap = index % (taps + 1);
  double sum = 0.0;
  for (int64_t i = 0; i < grid.chunks; ++i) {
    sum += static_cast<double>(partials[index * grid.chunks + i]);
  }
  float* out = tap < taps ? ds : ds_bias;
  if (out == nullptr) return;
  const int64_t row = filter.row({channel / grid.part, channel % grid.part});
  out[tap < taps ? row * taps + tap : row] = static_cast<float>(sum);
}

}  // namespace monarch::cuda
