// mixer_conv on rows: z = x2 * Re F^-1(K F(x1 v)) + Re F^-1(K2 F(u)), and its gradients. Between
// the arrays of the caller, read once and written once in the order of memory, rows are float32 in
// the thread's scratch. Units are those of fft_conv.inl.
#pragma once
#include "cpu/fft_conv.inl"
#include "cpu/mixer_conv.h"
#include "cpu/short_conv.inl"

namespace monarch::cpu {
namespace {

// ---- Real rows in scratch

// One row a channel; S samples and 16 more.
struct RealRows {
  float* data;
  int64_t stride;

  float* operator[](int64_t channel) const { return data + channel * stride; }
};

// Zeros after the vectors of a row's samples.
MONARCH_INLINE void clear_tail(float* row, int64_t length, int64_t size) {
  const int64_t from = vectors_of(length) * kLanes;
  std::memset(row + from, 0, static_cast<size_t>(size - from) * sizeof(float));
}

// Calls value(v) for each vector of a row's samples and stores what it returns.
template <class Value>
MONARCH_INLINE void fill_row(float* row, int64_t length, const Value& value) {
  const int64_t vectors = vectors_of(length);
  for (int64_t v = 0; v < vectors; ++v) store(row + v * kLanes, value(v));
}

// Through the transform, in place: real rows -> F -> op -> F^-1 -> real parts, or the half of it
// that kWalk names. Samples from the unit's length on must be zero, and are garbage afterwards.
template <bool kInterleaved, Walk kWalk, class Op>
static void transform_rows(const Unit& unit, float* row, RealRows real, const Op& op) {
  const Plan& plan = unit.plan;
  float* samples = kInterleaved ? unit.staging : real[0];
  if constexpr (kInterleaved && goes_down(kWalk)) {
    for (int64_t v = 0; v < plan.size / kLanes; ++v) {
      Vec rows[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        rows[i] = i < unit.channels ? load(real[i] + v * kLanes) : Vec{};
      }
      transpose(rows);
      for (int j = 0; j < kLanes; ++j) store(samples + (v * kLanes + j) * kLanes, rows[j]);
    }
  }
  transform_real<kInterleaved, kWalk>(
      plan, row, [samples](int64_t v) { return load(samples + v * kLanes); }, op,
      [samples](int64_t v, Vec value) { store(samples + v * kLanes, value); });
  if constexpr (kInterleaved && goes_up(kWalk)) {
    for (int64_t v = 0; v < vectors_of(unit.length); ++v) {
      Vec rows[kLanes];
      for (int j = 0; j < kLanes; ++j) rows[j] = load(samples + (v * kLanes + j) * kLanes);
      transpose(rows);
      for (int64_t i = 0; i < unit.channels; ++i) store(real[i] + v * kLanes, rows[i]);
    }
  }
}

// ---- Reading u

// Up to kLanes words of 32 bits, of which a row of u has `count` numbers.
template <class T>
MONARCH_INLINE Vec load_words(const T* x, int64_t count) {
  constexpr int64_t kPer = 4 / sizeof(T);
  float words[kLanes] = {};
  if (count < kPer * kLanes) {
    std::memcpy(words, x, static_cast<size_t>(count) * sizeof(T));
    return load(words);
  }
  return load(reinterpret_cast<const float*>(x));
}

// Channels that lie side by side: blocks of kLanes samples x kLanes words of 32 bits (one channel
// or two), all of a cache line's one after the other.
template <class T>
static void read_columns(RealRows out, const T* x, int64_t sample_stride, int64_t channels,
                         int64_t length) {
  constexpr int64_t kAhead = 64, kPer = 4 / sizeof(T);
  for (int64_t v = 0; v < vectors_of(length); ++v) {
    const int64_t t = v * kLanes, left = length - t;
    for (int64_t j = 0; j < kLanes && j + kAhead < left; ++j) {
      prefetch(x + (t + j + kAhead) * sample_stride);
    }
    for (int64_t c = 0; c < channels; c += kPer * kLanes) {
      const T* corner = x + t * sample_stride + c;
      const int64_t count = channels - c;
      Vec rows[kLanes];
      if (left >= kLanes && count >= kPer * kLanes) {
#pragma GCC unroll 16
        for (int j = 0; j < kLanes; ++j) {
          rows[j] = load(reinterpret_cast<const float*>(corner + j * sample_stride));
        }
      } else {
        for (int j = 0; j < kLanes; ++j) {
          rows[j] = j < left ? load_words(corner + j * sample_stride, count) : Vec{};
        }
      }
      transpose(rows);
      for (int i = 0; i < kLanes && kPer * i < count; ++i) {
        float* to = out[c + kPer * i] + t;
        if constexpr (kPer == 1) {
          store(to, rows[i]);
        } else {
          store(to, first_of(rows[i], T{}));
          if (kPer * i + 1 < count) store(to + out.stride, second_of(rows[i], T{}));
        }
      }
    }
  }
}

template <class T>
static void read_strided(float* out, const T* x, int64_t stride, int64_t length) {
  for (int64_t t = 0; t < length; ++t) out[t] = to_float(x[t * stride]);
  for (int64_t t = length; t < vectors_of(length) * kLanes; ++t) out[t] = 0.0f;
}

// The rows of u of `channels` channels from h on, zero from the length on.
template <class T>
static void read_u(RealRows out, const MixerConvOperands& p, const Plan& plan, int64_t b, int64_t h,
                   int64_t channels) {
  const T* x = static_cast<const T*>(p.u.data) + b * p.u.batch_stride + h * p.u.channel_stride;
  if (reads_columns(p)) read_columns(out, x, p.u_sample_stride, channels, p.length);
  for (int64_t i = 0; i < channels; ++i) {
    const T* row = x + i * p.u.channel_stride;
    if (p.u_sample_stride == 1) {
      fill_row(out[i], p.length, [&](int64_t v) { return load_cropped(row, v, p.length); });
    } else if (!reads_columns(p)) {
      read_strided(out[i], row, p.u_sample_stride, p.length);
    }
    clear_tail(out[i], p.length, plan.size);
  }
}

// ---- Rows of q and of z

enum Part { kX1, kX2, kV };

template <class T>
static const T* row_of(const Rows& rows, int64_t b, int64_t channel) {
  return static_cast<const T*>(rows.data) + b * rows.batch_stride + channel * rows.channel_stride;
}

// A row of q with its short filter; without one, with the filter 1.
template <class T>
static ShortRow<T> filtered_row(const MixerConvOperands& p, Part part, int64_t b, int64_t h) {
  static constexpr float kOne = 1.0f;
  const int64_t channel = part * p.channels + h;
  const float bias = p.s_bias ? p.s_bias[channel] : 0.0f;
  const float* s = p.s ? p.s + channel * p.taps : &kOne;
  return {row_of<T>(p.q, b, channel), p.length, s, p.taps, p.taps - 1, bias};
}

// g = x1 * v.
template <class T>
static void read_gated(RealRows out, const MixerConvOperands& p, const Plan& plan, int64_t b,
                       int64_t h, int64_t channels) {
  for (int64_t i = 0; i < channels; ++i) {
    with_taps(p.taps, [&](auto n) {
      const ShortFilter<T, n.value> x1(filtered_row<T>(p, kX1, b, h + i));
      const ShortFilter<T, n.value> v(filtered_row<T>(p, kV, b, h + i));
      fill_row(out[i], p.length, [&](int64_t at) { return x1(at) * v(at); });
    });
    clear_tail(out[i], p.length, plan.size);
  }
}

// z = x2 * y + residual.
template <class T>
static void write_z(const MixerConvParams& p, int64_t b, int64_t h, const float* y,
                    const float* residual, bool streamed) {
  T* z = static_cast<T*>(p.z) + (b * p.channels + h) * p.length;
  with_taps(p.taps, [&](auto n) {
    const ShortFilter<T, n.value> x2(filtered_row<T>(p, kX2, b, h));
    const auto value = [&](int64_t v) __attribute__((always_inline)) {
      const Vec gated = x2(v) * load(y + v * kLanes);
      return residual ? gated + load(residual + v * kLanes) : gated;
    };
    if (streamed) {
      for (int64_t v = 0; v < p.length / kLanes; ++v) stream(z + v * kLanes, value(v));
    } else {
      for (int64_t v = 0; v < vectors_of(p.length); ++v) store_cropped(z, v, value(v), p.length);
    }
  });
}

// ---- What is done to a spectrum

// Rows that will be read soon, brought into the second-level cache meanwhile.
struct Ahead {
  const char* rows[2] = {nullptr, nullptr};
  int64_t bytes = 0;  // of a vector

