#!/usr/bin/env bash
# Measures the promises of the README and prints them beside their bars.
#
#   scripts/bench.sh                     all but accuracy
#   scripts/bench.sh start answer round  some
#   scripts/bench.sh accuracy            CIFAR-10, federated against central; minutes to hours
set -euo pipefail
cd "$(dirname "$0")/.."

# The agent's start and memory are those of the file that is copied to devices.
case " ${*:-start} " in *" start "*) scripts/dist.sh ;; esac
cargo build --release -p agent -p broker-api -p tests --bins
exec "${CARGO_TARGET_DIR:-target}/release/bench" "$@"
