// The right-angle transform of a row: coefficients modulo x^S - i, docs/math.md. Forward passes
// split a modulus x^n - e^(2 pi i theta) into R factors x^(n/R) - e^(2 pi i (theta + s)/R):
// multiply the j-th of R coefficients by its twiddle e^(2 pi i theta j / R), then a DFT of size R.
// Inverse passes undo them in reverse, without the factor 1/S, which is folded into the filter's
// spectrum.
#pragma once
#include "cpu/plan.h"
#include "cpu/simd.h"

namespace monarch::cpu {
namespace {

template <class Real>
struct ComplexOf {
  typename VectorOf<Real>::type re, im;
};
using Complex = ComplexOf<float>;

template <class Real>
MONARCH_INLINE ComplexOf<Real> operator+(ComplexOf<Real> a, ComplexOf<Real> b) {
  return {a.re + b.re, a.im + b.im};
}
template <class Real>
MONARCH_INLINE ComplexOf<Real> operator-(ComplexOf<Real> a, ComplexOf<Real> b) {
  return {a.re - b.re, a.im - b.im};
}
MONARCH_INLINE Complex held(Complex x) {
  hold(x.re);
  hold(x.im);
  return x;
}
MONARCH_INLINE ComplexOf<double> held(ComplexOf<double> x) { return x; }
MONARCH_INLINE Complex load_complex(const float* p) { return held({load(p), load(p + kLanes)}); }
MONARCH_INLINE void store_complex(float* p, Complex x) {
  store(p, x.re);
  store(p + kLanes, x.im);
}

// x * w (forward) or x * conj(w) (inverse); w is a scalar or a vector.
template <bool kInverse, class Real, class W>
MONARCH_INLINE ComplexOf<Real> rotate(ComplexOf<Real> x, W re, W im) {
  using C = ComplexOf<Real>;
  if constexpr (kInverse) return held(C{x.re * re + x.im * im, x.im * re - x.re * im});
  return held(C{x.re * re - x.im * im, x.re * im + x.im * re});
}
// a + ib (forward) or a - ib (inverse), and the other sign.
template <bool kInverse, class Real>
MONARCH_INLINE ComplexOf<Real> add_i(ComplexOf<Real> a, ComplexOf<Real> b) {
  if constexpr (kInverse) return {a.re + b.im, a.im - b.re};
  return {a.re - b.im, a.im + b.re};
}
template <bool kInverse, class Real>
MONARCH_INLINE ComplexOf<Real> sub_i(ComplexOf<Real> a, ComplexOf<Real> b) {
  return add_i<!kInverse>(a, b);
}

// ---- DFT of size R in registers, natural order, positive exponent forward

template <bool kInverse, class C>
MONARCH_INLINE void dft4(C& a, C& b, C& c, C& d) {
  // held: gcc would compute d - b as well, instead of one more subtraction below.
  const C s = a + c, t = a - c, u = b + d, v = held(b - d);
  a = s + u;
  c = s - u;
  b = add_i<kInverse>(t, v);
  d = sub_i<kInverse>(t, v);
}

template <int R, bool kInverse, class Real>
MONARCH_INLINE void dft(ComplexOf<Real>* x) {
  using C = ComplexOf<Real>;
  static_assert(R == 1 || R == 2 || R == 3 || R == 4 || R == 5 || R == 8);
  if constexpr (R == 2) {
    const C a = x[0];
    x[0] = a + x[1];
    x[1] = a - x[1];
  } else if constexpr (R == 3) {
    constexpr Real kHalfRoot3 = 0.86602540378443864676;
    const C t = x[1] + x[2], d = x[1] - x[2];
    const C m = {x[0].re - 0.5f * t.re, x[0].im - 0.5f * t.im};
    const C s = {kHalfRoot3 * d.re, kHalfRoot3 * d.im};
    x[0] = x[0] + t;
    x[1] = add_i<kInverse>(m, s);
    x[2] = sub_i<kInverse>(m, s);
  } else if constexpr (R == 4) {
    dft4<kInverse>(x[0], x[1], x[2], x[3]);
  } else if constexpr (R == 5) {
    constexpr Real kCos1 = 0.30901699437494742410, kSin1 = 0.95105651629515357212;
    constexpr Real kCos2 = -0.80901699437494742410, kSin2 = 0.58778525229247312917;
    const C s1 = x[1] + x[4], d1 = x[1] - x[4], s2 = x[2] + x[3], d2 = x[2] - x[3];
    const C m1 = {x[0].re + kCos1 * s1.re + kCos2 * s2.re, x[0].im + kCos1 * s1.im + kCos2 * s2.im};
    const C m2 = {x[0].re + kCos2 * s1.re + kCos1 * s2.re, x[0].im + kCos2 * s1.im + kCos1 * s2.im};
    const C n1 = {kSin1 * d1.re + kSin2 * d2.re, kSin1 * d1.im + kSin2 * d2.im};
    const C n2 = {kSin2 * d1.re - kSin1 * d2.re, kSin2 * d1.im - kSin1 * d2.im};
    x[0] = x[0] + s1 + s2;
    x[1] = add_i<kInverse>(m1, n1);
    x[4] = sub_i<kInverse>(m1, n1);
    x[2] = add_i<kInverse>(m2, n2);
    x[3] = sub_i<kInverse>(m2, n2);
  } else if constexpr (R == 8) {
    constexpr Real kHalfRoot2 = 0.70710678118654752440;
    C e0 = x[0], e1 = x[2], e2 = x[4], e3 = x[6];
    C o0 = x[1], o1 = x[3], o2 = x[5], o3 = x[7];
    dft4<kInverse>(e0, e1, e2, e3);
    dft4<kInverse>(o0, o1, o2, o3);
    // o1 e^(i pi/4) = p / sqrt 2, p = o1 (1 + i); o3 e^(3i pi/4) = -q / sqrt 2, q = o3 (1 - i).
    const C p = held(add_i<kInverse>(o1, o1)), q = held(sub_i<kInverse>(o3, o3));
    x[0] = e0 + o0;
    x[4] = e0 - o0;
    x[2] = add_i<kInverse>(e2, o2);
    x[6] = sub_i<kInverse>(e2, o2);
    x[1] = {e1.re + kHalfRoot2 * p.re, e1.im + kHalfRoot2 * p.im};
    x[5] = {e1.re - kHalfRoot2 * p.re, e1.im - kHalfRoot2 * p.im};
    x[3] = {e3.re - kHalfRoot2 * q.re, e3.im - kHalfRoot2 * q.im};
    x[7] = {e3.re + kHalfRoot2 * q.re, e3.im + kHalfRoot2 * q.im};
  }
}

// ---- Passes: a radix-R stage over n vectors of a row in memory

constexpr int64_t kPadRun = 512 / kLanes;  // vectors between two pads, see padded()
constexpr int64_t kStep = 2 * kLanes;      // floats of a complex vector

MONARCH_INLINE float* at(float* row, int64_t vector) {
  return row + kStep * padded(vector, kLanes);
}

// Calls body(v, offset) for v = 0 .. count-1, offset = floats from the first to the v-th vector.
template <class Body>
MONARCH_INLINE void for_vectors(int64_t count, Body&& body) {
  for (int64_t run = 0; run < count; run += kPadRun) {
    const int64_t end = count < run + kPadRun ? count : run + kPadRun;
    int64_t offset = kStep * padded(run, kLanes);
    for (int64_t v = run; v < end; ++v, offset += kStep) body(v, offset);
  }
}

template <int R>
static void forward_pass(float* row, int64_t base, int64_t n, const float* __restrict twiddles) {
  float* leg[R];
  for (int j = 0; j < R; ++j) leg[j] = at(row, base + j * (n / R));
  for_vectors(n / R, [&](int64_t, int64_t offset) __attribute__((always_inline)) {
    Complex x[R];
    x[0] = load_complex(leg[0] + offset);
#pragma GCC unroll 8
    for (int j = 1; j < R; ++j) {
      x[j] = rotate<false>(load_complex(leg[j] + offset), twiddles[2 * j - 2], twiddles[2 * j - 1]);
    }
    dft<R, false>(x);
#pragma GCC unroll 8
    for (int j = 0; j < R; ++j) store_complex(leg[j] + offset, x[j]);
  });
}

template <int R>
static void inverse_pass(float* row, int64_t base, int64_t n, const float* __restrict twiddles) {
  float* leg[R];
  for (int j = 0; j < R; ++j) leg[j] = at(row, base + j * (n / R));
  for_vectors(n / R, [&](int64_t, int64_t offset) __attribute__((always_inline)) {
    Complex x[R];
#pragma GCC unroll 8
    for (int j = 0; j < R; ++j) x[j] = load_complex(leg[j] + offset);
    dft<R, true>(x);
    store_complex(leg[0] + offset, x[0]);
#pragma GCC unroll 8
    for (int j = 1; j < R; ++j) {
      store_complex(leg[j] + offset, rotate<true>(x[j], twiddles[2 * j - 2], twiddles[2 * j - 1]));
    }
  });
}

// The first pass of a real row: source(v) is its v-th vector.
template <int R, class Source>
static void first_pass(float* row, int64_t n, const float* __restrict twiddles,
                       const Source& source) {
  const int64_t stride = n / R;
  float* leg[R];
  for (int j = 0; j < R; ++j) leg[j] = at(row, j * stride);
  for_vectors(stride, [&](int64_t v, int64_t offset) __attribute__((always_inline)) {
    Complex x[R];
    x[0] = {source(v), Vec{}};
#pragma GCC unroll 8
    for (int j = 1; j < R; ++j) {
      const Vec u = source(v + j * stride);
      x[j] = held({u * twiddles[2 * j - 2], u * twiddles[2 * j - 1]});
    }
    dft<R, false>(x);
#pragma GCC unroll 8
    for (int j = 0; j < R; ++j) store_complex(leg[j] + offset, x[j]);
  });
}

// The last inverse pass when only the real part is wanted: sink(v, value) takes it.
template <int R, class Sink>
static void last_pass(float* row, int64_t n, const float* __restrict twiddles, const Sink& sink) {
  const int64_t stride = n / R;
  float* leg[R];
  for (int j = 0; j < R; ++j) leg[j] = at(row, j * stride);
  for_vectors(stride, [&](int64_t v, int64_t offset) __attribute__((always_inline)) {
    Complex x[R];
#pragma GCC unroll 8
    for (int j = 0; j < R; ++j) x[j] = load_complex(leg[j] + offset);
    dft<R, true>(x);
    sink(v, x[0].re);
#pragma GCC unroll 8
    for (int j = 1; j < R; ++j) {
      sink(v + j * stride, x[j].re * twiddles[2 * j - 2] + x[j].im * twiddles[2 * j - 1]);
    }
  });
}

// Calls f(std::integral_constant-like tag) for the run-time radix of a pass.
template <int R>
struct Radix {
  static constexpr int value = R;
};
template <class F>
MONARCH_INLINE void with_radix(int radix, F&& f) {
  switch (radix) {
    case 2:
      return f(Radix<2>{});
    case 3:
      return f(Radix<3>{});
    case 4:
      return f(Radix<4>{});
    case 5:
      return f(Radix<5>{});
    default:
      return f(Radix<8>{});
  }
}

// ---- Leaves: between the passes down and the passes up
// A leaf ends the forward transform of its vectors, hands each complex vector of the spectrum to
// op(v, value) -> value, v counting through the row, and begins the inverse transform.

enum class Walk { kForward, kInverse, kBoth };
constexpr bool goes_down(Walk walk) { return walk != Walk::kInverse; }
constexpr bool goes_up(Walk walk) { return walk != Walk::kForward; }

struct Cursor {  // the next unread twiddles of a depth-first walk
  const float* scalars;
  const float* vectors;
};

// Every leaf begins with a DFT of 16 columns, as 4 x 4. Steps of four complex vectors through
// memory (first-level cache) beat larger radices in registers: nothing spills, and multiplications,
// additions and shuffles stand close enough together for the CPU's scheduler to run them side by
// side.
constexpr int kLeafScalars = 2 * (3 + 4 * 3);

MONARCH_INLINE void load_four(Complex (&x)[4], const float* p, int64_t step) {
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) x[c] = load_complex(p + c * step);
}
MONARCH_INLINE void store_four(float* p, int64_t step, const Complex (&x)[4]) {
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) store_complex(p + c * step, x[c]);
}
MONARCH_INLINE void transpose_quads(Complex (&x)[4]) {
  transpose_quads(x[0].re, x[1].re, x[2].re, x[3].re);
  transpose_quads(x[0].im, x[1].im, x[2].im, x[3].im);
}

