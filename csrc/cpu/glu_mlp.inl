// glu_mlp: tiles of rows; both products, the gate, the residual and the normalisation of a tile.
#pragma once
#include "cpu/gelu.inl"
#include "cpu/products.inl"

namespace monarch::cpu {
namespace {

// ---- A chunk of hidden units

// Where the units of block p of w_out come from: rows of w_in, seen as one matrix (all rows, c),
// and the block of x that they multiply.
struct Half {
  int64_t row, block;
};
template <class Params>
MONARCH_INLINE Half gate_half(const Params& p, int64_t block) {
  const int64_t row = block * p.w_out.columns;
  return {row, row / p.w_in.rows};
}
template <class Params>
MONARCH_INLINE Half value_half(const Params& p, int64_t block) {
  const int64_t row = (p.w_out.count + block) * p.w_out.columns;
  return {row, row / p.w_in.rows};
}

// Row o of a hidden panel.
MONARCH_INLINE void store_unit(Floats, float* hidden, int64_t o, int64_t v, Vec value, Vec next) {
  (void)next;
  store(hidden + o * kTokens + v, value);
}
#if defined(__AVX512BF16__)
// With the row after it: o is even.
MONARCH_INLINE void store_unit(Pairs, float* hidden, int64_t o, int64_t v, Vec value, Vec next) {
  store(hidden + o / 2 * kTokens + v, pair(value, next));
}
#endif

MONARCH_INLINE Vec hidden_value(const float* a, const float* b) {
  const Vec x = load(a), gelu = x * normal_cdf(x);
  return b == nullptr ? gelu : gelu * load(b);
}

// hidden[o][row] of `count` units from a[o][row] and, if gated, b[o][row].
template <class C>
void activate(const float* a, const float* b, int64_t count, int64_t live, float* hidden) {
  for (int64_t o = 0; o < count; o += C::kPer) {
    for (int64_t v = 0; v < live; v += kLanes) {
      const int64_t at = o * kTokens + v, next = at + kTokens;
      const Vec value = hidden_value(a + at, b == nullptr ? nullptr : b + at);
      Vec second{};
      if (C::kPer == 2 && o + 1 < count) {
        second = hidden_value(a + next, b == nullptr ? nullptr : b + next);
      }
      store_unit(C{}, hidden, o, v, value, second);
    }
  }
}

// Units o .. o + count - 1 of a block, for one panel. `values` is scratch, 2 kChunk kTokens.
template <class C>
void hidden_chunk(const GluMlpParams& p, int64_t block, int64_t o, int64_t count, const float* x_a,
                  const float* x_b, int64_t live, float* values, float* hidden) {
  const auto* w = static_cast<const typename C::Weight*>(p.w_in.data);
  const int64_t columns = p.w_in.columns;
  const Half a = gate_half(p, block);
  multiply<C>(count, w + (a.row + o) * columns, columns, present(p.width, a.block, columns), x_a,
              kTokens, live, values, kTokens, false);
  float* gated = nullptr;
  if (p.gated) {
    const Half b = value_half(p, block);
    gated = values + kChunk<C> * kTokens;
    multiply<C>(count, w + (b.row + o) * columns, columns, present(p.width, b.block, columns), x_b,
                kTokens, live, gated, kTokens, false);
  }
  activate<C>(values, gated, count, live, hidden + o / C::kPer * kTokens);
}

// Rows o .. o + count - 1 of a block of the second product, for one panel; sum (live, width).
template <class C>
void sum_chunk(const GluMlpParams& p, int64_t block, int64_t o, int64_t count, const float* hidden,
               int64_t live, float* values, float* sum, int64_t sum_stride) {
  const auto* w = static_cast<const typename C::Weight*>(p.w_out.data);
  const int64_t column = block * p.w_out.rows + o;
  multiply<C>(count, w + column * p.w_out.columns, p.w_out.columns, p.w_out.columns, hidden,
              kTokens, live, values, kTokens, false);
  store_rows<float>(values, kTokens, count, nullptr, sum + column, sum_stride, live);
}

MONARCH_INLINE int64_t sum_stride(const GluMlpParams& p) {
  return ceil_div(p.width, kLanes) * kLanes;
}

// y = LayerNorm(sum + bias + residual) of one row; `sum` is changed.
template <class T>
void finish_row(const GluMlpParams& p, int64_t row, float* sum) {
  const T* residual = p.residual.data == nullptr
                          ? nullptr
                          : static_cast<const T*>(p.residual.data) + row * p.residual.stride;
  const int64_t whole = p.width / kLanes * kLanes, rest = p.width - whole;
  Vec total{};
  for (int64_t i = 0; i < p.width; i += kLanes) {
    const int64_t count = p.width - i;
    Vec z = load(sum + i);
    if (i == whole) z = load_partial(sum + i, rest);
    if (p.bias != nullptr) z += load_at_most(p.bias + i, count);
    if (residual != nullptr) z += load_at_most(residual + i, count);
    store(sum + i, z);
    total += z;
  }
  T* y = static_cast<T*>(p.y) + row * p.width;
  if (p.norm_weight == nullptr) return store_row(sum, p.width, y);
  // Lanes are summed in double: an error here is one of the whole row.
  const auto width = static_cast<double>(p.width);
  const auto mean = static_cast<float>(sum_lanes(total) / width);
  Vec squares{};
  for (int64_t i = 0; i < whole; i += kLanes) {
    const Vec d = load(sum + i) - splat(mean);
    squares += d * d;
  }
  double variance = sum_lanes(squares);
  for (int64_t i = whole; i < p.width; ++i) {
    const double d = static_cast<double>(sum[i]) - static_cast<double>(mean);
    variance += d * d;
  }
  const auto scale =
      static_cast<float>(1.0 / __builtin_sqrt(variance / width + static_cast<double>(p.eps)));
  for (int64_t i = 0; i < p.width; i += kLanes) {
    const int64_t count = p.width - i;
    Vec z = (load(sum + i) - splat(mean)) * splat(scale) * load_at_most(p.norm_weight + i, count);
    if (p.norm_bias != nullptr) z += load_at_most(p.norm_bias + i, count);
    store(sum + i, z);
  }
  store_row(sum, p.width, y);
}

// ---- Forward

template <class C, class T>
void load_block(const Activations& x, int64_t block, int64_t columns, int64_t width, int64_t first,
                int64_t rows, float* panels, int64_t panel_floats) {
  for (int64_t t = 0; t < rows; t += kTokens) {
    load_panel<C>(static_cast<const T*>(x.data) + (first + t) * x.stride + block * columns,
                  x.stride, smaller(kTokens, rows - t), present(width, block, columns),
                  panels + t / kTokens * panel_floats, kTokens);
  }
}

template <class C, class T>
void glu_mlp_fwd(const GluMlpParams& p, int64_t begin, int64_t end) {
  const int64_t units = p.w_out.columns, panels = p.tile / kTokens, stride = sum_stride(p);
  const int64_t x_panel = steps<C>(p.w_in.columns) * kTokens, h_panel = steps<C>(units) * kTokens;
  float* values = scratch(2 * kChunk<C> * kTokens + panels * (p.w_in.count * x_panel + h_panel) +
                          p.tile * stride);
  float* x = values + 2 * kChunk<C> * kTokens;
  float* hidden = x + p.w_in.count * panels * x_panel;
  float* sum = hidden + panels * h_panel;
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t first = tile * p.tile, rows = smaller(p.tile, p.rows - first);
    for (int64_t block = 0; block < p.w_in.count; ++block) {
      load_block<C, T>(p.x, block, p.w_in.columns, p.width, first, rows,
                       x + block * panels * x_panel, x_panel);
    }
    for (int64_t block = 0; block < p.w_out.count; ++block) {
      const float* x_a = x + gate_half(p, block).block * panels * x_panel;
      const float* x_b = p.gated ? x + value_half(p, block).block * panels * x_panel : nullptr;
      for (int64_t o = 0; o < units; o += kChunk<C>) {
        for (int64_t t = 0; t < rows; t += kTokens) {
          const int64_t panel = t / kTokens;
          hidden_chunk<C>(p, block, o, smaller(kChunk<C>, units - o), x_a + panel * x_panel,
                          p.gated ? x_b + panel * x_panel : nullptr, smaller(kTokens, rows - t),
                          values, hidden + panel * h_panel);
        }
      }
      const int64_t outputs = present(p.width, block, p.w_out.rows);
      for (int64_t o = 0; o < outputs; o += kChunk<C>) {
        for (int64_t t = 0; t < rows; t += kTokens) {
          sum_chunk<C>(p, block, o, smaller(kChunk<C>, outputs - o), hidden + t / kTokens * h_panel,
                       smaller(kTokens, rows - t), values, sum + t * stride, stride);
        }
      }
    }
    for (int64_t t = 0; t < rows; ++t) finish_row<T>(p, first + t, sum + t * stride);
  }
}

// Few rows: the same in three steps that divide the matrices, not the rows, among the threads.

// And of at most kFewRows rows with vectors along the sums; hidden[block][row][unit] is in the form
// of the products, with zeros up to whole vectors.
template <class C, class T>
void glu_mlp_hidden_few(const GluMlpParams& p, int64_t begin, int64_t end) {
  using W = typename C::Weight;
  const int64_t units = p.w_out.columns, chunks = ceil_div(units, kChunk<C>);
  const int64_t columns = p.w_in.columns, x_stride = few_stride<C>(columns);
  const int64_t stride = few_stride<C>(units), out_floats = (kChunk<C> + kLanes) * kFewRows;
  float* a = scratch(2 * out_floats + kFewRows * x_stride);
  float* b = a + out_floats;
  float* x = b + out_floats;
  const auto product_with = [&](const Half& half, int64_t o, int64_t count, float* out) {
    const int64_t size = present(p.width, half.block, columns);
    load_few(C{}, static_cast<const T*>(p.x.data) + half.block * columns, p.x.stride, p.rows, size,
             x, x_stride);
    return multiply_few<C>(p.rows, static_cast<const W*>(p.w_in.data) + (half.row + o) * columns,
                           columns, size, count, x, x_stride, out);
  };
  for (int64_t item = begin; item < end; ++item) {
    const int64_t block = item / chunks, o = item % chunks * kChunk<C>;
    const int64_t count = smaller(kChunk<C>, units - o);
    const int64_t m = product_with(gate_half(p, block), o, count, a);
    if (p.gated) product_with(value_half(p, block), o, count, b);
    for (int64_t i = 0; i < count * m; i += kLanes) {
      store(a + i, hidden_value(a + i, p.gated ? b + i : nullptr));
    }
    const int64_t end_unit = o + count == units ? stride * C::kPer : o + count;
    for (int64_t row = 0; row < p.rows; ++row) {
      W* to = reinterpret_cast<W*>(p.hidden + (block * kFewRows + row) * stride);
      for (int64_t i = 0; i < count; ++i) store_one(to + o + i, a[i * m + row]);
      for (int64_t i = o + count; i < end_unit; ++i) store_one(to + i, 0.0f);
    }
  }
}

template <class C, class T>
void glu_mlp_sum_few(const GluMlpParams& p, int64_t begin, int64_t end) {
  using W = typename C::Weight;
  const int64_t chunks = ceil_div(p.w_out.rows, kChunk<C>), units = p.w_out.columns;
  const int64_t stride = few_stride<C>(units);
  float* out = scratch((kChunk<C> + kLanes) * kFewRows);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t block = item / chunks, o = item % chunks * kChunk<C>;
    const int64_t count = smaller(kChunk<C>, present(p.width, block, p.w_out.rows) - o);
    if (count <= 0) continue;
    const int64_t column = block * p.w_out.rows + o;
    const int64_t m =
        multiply_few<C>(p.rows, static_cast<const W*>(p.w_out.data) + column * units, units, units,
                        count, p.hidden + block * kFewRows * stride, stride, out);
    for (int64_t row = 0; row < p.rows; ++row) {
      float* to = p.sum + row * sum_stride(p) + column;
      for (int64_t i = 0; i < count; ++i) to[i] = out[i * m + row];
    }
  }
}

