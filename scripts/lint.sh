#!/usr/bin/env bash
# Formatting, lints, documentation, and what is on this machine of shellcheck and cargo-deny.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo fmt --all --check
cargo clippy --workspace --all-targets --quiet -- -D warnings
# As scripts/parity.sh builds it.
cargo clippy -p models --no-default-features --all-targets --quiet -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --quiet
bash -n scripts/*.sh .ci/run
if command -v shellcheck >/dev/null; then shellcheck -x scripts/*.sh .ci/run; fi
if cargo deny --version >/dev/null 2>&1; then cargo deny check licenses bans sources; fi
