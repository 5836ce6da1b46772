// torch operators of glu_mlp on the CPU. Schemas and the meaning of the arguments:
// monarch_kernels/glu_mlp.py, which validates for its users; what is checked here is what keeps
// the kernels inside their arrays.
#include "core/glu_mlp.h"

#include "core/fft_conv.h"
#include "torch/products.h"

namespace monarch {
namespace {

constexpr const char* kName = "glu_mlp";
// Rows whose hidden gradients are in memory at the same time.
constexpr int64_t kPartRows = 512;

template <class Items, class Kernel>
void parallel(const GluMlpParams& p, double products, Items items_of, Kernel kernel) {
  const int64_t items = items_of(p);
  abi::parallel_for(0, items, products_grain(products, items),
                    [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

Tensor fwd(const Tensor& x, const Tensor& w_in, const Tensor& w_out, const MaybeTensor& bias,
           const MaybeTensor& residual, const MaybeTensor& norm_weight,
           const MaybeTensor& norm_bias, double eps, bool gated) {
  check_glu_mlp(x, w_in, w_out, gated);
  const int64_t width = x.size(1);
  const RowTensor in(x, x, width, kName, "x");
  const RowTensor added =
      residual ? RowTensor(*residual, x, width, kName, "residual") : RowTensor();
  const Weights first(w_in, x, kName, "w_in"), second(w_out, x, kName, "w_out");
  GluMlpParams p;
  p.rows = x.size(0);
  p.width = width;
  p.scalar = activation_scalar(x, kName);
  p.pairs = multiplies_pairs(x);
  p.gated = gated;
  p.x = in.view();
  p.residual = added.view();
  p.w_in = first.blocks();
  p.w_out = second.blocks();
  p.bias = vector_data(bias, width, x, kName, "bias");
  p.norm_weight = vector_data(norm_weight, width, x, kName, "norm_weight");
  p.norm_bias = vector_data(norm_bias, width, x, kName, "norm_bias");
  p.eps = static_cast<float>(eps);
  Tensor y = x.new_empty({p.rows, width});
  if (y.numel() == 0) return y;
  p.y = y.data();
  cpu::advise_huge_pages(p.y, y.numel() * (p.scalar == Scalar::kFloat32 ? 4 : 2));

  const int64_t threads = abi::num_threads();
  const auto rows = static_cast<double>(p.rows);
  const double products_in = rows * static_cast<double>(w_in.numel());
  const double products_out = rows * static_cast<double>(w_out.numel());
  p.tile = cpu::glu_mlp_tile(p, threads);
  if (cpu::glu_mlp_in_steps(p, threads)) {
    Tensor hidden = x.new_empty({cpu::glu_mlp_hidden_floats(p)}, abi::DType::Float32);
    Tensor sum = x.new_empty({cpu::glu_mlp_sum_floats(p)}, abi::DType::Float32);
    p.hidden = hidden.data<float>();
    p.sum = sum.data<float>();
    parallel(p, products_in, cpu::glu_mlp_hidden_items, cpu::glu_mlp_hidden);
    parallel(p, products_out, cpu::glu_mlp_sum_items, cpu::glu_mlp_sum);
    parallel(p, rows * static_cast<double>(width), cpu::glu_mlp_finish_items, cpu::glu_mlp_finish);
  } else {
    parallel(p, products_in + products_out, cpu::glu_mlp_fwd_items, cpu::glu_mlp_fwd);
  }
  return y;
}

class Buffer {
 public:
  Buffer(const Tensor& like, bool wanted, int64_t numel, abi::DType dtype) {
    if (!wanted) return;
    tensor_ = like.new_empty({numel}, dtype);
    data_ = tensor_.data();
    cpu::advise_huge_pages(data_, numel * (dtype == abi::DType::Float32 ? 4 : 2));
  }
  void* data() const { return data_; }
  float* floats() const { return static_cast<float*>(data_); }

 private:
  Tensor tensor_;
  void* data_ = nullptr;
};

// A result that nobody wants is an empty tensor.
std::tuple<Tensor, Tensor, Tensor> bwd(const Tensor& dz, const Tensor& x, const Tensor& w_in,
                                       const Tensor& w_out, bool gated, bool need_x, bool need_w_in,
                                       bool need_w_out) {
  check_glu_mlp(x, w_in, w_out, gated);
  const int64_t width = x.size(1);
  const RowTensor in(x, x, width, kName, "x"), out(dz, x, width, kName, "dz");
  const Weights first(w_in, x, kName, "w_in"), second(w_out, x, kName, "w_out");
  const Weights first_transposed = need_x ? Weights(w_in, x, kName, "w_in", true) : Weights();
  const Weights second_transposed(w_out, x, kName, "w_out", true);
  const auto like = [](const Tensor& t, bool wanted) {
    return wanted ? t.new_empty(std::vector<int64_t>(t.sizes(), t.sizes() + t.dim()))
                  : t.new_empty({int64_t{0}});
  };
  Tensor dx = like(x, need_x), dw_in = like(w_in, need_w_in), dw_out = like(w_out, need_w_out);

  GluMlpBackwardParams p;
  p.rows = x.size(0);
  p.width = width;
  p.scalar = activation_scalar(x, kName);
  p.pairs = multiplies_pairs(x);
  p.gated = gated;
  p.dz = out.view();
  p.x = in.view();
  p.w_in = first.blocks();
  p.w_out = second.blocks();
  p.w_in_transposed = first_transposed.blocks();
  p.w_out_transposed = second_transposed.blocks();
  p.dx = need_x && dx.numel() > 0 ? dx.data() : nullptr;
  p.part = kPartRows;
  p.tile = cpu::glu_mlp_bwd_tile(p);
  p.dw_in_result = need_w_in ? dw_in.data() : nullptr;
  p.dw_out_result = need_w_out ? dw_out.data() : nullptr;

  const auto kept = p.pairs ? abi::DType::BFloat16 : abi::DType::Float32;
  const int64_t units = p.w_out.count * p.w_out.columns;
  const bool some = p.rows > 0;
  const Buffer da(x, some && need_w_in, units * p.part, kept);
  const Buffer db(x, some && need_w_in && gated, units * p.part, kept);
  const Buffer h(x, some && need_w_out, units * p.part, kept);
  const auto float32 = abi::DType::Float32;
  const Buffer x_features(x, some && need_w_in, cpu::glu_mlp_features_floats(p, p.w_in, true),
                          float32);
  const Buffer dz_features(x, some && need_w_out, cpu::glu_mlp_features_floats(p, p.w_out, false),
                           float32);
  const Buffer sum_in(x, some && need_w_in, cpu::glu_mlp_dw_in_floats(p), float32);
  const Buffer sum_out(x, some && need_w_out, cpu::glu_mlp_dw_out_floats(p), float32);
  p.da = da.data();
  p.db = db.data();
  p.h = h.data();
  p.x_features = x_features.floats();
  p.dz_features = dz_features.floats();
  p.dw_in = sum_in.floats();
  p.dw_out = sum_out.floats();
  for (p.first = 0; p.first < p.rows; p.first += p.part) {
    p.count = std::min(p.part, p.rows - p.first);
    abi::parallel_for(0, cpu::glu_mlp_bwd_rows_items(p), 1,
                      [&](int64_t begin, int64_t end) { cpu::glu_mlp_bwd_rows(p, begin, end); });
    if (!need_w_in && !need_w_out) continue;
    abi::parallel_for(0, cpu::glu_mlp_bwd_weights_items(p), 1,
                      [&](int64_t begin, int64_t end) { cpu::glu_mlp_bwd_weights(p, begin, end); });
  }
  abi::parallel_for(0, cpu::glu_mlp_bwd_results_items(p), 64,
                    [&](int64_t begin, int64_t end) { cpu::glu_mlp_bwd_results(p, begin, end); });
  return {std::move(dx), std::move(dw_in), std::move(dw_out)};
}

[[maybe_unused]] const abi::Library& registered = (new abi::Library("monarch_kernels", "CPU"))
                                                      ->impl<&fwd>("glu_mlp_fwd")
                                                      .impl<&bwd>("glu_mlp_bwd");

}  // namespace
}  // namespace monarch
