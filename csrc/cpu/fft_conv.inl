// fft_conv on rows: y = postgate * Re(F^-1(K F(pregate * u))), and its gradients. One text for
// every instruction set. A unit of work is one row (a vector holds consecutive samples), or the
// rows of kLanes channels (interleaved: a vector holds one sample of each); only reading and
// writing differ.
#pragma once
#include "cpu/dispatch.h"
#include "cpu/fft.inl"

namespace monarch::cpu {
namespace {

// ---- Reading and writing rows

// x * gate, or x; vectors of consecutive samples.
template <class T>
struct Input {
  const T* x;
  const T* gate;                  // or nullptr
  int64_t x_stride, gate_stride;  // to the next channel

  Input channel(int64_t i) const {
    return {x + i * x_stride, gate ? gate + i * gate_stride : nullptr, x_stride, gate_stride};
  }
  MONARCH_MEMBER Vec operator()(int64_t v) const {
    const Vec value = load(x + v * kLanes);
    return gate ? value * load(gate + v * kLanes) : value;
  }
  // The v-th vector of a row of `length` samples continued by zeros.
  Vec padded(int64_t v, int64_t length) const {
    const int64_t left = length - v * kLanes;
    if (left >= kLanes) return (*this)(v);
    if (left <= 0) return Vec{};
    const Vec value = load_partial(x + v * kLanes, left);
    return gate ? value * load_partial(gate + v * kLanes, left) : value;
  }
};

// y = gate * value, and a second product where y2 is given (the two gradients of a gated input).
template <class T>
struct Output {
  T* y;
  const T* gate;  // or nullptr: y = value
  int64_t y_stride, gate_stride;
  T* y2 = nullptr;
  const T* gate2 = nullptr;
  int64_t gate2_stride = 0;
  bool streamed = false;  // non-temporal stores; y is 64-byte aligned

  Output channel(int64_t i) const {
    Output out = *this;
    if (y) out.y += i * y_stride;
    if (gate) out.gate += i * gate_stride;
    if (y2) out.y2 += i * y_stride;
    if (gate2) out.gate2 += i * gate2_stride;
    return out;
  }
  MONARCH_MEMBER void operator()(int64_t v, Vec value) const {
    if (y2) store(y2 + v * kLanes, value * load(gate2 + v * kLanes));
    if (!y) return;
    const Vec gated = gate ? value * load(gate + v * kLanes) : value;
    if (streamed) {
      stream(y + v * kLanes, gated);
    } else {
      store(y + v * kLanes, gated);
    }
  }
  void cropped(int64_t v, Vec value, int64_t length) const {
    const int64_t left = length - v * kLanes;
    if (left >= kLanes) return (*this)(v, value);
    if (left <= 0) return;
    if (y2) store_partial(y2 + v * kLanes, value * load_partial(gate2 + v * kLanes, left), left);
    if (!y) return;
    const Vec gated = gate ? value * load_partial(gate + v * kLanes, left) : value;
    store_partial(y + v * kLanes, gated, left);
  }
};

template <class T>
Input<T> input(const Rows& x, const Rows& gate, int64_t b, int64_t h) {
  const T* data = static_cast<const T*>(x.data) + b * x.batch_stride + h * x.channel_stride;
  const T* factor = static_cast<const T*>(gate.data);
  if (factor) factor += b * gate.batch_stride + h * gate.channel_stride;
  return {data, factor, x.channel_stride, gate.channel_stride};
}

// A unit of work and the scratch for its real samples (plan.size vectors or samples).
struct Unit {
  const Plan& plan;
  float* staging;
  int64_t length;
  int64_t channels;  // 1, or up to kLanes when interleaved
};

MONARCH_INLINE void transpose(Vec (&rows)[kLanes]) {
#pragma GCC unroll 4
  for (int i = 0; i < kLanes; i += 4) {
    transpose_quads(rows[i], rows[i + 1], rows[i + 2], rows[i + 3]);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    Vec block[kQuads];
#pragma GCC unroll 4
    for (int i = 0; i < kQuads; ++i) block[i] = rows[4 * i + c];
    transpose_blocks(block);
#pragma GCC unroll 4
    for (int i = 0; i < kQuads; ++i) rows[4 * i + c] = block[i];
  }
}

template <bool kInterleaved, class T>
static void stage_in(const Unit& unit, const Input<T>& in) {
  if constexpr (!kInterleaved) {
    for (int64_t v = 0; v < unit.plan.columns; ++v) {
      store(unit.staging + v * kLanes, in.padded(v, unit.length));
    }
    return;
  }
  for (int64_t v = 0; v < unit.plan.size / kLanes; ++v) {
    Vec rows[kLanes];
    if (unit.channels == kLanes && (v + 1) * kLanes <= unit.length) {
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) rows[i] = in.channel(i)(v);
    } else {
      for (int i = 0; i < kLanes; ++i) {
        rows[i] = i < unit.channels ? in.channel(i).padded(v, unit.length) : Vec{};
      }
    }
    transpose(rows);
    for (int j = 0; j < kLanes; ++j) store(unit.staging + (v * kLanes + j) * kLanes, rows[j]);
  }
}

template <bool kInterleaved, class T>
static void stage_out(const Unit& unit, const Output<T>& out) {
  const int64_t used = (unit.length + kLanes - 1) / kLanes;
  for (int64_t v = 0; v < used; ++v) {
    if constexpr (!kInterleaved) {
      out.cropped(v, load(unit.staging + v * kLanes), unit.length);
      continue;
    }
    Vec rows[kLanes];
    for (int j = 0; j < kLanes; ++j) rows[j] = load(unit.staging + (v * kLanes + j) * kLanes);
    transpose(rows);
    if (unit.channels == kLanes && (v + 1) * kLanes <= unit.length) {
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) out.channel(i)(v, rows[i]);
    } else {
      for (int i = 0; i < unit.channels; ++i) out.channel(i).cropped(v, rows[i], unit.length);
    }
  }
}

