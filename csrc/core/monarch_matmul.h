// monarch_matmul: parameters of the kernels and their entry points. Pointers only; no torch, no
// allocation of results. Formulas: monarch_kernels/monarch_matmul.py.
#pragma once
#include <cstdint>

#include "core/block_diagonal.h"

namespace monarch {

struct MonarchMatmulParams {
  int64_t rows = 0, in_features = 0, out_features = 0;
  Scalar scalar = Scalar::kFloat32;
  bool pairs = false;
  Activations x;
  Blocks w1, w2;                // (k, q, p), (l, s, r) with k q = l r
  const float* bias = nullptr;  // (out_features,)
  void* y = nullptr;            // (rows, out_features), contiguous
  int64_t tile = 0;
};

namespace cpu {

int64_t monarch_matmul_tile(const MonarchMatmulParams& params, int64_t threads);
int64_t monarch_matmul_fwd_items(const MonarchMatmulParams& params);
void monarch_matmul_fwd(const MonarchMatmulParams& params, int64_t begin, int64_t end);

}  // namespace cpu
}  // namespace monarch