// Radix 4 with the scalar twiddles of one node.
MONARCH_INLINE void stage_down(Complex (&x)[4], const float* __restrict twiddles) {
#pragma GCC unroll 4
  for (int j = 1; j < 4; ++j) {
    x[j] = rotate<false>(x[j], twiddles[2 * j - 2], twiddles[2 * j - 1]);
  }
  dft<4, false>(x);
}
MONARCH_INLINE void stage_up(Complex (&x)[4], const float* __restrict twiddles) {
  dft<4, true>(x);
#pragma GCC unroll 4
  for (int j = 1; j < 4; ++j) {
    x[j] = rotate<true>(x[j], twiddles[2 * j - 2], twiddles[2 * j - 1]);
  }
}

// The first of the two column stages: vectors c, 4 + c, 8 + c, 12 + c.
MONARCH_INLINE void outer_columns_down(float* p, const float* __restrict twiddles) {
  for (int c = 0; c < 4; ++c) {
    Complex x[4];
    load_four(x, p + c * kStep, 4 * kStep);
    stage_down(x, twiddles);
    store_four(p + c * kStep, 4 * kStep, x);
  }
}
MONARCH_INLINE void outer_columns_up(float* p, const float* __restrict twiddles) {
  for (int c = 0; c < 4; ++c) {
    Complex x[4];
    load_four(x, p + c * kStep, 4 * kStep);
    stage_up(x, twiddles);
    store_four(p + c * kStep, 4 * kStep, x);
  }
}

