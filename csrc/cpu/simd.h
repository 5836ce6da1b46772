// One vector of floats and the few operations the kernels need, per instruction set. Arithmetic
// uses the compiler's vector operators (contracted to FMA); only conversions and shuffles are named
// here. Included by {generic,avx2,avx512}.cpp, each with its own flags: everything has internal
// linkage.
#pragma once
#include <cstdint>
#include <cstring>

#include "core/scalar.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define MONARCH_MEMBER inline __attribute__((always_inline))
#define MONARCH_INLINE static MONARCH_MEMBER

namespace monarch::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4), may_alias));
typedef float UnalignedVec __attribute__((vector_size(kLanes * 4), may_alias, aligned(4)));
typedef double DoubleVec __attribute__((vector_size(kLanes * 8), may_alias));

template <class Real>
struct VectorOf;
template <>
struct VectorOf<float> {
  using type = Vec;
};
template <>
struct VectorOf<double> {
  using type = DoubleVec;
};

// Whether a * b + c is rounded once.
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
constexpr bool kFused = true;
#else
constexpr bool kFused = false;
#endif

MONARCH_INLINE Vec splat(float x) { return x - Vec{}; }  // x - (+0) is x for every x, NaN included
// Makes the compiler hold v in a register here. Without it gcc reads operands from memory twice,
// and contracts both sums a + bw and a - bw into multiply-adds, which doubles the products.
MONARCH_INLINE void hold(Vec& v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__x86_64__)
  asm("" : "+x"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#else
  (void)v;
#endif
}

MONARCH_INLINE Vec load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
MONARCH_INLINE void store(float* p, Vec v) { *reinterpret_cast<UnalignedVec*>(p) = v; }

// ---- 16-bit storage

#if defined(__AVX512F__)

MONARCH_INLINE Vec load(const BFloat16* p) {
  const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
}
MONARCH_INLINE Vec load(const Float16* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
// The first, and the second, of two numbers that lie in each 32 bits.
MONARCH_INLINE Vec first_of(Vec words, BFloat16) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(words), 16));
}
MONARCH_INLINE Vec second_of(Vec words, BFloat16) {
  const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000));
  return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(words), high));
}
MONARCH_INLINE Vec first_of(Vec words, Float16) {
  return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_castps_si512(words)));
}
MONARCH_INLINE Vec second_of(Vec words, Float16) {
  return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(words), 16)));
}
MONARCH_INLINE __m256i pack(Vec v, BFloat16) {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i even = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(even, nan, quiet), 16));
}
MONARCH_INLINE __m256i pack(Vec v, Float16) {
  return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
template <class T>
MONARCH_INLINE void store(T* p, Vec v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), pack(v, T{}));
}
// Non-temporal: for outputs larger than the caches, saves reading the line before writing it.
MONARCH_INLINE void stream(float* p, Vec v) { _mm512_stream_ps(p, v); }
template <class T>
MONARCH_INLINE void stream(T* p, Vec v) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), pack(v, T{}));
}
MONARCH_INLINE void stream_fence() { _mm_sfence(); }

#elif defined(__AVX2__)

MONARCH_INLINE Vec load(const BFloat16* p) {
  const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
}
MONARCH_INLINE Vec load(const Float16* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
MONARCH_INLINE Vec first_of(Vec words, BFloat16) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(words), 16));
}
MONARCH_INLINE Vec second_of(Vec words, BFloat16) {
  const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000));
  return _mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(words), high));
}
MONARCH_INLINE Vec half_floats(__m256i words) {
  return _mm256_cvtph_ps(
      _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
MONARCH_INLINE Vec first_of(Vec words, Float16) {
  return half_floats(_mm256_and_si256(_mm256_castps_si256(words), _mm256_set1_epi32(0xffff)));
}
MONARCH_INLINE Vec second_of(Vec words, Float16) {
  return half_floats(_mm256_srli_epi32(_mm256_castps_si256(words), 16));
}
MONARCH_INLINE __m128i pack(Vec v, BFloat16) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i even = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(even, quiet, nan), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
}
MONARCH_INLINE __m128i pack(Vec v, Float16) {
  return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
template <class T>
MONARCH_INLINE void store(T* p, Vec v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), pack(v, T{}));
}
MONARCH_INLINE void stream(float* p, Vec v) { _mm256_stream_ps(p, v); }
template <class T>
MONARCH_INLINE void stream(T* p, Vec v) {
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), pack(v, T{}));
}
MONARCH_INLINE void stream_fence() { _mm_sfence(); }

#else

template <class T>
MONARCH_INLINE Vec load(const T* p) {
  return Vec{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])};
}
template <class T>
MONARCH_INLINE Vec every_other(Vec words, int64_t first) {
  T halves[2 * kLanes];
  std::memcpy(halves, &words, sizeof words);
  Vec v;
  for (int i = 0; i < kLanes; ++i) v[i] = to_float(halves[2 * i + first]);
  return v;
}
template <class T>
MONARCH_INLINE Vec first_of(Vec words, T) {
  return every_other<T>(words, 0);
}
template <class T>
MONARCH_INLINE Vec second_of(Vec words, T) {
  return every_other<T>(words, 1);
}
MONARCH_INLINE void store(BFloat16* p, Vec v) {
  for (int i = 0; i < kLanes; ++i) p[i] = to_bfloat16(v[i]);
}
MONARCH_INLINE void store(Float16* p, Vec v) {
  for (int i = 0; i < kLanes; ++i) p[i] = to_float16(v[i]);
}
template <class T>
MONARCH_INLINE void stream(T* p, Vec v) {
  store(p, v);
}
MONARCH_INLINE void stream_fence() {}

