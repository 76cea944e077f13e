#!/bin/bash
# The first start of this machine: installs the Otonix daemon, enrols it for its agent, then runs its buyer's script.
set -euo pipefail
umask 077
url=@URL@
sha256=@SHA256@
server=@SERVER@
token=@TOKEN@
own=@OWN@
root=${OTONIX_ROOT:-}
state=$root/var/lib/otonix-agent
program=$root/usr/bin/otonix-agent

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

again() {
    local n
    for n in 1 2 3 4 5 6 7 8; do
        if "$@"; then return 0; fi
        sleep $((n * 2))
    done
    return 1
}

fetch() {
    if command -v curl >/dev/null; then
        curl --fail --silent --show-error --location --max-time 300 --output "$work/package" "$url"
    else
        wget --quiet --timeout=300 --output-document="$work/package" "$url"
    fi
}

install_daemon() {
    again fetch
    echo "$sha256  $work/package" | sha256sum --check --status || {
        echo "the package is not the one that was expected; nothing is installed" >&2
        return 1
    }
    if tar -tzf "$work/package" >/dev/null 2>&1; then
        tar -xzf "$work/package" -C "$work"
        found=$(find "$work" -name otonix-agent -type f | head -n 1)
    else
        found=$work/package
    fi
    [ -n "$found" ]
    mkdir -p "$root/usr/bin"
    install -m 0755 "$found" "$program"
    mkdir -p -m 0711 "$state"
    OTONIX_ENROL=$token again "$program" --state-dir "$state" init --server "$server"
}

start_daemon() {
    local unit=$root/etc/systemd/system/otonix-agent.service
    if [ -d "$root/run/systemd/system" ]; then
        cat >"$unit" <<'UNIT'
@UNIT@
UNIT
        chmod 0644 "$unit"
        systemctl daemon-reload
        systemctl enable --now otonix-agent
    else
        setsid nohup "$program" --state-dir "$state" run >"$state/log" 2>&1 </dev/null &
    fi
}

failed=0
if install_daemon && start_daemon; then :; else failed=1; fi
if [ -n "$own" ]; then
    mkdir -p "$root/var/lib/otonix-own"
    printf '%s' "$own" | base64 -d >"$root/var/lib/otonix-own/user-data"
    chmod 0700 "$root/var/lib/otonix-own/user-data"
    "$root/var/lib/otonix-own/user-data" || failed=1
fi
exit "$failed"