  template <class T>
  static Ahead of(const T* first, const T* second) {
    return {{reinterpret_cast<const char*>(first), reinterpret_cast<const char*>(second)},
            kLanes * static_cast<int64_t>(sizeof(T))};
  }
  MONARCH_MEMBER void operator()(int64_t v) const {
    if (rows[0]) prefetch(rows[0] + v * bytes);
    if (rows[1]) prefetch(rows[1] + v * bytes);
  }
};

struct Convolve {
  const float* spectrum;
  Ahead ahead;

  MONARCH_MEMBER Complex operator()(int64_t v, Complex x) const {
    ahead(v);
    const float* k = spectrum + v * kStep;
    return rotate<false>(x, load(k), load(k + kLanes));
  }
};

struct Keep {
  MONARCH_MEMBER Complex operator()(int64_t, Complex x) const { return x; }
};

// x is the transform of a gradient, `input` that of what the filter was applied to: the gradient of
// the filter's polynomial grows by x conj(input), and x conj(K) goes on. With `apply`, K input
// replaces the input.
struct Correlate {
  const float* spectrum;
  float* input;     // or nullptr
  float* gradient;  // or nullptr
  bool apply;

  MONARCH_MEMBER Complex operator()(int64_t v, Complex x) const {
    const float* k = spectrum + v * kStep;
    const Vec k_re = load(k), k_im = load(k + kLanes);
    if (input) {
      const Complex u = load_complex(at(input, v));
      if (gradient) {
        store_complex(at(gradient, v), load_complex(at(gradient, v)) + rotate<true>(x, u.re, u.im));
      }
      if (apply) store_complex(at(input, v), rotate<false>(u, k_re, k_im));
    }
    return rotate<true>(x, k_re, k_im);
  }
};

// Where rows and transforms lie in the workspace, one after the other.
class Scratch {
 public:
  Scratch(const Context& context) : plan_(context.plan), next_(context.workspace) {}

