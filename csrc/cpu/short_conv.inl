// Short depthwise convolutions, c[t] = bias + sum_j s[j] x[t - left + j] with zeros outside of the
// row, and their gradients: the operator short_conv, and what mixer_conv does to its rows.
#pragma once
#include "cpu/dispatch.h"
#include "cpu/simd.h"

namespace monarch::cpu {
namespace {

// ---- Rows of consecutive samples

template <class T>
struct ShortRow {
  const T* x;
  int64_t length;
  const float* s;
  int64_t taps, left;
  float bias;
};

MONARCH_INLINE Vec first_lanes(Vec v, int64_t count) {
  float lanes[kLanes];
  store(lanes, v);
  for (int64_t i = count < 0 ? 0 : count; i < kLanes; ++i) lanes[i] = 0.0f;
  return load(lanes);
}

// The filtered row, vector by vector. kTaps = 0: any number of taps, else at most kLanes.
template <class T, int kTaps>
class ShortFilter {
 public:
  MONARCH_MEMBER explicit ShortFilter(const ShortRow<T>& row) : row_(row), bias_(splat(row.bias)) {
    for (int j = 0; j < kTaps; ++j) s_[j] = splat(row.s[j]);
  }
  // Vector v of the result, zero from the row's length on.
  MONARCH_MEMBER Vec operator()(int64_t v) const {
    const int64_t t = v * kLanes, right = taps() - 1 - row_.left;
    if (__builtin_expect(t < row_.left || t + kLanes + right > row_.length, 0)) return edge(t);
    return sum(row_.x + t - row_.left);
  }
  // sum_j s[j] x[j], and bias.
  MONARCH_MEMBER Vec sum(const T* x) const {
    Vec c = bias_;
    if constexpr (kTaps > 0) {
#pragma GCC unroll 4
      for (int j = 0; j < kTaps; ++j) c += s_[j] * load(x + j);
    } else {
      for (int64_t j = 0; j < row_.taps; ++j) c += row_.s[j] * load(x + j);
    }
    return c;
  }

 private:
  MONARCH_MEMBER int64_t taps() const { return kTaps > 0 ? kTaps : row_.taps; }

  // Near an end of the row.
  __attribute__((noinline)) Vec edge(int64_t t) const {
    const int64_t inside = row_.length - t;
    if constexpr (kTaps > 0) {
      T window[3 * kLanes];
      store(window, t >= kLanes ? load(row_.x + t - kLanes) : Vec{});
      store(window + kLanes,
            inside >= kLanes ? load(row_.x + t) : load_partial(row_.x + t, inside));
      store(window + 2 * kLanes, load_clipped(row_.x, t + kLanes, row_.length));
      return first_lanes(sum(window + kLanes - row_.left), inside);
    }
    Vec c = bias_;
    for (int64_t j = 0; j < row_.taps; ++j) {
      c += row_.s[j] * load_clipped(row_.x, t - row_.left + j, row_.length);
    }
    return first_lanes(c, inside);
  }

