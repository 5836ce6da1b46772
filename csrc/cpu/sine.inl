// Sine, cosine and 2^x of vectors.
#pragma once
#include "core/sine.h"
#include "cpu/gelu.inl"

namespace monarch::cpu {
namespace {

// Adding it rounds to a whole number, whose lowest bits are then those of the float.
constexpr float kRounder = 0x1.8p23f;

// sin(x + half pi / 2) for half = 0 or 1; r's sign turns with every half turn.
template <int half>
MONARCH_INLINE Vec sine_near(Vec x) {
  const Vec turns = x * kInversePi + (0.5f * half);
  const Vec shifted = turns + splat(kRounder);
  const Vec n = shifted - splat(kRounder) - splat(0.5f * half);
  const Vec y = sine_reduced(x, n);
  return as_floats(as_bits(y) ^ (as_bits(shifted) << 31));
}

// Some lane is large, infinite or NaN.
template <int half>
__attribute__((noinline)) Vec sine_far(Vec x) {
  float lanes[kLanes];
  store(lanes, x);
  for (int i = 0; i < kLanes; ++i) {
    lanes[i] = half ? __builtin_cosf(lanes[i]) : __builtin_sinf(lanes[i]);
  }
  return load(lanes);
}

// Whether some lane's size is more than kSineReach, or NaN.
MONARCH_INLINE bool some_far(Vec size) {
  const Vec reach = splat(kSineReach);
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(size, reach, _CMP_NLE_UQ) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps(_mm256_cmp_ps(size, reach, _CMP_NLE_UQ)) != 0;
#else
  const IntVec near = size <= reach;
  return (near[0] & near[1] & near[2] & near[3]) == 0;
#endif
}

template <int half>
MONARCH_INLINE Vec sine_or_cosine(Vec x) {
  if (__builtin_expect(some_far(x < 0.0f ? -x : x), 0)) return sine_far<half>(x);
  return sine_near<half>(x);
}
MONARCH_INLINE Vec sine(Vec x) { return sine_or_cosine<0>(x); }
MONARCH_INLINE Vec cosine(Vec x) { return sine_or_cosine<1>(x); }

// -|delta| log2(e) in two floats: exp(-|delta| t) = 2^(rate t) has then an error of about one unit
// in the last place, also where the exponent is large.
struct Rate {
  Vec high, low;
};
MONARCH_INLINE Rate decay_rate(const float* deltas, int64_t count) {
  float high[kLanes] = {}, low[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) {
    const double exact = -__builtin_fabs(static_cast<double>(deltas[i])) * 1.4426950408889634;
    high[i] = static_cast<float>(exact);
    low[i] = static_cast<float>(exact - static_cast<double>(high[i]));
  }
  return {load(high), load(low)};
}

// rate t - n for the whole number n nearest to it.
MONARCH_INLINE Vec remainder(Rate rate, Vec t, Vec n) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  // With a factor that the compiler does not know, so that it uses no product that is there already
  // but a multiply-add, which is exact to the last bit of the product.
  Vec factor = rate.high;
  hold(factor);
  return t * factor - n + t * rate.low;
#else
  Vec f{};
  for (int i = 0; i < kLanes; ++i) {
    const auto exact = static_cast<double>(t[i]) * static_cast<double>(rate.high[i]);
    f[i] = static_cast<float>(exact - static_cast<double>(n[i]));
  }
  return f + t * rate.low;
#endif
}

// 2^(rate t), at the ends 0 or infinity.
MONARCH_INLINE Vec decay(Rate rate, Vec t) {
  const Vec x = t * rate.high;
  const Vec least = splat(-150.0f), most = splat(150.0f);
  Vec inside = x < least ? least : x;
  inside = inside > most ? most : inside;
  const Vec shifted = inside + splat(kRounder);
  const Vec n = shifted - splat(kRounder);
  const Vec y = exp2_fraction(remainder(rate, t, n));
  // In two steps, because 2^n may have no normal number where the result has one.
  const IntVec whole = as_bits(shifted) - as_bits(splat(kRounder)), half = whole >> 1;
  Vec scaled = y * as_floats((half + 127) << 23) * as_floats((whole - half + 127) << 23);
  scaled = x < least ? Vec{} : scaled;
  return x > most ? splat(__builtin_inff()) : scaled;
}

}  // namespace
}  // namespace monarch::cpu
