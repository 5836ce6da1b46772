// torch operators of glu_mlp on CUDA. Nothing here waits for the GPU.
#include "torch/cuda_call.h"
#include "torch/products_cuda.h"

// A namespace by name: tests/cuda_binding.cpp includes several bindings.
namespace monarch::glu_mlp {
namespace {

constexpr const char* kName = "glu_mlp";

Tensor fwd(const Tensor& x, const Tensor& w_in, const Tensor& w_out, const MaybeTensor& bias,
           const MaybeTensor& residual, const MaybeTensor& norm_weight,
           const MaybeTensor& norm_bias, double eps, bool gated) {
  const CudaCall call(x, "monarch_kernels::glu_mlp_fwd");
  check_glu_mlp(x, w_in, w_out, gated);
  const int64_t width = x.size(1);
  const RowTensor in(x, x, width, kName, "x");
  const RowTensor added =
      residual ? RowTensor(*residual, x, width, kName, "residual") : RowTensor();
  const BlockTensor first(w_in, x, kName, "w_in"), second(w_out, x, kName, "w_out");
  GluMlpParams p;
  p.rows = x.size(0);
  p.width = width;
  p.scalar = activation_scalar(x, kName);
  p.gated = gated;
  p.x = in.view();
  p.residual = added.view();
  p.w_in = first.view();
  p.w_out = second.view();
  p.bias = vector_data(bias, width, x, kName, "bias");
  p.norm_weight = vector_data(norm_weight, width, x, kName, "norm_weight");
  p.norm_bias = vector_data(norm_bias, width, x, kName, "norm_bias");
  p.eps = static_cast<float>(eps);
  Tensor y = x.new_empty({p.rows, width});
  if (y.numel() == 0) return y;
  p.y = y.data();
  run(call, p, cuda::glu_mlp_fwd_scratch, cuda::glu_mlp_fwd);
  return y;
}

// A result that nobody wants is an empty tensor.
std::tuple<Tensor, Tensor, Tensor> bwd(const Tensor& dz, const Tensor& x, const Tensor& w_in,
                                       const Tensor& w_out, bool gated, bool need_x, bool need_w_in,
                                       bool need_w_out) {
  const CudaCall call(x, "monarch_kernels::glu_mlp_bwd");
  check_glu_mlp(x, w_in, w_out, gated);
  const RowTensor in(x, x, x.size(1), kName, "x"), out(dz, x, x.size(1), kName, "dz");
  const BlockTensor first(w_in, x, kName, "w_in"), second(w_out, x, kName, "w_out");
  GluMlpBackwardParams p;
  p.rows = x.size(0);
  p.width = x.size(1);
  p.scalar = activation_scalar(x, kName);
  p.gated = gated;
  p.dz = out.view();
  p.x = in.view();
  p.w_in = first.view();
  p.w_out = second.view();
  Tensor dx = gradient_like(x, need_x, p.dx);
  Tensor dw_in = gradient_like(w_in, need_w_in, p.dw_in_result);
  Tensor dw_out = gradient_like(w_out, need_w_out, p.dw_out_result);
  run(call, p, cuda::glu_mlp_bwd_scratch, cuda::glu_mlp_bwd);
  return {std::move(dx), std::move(dw_in), std::move(dw_out)};
}

[[maybe_unused]] const abi::Library& registered =
    (new abi::Library("monarch_kernels", CudaCall::kDispatchKey))
        ->impl<&fwd>("glu_mlp_fwd")
        .impl<&bwd>("glu_mlp_bwd");

}  // namespace
}  // namespace monarch::glu_mlp