  float* complex_row() { return take(row_floats(plan_)); }
  float* staging() { return take(staging_floats(plan_)); }
  float* spectrum(const MixerConvOperands& p) { return take(spectrum_scratch_floats(p, plan_)); }
  RealRows real_rows(int64_t channels) {
    const int64_t stride = real_row_floats(plan_);
    return {take(channels * stride), stride};
  }
  double* doubles(int64_t count) { return reinterpret_cast<double*>(take(2 * count)); }

 private:
  float* take(int64_t floats) {
    float* const taken = next_;
    next_ += floats;
    return taken;
  }

  const Plan& plan_;
  float* next_;
};

// The spectrum of a unit: part of a given one, or made in scratch.
template <bool kInterleaved>
static const float* unit_spectrum(const float* given, const FilterSpectrumParams& filter,
                                  const Plan& plan, int64_t index, float* row, float* scratch) {
  if (given) return given + spectrum_offset(plan, index);
  filter_spectrum_unit<kInterleaved>(filter, plan, row, index, scratch);
  return scratch;
}

MONARCH_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// ---- Forward: an item is some channels of one batch row

template <bool kInterleaved, class T>
static void mixer_conv_fwd_units(const MixerConvParams& p, const Context& context, int64_t begin,
                                 int64_t end) {
  const Plan& plan = context.plan;
  const int64_t item_channels = fwd_channels(p, plan);
  Scratch scratch(context);
  float *row = scratch.complex_row(), *staging = scratch.staging();
  float* made = scratch.spectrum(p);
  const RealRows residual = scratch.real_rows(item_channels);
  const RealRows y = scratch.real_rows(kUnitChannels<kInterleaved>);
  const bool streamed = can_stream<T>(p.z, p.batch * p.channels, p.length);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t first = item / p.batch * item_channels, b = item % p.batch;
    const int64_t count = smaller(item_channels, p.channels - first);
    if (p.u.data) read_u<T>(residual, p, plan, b, first, count);
    for (int64_t c = 0; c < count; c += kUnitChannels<kInterleaved>) {
      const int64_t h = first + c, index = h / kUnitChannels<kInterleaved>;
      const int64_t channels = smaller(kUnitChannels<kInterleaved>, count - c);
      const Unit unit{plan, staging, p.length, channels};
      const T *x1 = row_of<T>(p.q, b, h), *x2 = row_of<T>(p.q, b, p.channels + h);
      const T* v = row_of<T>(p.q, b, 2 * p.channels + h);
      const RealRows r{residual[c], residual.stride};
      if (p.u.data) {
        const float* spectrum = unit_spectrum<kInterleaved>(p.residual_spectrum, p.residual_filter,
                                                            plan, index, row, made);
        transform_rows<kInterleaved, Walk::kBoth>(unit, row, r,
                                                  Convolve{spectrum, Ahead::of(x1, v)});
      }
      read_gated<T>(y, p, plan, b, h, channels);
      const float* spectrum =
          unit_spectrum<kInterleaved>(p.spectrum, p.filter, plan, index, row, made);
      const T* next_u = nullptr;
      if (p.u.data && p.u_sample_stride == 1 && b + 1 < p.batch) next_u = row_of<T>(p.u, b + 1, h);
      transform_rows<kInterleaved, Walk::kBoth>(unit, row, y,
                                                Convolve{spectrum, Ahead::of(x2, next_u)});
      for (int64_t i = 0; i < channels; ++i) {
        write_z<T>(p, b, h + i, y[i], p.u.data ? r[i] : nullptr, streamed);
      }
    }
  }
  if (streamed) stream_fence();
}

// ---- Backward: an item is some channels of all batch rows
// With ^ for F and c for what the short filter makes of q: y1 = Re F^-1(K g^) gives dx2 = dz y1;
// dg = Re F^-1(conj(K) (x2 dz)^) gives dx1 = dg v and dv = dg x1; and so on for the residual
// branch.

template <bool kInterleaved, class T>
class MixerBackward {
 public:
  MixerBackward(const MixerConvBackwardParams& p, const Context& context)
      : p_(p), plan_(context.plan), channels_(bwd_channels(p, context.plan)) {
    Scratch scratch(context);
    input_ = scratch.complex_row();
    gradient_ = scratch.complex_row();
    k_rows_ = scratch.complex_row();
    for (int64_t i = 1; i < 2 * units(); ++i) scratch.complex_row();
    staging_ = scratch.staging();
    made_ = scratch.spectrum(p);
    u_ = scratch.real_rows(channels_);
    a_ = scratch.real_rows(kUnitChannels<kInterleaved>);
    b_ = scratch.real_rows(kUnitChannels<kInterleaved>);
    sums_ = scratch.doubles(kMixerSums * channels_);
  }

