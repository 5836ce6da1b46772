// DFTs in registers: the steps of docs/math.md, section 3, with the twiddles of their input folded
// into the butterflies: 6 multiply-adds for a factor 2 instead of 10 operations, and one rounding
// less than the textbook's.
#pragma once
#include "core/twiddle.h"
#include "cuda/device.cuh"

namespace monarch::cuda {

// ---- Complex numbers

MONARCH_DEVICE float2 multiply(float2 a, float2 b) {
  return make_float2(a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x);
}
MONARCH_DEVICE float2 scale(float2 a, float factor) {
  return make_float2(a.x * factor, a.y * factor);
}
MONARCH_DEVICE float2 multiply_conjugate(float2 a, float2 b) {  // a conj(b)
  return make_float2(a.x * b.x + a.y * b.y, a.y * b.x - a.x * b.y);
}

// ---- Twiddles: w[index] = (cosine, tangent) of the phase; kOne: the first one of each level is 1
// (theta = 0)

// Of theta = kNumerator / kDenominator, known to the compiler.
template <int kRadix, int kNumerator, int kDenominator>
struct ConstantTwiddles {
  static constexpr bool kOne = kNumerator == 0;
  struct Values {
    float cosine[twiddle_count(kRadix)], sine[twiddle_count(kRadix)],
        tangent[twiddle_count(kRadix)];
  };
  static constexpr Values values() {
    Values v = {};
    for (int i = 0; i < twiddle_count(kRadix); ++i) {
      const CosSin value = cos_sin(twiddle_phase(kRadix, i, kNumerator, kDenominator));
      v.cosine[i] = static_cast<float>(value.cosine);
      v.sine[i] = static_cast<float>(value.sine);
      v.tangent[i] = static_cast<float>(value.sine / v.cosine[i]);
    }
    return v;
  }
  MONARCH_DEVICE float2 operator[](int index) const {
    constexpr Values v = values();
    return make_float2(v.cosine[index], v.tangent[index]);
  }
  MONARCH_DEVICE float2 times(int index, float real) const {
    constexpr Values v = values();
    return make_float2(v.cosine[index] * real, v.sine[index] * real);
  }
};

// kPairs pairs of a table (core/twiddle.h), `count` apart. Loaded at once: with most radices ptxas
// then needs fewer registers than when each pair is loaded where it is used.
template <int kPairs>
struct LoadedTwiddles {
  static constexpr bool kOne = false;
  float2 value[2 * kPairs];

  MONARCH_DEVICE LoadedTwiddles(const float4* pairs, int count) {
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const float4 pair = device::load_readonly(pairs + i * count);
      value[2 * i] = make_float2(pair.x, pair.y);
      value[2 * i + 1] = make_float2(pair.z, pair.w);
    }
  }
  MONARCH_DEVICE float2 operator[](int index) const { return value[index]; }
};

// The same, but of so many pairs that they must not be in registers all at once.
struct LazyTwiddles {
  const float4* pairs;
  int count;

  MONARCH_DEVICE float2 operator[](int index) const {
    const float4 pair = device::load_readonly(pairs + index / 2 * count);
    return index % 2 == 0 ? make_float2(pair.x, pair.y) : make_float2(pair.z, pair.w);
  }
};

// ---- Butterflies

// w b / cosine: with w = cosine (1 + i tangent) that takes two multiply-adds.
template <bool kInverse>
MONARCH_DEVICE float2 turn(float2 b, float tangent) {
  const float t = kInverse ? -tangent : tangent;
  return make_float2(device::fma(-t, b.y, b.x), device::fma(t, b.x, b.y));
}

// (a, b) -> (a + w b, a - w b), of kTimesI with i w (inverse: -i w) for w.
template <bool kInverse, bool kTimesI>
MONARCH_DEVICE void butterfly(float2& a, float2& b, float2 w) {
  const float2 t = turn<kInverse>(b, w.y);
  if constexpr (kTimesI) {
    const float c = kInverse ? -w.x : w.x;
    b = make_float2(device::fma(c, t.y, a.x), device::fma(-c, t.x, a.y));
    a = make_float2(device::fma(-c, t.y, a.x), device::fma(c, t.x, a.y));
  } else {
    b = make_float2(device::fma(-w.x, t.x, a.x), device::fma(-w.x, t.y, a.y));
    a = make_float2(device::fma(w.x, t.x, a.x), device::fma(w.x, t.y, a.y));
  }
}
// The same for w = 1.
template <bool kInverse, bool kTimesI>
MONARCH_DEVICE void butterfly(float2& a, float2& b) {
  const float2 t = !kTimesI ? b : kInverse ? make_float2(b.y, -b.x) : make_float2(-b.y, b.x);
  b = make_float2(a.x - t.x, a.y - t.y);
  a = make_float2(a.x + t.x, a.y + t.y);
}

// The levels of a power of two: block b of level l holds x[b * size .. (b + 1) * size - 1], its
// halves become blocks 2b and 2b+1. Odd blocks have i times the twiddle of the even one before.
// `one`: the first twiddle of each level is 1.
template <int kPower, int kLevel, bool kInverse, class Number, class Twiddles>
MONARCH_DEVICE void split_by_twos(Number* x, const Twiddles& twiddles, int first_twiddle,
                                  bool one) {
  // A template, not a loop, over the levels: the counts of the loops below are then constants.
  if constexpr ((1 << kLevel) < kPower) {
    constexpr int kHalf = kPower >> (kLevel + 1);
#pragma unroll
    for (int block = 0; block < (1 << kLevel); ++block) {
      const auto w = twiddles[first_twiddle + twiddle_index(kLevel, block)];
#pragma unroll
      for (int j = 0; j < kHalf; ++j) {
        Number &a = x[2 * block * kHalf + j], &b = x[(2 * block + 1) * kHalf + j];
        const bool odd = block % 2 == 1, is_one = one && block < 2;
        if (is_one && odd) {
          butterfly<kInverse, true>(a, b);
        } else if (is_one) {
          butterfly<kInverse, false>(a, b);
        } else if (odd) {
          butterfly<kInverse, true>(a, b, w);
        } else {
          butterfly<kInverse, false>(a, b, w);
        }
      }
    }
    split_by_twos<kPower, kLevel + 1, kInverse>(x, twiddles, first_twiddle, one);
  }
}

