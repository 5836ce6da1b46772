// Products with block-diagonal matrices. The activations of kTokens rows are turned into a panel,
// in which a vector is one feature of kLanes rows; a weight is then one number broadcast, read from
// the matrix as it lies in memory. Nothing of the weights is ever packed, a second product takes
// the result of a first one as it is, and a permutation between them is a stride. Included once
// per instruction set: everything has internal linkage.
#pragma once
#include "cpu/products.h"
#include "cpu/simd.h"

namespace monarch::cpu {
namespace {

constexpr int kVectors = 2;
constexpr int64_t kTokens = kVectors * kLanes;
// Rows of a matrix whose sums are registers at the same time: rows x kVectors of them, and the
// rest for kVectors of the panel and a weight.
#if defined(__AVX512F__)
constexpr int kRows = 12;
#elif defined(__AVX2__)
constexpr int kRows = 6;
#else
constexpr int kRows = 4;
#endif
// Rows of a matrix done together, a multiple of kRows and of kLanes: 48, 24 or 16. Of pairs twice
// as many, so that they fill whole vectors of bfloat16.
constexpr int64_t kBaseChunk = kLanes == 16 ? 48 : kLanes == 8 ? 24 : 16;
template <class C>
constexpr int64_t kChunk = kBaseChunk * C::kPer;
// Steps of a partial sum: of partial sums the rounding error is smaller, as torch's is.
constexpr int64_t kDepth = 256;

// ---- What is multiplied: floats, or pairs of bfloat16 in 32 bits

struct Floats {
  using Weight = float;
  static constexpr int64_t kPer = 1;
  MONARCH_INLINE Vec weight(const float* w) { return splat(*w); }
  MONARCH_INLINE Vec last_weight(const float* w) { return splat(*w); }
  MONARCH_INLINE Vec dot(Vec sum, Vec w, Vec x) { return sum + w * x; }
};

#if defined(__AVX512BF16__)
struct Pairs {
  using Weight = BFloat16;
  static constexpr int64_t kPer = 2;
  MONARCH_INLINE Vec weight(const BFloat16* w) {
    int32_t both;
    std::memcpy(&both, w, sizeof both);
    return _mm512_castsi512_ps(_mm512_set1_epi32(both));
  }
  // The last one of an odd number: nothing behind it may be read.
  MONARCH_INLINE Vec last_weight(const BFloat16* w) {
    return _mm512_castsi512_ps(_mm512_set1_epi32(w->bits));
  }
  MONARCH_INLINE Vec dot(Vec sum, Vec w, Vec x) {
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_castps_si512(w),
                            (__m512bh)_mm512_castps_si512(x));
  }
};
#endif

template <class C>
constexpr int64_t steps(int64_t size) {
  return (size + C::kPer - 1) / C::kPer;
}

MONARCH_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// ---- out[r][lanes] (+)= sum_k w[r][k] x[k][lanes]

template <class C, int R, int V>
__attribute__((noinline)) void product(const typename C::Weight* w, int64_t w_stride, int64_t size,
                                       const float* x, int64_t x_stride, float* out,
                                       int64_t out_stride, bool add) {
  Vec sum[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[r][v] = Vec{};
  }
  // Three rows to a base address: with scaled indices, twelve rows need five registers.
  constexpr int kBases = (R + 2) / 3;
  const typename C::Weight* base[kBases];
#pragma GCC unroll 4
  for (int b = 0; b < kBases; ++b) base[b] = w + 3 * b * w_stride;
  const int64_t whole = size / C::kPer;
  for (int64_t k = 0; k < whole; ++k) {
    Vec row[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) row[v] = load(x + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec factor = C::weight(base[r / 3] + (r % 3) * w_stride);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[r][v] = C::dot(sum[r][v], factor, row[v]);
    }
    x += x_stride;
#pragma GCC unroll 4
    for (int b = 0; b < kBases; ++b) base[b] += C::kPer;
  }
  if (size % C::kPer != 0) {
    for (int v = 0; v < V; ++v) {
      const Vec row = load(x + v * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        sum[r][v] = C::dot(sum[r][v], C::last_weight(base[r / 3] + (r % 3) * w_stride), row);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      float* to = out + r * out_stride + v * kLanes;
      store(to, add ? load(to) + sum[r][v] : sum[r][v]);
    }
  }
}

// `rows` is at most R.
template <class C, int V, int R = kRows>
MONARCH_INLINE void product_of(int64_t rows, const typename C::Weight* w, int64_t w_stride,
                               int64_t size, const float* x, int64_t x_stride, float* out,
                               int64_t out_stride, bool add) {
  if (rows == R) {
    product<C, R, V>(w, w_stride, size, x, x_stride, out, out_stride, add);
  } else if constexpr (R > 1) {
    product_of<C, V, R - 1>(rows, w, w_stride, size, x, x_stride, out, out_stride, add);
  }
}

// A matrix (rows, size) times a panel (size, live <= kTokens), of which only the vectors with live
// lanes are computed.
template <class C>
void multiply(int64_t rows, const typename C::Weight* w, int64_t w_stride, int64_t size,
              const float* x, int64_t x_stride, int64_t live, float* out, int64_t out_stride,
              bool add) {
  constexpr int64_t kPart = kDepth * C::kPer;
  for (int64_t r = 0; r < rows; r += kRows) {
    const int64_t count = rows - r < kRows ? rows - r : kRows;
    int64_t k = 0;
    do {
      const int64_t part = size - k < kPart ? size - k : kPart;
      const auto* from = w + r * w_stride + k;
      const float* panel = x + k / C::kPer * x_stride;
      float* to = out + r * out_stride;
      if (live > kLanes) {
        product_of<C, 2>(count, from, w_stride, part, panel, x_stride, to, out_stride,
                         add || k > 0);
      } else {
        product_of<C, 1>(count, from, w_stride, part, panel, x_stride, to, out_stride,
                         add || k > 0);
      }
      k += kPart;
    } while (k < size);
  }
}

// ---- Rows to panels and back

MONARCH_INLINE void transpose(Vec (&v)[kLanes]) {
#pragma GCC unroll 4
  for (int i = 0; i < kQuads; ++i) {
    transpose_quads(v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3]);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    Vec column[kQuads];
#pragma GCC unroll 4
    for (int i = 0; i < kQuads; ++i) column[i] = v[4 * i + c];
    transpose_blocks(column);
#pragma GCC unroll 4
    for (int i = 0; i < kQuads; ++i) v[4 * i + c] = column[i];
  }
}

template <class T>
MONARCH_INLINE Vec load_at_most(const T* p, int64_t count) {
  return count >= kLanes ? load(p) : load_partial(p, count);
}

// kLanes steps of one row: floats, of which `count` are there.
template <class T>
MONARCH_INLINE Vec load_steps(Floats, const T* p, int64_t count) {
  return load_at_most(p, count);
}
#if defined(__AVX512BF16__)
MONARCH_INLINE Vec load_steps(Pairs, const BFloat16* p, int64_t count) {
  if (count >= 2 * kLanes) return _mm512_loadu_ps(p);
  BFloat16 lanes[2 * kLanes] = {};
  std::memcpy(lanes, p, static_cast<size_t>(count) * sizeof(BFloat16));
  return _mm512_loadu_ps(lanes);
}
#endif

// panel[step][row] from `live` rows of `size` elements; the other rows of a vector are zero.
template <class C, class T>
void load_panel(const T* rows, int64_t row_stride, int64_t live, int64_t size, float* panel,
                int64_t panel_stride) {
  for (int64_t t = 0; t < live; t += kLanes) {
    for (int64_t k = 0; k < size; k += kLanes * C::kPer) {
      Vec v[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        v[i] = t + i < live ? load_steps(C{}, rows + (t + i) * row_stride + k, size - k) : Vec{};
      }
      transpose(v);
      const int64_t count = steps<C>(size - k);
      float* to = panel + k / C::kPer * panel_stride + t;
      if (count >= kLanes) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) store(to + i * panel_stride, v[i]);
      } else {
        for (int64_t i = 0; i < count; ++i) store(to + i * panel_stride, v[i]);
      }
    }
  }
}

