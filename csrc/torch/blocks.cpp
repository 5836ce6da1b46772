// The CPU operators' large results lie in memory that is used again (cpu/blocks.h).
#include "cpu/blocks.h"

#include "torch/stable_abi.h"

namespace monarch {
namespace {

constexpr abi::BlockSource kBlocks = {cpu::kBlockBytes, cpu::take_block, cpu::give_block};

[[maybe_unused]] const bool installed = (abi::block_source = &kBlocks, true);

}  // namespace
}  // namespace monarch