template <class C, class T>
void glu_mlp_hidden(const GluMlpParams& p, int64_t begin, int64_t end) {
  if (p.rows <= kFewRows) return glu_mlp_hidden_few<C, T>(p, begin, end);
  const int64_t units = p.w_out.columns, chunks = ceil_div(units, kChunk<C>);
  const int64_t panels = ceil_div(p.rows, kTokens);
  const int64_t x_panel = steps<C>(p.w_in.columns) * kTokens, h_panel = steps<C>(units) * kTokens;
  float* values = scratch(2 * kChunk<C> * kTokens + 2 * panels * x_panel);
  float* x_a = values + 2 * kChunk<C> * kTokens;
  float* x_b = x_a + panels * x_panel;
  int64_t loaded = -1;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t block = item / chunks, o = item % chunks * kChunk<C>;
    if (block != loaded) {
      loaded = block;
      load_block<C, T>(p.x, gate_half(p, block).block, p.w_in.columns, p.width, 0, p.rows, x_a,
                       x_panel);
      if (p.gated) {
        load_block<C, T>(p.x, value_half(p, block).block, p.w_in.columns, p.width, 0, p.rows, x_b,
                         x_panel);
      }
    }
    for (int64_t t = 0; t < p.rows; t += kTokens) {
      const int64_t panel = t / kTokens;
      hidden_chunk<C>(p, block, o, smaller(kChunk<C>, units - o), x_a + panel * x_panel,
                      x_b + panel * x_panel, smaller(kTokens, p.rows - t), values,
                      p.hidden + (block * panels + panel) * h_panel);
    }
  }
}