// Interleaved channels: the second column stage meets the spectrum.
template <Walk kWalk, class Op>
MONARCH_INLINE void inner_columns(float* p, const float* __restrict twiddles, int64_t base,
                                  Op& op) {
  for (int s = 0; s < 4; ++s) {
    Complex x[4];
    load_four(x, p + 4 * s * kStep, kStep);
    if constexpr (goes_down(kWalk)) stage_down(x, twiddles + 6 * s);
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) x[c] = op(base + 4 * s + c, x[c]);
    if constexpr (goes_up(kWalk)) stage_up(x, twiddles + 6 * s);
    store_four(p + 4 * s * kStep, kStep, x);
  }
}

// Consecutive samples: the second column stage, with the first half of the transposition that makes
// lanes columns; then the DFT of the lanes in two steps of radix kQuads and 4.
MONARCH_INLINE void inner_columns_down(float* p, const float* __restrict twiddles) {
  for (int s = 0; s < 4; ++s) {
    Complex x[4];
    load_four(x, p + 4 * s * kStep, kStep);
    stage_down(x, twiddles + 6 * s);
    transpose_quads(x);
    store_four(p + 4 * s * kStep, kStep, x);
  }
}
MONARCH_INLINE void inner_columns_up(float* p, const float* __restrict twiddles) {
  for (int s = 0; s < 4; ++s) {
    Complex x[4];
    load_four(x, p + 4 * s * kStep, kStep);
    transpose_quads(x);
    stage_up(x, twiddles + 6 * s);
    store_four(p + 4 * s * kStep, kStep, x);
  }
}

