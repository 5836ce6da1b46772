// The one file that knows which compiler reads a kernel. Every instruction of the GPU that C++ has
// no words for is one function here with two bodies: inline PTX for nvcc, a call of the emulator
// (tests/emulation, docs/emulation.md) for g++. Kernels include nothing else of CUDA.
//
// MONARCH_EITHER has both bodies where they are expressions. Under g++ every function that can fail
// takes the caller's source location as a last, defaulted argument, so that a finding names the
// line of the kernel.
#pragma once
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <type_traits>
#include <utility>

#include "core/scalar.h"

#if defined(__CUDACC__)

#define MONARCH_DEVICE __device__ __forceinline__
#define MONARCH_DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#define MONARCH_STATIC_SHARED(type, name, count) __shared__ __align__(16) type name[count]
#define MONARCH_EITHER(gpu, emulated) gpu
#define MONARCH_LOCATION
#define MONARCH_ONLY_LOCATION

#else

#include "emulation/emulation.h"

#define MONARCH_DEVICE inline
// Pointers, not arrays: sizeof of them is not the size of the memory.
#define MONARCH_DYNAMIC_SHARED(name) unsigned char* const name = emulation::dynamic_shared()
#define MONARCH_STATIC_SHARED(type, name, count)                  \
  type* const name = static_cast<type*>(emulation::static_shared( \
      sizeof(type) * (count), alignof(type), emulation::Location::current()))
#define MONARCH_EITHER(gpu, emulated) emulated
#define MONARCH_LOCATION , emulation::Location location = emulation::Location::current()
#define MONARCH_ONLY_LOCATION emulation::Location location = emulation::Location::current()

#endif

namespace monarch::cuda::device {

inline constexpr uint32_t kWholeWarp = 0xffffffffu;

// Synchronisation

MONARCH_DEVICE void sync_threads(MONARCH_ONLY_LOCATION) {
  MONARCH_EITHER(__syncthreads(), emulation::sync_threads(location));
}

// Orders the memory accesses of the lanes in `mask`, which must all arrive.
MONARCH_DEVICE void sync_warp(uint32_t mask = kWholeWarp MONARCH_LOCATION) {
  MONARCH_EITHER(__syncwarp(mask), emulation::sync_warp(mask, location));
}

// A barrier of `threads` threads, a multiple of 32; ids 1 to 15 (sync_threads has 0).
MONARCH_DEVICE void sync_group(int barrier_id, int threads MONARCH_LOCATION) {
#if defined(__CUDACC__)
  asm volatile("bar.sync %0, %1;" ::"r"(barrier_id), "r"(threads) : "memory");
#else
  emulation::sync_group(barrier_id, threads, location);
#endif
}

// Global memory: through the read-only cache, and evict-first for what is used once; atomics, of
// shared memory too; vectors of shared memory

#if defined(__CUDACC__)
template <class T>
MONARCH_DEVICE T load_readonly(const T* source) {
  return __ldg(source);
}
template <class T>
MONARCH_DEVICE T load_streaming(const T* source) {
  return __ldcs(source);
}
template <class T>
MONARCH_DEVICE void store_streaming(T* destination, std::common_type_t<T> value) {
  __stcs(destination, value);
}
// Shared memory, whole vectors: the emulator counts bank conflicts of these.
template <class T>
MONARCH_DEVICE T load_shared(const T* source) {
  return *source;
}
template <class T>
MONARCH_DEVICE void store_shared(T* destination, std::common_type_t<T> value) {
  *destination = value;
}
// Both return the value before.
template <class T>
MONARCH_DEVICE T atomic_add(T* target, std::common_type_t<T> value) {
  return atomicAdd(target, value);
}
template <class T>
MONARCH_DEVICE T atomic_max(T* target, std::common_type_t<T> value) {
  static_assert(std::is_integral_v<T>, "there is no floating-point atomic maximum");
  return atomicMax(target, value);
}
#else
template <class T>
T load_readonly(const T* source MONARCH_LOCATION) {
  return emulation::load(source, location);
}
template <class T>
T load_streaming(const T* source MONARCH_LOCATION) {
  return emulation::load(source, location);
}
template <class T>
void store_streaming(T* destination, std::common_type_t<T> value MONARCH_LOCATION) {
  emulation::store(destination, value, location);
}
template <class T>
T load_shared(const T* source MONARCH_LOCATION) {
  emulation::count_banks(source, sizeof(T), location);
  return emulation::load(source, location);
}
template <class T>
void store_shared(T* destination, std::common_type_t<T> value MONARCH_LOCATION) {
  emulation::count_banks(destination, sizeof(T), location);
  emulation::store(destination, value, location);
}
template <class T>
T atomic_add(T* target, std::common_type_t<T> value MONARCH_LOCATION) {
  const auto add = [value](T before) { return before + value; };
  return emulation::atomic(target, add, location);
}
template <class T>
T atomic_max(T* target, std::common_type_t<T> value MONARCH_LOCATION) {
  static_assert(std::is_integral_v<T>, "there is no floating-point atomic maximum");
  const auto larger = [value](T before) { return before < value ? value : before; };
  return emulation::atomic(target, larger, location);
}
#endif

// Returns its argument, of which the compiler now knows nothing. To a pointer so treated it adds
// constant offsets in the instructions; else it would add them to the parts the pointer is made of,
// and compute an address of 64 bits for each access.
template <class T>
MONARCH_DEVICE T* opaque(T* pointer) {
#if defined(__CUDACC__)
  asm("" : "+l"(pointer));
#endif
  return pointer;
}

// The same for a number, such as an address of shared memory: it is kept, not computed again.
MONARCH_DEVICE uint32_t opaque(uint32_t number) {
#if defined(__CUDACC__)
  asm("" : "+r"(number));
#endif
  return number;
}

// Numbers

MONARCH_DEVICE float bits_as_float(uint32_t bits) {
  return MONARCH_EITHER(__uint_as_float(bits), monarch::bits_to_float(bits));
}
MONARCH_DEVICE uint32_t float_as_bits(float x) {
  return MONARCH_EITHER(__float_as_uint(x), monarch::float_to_bits(x));
}

MONARCH_DEVICE float to_float(float x) { return x; }
MONARCH_DEVICE float to_float(BFloat16 x) { return bits_as_float(uint32_t{x.bits} << 16); }
MONARCH_DEVICE float to_float(Float16 x) {
#if defined(__CUDACC__)
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(x.bits));
  return result;
#else
  return monarch::to_float(x);
#endif
}

