#!/usr/bin/env bash
# Builds the agents for 64-bit and 32-bit ARM that the tests run in QEMU, with their helpers, and
# prints the folder with programs that start them: `aarch64` and `tract-aarch64`, `armv7` and
# `tract-armv7`. Helpers have starters of their own, for an emulated agent starts no foreign program
# from memory. That each is static is checked as scripts/dist.sh checks it; sizes are not, for these
# are built without optimisation.
#
# What cannot be had here (QEMU, Zig, Rust's library for a target) is no failure: it says what is
# missing, prints nothing, and the test says that it did not run. With DUNLIN_TEST_ALL=1 it is one.
# Once all of it is there, what goes wrong in the build or in the test is a failure.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'emulated: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# shellcheck source=scripts/python.sh
. scripts/python.sh
# shellcheck source=scripts/toolchain.sh
. scripts/toolchain.sh
# shellcheck source=scripts/needs.sh
. scripts/needs.sh
# shellcheck source=scripts/qemu.sh
. scripts/qemu.sh

targets=(aarch64-unknown-linux-musl armv7-unknown-linux-musleabihf)
folder=$(mkdir -p "${CARGO_TARGET_DIR:-target}" && cd "${CARGO_TARGET_DIR:-target}" && pwd)/agents
rm -rf "$folder"

obtain() {
    emulate aarch64 && emulate arm || return
    command -v readelf >/dev/null || { say "readelf is missing: apt-get install binutils"; return 1; }
    build_for "${targets[0]}" && build_for "${targets[1]}"
}
if ! (obtain); then
    [ "${DUNLIN_TEST_ALL:-}" != 1 ] || fail "what is missing above is asked for by DUNLIN_TEST_ALL=1"
    say "the agents for ARM are NOT built, and the test with them will not run"
    exit
fi

# A program of a package for a target; prints its path.
program() {
    build_for "$3"
    "${build[@]}" --profile emulated -p "$1" --quiet --message-format=json-render-diagnostics |
        executable "$2"
}

# Writes the starter of a program of a package for a target.
start_with() {
    local starter=$folder/$1 program
    say "building $3 for $4"
    program=$(program "$2" "$3" "$4")
    [ -x "$program" ] || fail "no $3 came out of the build for $4"
    check "$program" "${4%%-*}" "$4"
    printf '#!/bin/sh\nexec %q %q "$@"\n' "$emulator" "$(realpath "$program")" >"$starter"
    chmod +x "$starter"
}

mkdir -p "$folder"
for target in "${targets[@]}"; do
    architecture=${target%%-*}
    case $architecture in
        aarch64) emulate aarch64 ;;
        *) emulate arm ;;
    esac
    start_with "$architecture" agent dunlin-agent "$target"
    start_with "tract-$architecture" tract-helper dunlin-tract "$target"
done
printf '%s\n' "$folder"
