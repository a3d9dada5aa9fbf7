# Decides what builds for a target: compiler, linker, and Rust's own library. Sourced by other
# scripts, at the top of the tree, after python.sh; they define say and fail.
#
# cross, where it is installed and Docker answers; else cargo-zigbuild, for which Zig from PyPI is
# C compiler and linker, with Rust's library from the first that gives it:
#   rustup    ready made
#   source    built from rustup's rust-src
#   debian    built from Debian's rust-web-src by Debian's rustc-web
# TOOLCHAIN=cross, rustup, source or debian takes that one.
# shellcheck shell=bash

zig_packages=(ziglang==0.17.1 cargo-zigbuild==0.24.0)

# Gets Zig from PyPI into .tools/zig, and puts it on PATH.
zig() {
    if ! .tools/zig/bin/python -c 'import ziglang' 2>/dev/null; then
        find_python 3.7
        say "getting ${zig_packages[*]} from PyPI"
        rm -rf .tools/zig
        # shellcheck disable=SC2154 # find_python sets it
        "$python" -m venv .tools/zig
        .tools/zig/bin/python -m pip install --quiet --disable-pip-version-check "${zig_packages[@]}" ||
            fail "PyPI did not give ${zig_packages[*]}"
    fi
    case ":$PATH:" in
        *":$PWD/.tools/zig/bin:"*) ;;
        *) PATH="$PWD/.tools/zig/bin:$PATH" ;;
    esac
}

# Sets `build` to the command that builds for a target, `built` to the folder that it fills, and
# `compiler` to the name and version of the compiler. With `rustc` as second word the command is
# cargo's rustc, which takes options for the compiler of the one program that it builds.
# A target may end in a version of glibc, as in aarch64-unknown-linux-gnu.2.27: the programs then
# need that one or a newer one. Zig alone can do that, so cross is not taken for it.
# shellcheck disable=SC2034 # others read them
build_for() {
    local triple=${1%%.*} verb=${2:-build} folder=${CARGO_TARGET_DIR:-target} rung=${TOOLCHAIN:-}
    case $rung in
        '' | cross | rustup | source | debian) ;;
        *) fail "TOOLCHAIN=$rung is none of cross, rustup, source, debian" ;;
    esac
    compiler=$(rustc --version)
    if [ "$triple" != "$1" ]; then
        rung=${rung#cross}
    elif [ "$rung" = cross ] || { [ -z "$rung" ] && crosses; }; then
        say "$1: cross"
        build=(cross "$verb" --target "$1") built="$folder/$triple"
        return
    fi
    zig
    build=(cargo-zigbuild "${verb/#build/zigbuild}" --target "$1") built="$folder/$triple"
    if [ "${rung:-rustup}" = rustup ] && by_rustup "$triple"; then
        say "$1: Zig, and Rust's library from rustup"
    elif [ "${rung:-source}" = source ] && has_source; then
        say "$1: Zig, and Rust's library built from rustup's source"
        from_source "$triple" "$folder/build-std"
    elif [ "${rung:-debian}" = debian ] && debian_rust; then
        compiler=$(LD_LIBRARY_PATH="$debian/lib" "$debian/bin/rustc" --version)
        say "$1: Zig, and Debian's $compiler"
        from_source "$triple" "$folder/debian" "PATH=$debian/bin:$PATH" "LD_LIBRARY_PATH=$debian/lib"
    else
        fail "nothing here builds for $1: rustup target add $triple did not work, nor did" \
            "rustup component add rust-src, nor Debian's packages rustc-web and rust-web-src"
    fi
}

# The path of a program, by its name in the messages of a build in JSON, which are read. Its folder
# is `built`: in the container of cross it has another name.
executable() {
    sed -n '/"name":"'"$1"'"/s/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1 |
        sed "s|^.*/${built##*/}/|$built/|"
}

# Whether cross is there, with the Docker that it runs in.
crosses() { command -v cross >/dev/null && docker info >/dev/null 2>&1; }

# Whether rustup has Rust's library for a target.
by_rustup() { has_library "$1" || rustup target add "$1" >&2; }

has_library() { rustc --print target-libdir --target "$1" 2>/dev/null | xargs test -d; }

# Whether rustup has the source of Rust's library.
has_source() {
    [ -d "$(rustc --print sysroot)/lib/rustlib/src/rust/library/std" ] ||
        rustup component add rust-src >&2
}

# Makes `build` one that builds Rust's library as well, in a folder of its own, for
# RUSTC_BOOTSTRAP would have everything else built again.
# shellcheck disable=SC2034,SC2054 # others read them; the comma is cargo's
from_source() {
    local triple=$1 folder=$2 variables=("${@:3}")
    case $triple in
        *musl*)
            # It makes no start files of its own; those of Zig serve.
            variables+=("CARGO_TARGET_$(printf %s "$triple" | tr 'a-z-' 'A-Z_')_RUSTFLAGS=-Clink-self-contained=no")
            ;;
    esac
    build=(env -u RUSTUP_TOOLCHAIN RUSTC_BOOTSTRAP=1 "CARGO_TARGET_DIR=$folder" "${variables[@]}"
        "${build[@]}" -Zbuild-std=std,panic_abort)
    built="$folder/$triple"
}

debian=$PWD/.tools/debian-rust

# Whether Debian gives a compiler with the source of its library; puts them into .tools without
# installing them. rustc finds the rest from where it lies.
debian_rust() {
    [ -x "$debian/bin/rustc" ] && return
    command -v apt-get >/dev/null && command -v rustup >/dev/null || return
    say "getting rustc-web and rust-web-src from Debian"
    local packages triple
    triple=$(rustc -vV | sed -n 's/^host: //p')
    packages=$(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts \
        --no-breaks --no-replaces --no-enhances rustc-web libstd-rust-web-dev |
        grep -E '^(rustc-web|libstd-rust-web|libllvm)' | sort -u)
    rm -rf "$debian"
    mkdir -p "$debian"/{packages,unpacked,bin,lib/rustlib/src}
    # shellcheck disable=SC2086 # one word for each package
    (cd "$debian/packages" && apt-get download -qq rust-web-src $packages >&2) || return
    for packages in "$debian"/packages/*.deb; do dpkg -x "$packages" "$debian/unpacked" || return; done
    mv "$debian"/unpacked/usr/lib/*/lib{rustc_driver,LLVM}* "$debian/lib/" &&
        mv "$debian/unpacked/usr/lib/rustlib/$triple" "$debian/lib/rustlib/" &&
        mv "$debian"/unpacked/usr/src/rustc-* "$debian/lib/rustlib/src/rust" &&
        cp "$(rustup which cargo)" "$debian/bin/cargo" &&
        mv "$debian/unpacked/usr/bin/rustc" "$debian/bin/rustc" &&
        rm -rf "$debian/unpacked" "$debian/packages"
}
