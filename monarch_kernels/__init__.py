"""Long convolutions and Monarch matrices as hand-written kernels.

Public names:
    fft_conv: long convolution with fused gates and skip, any length, differentiable.
    mixer_conv: M2-BERT's sequence mixer, short filter, gates and two long convolutions in one pass.
    short_conv: short depthwise convolution, causal or centred.
    filter_spectrum, FilterSpectrum: a filter transformed once, for many calls.
    block_diagonal: one block-diagonal factor of a Monarch matrix.
    monarch_matmul: two factors and the permutation between; to_dense, project_to_monarch.
    projection: a dense product that reads and writes either layout, at both ends of mixer_conv.
    glu_mlp: the gated MLP of block-diagonal weights, with residual and LayerNorm, in one pass.
    implicit_filter: long filters as the values of a sine network of the tap's position.
    keep_memory, kept_memory: how much memory of freed results waits for the next ones (CPU).

`python -m monarch_kernels.info` says which backends are usable here, and why the others are not.
"""

from importlib.metadata import PackageNotFoundError, version

from monarch_kernels.block_diagonal import block_diagonal
from monarch_kernels.fft_conv import fft_conv
from monarch_kernels.glu_mlp import glu_mlp
from monarch_kernels.implicit_filter import implicit_filter
from monarch_kernels.memory import keep_memory, kept_memory
from monarch_kernels.mixer_conv import mixer_conv
from monarch_kernels.monarch_matmul import monarch_matmul, project_to_monarch, to_dense
from monarch_kernels.projection import projection
from monarch_kernels.short_conv import short_conv
from monarch_kernels.spectrum import FilterSpectrum, filter_spectrum

try:
    __version__ = version("monarch-kernels")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = [
    "FilterSpectrum",
    "__version__",
    "block_diagonal",
    "fft_conv",
    "filter_spectrum",
    "glu_mlp",
    "implicit_filter",
    "keep_memory",
    "kept_memory",
    "mixer_conv",
    "monarch_matmul",
    "project_to_monarch",
    "projection",
    "short_conv",
    "to_dense",
]
