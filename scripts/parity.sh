#!/usr/bin/env bash
# Trains on 64-bit and 32-bit ARM, emulated, beside PyTorch's recorded figures, and runs the tests
# of every kernel with each set of instructions there. Figures and pictures are read from
# ../shared, or from the folder that DUNLIN_SHARED names.
#
#   scripts/parity.sh                  both
#   scripts/parity.sh aarch64 armv7    those that are named
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'parity: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# Builds the test program of `models` for a target, without the engine that answers and, as it is
# released, without debug assertions; prints its path.
program() {
    "${build[@]}" -p models --tests --no-default-features \
        --config profile.dev.package.models.debug-assertions=false \
        --message-format=json-render-diagnostics |
        executable models
}

check() {
    local target emulated program
    case $1 in
        aarch64) target=aarch64-unknown-linux-musl emulated=aarch64 ;;
        armv7) target=armv7-unknown-linux-musleabihf emulated=arm ;;
        *) fail "$1 is neither aarch64 nor armv7" ;;
    esac
    emulate "$emulated" || exit 1
    build_for "$target"
    say "building for $target"
    program=$(program)
    [ -x "$program" ] || fail "no test program came out of the build for $target"
    say "running it with $emulator"
    "$emulator" "$program" --show-output kernels:: train::tests::pytorch:: | tee "$log" >&2 ||
        fail "$1: failed"
    if grep -q 'not compared with PyTorch' "$log"; then
        results+=("$1: kernels agree; NOT compared with PyTorch: its recorded figures are absent")
    else
        results+=("$1: kernels agree, and trainings with PyTorch's figures")
    fi
}

log=$(mktemp)
trap 'rm -f "$log"' EXIT
# shellcheck source=scripts/python.sh
. scripts/python.sh
# shellcheck source=scripts/toolchain.sh
. scripts/toolchain.sh
# shellcheck source=scripts/qemu.sh
. scripts/qemu.sh
results=()
if [ $# = 0 ]; then set -- aarch64 armv7; fi
for architecture in "$@"; do check "$architecture"; done
printf '%s\n' "${results[@]}"
