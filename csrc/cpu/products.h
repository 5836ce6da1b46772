// The kernels of matrix products for every instruction set, and which of them runs. A table of
// their own beside that of dispatch.h, because they have one entry more: AVX-512 with the products
// of bfloat16.
#pragma once
#include <cstdint>

#include "core/block_diagonal.h"
#include "core/glu_mlp.h"
#include "core/implicit_filter.h"
#include "core/monarch_matmul.h"
#include "core/projection.h"

namespace monarch::cpu {

struct ProductTable {
  bool pairs;      // has products of bfloat16
  int64_t tokens;  // rows of x in a panel
  int64_t chunk;   // rows of a matrix done together, of pairs twice as many
  void (*convert)(const ConvertParams&, int64_t, int64_t);
  void (*block_diagonal_fwd)(const BlockDiagonalParams&, int64_t, int64_t);
  void (*block_diagonal_bwd)(const BlockDiagonalBackwardParams&, int64_t, int64_t);
  void (*monarch_matmul_fwd)(const MonarchMatmulParams&, int64_t, int64_t);
  void (*projection_fwd)(const ProjectionParams&, int64_t, int64_t);
  void (*glu_mlp_fwd)(const GluMlpParams&, int64_t, int64_t);
  void (*glu_mlp_hidden)(const GluMlpParams&, int64_t, int64_t);
  void (*glu_mlp_sum)(const GluMlpParams&, int64_t, int64_t);
  void (*glu_mlp_finish)(const GluMlpParams&, int64_t, int64_t);
  void (*glu_mlp_bwd_rows)(const GluMlpBackwardParams&, int64_t, int64_t);
  void (*glu_mlp_bwd_weights)(const GluMlpBackwardParams&, int64_t, int64_t);
  void (*glu_mlp_bwd_results)(const GluMlpBackwardParams&, int64_t, int64_t);
  void (*implicit_filter_fwd)(const ImplicitFilterParams&, int64_t, int64_t);
  void (*implicit_filter_bwd)(const ImplicitFilterBackwardParams&, int64_t, int64_t);
};

extern const ProductTable kGenericProducts, kAvx2Products, kAvx512Products, kAvx512Bf16Products;

// The table of the instruction set in use (dispatch.h).
const ProductTable& products();

// Whether the CPU's products of bfloat16 are used, where it has them; true at first, unless
// MONARCH_KERNELS_CPU_BF16=0.
bool bf16_instructions();
void use_bf16_instructions(bool wanted);

// Scratch memory of the calling thread, 64-byte aligned; valid until its next call.
float* scratch(int64_t floats);

// static: compiled once per instruction set, see scalar.h.
static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace monarch::cpu
