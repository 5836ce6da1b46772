// monarch_kernels._host: what Python asks of the CPU library without torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "core/fft_conv.h"
#include "core/fft_conv_dispatch.h"
#include "core/plan.h"
#include "cpu/dispatch.h"
#include "cpu/products.h"

namespace py = pybind11;

namespace {

constexpr std::array kNames = {"auto", "generic", "avx2", "avx512"};

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  std::istringstream list(monarch::cpu::available_isas());
  for (std::string name; std::getline(list, name, ',');) names.push_back(name);
  return names;
}

void set_isa(const std::string& name) {
  if (std::find(kNames.begin(), kNames.end(), name) == kNames.end()) {
    throw py::value_error("unknown instruction set '" + name +
                          "'; known are auto, generic, avx2 and avx512");
  }
  if (!monarch::cpu::select_isa(name.c_str())) {
    throw std::runtime_error("this CPU or build does not support '" + name +
                             "'; available: " + monarch::cpu::available_isas());
  }
}

int64_t transform_size(int64_t length) {
  const int64_t size = monarch::transform_size(length);
  if (size == 0) {
    throw py::value_error("length must be from 1 to " + std::to_string(monarch::kMaxLength) +
                          ", got " + std::to_string(length));
  }
  return size;
}

using Range = std::tuple<int64_t, int64_t, int64_t>;

monarch::LengthRange range(const Range& r) {
  return {std::get<0>(r), std::get<1>(r), std::get<2>(r)};
}

monarch::Precision precision_of(int number) {
  if (number < 0 || number > 2) {
    throw py::value_error("precision must be 0, 1 or 2, got " + std::to_string(number));
  }
  return static_cast<monarch::Precision>(number);
}

}  // namespace

PYBIND11_MODULE(_host, module) {
  module.doc() = "Instruction set and plans of the CPU kernels.";
  module.def(
      "isa", [] { return std::string(monarch::cpu::isa()); },
      "Return the name of the instruction set in use.");
  module.def("available_isas", &available_isas,
             "Return the instruction sets that this CPU and build support, the best one last.");
  module.def("set_isa", &set_isa, py::arg("name"),
             "Use instruction set `name` (or \"auto\") from now on, in the whole process.\n\n"
             "Raises ValueError for an unknown name, RuntimeError for an unsupported one.");
  module.def("bf16_instructions", &monarch::cpu::bf16_instructions,
             "Return whether products of bfloat16 use the CPU's instructions for them.");
  module.def("use_bf16_instructions", &monarch::cpu::use_bf16_instructions, py::arg("wanted"),
             "Use them from now on, where the CPU and the instruction set in use have them.");
  module.def("transform_size", &transform_size, py::arg("length"),
             "Return the length of the transform that the kernels use for `length` points.\n\n"
             "Raises ValueError for a length that is out of range.");
  module.def(
      "spectrum_floats",
      [](int64_t channels, int64_t length, int64_t shared_bytes, int precision) {
        transform_size(length);  // throws for a bad length
        if (shared_bytes == 0) return monarch::cpu::spectrum_floats(channels, length);
        return monarch::cuda_filter_floats(channels, length, precision_of(precision), shared_bytes);
      },
      py::arg("channels"), py::arg("length"), py::arg("shared_bytes") = 0, py::arg("precision") = 0,
      "Return the size of the spectrum of a (channels, length) filter: that of the CPU kernels in\n"
      "use, or of the CUDA kernels on a GPU that gives a block so much shared memory.");
  module.def(
      "cuda_kernel_kind",
      [](int64_t length, int bits, int precision, int64_t shared_bytes,
         const std::optional<std::array<Range, 3>>& compiled) {
        transform_size(length);
        const auto scalar = bits == 32 ? monarch::Scalar::kFloat32 : monarch::Scalar::kBFloat16;
        monarch::TensorCoreKernels kernels = monarch::kTensorCoreKernels;
        if (compiled)
          kernels = {range((*compiled)[0]), range((*compiled)[1]), range((*compiled)[2])};
        const auto kind =
            kernel_kind(length, scalar, precision_of(precision), shared_bytes, kernels);
        constexpr std::array kKinds = {"exact", "toeplitz", "chain"};
        return std::string(kKinds.at(static_cast<size_t>(kind)));
      },
      py::arg("length"), py::arg("bits"), py::arg("precision"), py::arg("shared_bytes"),
      py::arg("compiled") = py::none(),
      "Return which CUDA kernels run for activations of `bits` bits: \"exact\", \"toeplitz\" or\n"
      "\"chain\". `precision` is that of the registered operators: 0 exact, 1 high, 2 fast.\n\n"
      "`compiled` asks as if there were other kernels: (shortest, longest, shared bytes) of\n"
      "toeplitz, and of chain for fast and for high.");
}
