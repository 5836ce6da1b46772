// torch operators of implicit_filter on the CPU. Schemas and the meaning of the arguments:
// monarch_kernels/implicit_filter.py, which validates for its users; what is checked here is what
// keeps the kernels inside their arrays.
#include "core/implicit_filter.h"

#include <array>

#include "core/block_diagonal.h"
#include "core/fft_conv.h"
#include "torch/operands.h"

namespace monarch {
namespace {

constexpr const char* kOp = "implicit_filter";

// The tensors of a call, kept alive and, where need be, copied.
class Operands {
 public:
  Operands(const Tensor& z, const Tensor& w_in, const Tensor& b_in, const Tensor& w_hidden,
           const Tensor& b_hidden, const Tensor& w_out, const Tensor& freq, const Tensor& deltas,
           const Tensor& t) {
    MONARCH_CHECK(z.is_cpu(), kOp, ": expected CPU tensors");
    MONARCH_CHECK(z.dim() == 3 && w_in.dim() == 3 && w_hidden.dim() == 4 && w_out.dim() == 3, kOp,
                  ": z, w_in and w_out must have three dimensions, w_hidden four");
    p.filters = z.size(0);
    p.length = z.size(1);
    p.features = z.size(2);
    p.order = w_in.size(1);
    p.hidden = w_hidden.size(1);
    p.channels = w_out.size(1);
    MONARCH_CHECK(p.length >= 1 && p.features >= 1 && p.order >= 1 && p.channels >= 1, kOp,
                  ": L, E, O and H must be at least 1");
    const int64_t F = p.filters, O = p.order, n = p.hidden;
    p.z = checked(z, z, {F, p.length, p.features}, "z");
    p.z_filter_stride = z.stride(0);
    p.z_position_stride = z.stride(1);
    p.z_feature_stride = z.stride(2);
    p.t = checked(t, z, {p.length}, "t");
    p.t_stride = t.stride(0);
    p.w_in = contiguous(w_in, z, {F, O, p.features}, "w_in");
    p.b_in = contiguous(b_in, z, {F, O}, "b_in");
    p.w_hidden = contiguous(w_hidden, z, {F, n, O, O}, "w_hidden");
    p.b_hidden = contiguous(b_hidden, z, {F, n, O}, "b_hidden");
    p.w_out = contiguous(w_out, z, {F, p.channels, O}, "w_out");
    p.freq = contiguous(freq, z, {F, O}, "freq");
    p.deltas = contiguous(deltas, z, {F, p.channels}, "deltas");
  }

  // Multiply-adds of one position of a filter.
  double products() const {
    const auto O = static_cast<double>(p.order);
    const double others = static_cast<double>(p.features + p.channels) + 20;
    return O * (others + O * static_cast<double>(p.hidden));
  }

  ImplicitFilterParams p;

  template <size_t N>
  static const float* checked(const Tensor& t, const Tensor& like, const int64_t (&sizes)[N],
                              const char* name) {
    MONARCH_CHECK(t.dim() == static_cast<int64_t>(N) && std::equal(sizes, sizes + N, t.sizes()) &&
                      t.dtype() == abi::DType::Float32,
                  kOp, ": ", name, " must be float32 and have the shape that goes with the others");
    check_device(kOp, t, like, name);
    return t.data<const float>();
  }

 private:
  template <size_t N>
  const float* contiguous(const Tensor& t, const Tensor& like, const int64_t (&sizes)[N],
                          const char* name) {
    checked(t, like, sizes, name);
    kept_[count_] = t.contiguous();
    return kept_[count_++].template data<const float>();
  }

