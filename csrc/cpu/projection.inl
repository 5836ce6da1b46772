// Dense products between activations whose features, or whose rows, lie side by side. A panel of
// products.inl is the second layout: reading and writing it takes no transposition.
#pragma once
#include "core/projection.h"
#include "cpu/products.inl"

namespace monarch::cpu {
namespace {

// One step of up to kLanes rows that lie side by side; `stride` to the next feature.
template <class T>
MONARCH_INLINE Vec load_step(Floats, const T* x, int64_t stride, int64_t count, int64_t features) {
  (void)stride, (void)features;
  return count > 0 ? load_at_most(x, count) : Vec{};
}
#if defined(__AVX512BF16__)
MONARCH_INLINE Vec load_step(Pairs, const BFloat16* x, int64_t stride, int64_t count,
                             int64_t features) {
  const __m512i low = load_low(x, count);
  if (features == 1) return _mm512_castsi512_ps(low);
  const __m512i high = load_low(x + stride, count);
  return _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}
#endif

// Panels of `rows` rows, feature by feature: a feature's rows are read in the order of memory.
template <class C, class T>
void load_feature_panels(const T* x, int64_t stride, int64_t rows, int64_t size, float* panels,
                         int64_t panel_floats) {
  for (int64_t k = 0; k < size; k += C::kPer) {
    for (int64_t t = 0; t < rows; t += kTokens) {
      float* to = panels + t / kTokens * panel_floats + k / C::kPer * kTokens;
      for (int64_t v = 0; v < kTokens; v += kLanes) {
        const T* from = x + k * stride + t + v;
        store(to + v, load_step(C{}, from, stride, rows - t - v, size - k));
      }
    }
  }
}

MONARCH_INLINE void stream_feature(float* p, Vec v) { stream(p, v); }
MONARCH_INLINE void stream_feature(Float16* p, Vec v) { stream(p, v); }
#if defined(__AVX512BF16__)
MONARCH_INLINE void stream_feature(BFloat16* p, Vec v) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), to_bfloat16s(v));
}
#else
MONARCH_INLINE void store_feature(BFloat16* p, Vec v) { store(p, v); }
MONARCH_INLINE void stream_feature(BFloat16* p, Vec v) { stream(p, v); }
#endif
MONARCH_INLINE void store_feature(Float16* p, Vec v) { store(p, v); }

// y[o][row] = values[o][row] + bias[o] for `live` rows and `count` features.
template <class T>
void store_features(const float* values, int64_t count, const float* bias, T* y, int64_t y_stride,
                    int64_t live, bool large) {
  const bool past = large && live == kTokens && whole_lines(y, y_stride);
  for (int64_t o = 0; o < count; ++o, values += kTokens, y += y_stride) {
    const Vec shift = splat(bias == nullptr ? 0.0f : bias[o]);
    for (int64_t t = 0; t < live; t += kLanes) {
      const Vec value = load(values + t) + shift;
      if (past) {
        stream_feature(y + t, value);
      } else if (live - t >= kLanes) {
        store_feature(y + t, value);
      } else {
        T lanes[kLanes];
        store_feature(lanes, value);
        std::memcpy(y + t, lanes, static_cast<size_t>(live - t) * sizeof(T));
      }
    }
  }
}

// An item is some features of one tile; the tile's panels are kept from item to item.
template <class C, class T>
void projection_fwd(const ProjectionParams& p, int64_t begin, int64_t end) {
  using W = typename C::Weight;
  const int64_t chunks = ceil_div(p.out_features, kChunk<C>), tiles = ceil_div(p.rows, p.tile);
  const int64_t panel_floats = steps<C>(p.in_features) * kTokens;
  float* values = scratch(kChunk<C> * kTokens + p.tile / kTokens * panel_floats);
  float* panels = values + kChunk<C> * kTokens;
  const bool large = is_large<T>(p.batch * p.rows * p.out_features);
  int64_t loaded = -1;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t o = item % chunks * kChunk<C>, place = item / chunks;
    const int64_t b = place / tiles, first = place % tiles * p.tile;
    const int64_t rows = smaller(p.tile, p.rows - first);
    const int64_t count = smaller(kChunk<C>, p.out_features - o);
    if (place != loaded) {
      loaded = place;
      const T* x = static_cast<const T*>(p.x) + b * p.x_batch_stride + first * p.x_row_stride;
      if (p.x_feature_stride != 1) {
        load_feature_panels<C>(x, p.x_feature_stride, rows, p.in_features, panels, panel_floats);
      }
      for (int64_t t = 0; t < rows && p.x_feature_stride == 1; t += kTokens) {
        load_panel<C>(x + t * p.x_row_stride, p.x_row_stride, smaller(kTokens, rows - t),
                      p.in_features, panels + t / kTokens * panel_floats, kTokens);
      }
    }
    const W* w = static_cast<const W*>(p.w.data) + o * p.in_features;
    const float* bias = p.bias == nullptr ? nullptr : p.bias + o;
    T* y = static_cast<T*>(p.y) + b * p.rows * p.out_features;
    for (int64_t t = 0; t < rows; t += kTokens) {
      const int64_t live = smaller(kTokens, rows - t), row = first + t;
      multiply<C>(count, w, p.in_features, p.in_features, panels + t / kTokens * panel_floats,
                  kTokens, live, values, kTokens, false);
      if (p.channels_first) {
        store_features(values, count, bias, y + o * p.rows + row, p.rows, live, large);
      } else {
        store_rows(values, kTokens, count, bias, y + row * p.out_features + o, p.out_features, live,
                   large);
      }
    }
  }
  if (large) stream_fence();
}

void run_projection_fwd(const ProjectionParams& p, int64_t begin, int64_t end) {
  MONARCH_BY_TYPE(projection_fwd, p, begin, end);
}

}  // namespace
}  // namespace monarch::cpu
