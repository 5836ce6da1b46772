// Entry points of glu_mlp: tiles, scratch, and the chosen instruction set's kernels.
#include "core/glu_mlp.h"

#include <algorithm>

#include "cpu/products.h"

namespace monarch::cpu {
namespace {

constexpr int64_t kFewRows = 8;

int64_t steps(int64_t size, bool pairs) { return pairs ? ceil_div(size, 2) : size; }

int64_t padded(int64_t features) {
  return ceil_div(features, products().tokens) * products().tokens;
}

int64_t chunks(int64_t rows, bool pairs) {
  return ceil_div(rows, products().chunk * (pairs ? 2 : 1));
}

}  // namespace

bool glu_mlp_in_steps(const GluMlpParams& p, int64_t threads) {
  return p.rows <= kFewRows || (threads > 1 && p.rows < 64 * threads);
}
int64_t glu_mlp_tile(const GluMlpParams& p, int64_t threads) {
  const int64_t x = p.w_in.count * steps(p.w_in.columns, p.pairs);
  return tile_rows(p.rows, x + steps(p.w_out.columns, p.pairs) + p.width, threads);
}
int64_t glu_mlp_fwd_items(const GluMlpParams& p) { return ceil_div(p.rows, p.tile); }
void glu_mlp_fwd(const GluMlpParams& p, int64_t begin, int64_t end) {
  products().glu_mlp_fwd(p, begin, end);
}

int64_t glu_mlp_hidden_floats(const GluMlpParams& p) {
  constexpr int64_t kVector = 16;  // of few rows, each is padded to whole vectors
  const int64_t unit_steps = steps(p.w_out.columns, p.pairs);
  return p.w_out.count * std::max(padded(p.rows) * unit_steps, kFewRows * (unit_steps + kVector));
}
int64_t glu_mlp_sum_floats(const GluMlpParams& p) { return p.rows * padded(p.width); }
int64_t glu_mlp_hidden_items(const GluMlpParams& p) {
  return p.w_out.count * chunks(p.w_out.columns, p.pairs);
}
void glu_mlp_hidden(const GluMlpParams& p, int64_t begin, int64_t end) {
  products().glu_mlp_hidden(p, begin, end);
}
int64_t glu_mlp_sum_items(const GluMlpParams& p) {
  return p.w_out.count * chunks(p.w_out.rows, p.pairs);
}
void glu_mlp_sum(const GluMlpParams& p, int64_t begin, int64_t end) {
  products().glu_mlp_sum(p, begin, end);
}
int64_t glu_mlp_finish_items(const GluMlpParams& p) { return p.rows; }
void glu_mlp_finish(const GluMlpParams& p, int64_t begin, int64_t end) {
  products().glu_mlp_finish(p, begin, end);
}

int64_t glu_mlp_features_floats(const GluMlpBackwardParams& p, const Blocks& w, bool columns) {
  return w.count * padded(columns ? w.columns : w.rows) * steps(p.part, p.pairs);
}
int64_t glu_mlp_dw_in_floats(const GluMlpBackwardParams& p) {
  return p.w_in.count * p.w_in.rows * padded(p.w_in.columns);
}
int64_t glu_mlp_dw_out_floats(const GluMlpBackwardParams& p) {
  return p.w_out.count * p.w_out.columns * padded(p.w_out.rows);
}
int64_t glu_mlp_bwd_tile(const GluMlpBackwardParams& p) {
  return products().tokens * (p.pairs ? 2 : 1);
}
int64_t glu_mlp_bwd_rows_items(const GluMlpBackwardParams& p) { return ceil_div(p.count, p.tile); }
void glu_mlp_bwd_rows(const GluMlpBackwardParams& p, int64_t begin, int64_t end) {
  products().glu_mlp_bwd_rows(p, begin, end);
}
int64_t glu_mlp_bwd_weights_items(const GluMlpBackwardParams& p) {
  return p.w_out.count * chunks(p.w_out.columns, p.pairs);
}
void glu_mlp_bwd_weights(const GluMlpBackwardParams& p, int64_t begin, int64_t end) {
  products().glu_mlp_bwd_weights(p, begin, end);
}
int64_t glu_mlp_bwd_results_items(const GluMlpBackwardParams& p) {
  return p.w_in.count * p.w_in.rows + p.w_out.count * p.w_out.rows;
}
void glu_mlp_bwd_results(const GluMlpBackwardParams& p, int64_t begin, int64_t end) {
  products().glu_mlp_bwd_results(p, begin, end);
}

}  // namespace monarch::cpu
