// Built by test_build.py, never shipped.
//
// Our declarations beside the installed torch's own: a signature that differs is a compile error.
// The operators below then take every type that stable_abi.h converts through the dispatcher.
#define USE_CUDA  // for the declaration of aoti_torch_get_current_cuda_stream
#include <torch/csrc/stable/c/shim.h>

#include "../csrc/torch/stable_abi.h"

namespace {

using namespace monarch::abi;

// scalars(int i, float x, bool flag, int? maybe) -> (int, float, bool, int?)
std::tuple<int64_t, double, bool, std::optional<int64_t>> scalars(int64_t i, double x, bool flag,
                                                                  std::optional<int64_t> maybe) {
  return {i + 1, 2 * x, !flag, maybe};
}

// describe(Tensor x) -> (int, int, int, bool, str): dim, last size, first stride, contiguous, dtype
std::tuple<int64_t, int64_t, int64_t, bool, std::string> describe(const Tensor& x) {
  return {x.dim(), x.size(-1), x.stride(0), x.is_contiguous(), dtype_name(x.dtype())};
}

// negate(Tensor x, Tensor? y) -> (Tensor, Tensor?): float32 in any layout
Tensor negated(const Tensor& x) {
  MONARCH_CHECK(x.is_cpu() && x.dtype() == DType::Float32, "negate: x is ", dtype_name(x.dtype()),
                ", expected float32");
  const Tensor dense = x.contiguous();
  Tensor result = x.new_empty(std::vector<int64_t>(x.sizes(), x.sizes() + x.dim()));
  const float* in = dense.data<float>();
  float* out = result.data<float>();
  parallel_for(0, dense.numel(), 16, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) out[i] = -in[i];
  });
  return result;
}
std::tuple<Tensor, std::optional<Tensor>> negate(const Tensor& x, const std::optional<Tensor>& y) {
  std::optional<Tensor> second;
  if (y) second = negated(*y);
  return {negated(x), std::move(second)};
}

// empty_as_double(Tensor x) -> Tensor
Tensor empty_as_double(const Tensor& x) { return x.new_empty({2, 0, 3}, DType::Float64); }

// raise_in_parallel(int threads) -> ()
void raise_in_parallel(int64_t items) {
  parallel_for(0, items, 1, [](int64_t, int64_t) { fail("raised in a body"); });
}

// threads() -> int
int64_t threads() { return num_threads(); }

const Library& cpu = (new Library("monarch_abi_test", "CPU"))
                         ->impl<&describe>("describe")
                         .impl<&negate>("negate")
                         .impl<&empty_as_double>("empty_as_double");
const Library& any = (new Library("monarch_abi_test", "CompositeExplicitAutograd"))
                         ->impl<&scalars>("scalars")
                         .impl<&raise_in_parallel>("raise_in_parallel")
                         .impl<&threads>("threads");

}  // namespace