// Two numbers in one register, the first in the low half. Round to nearest even.
MONARCH_DEVICE uint32_t pack_bf16(float low, float high) {
#if defined(__CUDACC__)
  uint32_t result;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
#else
  return monarch::to_bfloat16(low).bits | uint32_t{monarch::to_bfloat16(high).bits} << 16;
#endif
}
MONARCH_DEVICE uint32_t pack_f16(float low, float high) {
#if defined(__CUDACC__)
  uint32_t result;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
#else
  return monarch::to_float16(low).bits | uint32_t{monarch::to_float16(high).bits} << 16;
#endif
}

// Pairs of bfloat16: a b, and a b - c. Of c = multiply_bf16x2(a, b) that is exactly what rounding
// took away, for 8 bits times 8 are 16, unless it is below the smallest number.
MONARCH_DEVICE uint32_t multiply_bf16x2(uint32_t a, uint32_t b) {
#if defined(__CUDACC__)
  uint32_t result;
  // A product alone needs sm_90; -0 keeps its sign.
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(0x80008000u));
  return result;
#else
  const auto product = [](uint32_t x, uint32_t y) {
    const float f = monarch::bits_to_float(x << 16) * monarch::bits_to_float(y << 16);
    return uint32_t{monarch::to_bfloat16(f).bits};
  };
  return product(a, b) | product(a >> 16, b >> 16) << 16;
#endif
}
MONARCH_DEVICE uint32_t multiply_subtract_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
#if defined(__CUDACC__)
  uint32_t result;
  asm("{\n.reg .b32 minus;\nxor.b32 minus, %3, 0x80008000;\nfma.rn.bf16x2 %0, %1, %2, minus;\n}"
      : "=r"(result)
      : "r"(a), "r"(b), "r"(c));
  return result;
#else
  const auto difference = [](uint32_t x, uint32_t y, uint32_t z) {
    const float f = std::fma(monarch::bits_to_float(x << 16), monarch::bits_to_float(y << 16),
                             -monarch::bits_to_float(z << 16));
    return uint32_t{monarch::to_bfloat16(f).bits};
  };
  return difference(a, b, c) | difference(a >> 16, b >> 16, c >> 16) << 16;
#endif
}

