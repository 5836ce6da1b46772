// Launchers of monarch_matmul: two products, of which the first stores its result in the order in
// which the second reads it.
#include "cuda/product.h"
#include "cuda/products.h"

namespace monarch::cuda {

int64_t monarch_matmul_fwd_scratch(const MonarchMatmulParams& p, const DeviceLimits&) {
  return p.rows * p.w1.count * p.w1.rows * bytes_of(p.scalar);
}

void monarch_matmul_fwd(const MonarchMatmulParams& p, void* scratch, const Launch& launch) {
  const int64_t width = p.w1.count * p.w1.rows;
  Product first;
  first.scalar = p.scalar;
  first.rows = p.rows;
  first.in_features = p.in_features;
  first.out_features = width;
  first.x = p.x;
  first.w = p.w1;
  first.y = scratch;
  // h (r, l) as (l, r): block i of w2 reads r neighbours.
  first.outer = p.w2.columns;
  first.inner = p.w2.count;
  multiply(first, launch);
  Product second;
  second.scalar = p.scalar;
  second.rows = p.rows;
  second.in_features = width;
  second.out_features = p.out_features;
  second.x = {scratch, width};
  second.w = p.w2;
  second.bias = p.bias;
  second.y = p.y;
  second.outer = p.w2.count;  // (l, s) as (s, l)
  second.inner = p.w2.rows;
  multiply(second, launch);
}

}  // namespace monarch::cuda