// in -> F -> op -> F^-1 -> real part -> out, or the half of it that kWalk names. A row of exactly S
// samples is read and written by the first and the last pass; others go through the staging area.
template <bool kInterleaved, Walk kWalk, class T, class Op>
static void transform_unit(const Unit& unit, float* row, const Input<T>& in, Op op,
                           const Output<T>& out) {
  if constexpr (!kInterleaved) {
    if (unit.length == unit.plan.size) {
      // The usual results get loops of their own, without a choice in each of their iterations.
      T* y = out.y;
      const T* gate = out.gate;
      if (out.y2 || !y) {
        transform_real<false, kWalk>(unit.plan, row, in, op, out);
      } else if (out.streamed) {
        transform_real<false, kWalk>(unit.plan, row, in, op, [=](int64_t v, Vec value) {
          stream(y + v * kLanes, gate ? value * load(gate + v * kLanes) : value);
        });
      } else {
        transform_real<false, kWalk>(unit.plan, row, in, op, [=](int64_t v, Vec value) {
          store(y + v * kLanes, gate ? value * load(gate + v * kLanes) : value);
        });
      }
      return;
    }
  }
  if constexpr (goes_down(kWalk)) stage_in<kInterleaved>(unit, in);
  float* staging = unit.staging;
  transform_real<kInterleaved, kWalk>(
      unit.plan, row, [staging](int64_t v) { return load(staging + v * kLanes); }, op,
      [staging](int64_t v, Vec value) { store(staging + v * kLanes, value); });
  if constexpr (goes_up(kWalk)) stage_out<kInterleaved>(unit, out);
}

// ---- Units

template <bool kInterleaved>
constexpr int64_t kUnitChannels = kInterleaved ? kLanes : 1;

template <bool kInterleaved, class Params>
static Unit make_unit(const Params& p, const Context& context, float* staging, int64_t index) {
  const int64_t left = p.channels - index * kUnitChannels<kInterleaved>;
  return {context.plan, staging, p.length,
          left < kUnitChannels<kInterleaved> ? left : kUnitChannels<kInterleaved>};
}