// One feature of kLanes rows, kept for a sum over rows.
MONARCH_INLINE void store_feature(float* p, Vec v) { store(p, v); }
#if defined(__AVX512BF16__)
MONARCH_INLINE __m256i to_bfloat16s(Vec v) { return (__m256i)_mm512_cvtneps_pbh(v); }
MONARCH_INLINE void store_feature(BFloat16* p, Vec v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_bfloat16s(v));
}
MONARCH_INLINE Vec pair(Vec low, Vec high) {
  alignas(64) static constexpr int16_t kOrder[2 * kLanes] = {
      0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(high, low);
  return _mm512_castsi512_ps(_mm512_permutexvar_epi16(_mm512_load_si512(kOrder), halves));
}
#endif

// Whether rows can be written past the caches, in whole lines of 64 bytes. Worth it for results
// larger than a second-level cache, whose rows moreover tend to lie in few sets of it.
template <class T>
MONARCH_INLINE bool whole_lines(const T* rows, int64_t row_stride) {
  return reinterpret_cast<uintptr_t>(rows) % 64 == 0 &&
         row_stride * static_cast<int64_t>(sizeof(T)) % 64 == 0;
}

template <class T>
MONARCH_INLINE bool is_large(int64_t elements) {
  return elements * static_cast<int64_t>(sizeof(T)) > int64_t{4} << 20;
}

// rows[row][o] = values[o][row] + bias[o] for `live` rows and `count` features. Values must have
// whole vectors of features, though what is beyond `count` may be anything.
template <class T>
void store_rows(const float* values, int64_t stride, int64_t count, const float* bias, T* rows,
                int64_t row_stride, int64_t live, bool large = false) {
  const bool past = large && sizeof(Vec) == 64 && sizeof(T) == 4 && whole_lines(rows, row_stride);
  for (int64_t o = 0; o < count; o += kLanes) {
    const int64_t whole = count - o;
    const Vec shift = bias != nullptr ? load_at_most(bias + o, whole) : Vec{};
    for (int64_t t = 0; t < live; t += kLanes) {
      Vec v[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) v[i] = load(values + (o + i) * stride + t);
      transpose(v);
      T* to = rows + t * row_stride + o;
      if (past && whole >= kLanes && t + kLanes <= live) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) stream(to + i * row_stride, v[i] + shift);
      } else if (whole >= kLanes && t + kLanes <= live) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) store(to + i * row_stride, v[i] + shift);
      } else {
        for (int64_t i = 0; i < kLanes && t + i < live; ++i) {
          if (whole >= kLanes) {
            store(to + i * row_stride, v[i] + shift);
          } else {
            store_partial(to + i * row_stride, v[i] + shift, whole);
          }
        }
      }
    }
  }
}

