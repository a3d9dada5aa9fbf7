# What a program needs of the machine that it runs on. Sourced by other scripts, which define fail.
# shellcheck shell=bash

# The newest version of glibc that a program asks for; nothing for a static one.
needed_glibc() {
    LC_ALL=C readelf --wide --version-info "$1" |
        sed -n 's/.*Name: GLIBC_\([0-9.]*\).*/\1/p' | LC_ALL=C sort -V | tail -n 1
}

# The bar of the agents that every device gets, bytes.
agent_bytes_max=12000000

# Fails with the names and sizes of those agents of dist/, among the named files, that are above it.
check_sizes() {
    local name bytes large=()
    for name in "$@"; do
        [[ $name == dunlin-agent-* && $name != dunlin-agent-accel-* ]] || continue
        bytes=$(stat -c %s "dist/$name")
        if [ "$bytes" -gt "$agent_bytes_max" ]; then large+=("$name has $bytes bytes"); fi
    done
    [ "${#large[@]}" = 0 ] ||
        fail "$(printf '%s, ' "${large[@]}")more than the bar of $agent_bytes_max"
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
