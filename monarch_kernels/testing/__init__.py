"""What tests and benchmarks share: inputs, the tables of cases, and the error budget.

A tolerance is computed here, never chosen: a result may be twice as far from the exact one as
torch.fft is with the same data in float32, plus what rounding to the dtype of the result costs.
Torch and NumPy are all it needs: kernels written elsewhere can be judged with it too.

Public names:
    white, layer_norm_like, hyena_filter, with_layout, LAYOUTS: seeded inputs of unit scale.
    assert_close_to_float64, Margin: the error budget.
    Case, CASES, BOUNDARIES, make_inputs, plan_length: the table of `fft_conv` cases.
    evaluate, check_fft_conv: run a function on a case; compare result and gradients.
    MixerCase, MIXER_CASES, MIXER_BOUNDARIES, make_mixer_inputs, evaluate_mixer, check_mixer_conv:
        the same of `mixer_conv`.
    ProductCase, PRODUCT_CASES, product_inputs, run_product, check_product: the same of
        `block_diagonal`, `monarch_matmul` and `glu_mlp`.
    FilterCase, FILTER_CASES, filter_inputs, evaluate_filter, check_implicit_filter: the same of
        `implicit_filter`.
"""

from monarch_kernels.testing.budget import Margin, assert_close_to_float64
from monarch_kernels.testing.fft_conv import (
    BOUNDARIES,
    CASES,
    Case,
    check_fft_conv,
    evaluate,
    make_inputs,
    plan_length,
)
from monarch_kernels.testing.implicit_filter import (
    FILTER_CASES,
    FilterCase,
    check_implicit_filter,
    composed_filter,
    evaluate_filter,
    filter_inputs,
)
from monarch_kernels.testing.inputs import (
    LAYOUTS,
    hyena_filter,
    layer_norm_like,
    white,
    with_layout,
)
from monarch_kernels.testing.mixer_conv import (
    MIXER_BOUNDARIES,
    MIXER_CASES,
    MixerCase,
    check_mixer_conv,
    evaluate_mixer,
    make_mixer_inputs,
)
from monarch_kernels.testing.products import (
    PRODUCT_CASES,
    ProductCase,
    check_product,
    composed,
    product_inputs,
    run_product,
)

__all__ = [
    "BOUNDARIES",
    "CASES",
    "FILTER_CASES",
    "LAYOUTS",
    "MIXER_BOUNDARIES",
    "MIXER_CASES",
    "PRODUCT_CASES",
    "Case",
    "FilterCase",
    "Margin",
    "MixerCase",
    "ProductCase",
    "assert_close_to_float64",
    "check_fft_conv",
    "check_implicit_filter",
    "check_mixer_conv",
    "check_product",
    "composed",
    "composed_filter",
    "evaluate",
    "evaluate_filter",
    "evaluate_mixer",
    "filter_inputs",
    "hyena_filter",
    "layer_norm_like",
    "make_inputs",
    "make_mixer_inputs",
    "plan_length",
    "product_inputs",
    "run_product",
    "white",
    "with_layout",
]
