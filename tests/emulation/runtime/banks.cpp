// Bank conflicts of loads and stores of shared memory. Shared memory has 32 banks of 4 bytes; what
// the lanes of a warp access at once takes as many wavefronts as there are different words in the
// busiest bank. Of 8 bytes a lane, half a warp is served at a time, of 16 a quarter.
#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "emulation/runtime/report.h"
#include "emulation/runtime/state.h"

namespace emulation {
namespace {

constexpr unsigned kBanks = 32, kBankBytes = 4;

// What the lanes of one warp access together: their n-th access at one place of the source.
struct Group {
  uintptr_t addresses[kLanes];
  uint32_t lanes = 0;
  size_t bytes = 0;
};
struct Place {
  uint64_t times[kLanes] = {};
  std::map<uint64_t, Group> groups;
};
std::map<std::pair<unsigned, Site>, Place> places;  // by warp

void count(const Group& group) {
  const unsigned words = std::max<unsigned>(1, static_cast<unsigned>(group.bytes) / kBankBytes);
  const unsigned together = kLanes / words;
  for (unsigned first = 0; first < kLanes; first += together) {
    std::set<uintptr_t> in_bank[kBanks];
    for (unsigned lane = first; lane < first + together; ++lane) {
      if ((group.lanes >> lane & 1) == 0) continue;
      for (unsigned i = 0; i < words; ++i) {
        const uintptr_t word = group.addresses[lane] / kBankBytes + i;
        in_bank[word % kBanks].insert(word);
      }
    }
    size_t most = 0;
    for (const auto& bank : in_bank) most = std::max(most, bank.size());
    statistics.vector_accesses += most > 0 ? 1 : 0;
    statistics.vector_wavefronts += most;
  }
}

}  // namespace

void count_banks(const void* address, size_t bytes, Location location) {
  Place& place = places[{current->warp, site_of(location)}];
  const uint64_t time = place.times[current->lane]++;
  Group& group = place.groups[time];
  group.addresses[current->lane] = reinterpret_cast<uintptr_t>(address);
  group.lanes |= 1u << current->lane;
  group.bytes = bytes;
  if (group.lanes != ~0u) return;
  count(group);
  place.groups.erase(time);
}

void finish_counting_banks() {
  for (const auto& [key, place] : places) {
    for (const auto& [time, group] : place.groups) count(group);
  }
  places.clear();
}

}  // namespace emulation