template <class C, class T>
void glu_mlp_sum(const GluMlpParams& p, int64_t begin, int64_t end) {
  if (p.rows <= kFewRows) return glu_mlp_sum_few<C, T>(p, begin, end);
  const int64_t chunks = ceil_div(p.w_out.rows, kChunk<C>), panels = ceil_div(p.rows, kTokens);
  const int64_t h_panel = steps<C>(p.w_out.columns) * kTokens, stride = sum_stride(p);
  float* values = scratch(kChunk<C> * kTokens);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t block = item / chunks, o = item % chunks * kChunk<C>;
    const int64_t count = smaller(kChunk<C>, present(p.width, block, p.w_out.rows) - o);
    for (int64_t t = 0; t < p.rows && count > 0; t += kTokens) {
      sum_chunk<C>(p, block, o, count, p.hidden + (block * panels + t / kTokens) * h_panel,
                   smaller(kTokens, p.rows - t), values, p.sum + t * stride, stride);
    }
  }
}

template <class C, class T>
void glu_mlp_finish(const GluMlpParams& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) finish_row<T>(p, row, p.sum + row * sum_stride(p));
}

void run_glu_mlp_fwd(const GluMlpParams& p, int64_t begin, int64_t end) {
  MONARCH_BY_TYPE(glu_mlp_fwd, p, begin, end);
}
void run_glu_mlp_hidden(const GluMlpParams& p, int64_t begin, int64_t end) {
  MONARCH_BY_TYPE(glu_mlp_hidden, p, begin, end);
}
void run_glu_mlp_sum(const GluMlpParams& p, int64_t begin, int64_t end) {
  MONARCH_BY_TYPE(glu_mlp_sum, p, begin, end);
}
void run_glu_mlp_finish(const GluMlpParams& p, int64_t begin, int64_t end) {
  MONARCH_BY_TYPE(glu_mlp_finish, p, begin, end);
}