  void item(int64_t index) {
    const int64_t first = index * channels_, count = smaller(channels_, p_.channels - first);
    std::memset(k_rows_, 0, static_cast<size_t>(2 * units() * row_floats(plan_)) * sizeof(float));
    for (int64_t i = 0; i < kMixerSums * channels_; ++i) sums_[i] = 0;
    for (int64_t b = 0; b < p_.batch; ++b) {
      if (p_.dresidual_filter.wanted()) read_u<T>(u_, p_, plan_, b, first, count);
      for (int64_t c = 0; c < count; c += kUnitChannels<kInterleaved>) {
        const int64_t channels = smaller(kUnitChannels<kInterleaved>, count - c);
        const Unit unit{plan_, staging_, p_.length, channels};
        const Place at{unit, b, first + c, c};
        if (short_wanted() || p_.dfilter.wanted()) main_branch(at);
        if (p_.du || p_.dresidual_filter.wanted()) residual_branch(at);
      }
    }
    for (int64_t c = 0; c < count; c += kUnitChannels<kInterleaved>) {
      const Unit unit{plan_, staging_, p_.length, smaller(kUnitChannels<kInterleaved>, count - c)};
      write_filters(p_.dfilter, unit, first + c, k_row(c, 0));
      write_filters(p_.dresidual_filter, unit, first + c, k_row(c, 1));
    }
    write_short_gradients(first, count);
  }

 private:
  struct Place {
    const Unit& unit;
    int64_t b;
    int64_t h;  // the unit's first channel
    int64_t c;  // the same, from the item's first channel
  };

