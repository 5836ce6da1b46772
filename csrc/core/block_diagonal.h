// block_diagonal: parameters of the kernels and their entry points. Pointers only; no torch, no
// allocation of results. Formulas: monarch_kernels/block_diagonal.py; derivation: docs/math.md.
#pragma once
#include <cstdint>

#include "core/scalar.h"

namespace monarch {

// (rows, width): elements of a row are contiguous; the stride is in elements. nullptr: absent.
struct Activations {
  const void* data = nullptr;
  int64_t stride = 0;
};

// P matrices (rows, columns), contiguous. On CUDA of x's dtype; on the CPU bfloat16 if the kernels
// multiply bfloat16 (cpu::bfloat16_products), else float32.
struct Blocks {
  const void* data = nullptr;
  int64_t count = 0, rows = 0, columns = 0;
};

struct BlockDiagonalParams {
  int64_t rows = 0, in_features = 0, out_features = 0;
  Scalar scalar = Scalar::kFloat32;  // of x and y
  bool pairs = false;                // w is bfloat16, multiplied as such
  Activations x;
  Blocks w;
  const float* bias = nullptr;  // (out_features,)
  void* y = nullptr;            // (rows, out_features), contiguous
  int64_t tile = 0;             // rows of x at a time
};

// Gradients of w and of the bias.
struct BlockDiagonalBackwardParams {
  int64_t rows = 0, in_features = 0, out_features = 0;
  Scalar scalar = Scalar::kFloat32;
  bool pairs = false;
  Activations dy, x;
  Blocks w;                // on the CPU, where block_diagonal_fwd makes dx, sizes only
  void* dx = nullptr;      // (rows, in_features), contiguous, scalar; CUDA only
  void* dw = nullptr;      // (P, q, c), scalar
  float* dbias = nullptr;  // (out_features,)
  int64_t item_rows = 0;   // rows of a block that are one item
};

namespace cpu {

// Whether products of bfloat16 take bfloat16 weights here.
bool bfloat16_products();

// Each call does the items [begin, end) of 0 .. *_items(params) - 1 on the calling thread; items
// are independent, and the result does not depend on how they are grouped.
int64_t block_diagonal_fwd_items(const BlockDiagonalParams& params);
void block_diagonal_fwd(const BlockDiagonalParams& params, int64_t begin, int64_t end);
int64_t block_diagonal_bwd_items(const BlockDiagonalBackwardParams& params);
void block_diagonal_bwd(const BlockDiagonalBackwardParams& params, int64_t begin, int64_t end);

// Rows that are worth doing at a time, when each needs so many floats of scratch memory and there
// are so many threads: they fit in a second-level cache, and every thread gets as many tiles.
int64_t tile_rows(int64_t rows, int64_t floats_per_row, int64_t threads);

// Matrices for the kernels: from `from` (count, rows, columns) to float32, or for `pairs` bfloat16,
// with rows and columns exchanged if asked. One item is a matrix row of the result.
struct ConvertParams {
  const void* from = nullptr;
  Scalar scalar = Scalar::kFloat32;
  int64_t count = 0, rows = 0, columns = 0;
  bool transposed = false, pairs = false;
  void* to = nullptr;
};
int64_t convert_items(const ConvertParams& params);
void convert(const ConvertParams& params, int64_t begin, int64_t end);

}  // namespace cpu
}  // namespace monarch
