# QEMU runs the programs of other architectures. Sourced by other scripts, which define say.
# shellcheck shell=bash

# Sets `emulator` to the program that runs what is built for an architecture, as QEMU names it:
# the one on PATH, else Debian's where this is root. Otherwise says what to do, and returns 1.
emulate() {
    emulator=$(command -v "qemu-$1-static" || command -v "qemu-$1" || true)
    if [ -n "$emulator" ]; then return; fi
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "getting qemu-user-static"
        { apt-get update && apt-get install --yes --no-install-recommends qemu-user-static; } \
            >/dev/null 2>&1 || say "apt-get did not give qemu-user-static"
        emulator=$(command -v "qemu-$1-static" || true)
    fi
    if [ -n "$emulator" ]; then return; fi
    say "qemu-$1 is missing: sudo apt-get install qemu-user-static"
    return 1
}