  int64_t units() const { return channels_ / kUnitChannels<kInterleaved>; }
  bool short_wanted() const { return p_.dq || p_.ds || p_.ds_bias; }
  float* k_row(int64_t c, int branch) const {
    return k_rows_ + (2 * (c / kUnitChannels<kInterleaved>)+branch) * row_floats(plan_);
  }
  // gradient_ is free until then.
  const float* spectrum_at(const float* given, const FilterSpectrumParams& filter,
                           int64_t h) const {
    return unit_spectrum<kInterleaved>(given, filter, plan_, h / kUnitChannels<kInterleaved>,
                                       gradient_, made_);
  }

  void main_branch(const Place& at) {
    const Unit& unit = at.unit;
    read_gated<T>(a_, p_, plan_, at.b, at.h, unit.channels);
    transform_rows<kInterleaved, Walk::kForward>(unit, input_, a_, Keep{});
    for (int64_t i = 0; i < unit.channels; ++i) {
      multiplied(a_[i], at, i, kX2,
                 [dz = dz_row(at, i), this](int64_t v) { return load_cropped(dz, v, p_.length); });
      clear_tail(a_[i], p_.length, plan_.size);
    }
    float* filter = p_.dfilter.wanted() ? k_row(at.c, 0) : nullptr;
    const Correlate correlate{spectrum_at(p_.spectrum, p_.filter, at.h), input_, filter,
                              short_wanted()};
    if (!short_wanted()) {
      transform_rows<kInterleaved, Walk::kForward>(unit, gradient_, a_, correlate);
      return;
    }
    transform_rows<kInterleaved, Walk::kBoth>(unit, gradient_, a_, correlate);  // a_ is dg
    for (int64_t i = 0; i < unit.channels; ++i) {
      const auto dg = [row = a_[i]](int64_t v) { return load(row + v * kLanes); };
      multiplied(b_[i], at, i, kV, dg);
      short_backward(at, i, kX1, b_[i]);
      multiplied(a_[i], at, i, kX1, dg);
      short_backward(at, i, kV, a_[i]);
    }
    transform_rows<kInterleaved, Walk::kInverse>(unit, input_, a_, Keep{});  // a_ is y1
    for (int64_t i = 0; i < unit.channels; ++i) {
      const T* dz = dz_row(at, i);
      fill_row(a_[i], p_.length, [&, row = a_[i]](int64_t v) {
        return load(row + v * kLanes) * load_cropped(dz, v, p_.length);
      });
      short_backward(at, i, kX2, a_[i]);
    }
  }

  void residual_branch(const Place& at) {
    const Unit& unit = at.unit;
    const bool filter = p_.dresidual_filter.wanted();
    if (filter) {
      const RealRows u{u_[at.c], u_.stride};
      transform_rows<kInterleaved, Walk::kForward>(unit, input_, u, Keep{});
    }
    for (int64_t i = 0; i < unit.channels; ++i) {
      const T* dz = dz_row(at, i);
      fill_row(a_[i], p_.length, [&](int64_t v) { return load_cropped(dz, v, p_.length); });
      clear_tail(a_[i], p_.length, plan_.size);
    }
    const Correlate correlate{spectrum_at(p_.residual_spectrum, p_.residual_filter, at.h),
                              filter ? input_ : nullptr, filter ? k_row(at.c, 1) : nullptr, false};
    if (!p_.du) {
      transform_rows<kInterleaved, Walk::kForward>(unit, gradient_, a_, correlate);
      return;
    }
    transform_rows<kInterleaved, Walk::kBoth>(unit, gradient_, a_, correlate);
    for (int64_t i = 0; i < unit.channels; ++i) {
      T* du = static_cast<T*>(p_.du) + (at.b * p_.channels + at.h + i) * p_.length;
      for (int64_t v = 0; v < vectors_of(p_.length); ++v) {
        store_cropped(du, v, load(a_[i] + v * kLanes), p_.length);
      }
    }
  }

  const T* dz_row(const Place& at, int64_t i) const { return row_of<T>(p_.dz, at.b, at.h + i); }

