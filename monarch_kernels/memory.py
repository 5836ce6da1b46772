"""Memory of results on the CPU, which is kept for the next results.

The system clears every page of fresh memory on its first touch, which takes as long as a third of a
convolution. Results of 4 MiB or more therefore use the memory of freed ones of the same size. At
most 512 MiB are kept (environment variable MONARCH_KERNELS_CPU_KEEP_MB), and the system may take
them back at any time. The storage of such a result cannot be resized in place (`resize_`, `out=` of
another shape), unless the limit is 0. With torch 2.10 nothing is kept. On a GPU torch's own
allocator does this.
"""

from monarch_kernels import _native


def kept_memory() -> int:
    """Return how many bytes of freed results are kept for the next ones."""
    return _native.host.kept_bytes() if _native.available else 0


def keep_memory(limit: int) -> int:
    """Keep at most `limit` bytes from now on; what exceeds it returns to the system at once.

    Args:
        limit: in bytes; 0 keeps nothing.

    Returns:
        The limit before.

    Raises:
        TypeError: not an int.
        ValueError: negative.
    """
    if type(limit) is not int:
        raise TypeError(f"limit must be an int, got {type(limit).__name__}")
    if limit < 0:
        raise ValueError(f"limit must be at least 0, got {limit}")
    if not _native.available:
        return 0
    before = _native.host.kept_limit()
    _native.host.set_kept_limit(min(limit, 2**63 - 1))
    return before