// Offset of a unit's spectrum; it is stored in the order of the walk, without padding.
MONARCH_INLINE int64_t spectrum_offset(const Plan& plan, int64_t unit) {
  return unit * plan.columns * kStep;
}

static float* nth_row(const Context& context, int index) {
  return context.workspace + index * row_floats(context.plan);
}

// ---- The filter's spectrum: F(k[n] - i k_rev[S-1-n]) / S

// Adds c * k[j] to coefficient `from` + j * step, step 1 or -1, of one part (0: real, 1: imaginary)
// of a channel.
template <bool kInterleaved>
static void add_taps(float* row, int part, int64_t lane, const float* k, int64_t taps, int64_t from,
                     int64_t step, float c) {
  if constexpr (kInterleaved) {
    for (int64_t j = 0; j < taps; ++j) {
      at(row, from + j * step)[part * kLanes + lane] += c * k[j];
    }
    return;
  }
  if (taps == 0) return;
  const int64_t last = from + (taps - 1) * step;
  const int64_t begin = (step > 0 ? from : last) / kLanes;
  const int64_t end = (step > 0 ? last : from) / kLanes + 1;
  for (int64_t v = begin; v < end; ++v) {
    // Coefficient n = v kLanes + lane is that of tap n - from, or from - n.
    const int64_t j = step > 0 ? v * kLanes - from : from - v * kLanes - (kLanes - 1);
    const bool inside = j >= 0 && j + kLanes <= taps;
    Vec tap = inside ? load(k + j) : load_clipped(k, j, taps);
    if (step < 0) tap = reversed(tap);
    float* out = at(row, v) + part * kLanes;
    store(out, load(out) + c * tap);
  }
}

// The forward transform of n vectors, `levels` passes deep.
template <class Real>
static void split(ComplexOf<Real>* row, int64_t n, const int* radix, int levels,
                  const double*& twiddles) {
  const double* w = twiddles;
  twiddles += 2 * (*radix - 1);
  const int64_t child = n / *radix;
  with_radix(*radix, [&](auto r) {
    constexpr int R = r.value;
    for (int64_t v = 0; v < child; ++v) {
      ComplexOf<Real> x[R];
      x[0] = row[v];
      for (int j = 1; j < R; ++j) {
        x[j] = rotate<false>(row[v + j * child], w[2 * j - 2], w[2 * j - 1]);
      }
      dft<R, false>(x);
      for (int j = 0; j < R; ++j) row[v + j * child] = x[j];
    }
  });
  if (levels == 1) return;
  for (int64_t s = 0; s < n; s += child) split(row + s, child, radix + 1, levels - 1, twiddles);
}

// The spectrum of an interleaved row, times scale, computed in Real. Made once a channel, it
// brings what kernels without fused multiply-adds lose elsewhere.
template <class Real>
static void interleaved_spectrum(const Plan& plan, float* row, float scale, float* out) {
  using V = typename VectorOf<Real>::type;
  ComplexOf<Real> values[kInterleavedMax];
  for (int64_t v = 0; v < plan.columns; ++v) {
    const Complex x = load_complex(at(row, v));
    values[v] = {__builtin_convertvector(x.re, V), __builtin_convertvector(x.im, V)};
  }
  Radices passes = plan.passes;
  for (int stage = 0; stage < 2; ++stage) passes.radix[passes.count++] = 4;  // those of a leaf
  const double* twiddles = plan.double_scalars;
  split(values, plan.columns, passes.radix, passes.count, twiddles);
  for (int64_t v = 0; v < plan.columns; ++v) {
    const Complex x = {__builtin_convertvector(values[v].re, Vec),
                       __builtin_convertvector(values[v].im, Vec)};
    store_complex(out + v * kStep, Complex{x.re * scale, x.im * scale});
  }
}