  // out = factor(v) times the filtered row of a part of q.
  template <class Factor>
  MONARCH_MEMBER void multiplied(float* out, const Place& at, int64_t i, Part part,
                                 const Factor& factor) const {
    with_taps(p_.taps, [&](auto n) {
      const ShortFilter<T, n.value> filter(filtered_row<T>(p_, part, at.b, at.h + i));
      fill_row(out, p_.length, [&](int64_t v) { return factor(v) * filter(v); });
    });
  }

  // dc, the gradient of a filtered row, goes through the short filter; its last vector is cropped.
  void short_backward(const Place& at, int64_t i, Part part, float* dc) {
    const int64_t channel = part * p_.channels + at.h + i;
    const int64_t tail = p_.length / kLanes * kLanes;
    if (tail < p_.length) {
      store(dc + tail, first_lanes(load(dc + tail), p_.length - tail));
    }
    std::memset(dc + vectors_of(p_.length) * kLanes, 0, 16 * sizeof(float));
    const ShortRow<T> row = filtered_row<T>(p_, part, at.b, at.h + i);
    if (p_.ds || p_.ds_bias) {
      add_short_gradients(sums_ + (3 * (at.c + i) + part) * (kMaxMixerTaps + 1), dc, row);
    }
    if (!p_.dq) return;
    float reversed[kMaxMixerTaps];
    for (int64_t j = 0; j < p_.taps; ++j) reversed[j] = row.s[p_.taps - 1 - j];
    T* dq = static_cast<T*>(p_.dq) + (at.b * 3 * p_.channels + channel) * p_.length;
    short_input_gradient(dq, dc, reversed, p_.taps, row.left, p_.length);
  }

  void write_filters(const FilterGradients& out, const Unit& unit, int64_t h, float* row) {
    if (!out.wanted()) return;
    transform<kInterleaved, Walk::kInverse>(plan_, row, Keep{});
    FftConvBackwardParams filter;
    filter.length = p_.length;
    filter.dk = out.dk;
    filter.dk_rev = out.dk_rev;
    filter.dskip = out.dskip;
    filter.taps = out.taps;
    filter.reverse_taps = out.reverse_taps;
    write_filter_gradients<kInterleaved>(filter, unit, h, row);
  }

  void write_short_gradients(int64_t first, int64_t count) {
    for (int64_t i = 0; i < 3 * count; ++i) {
      const int64_t channel = i % 3 * p_.channels + first + i / 3;
      const double* sums = sums_ + i * (kMaxMixerTaps + 1);
      for (int64_t j = 0; p_.ds && j < p_.taps; ++j) {
        p_.ds[channel * p_.taps + j] = static_cast<float>(sums[j]);
      }
      if (p_.ds_bias) p_.ds_bias[channel] = static_cast<float>(sums[p_.taps]);
    }
  }

  const MixerConvBackwardParams& p_;
  const Plan& plan_;
  const int64_t channels_;  // of an item
  float *input_, *gradient_, *k_rows_, *staging_, *made_;
  RealRows u_, a_, b_;
  double* sums_;  // (channels, 3, kMaxMixerTaps + 1)
};

template <class T>
static void mixer_conv_bwd_items(const MixerConvBackwardParams& p, const Context& context,
                                 int64_t begin, int64_t end) {
  if (context.plan.interleaved) {
    MixerBackward<true, T> backward(p, context);
    for (int64_t item = begin; item < end; ++item) backward.item(item);
  } else {
    MixerBackward<false, T> backward(p, context);
    for (int64_t item = begin; item < end; ++item) backward.item(item);
  }
}

// ---- Dispatch on layout and storage type

static void run_mixer_conv_fwd(const MixerConvParams& p, const Context& context, int64_t begin,
                               int64_t end) {
  with_scalar(p.scalar, [&](auto zero) {
    using T = decltype(zero);
    if (context.plan.interleaved) {
      mixer_conv_fwd_units<true, T>(p, context, begin, end);
    } else {
      mixer_conv_fwd_units<false, T>(p, context, begin, end);
    }
  });
}

static void run_mixer_conv_bwd(const MixerConvBackwardParams& p, const Context& context,
                               int64_t begin, int64_t end) {
  with_scalar(p.scalar,
              [&](auto zero) { mixer_conv_bwd_items<decltype(zero)>(p, context, begin, end); });
}

}  // namespace
}  // namespace monarch::cpu
