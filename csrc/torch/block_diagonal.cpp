// torch operators of block_diagonal on the CPU. Schemas and the meaning of the arguments:
// monarch_kernels/block_diagonal.py, which validates for its users; what is checked here is what
// keeps the kernels inside their arrays.
#include "core/block_diagonal.h"

#include "core/fft_conv.h"
#include "torch/products.h"

namespace monarch {
namespace {

constexpr const char* kName = "block_diagonal";

double work(int64_t rows, const Blocks& w) {
  return static_cast<double>(rows) * static_cast<double>(w.count * w.rows * w.columns);
}

Tensor multiply(const Tensor& x, const RowTensor& in, const Weights& w, const float* bias,
                int64_t out_features) {
  BlockDiagonalParams p;
  p.rows = x.size(0);
  p.in_features = x.size(1);
  p.out_features = out_features;
  p.scalar = activation_scalar(x, kName);
  p.pairs = multiplies_pairs(x);
  p.x = in.view();
  p.w = w.blocks();
  p.bias = bias;
  Tensor y = x.new_empty({p.rows, out_features});
  if (y.numel() == 0) return y;
  p.y = y.data();
  cpu::advise_huge_pages(p.y, y.numel() * (p.scalar == Scalar::kFloat32 ? 4 : 2));
  p.tile = cpu::tile_rows(p.rows, p.w.columns * 2, 1);
  const int64_t items = cpu::block_diagonal_fwd_items(p);
  abi::parallel_for(0, items, products_grain(work(p.rows, p.w), items),
                    [&](int64_t begin, int64_t end) { cpu::block_diagonal_fwd(p, begin, end); });
  return y;
}

Tensor fwd(const Tensor& x, const Tensor& w, const MaybeTensor& bias, int64_t out_features) {
  MONARCH_CHECK(x.dim() == 2, kName, ": x must have shape (rows, n)");
  const RowTensor in(x, x, x.size(1), kName, "x");
  const Weights weights(w, x, kName, "w");
  const Blocks& blocks = weights.blocks();
  check_width(x.size(1), blocks.count, blocks.columns, kName, "the width of x");
  check_width(out_features, blocks.count, blocks.rows, kName, "out_features");
  return multiply(x, in, weights, vector_data(bias, out_features, x, kName, "bias"), out_features);
}

// A result that nobody wants is an empty tensor.
std::tuple<Tensor, Tensor, Tensor> bwd(const Tensor& dy, const Tensor& x, const Tensor& w,
                                       bool need_x, bool need_w, bool need_bias) {
  MONARCH_CHECK(x.dim() == 2 && dy.dim() == 2 && w.dim() == 3 && w.numel() > 0, kName,
                ": x and dy must have two dimensions, w three");
  const RowTensor in(x, x, x.size(1), kName, "x"), out(dy, x, dy.size(1), kName, "dy");
  const int64_t blocks = w.size(0), rows = w.size(1), columns = w.size(2);
  check_width(x.size(1), blocks, columns, kName, "the width of x");
  check_width(dy.size(1), blocks, rows, kName, "the width of dy");
  MONARCH_CHECK(w.is_cpu() && w.dtype() == x.dtype(), kName, ": w must have the dtype of x");

  Tensor dx = need_x ? multiply(dy, out, Weights(w, x, kName, "w", true), nullptr, x.size(1))
                     : x.new_empty({int64_t{0}});
  Tensor dw = need_w ? w.new_empty({blocks, rows, columns}) : w.new_empty({int64_t{0}});
  Tensor dbias = x.new_empty({need_bias ? dy.size(1) : 0}, abi::DType::Float32);
  if (!need_w && !need_bias) return {std::move(dx), std::move(dw), std::move(dbias)};

  BlockDiagonalBackwardParams p;
  p.rows = x.size(0);
  p.in_features = x.size(1);
  p.out_features = dy.size(1);
  p.scalar = activation_scalar(x, kName);
  p.pairs = multiplies_pairs(x);
  p.dy = out.view();
  p.x = in.view();
  p.w = {nullptr, blocks, rows, columns};
  p.dw = need_w ? dw.data() : nullptr;
  p.dbias = need_bias ? dbias.data<float>() : nullptr;
  // Large items read x less often, small ones keep every thread busy.
  p.item_rows = std::min<int64_t>(192, rows);
  while (p.item_rows > 48 && cpu::block_diagonal_bwd_items(p) < 2 * abi::num_threads()) {
    p.item_rows = (p.item_rows + 1) / 2;
  }
  const int64_t items = cpu::block_diagonal_bwd_items(p);
  abi::parallel_for(0, items, products_grain(work(p.rows, p.w), items),
                    [&](int64_t begin, int64_t end) { cpu::block_diagonal_bwd(p, begin, end); });
  return {std::move(dx), std::move(dw), std::move(dbias)};
}

[[maybe_unused]] const abi::Library& registered = (new abi::Library("monarch_kernels", "CPU"))
                                                      ->impl<&fwd>("block_diagonal_fwd")
                                                      .impl<&bwd>("block_diagonal_bwd");

}  // namespace
}  // namespace monarch
