// projection: parameters of the kernels and their entry points. Pointers only; no torch, no
// allocation of results. Formula: monarch_kernels/projection.py.
#pragma once
#include <cstdint>

#include "core/block_diagonal.h"

namespace monarch {

struct ProjectionParams {
  int64_t batch = 0, rows = 0, in_features = 0, out_features = 0;
  Scalar scalar = Scalar::kFloat32;  // of x and y
  bool pairs = false;                // w is bfloat16, multiplied as such
  const void* x = nullptr;           // (batch, rows, in_features); one of the last strides is 1
  int64_t x_batch_stride = 0, x_row_stride = 0, x_feature_stride = 0;
  Blocks w;                     // one (out_features, in_features)
  const float* bias = nullptr;  // (out_features,)
  void* y = nullptr;            // contiguous: (batch, rows, out_features), or
  bool channels_first = false;  // (batch, out_features, rows)
  int64_t tile = 0;             // rows of x at a time
};

namespace cpu {

// As in core/block_diagonal.h: items are independent.
int64_t projection_tile(const ProjectionParams& params);
int64_t projection_fwd_items(const ProjectionParams& params);
void projection_fwd(const ProjectionParams& params, int64_t begin, int64_t end);

}  // namespace cpu
}  // namespace monarch
