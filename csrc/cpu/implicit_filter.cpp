// Entry points of implicit_filter: tiles, parts, and the chosen instruction set's kernels.
#include "cpu/implicit_filter.h"

#include <algorithm>

namespace monarch::cpu {
namespace {

// Positions at a time, whatever the number of threads: decays depend on the tile. So many that a
// row of the result is written 512 bytes at a time; the backward's fit in a second-level cache.
constexpr int64_t kTile = 128, kBackwardTile = 64;
constexpr int64_t kMostParts = 8, kLeastTiles = 4;

int64_t tile_of(int64_t length, int64_t most) {
  return std::min(ceil_div(length, products().tokens) * products().tokens, most);
}

// Sums of one part and after it those of the other parts, `stride` floats apart.
struct Parts {
  const float* sums;
  int64_t count, stride;

  float total(int64_t at) const {
    float sum = sums[at];
    for (int64_t i = 1; i < count; ++i) sum += sums[at + i * stride];
    return sum;
  }
  void matrix(int64_t at, int64_t rows, int64_t columns, int64_t row_stride, float* to) const {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c) to[r * columns + c] = total(at + r * row_stride + c);
    }
  }
  void vector(int64_t at, int64_t size, int64_t lanes, float* to) const {
    for (int64_t r = 0; r < size; ++r) {
      double sum = 0;
      for (int64_t i = 0; i < lanes; ++i) {
        sum += static_cast<double>(total(at + r * kSumLanes + i));
      }
      to[r] = static_cast<float>(sum);
    }
  }
};

}  // namespace

int64_t implicit_filter_tile(const ImplicitFilterParams& p) { return tile_of(p.length, kTile); }
int64_t implicit_filter_fwd_items(const ImplicitFilterParams& p) {
  return p.filters * ceil_div(p.length, p.tile);
}
void implicit_filter_fwd(const ImplicitFilterParams& p, int64_t begin, int64_t end) {
  products().implicit_filter_fwd(p, begin, end);
}

int64_t implicit_filter_bwd_tile(const ImplicitFilterParams& p) {
  return tile_of(p.length, kBackwardTile);
}
int64_t implicit_filter_parts(const ImplicitFilterParams& p) {
  return std::clamp(ceil_div(p.length, p.tile) / kLeastTiles, int64_t{1}, kMostParts);
}
int64_t implicit_filter_sum_floats(const ImplicitFilterBackwardParams& b) {
  return filter_sums(b, products().tokens).end;
}
int64_t implicit_filter_bwd_items(const ImplicitFilterBackwardParams& b) {
  return b.forward.filters * b.parts;
}
void implicit_filter_bwd(const ImplicitFilterBackwardParams& b, int64_t begin, int64_t end) {
  products().implicit_filter_bwd(b, begin, end);
}
void implicit_filter_bwd_results(const ImplicitFilterBackwardParams& b, int64_t begin,
                                 int64_t end) {
  const ImplicitFilterParams& p = b.forward;
  const int64_t O = p.order, E = p.features, H = p.channels, n = p.hidden;
  const int64_t lanes = products().tokens / 2;
  const FilterSums at = filter_sums(b, products().tokens);
  for (int64_t f = begin; f < end; ++f) {
    const Parts parts = {b.sums + f * b.parts * at.end, b.parts, at.end};
    if (b.need_weights) {
      parts.matrix(at.w_out, H, O, at.order_stride, b.dw_out + f * H * O);
      parts.matrix(at.w_hidden, n * O, O, at.order_stride, b.dw_hidden + f * n * O * O);
      parts.matrix(at.w_in, O, E, at.features_stride, b.dw_in + f * O * E);
      parts.vector(at.biases, O, lanes, b.db_in + f * O);
      parts.vector(at.biases + O * kSumLanes, n * O, lanes, b.db_hidden + f * n * O);
      parts.vector(at.freq, O, lanes, b.dfreq + f * O);
    }
    if (b.ddeltas != nullptr) parts.vector(at.deltas, H, lanes, b.ddeltas + f * H);
  }
}

}  // namespace monarch::cpu