// The other way to sum: over rows of x, with features in the lanes. panel[row][feature], for
// pairs panel[row / 2][feature] with two rows in a lane; padded with zeros to whole panels of
// kTokens features, each `panel_stride` from the next.
template <class T>
void load_features(Floats, const T* rows, int64_t row_stride, int64_t live, int64_t size,
                   float* panels, int64_t panel_stride) {
  for (int64_t f = 0; f < size; f += kTokens, panels += panel_stride) {
    for (int64_t t = 0; t < live; ++t) {
      for (int64_t v = 0; v < kTokens; v += kLanes) {
        const int64_t count = size - f - v;
        store(panels + t * kTokens + v,
              count > 0 ? load_at_most(rows + t * row_stride + f + v, count) : Vec{});
      }
    }
  }
}
#if defined(__AVX512BF16__)
MONARCH_INLINE __m512i load_low(const BFloat16* p, int64_t count) {
  if (count >= kLanes) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  BFloat16 lanes[kLanes] = {};
  if (count > 0) std::memcpy(lanes, p, static_cast<size_t>(count) * sizeof(BFloat16));
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(lanes)));
}
void load_features(Pairs, const BFloat16* rows, int64_t row_stride, int64_t live, int64_t size,
                   float* panels, int64_t panel_stride) {
  for (int64_t f = 0; f < size; f += kTokens, panels += panel_stride) {
    for (int64_t t = 0; t < live; t += 2) {
      for (int64_t v = 0; v < kTokens; v += kLanes) {
        const BFloat16* from = rows + t * row_stride + f + v;
        __m512i both = load_low(from, size - f - v);
        if (t + 1 < live) {
          both = _mm512_or_si512(both,
                                 _mm512_slli_epi32(load_low(from + row_stride, size - f - v), 16));
        }
        store(panels + t / 2 * kTokens + v, _mm512_castsi512_ps(both));
      }
    }
  }
}
#endif

constexpr int64_t padded(int64_t features) { return (features + kTokens - 1) / kTokens * kTokens; }

