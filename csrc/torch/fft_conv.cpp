// torch operators of fft_conv on the CPU: checks, allocation, threads. Schemas and the meaning of
// the arguments: monarch_kernels/fft_conv.py, which validates for its users; what is checked here
// is what keeps the kernels inside their arrays.
#include "core/fft_conv.h"

#include <algorithm>
#include <array>

#include "core/plan.h"
#include "torch/stable_abi.h"

namespace monarch {
namespace {

using abi::DType;
using abi::Tensor;
using MaybeTensor = std::optional<Tensor>;

Scalar scalar_of(const Tensor& u) {
  switch (u.dtype()) {
    case DType::Float32:
      return Scalar::kFloat32;
    case DType::BFloat16:
      return Scalar::kBFloat16;
    case DType::Float16:
      return Scalar::kFloat16;
    default:
      abi::fail("fft_conv: u must be float32, bfloat16 or float16, got ",
                abi::dtype_name(u.dtype()));
  }
}

int64_t bytes_of(const Tensor& t) {
  return t.numel() * (t.dtype() == DType::Float32 ? int64_t{4} : int64_t{2});
}

// An activation: (B, H, L) of the dtype of u; kept alive and, where its rows are not contiguous,
// copied.
class Activation {
 public:
  Activation() = default;
  Activation(const Tensor& t, const Tensor& u, const char* name) {
    MONARCH_CHECK(t.dim() == 3 && u.dim() == 3, "fft_conv: ", name, " must have 3 dimensions");
    MONARCH_CHECK(std::equal(t.sizes(), t.sizes() + 3, u.sizes()) && t.dtype() == u.dtype(),
                  "fft_conv: ", name, " must have the shape and dtype of u");
    const bool rows = t.stride(2) == 1 || t.size(2) == 1;
    tensor_ = rows ? t.alias() : t.contiguous();
    rows_ = {tensor_.data(), tensor_.stride(0), tensor_.stride(1)};
  }
  Activation(const MaybeTensor& t, const Tensor& u, const char* name)
      : Activation(t ? Activation(*t, u, name) : Activation()) {}

  const Rows& rows() const { return rows_; }

