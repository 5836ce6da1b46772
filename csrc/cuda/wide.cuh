// DFTs of some 40 bits, for what is transformed once a channel: the spectrum of a filter and its
// gradient. A number is high + low; `high` is a multiple of a step that all numbers of a butterfly
// share, so that sums of high parts are exact, and `low` is the rest, in float32. One rounding a
// stage is left, when its results go to shared memory.
#pragma once
#include "cuda/dft.cuh"

namespace monarch::cuda {

struct Wide {
  float2 high, low;
};

MONARCH_DEVICE Wide operator+(Wide a, Wide b) {
  return {make_float2(a.high.x + b.high.x, a.high.y + b.high.y),
          make_float2(a.low.x + b.low.x, a.low.y + b.low.y)};
}
MONARCH_DEVICE Wide operator-(Wide a, Wide b) {
  return {make_float2(a.high.x - b.high.x, a.high.y - b.high.y),
          make_float2(a.low.x - b.low.x, a.low.y - b.low.y)};
}
template <bool kInverse>
MONARCH_DEVICE Wide times_i(Wide a) {  // inverse: times -i
  if constexpr (kInverse) {
    return {make_float2(a.high.y, -a.high.x), make_float2(a.low.y, -a.low.x)};
  } else {
    return {make_float2(-a.high.y, a.high.x), make_float2(-a.low.y, a.low.x)};
  }
}

// ---- The grid: adding it to a number that is at most a quarter of it, and subtracting it again,
// rounds the number to a multiple of the step

// No value within the DFT is larger than the sum of its inputs' parts.
template <int kRadix>
MONARCH_DEVICE float grid_of(const float2 (&in)[kRadix]) {
  float real = 0.0f, imaginary = 0.0f;
#pragma unroll
  for (int j = 0; j < kRadix; ++j) {
    real += fabsf(in[j].x);
    imaginary += fabsf(in[j].y);
  }
  return 4.0f * (real + imaginary);
}

struct Parts {
  float high, low;
};
MONARCH_DEVICE Parts operator+(Parts a, Parts b) { return {a.high + b.high, a.low + b.low}; }

MONARCH_DEVICE Parts on_grid(float x, float grid) {
  const float high = x + grid - grid;
  return {high, x - high};
}
MONARCH_DEVICE Wide on_grid(float2 x, float grid) {
  const Parts re = on_grid(x.x, grid), im = on_grid(x.y, grid);
  return {make_float2(re.high, im.high), make_float2(re.low, im.low)};
}
MONARCH_DEVICE Parts product(float factor, float high, float low, float grid) {
  const float rounded = device::fma(factor, high, grid) - grid;
  return {rounded, device::fma(factor, low, device::fma(factor, high, -rounded))};
}
MONARCH_DEVICE Parts product(Parts factor, float high, float low, float grid) {
  const Parts first = product(factor.high, high, low, grid);
  return {first.high, device::fma(factor.low, high, first.low)};
}

// ---- Twiddles: w[index] = high + low, each (cosine, sine)

struct WideTwiddle {
  float2 high, low;
  float grid;
};

// Of theta = kNumerator / kDenominator, known to the compiler.
template <int kRadix, int kNumerator, int kDenominator>
struct ConstantWideTwiddles {
  static constexpr bool kOne = kNumerator == 0;
  struct Values {
    float cosine[twiddle_count(kRadix)], sine[twiddle_count(kRadix)];
    float cosine_low[twiddle_count(kRadix)], sine_low[twiddle_count(kRadix)];
  };
  static constexpr Values values() {
    Values v = {};
    for (int i = 0; i < twiddle_count(kRadix); ++i) {
      const CosSin value = cos_sin(twiddle_phase(kRadix, i, kNumerator, kDenominator));
      v.cosine[i] = static_cast<float>(value.cosine);
      v.sine[i] = static_cast<float>(value.sine);
      v.cosine_low[i] = static_cast<float>(value.cosine - v.cosine[i]);
      v.sine_low[i] = static_cast<float>(value.sine - v.sine[i]);
    }
    return v;
  }
  MONARCH_DEVICE WideTwiddle at(int index, float grid) const {
    constexpr Values v = values();
    return {make_float2(v.cosine[index], v.sine[index]),
            make_float2(v.cosine_low[index], v.sine_low[index]), grid};
  }
};

// From a table; `low` pairs further on are what as_twiddle (twiddle.cuh) left. Loaded where they
// are used, one by one: few registers are free.
struct LoadedWideTwiddles {
  static constexpr bool kOne = false;
  const float4* pairs;
  int low, count;