// features[o][row], each `stride` from the next, of `live` rows: load_panel without pairs.
template <class W, class T>
void load_transposed(const T* rows, int64_t row_stride, int64_t live, int64_t size, W* features,
                     int64_t stride) {
  for (int64_t t = 0; t < live; t += kLanes) {
    for (int64_t k = 0; k < size; k += kLanes) {
      Vec v[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        v[i] = t + i < live ? load_at_most(rows + (t + i) * row_stride + k, size - k) : Vec{};
      }
      transpose(v);
      const int64_t count = size - k < kLanes ? size - k : kLanes;
      for (int64_t i = 0; i < count; ++i) store_feature(features + (k + i) * stride + t, v[i]);
    }
  }
}

#if defined(__AVX512BF16__)
// The same for bfloat16: two features of a row are exchanged as one number of 32 bits.
void store_rows(const float* values, int64_t stride, int64_t count, const float* bias,
                BFloat16* rows, int64_t row_stride, int64_t live, bool large = false) {
  const bool past = large && whole_lines(rows, row_stride);
  float shift[2 * kLanes] = {};
  for (int64_t o = 0; o < count; o += 2 * kLanes) {
    const int64_t whole = smaller(count - o, 2 * kLanes);
    if (bias != nullptr) std::memcpy(shift, bias + o, static_cast<size_t>(whole) * sizeof(float));
    for (int64_t t = 0; t < live; t += kLanes) {
      const float* from = values + o * stride + t;
      Vec v[kLanes];
      if (whole == 2 * kLanes) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i, from += 2 * stride) {
          v[i] = pair(load(from) + shift[2 * i], load(from + stride) + shift[2 * i + 1]);
        }
      } else {
        // The last rows of values may be missing; what is made of them is not stored.
        for (int64_t i = 0; i < kLanes; ++i) {
          const int64_t low = smaller(2 * i, whole - 1), high = smaller(2 * i + 1, whole - 1);
          v[i] = pair(load(from + low * stride) + shift[low],
                      load(from + high * stride) + shift[high]);
        }
      }
      transpose(v);
      BFloat16* to = rows + t * row_stride + o;
      const int64_t here = smaller(kLanes, live - t);
      if (past && whole == 2 * kLanes && here == kLanes) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i, to += row_stride) {
          _mm512_stream_ps(reinterpret_cast<float*>(to), v[i]);
        }
      } else if (whole == 2 * kLanes && here == kLanes) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i, to += row_stride) _mm512_storeu_ps(to, v[i]);
      } else {
        for (int64_t i = 0; i < here; ++i) {
          BFloat16 lanes[2 * kLanes];
          _mm512_storeu_ps(lanes, v[i]);
          std::memcpy(to + i * row_stride, lanes, static_cast<size_t>(whole) * sizeof(BFloat16));
        }
      }
    }
  }
}
#endif

// ---- Small parts

template <class T>
MONARCH_INLINE void store_row(const float* from, int64_t count, T* to) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, load(from + i));
  if (i < count) store_partial(to + i, load(from + i), count - i);
}

// Elements of block p of `size` that a row of `width` has.
MONARCH_INLINE int64_t present(int64_t width, int64_t p, int64_t size) {
  const int64_t rest = width - p * size;
  return rest < 0 ? 0 : smaller(rest, size);
}

MONARCH_INLINE double sum_lanes(Vec v) {
  double total = 0;
  for (int i = 0; i < kLanes; ++i) total += static_cast<double>(v[i]);
  return total;
}

// Calls kernel<C, T>(params, begin, end) for the types of params.
#if defined(__AVX512BF16__)
#define MONARCH_BY_TYPE(kernel, params, begin, end)                                              \
  do {                                                                                           \
    if ((params).scalar == Scalar::kFloat32) return kernel<Floats, float>(params, begin, end);   \
    if ((params).scalar == Scalar::kFloat16) return kernel<Floats, Float16>(params, begin, end); \
    return kernel<Pairs, BFloat16>(params, begin, end);                                          \
  } while (0)
#else
#define MONARCH_BY_TYPE(kernel, params, begin, end)                                              \
  do {                                                                                           \
    if ((params).scalar == Scalar::kFloat32) return kernel<Floats, float>(params, begin, end);   \
    if ((params).scalar == Scalar::kFloat16) return kernel<Floats, Float16>(params, begin, end); \
    return kernel<Floats, BFloat16>(params, begin, end);                                         \
  } while (0)
#endif

