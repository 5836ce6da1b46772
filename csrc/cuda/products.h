// block_diagonal, monarch_matmul and glu_mlp on CUDA: entry points for the bindings and for the
// emulated tests. Device pointers and a stream; nothing is allocated and nothing waits, so every
// call can be captured in a CUDA graph. Weights have the dtype of x; `pairs` and `tile` mean
// nothing here.
#pragma once
#include <cstdint>

#include "core/block_diagonal.h"
#include "core/glu_mlp.h"
#include "core/monarch_matmul.h"
#include "cuda/launch.h"

namespace monarch::cuda {

// Bytes of scratch memory (256-byte aligned, contents irrelevant) that a call needs; may be 0.
int64_t block_diagonal_fwd_scratch(const BlockDiagonalParams& params, const DeviceLimits& device);
int64_t block_diagonal_bwd_scratch(const BlockDiagonalBackwardParams& params,
                                   const DeviceLimits& device);
int64_t monarch_matmul_fwd_scratch(const MonarchMatmulParams& params, const DeviceLimits& device);
int64_t glu_mlp_fwd_scratch(const GluMlpParams& params, const DeviceLimits& device);
int64_t glu_mlp_bwd_scratch(const GluMlpBackwardParams& params, const DeviceLimits& device);

// Enqueue the kernels on launch.stream. Throw std::runtime_error, naming kernel, shape and device,
// if a launch fails. Results do not depend on the order in which blocks run.
void block_diagonal_fwd(const BlockDiagonalParams& params, void* scratch, const Launch& launch);
// dx, dw and dbias, each if it is not nullptr.
void block_diagonal_bwd(const BlockDiagonalBackwardParams& params, void* scratch,
                        const Launch& launch);
void monarch_matmul_fwd(const MonarchMatmulParams& params, void* scratch, const Launch& launch);
void glu_mlp_fwd(const GluMlpParams& params, void* scratch, const Launch& launch);
// dx, dw_in_result and dw_out_result, each if it is not nullptr.
void glu_mlp_bwd(const GluMlpBackwardParams& params, void* scratch, const Launch& launch);

}  // namespace monarch::cuda
