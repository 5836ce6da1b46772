// Operations that the lanes of a warp do together.
#include "emulation/runtime/races.h"
#include "emulation/runtime/state.h"

namespace emulation {
namespace {

// Lanes that disagree about operation, mask or place wait at different meetings. If that never
// resolves, it is a deadlock, reported with all the places.
Meeting* find_meeting(Warp& warp, const char* what, uint32_t mask, bool same_place, Site site) {
  Meeting* free = nullptr;
  for (Meeting& meeting : warp.meetings) {
    if (!meeting.open) {
      if (free == nullptr) free = &meeting;
    } else if (meeting.mask == mask && meeting.what == what &&
               (!same_place || meeting.site == site)) {
      return &meeting;
    }
  }
  free->open = true;  // there are as many as lanes
  free->what = what;
  free->mask = mask;
  free->arrived = 0;
  free->site = site;
  return free;
}

uint32_t lanes_of_warp(const Thread& thread) {
  const unsigned lanes = launch_state.threads - thread.warp * kLanes;
  return lanes >= kLanes ? ~0u : (1u << lanes) - 1;
}

}  // namespace

void meet(const char* what, uint32_t mask, bool same_place, const void* input, void* output,
          void (*perform)(Meeting&), Site site) {
  ++statistics.collectives;
  Thread& self = *current;
  Warp& warp = block.warps[self.warp];
  const uint32_t bit = 1u << self.lane, lanes = lanes_of_warp(self);
  if (same_place && lanes != ~0u)
    fail(Kind::kBadCollective, site, "%s needs 32 lanes; this warp has fewer", what);
  if (mask == ~0u) mask = lanes;
  if ((mask & bit) == 0 || (mask & ~lanes) != 0)
    fail(Kind::kBadCollective, site, "%s: mask %08x in lane %u of lanes %08x", what, mask,
         self.lane, lanes);
  if ((mask & warp.exited) != 0)
    fail(Kind::kBadCollective, site, "%s: lanes %08x have exited", what, mask & warp.exited);
  Meeting& meeting = *find_meeting(warp, what, mask, same_place, site);
  meeting.inputs[self.lane] = input;
  meeting.outputs[self.lane] = output;
  meeting.arrived |= bit;
  if (meeting.arrived != mask) return wait_here(site, what);
  perform(meeting);
  meeting.open = false;
  for_each_lane(mask, [&](unsigned lane) { wake(block.threads[self.warp * kLanes + lane]); });
}

void sync_warp(uint32_t mask, Location location) {
  meet(
      "sync_warp", mask, false, nullptr, nullptr,
      [](Meeting& meeting) {
        if (!checked) return;
        std::vector<Thread*> members;
        for_each_lane(meeting.mask, [&](unsigned lane) {
          members.push_back(&block.threads[current->warp * kLanes + lane]);
        });
        clocks.order_group(members);
      },
      site_of(location));
}

namespace {

struct ShuffleInput {
  Shuffle kind;
  uint32_t value;
  int operand, width;
};

unsigned shuffle_source(const ShuffleInput& input, int lane) {
  const int first = lane & ~(input.width - 1), end = first + input.width;
  int source = lane;
  switch (input.kind) {
    case Shuffle::kIndex:
      return first + (input.operand & (input.width - 1));
    case Shuffle::kUp:
      source = lane - input.operand;
      return source < first ? lane : source;
    case Shuffle::kDown:
      source = lane + input.operand;
      return source >= end ? lane : source;
    case Shuffle::kXor:
      source = lane ^ input.operand;
      return source >= end ? lane : source;
  }
  return lane;
}

void perform_shuffle(Meeting& meeting) {
  for_each_lane(meeting.mask, [&](unsigned lane) {
    const auto& input = *static_cast<const ShuffleInput*>(meeting.inputs[lane]);
    const unsigned source = shuffle_source(input, static_cast<int>(lane));
    const bool present = (meeting.mask >> source & 1) != 0;
    // The value of a lane that does not take part is undefined: NaN.
    *static_cast<uint32_t*>(meeting.outputs[lane]) =
        present ? static_cast<const ShuffleInput*>(meeting.inputs[source])->value : ~0u;
  });
}

void perform_ballot(Meeting& meeting) {
  uint32_t votes = 0;
  for_each_lane(meeting.mask, [&](unsigned lane) {
    votes |= uint32_t{*static_cast<const bool*>(meeting.inputs[lane])} << lane;
  });
  for_each_lane(meeting.mask,
                [&](unsigned lane) { *static_cast<uint32_t*>(meeting.outputs[lane]) = votes; });
}

}  // namespace

uint32_t shuffle_bits(Shuffle kind, uint32_t value, int operand, int width, Location location) {
  constexpr const char* kNames[] = {"shuffle", "shuffle_up", "shuffle_down", "shuffle_xor"};
  const char* name = kNames[static_cast<int>(kind)];
  const Site site = site_of(location);
  if (width <= 0 || width > static_cast<int>(kLanes) || (width & (width - 1)) != 0)
    fail(Kind::kBadCollective, site, "%s: width %d", name, width);
  const ShuffleInput input{kind, value, operand, width};
  uint32_t result = 0;
  meet(name, ~0u, false, &input, &result, perform_shuffle, site);
  return result;
}

uint32_t ballot(bool predicate, Location location) {
  uint32_t votes = 0;
  meet("ballot", ~0u, false, &predicate, &votes, perform_ballot, site_of(location));
  return votes;
}

}  // namespace emulation