// Round to nearest even; T is float, BFloat16 or Float16.
template <class T>
MONARCH_DEVICE T from_float(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    BFloat16 result{};
#if defined(__CUDACC__)
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
#else
    result = monarch::to_bfloat16(x);
#endif
    return result;
  } else {
    static_assert(std::is_same_v<T, Float16>, "float, BFloat16 or Float16");
    Float16 result{};
#if defined(__CUDACC__)
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
#else
    result = monarch::to_float16(x);
#endif
    return result;
  }
}

// A float as the operand of a tf32 product: 10 bits of fraction, round to nearest, ties away.
MONARCH_DEVICE uint32_t to_tf32(float x) {
#if defined(__CUDACC__)
  uint32_t result;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(result) : "f"(x));
  return result;
#else
  return emulation::to_tf32(x);
#endif
}

MONARCH_DEVICE float fma(float a, float b, float c) {
  return MONARCH_EITHER(__fmaf_rn(a, b, c), std::fma(a, b, c));
}

MONARCH_DEVICE float exp(float x) { return MONARCH_EITHER(::expf(x), std::exp(x)); }

// 1 / sqrt(x) in two correctly rounded steps.
MONARCH_DEVICE float inverse_sqrt(float x) {
  return MONARCH_EITHER(__frcp_rn(__fsqrt_rn(x)), 1.0f / std::sqrt(x));
}

// 2^x within 2^-22 of it; what is subnormal is 0.
MONARCH_DEVICE float exp2_approximate(float x) {
#if defined(__CUDACC__)
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  const float result = std::exp2(x);
  return result < 0x1p-126f ? 0.0f : result;
#endif
}

// sin(pi x) and cos(pi x).
MONARCH_DEVICE void sincospi(double x, double* sine, double* cosine) {
  MONARCH_EITHER(::sincospi(x, sine, cosine), emulation::sincospi(x, sine, cosine));
}

// Exchange within a warp; all 32 lanes take part, in groups of `width`

template <class T>
MONARCH_DEVICE T shuffle(T value, int lane, int width = 32 MONARCH_LOCATION) {
  return MONARCH_EITHER(
      __shfl_sync(kWholeWarp, value, lane, width),
      emulation::shuffle(emulation::Shuffle::kIndex, value, lane, width, location));
}
template <class T>
MONARCH_DEVICE T shuffle_xor(T value, int lane_mask, int width = 32 MONARCH_LOCATION) {
  return MONARCH_EITHER(
      __shfl_xor_sync(kWholeWarp, value, lane_mask, width),
      emulation::shuffle(emulation::Shuffle::kXor, value, lane_mask, width, location));
}
template <class T>
MONARCH_DEVICE T shuffle_up(T value, int delta, int width = 32 MONARCH_LOCATION) {
  return MONARCH_EITHER(__shfl_up_sync(kWholeWarp, value, delta, width),
                        emulation::shuffle(emulation::Shuffle::kUp, value, delta, width, location));
}
template <class T>
MONARCH_DEVICE T shuffle_down(T value, int delta, int width = 32 MONARCH_LOCATION) {
  return MONARCH_EITHER(
      __shfl_down_sync(kWholeWarp, value, delta, width),
      emulation::shuffle(emulation::Shuffle::kDown, value, delta, width, location));
}

// Bit i is the predicate of lane i.
MONARCH_DEVICE uint32_t ballot(bool predicate MONARCH_LOCATION) {
  return MONARCH_EITHER(__ballot_sync(kWholeWarp, predicate),
                        emulation::ballot(predicate, location));
}

// The largest value of all lanes.
MONARCH_DEVICE uint32_t reduce_max(uint32_t value MONARCH_LOCATION) {
#if defined(__CUDACC__)
  return __reduce_max_sync(kWholeWarp, value);
#else
  for (int mask = 16; mask > 0; mask /= 2)
    value = max(value, emulation::shuffle(emulation::Shuffle::kXor, value, mask, 32, location));
  return value;
#endif
}

// Shared memory by address, and copies into it that run beside the thread

MONARCH_DEVICE uint32_t shared_address(const void* pointer MONARCH_LOCATION) {
  return MONARCH_EITHER(static_cast<uint32_t>(__cvta_generic_to_shared(pointer)),
                        emulation::shared_address(pointer, location));
}

// Bytes past source_bytes become zero; with 0 the source is not read. The 16-byte form bypasses L1.
MONARCH_DEVICE void copy_async_4(uint32_t destination, const void* source,
                                 uint32_t source_bytes = 4 MONARCH_LOCATION) {
#if defined(__CUDACC__)
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(destination), "l"(source),
               "r"(source_bytes)
               : "memory");
