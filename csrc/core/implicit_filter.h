// implicit_filter: parameters of the kernels and their entry points. Pointers only; no torch, no
// allocation of results. Formulas: monarch_kernels/implicit_filter.py; derivation: docs/math.md.
#pragma once
#include <cstdint>

namespace monarch {

// Sizes are the letters of the docstring: F filters, L length, H channels, O order, E features, n
// hidden layers. Weights and vectors are contiguous, strides are in elements.
struct ImplicitFilterParams {
  int64_t filters = 0, length = 0, channels = 0, order = 0, features = 0, hidden = 0;
  const float* z = nullptr;  // (F, L, E)
  int64_t z_filter_stride = 0, z_position_stride = 0, z_feature_stride = 0;
  const float* t = nullptr;  // (L)
  int64_t t_stride = 0;
  const float *w_in = nullptr, *b_in = nullptr;          // (F, O, E), (F, O)
  const float *w_hidden = nullptr, *b_hidden = nullptr;  // (F, n, O, O), (F, n, O)
  const float* w_out = nullptr;                          // (F, H, O)
  const float *freq = nullptr, *deltas = nullptr;        // (F, O), (F, H)
  float* k = nullptr;                                    // (F, H, L); of the forward
  int64_t tile = 0;                                      // positions at a time
};

// Each filter's positions are divided into `parts` ranges of tiles, the same for any number of
// threads; a part has its own sums, which implicit_filter_bwd_results adds in order.
struct ImplicitFilterBackwardParams {
  ImplicitFilterParams forward;  // k is not used
  const float* dk = nullptr;     // (F, H, L), positions contiguous
  int64_t dk_filter_stride = 0, dk_channel_stride = 0;
  // Matrices with rows and columns exchanged; w_in only for dz.
  const float *w_in_transposed = nullptr, *w_hidden_transposed = nullptr;
  const float* w_out_transposed = nullptr;
  int64_t parts = 0;
  float* sums = nullptr;      // implicit_filter_sum_floats for each part of each filter
  bool need_weights = false;  // all but z and deltas
  // Results, contiguous; nullptr where not wanted. Those of the weights are wanted together.
  float* dz = nullptr;  // (F, L, E)
  float *dw_in = nullptr, *db_in = nullptr, *dw_hidden = nullptr, *db_hidden = nullptr;
  float *dw_out = nullptr, *dfreq = nullptr, *ddeltas = nullptr;
};

namespace cpu {

// Each call does the items [begin, end) of 0 .. *_items(params) - 1 on the calling thread; items
// are independent, and the result does not depend on how they are grouped.
int64_t implicit_filter_tile(const ImplicitFilterParams& params);
int64_t implicit_filter_fwd_items(const ImplicitFilterParams& params);
void implicit_filter_fwd(const ImplicitFilterParams& params, int64_t begin, int64_t end);

int64_t implicit_filter_bwd_tile(const ImplicitFilterParams& params);
int64_t implicit_filter_parts(const ImplicitFilterParams& params);
int64_t implicit_filter_sum_floats(const ImplicitFilterBackwardParams& params);
int64_t implicit_filter_bwd_items(const ImplicitFilterBackwardParams& params);
void implicit_filter_bwd(const ImplicitFilterBackwardParams& params, int64_t begin, int64_t end);
// Writes the results from the sums. An item is a filter.
void implicit_filter_bwd_results(const ImplicitFilterBackwardParams& params, int64_t begin,
                                 int64_t end);

}  // namespace cpu
}  // namespace monarch
