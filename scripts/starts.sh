#!/usr/bin/env bash
# Whether agents start the helpers inside of them, by what their probes say. Sourced by other scripts,
# after qemu.sh; by hand, for files that were built:
#
#   scripts/starts.sh dist/dunlin-agent-x86_64
set -euo pipefail

# What an agent ($1) says of engines: lines of a name, and why it cannot be used if it cannot; the
# further words start it.
probed() {
    local state said
    state=$(mktemp -d)
    said=$(shift && env -u DUNLIN_ACCEL -u DUNLIN_TRACT -u DUNLIN_ONNXRUNTIME -u ORT_DYLIB_PATH \
        "$@" probe --json --state-dir "$state") || { rm -rf "$state" && return 1; }
    rm -rf "$state"
    python3 -c 'import json, sys
for probed in json.load(sys.stdin): print(probed["engine"], probed.get("unusable", ""))' <<<"$said"
}

# Fails when an agent ($1) for an architecture ($2) does not start the helpers inside of it. For ARM
# QEMU runs the agent, if it is there; unless the kernel knows QEMU as well (binfmt_misc), it starts no
# helper from memory, so that unpacking it is all that is seen.
check_starts() {
    local agent=$1 architecture=$2 start=("$1") emulated='' engines engine reason wrong=() unpacked=''
    if ! "$agent" --version >/dev/null 2>&1; then
        case $architecture in
            "$(uname -m)") fail "$agent does not start here" ;;
            aarch64) emulated=aarch64 ;;
            armv7) emulated=arm ;;
        esac
        if [ -z "$emulated" ] || ! emulate "$emulated"; then
            say "NOT CHECKED: nothing here starts $agent"
            return
        fi
        start=("$emulator" "$agent")
    fi
    engines=$(probed "$agent" "${start[@]}") || fail "$agent does not probe its engines"
    while read -r engine reason; do
        case $engine:$reason in
            native: | tract:) ;;
            *"cannot be started: Exec format error"*)
                unpacked=1
                [ -n "$emulated" ] || wrong+=("$engine: $reason")
                ;;
            native:* | tract:*) wrong+=("$engine: $reason") ;;
            *:"no helper: "*) [[ $agent != *-accel-* ]] || wrong+=("$engine: $reason") ;;
            *:"the helper cannot be started"* | *:"the dunlin-accel inside: "* | ort-cpu:"its probe"*)
                wrong+=("$engine: $reason")
                ;;
        esac
    done <<<"$engines"
    [ "${#wrong[@]}" = 0 ] || fail "$agent does not start what is inside: $(printf '%s; ' "${wrong[@]}")"
    if [ -n "$unpacked" ]; then
        say "$agent unpacks its helper; that it starts was NOT CHECKED, for want of binfmt_misc"
    else
        say "$agent starts its helpers"
    fi
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    say() { printf 'starts: %s\n' "$*" >&2; }
    fail() { say "$*"; exit 1; }
    # shellcheck source=scripts/qemu.sh
    . "$(dirname "$0")/qemu.sh"
    for file in "$@"; do check_starts "$file" "${file##*-}"; done
fi
