// Entry points of projection: tiles, items, and the chosen instruction set's kernels.
#include "core/projection.h"

#include "cpu/products.h"

namespace monarch::cpu {

// Half as much again as the panels of a tile take: the rest is for the matrix.
int64_t projection_tile(const ProjectionParams& p) {
  return tile_rows(p.rows, ceil_div(3 * p.in_features, p.pairs ? 4 : 2), 1);
}
int64_t projection_fwd_items(const ProjectionParams& p) {
  const int64_t chunk = products().chunk * (p.pairs ? 2 : 1);
  return p.batch * ceil_div(p.rows, p.tile) * ceil_div(p.out_features, chunk);
}
void projection_fwd(const ProjectionParams& p, int64_t begin, int64_t end) {
  products().projection_fwd(p, begin, end);
}

}  // namespace monarch::cpu
