# What a program needs of the machine that it runs on. Sourced by other scripts, which define fail.
# shellcheck shell=bash

# The newest version of glibc that a program asks for; nothing for a static one.
needed_glibc() {
    LC_ALL=C readelf --wide --version-info "$1" |
        sed -n 's/.*Name: GLIBC_\([0-9.]*\).*/\1/p' | LC_ALL=C sort -V | tail -n 1
}

# Fails when a program ($1) is for another machine than its architecture ($2) says, or needs more of
# it than its target ($3) says: none but the kernel with musl, else the glibc that the target ends in.
check() {
    local machine newest glibc=${3##*-gnu.} found
    case $2 in x86_64) machine=X86-64 ;; aarch64) machine=AArch64 ;; armv7) machine=ARM ;; esac
    found=$(LC_ALL=C readelf --wide --file-header --program-headers --dynamic "$1") ||
        fail "$1 is no program that readelf knows"
    grep "Machine:.*$machine" <<<"$found" >/dev/null || fail "$1 is not for $2"
    case $3 in
        *-musl*)
            if grep -E 'INTERP|NEEDED' <<<"$found" >&2; then fail "$1 is not static"; fi
            ;;
        *)
            newest=$(needed_glibc "$1")
            [ "$(printf '%s\n' "$newest" "$glibc" | LC_ALL=C sort -V | tail -n 1)" = "$glibc" ] ||
                fail "$1 needs glibc $newest, newer than $glibc"
            ;;
    esac
}
