#!/usr/bin/env bash
# For a machine with an NVIDIA GPU: runs the engines of dunlin-accel on the real hardware, and prints
# parity and speed beside the processor. CUDA needs ONNX Runtime for GPUs, which comes from PyPI
# into .tools/gpu with NVIDIA's libraries (some GB); Vulkan needs the driver alone, and where the
# GPU has none that is said and no failure. Everything runs, whatever fails before it.
#
#   scripts/gpu-check.sh       builds what it runs
#
#   PROGRAM=FILE           this dunlin-accel for probes and speed
#   ORT_DYLIB_PATH=FILE    this ONNX Runtime for CUDA, as on a Jetson before JetPack 7, for which PyPI
#                          has none
#   GPU_CHECK_OFFLINE=1    builds and fetches nothing: both of these have to be given, and the
#                          conformance tests are left out, unless there are
#   CONFORMANCE=FILE       the test program `conformance`, with dunlin-accel beside it, and
#   ONNX_TESTS=FOLDER      what scripts/setup.sh tests puts into .tools/onnx-tests-*
set -euo pipefail
cd "$(dirname "$0")/.."
export LC_ALL=C PATH="$PWD/.tools/bin:$PATH"
# An adapter that is a program is no GPU.
unset DUNLIN_WEBGPU_SOFTWARE

say() { printf 'gpu-check: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# shellcheck source=scripts/python.sh
. scripts/python.sh

offline=${GPU_CHECK_OFFLINE:-}
failures=()
left_out=()

# Fails with everything that is missing, before anything is built or fetched.
check_machine() {
    local missing=()
    gpu=$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null) ||
        gpu=$(tr -d '\0' 2>/dev/null </proc/device-tree/model | grep -i -e nvidia -e jetson) ||
        missing+=("an NVIDIA GPU with its driver: nvidia-smi finds none")
    if [ -n "$offline" ]; then
        [ -x "${PROGRAM:-}" ] || missing+=("PROGRAM, a dunlin-accel that was built elsewhere")
        [ -f "${ORT_DYLIB_PATH:-}" ] || missing+=("ORT_DYLIB_PATH, libonnxruntime.so with CUDA")
    else
        command -v cargo >/dev/null || missing+=("cargo (https://rustup.rs)")
        command -v cc >/dev/null || missing+=("a C compiler: apt-get install build-essential")
        [ -f "${ORT_DYLIB_PATH:-}" ] || [ -z "${ORT_DYLIB_PATH:-}" ] ||
            missing+=("$ORT_DYLIB_PATH, which ORT_DYLIB_PATH names")
        (find_python 3.11) || missing+=("Python, as said above")
    fi
    [ "${#missing[@]}" = 0 ] || fail "missing here (the head of this script says what runs offline):" \
        "$(printf '\n  %s' "${missing[@]}")"
}

# Runs a command; where it fails goes on, and remembers what.
attempt() {
    local what=$1
    shift
    printf '\n== %s\n' "$what"
    "$@" || failures+=("$what (exit code $?)")
}

# Whether an engine can be used, by the line that its probe prints; the exit code of a probe says
# only that it ended.
usable() {
    local engine=$1 line
    printf '\n== %s: probe\n' "$engine"
    if ! line=$("$PROGRAM" probe "$engine"); then
        failures+=("$engine: its probe ended with an error: $line")
        return 1
    fi
    printf '%s\n' "$line"
    case $engine-$line in
        webgpu-*'"unusable":"no GPU is reached through Vulkan'* | \
            webgpu-*'"unusable":"the only adapter'*)
            left_out+=("webgpu: the GPU has no Vulkan driver here, as without NVIDIA's libnvidia-gl")
            return 1
            ;;
        *'"unusable":'*)
            failures+=("$engine: ${line#*\"unusable\":}")
            return 1
            ;;
        webgpu-*[Nn][Vv][Ii][Dd][Ii][Aa]*) ;;
        webgpu-*)
            left_out+=("webgpu: Vulkan reaches another adapter than the NVIDIA GPU")
            return 1
            ;;
    esac
}

