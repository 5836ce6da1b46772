// A small C++ view of LibTorch's stable C ABI (torch >= 2.10).
//
// The functions declared below are the ones that libtorch promises to keep; with nothing else of
// torch in use, building needs no torch and one binary loads into every torch >= 2.10.
// tests/abi_headers.cpp compiles this file beside torch's own headers: a signature that differs
// is a compile error there. CMakeLists.txt reads the names to make the library that stands in for
// libtorch at link time, so each declaration starts on its own line with MONARCH_TORCH_CPU, or
// MONARCH_TORCH_CUDA if libtorch_cuda has the function: only _C_cuda.so may call that.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <exception>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

// ---- torch/csrc/inductor/aoti_torch/c/shim.h and torch/csrc/stable/c/shim.h --------------------

#define MONARCH_TORCH_CPU extern "C" __attribute__((visibility("default")))
#define MONARCH_TORCH_CUDA extern "C" __attribute__((visibility("default")))
// Absent (null) from a torch that is too old to have it.
#define MONARCH_TORCH_OPTIONAL extern "C" __attribute__((weak, visibility("default")))

struct AtenTensorOpaque;
using AtenTensorHandle = AtenTensorOpaque*;
struct TorchLibraryOpaque;
using TorchLibraryHandle = TorchLibraryOpaque*;
struct StringOpaque;
using StringHandle = StringOpaque*;
struct DeviceGuardOpaque;
using DeviceGuardHandle = DeviceGuardOpaque*;
using AOTITorchError = int32_t;
using StableIValue = uint64_t;
typedef void (*ParallelFunc)(int64_t begin, int64_t end, void* ctx);

// Operators.
MONARCH_TORCH_CPU AOTITorchError aoti_torch_library_init_impl(const char* ns, const char* key,
                                                              const char* file, uint32_t line,
                                                              TorchLibraryHandle* result);
MONARCH_TORCH_CPU AOTITorchError torch_library_impl(TorchLibraryHandle library, const char* name,
                                                    void (*fn)(StableIValue*, uint64_t, uint64_t),
                                                    uint64_t abi_version);
MONARCH_TORCH_CPU AOTITorchError torch_call_dispatcher(const char* name, const char* overload,
                                                       StableIValue* stack, uint64_t abi_version);
// Tensors.
MONARCH_TORCH_CPU AOTITorchError aoti_torch_delete_tensor_object(AtenTensorHandle);
MONARCH_TORCH_CPU AOTITorchError aoti_torch_new_tensor_handle(AtenTensorHandle, AtenTensorHandle*);
MONARCH_TORCH_CPU AOTITorchError aoti_torch_get_data_ptr(AtenTensorHandle, void**);
MONARCH_TORCH_CPU AOTITorchError aoti_torch_get_dim(AtenTensorHandle, int64_t*);
MONARCH_TORCH_CPU AOTITorchError aoti_torch_get_numel(AtenTensorHandle, int64_t*);
MONARCH_TORCH_CPU AOTITorchError aoti_torch_get_sizes(AtenTensorHandle, int64_t**);
MONARCH_TORCH_CPU AOTITorchError aoti_torch_get_strides(AtenTensorHandle, int64_t**);
MONARCH_TORCH_CPU AOTITorchError aoti_torch_get_dtype(AtenTensorHandle, int32_t*);
MONARCH_TORCH_CPU AOTITorchError aoti_torch_get_device_type(AtenTensorHandle, int32_t*);
MONARCH_TORCH_CPU AOTITorchError aoti_torch_get_device_index(AtenTensorHandle, int32_t*);
MONARCH_TORCH_CPU AOTITorchError aoti_torch_is_contiguous(AtenTensorHandle, bool*);
MONARCH_TORCH_CPU AOTITorchError aoti_torch_empty_strided(int64_t dim, const int64_t* sizes,
                                                          const int64_t* strides, int32_t dtype,
                                                          int32_t device_type, int32_t device_index,
                                                          AtenTensorHandle* result);
MONARCH_TORCH_OPTIONAL AOTITorchError torch_from_blob(  // torch >= 2.11
    void* data, int64_t dim, const int64_t* sizes, const int64_t* strides, int64_t storage_offset,
    int32_t dtype, int32_t device_type, int32_t device_index, AtenTensorHandle* result,
    int32_t layout, const uint8_t* opaque_metadata, int64_t opaque_metadata_size,
    void (*deleter)(void* data, void* context), void* context);
