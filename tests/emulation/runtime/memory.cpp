#include "emulation/runtime/memory.h"

#include <sys/mman.h>

#include <cstring>
#include <string>
#include <vector>

#include "emulation/runtime/races.h"
#include "emulation/runtime/state.h"

namespace emulation {
namespace {

constexpr size_t kSlack = 64 << 10;  // on both sides, so that a near miss is known for what it is
constexpr size_t kGap = 256;         // between shared arrays
constexpr size_t kArenaBytes = 2 * kSlack + kMaxSharedBytes + 2 * kMaxStaticBytes;
constexpr uint32_t kFirstAddress = 1024;  // of shared memory, so that 0 is never valid
// CUDA promises no more than the alignment that device.cuh asks for.
constexpr size_t kSharedAlignment = 128;

struct StaticArray {
  Site site;
  unsigned column;
  size_t offset, bytes;
};
struct Buffer {
  uintptr_t begin, end;
  std::string name;
  int flags;
  std::vector<Cell> cells;
};

unsigned char* arena = nullptr;
std::vector<Cell> shared_cells;
size_t shared_used = 0;  // bytes from the start of shared memory that the block has or had
std::vector<StaticArray> static_arrays;
std::vector<Buffer> buffers;
size_t last_buffer = 0;

unsigned char* shared_base() {
  if (arena == nullptr) {
    void* pages =
        mmap(nullptr, kArenaBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) __builtin_trap();
    arena = static_cast<unsigned char*>(pages);
  }
  return arena + kSlack + kSharedAlignment;
}

size_t static_bytes() {
  size_t bytes = 0;
  for (const StaticArray& array : static_arrays) bytes += array.bytes;
  return bytes;
}

const char* name_of(Access access) {
  return access == Access::kRead ? "read" : access == Access::kWrite ? "write" : "atomic update";
}

bool inside_shared(size_t offset, size_t bytes) {
  const auto within = [&](size_t begin, size_t end) {
    return offset >= begin && offset < end && bytes <= end - offset;
  };
  if (within(0, launch_state.shared_bytes)) return true;
  for (const StaticArray& array : static_arrays) {
    if (within(array.offset, array.offset + array.bytes)) return true;
  }
  return false;
}

void require_inside_shared(size_t offset, size_t bytes, const char* what, Site site) {
  if (inside_shared(offset, bytes)) return;
  fail(Kind::kOutOfBounds, site,
       "%s of %zu bytes at byte %ld of shared memory, which has %zu bytes and %zu static arrays",
       what, bytes, static_cast<long>(offset), launch_state.shared_bytes, static_arrays.size());
}

void check_alignment(uintptr_t address, size_t bytes, const AccessDetails& access,
                     const char* memory) {
  if (access.aligned && address % bytes != 0)
    fail(Kind::kMisaligned, access.site,
         "%s of %zu bytes in %s: the address is %zu past a multiple", name_of(access.kind), bytes,
         memory, static_cast<size_t>(address % bytes));
}

void check_shared(uintptr_t address, size_t bytes, const AccessDetails& access) {
  const size_t offset = address - reinterpret_cast<uintptr_t>(shared_base());
  require_inside_shared(offset, bytes, name_of(access.kind), access.site);
  check_alignment(address, bytes, access, "shared memory");
  if (!checked) return;
  const size_t first = offset / kGranule, last = (offset + bytes + kGranule - 1) / kGranule;
  record(&shared_cells[first], &shared_cells[last], access.kind, access.site, true,
         {"shared", first * kGranule});
}

// Read-only buffers may overlap, so one that has the first byte alone is the second choice.
Buffer* find_buffer(uintptr_t address, size_t bytes) {
  const auto has = [&](size_t i) {
    return i < buffers.size() && address >= buffers[i].begin && address + bytes <= buffers[i].end;
  };
  if (has(last_buffer)) return &buffers[last_buffer];
  Buffer* partly = nullptr;
  for (size_t i = 0; i < buffers.size(); ++i) {
    if (has(i)) return &buffers[last_buffer = i];
    if (address >= buffers[i].begin && address < buffers[i].end) partly = &buffers[i];
  }
  return partly;
}

void check_buffer(Buffer& buffer, uintptr_t address, size_t bytes, const AccessDetails& access) {
  const size_t offset = address - buffer.begin;
  const char* name = buffer.name.c_str();
  if (address + bytes > buffer.end)
    fail(Kind::kOutOfBounds, access.site, "%s of %zu bytes at byte %zu of '%s', which has %zu",
         name_of(access.kind), bytes, offset, name, static_cast<size_t>(buffer.end - buffer.begin));
  if (access.kind != Access::kRead && (buffer.flags & kReadOnlyBuffer) != 0)
    fail(Kind::kReadOnly, access.site, "%s at byte %zu of '%s'", name_of(access.kind), offset,
         name);
  check_alignment(address, bytes, access, name);
  if (!checked || (buffer.flags & kReadOnlyBuffer) != 0) return;
  const size_t first = offset / kGranule, last = (offset + bytes + kGranule - 1) / kGranule;
  record(&buffer.cells[first], &buffer.cells[last], access.kind, access.site,
         (buffer.flags & kUninitialisedBuffer) != 0, {name, first * kGranule});
}

[[noreturn]] void fail_unknown(uintptr_t address, size_t bytes, const AccessDetails& access) {
  const auto first_stack = reinterpret_cast<uintptr_t>(block.threads[0].stack);
  if (address - first_stack < launch_state.threads * kStackBytes)
    fail(Kind::kForeignLocal, access.site, "%s of a local variable of thread %zu",
         name_of(access.kind), static_cast<size_t>((address - first_stack) / kStackBytes));
  const Buffer* nearest = nullptr;
  size_t distance = 0;
  for (const Buffer& buffer : buffers) {
    const size_t away = address < buffer.begin ? buffer.begin - address : address - buffer.end;
    if (nearest == nullptr || away < distance) {
      nearest = &buffer;
      distance = away;
    }
  }
  if (nearest == nullptr)
    fail(Kind::kOutOfBounds, access.site,
         "%s of %zu bytes of global memory: no buffer is registered", name_of(access.kind), bytes);
  fail(Kind::kOutOfBounds, access.site, "%s of %zu bytes in no buffer, %zu bytes %s '%s'",
       name_of(access.kind), bytes, distance,
       address < nearest->begin ? "before the start of" : "past the end of", nearest->name.c_str());
}

}  // namespace

void register_buffer(const void* address, size_t bytes, const char* name, int flags) {
  const auto begin = reinterpret_cast<uintptr_t>(address);
  buffers.push_back({begin, begin + bytes, name, flags, {}});
  if (checked && (flags & kReadOnlyBuffer) == 0)
    buffers.back().cells.resize((bytes + kGranule - 1) / kGranule + 1);
}

void forget_buffers() { buffers.clear(); }

void reset_shared() {
  std::memset(shared_base() - kSharedAlignment - kSlack, 0xff, kArenaBytes);
  if (checked) {
    if (shared_cells.empty()) shared_cells.resize(kArenaBytes / kGranule);
    std::fill_n(shared_cells.begin(), shared_used / kGranule + 1, Cell{});
  }
  static_arrays.clear();
  shared_used = launch_state.shared_bytes;
}

unsigned char* dynamic_shared() { return shared_base(); }

void* static_shared(size_t bytes, size_t alignment, Location location) {
  const Site site = site_of(location);
  for (const StaticArray& array : static_arrays) {
    if (array.site == site && array.column == location.column() && array.bytes == bytes)
      return shared_base() + array.offset;
  }
  const size_t total = static_bytes() + bytes;
  const size_t offset = (shared_used + kGap) / kSharedAlignment * kSharedAlignment;
  if (alignment > kSharedAlignment || total > kMaxStaticBytes ||
      launch_state.shared_bytes + total > kMaxSharedBytes ||
      offset + bytes > kArenaBytes - 2 * kSlack)
    fail(Kind::kOutOfBounds, site, "%zu bytes of static and %zu of dynamic shared memory", total,
         launch_state.shared_bytes);
  static_arrays.push_back({site, location.column(), offset, bytes});
  shared_used = offset + bytes;
  return shared_base() + offset;
}

uint32_t shared_address(const void* pointer, Location location) {
  const auto offset = static_cast<const unsigned char*>(pointer) - shared_base();
  // One past the end is an address too, as long as nothing is read there.
  if (offset < 0 || offset > static_cast<long>(kArenaBytes - kSlack))
    fail(Kind::kOutOfBounds, site_of(location), "shared_address of a pointer to other memory");
  return kFirstAddress + static_cast<uint32_t>(offset);
}

unsigned char* shared_pointer(uint32_t address) {
  return shared_base() + (static_cast<long>(address) - static_cast<long>(kFirstAddress));
}

void check(const void* pointer, size_t bytes, const AccessDetails& access) {
  ++statistics.accesses;
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  if (address - reinterpret_cast<uintptr_t>(current->stack) < kStackBytes) return;
  if (address - reinterpret_cast<uintptr_t>(arena) < kArenaBytes)
    return check_shared(address, bytes, access);
  if (Buffer* buffer = find_buffer(address, bytes))
    return check_buffer(*buffer, address, bytes, access);
  if (access.kind == Access::kRead && inside_library(pointer)) return;  // a constant table
  if (!checked && buffers.empty()) return;  // a caller who registers nothing checks no bounds
  fail_unknown(address, bytes, access);
}

void check_shared_bounds(uint32_t address, size_t bytes, Site site) {
  require_inside_shared(static_cast<size_t>(shared_pointer(address) - shared_base()), bytes, "row",
                        site);
}

void check_access(const void* address, size_t bytes, Access access, Location location) {
  check(address, bytes, {access, site_of(location)});
}

void mark_in_flight(const unsigned char* address, size_t bytes, bool in_flight) {
  if (!checked) return;
  const auto offset = static_cast<size_t>(address - shared_base());
  for (size_t i = offset / kGranule; i < (offset + bytes + kGranule - 1) / kGranule; ++i)
    shared_cells[i].write.in_flight = in_flight ? 1 : 0;
}

}  // namespace emulation
