#include "emulation/runtime/races.h"

#include <algorithm>
#include <cstring>

namespace emulation {

Clocks clocks;

void Clocks::begin_launch() { launch_serial_ = serial_ + 1; }

void Clocks::begin_block() {
  ++serial_;
  floor_ = latest_ = 1;
  std::fill_n(own_, launch_state.threads, 0);
  std::fill_n(row_floor_, launch_state.threads, 0);
}

void Clocks::order_block() { floor_ = ++latest_; }

void Clocks::order_group(const std::vector<Thread*>& threads) {
  uint32_t warps = 0;
  for (const Thread* thread : threads) {
    warps |= 1u << thread->warp;
    if (row_floor_[thread->number] == floor_) warps |= warps_known_[thread->number];
  }
  for_each_lane(warps, [&](unsigned warp) {
    uint32_t merged[kLanes] = {};
    for (const Thread* thread : threads) {
      if (!knows(thread->number, warp)) continue;
      const uint32_t* row = &known_[thread->number][warp * kLanes];
      for (unsigned lane = 0; lane < kLanes; ++lane)
        merged[lane] = std::max(merged[lane], row[lane]);
    }
    for (const Thread* thread : threads) {
      if (thread->warp == warp) merged[thread->lane] = own(thread->number);
    }
    for (const Thread* thread : threads)
      std::memcpy(&known_[thread->number][warp * kLanes], merged, sizeof merged);
  });
  for (const Thread* thread : threads) {
    row_floor_[thread->number] = floor_;
    warps_known_[thread->number] = warps;
    own_[thread->number] = own(thread->number) + 1;
    latest_ = std::max(latest_, own_[thread->number]);
  }
}

Stamp Clocks::now(Access access, Site site) const {
  return {serial_, access == Access::kAtomic, 0, current->number, own(current->number), site};
}

bool Clocks::precedes(const Stamp& stamp) const {
  if (stamp.block != serial_) return stamp.block < launch_serial_;  // 0, never, is before all
  const unsigned self = current->number, other = stamp.thread;
  return stamp.clock < floor_ || other == self ||
         (knows(self, other / kLanes) && known_[self][other] >= stamp.clock);
}

namespace {

const char* name_of(Access access) {
  return access == Access::kRead ? "read" : access == Access::kWrite ? "write" : "atomic update";
}

// The earlier access that this one races with, or nullptr.
const Stamp* find_race(const Cell& cell, Access access) {
  const bool both_atomic = access == Access::kAtomic && cell.write.atomic != 0;
  if (!both_atomic && !clocks.precedes(cell.write)) return &cell.write;
  if (access == Access::kRead) return nullptr;
  for (const Stamp& read : cell.reads) {
    if (!clocks.precedes(read)) return &read;
  }
  return nullptr;
}

void remember_read(Cell& cell, const Stamp& stamp) {
  Stamp& first = cell.reads[0];
  const bool same_block = first.block == stamp.block;
  if (clocks.precedes(first) || (same_block && first.thread == stamp.thread)) {
    first = stamp;
  } else {
    const bool same_warp = same_block && first.thread / kLanes == stamp.thread / kLanes;
    cell.reads[same_warp ? 1 : 2] = stamp;
  }
}

void report_race(const Cell& cell, const Stamp& other, Access access, Site site, Place place) {
  const bool against_write = &other == &cell.write;
  const char* verb = against_write ? (other.atomic != 0 ? "atomic update" : "write") : "read";
  report(Kind::kRace, site, other.site,
         "%s of %s byte %zu races with the %s by thread %u of %s block", name_of(access),
         place.name, place.offset, verb, other.thread,
         other.block == clocks.now(access, site).block ? "this" : "another");
}

}  // namespace

void record(Cell* begin, Cell* end, Access access, Site site, bool must_be_written, Place place) {
  const Stamp stamp = clocks.now(access, site);
  bool reported = false;  // one finding an access is enough
  for (Cell* cell = begin; cell < end; ++cell, place.offset += kGranule) {
    const bool reads = access != Access::kWrite;
    if (cell->write.in_flight != 0) {
      if (!reported)
        report(Kind::kInFlight, site, cell->write.site,
               "%s of %s byte %zu, into which a copy by thread %u is in flight", name_of(access),
               place.name, place.offset, cell->write.thread);
      reported = true;
    } else if (reads && must_be_written && cell->write.block == 0) {
      if (!reported)
        report(Kind::kUninitialised, site, Site::kNone, "%s of %s byte %zu, which nothing has set",
               name_of(access), place.name, place.offset);
      reported = true;
    } else if (const Stamp* other = find_race(*cell, access)) {
      if (!reported) report_race(*cell, *other, access, site, place);
      reported = true;
    }
    if (access == Access::kRead) {
      remember_read(*cell, stamp);
    } else {
      *cell = Cell{stamp, {}};
    }
  }
}

}  // namespace emulation
