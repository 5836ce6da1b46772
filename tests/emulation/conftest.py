"""Fixtures of the emulated kernels."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.emulation.build import FLAVOURS, BuildError, build, compiler
from tests.emulation.emulator import Emulator


@pytest.fixture(scope="session")
def emulators():
    """A function from sources (and options of `build`) to a fast and a checked `Emulator`."""
    try:
        compiler()
    except BuildError as reason:
        pytest.skip(str(reason))

    def make(sources, **options):
        with ThreadPoolExecutor(2) as pool:
            builds = pool.map(lambda name: build(sources, flavour=name, **options), FLAVOURS)
            return [Emulator(library) for library in builds]

    return make


KERNELS = ["reduction", "transpose", "matmul", "exchange", "barriers"]
KERNELS += ["primitives", "mistakes", "fragments"]


@pytest.fixture(scope="session")
def kernels(emulators):
    """The emulator's own kernels, (fast, checked)."""
    return emulators([f"tests/emulation/kernels/{name}.cu" for name in KERNELS])
