// Which products run, and what they share. Compiled with baseline flags only.
#include "cpu/products.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>

#include "cpu/dispatch.h"

namespace monarch::cpu {
namespace {

bool cpu_multiplies_bfloat16() {
#if defined(MONARCH_HAVE_X86)
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512bf16") != 0;
#else
  return false;
#endif
}

bool wanted_at_first() {
  const char* text = std::getenv("MONARCH_KERNELS_CPU_BF16");
  return text == nullptr || std::strcmp(text, "0") != 0;
}

std::atomic<bool>& wanted() {
  static std::atomic<bool> value{wanted_at_first()};
  return value;
}

// What one thread keeps: as much as its largest call needed.
struct Scratch {
  float* data = nullptr;
  int64_t floats = 0;
  ~Scratch() { std::free(data); }
};

// Half of a second-level cache of 1 MiB, in floats: the other half is for the matrices.
constexpr int64_t kTileFloats = int64_t{144} << 10;

}  // namespace

const ProductTable& products() {
#if defined(MONARCH_HAVE_X86)
  const char* name = isa();
  if (std::strcmp(name, "avx512") == 0) {
    static const bool has_bfloat16 = cpu_multiplies_bfloat16();
    return has_bfloat16 && wanted().load() ? kAvx512Bf16Products : kAvx512Products;
  }
  if (std::strcmp(name, "avx2") == 0) return kAvx2Products;
#endif
  return kGenericProducts;
}

bool bf16_instructions() { return products().pairs; }
void use_bf16_instructions(bool on) { wanted().store(on); }
bool bfloat16_products() { return products().pairs; }

float* scratch(int64_t floats) {
  thread_local Scratch own;
  if (floats > own.floats) {
    std::free(own.data);
    own = Scratch();
    const size_t bytes = (static_cast<size_t>(floats) * sizeof(float) + 4095) / 4096 * 4096;
    own.data = static_cast<float*>(std::aligned_alloc(4096, bytes));
    if (own.data == nullptr) throw std::bad_alloc();
    own.floats = static_cast<int64_t>(bytes / sizeof(float));
  }
  return own.data;
}

int64_t tile_rows(int64_t rows, int64_t floats_per_row, int64_t threads) {
  const int64_t unit = products().tokens;
  const int64_t most = std::max(kTileFloats / floats_per_row / unit, int64_t{1}) * unit;
  const int64_t tiles = ceil_div(ceil_div(std::max(rows, int64_t{1}), most), threads) * threads;
  return ceil_div(ceil_div(std::max(rows, int64_t{1}), tiles), unit) * unit;
}

int64_t convert_items(const ConvertParams& p) {
  return p.count * (p.transposed ? p.columns : p.rows);
}
void convert(const ConvertParams& p, int64_t begin, int64_t end) {
  products().convert(p, begin, end);
}

}  // namespace monarch::cpu
