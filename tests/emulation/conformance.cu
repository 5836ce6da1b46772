// What each wrapper of device.cuh does to given registers and memory: one kernel for each, run by
// conformance.py on a GPU (nvcc) to record it and in the emulator (g++) to be held to the record.
//
// An operation reads `in`, kIn words of its own thread in global memory, and gives kOut words. A
// block is one warp.
#include <cstdint>
#include <cstring>

#include "cuda/device.cuh"

namespace {

namespace device = monarch::cuda::device;
using monarch::BFloat16;
using monarch::Float16;

template <class Operation>
__global__ void __launch_bounds__(32) apply(const uint32_t* in, uint32_t* out) {
  const size_t thread = size_t{blockIdx.x} * 32 + threadIdx.x;
  uint32_t results[Operation::kOut];
  Operation::run(in + thread * Operation::kIn, results);
  for (int i = 0; i < Operation::kOut; ++i) out[thread * Operation::kOut + i] = results[i];
}

MONARCH_DEVICE float as_float(uint32_t bits) { return device::bits_as_float(bits); }
MONARCH_DEVICE uint32_t as_bits(float x) { return device::float_as_bits(x); }

// ---- Numbers

struct FloatOfFloat16 {
  static constexpr int kIn = 1, kOut = 1;
  MONARCH_DEVICE static void run(const uint32_t* in, uint32_t (&out)[kOut]) {
    out[0] = as_bits(device::to_float(Float16{static_cast<uint16_t>(in[0])}));
  }
};
struct FloatOfBFloat16 {
  static constexpr int kIn = 1, kOut = 1;
  MONARCH_DEVICE static void run(const uint32_t* in, uint32_t (&out)[kOut]) {
    out[0] = as_bits(device::to_float(BFloat16{static_cast<uint16_t>(in[0])}));
  }
};
template <class T>
struct Pack {
  static constexpr int kIn = 2, kOut = 1;
  MONARCH_DEVICE static void run(const uint32_t* in, uint32_t (&out)[kOut]) {
    out[0] = device::pack<T>(as_float(in[0]), as_float(in[1]));
  }
};
template <class T>
struct FromFloat {
  static constexpr int kIn = 1, kOut = 1;
  MONARCH_DEVICE static void run(const uint32_t* in, uint32_t (&out)[kOut]) {
    out[0] = device::from_float<T>(as_float(in[0])).bits;
  }
};
struct ToTf32 {
  static constexpr int kIn = 1, kOut = 1;
  MONARCH_DEVICE static void run(const uint32_t* in, uint32_t (&out)[kOut]) {
    out[0] = device::to_tf32(as_float(in[0]));
  }
};
struct Fma {
  static constexpr int kIn = 3, kOut = 1;
  MONARCH_DEVICE static void run(const uint32_t* in, uint32_t (&out)[kOut]) {
    out[0] = as_bits(device::fma(as_float(in[0]), as_float(in[1]), as_float(in[2])));
  }
};
#define FUNCTION(Name, function)                                                \
  struct Name {                                                                 \
    static constexpr int kIn = 1, kOut = 1;                                     \
    MONARCH_DEVICE static void run(const uint32_t* in, uint32_t (&out)[kOut]) { \
      out[0] = as_bits(device::function(as_float(in[0])));                      \
    }                                                                           \
  };
FUNCTION(Exp, exp)
FUNCTION(Exp2, exp2_approximate)
FUNCTION(InverseSqrt, inverse_sqrt)
#undef FUNCTION

struct MultiplyPairs {
  static constexpr int kIn = 2, kOut = 1;
  MONARCH_DEVICE static void run(const uint32_t* in, uint32_t (&out)[kOut]) {
    out[0] = device::multiply_bf16x2(in[0], in[1]);
  }
};
struct MultiplySubtractPairs {
  static constexpr int kIn = 3, kOut = 1;
  MONARCH_DEVICE static void run(const uint32_t* in, uint32_t (&out)[kOut]) {
    out[0] = device::multiply_subtract_bf16x2(in[0], in[1], in[2]);
  }
};
struct Sincospi {
  static constexpr int kIn = 2, kOut = 4;
  MONARCH_DEVICE static void run(const uint32_t* in, uint32_t (&out)[kOut]) {
    double x = 0, sine = 0, cosine = 0;
    std::memcpy(&x, in, sizeof x);
    device::sincospi(x, &sine, &cosine);
    std::memcpy(&out[0], &sine, sizeof sine);
    std::memcpy(&out[2], &cosine, sizeof cosine);
  }
};

// ---- Global memory

struct Loads {
  static constexpr int kIn = 2, kOut = 2;
  MONARCH_DEVICE static void run(const uint32_t* in, uint32_t (&out)[kOut]) {
    out[0] = device::load_readonly(in);
    out[1] = device::load_streaming(in + 1);
  }
};

// ---- Warps: in = {value, operand}; out for groups of 4, 8, 16 and 32 lanes

#define SHUFFLE(Name, function)                                                 \
  struct Name {                                                                 \
    static constexpr int kIn = 2, kOut = 4;                                     \
    MONARCH_DEVICE static void run(const uint32_t* in, uint32_t (&out)[kOut]) { \
      const int operand = static_cast<int>(in[1]);                              \
      out[0] = device::function(in[0], operand, 4);                             \
      out[1] = device::function(in[0], operand, 8);                             \
      out[2] = device::function(in[0], operand, 16);                            \
      out[3] = device::function(in[0], operand, 32);                            \
    }                                                                           \
  };
SHUFFLE(ShuffleIndex, shuffle)
SHUFFLE(ShuffleXor, shuffle_xor)
SHUFFLE(ShuffleUp, shuffle_up)
SHUFFLE(ShuffleDown, shuffle_down)
#undef SHUFFLE

struct ReduceMax {
  static constexpr int kIn = 1, kOut = 1;
  MONARCH_DEVICE static void run(const uint32_t* in, uint32_t (&out)[kOut]) {
    out[0] = device::reduce_max(in[0]);
  }
};
struct Ballot {
  static constexpr int kIn = 1, kOut = 1;
  MONARCH_DEVICE static void run(const uint32_t* in, uint32_t (&out)[kOut]) {
    out[0] = device::ballot((in[0] & 1) != 0);
  }
};

// ---- Barriers: each thread reads what another has written before

#define EXCHANGE(Name, barrier)                                                 \
  struct Name {                                                                 \
    static constexpr int kIn = 2, kOut = 1;                                     \
    MONARCH_DEVICE static void run(const uint32_t* in, uint32_t (&out)[kOut]) { \
      MONARCH_STATIC_SHARED(uint32_t, words, 32);                               \
      words[threadIdx.x] = in[0];                                               \
      device::barrier;                                                          \
      out[0] = words[in[1] % 32];                                               \
    }                                                                           \
  };
EXCHANGE(ExchangeThreads, sync_threads())
EXCHANGE(ExchangeWarp, sync_warp())
EXCHANGE(ExchangeGroup, sync_group(1, 32))
#undef EXCHANGE

// ---- Atomics: in = {value, which of 4 targets}; out = all targets, of which the sum is fixed

template <class T, bool kMaximum>
struct Atomic {
  static constexpr int kIn = 2, kOut = 4;
  MONARCH_DEVICE static void run(const uint32_t* in, uint32_t (&out)[kOut]) {
    MONARCH_STATIC_SHARED(T, targets, 4);
    if (threadIdx.x < 4) targets[threadIdx.x] = T{0};
    device::sync_threads();
    T value{};
    std::memcpy(&value, in, sizeof value);
    if constexpr (kMaximum) {
      device::atomic_max(&targets[in[1] % 4], value);
    } else {
      device::atomic_add(&targets[in[1] % 4], value);
    }
    device::sync_threads();
    for (int i = 0; i < 4; ++i) {
      const T target = targets[i];
      std::memcpy(&out[i], &target, sizeof target);
    }
  }
};

// ---- Shared memory: one row of 16 bytes for each lane

template <int kBytes>
struct CopyAsync {  // in = {16 bytes; number of bytes to copy}
  static constexpr int kIn = 8, kOut = 4;
  MONARCH_DEVICE static void run(const uint32_t* in, uint32_t (&out)[kOut]) {
    MONARCH_STATIC_SHARED(uint32_t, rows, 128);
    uint32_t* row = rows + 4 * threadIdx.x;
    for (int i = 0; i < 4; ++i) row[i] = 0xdeadbeefu;
    device::sync_threads();
    const uint32_t address = device::shared_address(row);
    if constexpr (kBytes == 4) device::copy_async_4(address, in, in[4]);
    if constexpr (kBytes == 8) device::copy_async_8(address, in, in[4]);
    if constexpr (kBytes == 16) device::copy_async_16(address, in, in[4]);
    device::copy_async_commit();
    device::copy_async_wait<0>();
    device::sync_threads();
    for (int i = 0; i < 4; ++i) out[i] = row[i];
  }
};

struct SharedVectors {  // in = {16 bytes}; out = those of the lane before
  static constexpr int kIn = 4, kOut = 4;
  MONARCH_DEVICE static void run(const uint32_t* in, uint32_t (&out)[kOut]) {
    MONARCH_STATIC_SHARED(uint4, rows, 32);
    device::store_shared(rows + threadIdx.x, uint4{in[0], in[1], in[2], in[3]});
    device::sync_threads();
    const uint4 row = device::load_shared(rows + (threadIdx.x + 31) % 32);
    out[0] = row.x, out[1] = row.y, out[2] = row.z, out[3] = row.w;
  }
};

template <int kMatrices, bool kTransposed>
struct LoadMatrix {  // in = {16 bytes of row `lane`; the row whose address this lane gives}
  static constexpr int kIn = 8, kOut = kMatrices;
  MONARCH_DEVICE static void run(const uint32_t* in, uint32_t (&out)[kOut]) {
    MONARCH_STATIC_SHARED(uint32_t, rows, 128);
    for (int i = 0; i < 4; ++i) rows[4 * threadIdx.x + i] = in[i];
    device::sync_threads();
    const uint32_t address = device::shared_address(rows + 4 * (in[4] % 32));
    if constexpr (kMatrices == 1) {
      if constexpr (kTransposed) {
        device::load_matrix_x1_transposed(out[0], address);
      } else {
        device::load_matrix_x1(out[0], address);
      }
    } else if constexpr (kMatrices == 2) {
      if constexpr (kTransposed) {
        device::load_matrix_x2_transposed(out, address);
      } else {
        device::load_matrix_x2(out, address);
      }
    } else {
      if constexpr (kTransposed) {
        device::load_matrix_x4_transposed(out, address);
      } else {
        device::load_matrix_x4(out, address);
      }
    }
  }
};

template <bool kTransposed>
struct StoreMatrix {  // in = {four registers; the row whose address this lane gives}
  static constexpr int kIn = 8, kOut = 4;
  MONARCH_DEVICE static void run(const uint32_t* in, uint32_t (&out)[kOut]) {
    MONARCH_STATIC_SHARED(uint32_t, rows, 128);
    const uint32_t matrices[4] = {in[0], in[1], in[2], in[3]};
    const uint32_t address = device::shared_address(rows + 4 * (in[4] % 32));
    if constexpr (kTransposed) {
      device::store_matrix_x4_transposed(address, matrices);
    } else {
      device::store_matrix_x4(address, matrices);
    }
    device::sync_threads();
    for (int i = 0; i < 4; ++i) out[i] = rows[4 * threadIdx.x + i];
  }
};

// ---- Tensor cores: in = {a, b, d}

#define PRODUCT(Name, function)                                                  \
  struct Name {                                                                  \
    static constexpr int kIn = 10, kOut = 4;                                     \
    MONARCH_DEVICE static void run(const uint32_t* in, uint32_t (&out)[kOut]) {  \
      const uint32_t a[4] = {in[0], in[1], in[2], in[3]}, b[2] = {in[4], in[5]}; \
      float d[4];                                                                \
      for (int i = 0; i < 4; ++i) d[i] = as_float(in[6 + i]);                    \
      device::function(d, a, b);                                                 \
      for (int i = 0; i < 4; ++i) out[i] = as_bits(d[i]);                        \
    }                                                                            \
  };
PRODUCT(ProductFloat16, multiply_accumulate_f16)
PRODUCT(ProductBFloat16, multiply_accumulate_bf16)
PRODUCT(ProductTf32, multiply_accumulate_tf32)
#undef PRODUCT

// ---- The list

struct Entry {
  const char* name;
  int in, out;
  const char* (*enqueue)(const uint32_t* in, uint32_t* out, unsigned warps);
};

template <class Operation>
constexpr Entry entry(const char* name) {
  return {name, Operation::kIn, Operation::kOut,
          [](const uint32_t* in, uint32_t* out, unsigned warps) {
            return device::launch(apply<Operation>, dim3(warps), dim3(32), 0, nullptr, in, out);
          }};
}

const Entry kEntries[] = {
    entry<FloatOfFloat16>("to_float_f16"),
    entry<FloatOfBFloat16>("to_float_bf16"),
    entry<Pack<Float16>>("pack_f16"),
    entry<Pack<BFloat16>>("pack_bf16"),
    entry<FromFloat<Float16>>("from_float_f16"),
    entry<FromFloat<BFloat16>>("from_float_bf16"),
    entry<ToTf32>("to_tf32"),
    entry<Fma>("fma"),
    entry<Exp>("exp"),
    entry<Exp2>("exp2_approximate"),
    entry<InverseSqrt>("inverse_sqrt"),
    entry<MultiplyPairs>("multiply_bf16x2"),
    entry<MultiplySubtractPairs>("multiply_subtract_bf16x2"),
    entry<Sincospi>("sincospi"),
    entry<Loads>("loads"),
    entry<ShuffleIndex>("shuffle"),
    entry<ShuffleXor>("shuffle_xor"),
    entry<ShuffleUp>("shuffle_up"),
    entry<ShuffleDown>("shuffle_down"),
    entry<ReduceMax>("reduce_max"),
    entry<Ballot>("ballot"),
    entry<ExchangeThreads>("sync_threads"),
    entry<ExchangeWarp>("sync_warp"),
    entry<ExchangeGroup>("sync_group"),
    entry<Atomic<float, false>>("atomic_add_float"),
    entry<Atomic<unsigned, false>>("atomic_add_unsigned"),
    entry<Atomic<unsigned, true>>("atomic_max_unsigned"),
    entry<Atomic<int, true>>("atomic_max_int"),
    entry<SharedVectors>("shared_vectors"),
    entry<CopyAsync<4>>("copy_async_4"),
    entry<CopyAsync<8>>("copy_async_8"),
    entry<CopyAsync<16>>("copy_async_16"),
    entry<LoadMatrix<1, false>>("load_matrix_x1"),
    entry<LoadMatrix<2, false>>("load_matrix_x2"),
    entry<LoadMatrix<4, false>>("load_matrix_x4"),
    entry<LoadMatrix<1, true>>("load_matrix_x1_transposed"),
    entry<LoadMatrix<2, true>>("load_matrix_x2_transposed"),
    entry<LoadMatrix<4, true>>("load_matrix_x4_transposed"),
    entry<StoreMatrix<false>>("store_matrix_x4"),
    entry<StoreMatrix<true>>("store_matrix_x4_transposed"),
    entry<ProductFloat16>("multiply_accumulate_f16"),
    entry<ProductBFloat16>("multiply_accumulate_bf16"),
    entry<ProductTf32>("multiply_accumulate_tf32"),
};
constexpr int kCount = sizeof kEntries / sizeof *kEntries;

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int conformance_count() { return kCount; }
EXPORT const char* conformance_name(int operation) { return kEntries[operation].name; }
EXPORT int conformance_in_words(int operation) { return kEntries[operation].in; }
EXPORT int conformance_out_words(int operation) { return kEntries[operation].out; }

// Host arrays of warps * 32 * words. nullptr, or what went wrong.
EXPORT const char* conformance_run(int operation, const uint32_t* in, uint32_t* out, int warps) {
  const Entry& chosen = kEntries[operation];
#if defined(__CUDACC__)
  const size_t in_bytes = size_t{4} * 32 * warps * chosen.in;
  const size_t out_bytes = size_t{4} * 32 * warps * chosen.out;
  uint32_t *in_there = nullptr, *out_there = nullptr;
  cudaError_t error = cudaMalloc(&in_there, in_bytes);
  if (error == cudaSuccess) error = cudaMalloc(&out_there, out_bytes);
  if (error == cudaSuccess) error = cudaMemcpy(in_there, in, in_bytes, cudaMemcpyHostToDevice);
  if (error == cudaSuccess) error = cudaMemset(out_there, 0xff, out_bytes);
  const char* message = nullptr;
  if (error == cudaSuccess) message = chosen.enqueue(in_there, out_there, warps);
  if (error == cudaSuccess && message == nullptr) {
    error = cudaMemcpy(out, out_there, out_bytes, cudaMemcpyDeviceToHost);
  }
  cudaFree(in_there);
  cudaFree(out_there);
  return error == cudaSuccess ? message : cudaGetErrorString(error);
#else
  return chosen.enqueue(in, out, warps);
#endif
}
