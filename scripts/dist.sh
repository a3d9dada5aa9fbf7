#!/usr/bin/env bash
# Builds what is copied to machines into dist/, checks that it needs nothing there and that agents
# start the helpers inside of them, and writes SBOMs and checksums. Fails where an agent is larger than scripts/needs.sh has as its bar.
#
#   scripts/dist.sh                                       all
#   scripts/dist.sh dunlin-agent-armv7 dunlin-x86_64      those that are named
#   scripts/dist.sh dunlin-agent-malloc-x86_64            one to be measured, see `others`
set -euo pipefail
cd "$(dirname "$0")/.."

all=(dunlin-accel-{x86_64,aarch64} dunlin-agent-accel-{x86_64,aarch64}
    dunlin-agent-{x86_64,aarch64,armv7} dunlin-tract-{x86_64,aarch64,armv7} dunlin-{x86_64,aarch64})
# Not for devices: with musl's allocator in place of mimalloc, which `make bench` puts beside it.
others=(dunlin-agent-malloc-{x86_64,aarch64})
# The oldest glibc that helpers run with.
glibc=2.27

say() { printf 'dist: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# Builds one file of `all` or `others`.
make_file() {
    local architecture=${1##*-} target package program level=z features=() inside=()
    case $1 in
        dunlin-accel-*) package=accel target=$architecture-unknown-linux-gnu.$glibc ;;
        dunlin-agent-*) package=agent target=$architecture-unknown-linux-musl ;;
        dunlin-tract-*) package=tract-helper target=$architecture-unknown-linux-musl ;;
        dunlin-*) package=broker-api target=$architecture-unknown-linux-musl ;;
    esac
    case $target in armv7-*) target+=eabihf ;; esac
    program=${1%-"$architecture"}
    if [ "$package" = agent ]; then
        carry tract "$architecture"
        case $program in
            *-accel) carry accel "$architecture" ;;
            *-malloc) features+=(--features system-allocator) ;;
        esac
        program=dunlin-agent
    fi
    build_for "$target" rustc
    # Loops become vectors where programs are linked, and only from this level on; in tract, whose
    # kernels are vectors by hand, that pays nothing.
    if [ "$package" != tract-helper ]; then level=2; fi
    "${build[@]}" --locked --profile dist -p "$package" --bin "$program" "${features[@]}" \
        -- -C opt-level="$level"
    check "$built/dist/$program" "$architecture" "$target"
    mkdir -p dist/sbom
    cp "$built/dist/$program" "dist/$1"
    if [ "$package" = agent ]; then check_starts "dist/$1" "$architecture"; fi
    scripts/sbom.py "dist/$1" "$package" "${target%%.*}" "$compiler" "${features[@]}" "${inside[@]}" \
        >"dist/sbom/$1.cdx.json"
    made+=("$1")
}

# Puts a helper where the build of the agent that carries it takes it from.
carry() {
    local file=dunlin-$1-$2 variable filter=()
    case " ${made[*]} " in *" $file "*) ;; *) make_file "$file" ;; esac
    # What calls are to is the same number then at each of them.
    case $2 in x86_64) filter=(--x86) ;; aarch64) filter=(--arm64) ;; armv7) filter=(--arm) ;; esac
    if ! printf '' | xz --stdout "${filter[@]}" --lzma2 >/dev/null 2>&1; then
        say "this xz has no filter ${filter[*]}, as xz 5.4 has: $file takes more of the agent"
        filter=()
    fi
    # The agent refuses larger dictionaries, and knows a program by the checksum of its one block.
    xz --stdout --threads=1 --check=crc32 "${filter[@]}" --lzma2=preset=9e,dict=16MiB \
        "dist/$file" >"dist/.$file.xz"
    variable=DUNLIN_$(printf %s "$1" | tr '[:lower:]' '[:upper:]')_PROGRAM
    export "$variable=$PWD/dist/.$file.xz"
    features+=(--features "embedded-$1")
    inside+=(--inside "dist/sbom/$file.cdx.json")
}

# Says how a file gets to its machine.
copy() {
    local as=${1%-*} device
    case $1 in
        dunlin-agent-malloc-*) return ;;
        dunlin-agent-accel-x86_64) as=dunlin-agent device="PC, with its GPU" ;;
        dunlin-agent-accel-aarch64) as=dunlin-agent device="Jetson; 64-bit ARM with a GPU" ;;
        dunlin-agent-x86_64) device="PC" ;;
        dunlin-agent-aarch64) device="Raspberry Pi 3 and later; any 64-bit ARM" ;;
        dunlin-agent-armv7) device="Raspberry Pi 2 and later; 32-bit ARM" ;;
        dunlin-accel-* | dunlin-tract-*) device="beside a dunlin-agent" ;;
        *) device="the broker's machine, and its operator's" ;;
    esac
    printf 'scp dist/%s USER@HOST:%s   # %s\n' "$1" "$as" "$device"
}

# shellcheck source=scripts/python.sh
. scripts/python.sh
# shellcheck source=scripts/toolchain.sh
. scripts/toolchain.sh
# shellcheck source=scripts/needs.sh
. scripts/needs.sh
# shellcheck source=scripts/sizes.sh
. scripts/sizes.sh
# shellcheck source=scripts/qemu.sh
. scripts/qemu.sh
# shellcheck source=scripts/starts.sh
. scripts/starts.sh

command -v readelf >/dev/null || fail "readelf is missing: apt-get install binutils"
command -v xz >/dev/null || fail "xz is missing: apt-get install xz-utils"
if [ $# = 0 ]; then set -- "${all[@]}"; fi
for name in "$@"; do
    case " ${all[*]} ${others[*]} " in
        *" $name "*) ;;
        *) fail "$name is none of ${all[*]}; ${others[*]}" ;;
    esac
done
made=()
for name in "$@"; do
    case " ${made[*]} " in *" $name "*) ;; *) make_file "$name" ;; esac
done
(cd dist && sha256sum dunlin* sbom/*.json >SHA256SUMS)
sizes "${made[@]}"
echo
for name in "${made[@]}"; do copy "$name"; done
check_sizes "${made[@]}"
