// Every outer plan over inner rows of 128 points: all kernels for long rows, at lengths that an
// emulator does in no time. For the sources that include this first.
#pragma once
#include "core/chain.h"
#include "core/plan.h"

namespace monarch {
using NoBlockPlans = PlanList<>;
using ShortInnerPlans = PlanList<BlockPlan<Plan<16, 8>, 64>>;
}  // namespace monarch

// What follows sees no others.
#define BlockPlans NoBlockPlans
#define InnerPlans ShortInnerPlans
#define ChainPlans NoBlockPlans