// The spectrum of one unit; `row` is scratch.
template <bool kInterleaved>
static void filter_spectrum_unit(const FilterSpectrumParams& p, const Plan& plan, float* row,
                                 int64_t index, float* out) {
  const int64_t S = plan.size, first = index * kUnitChannels<kInterleaved>;
  const int64_t left = p.channels - first;
  std::memset(row, 0, static_cast<size_t>(row_floats(plan)) * sizeof(float));
  for (int64_t i = 0; i < left && i < kUnitChannels<kInterleaved>; ++i) {
    const int64_t h = first + i;
    const float* k = p.k + h * p.taps;
    add_taps<kInterleaved>(row, 0, i, k, p.taps, 0, 1, 1.0f);
    if (p.skip) add_taps<kInterleaved>(row, 0, i, p.skip + h, 1, 0, 1, 1.0f);
    if (p.k_rev) {
      const int64_t taps = p.reverse_taps;
      add_taps<kInterleaved>(row, 1, i, p.k_rev + h * taps, taps, S - 1, -1, -1.0f);
    }
    // A period of L: tap j reaches L - j elements ahead too, as k_rev[L-1-j] would.
    if (p.circular) add_taps<kInterleaved>(row, 1, i, k, p.taps, S - p.length, 1, -1.0f);
  }
  const float scale = 1.0f / static_cast<float>(S);
  if constexpr (kInterleaved && !kFused) {
    return interleaved_spectrum<double>(plan, row, scale, out);
  }
  transform<kInterleaved, Walk::kForward>(plan, row, [=](int64_t v, Complex x) {
    store_complex(out + v * kStep, Complex{x.re * scale, x.im * scale});
    return x;
  });
}

template <bool kInterleaved>
static void filter_spectrum_units(const FilterSpectrumParams& p, const Context& context,
                                  int64_t begin, int64_t end) {
  for (int64_t index = begin; index < end; ++index) {
    filter_spectrum_unit<kInterleaved>(p, context.plan, nth_row(context, 0), index,
                                       p.spectrum + spectrum_offset(context.plan, index));
  }
}

// ---- Forward

// Above this a result does not stay in cache until it is read: bypass the cache when writing it.
constexpr int64_t kStreamedBytes = int64_t{8} << 20;

template <class T>
static bool can_stream(const void* data, int64_t rows, int64_t length) {
  const int64_t row_bytes = length * static_cast<int64_t>(sizeof(T));
  return rows * row_bytes >= kStreamedBytes && row_bytes % 64 == 0 &&
         reinterpret_cast<uintptr_t>(data) % 64 == 0;
}

// Brings what the end of this unit will read and write, and the inputs of the next one, into the
// second-level cache while this one is transformed.
template <class T>
struct Prefetch {
  const T* x = nullptr;
  const T* pregate = nullptr;
  const T* postgate = nullptr;
  const T* y = nullptr;

  MONARCH_MEMBER void operator()(int64_t v) const {
    if (sizeof(T) < 4 && v % 2 != 0) return;  // half a line a vector
    if (x) prefetch(x + v * kLanes);
    if (pregate) prefetch(pregate + v * kLanes);
    if (postgate) prefetch(postgate + v * kLanes);
    if (y) prefetch(y + v * kLanes);
  }
};

