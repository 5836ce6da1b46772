"""The emulator finds every planted bug, at its line, and nothing in the kernels without it."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.emulation import cases, planted_bugs
from tests.emulation.build import build
from tests.emulation.emulator import Emulator, Schedule, schedules

RUNS = list(planted_bugs.SOURCES)


@pytest.fixture(scope="session")
def planted(kernels):
    """A checked `Emulator` for each bug; compiled side by side. `kernels` has built the runtime."""

    def make(bug):
        return Emulator(build([bug.plant()], flavour="checked"))

    with ThreadPoolExecutor(2) as pool:
        libraries = list(pool.map(make, planted_bugs.ALL))
    return dict(zip(planted_bugs.ALL, libraries, strict=True))


@pytest.mark.parametrize("bug", planted_bugs.ALL, ids=lambda bug: bug.name)
def test_bug_is_found(bug, planted):
    emulator, lines = planted[bug], bug.plant().read_text().splitlines()
    for schedule in schedules():
        emulator.use(schedule)
        with emulator:
            result = bug.run(emulator)
        findings = emulator.findings()
        if not bug.kind:
            assert not cases.correct(result)
            continue
        right = [finding for finding in findings if finding.kind in bug.kind.split("|")]
        assert right, f"{schedule}: {[str(finding) for finding in findings]}"
        frames = [frame for finding in right for frame in finding.frames + finding.other_frames]
        named = [lines[line - 1] for file, line in frames if file == f"{bug.kernel}.cu"]
        assert any(bug.line in line for line in named), [str(finding) for finding in right]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.__name__)
def test_kernel_without_bugs_is_clean(run, kernels):
    for emulator in kernels:
        for seed in range(25):
            for late_copies in (True, False):
                emulator.use(Schedule("random", seed, late_copies))
                with emulator:
                    result = run(emulator)
                assert [str(finding) for finding in emulator.findings()] == []
                assert cases.correct(result)
