// Where the sums of a part of implicit_filter's backward lie; the kernels of every instruction set
// write them, implicit_filter.cpp adds them up.
#pragma once
#include "core/implicit_filter.h"
#include "cpu/products.h"

namespace monarch::cpu {

constexpr int64_t kSumLanes = 16;  // of a vector sum; no instruction set has more

// Offsets in floats. Rows of the matrices are padded to whole panels of `tokens` columns.
struct FilterSums {
  int64_t order_stride, features_stride;
  int64_t w_out, w_hidden, w_in;      // (H, O), (n, O, O), (O, E)
  int64_t biases, freq, deltas, end;  // (n + 1, O, kSumLanes), (O, kSumLanes), (H, kSumLanes)
};

// static: compiled once per instruction set, see scalar.h.
static inline FilterSums filter_sums(const ImplicitFilterBackwardParams& b, int64_t tokens) {
  const ImplicitFilterParams& p = b.forward;
  FilterSums s;
  s.order_stride = ceil_div(p.order, tokens) * tokens;
  s.features_stride = ceil_div(p.features, tokens) * tokens;
  const bool weights = b.need_weights;
  s.w_out = 0;
  s.w_hidden = s.w_out + (weights ? p.channels * s.order_stride : 0);
  s.w_in = s.w_hidden + (weights ? p.hidden * p.order * s.order_stride : 0);
  s.biases = s.w_in + (weights ? p.order * s.features_stride : 0);
  s.freq = s.biases + (weights ? (p.hidden + 1) * p.order * kSumLanes : 0);
  s.deltas = s.freq + (weights ? p.order * kSumLanes : 0);
  s.end = s.deltas + (b.ddeltas != nullptr ? p.channels * kSumLanes : 0);
  return s;
}

}  // namespace monarch::cpu
