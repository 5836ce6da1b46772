// glu_mlp: parameters of the kernels and their entry points. Pointers only; no torch, no
// allocation of results. Formulas: monarch_kernels/glu_mlp.py; derivation: docs/math.md.
#pragma once
#include <cstdint>

#include "core/block_diagonal.h"

namespace monarch {

struct GluMlpParams {
  int64_t rows = 0, width = 0;  // width: D, of x and y
  Scalar scalar = Scalar::kFloat32;
  bool pairs = false, gated = true;
  Activations x, residual;
  Blocks w_in, w_out;
  const float *bias = nullptr, *norm_weight = nullptr, *norm_bias = nullptr;  // (D,)
  float eps = 0;
  void* y = nullptr;  // (rows, D), contiguous
  int64_t tile = 0;
  // Few rows: one tile in shared scratch memory, glu_mlp_hidden_floats and glu_mlp_sum_floats.
  float *hidden = nullptr, *sum = nullptr;
};

// Gradients of the two products, by parts of `part` rows: glu_mlp_bwd_rows fills the hidden
// gradients of the part's rows and writes dx, glu_mlp_bwd_weights adds to the weights' gradients.
struct GluMlpBackwardParams {
  int64_t rows = 0, width = 0;
  Scalar scalar = Scalar::kFloat32;
  bool pairs = false, gated = true;
  Activations dz, x;
  Blocks w_in, w_out;                        // as forward
  Blocks w_in_transposed, w_out_transposed;  // w_in_transposed only for dx
  void* dx = nullptr;                        // (rows, D), contiguous, scalar
  int64_t part = 0, first = 0, count = 0;    // rows first .. first + count - 1 are the part's
  int64_t tile = 0;
  // Scratch: of each hidden unit the part's values, float32 or for `pairs` bfloat16.
  void *da = nullptr, *db = nullptr, *h = nullptr;      // (I, part); nullptr: not wanted
  float *x_features = nullptr, *dz_features = nullptr;  // the part's, in the order of the kernels
  // Sums over all parts, glu_mlp_gradient_floats.
  float *dw_in = nullptr, *dw_out = nullptr;
  void *dw_in_result = nullptr, *dw_out_result = nullptr;  // in the order and dtype of the weights
};

namespace cpu {

int64_t glu_mlp_tile(const GluMlpParams& params, int64_t threads);
int64_t glu_mlp_fwd_items(const GluMlpParams& params);
void glu_mlp_fwd(const GluMlpParams& params, int64_t begin, int64_t end);

// The same for few rows in three steps, each of which needs the one before to be complete. The
// result has the same bits, but for up to 8 rows, which are always done so.
bool glu_mlp_in_steps(const GluMlpParams& params, int64_t threads);
int64_t glu_mlp_hidden_floats(const GluMlpParams& params);
int64_t glu_mlp_sum_floats(const GluMlpParams& params);
int64_t glu_mlp_hidden_items(const GluMlpParams& params);
void glu_mlp_hidden(const GluMlpParams& params, int64_t begin, int64_t end);
int64_t glu_mlp_sum_items(const GluMlpParams& params);
void glu_mlp_sum(const GluMlpParams& params, int64_t begin, int64_t end);
int64_t glu_mlp_finish_items(const GluMlpParams& params);
void glu_mlp_finish(const GluMlpParams& params, int64_t begin, int64_t end);

// Of x (columns of w_in) or dz (rows of w_out).
int64_t glu_mlp_features_floats(const GluMlpBackwardParams& params, const Blocks& w, bool columns);
int64_t glu_mlp_bwd_tile(const GluMlpBackwardParams& params);
int64_t glu_mlp_dw_in_floats(const GluMlpBackwardParams& params);
int64_t glu_mlp_dw_out_floats(const GluMlpBackwardParams& params);
int64_t glu_mlp_bwd_rows_items(const GluMlpBackwardParams& params);
void glu_mlp_bwd_rows(const GluMlpBackwardParams& params, int64_t begin, int64_t end);
int64_t glu_mlp_bwd_weights_items(const GluMlpBackwardParams& params);
void glu_mlp_bwd_weights(const GluMlpBackwardParams& params, int64_t begin, int64_t end);
// Writes the results from the sums.
int64_t glu_mlp_bwd_results_items(const GluMlpBackwardParams& params);
void glu_mlp_bwd_results(const GluMlpBackwardParams& params, int64_t begin, int64_t end);

}  // namespace cpu
}  // namespace monarch
