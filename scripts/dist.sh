#!/usr/bin/env bash
# Builds the agent that is copied to devices of this machine's architecture: one static file of
# musl, which runs on every Linux. Zig is its C compiler and linker; it comes from PyPI.
set -euo pipefail
cd "$(dirname "$0")/.."

zig_packages=(ziglang==0.17.1 cargo-zigbuild==0.24.0)
target="$(uname -m)-unknown-linux-musl"

say() { printf 'dist: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

if ! .tools/zig/bin/python -c 'import ziglang' 2>/dev/null; then
    command -v python3 >/dev/null || fail "python3 with pip and venv is missing: apt-get install python3-pip python3-venv"
    say "getting ${zig_packages[*]} from PyPI"
    rm -rf .tools/zig
    python3 -m venv .tools/zig
    .tools/zig/bin/python -m pip install --quiet --disable-pip-version-check "${zig_packages[@]}" ||
        fail "PyPI did not give ${zig_packages[*]}"
fi
if ! rustc --print target-libdir --target "$target" 2>/dev/null | xargs test -d; then
    say "getting Rust's library for $target"
    rustup target add "$target" || fail "rustup did not give $target"
fi
PATH="$PWD/.tools/zig/bin:$PATH" cargo zigbuild --profile dist --target "$target" -p agent
ls -l "${CARGO_TARGET_DIR:-target}/$target/dist/dunlin-agent"