// ---- Backward

template <class W>
MONARCH_INLINE W* at(void* data, int64_t i) {
  return data == nullptr ? nullptr : static_cast<W*>(data) + i;
}

struct UnitGradient {
  Vec da, db, h;
};
MONARCH_INLINE UnitGradient unit_gradient(const float* a, const float* b, const float* dh) {
  const Vec x = load(a), d = load(dh), cdf = normal_cdf(x), gelu = x * cdf;
  const Vec slope = d * (cdf + x * normal_density(x));
  if (b == nullptr) return {slope, Vec{}, gelu};
  const Vec value = load(b);
  return {slope * value, d * gelu, gelu * value};
}

// Gradients of `count` units of one panel, into panels and into what the weights' gradients sum
// over rows. A null pointer is not wanted.
template <class C>
void activate_backward(const float* a, const float* b, const float* dh, int64_t count, int64_t live,
                       float* da_panel, float* db_panel, typename C::Weight* da,
                       typename C::Weight* db, typename C::Weight* h, int64_t stride) {
  for (int64_t o = 0; o < count; o += C::kPer) {
    for (int64_t v = 0; v < live; v += kLanes) {
      UnitGradient units[2] = {};
      for (int64_t i = 0; i < C::kPer && o + i < count; ++i) {
        const int64_t from = (o + i) * kTokens + v, to = (o + i) * stride + v;
        units[i] = unit_gradient(a + from, b == nullptr ? nullptr : b + from, dh + from);
        if (da != nullptr) store_feature(da + to, units[i].da);
        if (da != nullptr && b != nullptr) store_feature(db + to, units[i].db);
        if (h != nullptr) store_feature(h + to, units[i].h);
      }
      if (da_panel != nullptr) {
        store_unit(C{}, da_panel, o, v, units[0].da, units[1].da);
        if (b != nullptr) store_unit(C{}, db_panel, o, v, units[0].db, units[1].db);
      }
    }
  }
}

