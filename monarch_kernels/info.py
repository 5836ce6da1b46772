"""What is installed, built and usable here, and why the rest is not.

Run as `python -m monarch_kernels.info [--json]`.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
from typing import Any

import torch

import monarch_kernels
from monarch_kernels import _native


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _triton_reason() -> str | None:
    return None if importlib.util.find_spec("triton") else "triton is not installed"


def _cuda_reason() -> str | None:
    """Return why no operator of this package runs as CUDA code of its own, or None if one does."""
    if not _native.cuda_available:
        return _native.cuda_reason
    if not _native.build.get("cuda_operators"):
        return "built, but no operator of this release has a CUDA kernel"
    if not torch.cuda.is_available():
        return "torch finds no GPU"
    from monarch_kernels import backends

    reasons = [backends.cuda_unsupported(index) for index in range(torch.cuda.device_count())]
    return None if None in reasons else "; ".join(dict.fromkeys(reasons))


def _gpus() -> list[dict[str, Any]]:
    """Return the GPUs that torch shows, and for each why the kernels do not run on it."""
    if not torch.cuda.is_available():
        return []
    from monarch_kernels import backends

    return [
        {
            "name": torch.cuda.get_device_name(index),
            "capability": ".".join(map(str, torch.cuda.get_device_capability(index))),
            "reason": backends.cuda_unsupported(index),
        }
        for index in range(torch.cuda.device_count())
    ]


def _backend_reasons() -> dict[str, str | None]:
    """Return for each backend the reason why it is not usable, None if it is."""
    try:
        from monarch_kernels import backends

        reasons = dict(backends.status())
    except ImportError:  # half an installation is what this module is there to describe
        reasons = {"native": _native.reason, "triton": _triton_reason(), "reference": None}
    reasons["cuda"] = _cuda_reason()
    return reasons


def _cpu() -> dict[str, Any]:
    host = _native.host
    return {
        "instruction_set": host.isa() if host else None,
        "available": host.available_isas() if host else [],
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
    }


def _cuda() -> dict[str, Any]:
    """Return the CUDA versions and GPUs that the CUDA library sees; empty if it is not loaded."""
    if not _native.cuda_available:
        return {}
    runtime, driver, devices, archs = torch.ops.monarch_kernels.cuda_runtime()
    return {
        "runtime": runtime,
        "driver": driver,
        "devices": devices,
        "architectures": archs,
        "operators": _native.build.get("cuda_operators", "").split(),
        "gpus": _gpus(),
    }


def collect() -> dict[str, Any]:
    """Return everything this module knows, in types that JSON has.

    Keys: `versions`, `platform`, `cpu`, `build` (the build's record, empty without native code),
    `cuda` (empty unless the CUDA library is loaded) and `backends`, which maps each name to
    `{"available": bool, "reason": str | None}`.
    """
    return {
        "versions": {
            "monarch_kernels": monarch_kernels.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torch_cuda": torch.version.cuda,
            "numpy": _version("numpy"),
            "triton": _version("triton"),
        },
        "platform": platform.platform(),
        "cpu": _cpu(),
        "build": dict(_native.build),
        "cuda": _cuda(),
        "backends": {
            name: {"available": reason is None, "reason": reason}
            for name, reason in _backend_reasons().items()
        },
    }


def _cuda_version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}" if number else "none"


def render(facts: dict[str, Any]) -> str:
    """Return `facts` (of `collect`) as text for a terminal."""
    cpu, build, cuda = facts["cpu"], facts["build"], facts["cuda"]
    rows = [(name, value or "-") for name, value in facts["versions"].items()]
    rows.append(("platform", facts["platform"]))
    rows.append(("cpu", f"{cpu['cores']} cores, {cpu['torch_threads']} torch threads"))
    if cpu["instruction_set"]:
        choices = ", ".join(cpu["available"])
        rows.append(("instruction set", f"{cpu['instruction_set']} (available: {choices})"))
    if build.get("native"):
        rows.append(("compiler", f"{build['cxx_compiler']}, {build['build_type']}"))
        if build["cuda"]:
            rows.append(("nvcc", f"{build['cuda_compiler']} for {build['cuda_archs']}"))
    if cuda:
        versions = f"runtime {_cuda_version(cuda['runtime'])}"
        versions += f", driver {_cuda_version(cuda['driver'])}"
        rows.append(("cuda", f"{versions}, {cuda['devices']} devices"))
        for index, gpu in enumerate(cuda["gpus"]):
            verdict = gpu["reason"] or "supported"
            rows.append((f"gpu {index}", f"{gpu['name']}, {gpu['capability']}: {verdict}"))
    lines = [f"{name:<16} {value}" for name, value in rows]
    lines += ["", "backends"]
    for name, state in facts["backends"].items():
        verdict = "yes" if state["available"] else f"no   {state['reason']}"
        lines.append(f"  {name:<14} {verdict}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m monarch_kernels.info",
        description="Show what is built and usable here, and why the rest is not.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    facts = collect()
    print(json.dumps(facts, indent=2) if arguments.json else render(facts))


if __name__ == "__main__":
    main()
