#!/usr/bin/env bash
# Builds the agents for 64-bit and 32-bit ARM that the tests run in QEMU, and prints the folder
# with programs that start them: `aarch64` and `armv7`.
#
# What cannot be had here (QEMU, Zig, Rust's library for a target) is no failure: it says what is
# missing, prints nothing, and the test says that it did not run. Once all of it is there, what
# goes wrong in the build or in the test is a failure.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'emulated: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# shellcheck source=scripts/toolchain.sh
. scripts/toolchain.sh
# shellcheck source=scripts/qemu.sh
. scripts/qemu.sh

targets=(aarch64-unknown-linux-musl armv7-unknown-linux-musleabihf)
folder=$(mkdir -p "${CARGO_TARGET_DIR:-target}" && cd "${CARGO_TARGET_DIR:-target}" && pwd)/agents
rm -rf "$folder"

obtain() {
    emulate aarch64 && emulate arm || return
    build_for "${targets[0]}" && build_for "${targets[1]}"
}
if ! (obtain); then
    say "the agents for ARM are NOT built, and the test with them will not run"
    exit
fi

# The agent for a target; prints its path.
agent() {
    build_for "$1"
    "${build[@]}" --profile emulated -p agent --quiet --message-format=json-render-diagnostics |
        sed -n '/"name":"dunlin-agent"/s/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1
}

mkdir -p "$folder"
for target in "${targets[@]}"; do
    case $target in
        aarch64-*) emulate aarch64 ;;
        *) emulate arm ;;
    esac
    say "building the agent for $target"
    program=$(agent "$target")
    [ -x "$program" ] || fail "no agent came out of the build for $target"
    starter=$folder/${target%%-*}
    printf '#!/bin/sh\nexec %q %q "$@"\n' "$emulator" "$program" >"$starter"
    chmod +x "$starter"
done
printf '%s\n' "$folder"
