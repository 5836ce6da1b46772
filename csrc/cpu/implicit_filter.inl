// implicit_filter: a tile of positions at a time, whose activations are panels [unit][position]
// that stay in the second-level cache. The last product has then the order of the result.
#pragma once
#include "cpu/implicit_filter.h"
#include "cpu/products.inl"
#include "cpu/sine.inl"

namespace monarch::cpu {
namespace {

// [unit][position] of a tile: kTokens positions of a unit are contiguous, the next unit's follow
// after `stride` floats, the next kTokens positions after `step`.
struct Panels {
  float* data;
  int64_t stride, step;
  Panels from(int64_t unit) const { return {data + unit * stride, stride, step}; }
  float* at(int64_t unit, int64_t position) const {
    return data + unit * stride + position / kTokens * step + position % kTokens;
  }
};

// out[r][position] = sum_k w[r][k] x[k][position] for the first `live` positions.
void tile_product(int64_t rows, const float* w, int64_t w_stride, int64_t size, const Panels& x,
                  int64_t live, const Panels& out) {
  for (int64_t r = 0; r < rows; r += kBaseChunk) {
    for (int64_t i = 0; i < live; i += kTokens) {
      multiply<Floats>(smaller(kBaseChunk, rows - r), w + r * w_stride, w_stride, size, x.at(0, i),
                       x.stride, smaller(kTokens, live - i), out.at(r, i), out.stride, false);
    }
  }
}

// One layer of the network on a tile: s = w x + b and a = sin(freq s); s and a may be the same.
void sine_layer(const float* w, const float* b, const float* freq, int64_t order, int64_t size,
                const Panels& x, int64_t live, const Panels& s, const Panels& a) {
  tile_product(order, w, size, size, x, live, s);
  for (int64_t o = 0; o < order; ++o) {
    for (int64_t i = 0; i < live; i += kLanes) {
      const Vec sum = load(s.at(o, i)) + b[o];
      store(s.at(o, i), sum);
      store(a.at(o, i), sine(freq[o] * sum));
    }
  }
}

// The times of a tile: with t = middle + offset, |offset| <= reach.
struct Times {
  float *t, *offset;  // zero where a vector has no position
  float middle, reach;
};

// Features [e][position] and times of a tile; zero where a vector has no position.
void load_positions(const ImplicitFilterParams& p, int64_t filter, int64_t first, int64_t live,
                    const Panels& z, Times& times) {
  const int64_t whole = ceil_div(live, kLanes) * kLanes;
  times.middle = p.t[(first + live / 2) * p.t_stride];
  times.reach = 0;
  for (int64_t i = 0; i < whole; ++i) {
    times.t[i] = i < live ? p.t[(first + i) * p.t_stride] : 0.0f;
    times.offset[i] = i < live ? times.t[i] - times.middle : 0.0f;
    const float size = __builtin_fabsf(times.offset[i]);
    times.reach = size > times.reach || size != size ? size : times.reach;  // NaN stays
  }
  for (int64_t e = 0; e < p.features; ++e) {
    const float* from =
        p.z + filter * p.z_filter_stride + first * p.z_position_stride + e * p.z_feature_stride;
    for (int64_t i = 0; i < whole; ++i) {
      *z.at(e, i) = i < live ? from[i * p.z_position_stride] : 0.0f;
    }
  }
}

// exp(-|delta| t) of kLanes channels in a tile. Where the decay is slow, it is its value in the
// middle times a polynomial of degree 4 in the offset, whose coefficients are made once a tile.
class Decays {
 public:
  MONARCH_MEMBER Decays(const float* deltas, int64_t count, const Times& times)
      : deltas_(deltas), times_(times) {
    float lanes[kLanes] = {};
    std::memcpy(lanes, deltas, static_cast<size_t>(count) * sizeof(float));
    Vec value = decay(decay_rate(deltas, count), splat(times.middle));
    const Vec delta = load(lanes), rate = delta < 0.0f ? delta : -delta;
    for (int i = 0; i <= kDegree; ++i) {
      store(coefficients_[i], value);
      value = value * rate / static_cast<float>(i + 1);
    }
  }