// An item is a tile of the part: the gradients of its hidden units, and dx.
template <class C, class T>
void glu_mlp_bwd_rows(const GluMlpBackwardParams& p, int64_t begin, int64_t end) {
  using W = typename C::Weight;
  const int64_t blocks = p.w_in.count, units = p.w_out.columns, columns = p.w_in.columns;
  const int64_t panels = p.tile / kTokens, x_panel = steps<C>(columns) * kTokens;
  const int64_t z_panel = steps<C>(p.w_out.rows) * kTokens, h_panel = steps<C>(units) * kTokens;
  const int64_t dx_panel = (blocks * columns + kLanes) * kTokens;
  float* a = scratch(3 * kChunk<C> * kTokens +
                     panels * (blocks * (x_panel + z_panel) + 2 * h_panel + dx_panel));
  float* b = a + kChunk<C> * kTokens;
  float* dh = b + kChunk<C> * kTokens;
  float* x = dh + kChunk<C> * kTokens;
  float* dz = x + blocks * panels * x_panel;
  float* da = dz + blocks * panels * z_panel;
  float* db = da + panels * h_panel;
  float* dx = db + panels * h_panel;
  const auto *w_in = static_cast<const W*>(p.w_in.data),
             *w_out = static_cast<const W*>(p.w_out_transposed.data),
             *w_back = static_cast<const W*>(p.w_in_transposed.data);
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t start = tile * p.tile, first = p.first + start;
    const int64_t rows = smaller(p.tile, p.count - start);
    for (int64_t block = 0; block < blocks; ++block) {
      load_block<C, T>(p.x, block, columns, p.width, first, rows, x + block * panels * x_panel,
                       x_panel);
      load_block<C, T>(p.dz, block, p.w_out.rows, p.width, first, rows,
                       dz + block * panels * z_panel, z_panel);
      if (p.x_features != nullptr) {
        load_features(
            C{}, static_cast<const T*>(p.x.data) + first * p.x.stride + block * columns, p.x.stride,
            rows, present(p.width, block, columns),
            p.x_features + block * padded(columns) * steps<C>(p.part) + start / C::kPer * kTokens,
            steps<C>(p.part) * kTokens);
      }
      if (p.dz_features != nullptr) {
        load_features(C{},
                      static_cast<const T*>(p.dz.data) + first * p.dz.stride + block * p.w_out.rows,
                      p.dz.stride, rows, present(p.width, block, p.w_out.rows),
                      p.dz_features + block * padded(p.w_out.rows) * steps<C>(p.part) +
                          start / C::kPer * kTokens,
                      steps<C>(p.part) * kTokens);
      }
    }
    // Blocks of x that no unit has reached yet start from zero.
    for (int64_t i = 0; i < panels * dx_panel && p.dx != nullptr; ++i) dx[i] = 0.0f;
    for (int64_t block = 0; block < blocks; ++block) {
      const Half gate = gate_half(p, block), value = value_half(p, block);
      const int64_t unit = block * units;
      for (int64_t o = 0; o < units; o += kChunk<C>) {
        const int64_t count = smaller(kChunk<C>, units - o);
        for (int64_t t = 0; t < rows; t += kTokens) {
          const int64_t panel = t / kTokens, live = smaller(kTokens, rows - t);
          multiply<C>(count, w_in + (gate.row + o) * columns, columns,
                      present(p.width, gate.block, columns),
                      x + (gate.block * panels + panel) * x_panel, kTokens, live, a, kTokens,
                      false);
          if (p.gated) {
            multiply<C>(count, w_in + (value.row + o) * columns, columns,
                        present(p.width, value.block, columns),
                        x + (value.block * panels + panel) * x_panel, kTokens, live, b, kTokens,
                        false);
          }
          multiply<C>(count, w_out + (unit + o) * p.w_out.rows, p.w_out.rows,
                      present(p.width, block, p.w_out.rows),
                      dz + (block * panels + panel) * z_panel, kTokens, live, dh, kTokens, false);
          const int64_t kept = (unit + o) * p.part + start + t;
          const int64_t to = panel * h_panel + o / C::kPer * kTokens;
          activate_backward<C>(a, p.gated ? b : nullptr, dh, count, live,
                               p.dx == nullptr ? nullptr : da + to, db + to, at<W>(p.da, kept),
                               at<W>(p.db, kept), at<W>(p.h, kept), p.part);
        }
      }
      for (int64_t t = 0; t < rows && p.dx != nullptr; t += kTokens) {
        const int64_t panel = t / kTokens, live = smaller(kTokens, rows - t);
        for (int second = 0; second < (p.gated ? 2 : 1); ++second) {
          const Half half = second ? value : gate;
          const W* w = w_back + half.block * columns * p.w_in.rows + half.row % p.w_in.rows;
          multiply<C>(columns, w, p.w_in.rows, units, (second ? db : da) + panel * h_panel, kTokens,
                      live, dx + panel * dx_panel + half.block * columns * kTokens, kTokens, true);
        }
      }
    }
    for (int64_t t = 0; t < rows && p.dx != nullptr; t += kTokens) {
      store_rows(dx + t / kTokens * dx_panel, kTokens, p.width, nullptr,
                 static_cast<T*>(p.dx) + (first + t) * p.width, p.width,
                 smaller(kTokens, rows - t));
    }
  }
}

