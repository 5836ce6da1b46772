// What gcc calls in kernels compiled with -fsanitize=thread,alignment,bounds,shift. The names are
// the sanitizers'; their libraries are not linked.
#include "emulation/runtime/memory.h"
#include "emulation/runtime/state.h"

namespace emulation {

// Set by a constructor of the checked code, so before any dynamic initialisation of this file.
constinit bool checked = false;

namespace {

// Host code of the same file calls the hooks too; there is no thread then.
void hook(const void* address, size_t bytes, Access access, const void* return_address,
          bool aligned = true) {
  if (current != nullptr)
    check(address, bytes, {access, site_of_instruction(return_address), aligned});
}

}  // namespace
}  // namespace emulation

using emulation::Access;
using emulation::hook;

extern "C" {

#define EMULATION_HOOKS(bytes)                                                \
  void __tsan_read##bytes(void* address) {                                    \
    hook(address, bytes, Access::kRead, __builtin_return_address(0));         \
  }                                                                           \
  void __tsan_write##bytes(void* address) {                                   \
    hook(address, bytes, Access::kWrite, __builtin_return_address(0));        \
  }                                                                           \
  void __tsan_volatile_read##bytes(void* address) {                           \
    hook(address, bytes, Access::kRead, __builtin_return_address(0));         \
  }                                                                           \
  void __tsan_volatile_write##bytes(void* address) {                          \
    hook(address, bytes, Access::kWrite, __builtin_return_address(0));        \
  }                                                                           \
  void __tsan_unaligned_read##bytes(void* address) {                          \
    hook(address, bytes, Access::kRead, __builtin_return_address(0), false);  \
  }                                                                           \
  void __tsan_unaligned_write##bytes(void* address) {                         \
    hook(address, bytes, Access::kWrite, __builtin_return_address(0), false); \
  }
EMULATION_HOOKS(1)
EMULATION_HOOKS(2)
EMULATION_HOOKS(4)
EMULATION_HOOKS(8)
EMULATION_HOOKS(16)
#undef EMULATION_HOOKS

void __tsan_read_range(void* address, size_t bytes) {
  hook(address, bytes, Access::kRead, __builtin_return_address(0), false);
}
void __tsan_write_range(void* address, size_t bytes) {
  hook(address, bytes, Access::kWrite, __builtin_return_address(0), false);
}
void __tsan_init() { emulation::checked = true; }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

// Of host code in the same file: guards of static variables, flags.
#define EMULATION_ATOMIC_HOOKS(bits)                                                              \
  uint##bits##_t __tsan_atomic##bits##_load(const volatile uint##bits##_t* address, int) {        \
    return __atomic_load_n(address, __ATOMIC_SEQ_CST);                                            \
  }                                                                                               \
  void __tsan_atomic##bits##_store(volatile uint##bits##_t* address, uint##bits##_t value, int) { \
    __atomic_store_n(address, value, __ATOMIC_SEQ_CST);                                           \
  }                                                                                               \
  uint##bits##_t __tsan_atomic##bits##_fetch_add(volatile uint##bits##_t* address,                \
                                                 uint##bits##_t value, int) {                     \
    return __atomic_fetch_add(address, value, __ATOMIC_SEQ_CST);                                  \
  }
EMULATION_ATOMIC_HOOKS(8)
EMULATION_ATOMIC_HOOKS(32)
EMULATION_ATOMIC_HOOKS(64)
#undef EMULATION_ATOMIC_HOOKS

struct UndefinedBehaviour {
  const char* file;
  uint32_t line, column;
};
struct TypeMismatch {
  UndefinedBehaviour at;
  const void* type;
  unsigned char log_alignment, kind;
};

void __ubsan_handle_type_mismatch_v1(TypeMismatch* data, uintptr_t address) {
  const uintptr_t alignment = uintptr_t{1} << data->log_alignment;
  if (emulation::current == nullptr || address == 0 || address % alignment == 0) return;
  emulation::fail(emulation::Kind::kMisaligned, emulation::site_of(data->at.file, data->at.line),
                  "an access needs %zu-byte alignment; the address is %zu past a multiple",
                  static_cast<size_t>(alignment), static_cast<size_t>(address % alignment));
}
void __ubsan_handle_out_of_bounds(UndefinedBehaviour* at, uintptr_t index) {
  if (emulation::current == nullptr) return;
  emulation::fail(emulation::Kind::kLocalIndex, emulation::site_of(at->file, at->line),
                  "index %ld is outside its array", static_cast<long>(index));
}
void __ubsan_handle_shift_out_of_bounds(UndefinedBehaviour* at, uintptr_t, uintptr_t places) {
  if (emulation::current == nullptr) return;
  emulation::report(emulation::Kind::kShift, emulation::site_of(at->file, at->line),
                    emulation::Site::kNone, "shift by %ld places", static_cast<long>(places));
}

}  // extern "C"