  // Calls f(first position of a vector, decay there) for a channel.
  template <class F>
  MONARCH_MEMBER void each(int64_t channel, int64_t live, const F& f) const {
    // Of the series' next term, 6e-9 of the sum is left; NaN and infinity are not slow.
    const float change = __builtin_fabsf(deltas_[channel]) * times_.reach;
    if (change <= 0.0625f && coefficients_[0][channel] <= 1e30f) {
      Vec c[kDegree + 1];
#pragma GCC unroll 8
      for (int i = 0; i <= kDegree; ++i) c[i] = splat(coefficients_[i][channel]);
      for (int64_t i = 0; i < live; i += kLanes) {
        const Vec d = load(times_.offset + i);
        f(i, c[0] + d * (c[1] + d * (c[2] + d * (c[3] + d * c[4]))));
      }
    } else {
      const Rate all = decay_rate(deltas_ + channel, 1);
      const Rate rate = {splat(all.high[0]), splat(all.low[0])};
      for (int64_t i = 0; i < live; i += kLanes) f(i, decay(rate, load(times_.t + i)));
    }
  }

 private:
  static constexpr int kDegree = 4;
  const float* deltas_;
  const Times& times_;
  float coefficients_[kDegree + 1][kLanes];
};

// k[channel][position] = value decay of `rows` channels; a row of k is `length` floats.
void modulate(const Panels& values, const float* deltas, int64_t rows, const Times& times,
              int64_t live, float* k, int64_t length, bool past) {
  for (int64_t group = 0; group < rows; group += kLanes) {
    const int64_t count = smaller(kLanes, rows - group);
    const Decays decays(deltas + group, count, times);
    for (int64_t r = 0; r < count; ++r) {
      float* to = k + (group + r) * length;
      decays.each(r, live, [&](int64_t i, Vec decay) {
        const Vec y = load(values.at(group + r, i)) * decay;
        if (live - i < kLanes) {
          store_partial(to + i, y, live - i);
        } else if (past) {
          stream(to + i, y);
        } else {
          store(to + i, y);
        }
      });
    }
  }
}

// An item is a tile of one filter.
void run_implicit_filter_fwd(const ImplicitFilterParams& p, int64_t begin, int64_t end) {
  const int64_t tiles = ceil_div(p.length, p.tile), O = p.order, T = p.tile;
  float* memory = scratch((kBaseChunk + 2 * O + p.features + 2) * T);
  const auto panels = [&](int64_t units) {
    const Panels taken = {memory, kTokens, units * kTokens};
    memory += units * T;
    return taken;
  };
  const Panels values = panels(kBaseChunk), z = panels(p.features);
  Panels a = panels(O), b = panels(O);
  Times times = {memory, memory + T, 0, 0};
  // The rows of a large result lie in few sets of the caches.
  const bool past =
      is_large<float>(p.filters * p.channels * p.length) && whole_lines(p.k, p.length);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t filter = item / tiles, first = item % tiles * T;
    const int64_t live = smaller(T, p.length - first);
    load_positions(p, filter, first, live, z, times);
    const float* freq = p.freq + filter * O;
    sine_layer(p.w_in + filter * O * p.features, p.b_in + filter * O, freq, O, p.features, z, live,
               a, a);
    for (int64_t i = 0; i < p.hidden; ++i) {
      const int64_t layer = filter * p.hidden + i;
      sine_layer(p.w_hidden + layer * O * O, p.b_hidden + layer * O, freq, O, O, a, live, b, b);
      const Panels other = a;
      a = b;
      b = other;
    }
    for (int64_t h = 0; h < p.channels; h += kBaseChunk) {
      const int64_t rows = smaller(kBaseChunk, p.channels - h), row = filter * p.channels + h;
      tile_product(rows, p.w_out + row * O, O, O, a, live, values);
      modulate(values, p.deltas + row, rows, times, live, p.k + row * p.length + first, p.length,
               past);
    }
  }
  if (past) stream_fence();
}

// ---- Backward

// rows[position][unit] of a panel, padded with zeros to `width` units.
void turn_panel(const Panels& panel, int64_t units, int64_t live, float* rows, int64_t width) {
  for (int64_t u = 0; u < width; u += kLanes) {
    for (int64_t i = 0; i < live; i += kLanes) {
      Vec v[kLanes];
#pragma GCC unroll 16
      for (int j = 0; j < kLanes; ++j) v[j] = u + j < units ? load(panel.at(u + j, i)) : Vec{};
      transpose(v);
      const int64_t count = smaller(kLanes, live - i);
      for (int64_t j = 0; j < count; ++j) store(rows + (i + j) * width + u, v[j]);
    }
  }
}

// sum[r][unit] (+)= sum over positions of dy[r][position] x[position][unit]. The positions of a
// row of dy must be contiguous.
void weight_sums(const Panels& dy, int64_t rows, int64_t live, const float* x, int64_t units,
                 int64_t width, float* sum, bool add) {
  for (int64_t r = 0; r < rows; r += kBaseChunk) {
    for (int64_t u = 0; u < units; u += kTokens) {
      multiply<Floats>(smaller(kBaseChunk, rows - r), dy.at(r, 0), dy.stride, live, x + u, width,
                       smaller(kTokens, units - u), sum + r * width + u, width, add);
    }
  }
}

MONARCH_INLINE void add_vector(float* sum, Vec v, bool add) { store(sum, add ? load(sum) + v : v); }

// What a thread needs for one tile of the backward.
struct FilterTile {
  const ImplicitFilterBackwardParams& b;
  const ImplicitFilterParams& p;
  FilterSums at;
  int64_t filter = 0, first = 0, live = 0, O, H, E;
  Times times;
  Panels z, s, a;     // of all layers: s and a have (n + 1) O units
  Panels dy, da, ds;  // H, max(O, E) and O units
  Panels values;      // kBaseChunk
  float* rows;        // (positions, widest)