 private:
  Tensor tensor_;
  Rows rows_;
};

const float* filter_data(const MaybeTensor& t, int64_t dims, int64_t channels, const char* name) {
  if (!t) return nullptr;
  MONARCH_CHECK(t->dim() == dims && t->size(0) == channels && t->dtype() == DType::Float32 &&
                    t->is_contiguous() && t->is_cpu(),
                "fft_conv: ", name, " must be a contiguous float32 CPU tensor with ", channels,
                " rows");
  return t->data<const float>();
}

// ---- The spectrum as a tensor: 16 floats that say what it is, then the numbers

constexpr int64_t kHeader = 16;  // keeps the numbers aligned to a cache line

std::array<float, 4> header(int64_t channels, int64_t length) {
  return {static_cast<float>(cpu::kernel_lanes()), static_cast<float>(channels),
          static_cast<float>(length), static_cast<float>(transform_size(length))};
}

Tensor make_spectrum(const Tensor& like, const MaybeTensor& k, const MaybeTensor& k_rev,
                     const MaybeTensor& skip, int64_t length, bool circular) {
  MONARCH_CHECK(length >= 1 && length <= kMaxLength, "fft_conv: length ", length,
                " is not in 1 .. ", kMaxLength);
  MONARCH_CHECK(k && k->dim() == 2, "fft_conv: k must have shape (H, taps)");
  FilterSpectrumParams p;
  p.channels = k->size(0);
  p.length = length;
  p.k = filter_data(k, 2, p.channels, "k");
  p.taps = k->size(1);
  p.k_rev = filter_data(k_rev, 2, p.channels, "k_rev");
  p.reverse_taps = k_rev ? k_rev->size(1) : 0;
  p.skip = filter_data(skip, 1, p.channels, "skip");
  p.circular = circular;
  MONARCH_CHECK(p.taps <= length && p.reverse_taps <= length,
                "fft_conv: a filter is longer than the sequence (", length, ")");
  MONARCH_CHECK(!(circular && k_rev), "fft_conv: k_rev has no meaning with circular=True");
  Tensor out = like.new_empty({cpu::spectrum_floats(p.channels, length) + kHeader}, DType::Float32);
  const auto head = header(p.channels, length);
  std::fill(std::copy(head.begin(), head.end(), out.data<float>()), out.data<float>() + kHeader,
            0.0f);
  p.spectrum = out.data<float>() + kHeader;
  cpu::advise_huge_pages(p.spectrum, out.numel() * 4);
  if (p.channels > 0) {
    abi::parallel_for(0, cpu::filter_spectrum_items(p), 1,
                      [&](int64_t begin, int64_t end) { cpu::filter_spectrum(p, begin, end); });
  }
  return out;
}

const float* spectrum_data(const Tensor& spectrum, const Tensor& u) {
  const int64_t channels = u.size(1), length = u.size(2);
  MONARCH_CHECK(spectrum.dim() == 1 && spectrum.is_contiguous() && spectrum.is_cpu() &&
                    spectrum.dtype() == DType::Float32 && spectrum.numel() >= kHeader,
                "fft_conv: spectrum is not one that filter_spectrum made");
  const float* data = spectrum.data<const float>();
  const auto expected = header(channels, length);
  MONARCH_CHECK(data[0] == expected[0],
                "fft_conv: the spectrum was made for another CPU instruction set: make it again");
  MONARCH_CHECK(std::equal(expected.begin(), expected.end(), data) &&
                    spectrum.numel() == cpu::spectrum_floats(channels, length) + kHeader,
                "fft_conv: the spectrum was made for ", data[1], " channels of length ", data[2],
                ", u has ", channels, " of length ", length);
  return data + kHeader;
}

// Enough rows for a thread to be worth waking.
template <class Params>
int64_t grain(const Params& p, int64_t items) {
  const int64_t samples = p.batch * p.channels * p.length;
  return std::max<int64_t>(1, 16384 * items / std::max<int64_t>(1, samples));
}

// ---- Operators

Tensor filter_spectrum(const Tensor& k, const MaybeTensor& k_rev, const MaybeTensor& skip,
                       int64_t length, bool circular) {
  return make_spectrum(k, k.alias(), k_rev, skip, length, circular);
}

struct Spectrum {
  Tensor tensor;
  const float* data;
};

Spectrum find_or_make(const Tensor& u, const MaybeTensor& k, const MaybeTensor& k_rev,
                      const MaybeTensor& skip, const MaybeTensor& spectrum, bool circular) {
  MONARCH_CHECK(u.dim() == 3 && u.is_cpu(), "fft_conv: u must be a CPU tensor of shape (B, H, L)");
  MONARCH_CHECK(k.has_value() != spectrum.has_value() && !(spectrum && (k_rev || skip)),
                "fft_conv: give either filters (k, k_rev, skip) or a spectrum");
  Tensor tensor =
      spectrum ? spectrum->alias() : make_spectrum(u, k, k_rev, skip, u.size(2), circular);
  MONARCH_CHECK(!k || k->size(0) == u.size(1), "fft_conv: k must have as many rows as u channels");
  const float* data = spectrum_data(tensor, u);
  return {std::move(tensor), data};
}

Tensor fft_conv_fwd(const Tensor& u, const MaybeTensor& k, const MaybeTensor& k_rev,
                    const MaybeTensor& skip, const MaybeTensor& spectrum,
                    const MaybeTensor& pregate, const MaybeTensor& postgate, bool circular) {
  const Spectrum made = find_or_make(u, k, k_rev, skip, spectrum, circular);
  const Activation in(u, u, "u"), pre(pregate, u, "pregate"), post(postgate, u, "postgate");
  FftConvParams p;
  p.batch = u.size(0);
  p.channels = u.size(1);
  p.length = u.size(2);
  p.scalar = scalar_of(u);
  p.u = in.rows();
  p.pregate = pre.rows();
  p.postgate = post.rows();
  p.spectrum = made.data;
  Tensor y = u.new_empty({p.batch, p.channels, p.length});
  if (y.numel() == 0) return y;
  p.y = y.data();
  cpu::advise_huge_pages(p.y, bytes_of(y));
  const int64_t items = cpu::fft_conv_fwd_items(p);
  abi::parallel_for(0, items, grain(p, items),
                    [&](int64_t begin, int64_t end) { cpu::fft_conv_fwd(p, begin, end); });
  return y;
}

// A result that nobody wants is an empty tensor.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> fft_conv_bwd(
    const Tensor& dy, const Tensor& u, const MaybeTensor& k, const MaybeTensor& k_rev,
    const MaybeTensor& skip, const MaybeTensor& spectrum, const MaybeTensor& pregate,
    const MaybeTensor& postgate, bool circular, bool need_u, bool need_filter, bool need_pregate,
    bool need_postgate) {
  const Spectrum made = find_or_make(u, k, k_rev, skip, spectrum, circular);
  const Activation out(dy, u, "dy"), in(u, u, "u");
  const Activation pre(pregate, u, "pregate"), post(postgate, u, "postgate");
  FftConvBackwardParams p;
  p.batch = u.size(0);
  p.channels = u.size(1);
  p.length = u.size(2);
  p.scalar = scalar_of(u);
  p.dy = out.rows();
  p.u = in.rows();
  p.pregate = pre.rows();
  p.postgate = post.rows();
  p.spectrum = made.data;
  p.circular = circular;

  const auto activation = [&](bool wanted, void*& data) {
    Tensor t = wanted ? u.new_empty({p.batch, p.channels, p.length}) : u.new_empty({int64_t{0}});
    data = t.numel() > 0 ? t.data() : nullptr;
    if (data) cpu::advise_huge_pages(data, bytes_of(t));
    return t;
  };
  const auto filter = [&](const MaybeTensor& like, float*& data) {
    const bool wanted = need_filter && like.has_value();
    Tensor t = u.new_empty({int64_t{0}}, DType::Float32);
    if (wanted && like->dim() == 1) t = u.new_empty({like->size(0)}, DType::Float32);
    if (wanted && like->dim() == 2) t = u.new_empty({like->size(0), like->size(1)}, DType::Float32);
    data = t.numel() > 0 ? t.data<float>() : nullptr;
    return t;
  };
  Tensor du = activation(need_u, p.du);
  Tensor dpregate = activation(need_pregate && pregate, p.dpregate);
  Tensor dpostgate = activation(need_postgate && postgate, p.dpostgate);
  Tensor dk = filter(k, p.dk), dk_rev = filter(k_rev, p.dk_rev), dskip = filter(skip, p.dskip);
  p.taps = k ? k->size(1) : 0;
  p.reverse_taps = k_rev ? k_rev->size(1) : 0;
  // Without a batch the filter's gradient is still written: zeros.
  if (p.channels > 0) {
    abi::parallel_for(0, cpu::fft_conv_bwd_items(p), 1,
                      [&](int64_t begin, int64_t end) { cpu::fft_conv_bwd(p, begin, end); });
  }
  return {std::move(du),    std::move(dk),       std::move(dk_rev),
          std::move(dskip), std::move(dpregate), std::move(dpostgate)};
}

const struct Registration {
  Registration() {
    static abi::Library cpu("monarch_kernels", "CPU");
    cpu.impl<&filter_spectrum>("filter_spectrum");
    cpu.impl<&fft_conv_fwd>("fft_conv_fwd");
    cpu.impl<&fft_conv_bwd>("fft_conv_bwd");
  }
} registration;

}  // namespace
}  // namespace monarch
