#!/usr/bin/env bash
# For a machine with an NVIDIA GPU: runs the engines of dunlin-accel on the real hardware. CUDA
# needs ONNX Runtime for GPUs, which comes from PyPI into .tools/gpu with NVIDIA's libraries
# (some GB); Vulkan needs the driver alone. Prints parity and speed beside the processor.
#
#   scripts/gpu-check.sh       builds dunlin-accel, or takes PROGRAM
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'gpu-check: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

if [ -z "${PROGRAM:-}" ]; then
    PROGRAM="dist/dunlin-accel-$(uname -m)"
    if [ ! -x "$PROGRAM" ]; then
        cargo build --release --quiet -p accel
        PROGRAM="${CARGO_TARGET_DIR:-target}/release/dunlin-accel"
    fi
fi
say "the program is $PROGRAM"

# The processor's part: what the GPU's figures stand beside.
scripts/setup.sh tests
library=$(find .tools/onnx/lib -name 'libonnxruntime.so.*' | head -n 1)
ORT_DYLIB_PATH="$library" "$PROGRAM" probe ort-cpu
ORT_DYLIB_PATH="$library" "$PROGRAM" compare ort-cpu

if ! command -v nvidia-smi >/dev/null ||
    ! nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv; then
    fail "no NVIDIA GPU: nvidia-smi finds none, so CUDA and Vulkan were not checked"
fi
# The driver says which CUDA it knows; PyPI has ONNX Runtime for CUDA 13, and older for 12.
case $(nvidia-smi | sed -n 's/.*CUDA Version: *\([0-9]*\)\..*/\1/p' | head -n 1) in
    12) gpu_packages=('onnxruntime-gpu[cuda,cudnn]==1.24.4') ;;
    *) gpu_packages=('onnxruntime-gpu[cuda,cudnn]==1.31.1') ;;
esac
if ! .tools/gpu/bin/python -c 'import onnxruntime' 2>/dev/null; then
    say "getting ${gpu_packages[*]} from PyPI"
    rm -rf .tools/gpu
    python3 -m venv .tools/gpu
    .tools/gpu/bin/python -m pip install --quiet --disable-pip-version-check "${gpu_packages[@]}" ||
        fail "PyPI did not give ${gpu_packages[*]}"
fi
export VIRTUAL_ENV="$PWD/.tools/gpu"
failed=0
for engine in cuda webgpu; do
    "$PROGRAM" probe "$engine" || failed=1
    "$PROGRAM" compare "$engine" || failed=1
done
# Every form of every operator that is trusted to the engines, on this hardware.
DUNLIN_TEST_ENGINES="cuda webgpu" cargo nextest run -p accel --no-fail-fast -E 'test(conformance)' || failed=1
# And the conformance suite.
cargo build --workspace --bins --quiet
cargo nextest run -p tests --test conformance -E 'test(cuda)' --no-capture || failed=1
[ "$failed" = 0 ] || fail "something above failed"
say "CUDA and Vulkan answer as the processor"
