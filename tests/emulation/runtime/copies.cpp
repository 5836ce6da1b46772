// cp.async: bytes may land at any time between the issue and the wait, so both ends are tried.
#include <cstring>

#include "emulation/runtime/memory.h"
#include "emulation/runtime/state.h"

namespace emulation {
namespace {

void land(const Copy& copy) {
  std::memcpy(copy.destination, copy.source, copy.source_bytes);
  std::memset(copy.destination + copy.source_bytes, 0, copy.bytes - copy.source_bytes);
}

}  // namespace

void copy_async(uint32_t destination, const void* source, unsigned bytes, unsigned source_bytes,
                Location location) {
  const Site site = site_of(location);
  if (source_bytes > bytes)
    fail(Kind::kOutOfBounds, site, "copy of %u bytes from %u", bytes, source_bytes);
  const Copy copy{shared_pointer(destination),
                  static_cast<const unsigned char*>(source),
                  bytes,
                  source_bytes,
                  current->copy_group,
                  site};
  check(copy.destination, bytes, {Access::kWrite, site});
  if (source_bytes > 0) {
    if (reinterpret_cast<uintptr_t>(source) % bytes != 0)
      fail(Kind::kMisaligned, site, "copy of %u bytes: the source is %zu past a multiple", bytes,
           static_cast<size_t>(reinterpret_cast<uintptr_t>(source) % bytes));
    check(source, source_bytes, {Access::kRead, site, false});
  }
  if (options.late_copies) {
    std::memset(copy.destination, 0xff, bytes);
  } else {
    land(copy);
  }
  mark_in_flight(copy.destination, bytes, true);
  current->copies.push_back(copy);
  ++statistics.copies;
}

void copy_async_commit() { ++current->copy_group; }

void copy_async_wait(unsigned pending, Location location) {
  const Site site = site_of(location);
  std::vector<Copy>& copies = current->copies;
  size_t kept = 0;
  for (const Copy& copy : copies) {
    // Groups that are not committed are never waited for.
    if (copy.group + pending >= current->copy_group) {
      copies[kept++] = copy;
      continue;
    }
    mark_in_flight(copy.destination, copy.bytes, false);
    check(copy.destination, copy.bytes, {Access::kWrite, site});
    if (options.late_copies) land(copy);
  }
  copies.resize(kept);
}

void finish_copies(Thread& thread) {
  if (thread.copies.empty()) return;
  report(Kind::kLostCopy, thread.copies.front().site, Site::kNone,
         "thread %u exits with %zu copies in flight", thread.number, thread.copies.size());
  thread.copies.clear();
}

}  // namespace emulation
