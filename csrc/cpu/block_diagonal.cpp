// Entry points of block_diagonal: items, and the chosen instruction set's kernels.
#include "core/block_diagonal.h"

#include "cpu/products.h"

namespace monarch::cpu {

int64_t block_diagonal_fwd_items(const BlockDiagonalParams& p) {
  const int64_t chunk = products().chunk * (p.pairs ? 2 : 1);
  return ceil_div(p.rows, p.tile) * p.w.count * ceil_div(p.w.rows, chunk);
}
void block_diagonal_fwd(const BlockDiagonalParams& p, int64_t begin, int64_t end) {
  products().block_diagonal_fwd(p, begin, end);
}

int64_t block_diagonal_bwd_items(const BlockDiagonalBackwardParams& p) {
  return p.w.count * ceil_div(p.w.rows, p.item_rows);
}
void block_diagonal_bwd(const BlockDiagonalBackwardParams& p, int64_t begin, int64_t end) {
  products().block_diagonal_bwd(p, begin, end);
}

}  // namespace monarch::cpu
