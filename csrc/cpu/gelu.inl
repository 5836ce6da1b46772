// gelu(x) = x Phi(x), with Phi the distribution function of the normal distribution.
#pragma once
#include "cpu/simd.h"

namespace monarch::cpu {
namespace {

typedef int32_t IntVec __attribute__((vector_size(kLanes * 4), may_alias));

MONARCH_INLINE Vec as_floats(IntVec bits) {
  Vec v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}
MONARCH_INLINE IntVec as_bits(Vec v) {
  IntVec bits;
  std::memcpy(&bits, &v, sizeof bits);
  return bits;
}

// 2^f for |f| <= 1/2, with an error of 2e-9 before rounding.
MONARCH_INLINE Vec exp2_fraction(Vec f) {
  Vec p = splat(1.5345810970757157e-4f);
  p = p * f + 1.3399930903688073e-3f;
  p = p * f + 9.618489071726799e-3f;
  p = p * f + 5.550328642129898e-2f;
  p = p * f + 0.24022646248340607f;
  p = p * f + 0.6931471824645996f;
  return p * f + 1.0f;
}

// 2^x for -120 <= x <= 120, x = n + f, |f| <= 1/2.
MONARCH_INLINE Vec exp2(Vec x) {
  const Vec shift = splat(0x1.8p23f);
  const Vec shifted = x + shift;
  const Vec p = exp2_fraction(x - (shifted - shift));
  return as_floats(as_bits(p) + (as_bits(shifted) << 23));
}

// Phi(x). log2 Phi(-u) is a polynomial on 0 <= u <= 6.5, of relative error 4e-8 in Phi up to u = 2
// and 4e-7 at the end, beyond which Phi is less than 4e-11 and given as 0. Made by weighted least
// squares; `tests/test_glu_mlp.py` compares with math.erf.
MONARCH_INLINE Vec normal_cdf(Vec x) {
  const Vec u = x < 0.0f ? -x : x;
  const Vec last = splat(6.5f);
  const Vec t = u < last ? u : last;
  Vec p = splat(1.9219363878164586e-09f);
  p = p * t - 7.596926110409186e-08f;
  p = p * t + 1.3240295402283664e-06f;
  p = p * t - 1.326989513472654e-05f;
  p = p * t + 8.191027882276103e-05f;
  p = p * t - 0.00028159559587948024f;
  p = p * t - 1.9982693629572168e-05f;
  p = p * t + 0.0069931079633533955f;
  p = p * t - 0.052484314888715744f;
  p = p * t - 0.4592032730579376f;
  p = p * t - 1.1511067152023315f;
  p = p * t - 0.9999999403953552f;
  Vec lower = exp2(p);
  lower = u < last ? lower : Vec{};
  return x < 0.0f ? lower : 1.0f - lower;
}

// The density phi(x) = exp(-x^2 / 2) / sqrt(2 pi).
MONARCH_INLINE Vec normal_density(Vec x) {
  const Vec exponent = x * x * -0.72134752f;  // log2(e) / 2
  const Vec least = splat(-120.0f);
  return exp2(exponent > least ? exponent : least) * 0.39894228f;
}

}  // namespace
}  // namespace monarch::cpu
