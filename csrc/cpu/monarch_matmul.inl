// monarch_matmul: both factors of a tile of rows; the permutation is a stride of the second one.
#pragma once
#include "cpu/products.inl"

namespace monarch::cpu {
namespace {

// Element i = r l + b of the hidden row belongs to block b of the second factor, as its element r.
// Floats lie in the order of i, a block's elements l apart. Pairs (r, r + 1) of a block lie
// together, [b][r / 2]; r is written before r + 1.
MONARCH_INLINE void store_hidden(Floats, float* hidden, int64_t i, int64_t, int64_t, int64_t v,
                                 Vec value) {
  store(hidden + i * kTokens + v, value);
}
#if defined(__AVX512BF16__)
MONARCH_INLINE void store_hidden(Pairs, float* hidden, int64_t i, int64_t blocks, int64_t columns,
                                 int64_t v, Vec value) {
  const int64_t block = i % blocks, r = i / blocks;
  float* to = hidden + (block * steps<Pairs>(columns) + r / 2) * kTokens + v;
  const __m512i bits = _mm512_cvtepu16_epi32(to_bfloat16s(value));
  const __m512i old = _mm512_castps_si512(load(to));
  store(to,
        _mm512_castsi512_ps(r % 2 == 0 ? bits : _mm512_or_si512(old, _mm512_slli_epi32(bits, 16))));
}
#endif

template <class C, class T>
void monarch_matmul_fwd(const MonarchMatmulParams& p, int64_t begin, int64_t end) {
  using W = typename C::Weight;
  const Blocks &w1 = p.w1, &w2 = p.w2;
  const int64_t panels = p.tile / kTokens, x_panel = steps<C>(w1.columns) * kTokens;
  const int64_t block_steps = steps<C>(w2.columns);
  const int64_t h_panel = w2.count * block_steps * kTokens;
  const int64_t y_panel = (w2.count * w2.rows + kLanes) * kTokens;
  float* values = scratch(kChunk<C> * kTokens + panels * (x_panel + h_panel + y_panel));
  float* x = values + kChunk<C> * kTokens;
  float* hidden = x + panels * x_panel;
  float* y = hidden + panels * h_panel;
  // A block of floats starts at its first element, and the next one is l further.
  const int64_t block_offset = C::kPer == 1 ? kTokens : block_steps * kTokens;
  const int64_t step = C::kPer == 1 ? w2.count * kTokens : kTokens;
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t first = tile * p.tile, rows = smaller(p.tile, p.rows - first);
    for (int64_t block = 0; block < w1.count; ++block) {
      const int64_t size = present(p.in_features, block, w1.columns);
      for (int64_t t = 0; t < rows; t += kTokens) {
        load_panel<C>(
            static_cast<const T*>(p.x.data) + (first + t) * p.x.stride + block * w1.columns,
            p.x.stride, smaller(kTokens, rows - t), size, x + t / kTokens * x_panel, kTokens);
      }
      for (int64_t o = 0; o < w1.rows; o += kChunk<C>) {
        const int64_t count = smaller(kChunk<C>, w1.rows - o), unit = block * w1.rows + o;
        for (int64_t t = 0; t < rows; t += kTokens) {
          const int64_t live = smaller(kTokens, rows - t);
          multiply<C>(count, static_cast<const W*>(w1.data) + unit * w1.columns, w1.columns, size,
                      x + t / kTokens * x_panel, kTokens, live, values, kTokens, false);
          for (int64_t i = 0; i < count; ++i) {
            for (int64_t v = 0; v < live; v += kLanes) {
              store_hidden(C{}, hidden + t / kTokens * h_panel, unit + i, w2.count, w2.columns, v,
                           load(values + i * kTokens + v));
            }
          }
        }
      }
    }
    for (int64_t block = 0; block < w2.count; ++block) {
      const W* w = static_cast<const W*>(w2.data) + block * w2.rows * w2.columns;
      for (int64_t t = 0; t < rows; t += kTokens) {
        const int64_t panel = t / kTokens;
        multiply<C>(w2.rows, w, w2.columns, w2.columns,
                    hidden + panel * h_panel + block * block_offset, step,
                    smaller(kTokens, rows - t), y + panel * y_panel + block * kTokens,
                    w2.count * kTokens, false);
      }
    }
    for (int64_t t = 0; t < rows; t += kTokens) {
      store_rows(y + t / kTokens * y_panel, kTokens, p.out_features, p.bias,
                 static_cast<T*>(p.y) + (first + t) * p.out_features, p.out_features,
                 smaller(kTokens, rows - t));
    }
  }
}

void run_monarch_matmul_fwd(const MonarchMatmulParams& p, int64_t begin, int64_t end) {
  MONARCH_BY_TYPE(monarch_matmul_fwd, p, begin, end);
}

}  // namespace
}  // namespace monarch::cpu
