// The products for one instruction set; CMakeLists.txt gives this file its flags.
#include "cpu/glu_mlp.inl"
#include "cpu/implicit_filter.inl"
#include "cpu/monarch_matmul.inl"
#include "cpu/products.inl"
#include "cpu/projection.inl"

namespace monarch::cpu {
const ProductTable kAvx2Products = {false,
                                    kTokens,
                                    kBaseChunk,
                                    run_convert,
                                    run_block_diagonal_fwd,
                                    run_block_diagonal_bwd,
                                    run_monarch_matmul_fwd,
                                    run_projection_fwd,
                                    run_glu_mlp_fwd,
                                    run_glu_mlp_hidden,
                                    run_glu_mlp_sum,
                                    run_glu_mlp_finish,
                                    run_glu_mlp_bwd_rows,
                                    run_glu_mlp_bwd_weights,
                                    run_glu_mlp_bwd_results,
                                    run_implicit_filter_fwd,
                                    run_implicit_filter_bwd};
}
