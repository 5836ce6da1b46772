// torch operator of monarch_matmul on CUDA. Nothing here waits for the GPU. Its backward is made of
// block_diagonal's.
#include "torch/cuda_call.h"
#include "torch/products_cuda.h"

// A namespace by name: tests/cuda_binding.cpp includes several bindings.
namespace monarch::monarch_matmul {
namespace {

constexpr const char* kName = "monarch_matmul";

Tensor fwd(const Tensor& x, const Tensor& w1, const Tensor& w2, const MaybeTensor& bias,
           int64_t out_features) {
  const CudaCall call(x, "monarch_kernels::monarch_matmul_fwd");
  MONARCH_CHECK(x.dim() == 2, kName, ": x must have shape (rows, n)");
  const RowTensor in(x, x, x.size(1), kName, "x");
  const BlockTensor first(w1, x, kName, "w1"), second(w2, x, kName, "w2");
  MonarchMatmulParams p;
  p.rows = x.size(0);
  p.in_features = x.size(1);
  p.out_features = out_features;
  p.scalar = activation_scalar(x, kName);
  p.x = in.view();
  p.w1 = first.view();
  p.w2 = second.view();
  check_width(p.in_features, p.w1.count, p.w1.columns, kName, "the width of x");
  check_width(out_features, p.w2.count, p.w2.rows, kName, "out_features");
  MONARCH_CHECK(p.w1.count * p.w1.rows == p.w2.count * p.w2.columns, kName,
                ": the factors do not chain");
  p.bias = vector_data(bias, out_features, x, kName, "bias");
  Tensor y = x.new_empty({p.rows, out_features});
  if (y.numel() == 0) return y;
  p.y = y.data();
  run(call, p, cuda::monarch_matmul_fwd_scratch, cuda::monarch_matmul_fwd);
  return y;
}

[[maybe_unused]] const abi::Library& registered =
    (new abi::Library("monarch_kernels", CudaCall::kDispatchKey))->impl<&fwd>("monarch_matmul_fwd");

}  // namespace
}  // namespace monarch::monarch_matmul