// ---- Matrices in the dtype of the products

MONARCH_INLINE float element(const void* from, Scalar scalar, int64_t i) {
  switch (scalar) {
    case Scalar::kFloat32:
      return static_cast<const float*>(from)[i];
    case Scalar::kBFloat16:
      return to_float(static_cast<const BFloat16*>(from)[i]);
    default:
      return to_float(static_cast<const Float16*>(from)[i]);
  }
}

void run_convert(const ConvertParams& p, int64_t begin, int64_t end) {
  const int64_t rows = p.transposed ? p.columns : p.rows;
  const int64_t columns = p.transposed ? p.rows : p.columns;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t block = item / rows, row = item % rows;
    const int64_t first = block * p.rows * p.columns + (p.transposed ? row : row * p.columns);
    const int64_t step = p.transposed ? p.columns : 1;
    for (int64_t i = 0; i < columns; ++i) {
      const int64_t from = first + i * step, to = item * columns + i;
      if (p.pairs) {
        static_cast<BFloat16*>(p.to)[to] = static_cast<const BFloat16*>(p.from)[from];
      } else {
        static_cast<float*>(p.to)[to] = element(p.from, p.scalar, from);
      }
    }
  }
}

// ---- block_diagonal

// ---- Few rows: vectors along the sum, so that the matrix is read once and no lane is idle

constexpr int64_t kFewRows = kLanes < 8 ? kLanes : 8;

// C::kPer kLanes elements of a weight's row, of which `count` are there.
MONARCH_INLINE Vec load_weights(const float* w, int64_t count) { return load_at_most(w, count); }
#if defined(__AVX512BF16__)
MONARCH_INLINE Vec load_weights(const BFloat16* w, int64_t count) {
  return load_steps(Pairs{}, w, count);
}
#endif

// out[o * M + m] = sum_k w[o][k] x[m][k] for o < count, in whole vectors. x is in the form of the
// products, each row `x_stride` floats from the next and with zeros up to whole vectors.
template <class C, int M>
__attribute__((noinline)) void few_rows(const typename C::Weight* w, int64_t w_stride, int64_t size,
                                        int64_t count, const float* x, int64_t x_stride,
                                        float* out) {
  constexpr int O = kLanes / M;
  constexpr int64_t kStep = kLanes * C::kPer;
  for (int64_t o = 0; o < count; o += O) {
    const typename C::Weight* row[O];
#pragma GCC unroll 16
    for (int i = 0; i < O; ++i) row[i] = w + smaller(o + i, count - 1) * w_stride;
    Vec sum[kLanes] = {};
    int64_t k = 0;
    for (; k + kStep <= size; k += kStep) {
      Vec values[M];
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) values[m] = load(x + m * x_stride + k / C::kPer);
#pragma GCC unroll 16
      for (int i = 0; i < O; ++i) {
        const Vec factors = load_weights(row[i] + k, kStep);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) sum[i * M + m] = C::dot(sum[i * M + m], factors, values[m]);
      }
    }
    if (k < size) {
#pragma GCC unroll 16
      for (int i = 0; i < O; ++i) {
        const Vec factors = load_weights(row[i] + k, size - k);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
          sum[i * M + m] = C::dot(sum[i * M + m], factors, load(x + m * x_stride + k / C::kPer));
        }
      }
    }
    transpose(sum);
    Vec total = sum[0];
#pragma GCC unroll 16
    for (int i = 1; i < kLanes; ++i) total += sum[i];
    store(out + o * M, total);
  }
}

// Calls few_rows for `rows` rounded up to a power of two, which it returns.
template <class C>
int64_t multiply_few(int64_t rows, const typename C::Weight* w, int64_t w_stride, int64_t size,
                     int64_t count, const float* x, int64_t x_stride, float* out) {
  if (rows == 1) return few_rows<C, 1>(w, w_stride, size, count, x, x_stride, out), 1;
  if (rows == 2) return few_rows<C, 2>(w, w_stride, size, count, x, x_stride, out), 2;
  if (rows <= 4) return few_rows<C, 4>(w, w_stride, size, count, x, x_stride, out), 4;
  if constexpr (kLanes >= 8) few_rows<C, 8>(w, w_stride, size, count, x, x_stride, out);
  return 8;
}

