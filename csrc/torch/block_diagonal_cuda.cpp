// torch operators of block_diagonal on CUDA. Nothing here waits for the GPU.
#include "torch/cuda_call.h"
#include "torch/products_cuda.h"

// A namespace by name: tests/cuda_binding.cpp includes several bindings.
namespace monarch::block_diagonal {
namespace {

constexpr const char* kName = "block_diagonal";

Tensor fwd(const Tensor& x, const Tensor& w, const MaybeTensor& bias, int64_t out_features) {
  const CudaCall call(x, "monarch_kernels::block_diagonal_fwd");
  MONARCH_CHECK(x.dim() == 2, kName, ": x must have shape (rows, n)");
  const RowTensor in(x, x, x.size(1), kName, "x");
  const BlockTensor blocks(w, x, kName, "w");
  BlockDiagonalParams p;
  p.rows = x.size(0);
  p.in_features = x.size(1);
  p.out_features = out_features;
  p.scalar = activation_scalar(x, kName);
  p.x = in.view();
  p.w = blocks.view();
  check_width(p.in_features, p.w.count, p.w.columns, kName, "the width of x");
  check_width(out_features, p.w.count, p.w.rows, kName, "out_features");
  p.bias = vector_data(bias, out_features, x, kName, "bias");
  Tensor y = x.new_empty({p.rows, out_features});
  if (y.numel() == 0) return y;
  p.y = y.data();
  run(call, p, cuda::block_diagonal_fwd_scratch, cuda::block_diagonal_fwd);
  return y;
}

// A result that nobody wants is an empty tensor.
std::tuple<Tensor, Tensor, Tensor> bwd(const Tensor& dy, const Tensor& x, const Tensor& w,
                                       bool need_x, bool need_w, bool need_bias) {
  const CudaCall call(x, "monarch_kernels::block_diagonal_bwd");
  MONARCH_CHECK(x.dim() == 2 && dy.dim() == 2, kName, ": x and dy must have two dimensions");
  const RowTensor in(x, x, x.size(1), kName, "x"), out(dy, x, dy.size(1), kName, "dy");
  const BlockTensor blocks(w, x, kName, "w");
  BlockDiagonalBackwardParams p;
  p.rows = x.size(0);
  p.in_features = x.size(1);
  p.out_features = dy.size(1);
  p.scalar = activation_scalar(x, kName);
  p.dy = out.view();
  p.x = in.view();
  p.w = blocks.view();
  check_width(p.in_features, p.w.count, p.w.columns, kName, "the width of x");
  check_width(p.out_features, p.w.count, p.w.rows, kName, "the width of dy");
  Tensor dx = gradient_like(x, need_x, p.dx), dw = gradient_like(w, need_w, p.dw);
  Tensor dbias = x.new_empty({need_bias ? p.out_features : 0}, abi::DType::Float32);
  p.dbias = need_bias ? dbias.data<float>() : nullptr;
  run(call, p, cuda::block_diagonal_bwd_scratch, cuda::block_diagonal_bwd);
  return {std::move(dx), std::move(dw), std::move(dbias)};
}

[[maybe_unused]] const abi::Library& registered =
    (new abi::Library("monarch_kernels", CudaCall::kDispatchKey))
        ->impl<&fwd>("block_diagonal_fwd")
        .impl<&bwd>("block_diagonal_bwd");

}  // namespace
}  // namespace monarch::block_diagonal
