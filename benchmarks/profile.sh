#!/usr/bin/env bash
# Profiles fft_conv on a GPU; what to look at is in docs/profiling.md.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: benchmarks/profile.sh nsys|ncu|sanitizer [--dry-run] [CASE OPTIONS]

  nsys        timeline with the operators' NVTX ranges      -> $OUT/fft_conv.nsys-rep
  ncu         every metric of each kernel, clocks untouched -> $OUT/fft_conv.ncu-rep
  sanitizer   compute-sanitizer: memcheck, racecheck, initcheck, synccheck
  --dry-run   print the commands instead

Case options go to benchmarks/profile_case.py: --kind gated --length 4096 --batch 64
--channels 768 --dtype bfloat16 --backward.

Environment: OUT (default: the current directory), PYTHON (default: python3).
TEXT
}

(($# > 0)) || { usage >&2; exit 2; }
tool=$1
shift
dry_run=false
if [[ ${1:-} == --dry-run ]]; then
  dry_run=true
  shift
fi

out=${OUT:-$PWD}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
export PYTHONPATH="$PWD:$PWD/python${PYTHONPATH:+:$PYTHONPATH}"

run() {
  printf '+ %q' "$1"
  printf ' %q' "${@:2}"
  printf '\n'
  $dry_run || "$@"
}

case $tool in
  nsys)
    run nsys profile --trace=cuda,nvtx --capture-range=cudaProfilerApi --capture-range-end=stop \
      --force-overwrite=true --output="$out/fft_conv" "$python" -m benchmarks.profile_case --repeats 20 "$@"
    run nsys stats --report nvtx_gpu_proj_sum,cuda_gpu_kern_sum "$out/fft_conv.nsys-rep"
    ;;
  ncu)
    # --clock-control none: the clocks of a shared machine are not ours to set.
    run ncu --set full --clock-control none --profile-from-start off --nvtx \
      --import-source yes --force-overwrite --export "$out/fft_conv" "$python" -m benchmarks.profile_case --repeats 1 "$@"
    run ncu --import "$out/fft_conv.ncu-rep" --page details
    ;;
  sanitizer)
    # Without torch's cache each tensor is an allocation of its own, whose end is checked.
    for check in memcheck racecheck initcheck synccheck; do
      run env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$check" \
        --error-exitcode 1 --target-processes all \
        "$python" -m benchmarks.profile_case --repeats 1 --batch 3 --channels 5 "$@"
    done
    ;;
  -h | --help) usage ;;
  *)
    usage >&2
    exit 2
    ;;
esac