#else
  emulation::copy_async(destination, source, 4, source_bytes, location);
#endif
}
MONARCH_DEVICE void copy_async_8(uint32_t destination, const void* source,
                                 uint32_t source_bytes = 8 MONARCH_LOCATION) {
#if defined(__CUDACC__)
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(destination), "l"(source),
               "r"(source_bytes)
               : "memory");
#else
  emulation::copy_async(destination, source, 8, source_bytes, location);
#endif
}
MONARCH_DEVICE void copy_async_16(uint32_t destination, const void* source,
                                  uint32_t source_bytes = 16 MONARCH_LOCATION) {
#if defined(__CUDACC__)
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(destination), "l"(source),
               "r"(source_bytes)
               : "memory");
#else
  emulation::copy_async(destination, source, 16, source_bytes, location);
#endif
}

// The copies since the last commit become one group, which may be empty.
MONARCH_DEVICE void copy_async_commit() {
#if defined(__CUDACC__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  emulation::copy_async_commit();
#endif
}

// Waits until at most kPending of this thread's newest groups are in flight. Other threads see the
// copied bytes only after a barrier that follows.
template <int kPending>
MONARCH_DEVICE void copy_async_wait(MONARCH_ONLY_LOCATION) {
#if defined(__CUDACC__)
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#else
  emulation::copy_async_wait(kPending, location);
#endif
}

// Matrices in registers. Lane 4 r + c of a warp holds the elements (r, 2 c) and (r, 2 c + 1) of
// an 8 x 8 matrix of 16-bit numbers in one register. Lane 8 i + r names row r (16 bytes, 16-byte
// aligned) of matrix i; the addresses of other lanes are ignored.

MONARCH_DEVICE void load_matrix_x1(uint32_t& matrix, uint32_t address MONARCH_LOCATION) {
#if defined(__CUDACC__)
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
               : "=r"(matrix)
               : "r"(address)
               : "memory");
#else
  emulation::load_matrix(1, false, &matrix, address, location);
#endif
}
MONARCH_DEVICE void load_matrix_x2(uint32_t (&matrices)[2], uint32_t address MONARCH_LOCATION) {
#if defined(__CUDACC__)
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(matrices[0]), "=r"(matrices[1])
               : "r"(address)
               : "memory");
#else
  emulation::load_matrix(2, false, matrices, address, location);
#endif
}
MONARCH_DEVICE void load_matrix_x4(uint32_t (&matrices)[4], uint32_t address MONARCH_LOCATION) {
#if defined(__CUDACC__)
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(address)
               : "memory");
#else
  emulation::load_matrix(4, false, matrices, address, location);
#endif
}

// The same, with each 8 x 8 matrix transposed on the way.
MONARCH_DEVICE void load_matrix_x1_transposed(uint32_t& matrix, uint32_t address MONARCH_LOCATION) {
#if defined(__CUDACC__)
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
               : "=r"(matrix)
               : "r"(address)
               : "memory");
#else
  emulation::load_matrix(1, true, &matrix, address, location);
#endif
}
MONARCH_DEVICE void load_matrix_x2_transposed(uint32_t (&matrices)[2],
                                              uint32_t address MONARCH_LOCATION) {
#if defined(__CUDACC__)
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(matrices[0]), "=r"(matrices[1])
               : "r"(address)
               : "memory");
#else
  emulation::load_matrix(2, true, matrices, address, location);
#endif
}
MONARCH_DEVICE void load_matrix_x4_transposed(uint32_t (&matrices)[4],
                                              uint32_t address MONARCH_LOCATION) {
#if defined(__CUDACC__)
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(address)
               : "memory");
#else
  emulation::load_matrix(4, true, matrices, address, location);
#endif
}

// sm_90 and later; an older GPU traps.
MONARCH_DEVICE void store_matrix_x4(uint32_t address,
                                    const uint32_t (&matrices)[4] MONARCH_LOCATION) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  __trap();
#elif defined(__CUDACC__)
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
               "r"(matrices[0]), "r"(matrices[1]), "r"(matrices[2]), "r"(matrices[3])
               : "memory");
#else
  emulation::store_matrix(4, false, matrices, address, location);
#endif
}
MONARCH_DEVICE void store_matrix_x4_transposed(uint32_t address,
                                               const uint32_t (&matrices)[4] MONARCH_LOCATION) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  __trap();
