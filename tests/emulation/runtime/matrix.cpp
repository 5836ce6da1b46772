// ldmatrix, stmatrix and mma.sync with the fragment layouts of the PTX ISA.
#include <algorithm>
#include <array>
#include <bit>

#include "core/scalar.h"
#include "emulation/runtime/memory.h"
#include "emulation/runtime/state.h"

namespace emulation {
namespace {

constexpr unsigned kRows = 8, kRowBytes = 16;

struct MatrixInput {
  int count;
  bool transposed;
  uint32_t address;           // of the row that this lane names
  const uint32_t* registers;  // what it stores
};
struct MatrixOutput {
  uint32_t* registers;
  // Where each register came from: the read belongs to the lane that receives it.
  const uint16_t* sources[4][2];
};

// Rows of a matrix that share a bank are moved one after the other.
void count_wavefronts(const Meeting& meeting, int matrix) {
  unsigned rows_in_bank[kRows] = {}, most = 0;
  for (unsigned row = 0; row < kRows; ++row) {
    const auto* input = static_cast<const MatrixInput*>(meeting.inputs[kRows * matrix + row]);
    most = std::max(most, ++rows_in_bank[input->address / kRowBytes % kRows]);
  }
  ++statistics.matrices;
  statistics.wavefronts += most;
}

// Element `half` (0 or 1) of a lane's register of one matrix.
uint16_t* element(const Meeting& meeting, int matrix, unsigned lane, int half) {
  const bool transposed = static_cast<const MatrixInput*>(meeting.inputs[0])->transposed;
  unsigned row = lane / 4, column = 2 * (lane % 4) + half;
  if (transposed) std::swap(row, column);
  const auto* input = static_cast<const MatrixInput*>(meeting.inputs[kRows * matrix + row]);
  return reinterpret_cast<uint16_t*>(shared_pointer(input->address)) + column;
}

void perform_load(Meeting& meeting) {
  const int count = static_cast<const MatrixInput*>(meeting.inputs[0])->count;
  for (int matrix = 0; matrix < count; ++matrix) {
    count_wavefronts(meeting, matrix);
    for (unsigned lane = 0; lane < kLanes; ++lane) {
      auto& output = *static_cast<MatrixOutput*>(meeting.outputs[lane]);
      const uint16_t* low = element(meeting, matrix, lane, 0);
      const uint16_t* high = element(meeting, matrix, lane, 1);
      output.registers[matrix] = *low | uint32_t{*high} << 16;
      output.sources[matrix][0] = low;
      output.sources[matrix][1] = high;
    }
  }
}

void perform_store(Meeting& meeting) {
  const int count = static_cast<const MatrixInput*>(meeting.inputs[0])->count;
  for (int matrix = 0; matrix < count; ++matrix) {
    count_wavefronts(meeting, matrix);
    for (unsigned lane = 0; lane < kLanes; ++lane) {
      const auto* input = static_cast<const MatrixInput*>(meeting.inputs[lane]);
      for (int half = 0; half < 2; ++half)
        *element(meeting, matrix, lane, half) =
            static_cast<uint16_t>(input->registers[matrix] >> (16 * half));
    }
  }
}

// The row that this lane names, if its address counts; before the lanes meet, so that the finding
// is of the lane that is wrong.
void check_row(const char* what, int count, uint32_t address, Site site) {
  if (current->lane >= kRows * count) return;
  if (address % kRowBytes != 0)
    fail(Kind::kMisaligned, site, "%s: row address %u is not a multiple of 16", what, address);
  check_shared_bounds(address, kRowBytes, site);
}

}  // namespace

void load_matrix(int count, bool transposed, uint32_t* matrices, uint32_t address,
                 Location location) {
  const Site site = site_of(location);
  const char* what = transposed ? "load_matrix_transposed" : "load_matrix";
  check_row(what, count, address, site);
  const MatrixInput input{count, transposed, address, nullptr};
  MatrixOutput output{matrices, {}};
  meet(what, ~0u, true, &input, &output, perform_load, site);
  if (!checked) return;
  for (int matrix = 0; matrix < count; ++matrix) {
    for (const uint16_t* source : output.sources[matrix])
      check(source, sizeof *source, {Access::kRead, site});
  }
}

void store_matrix(int count, bool transposed, const uint32_t* matrices, uint32_t address,
                  Location location) {
  const Site site = site_of(location);
  const char* what = transposed ? "store_matrix_transposed" : "store_matrix";
  check_row(what, count, address, site);
  if (current->lane < kRows * count)
    check(shared_pointer(address), kRowBytes, {Access::kWrite, site});
  const MatrixInput input{count, transposed, address, matrices};
  meet(what, ~0u, true, &input, nullptr, perform_store, site);
}

namespace {

struct ProductInput {
  Product kind;
  const uint32_t *a, *b;
  float* d;
};
using Fragment = std::array<float, 2>;  // the two numbers of a register, or one and 0

const auto float16_values = [] {
  std::array<float, 65536> values;
  for (unsigned bits = 0; bits < values.size(); ++bits)
    values[bits] = monarch::to_float(monarch::Float16{static_cast<uint16_t>(bits)});
  return values;
}();

inline Fragment unpack(Product kind, uint32_t bits) {
  switch (kind) {
    case Product::kFloat16:
      return {float16_values[bits & 0xffffu], float16_values[bits >> 16]};
    case Product::kBFloat16:
      return {std::bit_cast<float>(bits << 16), std::bit_cast<float>(bits & 0xffff0000u)};
    case Product::kTFloat32:
      return {std::bit_cast<float>(bits & 0xffffe000u), 0.0f};  // the low 13 bits are not read
  }
  return {};
}

struct Operands {
  float a[16][16], b[16][8], d[16][8];
};

// Register i of A covers rows r + 8 (i % 2) and the columns of half i / 2; of B, the rows of half
// i.
void gather(const ProductInput& input, unsigned lane, Operands& operands) {
  const unsigned r = lane / 4, c = lane % 4;
  const bool pairs = input.kind != Product::kTFloat32;
  const unsigned width = pairs ? 2 : 1, half = 4 * width;
  for (unsigned i = 0; i < 4; ++i) {
    const Fragment values = unpack(input.kind, input.a[i]);
    for (unsigned j = 0; j < width; ++j)
      operands.a[r + 8 * (i % 2)][half * (i / 2) + width * c + j] = values[j];
    operands.d[r + 8 * (i / 2)][2 * c + i % 2] = input.d[i];
  }
  for (unsigned i = 0; i < 2; ++i) {
    const Fragment values = unpack(input.kind, input.b[i]);
    for (unsigned j = 0; j < width; ++j) operands.b[half * i + width * c + j][r] = values[j];
  }
}

void perform_product(Meeting& meeting) {
  ++statistics.products;
  Operands operands;
  for (unsigned lane = 0; lane < kLanes; ++lane)
    gather(*static_cast<const ProductInput*>(meeting.inputs[lane]), lane, operands);
  const Product kind = static_cast<const ProductInput*>(meeting.inputs[0])->kind;
  const unsigned depth = kind == Product::kTFloat32 ? 8 : 16;
  for (unsigned row = 0; row < 16; ++row) {
    for (unsigned k = 0; k < depth; ++k) {
      for (unsigned column = 0; column < 8; ++column)
        operands.d[row][column] += operands.a[row][k] * operands.b[k][column];
    }
  }
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    float* d = static_cast<const ProductInput*>(meeting.inputs[lane])->d;
    for (unsigned i = 0; i < 4; ++i)
      d[i] = operands.d[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2];
  }
}

}  // namespace

void multiply_accumulate(Product kind, float* d, const uint32_t* a, const uint32_t* b,
                         Location location) {
  constexpr const char* kNames[] = {"multiply_accumulate_f16", "multiply_accumulate_bf16",
                                    "multiply_accumulate_tf32"};
  const ProductInput input{kind, a, b, d};
  meet(kNames[static_cast<int>(kind)], ~0u, true, &input, nullptr, perform_product,
       site_of(location));
}

}  // namespace emulation
