#!/usr/bin/env bash
# Puts the agent on a device over ssh, and starts it there as a service. Options of the agent
# follow; on a device that has the service already, those that are not given stay as they are.
#
#   scripts/deploy.sh pi@attic --nats nats://broker:4222 --label site=attic
#
#   AGENT=FILE   this program instead of the one of dist/ for the device's kind
#   SCOPE=user   a service of the user that logs in, instead of the system's
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'deploy: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

host=${1:-}
[ -n "$host" ] || fail "which device? make deploy HOST=user@host NATS=nats://broker:4222"
shift
dist=${DIST:-dist}
sockets=$(mktemp -d)

# One connection, so that a password is asked for once.
over=(-o ControlMaster=auto -o "ControlPath=$sockets/%C" -o ControlPersist=60)
# shellcheck disable=SC2029  # words are expanded here on purpose
remote() { ssh "${over[@]}" "$host" "$@"; }
finish() {
    ssh "${over[@]}" -O exit "$host" >/dev/null 2>&1 || true
    rm -rf "$sockets"
}
trap finish EXIT

# A word of a command for any shell.
quoted() { printf "'%s' " "${1//\'/\'\\\'\'}"; }

# Sets `file` to the agent for a device, and `advice` to what builds it. Where a GPU has no driver but
# Vulkan's, the agent without its engine does as well, if it is what there is.
choose() {
    local plain
    case $1-gpu-$2 in
        x86_64-gpu-render | amd64-gpu-render) plain=dunlin-agent-x86_64 ;;
        aarch64-gpu-render | arm64-gpu-render) plain=dunlin-agent-aarch64 ;;
    esac
    if [ -n "${plain:-}" ] && [ ! -f "$dist/${plain/agent/agent-accel}" ] && [ -f "$dist/$plain" ]; then
        say "${plain/agent/agent-accel}, which uses its GPU, is not in $dist"
        file=$dist/$plain
        return
    fi
    case $1-gpu-$2 in
        x86_64-gpu-[nr]* | amd64-gpu-[nr]*) file=dunlin-agent-accel-x86_64 advice="make agent-pc" ;;
        x86_64-* | amd64-*) file=dunlin-agent-x86_64 advice="scripts/dist.sh dunlin-agent-x86_64" ;;
        aarch64-gpu-[nr]* | arm64-gpu-[nr]*) file=dunlin-agent-accel-aarch64 advice="make agent-jetson" ;;
        aarch64-* | arm64-*) file=dunlin-agent-aarch64 advice="make agent-rpi" ;;
        armv7* | armv8l-*) file=dunlin-agent-armv7 advice="make agent-rpi32" ;;
        *) fail "$host is of kind $1: there are agents for x86_64, aarch64 and armv7" ;;
    esac
    file=$dist/$file
}

# shellcheck disable=SC2016  # the variable is the tests', on the device
found=$(remote 'uname -m
    root=${DUNLIN_SERVICE_ROOT:-}
    if [ -e "$root/dev/nvidia0" ] ||
        grep -aqi -e jetson -e nvidia "$root/proc/device-tree/model" 2>/dev/null
    then echo nvidia
    elif ls "$root"/dev/dri/renderD* >/dev/null 2>&1; then echo render
    else echo -; fi
    id -u') || fail "ssh $host does not work: try it alone"
{ read -r machine && read -r gpu && read -r user; } <<<"$found" ||
    fail "$host gave no answer that can be read: $found"
choose "$machine" "$gpu"
file=${AGENT:-$file}
[ -f "$file" ] || fail "$file is missing: $advice, or make dist"

say "$host is $machine, GPU: $gpu; copying $file"
# shellcheck disable=SC2016  # the device knows its HOME
folder=$(remote 'mktemp -d "$HOME/.dunlin.XXXXXX"') || fail "no folder could be made on $host"
case $folder in
    *[!A-Za-z0-9/._-]*) fail "the home directory on $host has a name that a shell may misread: $folder" ;;
esac
scp -q "${over[@]}" "$file" "$host:$folder/dunlin-agent" || fail "scp to $host:$folder failed"

arguments=
for argument in "$@"; do arguments+=$(quoted "$argument"); done
scope=
elevate=
terminal=()
if [ "${SCOPE:-}" = user ]; then
    scope=--user
elif [ "$user" != 0 ]; then
    elevate=sudo
    if [ -t 0 ]; then terminal=(-t); fi
fi
# The service has its own copy afterwards.
remote "${terminal[@]}" "trap 'rm -rf $folder' EXIT
    chmod +x $folder/dunlin-agent &&
    $elevate $folder/dunlin-agent service install $scope $arguments &&
    $elevate $folder/dunlin-agent service status $scope" ||
    fail "the agent does not run on $host; once that is mended, deploy again"