// An item is a chunk of hidden units of a block: their rows of dw_in, and columns of dw_out.
template <class C, class T>
void glu_mlp_bwd_weights(const GluMlpBackwardParams& p, int64_t begin, int64_t end) {
  using W = typename C::Weight;
  const int64_t units = p.w_out.columns, chunks = ceil_div(units, kChunk<C>);
  const int64_t in_width = padded(p.w_in.columns), out_width = padded(p.w_out.rows);
  const int64_t panel = steps<C>(p.part) * kTokens;
  const bool add = p.first > 0;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t block = item / chunks, o = item % chunks * kChunk<C>, unit = block * units + o;
    const int64_t count = smaller(kChunk<C>, units - o);
    const auto sum = [&](const void* factors, const float* features, int64_t x_block, int64_t size,
                         int64_t width, float* to) {
      const W* w = static_cast<const W*>(factors) + unit * p.part;
      const int64_t there = present(p.width, x_block, size);
      for (int64_t f = 0; f < there; f += kTokens) {
        multiply<C>(count, w, p.part, p.count, features + (x_block * width + f) * steps<C>(p.part),
                    kTokens, smaller(kTokens, there - f), to + f, width, add);
      }
    };
    (void)panel;
    if (p.dw_in != nullptr) {
      const Half gate = gate_half(p, block), value = value_half(p, block);
      sum(p.da, p.x_features, gate.block, p.w_in.columns, in_width,
          p.dw_in + (gate.row + o) * in_width);
      if (p.gated) {
        sum(p.db, p.x_features, value.block, p.w_in.columns, in_width,
            p.dw_in + (value.row + o) * in_width);
      }
    }
    if (p.dw_out != nullptr) {
      sum(p.h, p.dz_features, block, p.w_out.rows, out_width, p.dw_out + unit * out_width);
    }
  }
}

