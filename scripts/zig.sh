# Zig is the C compiler and linker of static builds. Sourced by other scripts, at the top of the
# tree; they define say and fail.
# shellcheck shell=bash

zig_packages=(ziglang==0.17.1 cargo-zigbuild==0.24.0)

# Gets Zig from PyPI into .tools/zig, and puts it on PATH.
zig() {
    if ! .tools/zig/bin/python -c 'import ziglang' 2>/dev/null; then
        command -v python3 >/dev/null ||
            fail "python3 with pip and venv is missing: apt-get install python3-pip python3-venv"
        say "getting ${zig_packages[*]} from PyPI"
        rm -rf .tools/zig
        python3 -m venv .tools/zig
        .tools/zig/bin/python -m pip install --quiet --disable-pip-version-check "${zig_packages[@]}" ||
            fail "PyPI did not give ${zig_packages[*]}"
    fi
    PATH="$PWD/.tools/zig/bin:$PATH"
}

# Whether Rust's library for a target is there.
has_library() {
    rustc --print target-libdir --target "$1" 2>/dev/null | xargs test -d
}

# Sets `build` to the command that builds for a target, with Rust's library for it: rustup's, or
# made from its source where rustup has none.
build_for() {
    build=(cargo zigbuild --target "$1")
    if has_library "$1"; then return; fi
    say "getting Rust's library for $1"
    if rustup target add "$1"; then return; fi
    say "it is built from source"
    rustup component add rust-src || fail "rustup gave neither $1 nor rust-src"
    local variable
    variable="CARGO_TARGET_$(printf %s "$1" | tr 'a-z-' 'A-Z_')_RUSTFLAGS"
    # -Zbuild-std makes no start files of its own; those of Zig serve. A folder of its own, for
    # RUSTC_BOOTSTRAP would have everything else built again.
    build=(env RUSTC_BOOTSTRAP=1 "$variable=-Clink-self-contained=no"
        CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/build-std" "${build[@]}"
        -Zbuild-std=std,panic_abort)
}