// Vectors c, 4 + c, 8 + c, ... of a transposition block: exchange the blocks, then a DFT over them.
template <bool kInverse>
MONARCH_INLINE void lane_blocks(float* p, const float* __restrict twiddles) {
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    Vec re[kQuads], im[kQuads];
    Complex x[kQuads];
#pragma GCC unroll 4
    for (int i = 0; i < kQuads; ++i) {
      x[i] = load_complex(p + (4 * i + c) * kStep);
      if constexpr (!kInverse) re[i] = x[i].re, im[i] = x[i].im;
    }
    if constexpr (!kInverse) {
      transpose_blocks(re);
      transpose_blocks(im);
      x[0] = {re[0], im[0]};
#pragma GCC unroll 4
      for (int i = 1; i < kQuads; ++i) {
        const float* w = twiddles + (i - 1) * kStep;
        x[i] = rotate<false>(Complex{re[i], im[i]}, load(w), load(w + kLanes));
      }
    }
    dft<kQuads, kInverse>(x);
    if constexpr (kInverse) {
      re[0] = x[0].re, im[0] = x[0].im;
#pragma GCC unroll 4
      for (int i = 1; i < kQuads; ++i) {
        const float* w = twiddles + (i - 1) * kStep;
        const Complex y = rotate<true>(x[i], load(w), load(w + kLanes));
        re[i] = y.re, im[i] = y.im;
      }
      transpose_blocks(re);
      transpose_blocks(im);
    }
#pragma GCC unroll 4
    for (int i = 0; i < kQuads; ++i) {
      if constexpr (kInverse) {
        store_complex(p + (4 * i + c) * kStep, Complex{re[i], im[i]});
      } else {
        store_complex(p + (4 * i + c) * kStep, x[i]);
      }
    }
  }
}