template <bool kInterleaved, class T>
static void fft_conv_fwd_units(const FftConvParams& p, const Context& context, int64_t begin,
                               int64_t end) {
  const Plan& plan = context.plan;
  float* row = nth_row(context, 0);
  float* staging = nth_row(context, 1);
  // 16-bit rows are written half a line at a time to several places in turn: more partly filled
  // lines than the CPU can combine.
  const bool streamed = sizeof(T) == 4 && can_stream<T>(p.y, p.batch * p.channels, p.length);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t index = item / p.batch, b = item % p.batch;
    const int64_t h = index * kUnitChannels<kInterleaved>;
    const Unit unit = make_unit<kInterleaved>(p, context, staging, index);
    const Input<T> in = input<T>(p.u, p.pregate, b, h);
    const Input<T> post = input<T>(p.postgate, Rows{}, b, h);
    Output<T> out{static_cast<T*>(p.y) + (b * p.channels + h) * p.length,
                  p.postgate.data ? post.x : nullptr, p.length, post.x_stride};
    out.streamed = streamed;
    Prefetch<T> next;
    if (!streamed) next.y = out.y;
    next.postgate = out.gate;
    if (b + 1 < p.batch) {
      next.x = in.x + p.u.batch_stride;
      if (in.gate) next.pregate = in.gate + p.pregate.batch_stride;
    }
    const float* spectrum = p.spectrum + spectrum_offset(plan, index);
    transform_unit<kInterleaved, Walk::kBoth>(
        unit, row, in,
        [=](int64_t v, Complex x) __attribute__((always_inline)) {
          next(v);
          const float* k = spectrum + v * kStep;
          return rotate<false>(x, load(k), load(k + kLanes));
        },
        out);
  }
  if (streamed) stream_fence();
}

// ---- Backward
// With d = postgate * dy, g = pregate * u and ^ for F: the gradient of the gated input is
// Re F^-1(conj(K) d^), that of the filter's polynomial F^-1(sum over the batch of d^ conj(g^)).

template <bool kInterleaved>
static float gradient(const float* row, int part, int64_t lane, int64_t n) {
  const int64_t vector = kInterleaved ? n : n / kLanes, at_lane = kInterleaved ? lane : n % kLanes;
  return row[kStep * padded(vector, kLanes) + part * kLanes + at_lane];
}

// From the gradient of the polynomial k[n] - i k_rev[S-1-n] to those of its parts.
template <bool kInterleaved>
static void write_filter_gradients(const FftConvBackwardParams& p, const Unit& unit, int64_t h,
                                   const float* row) {
  const int64_t S = unit.plan.size;
  const float scale = 1.0f / static_cast<float>(S);
  const auto part = [row](int64_t v, int which) {
    return load(row + kStep * padded(v, kLanes) + which * kLanes);
  };
  for (int64_t i = 0; i < unit.channels; ++i) {
    if (p.dskip) p.dskip[h + i] = scale * gradient<kInterleaved>(row, 0, i, 0);
    float* dk = p.dk ? p.dk + (h + i) * p.taps : nullptr;
    float* dk_rev = p.dk_rev ? p.dk_rev + (h + i) * p.reverse_taps : nullptr;
    // Whole vectors of a row; what is left, and the other layout, one by one.
    const int64_t whole = kInterleaved || p.circular ? 0 : p.taps / kLanes;
    const int64_t whole_rev = kInterleaved ? 0 : p.reverse_taps / kLanes;
    for (int64_t v = 0; dk && v < whole; ++v) store(dk + v * kLanes, scale * part(v, 0));
    for (int64_t j = whole * kLanes; dk && j < p.taps; ++j) {
      float sum = gradient<kInterleaved>(row, 0, i, j);
      if (p.circular) sum -= gradient<kInterleaved>(row, 1, i, S - p.length + j);
      dk[j] = scale * sum;
    }
    for (int64_t v = 0; dk_rev && v < whole_rev; ++v) {
      store(dk_rev + v * kLanes, -scale * reversed(part(unit.plan.columns - 1 - v, 1)));
    }
    for (int64_t j = whole_rev * kLanes; dk_rev && j < p.reverse_taps; ++j) {
      dk_rev[j] = -scale * gradient<kInterleaved>(row, 1, i, S - 1 - j);
    }
    // The last of L reverse taps would reach one element beyond the row.
    if (dk_rev && p.reverse_taps == p.length) dk_rev[p.length - 1] = 0.0f;
  }
}