  MONARCH_DEVICE WideTwiddle at(int index, float grid) const {
    const auto load = [&](const float4* from) {
      return device::load_readonly(reinterpret_cast<const float2*>(from + index / 2 * count) +
                                   index % 2);
    };
    const float2 w = load(pairs);
    return {make_float2(w.x, w.x * w.y), load(pairs + low), grid};
  }
};

template <class Source>
struct WideTwiddles {
  static constexpr bool kOne = Source::kOne;
  Source source;
  float grid;

  MONARCH_DEVICE WideTwiddle operator[](int index) const { return source.at(index, grid); }
};

// ---- Butterflies, as in dft.cuh

template <bool kInverse>
MONARCH_DEVICE Wide rotate(Wide b, WideTwiddle w) {
  const float sign = kInverse ? -1.0f : 1.0f;
  const Parts c = {w.high.x, w.low.x}, s = {sign * w.high.y, sign * w.low.y};
  const Parts minus_s = {-s.high, -s.low};
  const Parts re =
      product(c, b.high.x, b.low.x, w.grid) + product(minus_s, b.high.y, b.low.y, w.grid);
  const Parts im = product(c, b.high.y, b.low.y, w.grid) + product(s, b.high.x, b.low.x, w.grid);
  return {make_float2(re.high, im.high), make_float2(re.low, im.low)};
}

template <bool kInverse, bool kTimesI>
MONARCH_DEVICE void butterfly(Wide& a, Wide& b) {
  const Wide t = kTimesI ? times_i<kInverse>(b) : b;
  b = a - t;
  a = a + t;
}
template <bool kInverse, bool kTimesI>
MONARCH_DEVICE void butterfly(Wide& a, Wide& b, WideTwiddle w) {
  b = rotate<kInverse>(b, w);
  butterfly<kInverse, kTimesI>(a, b);
}

template <bool kInverse, class Source>
MONARCH_DEVICE void split_by_three(Wide& a, Wide& b, Wide& c,
                                   const WideTwiddles<Source>& twiddles) {
  constexpr double kHalfRootOf3 = 0.86602540378443864676;
  constexpr Parts kSine = {static_cast<float>(kHalfRootOf3),
                           static_cast<float>(kHalfRootOf3 - static_cast<float>(kHalfRootOf3))};
  if constexpr (!Source::kOne) {
    b = rotate<kInverse>(b, twiddles[0]);
    c = rotate<kInverse>(c, twiddles[1]);
  }
  const float grid = twiddles.grid;
  const Wide sum = b + c, d = times_i<kInverse>(b - c);
  const Parts re = product(-0.5f, sum.high.x, sum.low.x, grid);
  const Parts im = product(-0.5f, sum.high.y, sum.low.y, grid);
  const Parts d_re = product(kSine, d.high.x, d.low.x, grid);
  const Parts d_im = product(kSine, d.high.y, d.low.y, grid);
  const Wide middle = a + Wide{make_float2(re.high, im.high), make_float2(re.low, im.low)};
  const Wide side = {make_float2(d_re.high, d_im.high), make_float2(d_re.low, d_im.low)};
  a = a + sum;
  b = middle + side;
  c = middle - side;
}

// ---- A whole DFT, from float32 to float32

template <int kRadix, bool kInverse, class Source>
MONARCH_DEVICE void wide_dft(const float2 (&in)[kRadix], float2 (&x)[kRadix],
                             const Source& twiddles) {
  const float grid = grid_of(in);
  Wide value[kRadix];
#pragma unroll
  for (int j = 0; j < kRadix; ++j) value[j] = on_grid(in[j], grid);
  dft<kRadix, kInverse>(value, value, WideTwiddles<Source>{twiddles, grid});
#pragma unroll
  for (int j = 0; j < kRadix; ++j) {
    x[j] = make_float2(value[j].high.x + value[j].low.x, value[j].high.y + value[j].low.y);
  }
}

}  // namespace monarch::cuda
