#!/usr/bin/env bash
# The agent as a service under a real systemd: boots a small Debian in a container of its own, deploys to
# it over ssh as to a device, and holds what becomes of it to what the README says. The container and
# everything in it are removed afterwards; Debian itself (some 300 MB) stays in .tools for the next time.
#
#   scripts/service-check.sh    builds what it runs
#
#   AGENT=FILE        this agent, with the engine tract inside as those of dist/ have it
#   PROGRAMS=FOLDER   where `dunlin` is
#   DEBIAN=FOLDER     where Debian is, or is put
#
# It needs root, systemd-nspawn, debootstrap, and ssh, and says what of it is missing. The container
# shares this machine's network, and its sshd listens on 127.0.0.1 alone. Its control groups may have
# no controllers, so that limits of memory are not checked.
set -euo pipefail
cd "$(dirname "$0")/.."
export LC_ALL=C

say() { printf 'service-check: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

machine=dunlin-check-$$
packages=systemd,systemd-sysv,dbus,dbus-user-session,libpam-systemd,polkitd,openssh-server,sudo,procps

missing=()
[ "$(id -u)" = 0 ] || missing+=("root: sudo make service-check")
for tool in systemd-nspawn:systemd-container debootstrap:debootstrap ssh:openssh-client; do
    command -v "${tool%:*}" >/dev/null || missing+=("${tool%:*}: apt-get install ${tool#*:}")
done
[ "${#missing[@]}" = 0 ] || fail "nothing was checked; missing here:$(printf '\n  %s' "${missing[@]}")"

scripts/setup.sh
nats_server=$PWD/.tools/bin/nats-server
if [ -z "${AGENT:-}" ]; then
    AGENT=dist/dunlin-agent-$(uname -m)
    scripts/dist.sh "${AGENT#dist/}"
fi
if [ -z "${PROGRAMS:-}" ]; then
    PROGRAMS=${CARGO_TARGET_DIR:-target}/release
    cargo build --release --quiet -p broker-api
fi
AGENT=$(realpath "$AGENT")
PROGRAMS=$(realpath "$PROGRAMS")
say "the agent is $AGENT of $(date -r "$AGENT" "+%Y-%m-%d %H:%M")"

debian=${DEBIAN:-.tools/debian-bookworm}
if [ ! -d "$debian" ]; then
    say "getting Debian 12 for the container (some 100 MB)"
    rm -rf "$debian.part"
    mkdir -p "$(dirname "$debian")"
    debootstrap --variant=minbase --include="$packages" bookworm "$debian.part" >"$debian.log" 2>&1 ||
        fail "debootstrap did not make it, see $debian.log"
    mv "$debian.part" "$debian"
fi

work=$(mktemp -d "${TMPDIR:-/tmp}/$machine.XXXXXX")
root=$work/root
container=
nats=
broker=

# Ends a process of ours, by force after 20 s.
end() {
    local pid=$1 tries
    [ -n "$pid" ] || return 0
    kill -TERM "$pid" 2>/dev/null || true
    for ((tries = 0; tries < 200; tries++)); do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
}
# Removes the control groups that systemd-nspawn made below ours, once nobody is in them.
remove_groups() {
    local own group
    own=$(sed -n 's/^0:://p' /proc/self/cgroup)
    for group in /sys/fs/cgroup{,/unified,/systemd}"$own"/{payload,supervisor}; do
        [ ! -d "$group" ] || find "$group" -depth -type d -exec rmdir {} \; 2>/dev/null || true
    done
}
finish() {
    local code=$?
    trap - EXIT INT TERM
    end "$container"
    end "$broker"
    end "$nats"
    remove_groups
    rmdir "/run/systemd/nspawn/propagate/$machine" 2>/dev/null || true
    rm -rf "$work"
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT TERM

# Waits until a command succeeds, as many seconds at most.
within() {
    local until=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        if [ $SECONDS -ge $until ]; then
            printf 'waited in vain for: %s\n' "$*" >&2
            return 1
        fi
        sleep 0.2
    done
}

free_port() {
    local port
    while :; do
        port=$((20000 + RANDOM % 10000))
        if ! (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then break; fi
    done
    echo "$port"
}

failures=()
# Does a check, shows what it said where it fails, and goes on.
check() {
    local what=$1
    shift
    if "$@" >"$work/said" 2>&1 </dev/null; then
        printf 'ok      %s\n' "$what"
    else
        printf 'FAILED  %s\n' "$what"
        sed 's/^/        /' "$work/said"
        failures+=("$what")
    fi
}

# ssh and scp as whoever deploys has them, to whom the container is the host `attic`.
prepare() {
    cp -a --reflink=auto "$debian" "$root"
    : >"$root/etc/machine-id"
    echo attic >"$root/etc/hostname"
    echo "127.0.0.1 localhost attic" >"$root/etc/hosts"
    local port user
    port=$(free_port)
    printf 'ListenAddress 127.0.0.1\nPort %s\nUseDNS no\n' "$port" >"$root/etc/ssh/sshd_config.d/check.conf"
    # So that a check need not wait for the end of a session.
    mkdir -p "$root/etc/systemd/logind.conf.d"
    printf '[Login]\nUserStopDelaySec=1\n' >"$root/etc/systemd/logind.conf.d/check.conf"
    ssh-keygen -q -t ed25519 -N '' -f "$work/key"
    for user in pi ada; do chroot "$root" useradd --create-home --shell /bin/bash "$user"; done
    for user in root pi ada; do
        local home=$root/home/$user
        [ "$user" = root ] && home=$root/root
        install -d -m 700 "$home/.ssh"
        cp "$work/key.pub" "$home/.ssh/authorized_keys"
        chroot "$root" chown -R "$user:" "${home#"$root"}/.ssh"
    done
    echo 'pi ALL=(ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/pi"
    cat >"$work/ssh_config" <<END
Host attic
  HostName 127.0.0.1
  Port $port
  IdentityFile $work/key
  IdentitiesOnly yes
  UserKnownHostsFile $work/known_hosts
  StrictHostKeyChecking accept-new
  LogLevel ERROR
END
    mkdir "$work/bin"
    local program
    for program in ssh scp; do
        printf '#!/bin/sh\nexec %s -F %s/ssh_config "$@"\n' "$(command -v $program)" "$work" >"$work/bin/$program"
        chmod +x "$work/bin/$program"
    done
    PATH=$work/bin:$PROGRAMS:$PATH
}

# What a device has, whatever this machine has: one hierarchy of control groups.
boot() {
    SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 systemd-nspawn --boot --directory="$root" --machine="$machine" \
        --register=no --keep-unit --console=passive --resolv-conf=off --timezone=off --link-journal=no \
        </dev/null >>"$work/console.log" 2>&1 &
    container=$!
    within 60 ssh root@attic true ||
        fail "no systemd came up in the container: $(tail -n 5 "$work/console.log")"
}

# shellcheck disable=SC2029  # words are expanded here on purpose
device() { ssh root@attic "$@"; }
start_nats() {
    "$nats_server" -a 127.0.0.1 -p "$nats_port" -js -sd "$work/jetstream" >>"$work/nats.log" 2>&1 &
    nats=$!
    within 10 eval ": </dev/tcp/127.0.0.1/$nats_port"
    dunlin serve --nats "$nats_url" --listen "127.0.0.1:$http_port" --state-dir "$work/broker" \
        >>"$work/broker.log" 2>&1 &
    broker=$!
    within 20 dunlin devices
}
stop_nats() {
    end "$broker"
    end "$nats"
}
online() { dunlin devices | grep -E "^$1 +online"; }
says() { "${@:2}" 2>&1 | tee -a /dev/stderr | grep -F -- "$1"; }
answers() { says "device attic, $1" dunlin infer --model lenet --engine "$1" "${pictures[0]}"; }
# Only what was said is of interest, not whether it is a success.
refused() { { "${@:2}" 2>&1 || true; } | tee -a /dev/stderr | grep -F -- "$1"; }

deployed_without_nats() {
    says "not connected: NATS at $nats_url cannot be reached" \
        scripts/deploy.sh root@attic --nats "$nats_url" --label site=attic --data digits=/home/pi/digits
}
joined_when_nats_is_there() {
    start_nats && within 20 online attic && says "connected to $nats_url" device dunlin-agent service status
}
trained() { says "registered lenet:" dunlin train --dataset digits --model lenet --rounds 3 --devices 1; }
answered_from_memory() {
    answers tract && device "pgrep --full '^/proc/self/fd/[0-9]+ serve tract'"
}
journal_is_readable() {
    says "WARN NATS at" device journalctl -u dunlin-agent --priority warning --output cat &&
        ! device journalctl -u dunlin-agent --priority warning --output cat | grep "INFO"
}
back_after_kill() {
    device systemctl kill --signal KILL dunlin-agent &&
        within 20 says ", 1 restarts" device dunlin-agent service status && within 20 answers tract
}
upgraded_by_sudo() {
    local before
    before=$(device systemctl show --property MainPID dunlin-agent)
    says "active (running)" scripts/deploy.sh pi@attic --group roof &&
        device grep -q /home/pi/digits /etc/dunlin/agent.toml &&
        [ "$before" != "$(device systemctl show --property MainPID dunlin-agent)" ] &&
        within 20 answers native && [ -z "$(ssh pi@attic 'ls -d .dunlin*' 2>/dev/null)" ]
}
status_without_root() {
    says "sudo dunlin-agent service status" ssh pi@attic dunlin-agent service status
}
foreign_state_is_refused() {
    device install -d -o pi /srv/foreign &&
        refused "nothing was changed: --state-dir /srv/foreign belongs to user" \
            device dunlin-agent service install --state-dir /srv/foreign && online attic
}
there_after_a_boot() {
    stop_nats
    device reboot || true
    local tries
    for ((tries = 0; tries < 300; tries++)); do
        kill -0 "$container" 2>/dev/null || break
        sleep 0.1
    done
    end "$container"
    boot && says "not connected: NATS at" device dunlin-agent service status &&
        start_nats && within 20 online attic && within 20 answers tract
}
another_state_directory() {
    device dunlin-agent service install --state-dir "'/srv/a b/state'" && within 20 answers native &&
        [ "$(device stat --format %a "'/srv/a b/state'")" = 700 ] &&
        device dunlin-agent service install --state-dir /var/lib/dunlin-agent && within 20 answers native
}
not_exposed() { device systemd-analyze security --threshold=50 --no-pager dunlin-agent.service; }
uninstalled() {
    device dunlin-agent service uninstall && ! device pgrep dunlin-agent &&
        refused "not installed" device dunlin-agent service status &&
        device test -e /etc/dunlin/agent.toml -a -e /var/lib/dunlin-agent &&
        ! device systemctl cat dunlin-agent.service
}
purged() {
    device dunlin-agent service uninstall --purge &&
        [ -z "$(device 'find / -xdev -iname "*dunlin*" | tee -a /dev/stderr')" ]
}
users_service_outlives_the_session() {
    SCOPE=user scripts/deploy.sh ada@attic --nats "$nats_url" --name ada && sleep 3 &&
        ! device loginctl list-sessions --no-legend | grep ada && device pgrep --uid ada dunlin-agent &&
        online ada && ssh ada@attic .local/bin/dunlin-agent service uninstall --user --purge &&
        [ -z "$(device 'find /home/ada -iname "*dunlin*" | tee -a /dev/stderr')" ]
}

nats_port=$(free_port)
http_port=$(free_port)
nats_url=nats://127.0.0.1:$nats_port
export AGENT DUNLIN_SERVER=http://127.0.0.1:$http_port
prepare
dunlin data digits --out "$work/digits" --devices 1 --held-out 20 >/dev/null
pictures=("$work"/digits/held-out/*.png)
# Nobody but their owner may read the data.
install -d -m 700 "$root/home/pi/digits"
install -m 600 "$work"/digits/device-1/* "$root/home/pi/digits"
chroot "$root" chown -R pi: /home/pi
boot
say "$(device systemctl --version | head -n 1) is up: $(device systemctl is-system-running || true)"

check "deployed as root, and told that NATS is not there" deployed_without_nats
check "joins when NATS is there, and says so" joined_when_nats_is_there
check "trains on data of another user" trained
check "answers by its own engine" answers native
check "answers by a helper that was started from memory" answered_from_memory
check "the journal knows warnings from the rest" journal_is_readable
check "is there again after kill -9" back_after_kill
check "a second deployment, by sudo, replaces the program and keeps the options" upgraded_by_sudo
check "status without root says what it cannot tell" status_without_root
check "a state directory of another user is refused, and the service goes on" foreign_state_is_refused
check "is there after a boot, before NATS is" there_after_a_boot
check "keeps its state elsewhere, if told so" another_state_directory
check "systemd-analyze security rates it 5.0 or better" not_exposed
check "uninstalled, and its options and state are kept" uninstalled
check "purged, and nothing is left" purged
check "a user's service outlives the session, and leaves nothing either" users_service_outlives_the_session

for what in "${failures[@]}"; do say "FAILED: $what"; done
[ "${#failures[@]}" = 0 ] || exit 1
say "the service does what the README says, but for limits of memory, which were not checked"
