// Registers in, registers out: how matrices lie in the registers of a warp.
#include "cuda/device.cuh"

namespace {

namespace device = monarch::cuda::device;

enum Kind { kFloat16, kBFloat16, kTFloat32 };

// a (32, 4), b (32, 2), d (32, 4): a row for each lane. One warp.
__global__ void product_kernel(int kind, const uint32_t* __restrict__ a,
                               const uint32_t* __restrict__ b, float* __restrict__ d) {
  const int lane = threadIdx.x;
  uint32_t a_registers[4], b_registers[2];
  float d_registers[4];
  for (int i = 0; i < 4; ++i) a_registers[i] = a[4 * lane + i];
  for (int i = 0; i < 2; ++i) b_registers[i] = b[2 * lane + i];
  for (int i = 0; i < 4; ++i) d_registers[i] = d[4 * lane + i];
  if (kind == kFloat16) {
    device::multiply_accumulate_f16(d_registers, a_registers, b_registers);
  } else if (kind == kBFloat16) {
    device::multiply_accumulate_bf16(d_registers, a_registers, b_registers);
  } else {
    device::multiply_accumulate_tf32(d_registers, a_registers, b_registers);
  }
  for (int i = 0; i < 4; ++i) d[4 * lane + i] = d_registers[i];
}

// Lane i names row rows[i] of x (32, 8); out (32, 4) has what it receives.
__global__ void load_kernel(int count, int transposed, const uint4* __restrict__ x,
                            const int* __restrict__ rows, uint32_t* __restrict__ out) {
  MONARCH_STATIC_SHARED(uint4, tile, 32);
  const int lane = threadIdx.x;
  tile[lane] = x[lane];
  device::sync_warp();
  const uint32_t address = device::shared_address(tile + rows[lane]);
  uint32_t one = 0, two[2] = {}, four[4] = {};
  if (count == 1)
    transposed ? device::load_matrix_x1_transposed(one, address)
               : device::load_matrix_x1(one, address);
  if (count == 2)
    transposed ? device::load_matrix_x2_transposed(two, address)
               : device::load_matrix_x2(two, address);
  if (count == 4)
    transposed ? device::load_matrix_x4_transposed(four, address)
               : device::load_matrix_x4(four, address);
  out[4 * lane] = one + two[0] + four[0];
  out[4 * lane + 1] = two[1] + four[1];
  out[4 * lane + 2] = four[2];
  out[4 * lane + 3] = four[3];
}

// The other way round: registers (32, 4) into rows of out (32, 8).
__global__ void store_kernel(int transposed, const uint32_t* __restrict__ registers,
                             const int* __restrict__ rows, uint4* __restrict__ out) {
  MONARCH_STATIC_SHARED(uint4, tile, 32);
  const int lane = threadIdx.x;
  uint32_t four[4];
  for (int i = 0; i < 4; ++i) four[i] = registers[4 * lane + i];
  const uint32_t address = device::shared_address(tile + rows[lane]);
  transposed ? device::store_matrix_x4_transposed(address, four)
             : device::store_matrix_x4(address, four);
  device::sync_warp();
  out[lane] = tile[lane];
}

}  // namespace

extern "C" {

const char* product(int kind, const uint32_t* a, const uint32_t* b, float* d) {
  return device::launch(product_kernel, 1, 32, 0, nullptr, kind, a, b, d);
}
const char* load(int count, int transposed, const uint4* x, const int* rows, uint32_t* out) {
  return device::launch(load_kernel, 1, 32, 0, nullptr, count, transposed, x, rows, out);
}
const char* store(int transposed, const uint32_t* registers, const int* rows, uint4* out) {
  return device::launch(store_kernel, 1, 32, 0, nullptr, transposed, registers, rows, out);
}

}  // extern "C"