MONARCH_TORCH_CPU int32_t aoti_torch_layout_strided();
MONARCH_TORCH_CPU int32_t aoti_torch_dtype_float32();
MONARCH_TORCH_CPU int32_t aoti_torch_dtype_bfloat16();
MONARCH_TORCH_CPU int32_t aoti_torch_dtype_float16();
MONARCH_TORCH_CPU int32_t aoti_torch_dtype_float64();
MONARCH_TORCH_CPU int32_t aoti_torch_device_type_cpu();
MONARCH_TORCH_CPU int32_t aoti_torch_device_type_cuda();
MONARCH_TORCH_CPU int32_t aoti_torch_memory_format_contiguous_format();
// Strings.
MONARCH_TORCH_CPU AOTITorchError torch_new_string_handle(const char* data, size_t length,
                                                         StringHandle* result);
// Threads.
MONARCH_TORCH_CPU AOTITorchError torch_parallel_for(int64_t begin, int64_t end, int64_t grain,
                                                    ParallelFunc body, void* context);
MONARCH_TORCH_CPU AOTITorchError torch_get_num_threads(uint32_t*);
// Devices and streams.
MONARCH_TORCH_CPU AOTITorchError aoti_torch_create_device_guard(int32_t device_index,
                                                                DeviceGuardHandle* result);
MONARCH_TORCH_CPU AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle guard);
MONARCH_TORCH_CUDA AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index,
                                                                     void** result);

namespace monarch::abi {

// The torch whose conventions this file follows; libtorch adapts to it when it is newer.
constexpr uint64_t kAbiVersion = (uint64_t{2} << 56) | (uint64_t{10} << 48);

// The dispatcher's stack has 64-bit slots; a smaller value lies in the first bytes of its slot.
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "StableIValue layout");

// ---- Errors ------------------------------------------------------------------------------------

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

// Reaches Python as a RuntimeError with the message's parts joined.
#define MONARCH_CHECK(condition, ...)                                         \
  do {                                                                        \
    if (__builtin_expect(!(condition), 0)) ::monarch::abi::fail(__VA_ARGS__); \
  } while (0)

// libtorch prints the cause to stderr and, before 2.13, keeps its text to itself: operators check
// what they are given first, so that this does not happen.
#define MONARCH_TORCH_CALL(call) MONARCH_CHECK((call) == 0, "libtorch call failed: ", #call)

// ---- Tensor ------------------------------------------------------------------------------------

enum class DType { Float32, BFloat16, Float16, Float64, Other };

inline const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::Float32:
      return "float32";
    case DType::BFloat16:
      return "bfloat16";
    case DType::Float16:
      return "float16";
    case DType::Float64:
      return "float64";
    case DType::Other:
      break;
  }
  return "unsupported dtype";
}

// Where a library's large tensors on the CPU come from instead of torch's allocator.
struct BlockSource {
  int64_t least_bytes;
  void* (*take)(int64_t bytes);  // null: out of memory
  void (*give)(void* data, int64_t bytes) noexcept;
};
inline const BlockSource* block_source = nullptr;