// Rows for few_rows: `size` elements each, then zeros; rows that are not there are zero too.
template <class T>
void load_few(Floats, const T* rows, int64_t row_stride, int64_t live, int64_t size, float* x,
              int64_t x_stride) {
  for (int64_t m = 0; m < kFewRows; ++m) {
    for (int64_t k = 0; k < x_stride; k += kLanes) {
      const bool there = m < live && k < size;
      store(x + m * x_stride + k,
            there ? load_at_most(rows + m * row_stride + k, size - k) : Vec{});
    }
  }
}
#if defined(__AVX512BF16__)
void load_few(Pairs, const BFloat16* rows, int64_t row_stride, int64_t live, int64_t size, float* x,
              int64_t x_stride) {
  for (int64_t m = 0; m < kFewRows; ++m) {
    for (int64_t k = 0; k < x_stride; k += kLanes) {
      const bool there = m < live && 2 * k < size;
      store(x + m * x_stride + k,
            there ? load_steps(Pairs{}, rows + m * row_stride + 2 * k, size - 2 * k) : Vec{});
    }
  }
}
#endif

MONARCH_INLINE void store_one(float* p, float value) { *p = value; }
MONARCH_INLINE void store_one(BFloat16* p, float value) { *p = to_bfloat16(value); }
MONARCH_INLINE void store_one(Float16* p, float value) { *p = to_float16(value); }

template <class C>
constexpr int64_t few_stride(int64_t size) {
  return (steps<C>(size) + kLanes - 1) / kLanes * kLanes;
}

template <class C, class T>
void block_diagonal_few(const BlockDiagonalParams& p, int64_t begin, int64_t end) {
  const int64_t chunks = ceil_div(p.w.rows, kChunk<C>), stride = few_stride<C>(p.w.columns);
  float* out = scratch((kChunk<C> + kLanes) * kFewRows + kFewRows * stride);
  float* x = out + (kChunk<C> + kLanes) * kFewRows;
  int64_t loaded = -1;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t block = item / chunks, column = block * p.w.rows + item % chunks * kChunk<C>;
    const int64_t size = present(p.in_features, block, p.w.columns);
    if (block != loaded) {
      loaded = block;
      load_few(C{}, static_cast<const T*>(p.x.data) + block * p.w.columns, p.x.stride, p.rows, size,
               x, stride);
    }
    const int64_t end_column = smaller((block + 1) * p.w.rows, p.out_features);
    const int64_t count = smaller(kChunk<C>, end_column - column);
    if (count <= 0) continue;
    const auto* w = static_cast<const typename C::Weight*>(p.w.data) + column * p.w.columns;
    const int64_t m = multiply_few<C>(p.rows, w, p.w.columns, size, count, x, stride, out);
    for (int64_t row = 0; row < p.rows; ++row) {
      T* y = static_cast<T*>(p.y) + row * p.out_features + column;
      for (int64_t o = 0; o < count; ++o) {
        store_one(y + o, out[o * m + row] + (p.bias == nullptr ? 0.0f : p.bias[column + o]));
      }
    }
  }
}

// An item is some rows of one block for one tile; the tile's panels are kept from item to item.
template <class C, class T>
void block_diagonal_fwd(const BlockDiagonalParams& p, int64_t begin, int64_t end) {
  if (p.rows <= kFewRows) return block_diagonal_few<C, T>(p, begin, end);
  using W = typename C::Weight;
  const int64_t chunks = ceil_div(p.w.rows, kChunk<C>), panels = p.tile / kTokens;
  const int64_t panel_floats = steps<C>(p.w.columns) * kTokens;
  float* values = scratch(kChunk<C> * kTokens + panels * panel_floats);
  float* x_panels = values + kChunk<C> * kTokens;
  const bool large = is_large<T>(p.rows * p.out_features);
  int64_t loaded = -1;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t o = item % chunks * kChunk<C>, block = item / chunks % p.w.count;
    const int64_t first = item / chunks / p.w.count * p.tile;
    const int64_t rows = smaller(p.tile, p.rows - first);
    const int64_t size = present(p.in_features, block, p.w.columns);
    if (item / chunks != loaded) {
      loaded = item / chunks;
      for (int64_t t = 0; t < rows; t += kTokens) {
        const T* from = static_cast<const T*>(p.x.data) + (first + t) * p.x.stride;
        load_panel<C>(from + block * p.w.columns, p.x.stride, smaller(kTokens, rows - t), size,
                      x_panels + t / kTokens * panel_floats, kTokens);
      }
    }
    const int64_t column = block * p.w.rows + o;
    const int64_t count = smaller(smaller(kChunk<C>, p.w.rows - o), p.out_features - column);
    if (count <= 0) continue;
    const W* w = static_cast<const W*>(p.w.data) + column * p.w.columns;
    for (int64_t t = 0; t < rows; t += kTokens) {
      const int64_t live = smaller(kTokens, rows - t);
      multiply<C>(count, w, p.w.columns, size, x_panels + t / kTokens * panel_floats, kTokens, live,
                  values, kTokens, false);
      store_rows(values, kTokens, count, p.bias == nullptr ? nullptr : p.bias + column,
                 static_cast<T*>(p.y) + (first + t) * p.out_features + column, p.out_features, live,
                 large);
    }
  }
  if (large) stream_fence();
}

