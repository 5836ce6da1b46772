// Entry points of monarch_matmul: tiles, and the chosen instruction set's kernels.
#include "core/monarch_matmul.h"

#include "cpu/products.h"

namespace monarch::cpu {

int64_t monarch_matmul_tile(const MonarchMatmulParams& p, int64_t threads) {
  const int64_t hidden = p.w1.count * p.w1.rows / (p.pairs ? 2 : 1);
  return tile_rows(p.rows, p.w1.columns + hidden + p.w2.count * p.w2.rows, threads);
}
int64_t monarch_matmul_fwd_items(const MonarchMatmulParams& p) { return ceil_div(p.rows, p.tile); }
void monarch_matmul_fwd(const MonarchMatmulParams& p, int64_t begin, int64_t end) {
  products().monarch_matmul_fwd(p, begin, end);
}

}  // namespace monarch::cpu