#endif

// The first `count` lanes, 0 <= count < kLanes; the others read as zero and are not written.
template <class T>
MONARCH_INLINE Vec load_partial(const T* p, int64_t count) {
  T lanes[kLanes] = {};
  std::memcpy(lanes, p, static_cast<size_t>(count) * sizeof(T));
  return load(lanes);
}
template <class T>
MONARCH_INLINE void store_partial(T* p, Vec v, int64_t count) {
  T lanes[kLanes];
  store(lanes, v);
  std::memcpy(p, lanes, static_cast<size_t>(count) * sizeof(T));
}

// kLanes samples from `index` on, zeros outside of the row.
template <class T>
static Vec load_clipped(const T* x, int64_t index, int64_t length) {
  const int64_t begin = index < 0 ? 0 : index;
  const int64_t end = index + kLanes < length ? index + kLanes : length;
  T lanes[kLanes] = {};
  if (begin < end) {
    std::memcpy(lanes + (begin - index), x + begin, static_cast<size_t>(end - begin) * sizeof(T));
  }
  return load(lanes);
}

MONARCH_INLINE Vec reversed(Vec v) {
#if defined(__AVX512F__)
  const __m512i order = _mm512_set_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return _mm512_permutexvar_ps(order, v);
#elif defined(__AVX2__)
  return _mm256_permutevar8x32_ps(v, _mm256_set_epi32(0, 1, 2, 3, 4, 5, 6, 7));
#else
  return Vec{v[3], v[2], v[1], v[0]};
#endif
}

// ---- Transposition of kLanes vectors, in two steps that the leaf interleaves with arithmetic
// Lane 4q+r of vector 4i+c is written (i, c; q, r). `transpose_quads` exchanges c and r
// within four vectors of one i; `transpose_blocks` exchanges i and q among the kQuads vectors of
// one c.

constexpr int kQuads = kLanes / 4;

MONARCH_INLINE void transpose_quads(Vec& a, Vec& b, Vec& c, Vec& d) {
#if defined(__AVX512F__)
  const __m512d ab_lo = _mm512_castps_pd(_mm512_unpacklo_ps(a, b));
  const __m512d ab_hi = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
  const __m512d cd_lo = _mm512_castps_pd(_mm512_unpacklo_ps(c, d));
  const __m512d cd_hi = _mm512_castps_pd(_mm512_unpackhi_ps(c, d));
  a = _mm512_castpd_ps(_mm512_unpacklo_pd(ab_lo, cd_lo));
  b = _mm512_castpd_ps(_mm512_unpackhi_pd(ab_lo, cd_lo));
  c = _mm512_castpd_ps(_mm512_unpacklo_pd(ab_hi, cd_hi));
  d = _mm512_castpd_ps(_mm512_unpackhi_pd(ab_hi, cd_hi));
#elif defined(__AVX2__)
  const __m256d ab_lo = _mm256_castps_pd(_mm256_unpacklo_ps(a, b));
  const __m256d ab_hi = _mm256_castps_pd(_mm256_unpackhi_ps(a, b));
  const __m256d cd_lo = _mm256_castps_pd(_mm256_unpacklo_ps(c, d));
  const __m256d cd_hi = _mm256_castps_pd(_mm256_unpackhi_ps(c, d));
  a = _mm256_castpd_ps(_mm256_unpacklo_pd(ab_lo, cd_lo));
  b = _mm256_castpd_ps(_mm256_unpackhi_pd(ab_lo, cd_lo));
  c = _mm256_castpd_ps(_mm256_unpacklo_pd(ab_hi, cd_hi));
  d = _mm256_castpd_ps(_mm256_unpackhi_pd(ab_hi, cd_hi));
#else
  const Vec w = {a[0], b[0], c[0], d[0]}, x = {a[1], b[1], c[1], d[1]};
  const Vec y = {a[2], b[2], c[2], d[2]}, z = {a[3], b[3], c[3], d[3]};
  a = w, b = x, c = y, d = z;
#endif
}

MONARCH_INLINE void transpose_blocks(Vec (&v)[kQuads]) {
#if defined(__AVX512F__)
  const Vec even01 = _mm512_shuffle_f32x4(v[0], v[1], 0x88);
  const Vec even23 = _mm512_shuffle_f32x4(v[2], v[3], 0x88);
  const Vec odd01 = _mm512_shuffle_f32x4(v[0], v[1], 0xdd);
  const Vec odd23 = _mm512_shuffle_f32x4(v[2], v[3], 0xdd);
  v[0] = _mm512_shuffle_f32x4(even01, even23, 0x88);
  v[2] = _mm512_shuffle_f32x4(even01, even23, 0xdd);
  v[1] = _mm512_shuffle_f32x4(odd01, odd23, 0x88);
  v[3] = _mm512_shuffle_f32x4(odd01, odd23, 0xdd);
#elif defined(__AVX2__)
  const Vec lo = _mm256_permute2f128_ps(v[0], v[1], 0x20);
  v[1] = _mm256_permute2f128_ps(v[0], v[1], 0x31);
  v[0] = lo;
#else
  (void)v;
#endif
}

// Calls f with a zero of a storage type.
template <class F>
MONARCH_INLINE void with_scalar(Scalar scalar, F&& f) {
  switch (scalar) {
    case Scalar::kFloat32:
      return f(float{});
    case Scalar::kBFloat16:
      return f(BFloat16{});
    case Scalar::kFloat16:
      return f(Float16{});
  }
}

MONARCH_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

}  // namespace
}  // namespace monarch::cpu
