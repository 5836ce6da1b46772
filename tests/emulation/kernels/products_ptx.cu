// The matrix products with two dtypes, so that they compile in seconds; for test_products_ptx.py.
// nvcc makes PTX of the kernels, g++ the launchers.
#include "ptx_runner.h"

#include "cuda/product.h"

namespace monarch::cuda {
template <class Use>
void with_few(Scalar scalar, Use use) {
  if (scalar == Scalar::kFloat32) {
    use(float{});
  } else {
    use(BFloat16{});
  }
}
}  // namespace monarch::cuda
#define with_element with_few

#include "cuda/block_diagonal.cu"
#include "cuda/glu_mlp.cu"
#include "cuda/monarch_matmul.cu"