#elif defined(__CUDACC__)
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
      "r"(matrices[0]), "r"(matrices[1]), "r"(matrices[2]), "r"(matrices[3])
      : "memory");
#else
  emulation::store_matrix(4, true, matrices, address, location);
#endif
}

// Tensor cores: d (16 x 8, float) += a (16 x K, row-major) b (K x 8, column-major). With
// r = lane / 4 and c = lane % 4, K = 16 and pairs along K in one register:
//   a = {(r, 2c), (r + 8, 2c), (r, 2c + 8), (r + 8, 2c + 8)}   b = {(2c, r), (2c + 8, r)}
//   d = {(r, 2c), (r, 2c + 1), (r + 8, 2c), (r + 8, 2c + 1)}
// tf32 has K = 8 and one element in a register:
//   a = {(r, c), (r + 8, c), (r, c + 4), (r + 8, c + 4)}       b = {(c, r), (c + 4, r)}

#define MONARCH_PRODUCT(shape_and_types)                                          \
  asm volatile("mma.sync.aligned." shape_and_types                                \
               " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                   \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

MONARCH_DEVICE void multiply_accumulate_f16(float (&d)[4], const uint32_t (&a)[4],
                                            const uint32_t (&b)[2] MONARCH_LOCATION) {
#if defined(__CUDACC__)
  MONARCH_PRODUCT("m16n8k16.row.col.f32.f16.f16.f32");
#else
  emulation::multiply_accumulate(emulation::Product::kFloat16, d, a, b, location);
#endif
}
MONARCH_DEVICE void multiply_accumulate_bf16(float (&d)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2] MONARCH_LOCATION) {
#if defined(__CUDACC__)
  MONARCH_PRODUCT("m16n8k16.row.col.f32.bf16.bf16.f32");
#else
  emulation::multiply_accumulate(emulation::Product::kBFloat16, d, a, b, location);
#endif
}
MONARCH_DEVICE void multiply_accumulate_tf32(float (&d)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2] MONARCH_LOCATION) {
#if defined(__CUDACC__)
  MONARCH_PRODUCT("m16n8k8.row.col.f32.tf32.tf32.f32");
#else
  emulation::multiply_accumulate(emulation::Product::kTFloat32, d, a, b, location);
#endif
}
#undef MONARCH_PRODUCT

// K = 16, for kernels with the storage type T as a parameter.
template <class T>
MONARCH_DEVICE void multiply_accumulate(float (&d)[4], const uint32_t (&a)[4],
                                        const uint32_t (&b)[2] MONARCH_LOCATION) {
  static_assert(std::is_same_v<T, BFloat16> || std::is_same_v<T, Float16>);
  if constexpr (std::is_same_v<T, BFloat16>) {
    MONARCH_EITHER(multiply_accumulate_bf16(d, a, b), multiply_accumulate_bf16(d, a, b, location));
  } else {
    MONARCH_EITHER(multiply_accumulate_f16(d, a, b), multiply_accumulate_f16(d, a, b, location));
  }
}
template <class T>
MONARCH_DEVICE uint32_t pack(float low, float high) {
  static_assert(std::is_same_v<T, BFloat16> || std::is_same_v<T, Float16>);
  if constexpr (std::is_same_v<T, BFloat16>) {
    return pack_bf16(low, high);
  } else {
    return pack_f16(low, high);
  }
}

// Host: enqueue a kernel on `stream`. nullptr, or what is wrong.

template <class... Parameters, class... Arguments>
const char* launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                   void* stream, Arguments&&... arguments) {
#if defined(__CUDACC__)
  constexpr size_t kWithoutAsking = 48 << 10;
  // The limit belongs to the kernel, not to the launch: another thread's must not come between.
  static std::mutex limit;
  std::unique_lock<std::mutex> lock(limit, std::defer_lock);
  if (shared_bytes > kWithoutAsking) {
    lock.lock();
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (error != cudaSuccess) {
      cudaGetLastError();  // or the next launch would report it again
      return cudaGetErrorString(error);
    }
  }
  kernel<<<grid, block, shared_bytes, static_cast<cudaStream_t>(stream)>>>(
      static_cast<Parameters>(std::forward<Arguments>(arguments))...);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
#else
  static_cast<void>(stream);  // a launch has run when it returns
  return emulation::launch(kernel, grid, block, shared_bytes,
                           static_cast<Parameters>(std::forward<Arguments>(arguments))...);
#endif
}

}  // namespace monarch::cuda::device
