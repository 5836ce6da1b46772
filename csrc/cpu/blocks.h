// Memory of large results, kept when a result is freed and used again for the next one.
//
// The first touch of fresh memory costs the system as much as half a convolution: it clears every
// page. A result's memory therefore comes from here and returns here. The system may take what is
// kept whenever memory is short (MADV_FREE), and no more than a limit is kept.
#pragma once
#include <cstdint>

namespace monarch::cpu {

// Results of at least so many bytes are worth it: where huge pages begin to matter.
constexpr int64_t kBlockBytes = int64_t{4} << 20;

// Aligned to a huge page, contents unspecified; null if the limit is 0 or no memory is left.
void* take_block(int64_t bytes);
// `bytes` as they were asked for. Any thread may call it, also at the end of the process.
void give_block(void* data, int64_t bytes) noexcept;

// Most bytes that are kept; 0 keeps none. From MONARCH_KERNELS_CPU_KEEP_MB (512) at first.
void set_kept_limit(int64_t bytes);
int64_t kept_limit();
// Bytes that are kept now.
int64_t kept_bytes();

}  // namespace monarch::cpu