  explicit FilterTile(const ImplicitFilterBackwardParams& params)
      : b(params),
        p(params.forward),
        at(filter_sums(params, kTokens)),
        O(p.order),
        H(p.channels),
        E(p.features) {
    const int64_t inner = O > E ? O : E, all = (p.hidden + 1) * O, T = p.tile;
    const int64_t widest =
        at.order_stride > at.features_stride ? at.order_stride : at.features_stride;
    float* memory = scratch((E + 2 + 2 * all + H + inner + O + kBaseChunk + widest) * T);
    const auto panels = [&](int64_t units) {
      const Panels taken = {memory, T, kTokens};
      memory += units * T;
      return taken;
    };
    z = panels(E);
    s = panels(all);
    a = panels(all);
    dy = panels(H);
    da = panels(inner);
    ds = panels(O);
    values = panels(kBaseChunk);
    times = {memory, memory + T, 0, 0};
    rows = memory + 2 * T;
  }

  const float* hidden_weights(const float* w, int64_t layer) const {
    return w + (filter * p.hidden + layer - 1) * O * O;
  }

  // Activations of every layer, and dy = dk decay.
  void recompute() {
    load_positions(p, filter, first, live, z, times);
    const float* freq = p.freq + filter * O;
    sine_layer(p.w_in + filter * O * E, p.b_in + filter * O, freq, O, E, z, live, s, a);
    for (int64_t i = 1; i <= p.hidden; ++i) {
      sine_layer(hidden_weights(p.w_hidden, i), p.b_hidden + (filter * p.hidden + i - 1) * O, freq,
                 O, O, a.from((i - 1) * O), live, s.from(i * O), a.from(i * O));
    }
    for (int64_t h = 0; h < H; h += kLanes) {
      const int64_t count = smaller(kLanes, H - h);
      const Decays decays(p.deltas + filter * H + h, count, times);
      for (int64_t r = 0; r < count; ++r) {
        const float* from =
            b.dk + filter * b.dk_filter_stride + (h + r) * b.dk_channel_stride + first;
        decays.each(r, live, [&](int64_t i, Vec decay) {
          store(dy.at(h + r, i), load_at_most(from + i, live - i) * decay);
        });
      }
    }
  }

