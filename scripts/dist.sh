#!/usr/bin/env bash
# Builds the agent that is copied to devices of this machine's architecture: one static file of
# musl, which runs on every Linux. Zig is its C compiler and linker; it comes from PyPI.
set -euo pipefail
cd "$(dirname "$0")/.."

target="$(uname -m)-unknown-linux-musl"

say() { printf 'dist: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# shellcheck source=scripts/zig.sh
. scripts/zig.sh
zig
build_for "$target"
"${build[@]}" --profile dist -p agent
ls -l "${CARGO_TARGET_DIR:-target}/$target/dist/dunlin-agent"
