// torch operators of short_conv on the CPU.
#include "torch/short_conv_operators.h"

#include "torch/cpu_device.h"

namespace monarch {
namespace {

class Cpu : public CpuDevice {
 public:
  using CpuDevice::CpuDevice;

  void short_conv_fwd(const ShortConvParams& p) const {
    const int64_t items = cpu::short_conv_fwd_items(p);
    abi::parallel_for(0, items, grain(p, items),
                      [&](int64_t begin, int64_t end) { cpu::short_conv_fwd(p, begin, end); });
  }
  void short_conv_bwd(const ShortConvBackwardParams& p) const {
    const int64_t items = cpu::short_conv_bwd_items(p);
    abi::parallel_for(0, items, grain(p, items),
                      [&](int64_t begin, int64_t end) { cpu::short_conv_bwd(p, begin, end); });
  }
};

[[maybe_unused]] const bool registered = (ShortConvOperators<Cpu>::register_for("CPU"), true);

}  // namespace
}  // namespace monarch
