#!/usr/bin/env bash
# The main job on this machine: a broker with its own nats-server, three agents with different
# shares of the handwritten digits, a federated training, and the model asked in three ways.
#
#   PROGRAMS=target/release scripts/demo.sh
#   KEEP=1 ...    leaves everything running and says how to go on
set -euo pipefail
cd "$(dirname "$0")/.."

programs=$(cd "${PROGRAMS:-target/release}" && pwd)
keep=${KEEP:-}
rounds=15
held_out=360
[ -x .tools/bin/nats-server ] && export DUNLIN_NATS_SERVER="$PWD/.tools/bin/nats-server"
PATH="$programs:$PATH"

work=$(mktemp -d "${TMPDIR:-/tmp}/dunlin-demo.XXXXXX")
pids=()
began=$SECONDS

step() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
show() { printf '$ %s\n' "$*"; "$@"; }

stop() {
    local pid
    for ((i = ${#pids[@]} - 1; i >= 0; i--)); do
        pid=${pids[i]}
        kill -TERM "$pid" 2>/dev/null || continue
        wait "$pid" 2>/dev/null || true
    done
}

finish() {
    local code=$?
    trap - EXIT INT TERM
    if [ "$code" -ne 0 ]; then
        printf '\nthe demo stopped (%s); the logs are in %s\n' "$code" "$work" >&2
        stop
    elif [ -z "$keep" ]; then
        stop
        rm -rf "$work"
    fi
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT TERM

# Waits until a command succeeds, ten seconds at most.
await() {
    local tries
    for ((tries = 0; tries < 200; tries++)); do
        if "$@" >/dev/null 2>&1; then return; fi
        sleep 0.05
    done
    printf 'waited ten seconds for: %s\n' "$*" >&2
    tail -n 5 "$work"/*.log >&2
    return 1
}

field() { sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p" "$work/ready.json"; }

step "A broker and its NATS server"
dunlin --json up --listen 127.0.0.1:0 --nats-host 127.0.0.1 --nats-port 0 \
    --state-dir "$work/broker" >"$work/ready.json" 2>"$work/broker.log" &
pids+=($!)
await grep -q listening "$work/ready.json"
DUNLIN_SERVER=$(field http)
DUNLIN_NATS=$(field nats)
export DUNLIN_SERVER DUNLIN_NATS
printf 'HTTP %s, NATS %s\n' "$DUNLIN_SERVER" "$DUNLIN_NATS"

step "1,797 real digits: each device gets its own, uneven share"
show dunlin data digits --out "$work/digits" --devices 3 --partition dirichlet:0.5 \
    --held-out "$held_out"

step "Three agents join"
sites=(attic lab garage)
for i in 1 2 3; do
    dunlin-agent --name "device-$i" --label "site=${sites[i - 1]}" --group demo \
        --data "digits=$work/digits/device-$i" --state-dir "$work/device-$i" \
        2>"$work/device-$i.log" &
    pids+=($!)
done
joined() { [ "$(dunlin devices | grep -c 'digits [1-9]')" = 3 ]; }
await joined
show dunlin devices

step "They learn together; no picture leaves its device"
training=$SECONDS
show dunlin train --dataset digits --model lenet --rounds "$rounds" --devices 3
training=$((SECONDS - training))
show dunlin models

step "Held-out digits, which no device has seen, asked in three ways"
pictures=("$work"/digits/held-out/*.png)
show dunlin infer --model lenet --draw "${pictures[0]}"
printf '\n$ curl --data-binary @%s %s/v2/models/lenet/infer?top=1\n' "${pictures[1]##*/}" \
    "$DUNLIN_SERVER"
if command -v curl >/dev/null; then
    curl --silent --show-error --fail --header 'Content-Type: image/png' \
        --data-binary "@${pictures[1]}" "$DUNLIN_SERVER/v2/models/lenet/infer?top=1"
    echo
else
    echo "(curl is not on this machine)"
fi
printf '\n$ dunlin nats request jobs.infer {"model":"lenet","top":1,"picture":"<%s in base64>"}\n' \
    "${pictures[2]##*/}"
dunlin nats request jobs.infer \
    "{\"model\":\"lenet\",\"top\":1,\"picture\":\"$(base64 -w 0 "${pictures[2]}")\"}"

step "All held-out digits"
dunlin infer --model lenet "${pictures[@]}" >"$work/answers.txt"
right=$(awk '{ name = $4; sub(/\.png$/, "", name); sub(/.*-/, "", name) }
    $1 == name { n++ } END { print n + 0 }' "$work/answers.txt")
devices=$(grep -o 'device [^,]*' "$work/answers.txt" | sort | uniq -c | awk '{ printf "%s%s %s", s, $3, $1; s = ", " }')
percent=$(awk -v n="$right" -v of="$held_out" 'BEGIN { printf "%.1f", 100 * n / of }')

step "Summary"
printf '%-22s %s\n' \
    "right on held-out" "$right of $held_out ($percent %)" \
    "answered by" "$devices" \
    "training" "$rounds rounds, 3 devices, ${training} s" \
    "whole demo" "$((SECONDS - began)) s" \
    "agent's memory" "$(awk '/VmRSS/ { printf "%.1f MB", $2 / 1000 }' "/proc/${pids[1]}/status") (with the model loaded)" \
    "agent's program" "$(du -k "$programs/dunlin-agent" | awk '{ printf "%.1f MB", $1 * 1.024 / 1000 }')"
if [ "$right" -lt $((held_out * 95 / 100)) ]; then
    echo "fewer than 95 % are right: something is wrong" >&2
    exit 1
fi

step "How to go on"
if [ -n "$keep" ]; then
    cat <<END
Everything is still running, with its files in $work:
  export PATH="$programs:\$PATH" DUNLIN_SERVER=$DUNLIN_SERVER DUNLIN_NATS=$DUNLIN_NATS
  dunlin devices
  dunlin jobs
  dunlin train --dataset digits --model lenet:1 --register-as lenet --rounds 3
  dunlin nats request jobs.help
Stop it: kill ${pids[*]}
END
else
    cat <<END
make demo KEEP=1   leaves all this running
dunlin up          begins a fleet of your own; README.md goes on from there
END
fi