template <bool kInterleaved, class T>
static void fft_conv_bwd_units(const FftConvBackwardParams& p, const Context& context,
                               int64_t begin, int64_t end) {
  const Plan& plan = context.plan;
  float *g_row = nth_row(context, 0), *d_row = nth_row(context, 1), *k_row = nth_row(context, 2);
  float* staging = nth_row(context, 3);
  const bool filter = p.dk || p.dk_rev || p.dskip, postgate = p.dpostgate != nullptr;
  const auto keep = [](int64_t, Complex x) __attribute__((always_inline)) { return x; };
  const auto offset = [&p](const void* data, int64_t b, int64_t h) {
    return data ? static_cast<T*>(const_cast<void*>(data)) + (b * p.channels + h) * p.length
                : nullptr;
  };
  for (int64_t index = begin; index < end; ++index) {
    const int64_t h = index * kUnitChannels<kInterleaved>;
    const Unit unit = make_unit<kInterleaved>(p, context, staging, index);
    const float* spectrum = p.spectrum + spectrum_offset(plan, index);
    if (filter) std::memset(k_row, 0, static_cast<size_t>(row_floats(plan)) * sizeof(float));
    for (int64_t b = 0; b < p.batch; ++b) {
      const Input<T> g = input<T>(p.u, p.pregate, b, h), d = input<T>(p.dy, p.postgate, b, h);
      const Output<T> none{nullptr, nullptr, 0, 0};
      if (filter || postgate) {
        transform_unit<kInterleaved, Walk::kForward>(unit, g_row, g, keep, none);
      }
      const auto combine = [=](int64_t v, Complex x) __attribute__((always_inline)) {
        const float* k = spectrum + v * kStep;
        const Vec k_re = load(k), k_im = load(k + kLanes);
        if (filter || postgate) {
          const Complex u = load_complex(at(g_row, v));
          if (filter) {
            store_complex(at(k_row, v), load_complex(at(k_row, v)) + rotate<true>(x, u.re, u.im));
          }
          if (postgate) store_complex(at(g_row, v), rotate<false>(u, k_re, k_im));
        }
        return rotate<true>(x, k_re, k_im);
      };
      if (p.du || p.dpregate) {
        Output<T> du{offset(p.du, b, h), g.gate, p.length, g.gate_stride};
        du.y2 = offset(p.dpregate, b, h);
        du.gate2 = g.x;
        du.gate2_stride = g.x_stride;
        transform_unit<kInterleaved, Walk::kBoth>(unit, d_row, d, combine, du);
      } else {
        transform_unit<kInterleaved, Walk::kForward>(unit, d_row, d, combine, none);
      }
      if (postgate) {
        const Input<T> dy = input<T>(p.dy, Rows{}, b, h);
        const Output<T> out{offset(p.dpostgate, b, h), dy.x, p.length, dy.x_stride};
        transform_unit<kInterleaved, Walk::kInverse>(unit, g_row, g, keep, out);
      }
    }
    if (filter) {
      transform<kInterleaved, Walk::kInverse>(plan, k_row, keep);
      write_filter_gradients<kInterleaved>(p, unit, h, k_row);
    }
  }
}

// ---- Dispatch on layout and storage type

static void run_filter_spectrum(const FilterSpectrumParams& p, const Context& context,
                                int64_t begin, int64_t end) {
  if (context.plan.interleaved) {
    filter_spectrum_units<true>(p, context, begin, end);
  } else {
    filter_spectrum_units<false>(p, context, begin, end);
  }
}

static void run_fft_conv_fwd(const FftConvParams& p, const Context& context, int64_t begin,
                             int64_t end) {
  with_scalar(p.scalar, [&](auto zero) {
    using T = decltype(zero);
    if (context.plan.interleaved) {
      fft_conv_fwd_units<true, T>(p, context, begin, end);
    } else {
      fft_conv_fwd_units<false, T>(p, context, begin, end);
    }
  });
}

static void run_fft_conv_bwd(const FftConvBackwardParams& p, const Context& context, int64_t begin,
                             int64_t end) {
  with_scalar(p.scalar, [&](auto zero) {
    using T = decltype(zero);
    if (context.plan.interleaved) {
      fft_conv_bwd_units<true, T>(p, context, begin, end);
    } else {
      fft_conv_bwd_units<false, T>(p, context, begin, end);
    }
  });
}

}  // namespace
}  // namespace monarch::cpu
