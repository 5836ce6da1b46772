#!/usr/bin/env bash
# Everything that needs a GPU, in one command and under nine minutes: builds for the GPU that is
# there, records what device.cuh does on it, tests, measures. Stops at the first red test. Needs
# torch, nvcc, cmake, ninja, pybind11, setuptools and pytest; nothing is fetched.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: benchmarks/on_gpu.sh [--tests-only] [--no-build] [--keep-going] [--kinds LIST]

  --tests-only   build, record and test, but measure nothing
  --no-build     use the libraries as they are
  --keep-going   show up to 20 red tests and measure all the same; the exit status is still 1
  --kinds LIST   of the benchmark, e.g. plain,gated (default: all)

Environment:
  OUT      where the results go (default: benchmarks/results)
  PYTHON   the Python with torch in it (default: python3)

Writes on_gpu.json, on_gpu.md (the tables), on_gpu.log (all output), device_conformance.npz and
throughput_cuda.png to $OUT. To keep the recording, copy it to
tests/fixtures/device_conformance.npz.
TEXT
}

tests_only=false build=true keep_going=false kinds=""
while (($# > 0)); do
  case $1 in
    --tests-only) tests_only=true ;;
    --no-build) build=false ;;
    --keep-going) keep_going=true ;;
    --kinds)
      (($# > 1)) || { usage >&2; exit 2; }
      kinds=$2
      shift
      ;;
    -h | --help)
      usage
      exit 0
      ;;
    *)
      usage >&2
      exit 2
      ;;
  esac
  shift
done

cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
python=${PYTHON:-python3}
export PYTHONPATH="$root:$root/python${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
limit=520 # of the 540 seconds; the rest is for writing results

fail() {
  echo "on_gpu: $*" >&2
  exit 1
}

capabilities=$("$python" -c '
import sys, torch
found = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
print(*sorted({f"{major}{minor}" for major, minor in found}), sep=";")
sys.exit(not (found and torch.cuda.is_available()))') || fail "torch of $python finds no GPU"

mkdir -p "${OUT:-benchmarks/results}"
out=$(cd "${OUT:-benchmarks/results}" && pwd)
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
: >"$out/on_gpu.log"
left() { echo $((limit - SECONDS)); }

# step NAME SECONDS COMMAND...: runs it with at most SECONDS and what is left; its output goes to
# $logs/NAME.log and on_gpu.log, and the end of it here if it fails.
step() {
  local name=$1 seconds=$2 start=$SECONDS status=0
  shift 2
  (($(left) > 0)) || fail "no time is left for $name"
  ((seconds < $(left))) || seconds=$(left)
  echo "== $name (at ${SECONDS} s, at most ${seconds} s)" | tee -a "$out/on_gpu.log"
  timeout "$seconds" "$@" 2>&1 | tee -a "$out/on_gpu.log" >"$logs/$name.log" || status=$?
  echo "   $((SECONDS - start)) s"
  ((status != 0)) || return 0
  tail -n 60 "$logs/$name.log"
  echo "on_gpu: $name failed with status $status$( ((status != 124)) || echo ' (out of time)')" >&2
  return 1
}

status=0
red() {
  $keep_going || exit 1
  status=1
}

if $build; then
  export MONARCH_KERNELS_CUDA=1 MONARCH_KERNELS_CUDA_ARCHS=$capabilities
  # What `setup.py build_ext --inplace` does, without the metadata in pyproject.toml, which
  # setuptools before 77 cannot read.
  step build 240 "$python" -c '
from pathlib import Path
from setuptools import Distribution
from setup import CMakeBuild
command = CMakeBuild(Distribution())
command.initialize_options()
command.build_native(Path("monarch_kernels").resolve())' || exit 1
fi
step info 60 "$python" -m monarch_kernels.info || exit 1
tail -n 25 "$logs/info.log"
"$python" -c '
import sys, monarch_kernels.backends as b
reason = b.cuda_unsupported()
sys.exit(reason and f"on_gpu: {reason}")'

step conformance 90 "$python" -m tests.emulation.conformance \
  --output "$out/device_conformance.npz" || red
tail -n 1 "$logs/conformance.log"
most_red=1
! $keep_going || most_red=20
step tests 210 "$python" -m pytest -q --maxfail="$most_red" -m gpu --durations=5 tests || red
tail -n 10 "$logs/tests.log"
! $tests_only || exit "$status"

(($(left) > 60)) || fail "less than a minute is left: nothing is measured"
budget=$(($(left) - 30))
((budget < 110)) || budget=110
step fft_conv "$((budget + 25))" "$python" -m benchmarks.fft_conv_cuda --budget "$budget" \
  ${kinds:+--kinds "$kinds"} --output "$logs/fft_conv_cuda.json" || status=1

if (($(left) > 75)); then
  step products 75 "$python" -m benchmarks.products_cuda --budget 50 \
    --output "$logs/products_cuda.json" || status=1
fi
if (($(left) > 60)); then
  budget=$(($(left) - 45))
  ((budget < 60)) || budget=60
  step mixer_conv "$((budget + 15))" "$python" -m benchmarks.mixer_conv_cuda \
    --budget "$budget" --output "$logs/mixer_conv_cuda.json" || status=1
fi

if ! "$python" -c 'import transformers, tokenizers, rich' 2>/dev/null; then
  echo "== throughput is left out: transformers, tokenizers or rich is not installed"
elif (($(left) < 60)); then
  echo "== throughput is left out: less than a minute is left"
else
  budget=$(($(left) - 25))
  step throughput "$((budget + 20))" "$python" -m benchmarks.throughput --device cuda \
    --lengths 2048,8192,32768 --budget "$budget" --output "$logs/throughput_cuda.json" || status=1
  cp "$logs/throughput_cuda.png" "$out" 2>/dev/null || true
fi

"$python" - "$out/on_gpu.json" "$logs" <<'PYTHON' >"$logs/summary"
import json
import sys
from pathlib import Path

from benchmarks.fft_conv_cuda import summary
from benchmarks.harness import write_json

target, logs = map(Path, sys.argv[1:])
names = ("fft_conv_cuda", "mixer_conv_cuda", "products_cuda", "throughput_cuda")
parts = {n: json.loads((logs / f"{n}.json").read_text()) for n in names if (logs / f"{n}.json").exists()}
write_json(target, parts)
if "fft_conv_cuda" in parts:
    print(summary(parts["fft_conv_cuda"]))
PYTHON
if [[ -e $logs/throughput.log ]]; then
  cat "$logs/throughput.log" >>"$logs/summary"
fi
{
  grep -h '^copy:\|^|' "$logs/fft_conv.log" "$logs/mixer_conv.log" || true
  echo
  grep '^|' "$logs/products.log" || true
  echo
  cat "$logs/summary"
} >"$out/on_gpu.md"
echo "== results: $out/on_gpu.json (${SECONDS} s in all)"
cat "$logs/summary"
exit "$status"
