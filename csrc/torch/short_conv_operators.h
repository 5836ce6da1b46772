// The operators of short_conv, once for all devices: checks, allocation, parameters. Schemas and
// the meaning of the arguments: monarch_kernels/short_conv.py.
//
// A `Device` is made for each call and has
//   Device(const Tensor& like, const char* operation)    throws if it has no kernels for the tensor
//   void fresh(void*, bytes)                             is told of each large result
//   short_conv_fwd, short_conv_bwd(params)               run the kernels
// all const.
#pragma once

#include "core/short_conv.h"
#include "torch/operands.h"
#include "torch/stable_abi.h"

namespace monarch {

// (B, H, L) with rows, or (B, L, H) with samples, that are contiguous; copied where they are not.
class ShortConvTensor {
 public:
  explicit ShortConvTensor(const Tensor& t) {
    const bool in_place = t.stride(2) == 1 || t.size(2) == 1;
    tensor_ = in_place ? t.alias() : t.contiguous();
    array_ = {tensor_.data(), tensor_.stride(0), tensor_.stride(1)};
  }
  const ShortConvArray& array() const { return array_; }

 private:
  Tensor tensor_;
  ShortConvArray array_;
};

template <class Device>
class ShortConvOperators {
 public:
  static Tensor fwd(const Tensor& x, const Tensor& s, const MaybeTensor& s_bias, bool causal,
                    bool silu, bool channels_last) {
    const Device device(x, "monarch_kernels::short_conv_fwd");
    ShortConvParams p;
    set_params(p, x, s, s_bias, causal, silu, channels_last);
    const ShortConvTensor in(x);
    p.x = in.array();
    Tensor y = x.new_empty({x.size(0), x.size(1), x.size(2)});
    if (y.numel() == 0) return y;
    p.y = y.data();
    device.fresh(p.y, bytes_of(y));
    device.short_conv_fwd(p);
    return y;
  }

  // A result that nobody wants is an empty tensor.
  static std::tuple<Tensor, Tensor, Tensor> bwd(const Tensor& dy, const Tensor& x, const Tensor& s,
                                                const MaybeTensor& s_bias, bool causal, bool silu,
                                                bool channels_last, bool need_x, bool need_s) {
    const Device device(x, "monarch_kernels::short_conv_bwd");
    ShortConvBackwardParams p;
    set_params(p, x, s, s_bias, causal, silu, channels_last);
    MONARCH_CHECK(dy.dim() == 3 && std::equal(dy.sizes(), dy.sizes() + 3, x.sizes()) &&
                      dy.dtype() == x.dtype(),
                  kOp, ": dy must have the shape and dtype of x");
    check_device(kOp, dy, x, "dy");
    const ShortConvTensor in(x), gradient(dy);
    p.x = in.array();
    p.dy = gradient.array();
    Tensor dx = need_x ? x.new_empty({x.size(0), x.size(1), x.size(2)}) : x.new_empty({int64_t{0}});
    p.dx = dx.numel() > 0 ? dx.data() : nullptr;
    if (p.dx) device.fresh(p.dx, bytes_of(dx));
    Tensor ds = filter_gradient(x, s.alias(), need_s, p.ds);
    Tensor ds_bias = filter_gradient(x, s_bias, need_s, p.ds_bias);
    // Without a batch the filter's gradient is still written: zeros.
    if (p.channels > 0) device.short_conv_bwd(p);
    return {std::move(dx), std::move(ds), std::move(ds_bias)};
  }

  // Implements the two operators for a dispatch key.
  static void register_for(const char* key) {
    auto* library = new abi::Library("monarch_kernels", key);
    library->template impl<&fwd>("short_conv_fwd");
    library->template impl<&bwd>("short_conv_bwd");
  }

 private:
  static constexpr const char* kOp = "short_conv";

  static void set_params(ShortConvParams& p, const Tensor& x, const Tensor& s,
                         const MaybeTensor& s_bias, bool causal, bool silu, bool channels_last) {
    MONARCH_CHECK(x.dim() == 3, kOp, ": x must have 3 dimensions");
    p.batch = x.size(0);
    p.channels = x.size(channels_last ? 2 : 1);
    p.length = x.size(channels_last ? 1 : 2);
    p.scalar = scalar_of(kOp, x);
    p.channels_last = channels_last;
    p.s = filter_data(kOp, s.alias(), 2, x, p.channels, "s");
    p.s_bias = filter_data(kOp, s_bias, 1, x, p.channels, "s_bias");
    p.taps = s.size(1);
    MONARCH_CHECK(p.taps >= 1 && p.taps <= kMaxLength && p.length <= kMaxLength, kOp, ": s has ",
                  p.taps, " taps, x ", p.length, " samples: at least 1 tap, at most ", kMaxLength);
    p.left = causal ? p.taps - 1 : (p.taps - 1) / 2;
    p.silu = silu;
  }
};

}  // namespace monarch
