#!/usr/bin/env bash
# Prints what is in dist/, for the README: sizes, and what the programs need of a machine. Sourced by
# other scripts, after needs.sh.
set -euo pipefail

# A line for each named file of dist/.
sizes() {
    local name newest linked bytes
    echo '| file | bytes | linked |'
    echo '|---|---|---|'
    for name in "$@"; do
        newest=$(needed_glibc "dist/$name")
        if [ -n "$newest" ]; then linked="glibc $newest or newer"; else linked=static; fi
        bytes=$(stat -c %s "dist/$name" | sed ':a; s/\B[0-9]\{3\}\b/,&/; ta')
        # shellcheck disable=SC2016 # Markdown
        printf '| `%s` | %s | %s |\n' "$name" "$bytes" "$linked"
    done
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    cd "$(dirname "$0")/.."
    # shellcheck source=scripts/needs.sh
    . scripts/needs.sh
    files=(dist/dunlin-*)
    sizes "${files[@]#dist/}"
fi