// One owned reference to a torch tensor. Move only; alias() makes a second reference.
class Tensor {
 public:
  Tensor() = default;
  explicit Tensor(AtenTensorHandle owned) : handle_(owned) {}
  Tensor(Tensor&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Tensor& operator=(Tensor&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;
  ~Tensor() {
    if (handle_ != nullptr) aoti_torch_delete_tensor_object(handle_);
  }

  AtenTensorHandle get() const { return handle_; }
  AtenTensorHandle release() { return std::exchange(handle_, nullptr); }

  int64_t dim() const { return read<int64_t>(aoti_torch_get_dim); }
  int64_t numel() const { return read<int64_t>(aoti_torch_get_numel); }
  // Borrowed from the tensor, dim() entries each.
  const int64_t* sizes() const { return read<int64_t*>(aoti_torch_get_sizes); }
  const int64_t* strides() const { return read<int64_t*>(aoti_torch_get_strides); }
  // A negative index counts from the end, as in Python.
  int64_t size(int64_t index) const { return sizes()[checked(index)]; }
  int64_t stride(int64_t index) const { return strides()[checked(index)]; }

  DType dtype() const {
    const int32_t code = dtype_code();
    if (code == aoti_torch_dtype_float32()) return DType::Float32;
    if (code == aoti_torch_dtype_bfloat16()) return DType::BFloat16;
    if (code == aoti_torch_dtype_float16()) return DType::Float16;
    if (code == aoti_torch_dtype_float64()) return DType::Float64;
    return DType::Other;
  }
  int32_t device_type() const { return read<int32_t>(aoti_torch_get_device_type); }
  int32_t device_index() const { return read<int32_t>(aoti_torch_get_device_index); }
  bool is_cpu() const { return device_type() == aoti_torch_device_type_cpu(); }
  bool is_cuda() const { return device_type() == aoti_torch_device_type_cuda(); }
  bool is_contiguous() const { return read<bool>(aoti_torch_is_contiguous); }

  // The caller vouches for the element type: check dtype() first.
  template <class T = void>
  T* data() const {
    return static_cast<T*>(read<void*>(aoti_torch_get_data_ptr));
  }

  // A second reference to the same tensor. The dispatcher wants results that are no inputs:
  // an operator must not return it.
  Tensor alias() const { return Tensor(read<AtenTensorHandle>(aoti_torch_new_tensor_handle)); }

  // This tensor if it is contiguous, else a contiguous copy.
  Tensor contiguous() const {
    if (is_contiguous()) return alias();  // saves the dispatcher's look-up by name
    const int32_t format = aoti_torch_memory_format_contiguous_format();
    AtenTensorHandle handle = alias().release();  // the call takes it over
    StableIValue stack[2] = {};
    std::memcpy(&stack[0], &handle, sizeof handle);
    std::memcpy(&stack[1], &format, sizeof format);
    MONARCH_TORCH_CALL(torch_call_dispatcher("aten::contiguous", "", stack, kAbiVersion));
    std::memcpy(&handle, &stack[0], sizeof handle);
    return Tensor(handle);
  }

  // An uninitialised contiguous tensor on this tensor's device, of its dtype or of `dtype`.
  Tensor new_empty(std::initializer_list<int64_t> sizes) const {
    return allocate(sizes.begin(), sizes.size(), dtype_code());
  }
  Tensor new_empty(const std::vector<int64_t>& sizes) const {
    return allocate(sizes.data(), sizes.size(), dtype_code());
  }
  Tensor new_empty(std::initializer_list<int64_t> sizes, DType dtype) const {
    return allocate(sizes.begin(), sizes.size(), code_of(dtype));
  }
  Tensor new_empty(const std::vector<int64_t>& sizes, DType dtype) const {
    return allocate(sizes.data(), sizes.size(), code_of(dtype));
  }

 private:
  template <class T>
  T read(AOTITorchError (*getter)(AtenTensorHandle, T*)) const {
    T value;
    MONARCH_CHECK(handle_ != nullptr && getter(handle_, &value) == 0, "cannot read this tensor");
    return value;
  }
  int32_t dtype_code() const { return read<int32_t>(aoti_torch_get_dtype); }
  int64_t checked(int64_t index) const {
    const int64_t dims = dim();
    MONARCH_CHECK(-dims <= index && index < dims, "dimension ", index, " of a ", dims, "-d tensor");
    return index < 0 ? index + dims : index;
  }
  static int32_t code_of(DType dtype) {
    switch (dtype) {
      case DType::Float32:
        return aoti_torch_dtype_float32();
      case DType::BFloat16:
        return aoti_torch_dtype_bfloat16();
      case DType::Float16:
        return aoti_torch_dtype_float16();
      case DType::Float64:
        return aoti_torch_dtype_float64();
      case DType::Other:
        break;
    }
    fail("new_empty: no such dtype");
  }
  // empty_strided rather than aten::empty: it has a C function of its own, which costs less than
  // a call through the dispatcher.
  Tensor allocate(const int64_t* sizes, size_t dims, int32_t dtype) const {
    std::vector<int64_t> strides(dims);
    int64_t step = 1;
    for (size_t i = dims; i-- > 0;) {
      strides[i] = step;
      step *= sizes[i] > 0 ? sizes[i] : 1;
    }
    AtenTensorHandle result = from_block(sizes, strides, step * element_size(dtype), dtype);
    if (result != nullptr) return Tensor(result);
    const AOTITorchError error =
        aoti_torch_empty_strided(static_cast<int64_t>(dims), sizes, strides.data(), dtype,
                                 device_type(), device_index(), &result);
    MONARCH_CHECK(error == 0, "out of memory, most likely: torch cannot allocate ", step,
                  " elements on ", is_cpu() ? "the CPU" : "device ", is_cpu() ? "" : index_text());
    return Tensor(result);
  }

  // A tensor over a block of `block_source`, which gets it back when the storage is freed; null
  // where there is no source, or too little to ask it for.
  AtenTensorHandle from_block(const int64_t* sizes, const std::vector<int64_t>& strides,
                              int64_t bytes, int32_t dtype) const {
    if (block_source == nullptr || bytes < block_source->least_bytes || !is_cpu() ||
        torch_from_blob == nullptr) {
      return nullptr;
    }
    void* data = block_source->take(bytes);
    if (data == nullptr) return nullptr;
    const auto give = [](void* block, void* context) {
      block_source->give(block, reinterpret_cast<intptr_t>(context));
    };
    AtenTensorHandle result = nullptr;
    const AOTITorchError error =
        torch_from_blob(data, static_cast<int64_t>(strides.size()), sizes, strides.data(), 0, dtype,
                        device_type(), device_index(), &result, aoti_torch_layout_strided(),
                        nullptr, 0, give, reinterpret_cast<void*>(static_cast<intptr_t>(bytes)));
    // After an error the block may have been given back, or not: better lost than given twice.
    return error == 0 ? result : nullptr;
  }

  static int64_t element_size(int32_t dtype) {
    if (dtype == aoti_torch_dtype_float64()) return 8;
    if (dtype == aoti_torch_dtype_float32()) return 4;
    if (dtype == aoti_torch_dtype_bfloat16() || dtype == aoti_torch_dtype_float16()) return 2;
    return 0;  // not one that operators allocate
  }
  std::string index_text() const { return std::to_string(device_index()); }

  AtenTensorHandle handle_ = nullptr;
};

// ---- The dispatcher's stack <-> typed C++ functions --------------------------------------------

// int64_t (int, SymInt), double (float) and bool: the bytes of the value.
template <class T>
struct StackValue {
  static_assert(std::is_same_v<T, int64_t> || std::is_same_v<T, double> || std::is_same_v<T, bool>,
                "no conversion for this type of argument or result");
  static T take(StableIValue slot) {
    T value;
    std::memcpy(&value, &slot, sizeof value);
    return value;
  }
  static StableIValue give(T value) {
    StableIValue slot = 0;
    std::memcpy(&slot, &value, sizeof value);
    return slot;
  }
};

// Tensor: a handle that changes owner, both ways.
template <>
struct StackValue<Tensor> {
  static Tensor take(StableIValue slot) { return Tensor(reinterpret_cast<AtenTensorHandle>(slot)); }
  static StableIValue give(Tensor tensor) {
    return reinterpret_cast<StableIValue>(tensor.release());
  }
};

// str: as a result only, and not on a hot path: libtorch (seen in 2.13) leaks each string.
template <>
struct StackValue<std::string> {
  static StableIValue give(const std::string& text) {
    StringHandle handle;
    MONARCH_TORCH_CALL(torch_new_string_handle(text.data(), text.size(), &handle));
    return reinterpret_cast<StableIValue>(handle);
  }
};

// T?: null, or a pointer to a slot on the heap, which the receiver deletes. In this convention
// (torch < 2.13, see kAbiVersion) `new` and `delete` meet across the library boundary: never link
// with -static-libstdc++.
template <class T>
struct StackValue<std::optional<T>> {
  static std::optional<T> take(StableIValue slot) {
    auto* inner = reinterpret_cast<StableIValue*>(slot);
    if (inner == nullptr) return std::nullopt;
    std::optional<T> value(StackValue<T>::take(*inner));
    delete inner;
    return value;
  }
  static StableIValue give(std::optional<T> value) {
    if (!value) return 0;
    return reinterpret_cast<StableIValue>(new StableIValue(StackValue<T>::give(*std::move(value))));
  }
};

template <auto Function>
struct Boxed;

// Wraps a typed function in the signature that the dispatcher calls.
template <class Result, class... Arguments, Result (*Function)(Arguments...)>
struct Boxed<Function> {
  template <class T>
  using Bare = std::remove_cv_t<std::remove_reference_t<T>>;
  using Indices = std::index_sequence_for<Arguments...>;

  static void call(StableIValue* stack, uint64_t arguments, uint64_t results) {
    MONARCH_CHECK(arguments == sizeof...(Arguments), "the schema has ", arguments,
                  " arguments, the function ", sizeof...(Arguments));
    if constexpr (std::is_void_v<Result>) {
      invoke(stack, Indices{});
    } else {
      store(stack, results, invoke(stack, Indices{}));
    }
  }

 private:
  template <size_t... I>
  static Result invoke(StableIValue* stack, std::index_sequence<I...>) {
    // The tuple owns every handle before the function runs: one that throws leaks none.
    std::tuple<Bare<Arguments>...> values{StackValue<Bare<Arguments>>::take(stack[I])...};
    return Function(static_cast<Arguments&&>(std::get<I>(values))...);
  }
  template <class T>
  static void store(StableIValue* stack, uint64_t results, T result) {
    MONARCH_CHECK(results == 1, "the schema has ", results, " results, the function 1");
    stack[0] = StackValue<T>::give(std::move(result));
  }
  template <class... T>
  static void store(StableIValue* stack, uint64_t results, std::tuple<T...> values) {
    MONARCH_CHECK(results == sizeof...(T), "the schema has ", results, " results, the function ",
                  sizeof...(T));
    store_each(stack, values, std::index_sequence_for<T...>{});
  }
  template <class... T, size_t... I>
  static void store_each(StableIValue* stack, std::tuple<T...>& values, std::index_sequence<I...>) {
    ((stack[I] = StackValue<T>::give(std::move(std::get<I>(values)))), ...);
  }
};

// Registers implementations for one dispatch key; the schemas are defined in Python, before or
// after. Use: static Library cpu("monarch_kernels", "CPU"); cpu.impl<&function>("operator");
// It is never destroyed: its registrations hold for the life of the process.
class Library {
 public:
  Library(const char* ns, const char* key, const char* file = __builtin_FILE(),
          uint32_t line = __builtin_LINE()) {
    MONARCH_TORCH_CALL(aoti_torch_library_init_impl(ns, key, file, line, &handle_));
  }
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;

  template <auto Function>
  Library& impl(const char* name) {
    MONARCH_TORCH_CALL(torch_library_impl(handle_, name, &Boxed<Function>::call, kAbiVersion));
    return *this;
  }

 private:
  TorchLibraryHandle handle_ = nullptr;
};

// ---- Threads -----------------------------------------------------------------------------------

// The number of threads parallel_for may use (torch.set_num_threads).
inline int64_t num_threads() {
  uint32_t count;
  MONARCH_TORCH_CALL(torch_get_num_threads(&count));
  return count;
}

// Calls body(first, last) on torch's threads for ranges that cover [begin, end), each of at least
// `grain` items. The first exception of a body is thrown again here: it must not cross libtorch,
// which would lose its text, or OpenMP, which would end the process.
template <class Body>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Body& body) {
  struct Context {
    const Body& body;
    std::atomic_flag failed = ATOMIC_FLAG_INIT;
    std::exception_ptr error = nullptr;
  } context{body};
  auto run = [](int64_t first, int64_t last, void* opaque) {
    auto& shared = *static_cast<Context*>(opaque);
    try {
      shared.body(first, last);
    } catch (...) {
      if (!shared.failed.test_and_set()) shared.error = std::current_exception();
    }
  };
  MONARCH_TORCH_CALL(torch_parallel_for(begin, end, grain, run, &context));
  if (context.error) std::rethrow_exception(context.error);
}

// ---- CUDA --------------------------------------------------------------------------------------

// The accelerator `index` is current while this lives; then the one before is again. torch's own
// guard: unlike cudaSetDevice, it makes no context on a device that has none.
class DeviceGuard {
 public:
  explicit DeviceGuard(int32_t index) {
    MONARCH_TORCH_CALL(aoti_torch_create_device_guard(index, &handle_));
  }
  ~DeviceGuard() { aoti_torch_delete_device_guard(handle_); }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  DeviceGuardHandle handle_ = nullptr;
};

// torch's current stream on a GPU, a cudaStream_t.
inline void* current_cuda_stream(int32_t device_index) {
  void* stream = nullptr;
  MONARCH_TORCH_CALL(aoti_torch_get_current_cuda_stream(device_index, &stream));
  return stream;
}

}  // namespace monarch::abi