// (a, b, c) -> the three residues of a + b z + c z^2; given are p b + p^2 c and p b - p^2 c.
template <bool kInverse>
MONARCH_DEVICE void split_by_three(float2& a, float2& b, float2& c, float2 sum, float2 difference) {
  constexpr float kHalfRootOf3 = 0.8660254037844386f;
  constexpr float kSine = kInverse ? -kHalfRootOf3 : kHalfRootOf3;
  const float2 middle = make_float2(device::fma(-0.5f, sum.x, a.x), device::fma(-0.5f, sum.y, a.y));
  a = make_float2(a.x + sum.x, a.y + sum.y);
  b = make_float2(device::fma(-kSine, difference.y, middle.x),
                  device::fma(kSine, difference.x, middle.y));
  c = make_float2(device::fma(kSine, difference.y, middle.x),
                  device::fma(-kSine, difference.x, middle.y));
}
// The same, given b and c.
template <bool kInverse, class Twiddles>
MONARCH_DEVICE void split_by_three(float2& a, float2& b, float2& c, const Twiddles& twiddles) {
  float2 sum = b, difference = c;
  if constexpr (!Twiddles::kOne) {
    // p b = cosine * turn(b): the product becomes part of the sums.
    const float2 p = twiddles[0], turned = turn<kInverse>(sum, p.y);
    const float2 ppc = scale(turn<kInverse>(difference, twiddles[1].y), twiddles[1].x);
    sum = make_float2(device::fma(p.x, turned.x, ppc.x), device::fma(p.x, turned.y, ppc.y));
    difference =
        make_float2(device::fma(p.x, turned.x, -ppc.x), device::fma(p.x, turned.y, -ppc.y));
  } else {
    butterfly<kInverse, false>(sum, difference);
  }
  split_by_three<kInverse>(a, b, c, sum, difference);
}

// ---- A whole DFT
// x[slot] = sum_j in[j] e^(+-2 pi i j (theta + s) / R) for s = residue(R, slot); + for the forward
// transform, - for the inverse.

template <int kRadix, bool kInverse, class Number, class Twiddles>
MONARCH_DEVICE void split_thirds_by_twos(Number (&x)[kRadix], const Twiddles& twiddles) {
  constexpr int kPower = power_part(kRadix);
#pragma unroll
  for (int s = 0; s < 3; ++s) {
    // Of theta = 0, only the residue 0 has 1 for a twiddle again.
    split_by_twos<kPower, 0, kInverse>(x + s * kPower, twiddles, 2 + s * (kPower / 2),
                                       Twiddles::kOne && s == 0);
  }
}

// Number: float2, or another with a butterfly and a split_by_three of its own.
template <int kRadix, bool kInverse, class Number, class Twiddles>
MONARCH_DEVICE void dft(const Number (&in)[kRadix], Number (&x)[kRadix], const Twiddles& twiddles) {
  constexpr int kPower = power_part(kRadix);
#pragma unroll
  for (int j = 0; j < kRadix; ++j) x[j] = in[j];
  if constexpr (kPower == kRadix) {
    split_by_twos<kPower, 0, kInverse>(x, twiddles, 0, Twiddles::kOne);
  } else {
#pragma unroll
    for (int j = 0; j < kPower; ++j) {
      split_by_three<kInverse>(x[j], x[kPower + j], x[2 * kPower + j], twiddles);
    }
    split_thirds_by_twos<kRadix, kInverse>(x, twiddles);
  }
}

// Real input: half the work in the first level.
template <int kRadix, bool kInverse, class Twiddles>
MONARCH_DEVICE void dft(const float (&in)[kRadix], float2 (&x)[kRadix], const Twiddles& twiddles) {
  static_assert(!kInverse && !Twiddles::kOne, "only the input of the forward transform is real");
  constexpr int kPower = power_part(kRadix);
  if constexpr (kPower == kRadix) {
#pragma unroll
    for (int j = 0; j < kRadix / 2; ++j) {
      const float a = in[j], b = in[kRadix / 2 + j], c = twiddles[0].x;
      const float sine = twiddles.times(0, b).y;
      x[j] = make_float2(device::fma(c, b, a), sine);
      x[kRadix / 2 + j] = make_float2(device::fma(-c, b, a), -sine);
    }
    split_by_twos<kPower, 1, false>(x, twiddles, 0, false);
  } else {
#pragma unroll
    for (int j = 0; j < kPower; ++j) {
      const float2 pb = twiddles.times(0, in[kPower + j]);
      const float2 ppc = twiddles.times(1, in[2 * kPower + j]);
      x[j] = make_float2(in[j], 0.0f);
      split_by_three<false>(x[j], x[kPower + j], x[2 * kPower + j],
                            make_float2(pb.x + ppc.x, pb.y + ppc.y),
                            make_float2(pb.x - ppc.x, pb.y - ppc.y));
    }
    split_thirds_by_twos<kRadix, false>(x, twiddles);
  }
}

}  // namespace monarch::cuda