// Rows of x and dy whose products are summed before the next ones are read.
constexpr int64_t kPartRows = 512;

// An item is some rows of a block of dw, and as many elements of dbias.
template <class C, class T>
void block_diagonal_bwd(const BlockDiagonalBackwardParams& p, int64_t begin, int64_t end) {
  using W = typename C::Weight;
  const int64_t groups = ceil_div(p.w.rows, p.item_rows), width = padded(p.w.columns);
  const int64_t panel_stride = steps<C>(kPartRows) * kTokens;
  const int64_t dy_floats = p.item_rows * kPartRows * static_cast<int64_t>(sizeof(W)) / 4;
  float* sums =
      scratch(p.item_rows * (width + kLanes) + dy_floats + width / kTokens * panel_stride);
  float* bias_sums = sums + p.item_rows * width;  // kLanes of each row
  auto* dy = reinterpret_cast<W*>(bias_sums + p.item_rows * kLanes);
  float* features = bias_sums + p.item_rows * kLanes + dy_floats;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t block = item / groups, o = item % groups * p.item_rows;
    const int64_t column = block * p.w.rows + o, size = present(p.in_features, block, p.w.columns);
    const int64_t rows = smaller(p.item_rows, p.w.rows - o);
    const int64_t there = present(p.out_features, 0, column + rows) - column;  // not cropped
    std::memset(sums, 0, static_cast<size_t>(rows * width) * sizeof(float));
    std::memset(bias_sums, 0, static_cast<size_t>(rows * kLanes) * sizeof(float));
    for (int64_t first = 0; first < p.rows && there > 0; first += kPartRows) {
      const int64_t count = smaller(kPartRows, p.rows - first);
      load_transposed(static_cast<const T*>(p.dy.data) + first * p.dy.stride + column, p.dy.stride,
                      count, there, dy, kPartRows);
      if (p.dbias != nullptr) {
        for (int64_t r = 0; r < there; ++r) {
          Vec total = load(bias_sums + r * kLanes);
          for (int64_t t = 0; t < count; t += kLanes) total += load(dy + r * kPartRows + t);
          store(bias_sums + r * kLanes, total);
        }
      }
      if (p.dw == nullptr) continue;
      load_features(C{}, static_cast<const T*>(p.x.data) + first * p.x.stride + block * p.w.columns,
                    p.x.stride, count, size, features, panel_stride);
      for (int64_t f = 0; f < size; f += kTokens) {
        multiply<C>(there, dy, kPartRows, count, features + f / kTokens * panel_stride, kTokens,
                    smaller(kTokens, size - f), sums + f, width, true);
      }
    }
    for (int64_t r = 0; r < there && p.dbias != nullptr; ++r) {
      p.dbias[column + r] = static_cast<float>(sum_lanes(load(bias_sums + r * kLanes)));
    }
    for (int64_t r = 0; r < rows && p.dw != nullptr; ++r) {
      T* to = static_cast<T*>(p.dw) + (column + r) * p.w.columns;
      store_row(sums + r * width, p.w.columns, to);
    }
  }
}

void run_block_diagonal_bwd(const BlockDiagonalBackwardParams& p, int64_t begin, int64_t end) {
  MONARCH_BY_TYPE(block_diagonal_bwd, p, begin, end);
}

void run_block_diagonal_fwd(const BlockDiagonalParams& p, int64_t begin, int64_t end) {
  MONARCH_BY_TYPE(block_diagonal_fwd, p, begin, end);
}

}  // namespace
}  // namespace monarch::cpu
