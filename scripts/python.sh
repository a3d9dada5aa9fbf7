# Finds a Python. Sourced by other scripts, which define say and fail.
# shellcheck shell=bash

# Sets `python` to the first of python3 and its numbered versions that is as new as asked, such as
# 3.11, and makes virtual environments with pip inside: Debian has that part in packages of their
# own. PYTHON=FILE is the only one that is looked at. Otherwise fails with what to install.
# shellcheck disable=SC2034 # others read it
find_python() {
    local wanted=$1 candidate minor seen=
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        command -v "$candidate" >/dev/null || continue
        if "$candidate" - "$wanted" 2>/dev/null <<'PY'; then
import ensurepip, sys, venv
sys.exit(sys.version_info[:2] < tuple(map(int, sys.argv[1].split("."))))
PY
            python=$candidate
            return
        fi
        if ! minor=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
        then
            seen+="; $candidate does not run"
            continue
        fi
        seen+="; $candidate is $minor"
        if [ "$(printf '%s\n' "$wanted" "$minor" | sort -V | head -n 1)" = "$wanted" ]; then
            seen+=", without venv or ensurepip (apt-get install python$minor-venv)"
        fi
    done
    fail "Python $wanted or newer with venv is missing${seen:-; there is no ${PYTHON:-python3}}." \
        "Install one, such as apt-get install python3 python3-venv, on Ubuntu 22.04" \
        "python3.11 python3.11-venv; PYTHON names one that lies elsewhere"
}