  std::array<Tensor, 7> kept_;
  size_t count_ = 0;
};

// `count` matrices (rows, columns), contiguous, with rows and columns exchanged.
Tensor exchanged(const Tensor& like, const float* from, int64_t count, int64_t rows,
                 int64_t columns) {
  Tensor to = like.new_empty({count * rows * columns}, abi::DType::Float32);
  if (to.numel() == 0) return to;
  const cpu::ConvertParams p{from, Scalar::kFloat32, count, rows, columns, true, false, to.data()};
  abi::parallel_for(0, cpu::convert_items(p), 64,
                    [&](int64_t begin, int64_t end) { cpu::convert(p, begin, end); });
  return to;
}

Tensor fwd(const Tensor& z, const Tensor& w_in, const Tensor& b_in, const Tensor& w_hidden,
           const Tensor& b_hidden, const Tensor& w_out, const Tensor& freq, const Tensor& deltas,
           const Tensor& t) {
  Operands given(z, w_in, b_in, w_hidden, b_hidden, w_out, freq, deltas, t);
  ImplicitFilterParams& p = given.p;
  Tensor k = z.new_empty({p.filters, p.channels, p.length});
  if (p.filters == 0) return k;
  p.k = k.data<float>();
  cpu::advise_huge_pages(p.k, bytes_of(k));
  p.tile = cpu::implicit_filter_tile(p);
  constexpr double kWorth = 100e3;  // products that a thread is worth waking for
  const double each = given.products() * static_cast<double>(p.tile);
  const auto grain = std::max<int64_t>(1, static_cast<int64_t>(kWorth / each));
  abi::parallel_for(0, cpu::implicit_filter_fwd_items(p), grain,
                    [&](int64_t begin, int64_t end) { cpu::implicit_filter_fwd(p, begin, end); });
  return k;
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// A result that nobody wants is an empty tensor.
Gradients bwd(const Tensor& dk, const Tensor& z, const Tensor& w_in, const Tensor& b_in,
              const Tensor& w_hidden, const Tensor& b_hidden, const Tensor& w_out,
              const Tensor& freq, const Tensor& deltas, const Tensor& t, bool need_z,
              bool need_weights, bool need_deltas) {
  const Operands given(z, w_in, b_in, w_hidden, b_hidden, w_out, freq, deltas, t);
  ImplicitFilterBackwardParams b;
  ImplicitFilterParams& p = b.forward;
  p = given.p;
  Operands::checked(dk, z, {p.filters, p.channels, p.length}, "dk");
  const Tensor gradient = dk.stride(2) == 1 || p.length == 1 ? dk.alias() : dk.contiguous();
  b.dk = gradient.data<const float>();
  b.dk_filter_stride = gradient.stride(0);
  b.dk_channel_stride = gradient.stride(1);

  const auto result = [&](const Tensor& like, bool wanted, float*& data) {
    std::vector<int64_t> sizes = {0};
    if (wanted) sizes.assign(like.sizes(), like.sizes() + like.dim());
    Tensor made = z.new_empty(sizes);
    data = wanted ? made.data<float>() : nullptr;
    return made;
  };
  Gradients results{result(z, need_z, b.dz),
                    result(w_in, need_weights, b.dw_in),
                    result(b_in, need_weights, b.db_in),
                    result(w_hidden, need_weights, b.dw_hidden),
                    result(b_hidden, need_weights, b.db_hidden),
                    result(w_out, need_weights, b.dw_out),
                    result(freq, need_weights, b.dfreq),
                    result(deltas, need_deltas, b.ddeltas)};
  b.need_weights = need_weights;
  if (p.filters == 0 || !(need_z || need_weights || need_deltas)) return results;

  const Tensor out = exchanged(z, p.w_out, p.filters, p.channels, p.order);
  const Tensor hidden = exchanged(z, p.w_hidden, p.filters * p.hidden, p.order, p.order);
  const Tensor in = exchanged(z, p.w_in, p.filters, p.order, p.features);
  b.w_out_transposed = out.data<const float>();
  b.w_hidden_transposed = hidden.data<const float>();
  b.w_in_transposed = in.data<const float>();
  p.tile = cpu::implicit_filter_bwd_tile(p);
  b.parts = cpu::implicit_filter_parts(p);
  const Tensor sums = z.new_empty({p.filters * b.parts * cpu::implicit_filter_sum_floats(b)});
  b.sums = sums.data<float>();
  cpu::advise_huge_pages(b.sums, bytes_of(sums));
  abi::parallel_for(0, cpu::implicit_filter_bwd_items(b), 1,
                    [&](int64_t begin, int64_t end) { cpu::implicit_filter_bwd(b, begin, end); });
  abi::parallel_for(0, p.filters, 1, [&](int64_t begin, int64_t end) {
    cpu::implicit_filter_bwd_results(b, begin, end);
  });
  return results;
}

[[maybe_unused]] const abi::Library& registered = (new abi::Library("monarch_kernels", "CPU"))
                                                      ->impl<&fwd>("implicit_filter_fwd")
                                                      .impl<&bwd>("implicit_filter_bwd");

}  // namespace
}  // namespace monarch
