// torch operator of projection on the CPU. Schema and the meaning of the arguments:
// monarch_kernels/projection.py, which validates for its users; what is checked here is what keeps
// the kernels inside their arrays.
#include "core/projection.h"

#include "core/fft_conv.h"
#include "torch/products.h"

namespace monarch {
namespace {

constexpr const char* kName = "projection";

Tensor fwd(const Tensor& x, const Tensor& w, const MaybeTensor& bias, bool channels_first) {
  MONARCH_CHECK(x.is_cpu() && x.dim() == 3, kName, ": x must be a CPU tensor (B, L, n)");
  MONARCH_CHECK(w.dim() == 3 && w.size(0) == 1 && w.size(2) == x.size(2), kName,
                ": w must have shape (1, m, n)");
  const bool in_place = x.stride(2) == 1 || x.stride(1) == 1 || x.size(1) == 1 || x.size(2) == 1;
  const Tensor in = in_place ? x.alias() : x.contiguous();
  const Weights weights(w, x, kName, "w");
  ProjectionParams p;
  p.batch = x.size(0);
  p.rows = x.size(1);
  p.in_features = x.size(2);
  p.out_features = w.size(1);
  p.scalar = activation_scalar(x, kName);
  p.pairs = multiplies_pairs(x);
  p.x = in.data();
  p.x_batch_stride = in.stride(0);
  p.x_row_stride = in.stride(1);
  // Of one feature, or one row, the stride means nothing.
  p.x_feature_stride = p.in_features == 1 ? 1 : in.stride(2);
  p.w = weights.blocks();
  p.bias = vector_data(bias, p.out_features, x, kName, "bias");
  p.channels_first = channels_first;
  Tensor y = channels_first ? x.new_empty({p.batch, p.out_features, p.rows})
                            : x.new_empty({p.batch, p.rows, p.out_features});
  if (y.numel() == 0) return y;
  p.y = y.data();
  cpu::advise_huge_pages(p.y, y.numel() * (p.scalar == Scalar::kFloat32 ? 4 : 2));
  p.tile = cpu::projection_tile(p);
  const double products = static_cast<double>(p.batch * p.rows) * static_cast<double>(w.numel());
  const int64_t items = cpu::projection_fwd_items(p);
  abi::parallel_for(0, items, products_grain(products, items),
                    [&](int64_t begin, int64_t end) { cpu::projection_fwd(p, begin, end); });
  return y;
}

[[maybe_unused]] const abi::Library& registered =
    (new abi::Library("monarch_kernels", "CPU"))->impl<&fwd>("projection_fwd");

}  // namespace
}  // namespace monarch