// An item is a row of dw_in, then a row of dw_out. What lies beyond the width has gradient zero.
template <class C, class T>
void glu_mlp_bwd_results(const GluMlpBackwardParams& p, int64_t begin, int64_t end) {
  const int64_t in_rows = p.w_in.count * p.w_in.rows;
  const int64_t in_width = padded(p.w_in.columns), out_width = padded(p.w_out.rows);
  for (int64_t item = begin; item < end; ++item) {
    const bool in = item < in_rows;
    if ((in ? p.dw_in_result : p.dw_out_result) == nullptr) continue;
    const int64_t row = in ? item : item - in_rows;
    const Blocks& w = in ? p.w_in : p.w_out;
    const int64_t block = row / w.rows, r = row % w.rows;
    T* to = static_cast<T*>(in ? p.dw_in_result : p.dw_out_result) + row * w.columns;
    const int64_t there = in ? present(p.width, block, w.columns)
                             : (r < present(p.width, block, w.rows) ? w.columns : 0);
    const float* from =
        in ? p.dw_in + row * in_width : p.dw_out + block * w.columns * out_width + r;
    float part[kLanes];
    for (int64_t i = 0; i < w.columns; i += kLanes) {
      const int64_t count = smaller(kLanes, w.columns - i);
      for (int64_t j = 0; j < count; ++j) {
        part[j] = p.rows > 0 && i + j < there ? from[(i + j) * (in ? 1 : out_width)] : 0.0f;
      }
      store_row(part, count, to + i);
    }
  }
}

void run_glu_mlp_bwd_rows(const GluMlpBackwardParams& p, int64_t begin, int64_t end) {
  MONARCH_BY_TYPE(glu_mlp_bwd_rows, p, begin, end);
}
void run_glu_mlp_bwd_weights(const GluMlpBackwardParams& p, int64_t begin, int64_t end) {
  MONARCH_BY_TYPE(glu_mlp_bwd_weights, p, begin, end);
}
void run_glu_mlp_bwd_results(const GluMlpBackwardParams& p, int64_t begin, int64_t end) {
  MONARCH_BY_TYPE(glu_mlp_bwd_results, p, begin, end);
}

}  // namespace
}  // namespace monarch::cpu