# Gets ONNX Runtime for CUDA. The driver says which CUDA it knows; PyPI has ONNX Runtime for CUDA
# 13, and older for 12.
onnx_runtime_for_cuda() {
    local packages=('onnxruntime-gpu[cuda,cudnn]==1.31.1')
    case $(nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: *\([0-9]*\)\..*/\1/p' | head -n 1) in
        12) packages=('onnxruntime-gpu[cuda,cudnn]==1.24.4') ;;
    esac
    if .tools/gpu/bin/python -c 'import onnxruntime' 2>/dev/null; then return; fi
    find_python 3.11
    say "getting ${packages[*]} from PyPI"
    rm -rf .tools/gpu
    "$python" -m venv .tools/gpu
    .tools/gpu/bin/python -m pip install --quiet --disable-pip-version-check "${packages[@]}"
}

# Every form of every operator that is trusted to the engines, and the conformance suite, on the
# hardware; every wrong answer is printed.
conformance() {
    local filter
    export DUNLIN_TEST_HARDWARE=1 DUNLIN_TEST_ENGINES="$*"
    if [ -z "$offline" ]; then
        filter=$(printf ' | test(%s)' "$@")
        cargo build --workspace --bins --quiet &&
            cargo nextest run --workspace --profile gpu-check -E "package(accel) & test(/^conformance::/) |
                binary_id(tests::conformance) & (${filter# | })"
    else
        DUNLIN_ONNX_TESTS=$ONNX_TESTS "$CONFORMANCE" --nocapture --test-threads 1 "$@"
    fi
}

check_machine
printf 'GPU: %s\nprocessor: %s, %s threads\n' "$gpu" \
    "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)" "$(nproc)"
cpu_library=${ORT_DYLIB_PATH:-}
if [ -z "$offline" ]; then
    scripts/setup.sh tests
    cpu_library=$(find "$PWD/.tools/onnx/lib" -name 'libonnxruntime.so.*' | head -n 1)
    if [ -z "${PROGRAM:-}" ]; then
        cargo build --release --quiet -p accel
        PROGRAM="${CARGO_TARGET_DIR:-target}/release/dunlin-accel"
    fi
    if [ -z "${ORT_DYLIB_PATH:-}" ]; then
        attempt "ONNX Runtime for CUDA, from PyPI" onnx_runtime_for_cuda
        export VIRTUAL_ENV="$PWD/.tools/gpu"
    fi
fi
say "the program is $PROGRAM of $(date -r "$PROGRAM" "+%Y-%m-%d %H:%M")"

# What the GPU's figures stand beside.
attempt "ort-cpu: parity and speed, all on the processor" \
    env ORT_DYLIB_PATH="$cpu_library" "$PROGRAM" compare ort-cpu
engines=()
for engine in cuda webgpu; do
    if usable "$engine"; then
        engines+=("$engine")
        attempt "$engine: parity and speed beside the processor" "$PROGRAM" compare "$engine"
    fi
done
if [ "${#engines[@]}" = 0 ]; then
    left_out+=("conformance tests: no engine can be used")
elif [ -n "$offline" ] && { [ ! -x "${CONFORMANCE:-}" ] || [ ! -d "${ONNX_TESTS:-}" ]; }; then
    left_out+=("conformance tests: CONFORMANCE and ONNX_TESTS do not name them")
else
    attempt "conformance of ${engines[*]}" conformance "${engines[@]}"
fi

printf '\n'
for what in "${left_out[@]}"; do say "NOT CHECKED: $what"; done
for what in "${failures[@]}"; do say "FAILED: $what"; done
[ "${#failures[@]}" = 0 ] || exit 1
[ "${#engines[@]}" != 0 ] || fail "no engine was checked on the GPU"
say "${engines[*]} answer as the processor"
