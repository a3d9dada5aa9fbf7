#!/usr/bin/env bash
# Measures the promises of the README and prints them beside their bars.
#
#   scripts/bench.sh                     start, answer, round, infer and train
#   scripts/bench.sh start answer round  some
#   scripts/bench.sh memory              rounds of 100 MB by strategy: peaks; five minutes
#   scripts/bench.sh aggregate           the mean of large updates beside the memory and numpy
#   scripts/bench.sh attack              strategies where devices send wrong updates; half an hour
#   scripts/bench.sh attack --strategies krum --rounds 100
#   scripts/bench.sh takeover            how soon a killed broker or device is missed, nothing lost
#   scripts/bench.sh scale               rounds of 1,000 and 400 devices, 10,000 that are there
#   scripts/bench.sh bytes               encodings of updates: bytes, seconds, accuracy; zstd
#   scripts/bench.sh bytes --bytes-per-second 1000000
#   scripts/bench.sh infer               answers beside ONNX Runtime; five minutes
#   scripts/bench.sh infer --families resnet8 --sides 32
#   scripts/bench.sh train               training steps beside PyTorch; ten minutes
#   scripts/bench.sh train --networks cnn,resnet8 --threads 1 --steps 5
#   scripts/bench.sh secagg              secure aggregation, sums and costs; ten minutes
#   scripts/bench.sh secagg --devices 10,100 --megabytes 1
#   scripts/bench.sh privacy             accuracy beside epsilon, with and without masks; minutes
#   scripts/bench.sh accuracy            CIFAR-10, federated against central; minutes to hours
#   scripts/bench.sh reference           ResNet-50 on CIFAR-10 beside PyTorch; an hour or more
#   scripts/bench.sh reference --examples 1000 --seeds 1
#
# At the end are the bars that were missed; with BENCH_STRICT=1 the exit code is 3 where there are any
# (of make 2, with "Error 3").
#
# PyTorch is that of python3, or of the Python that DUNLIN_PYTORCH names; without one ours is
# printed alone, and so is ours where there is no zstd.
set -euo pipefail
cd "$(dirname "$0")/.."

# What counts of the agent is the file that is copied to devices.
case " ${*:-start} " in
    *" start "* | *" infer "* | *" train "* | *" reference "*) scripts/dist.sh "dunlin-agent-$(uname -m)" ;;
esac
cargo build --release -p agent -p broker-api -p tract-helper -p accel -p tests --bins
exec "${CARGO_TARGET_DIR:-target}/release/bench" "$@"