// Four vectors: the last radix-4 stage, op, the first inverse one.
template <Walk kWalk, class Op>
MONARCH_INLINE void lane_quads(float* p, const float* __restrict twiddles, int64_t base, Op& op) {
  Complex x[4];
  load_four(x, p, kStep);
  if constexpr (goes_down(kWalk)) {
#pragma GCC unroll 4
    for (int c = 1; c < 4; ++c) {
      const float* w = twiddles + (c - 1) * kStep;
      x[c] = rotate<false>(x[c], load(w), load(w + kLanes));
    }
    dft<4, false>(x);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) x[c] = op(base + c, x[c]);
  if constexpr (goes_up(kWalk)) {
    dft<4, true>(x);
#pragma GCC unroll 4
    for (int c = 1; c < 4; ++c) {
      const float* w = twiddles + (c - 1) * kStep;
      x[c] = rotate<true>(x[c], load(w), load(w + kLanes));
    }
  }
  store_four(p, kStep, x);
}

template <Walk kWalk, class Op>
MONARCH_INLINE void lanes(float* p, const float* __restrict twiddles, int64_t base, Op& op) {
  const float* quad_twiddles = twiddles + (kQuads - 1) * kStep;
  if constexpr (goes_down(kWalk) && kQuads > 1) lane_blocks<false>(p, twiddles);
  for (int k = 0; k < kQuads; ++k) {
    lane_quads<kWalk>(p + 4 * k * kStep, quad_twiddles + 3 * k * kStep, base + 4 * k, op);
  }
  if constexpr (goes_up(kWalk) && kQuads > 1) lane_blocks<true>(p, twiddles);
}
constexpr int64_t kLaneTwiddles = (kQuads - 1 + 3 * kQuads) * kStep;  // floats per kLanes columns
constexpr int64_t kLeafVectors =
    kLaneTwiddles * (kLeafColumns / kLanes);  // floats of lane twiddles per leaf