  // Of deltas: sum over positions of -sign(delta) t k dk, where k = decay times the last product.
  void add_deltas(float* sums, bool add) {
    for (int64_t h = 0; h < H; h += kBaseChunk) {
      const int64_t count = smaller(kBaseChunk, H - h), row = filter * H + h;
      tile_product(count, p.w_out + row * O, O, O, a.from(p.hidden * O), live, values);
      for (int64_t r = 0; r < count; ++r) {
        const float delta = p.deltas[row + r];
        const float sign = delta > 0 ? -1.0f : delta < 0 ? 1.0f : delta;
        Vec sum{};
        for (int64_t i = 0; i < live; i += kLanes) {
          sum += load(dy.at(h + r, i)) * load(values.at(r, i)) * load(times.t + i);
        }
        add_vector(sums + at.deltas + (h + r) * kSumLanes, sum * sign, add);
      }
    }
  }

  // ds of a layer from da, and the sums of its bias and of the frequency.
  void through_sine(int64_t layer, float* sums, bool add) {
    const float* freq = p.freq + filter * O;
    for (int64_t o = 0; o < O; ++o) {
      Vec bias{}, frequency{};
      for (int64_t i = 0; i < live; i += kLanes) {
        const Vec sum = load(s.at(layer * O + o, i));
        const Vec slope = load(da.at(o, i)) * cosine(freq[o] * sum), d = slope * freq[o];
        store(ds.at(o, i), d);
        bias += d;
        frequency += slope * sum;
      }
      if (!b.need_weights) continue;
      add_vector(sums + at.biases + (layer * O + o) * kSumLanes, bias, add);
      add_vector(sums + at.freq + o * kSumLanes, frequency, add || layer < p.hidden);
    }
  }

  // Adds dy (or ds) times the transposed x to the gradient of a matrix.
  void add_weights(const Panels& d, int64_t count, const Panels& x, int64_t units, int64_t width,
                   float* sum, bool add) {
    if (!b.need_weights) return;
    turn_panel(x, units, live, rows, width);
    weight_sums(d, count, live, rows, units, width, sum, add);
  }

  void store_dz() {
    float* to = b.dz + (filter * p.length + first) * E;
    for (int64_t e = 0; e < E; ++e) {
      for (int64_t i = 0; i < live; ++i) to[i * E + e] = *da.at(e, i);
    }
  }

  void run(float* sums, bool add) {
    recompute();
    if (b.ddeltas != nullptr) add_deltas(sums, add);
    if (!b.need_weights && b.dz == nullptr) return;
    const int64_t width = at.order_stride;
    add_weights(dy, H, a.from(p.hidden * O), O, width, sums + at.w_out, add);
    tile_product(O, b.w_out_transposed + filter * O * H, H, H, dy, live, da);
    for (int64_t layer = p.hidden; layer > 0; --layer) {
      through_sine(layer, sums, add);
      add_weights(ds, O, a.from((layer - 1) * O), O, width,
                  sums + at.w_hidden + (layer - 1) * O * width, add);
      tile_product(O, hidden_weights(b.w_hidden_transposed, layer), O, O, ds, live, da);
    }
    through_sine(0, sums, add);
    add_weights(ds, O, z, E, at.features_stride, sums + at.w_in, add);
    if (b.dz == nullptr) return;
    tile_product(E, b.w_in_transposed + filter * E * O, O, O, ds, live, da);
    store_dz();
  }
};

// An item is a part of one filter's positions.
void run_implicit_filter_bwd(const ImplicitFilterBackwardParams& b, int64_t begin, int64_t end) {
  FilterTile tile(b);
  const ImplicitFilterParams& p = b.forward;
  const int64_t tiles = ceil_div(p.length, p.tile);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t part = item % b.parts;
    const int64_t start = tiles * part / b.parts, stop = tiles * (part + 1) / b.parts;
    tile.filter = item / b.parts;
    for (int64_t i = start; i < stop; ++i) {
      tile.first = i * p.tile;
      tile.live = smaller(p.tile, p.length - tile.first);
      tile.run(b.sums + item * tile.at.end, i > start);
    }
  }
}

}  // namespace
}  // namespace monarch::cpu
