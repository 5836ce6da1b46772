// torch operator of monarch_matmul on the CPU. Schema and the meaning of the arguments:
// monarch_kernels/monarch_matmul.py, which validates for its users.
#include "core/monarch_matmul.h"

#include "core/fft_conv.h"
#include "torch/products.h"

namespace monarch {
namespace {

constexpr const char* kName = "monarch_matmul";

Tensor fwd(const Tensor& x, const Tensor& w1, const Tensor& w2, const MaybeTensor& bias,
           int64_t out_features) {
  MONARCH_CHECK(x.dim() == 2, kName, ": x must have shape (rows, n)");
  const RowTensor in(x, x, x.size(1), kName, "x");
  const Weights first(w1, x, kName, "w1"), second(w2, x, kName, "w2");
  MonarchMatmulParams p;
  p.rows = x.size(0);
  p.in_features = x.size(1);
  p.out_features = out_features;
  p.scalar = activation_scalar(x, kName);
  p.pairs = multiplies_pairs(x);
  p.x = in.view();
  p.w1 = first.blocks();
  p.w2 = second.blocks();
  check_width(p.in_features, p.w1.count, p.w1.columns, kName, "the width of x");
  check_width(out_features, p.w2.count, p.w2.rows, kName, "out_features");
  MONARCH_CHECK(p.w1.count * p.w1.rows == p.w2.count * p.w2.columns, kName,
                ": the factors do not chain");
  p.bias = vector_data(bias, out_features, x, kName, "bias");
  Tensor y = x.new_empty({p.rows, out_features});
  if (y.numel() == 0) return y;
  p.y = y.data();
  cpu::advise_huge_pages(p.y, y.numel() * (p.scalar == Scalar::kFloat32 ? 4 : 2));
  p.tile = cpu::monarch_matmul_tile(p, abi::num_threads());
  const double products =
      static_cast<double>(p.rows) * static_cast<double>(w1.numel() + w2.numel());
  const int64_t items = cpu::monarch_matmul_fwd_items(p);
  abi::parallel_for(0, items, products_grain(products, items),
                    [&](int64_t begin, int64_t end) { cpu::monarch_matmul_fwd(p, begin, end); });
  return y;
}

[[maybe_unused]] const abi::Library& registered =
    (new abi::Library("monarch_kernels", "CPU"))->impl<&fwd>("monarch_matmul_fwd");

}  // namespace
}  // namespace monarch