  const ShortRow<T> row_;
  Vec s_[kTaps > 0 ? kTaps : 1];
  Vec bias_;
};

template <int N>
struct Taps {
  static constexpr int value = N;
};
// Calls f with the number of taps as a constant, 0 for one that has no loop of its own.
template <class F>
MONARCH_INLINE void with_taps(int64_t taps, F&& f) {
  switch (taps) {
    case 1:
      return f(Taps<1>{});
    case 3:
      return f(Taps<3>{});
    case 4:
      return f(Taps<4>{});
    default:
      return f(Taps<0>{});
  }
}

constexpr int64_t vectors_of(int64_t length) { return (length + kLanes - 1) / kLanes; }

template <class T>
MONARCH_INLINE void store_cropped(T* y, int64_t v, Vec value, int64_t length) {
  const int64_t left = length - v * kLanes;
  if (__builtin_expect(left >= kLanes, 1)) {
    store(y + v * kLanes, value);
  } else {
    store_partial(y + v * kLanes, value, left);
  }
}
template <class T>
MONARCH_INLINE Vec load_cropped(const T* x, int64_t v, int64_t length) {
  const int64_t left = length - v * kLanes;
  return __builtin_expect(left >= kLanes, 1) ? load(x + v * kLanes)
                                             : load_partial(x + v * kLanes, left);
}

// ---- Gradients of a row: dx[t] = sum_j s[j] dc[t + left - j], ds[j] = sum_t dc[t] x[t - left + j]

// dc must be readable, and zero, for taps samples before its first and taps + kLanes after its
// last one. `reversed` is s backwards.
template <class T>
static void short_input_gradient(T* dx, const float* dc, const float* reversed, int64_t taps,
                                 int64_t left, int64_t length) {
  const ShortRow<float> row{dc, length, reversed, taps, taps - 1 - left, 0.0f};
  with_taps(taps, [&](auto n) {
    const ShortFilter<float, n.value> filter(row);
    for (int64_t v = 0; v < vectors_of(length); ++v) {
      store_cropped(dx, v, filter.sum(dc + v * kLanes - row.left), length);
    }
  });
}

static double sum_of_lanes(Vec v) {
  double sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += v[i];
  return sum;
}

// A lane adds this many numbers in float before they go into a double.
constexpr int64_t kSumVectors = 64;

// sums[j] += ds[j], and sums[taps] += sum_t dc[t], the bias's. dc is zero from the length on.
template <class T>
static void add_short_gradients(double* sums, const float* dc, const ShortRow<T>& row) {
  const int64_t vectors = vectors_of(row.length), right = row.taps - 1 - row.left;
  // The vectors for which all taps lie in the row.
  const int64_t inner_begin = vectors_of(row.left);
  const int64_t inner_end = (row.length - right) / kLanes;  // may be negative
  const auto shifted = [&](int64_t v, int64_t j) {
    return load_clipped(row.x, v * kLanes - row.left + j, row.length);
  };
  for (int64_t block = 0; block < vectors; block += kSumVectors) {
    const int64_t end = block + kSumVectors < vectors ? block + kSumVectors : vectors;
    int64_t first = inner_begin > block ? inner_begin : block;
    if (first > end) first = end;
    int64_t last = inner_end < end ? inner_end : end;
    if (last < first) last = first;
    with_taps(row.taps, [&](auto n) {
      if constexpr (n.value > 0) {
        Vec sum[n.value] = {}, bias{};
        for (int64_t v = first; v < last; ++v) {
          const Vec d = load(dc + v * kLanes);
          const T* x = row.x + v * kLanes - row.left;
          bias += d;
#pragma GCC unroll 4
          for (int j = 0; j < n.value; ++j) sum[j] += d * load(x + j);
        }
        const auto edge = [&](int64_t v) {
          const Vec d = load(dc + v * kLanes);
          bias += d;
          for (int j = 0; j < n.value; ++j) sum[j] += d * shifted(v, j);
        };
        for (int64_t v = block; v < first; ++v) edge(v);
        for (int64_t v = last; v < end; ++v) edge(v);
        for (int j = 0; j < n.value; ++j) sums[j] += sum_of_lanes(sum[j]);
        sums[n.value] += sum_of_lanes(bias);
      } else {
        for (int64_t j = 0; j <= row.taps; ++j) {
          Vec sum{};
          for (int64_t v = block; v < end; ++v) {
            const Vec d = load(dc + v * kLanes);
            if (j == row.taps) {
              sum += d;
            } else if (v >= first && v < last) {
              sum += d * load(row.x + v * kLanes - row.left + j);
            } else {
              sum += d * shifted(v, j);
            }
          }
          sums[j] += sum_of_lanes(sum);
        }
      }
    });
  }
}

// ---- SiLU

typedef int32_t IntVec __attribute__((vector_size(kLanes * 4)));

// e^x for |x| <= 87, relative error 2^-23 or so: x = n ln 2 + r, a polynomial in r (Cephes' expf).
MONARCH_INLINE Vec exponential(Vec x) {
  const Vec limit = splat(87.0f);
  x = x > limit ? limit : x;
  x = x < -limit ? -limit : x;
  const Vec shift = splat(0x1.8p23f);  // its last bit is 1: the sum is rounded to whole numbers
  const Vec shifted = x * 1.44269504088896341f + shift;
  const Vec n = shifted - shift;
  const Vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = (p * r) * r + r + 1.0f;
  // The whole number stands in the last bits of the sum: 2^n by the exponent's field.
  const IntVec power = ((IntVec)shifted + 127) << 23;
  return p * (Vec)power;
}
MONARCH_INLINE Vec sigmoid(Vec x) { return 1.0f / (1.0f + exponential(-x)); }
MONARCH_INLINE Vec silu(Vec x) { return x * sigmoid(x); }
MONARCH_INLINE Vec silu_slope(Vec x) {
  const Vec s = sigmoid(x);
  return s + s * x * (1.0f - s);
}

// ---- The operator, (B, H, L): an item is a row; in the backward, the rows of a channel

template <class T>
static const T* nth(const ShortConvArray& a, int64_t b, int64_t row) {
  return static_cast<const T*>(a.data) + b * a.batch_stride + row * a.row_stride;
}

template <class T>
static ShortRow<T> short_row(const ShortConvParams& p, int64_t b, int64_t h) {
  const float bias = p.s_bias ? p.s_bias[h] : 0.0f;
  return {nth<T>(p.x, b, h), p.length, p.s + h * p.taps, p.taps, p.left, bias};
}

template <class T>
static void short_conv_fwd_rows(const ShortConvParams& p, int64_t begin, int64_t end) {
  const int64_t vectors = vectors_of(p.length);
  with_taps(p.taps, [&](auto n) {
    for (int64_t item = begin; item < end; ++item) {
      const ShortFilter<T, n.value> filter(short_row<T>(p, item / p.channels, item % p.channels));
      T* y = static_cast<T*>(p.y) + item * p.length;
      if (p.silu) {
        for (int64_t v = 0; v < vectors; ++v) store_cropped(y, v, silu(filter(v)), p.length);
      } else {
        for (int64_t v = 0; v < vectors; ++v) store_cropped(y, v, filter(v), p.length);
      }
    }
  });
}

template <class T>
static void short_conv_bwd_rows(const ShortConvBackwardParams& p, float* workspace, int64_t begin,
                                int64_t end) {
  const int64_t vectors = vectors_of(p.length), pad = (p.taps + 15) / 16 * 16;
  auto* sums = reinterpret_cast<double*>(workspace);  // taps + 1
  float* reversed = workspace + 2 * (pad + 16);
  float* dc = reversed + pad + pad;  // behind `pad` zeros
  std::memset(dc - pad, 0, static_cast<size_t>(pad) * sizeof(float));
  std::memset(dc + vectors * kLanes, 0, static_cast<size_t>(pad + kLanes) * sizeof(float));
  for (int64_t h = begin; h < end; ++h) {
    for (int64_t j = 0; j <= p.taps; ++j) sums[j] = 0;
    for (int64_t j = 0; j < p.taps; ++j) reversed[j] = p.s[h * p.taps + p.taps - 1 - j];
    for (int64_t b = 0; b < p.batch; ++b) {
      const ShortRow<T> row = short_row<T>(p, b, h);
      const T* dy = nth<T>(p.dy, b, h);
      if (p.silu) {
        with_taps(p.taps, [&](auto n) {
          const ShortFilter<T, n.value> filter(row);
          for (int64_t v = 0; v < vectors; ++v) {
            store(dc + v * kLanes, load_cropped(dy, v, p.length) * silu_slope(filter(v)));
          }
        });
      } else {
        for (int64_t v = 0; v < vectors; ++v) {
          store(dc + v * kLanes, load_cropped(dy, v, p.length));
        }
      }
      if (p.ds || p.ds_bias) add_short_gradients(sums, dc, row);
      if (p.dx) {
        T* dx = static_cast<T*>(p.dx) + (b * p.channels + h) * p.length;
        short_input_gradient(dx, dc, reversed, p.taps, p.left, p.length);
      }
    }
    for (int64_t j = 0; p.ds && j < p.taps; ++j) {
      p.ds[h * p.taps + j] = static_cast<float>(sums[j]);
    }
    if (p.ds_bias) p.ds_bias[h] = static_cast<float>(sums[p.taps]);
  }
}

// ---- The operator, (B, L, H): a vector holds one sample of kLanes channels
// Forward, an item is some samples of all channels; backward, all samples of kLanes channels, in
// chunks whose dc is held in scratch.

constexpr int64_t kChunk = 64, kBackwardChunk = 256;

// x[t] of the channels from h on; zeros outside of the sequence and behind the last channel.
template <class T>
MONARCH_INLINE Vec load_sample(const T* x, int64_t row_stride, int64_t t, int64_t length,
                               int64_t count) {
  if (t < 0 || t >= length) return Vec{};
  const T* p = x + t * row_stride;
  return count >= kLanes ? load(p) : load_partial(p, count);
}

// The filters of `count` channels from h on, one a lane: taps vectors, and that of the bias.
static void load_filters(float* out, const ShortConvParams& p, int64_t h, int64_t count) {
  for (int64_t j = 0; j <= p.taps; ++j) {
    for (int64_t i = 0; i < kLanes; ++i) {
      float value = 0.0f;
      if (i < count) {
        value = j < p.taps ? p.s[(h + i) * p.taps + j] : p.s_bias ? p.s_bias[h + i] : 0.0f;
      }
      out[j * kLanes + i] = value;
    }
  }
}

template <class T>
MONARCH_INLINE Vec filtered_sample(const ShortConvParams& p, const float* filters, const T* x,
                                   int64_t t, int64_t count) {
  Vec c = load(filters + p.taps * kLanes);
  for (int64_t j = 0; j < p.taps; ++j) {
    c += load(filters + j * kLanes) *
         load_sample(x, p.x.row_stride, t - p.left + j, p.length, count);
  }
  return c;
}

template <class T>
static void short_conv_fwd_samples(const ShortConvParams& p, float* workspace, int64_t begin,
                                   int64_t end) {
  const int64_t chunks = (p.length + kChunk - 1) / kChunk, step = (p.taps + 1) * kLanes;
  for (int64_t h = 0; h < p.channels; h += kLanes) {
    load_filters(workspace + h / kLanes * step, p, h, p.channels - h);
  }
  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / chunks, first = item % chunks * kChunk;
    const int64_t last = first + kChunk < p.length ? first + kChunk : p.length;
    for (int64_t t = first; t < last; ++t) {
      T* y = static_cast<T*>(p.y) + (b * p.length + t) * p.channels;
      for (int64_t h = 0; h < p.channels; h += kLanes) {
        const int64_t count = p.channels - h;
        Vec c = filtered_sample(p, workspace + h / kLanes * step, nth<T>(p.x, b, 0) + h, t, count);
        if (p.silu) c = silu(c);
        store_cropped(y, h / kLanes, c, p.channels);
      }
    }
  }
}

template <class T>
static void short_conv_bwd_samples(const ShortConvBackwardParams& p, float* workspace,
                                   int64_t begin, int64_t end) {
  const int64_t right = p.taps - 1 - p.left, vectors = p.taps + 1;
  auto* totals = reinterpret_cast<double*>(workspace);  // (taps + 1, kLanes)
  float* filters = workspace + 2 * vectors * kLanes;
  float* sums = filters + vectors * kLanes;
  float* dc = sums + vectors * kLanes;  // of samples first - right .. last + left - 1
  for (int64_t item = begin; item < end; ++item) {
    const int64_t h = item * kLanes, count = p.channels - h;
    load_filters(filters, p, h, count);
    for (int64_t i = 0; i < vectors * kLanes; ++i) totals[i] = 0;
    for (int64_t chunk = 0; chunk < p.batch * p.length;) {
      const int64_t b = chunk / p.length, first = chunk % p.length;
      const int64_t last = first + kBackwardChunk < p.length ? first + kBackwardChunk : p.length;
      chunk += last - first;
      const T *x = nth<T>(p.x, b, 0) + h, *dy = nth<T>(p.dy, b, 0) + h;
      for (int64_t t = first - right; t < last + p.left; ++t) {
        Vec d = load_sample(dy, p.dy.row_stride, t, p.length, count);
        if (p.silu && t >= 0 && t < p.length) {
          d = d * silu_slope(filtered_sample(p, filters, x, t, count));
        }
        store(dc + (t - first + right) * kLanes, d);
      }
      std::memset(sums, 0, static_cast<size_t>(vectors * kLanes) * sizeof(float));
      for (int64_t t = first; t < last; ++t) {
        const Vec d = load(dc + (t - first + right) * kLanes);
        Vec dx{};
        for (int64_t j = 0; j < p.taps; ++j) {
          float* sum = sums + j * kLanes;
          const Vec sample = load_sample(x, p.x.row_stride, t - p.left + j, p.length, count);
          store(sum, load(sum) + d * sample);
          dx += load(filters + j * kLanes) * load(dc + (t + p.left - j - first + right) * kLanes);
        }
        float* sum = sums + p.taps * kLanes;
        store(sum, load(sum) + d);
        if (p.dx) {
          T* out = static_cast<T*>(p.dx) + (b * p.length + t) * p.channels;
          store_cropped(out, item, dx, p.channels);
        }
      }
      for (int64_t i = 0; i < vectors * kLanes; ++i) totals[i] += sums[i];
    }
    for (int64_t i = 0; i < kLanes && i < count; ++i) {
      for (int64_t j = 0; p.ds && j < p.taps; ++j) {
        p.ds[(h + i) * p.taps + j] = static_cast<float>(totals[j * kLanes + i]);
      }
      if (p.ds_bias) p.ds_bias[h + i] = static_cast<float>(totals[p.taps * kLanes + i]);
    }
  }
}

static void run_short_conv_fwd(const ShortConvParams& p, float* workspace, int64_t begin,
                               int64_t end) {
  with_scalar(p.scalar, [&](auto zero) {
    using T = decltype(zero);
    if (p.channels_last) {
      short_conv_fwd_samples<T>(p, workspace, begin, end);
    } else {
      short_conv_fwd_rows<T>(p, begin, end);
    }
  });
}

static void run_short_conv_bwd(const ShortConvBackwardParams& p, float* workspace, int64_t begin,
                               int64_t end) {
  with_scalar(p.scalar, [&](auto zero) {
    using T = decltype(zero);
    if (p.channels_last) {
      short_conv_bwd_samples<T>(p, workspace, begin, end);
    } else {
      short_conv_bwd_rows<T>(p, workspace, begin, end);
    }
  });
}

}  // namespace
}  // namespace monarch::cpu
