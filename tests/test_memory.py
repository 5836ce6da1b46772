"""Memory of large results, which is used again."""

import copy
import io
import subprocess
import sys
import threading

import pytest
import torch

from monarch_kernels import _native, fft_conv, filter_spectrum, keep_memory, kept_memory

pytestmark = pytest.mark.skipif(not _native.available, reason="no native libraries")

LENGTH = 1 << 19  # 4 MiB for two rows of float32
BYTES = 2 * LENGTH * 4


@pytest.fixture(autouse=True)
def nothing_kept():
    limit = keep_memory(0)
    keep_memory(4 * BYTES)
    yield
    keep_memory(0)
    keep_memory(limit)


@pytest.fixture
def spectrum():
    return filter_spectrum(torch.tensor([[1.0], [2.0]]), length=LENGTH)


def _rows(rows: int = 1, **options) -> torch.Tensor:
    return torch.randn(rows, 2, LENGTH, generator=torch.Generator().manual_seed(rows), **options)


def _right(y: torch.Tensor, u: torch.Tensor) -> bool:
    return torch.allclose(y, u * torch.tensor([[1.0], [2.0]]), atol=1e-5)


def test_a_freed_result_is_the_next_one(spectrum):
    u = _rows()
    y = fft_conv(u, spectrum)
    address = y.data_ptr()
    assert kept_memory() == 0
    del y
    assert kept_memory() == BYTES
    y = fft_conv(2 * u, spectrum)
    assert (y.data_ptr(), kept_memory()) == (address, 0)
    assert _right(y, 2 * u)


def test_a_living_result_is_left_alone(spectrum):
    u = _rows()
    y = fft_conv(u, spectrum)
    view, before = y[:, 1, 5:], y.clone()
    del y
    other = fft_conv(-u, spectrum)
    assert kept_memory() == 0
    assert torch.equal(view, before[:, 1, 5:])
    assert _right(other, -u)


def test_small_results_are_not_kept():
    fft_conv(torch.randn(1, 2, 1000), torch.ones(2, 3))
    assert kept_memory() == 0


def test_no_more_is_kept_than_the_limit(spectrum):
    results = [fft_conv(_rows(), spectrum) for _ in range(6)]
    del results
    assert kept_memory() == 4 * BYTES
    assert keep_memory(BYTES) == 4 * BYTES
    assert kept_memory() == BYTES
    assert keep_memory(0) == BYTES
    assert kept_memory() == 0
    fft_conv(_rows(), spectrum)
    assert kept_memory() == 0
    assert keep_memory(1) == 0


def test_another_size_takes_other_memory(spectrum):
    fft_conv(_rows(), spectrum)
    y = fft_conv(_rows(2), spectrum)
    assert kept_memory() == BYTES
    assert _right(y, _rows(2))


def test_a_result_is_a_tensor_like_any(spectrum):
    u = _rows()
    y = fft_conv(u, spectrum)
    assert y.is_contiguous()
    assert y.untyped_storage().nbytes() == BYTES
    assert torch.equal(copy.deepcopy(y), y)
    file = io.BytesIO()
    torch.save(y, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=True), y)
    expected = y.clone()
    assert torch.equal(y.share_memory_(), expected)


def test_gradients(spectrum):
    u = _rows(requires_grad=True)
    for _ in range(2):
        u.grad = None
        fft_conv(u, spectrum).sum().backward()
        assert torch.allclose(u.grad[0, 1], torch.full((LENGTH,), 2.0), atol=1e-5)


def test_threads_do_not_share_a_block(spectrum):
    wrong = []

    def work(seed):
        u = _rows() + seed
        for _ in range(4):
            if not _right(fft_conv(u, spectrum), u):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert kept_memory() <= 4 * BYTES


@pytest.mark.parametrize(
    ("limit", "error"), [(-1, ValueError), (1.5, TypeError), (None, TypeError), (True, TypeError)]
)
def test_bad_limits(limit, error):
    with pytest.raises(error, match="limit must be"):
        keep_memory(limit)


def test_a_result_may_outlive_everything_and_the_variable_is_read():
    program = f"""
import torch, monarch_kernels as mk
u = torch.ones(1, 2, {LENGTH})
mk.fft_conv(u, torch.ones(2, 1))
assert mk.kept_memory() == {BYTES}, mk.kept_memory()
assert mk.keep_memory(0) == 8 << 20
torch.kept = mk.fft_conv(u, torch.ones(2, 1))
"""
    environment = {"MONARCH_KERNELS_CPU_KEEP_MB": "8", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert (done.returncode, done.stderr) == (0, "")