// kCount neighbouring leaves, step by step: each step of a leaf needs all of its previous step, and
// the other leaf fills the wait.
template <bool kInterleaved, Walk kWalk, int kCount, class Op>
MONARCH_INLINE void leaves(float* row, int64_t base, Cursor& cursor, Op& op) {
  const auto each = [&](auto&& step) __attribute__((always_inline)) {
#pragma GCC unroll 2
    for (int i = 0; i < kCount; ++i) {
      step(at(row, base + i * kLeafColumns), cursor.scalars + i * kLeafScalars,
           cursor.vectors + i * kLeafVectors, base + i * kLeafColumns);
    }
  };
  using F = const float*;
  if constexpr (goes_down(kWalk)) {
    each([](float* p, F scalars, F, int64_t) { outer_columns_down(p, scalars); });
  }
  if constexpr (kInterleaved) {
    each([&](float* p, F scalars, F, int64_t first) {
      inner_columns<kWalk>(p, scalars + 6, first, op);
    });
  } else {
    if constexpr (goes_down(kWalk)) {
      each([](float* p, F scalars, F, int64_t) { inner_columns_down(p, scalars + 6); });
    }
    for (int g = 0; g < kLeafColumns / kLanes; ++g) {
      each([&](float* p, F, F vectors, int64_t first) {
        lanes<kWalk>(p + g * kLanes * kStep, vectors + g * kLaneTwiddles, first + g * kLanes, op);
      });
    }
    if constexpr (goes_up(kWalk)) {
      each([](float* p, F scalars, F, int64_t) { inner_columns_up(p, scalars + 6); });
    }
  }
  if constexpr (goes_up(kWalk)) {
    each([](float* p, F scalars, F, int64_t) { outer_columns_up(p, scalars); });
  }
  cursor.scalars += kCount * kLeafScalars;
  cursor.vectors += kCount * kLeafVectors;
}

// ---- The walk: depth first, a sub-block stays in cache from its first pass to its last

template <bool kInterleaved, Walk kWalk, class Op>
static void walk(const Plan& plan, int level, float* row, int64_t base, int64_t n, Cursor& cursor,
                 Op& op);

template <bool kInterleaved, Walk kWalk, class Op>
static void walk_children(const Plan& plan, int level, float* row, int64_t base, int64_t n,
                          Cursor& cursor, Op& op) {
  if (level + 1 < plan.passes.count) {
    const int64_t child = n / plan.passes.radix[level];
    for (int64_t s = 0; s < n; s += child) {
      walk<kInterleaved, kWalk>(plan, level + 1, row, base + s, child, cursor, op);
    }
    return;
  }
  int64_t leaf = 0;
  for (; leaf + 2 * kLeafColumns <= n; leaf += 2 * kLeafColumns) {
    leaves<kInterleaved, kWalk, 2>(row, base + leaf, cursor, op);
  }
  if (leaf < n) leaves<kInterleaved, kWalk, 1>(row, base + leaf, cursor, op);
}

template <bool kInterleaved, Walk kWalk, class Op>
static void walk(const Plan& plan, int level, float* row, int64_t base, int64_t n, Cursor& cursor,
                 Op& op) {
  const int radix = plan.passes.radix[level];
  const float* twiddles = cursor.scalars;
  cursor.scalars += 2 * (radix - 1);
  if constexpr (goes_down(kWalk)) {
    with_radix(radix, [&](auto r) { forward_pass<r.value>(row, base, n, twiddles); });
  }
  walk_children<kInterleaved, kWalk>(plan, level, row, base, n, cursor, op);
  if constexpr (goes_up(kWalk)) {
    with_radix(radix, [&](auto r) { inverse_pass<r.value>(row, base, n, twiddles); });
  }
}

// A row of complex vectors, forward or inverse, in place.
template <bool kInterleaved, Walk kWalk, class Op>
static void transform(const Plan& plan, float* row, Op op) {
  Cursor cursor{plan.scalars, plan.vectors};
  walk<kInterleaved, kWalk>(plan, 0, row, 0, plan.columns, cursor, op);
}

// Real in, op on the spectrum, and if kWalk goes up, the real part out.
template <bool kInterleaved, Walk kWalk, class Source, class Op, class Sink>
static void transform_real(const Plan& plan, float* row, const Source& source, Op op,
                           const Sink& sink) {
  const int radix = plan.passes.radix[0];
  Cursor cursor{plan.scalars + 2 * (radix - 1), plan.vectors};
  if constexpr (goes_down(kWalk)) {
    with_radix(radix,
               [&](auto r) { first_pass<r.value>(row, plan.columns, plan.scalars, source); });
  }
  walk_children<kInterleaved, kWalk>(plan, 0, row, 0, plan.columns, cursor, op);
  if constexpr (goes_up(kWalk)) {
    with_radix(radix, [&](auto r) { last_pass<r.value>(row, plan.columns, plan.scalars, sink); });
  }
}

}  // namespace
}  // namespace monarch::cpu
