#!/bin/sh
# The main job in one go: an image, a daemon, one command in both isolations, both kernels, and what they cost.
# $1: the insula program.  Leaves the daemon's state in a directory of its own and stops what it started.
set -eu
insula=$1
[ "$(id -u)" = 0 ] || { echo "try: needs root: sudo make try" >&2; exit 1; }
root=${INSULA_TRY_ROOT:-/var/lib/insula-try}
run=/run/insula-try
host=unix://$run/insula.sock
image=debian:$(. /etc/os-release; echo "${VERSION_ID:-12}")
step() { printf '\n\033[1m%s\033[0m\n' "$*"; }
show() { printf '\033[2m$\033[0m insula %s\n' "$*"; "$insula" --host "$host" "$@"; }

mkdir -p "$root" "$run"
step "Starting the engine"
"$insula" daemon --host "$host" --data-root "$root" --exec-root "$run" --bridge insula-try0 --subnet 172.31.240.0/24 \
    > "$root/daemon.log" 2>&1 &
daemon=$!
stop() {
    status=$?
    trap - EXIT INT TERM
    kill "$daemon" 2>/dev/null || true
    wait "$daemon" 2>/dev/null || true
    if [ "$status" != 0 ]; then echo "try: failed; the daemon's log is $root/daemon.log" >&2; fi
    exit "$status"
}
trap stop EXIT INT TERM
tries=0
until [ -S "$run/insula.sock" ]; do
    tries=$((tries + 1))
    kill -0 "$daemon" 2>/dev/null && [ "$tries" -lt 300 ] || { tail -n 5 "$root/daemon.log" >&2; exit 1; }
    sleep 0.1
done
echo "insula $("$insula" --version | cut -d' ' -f2), data in $root"

step "Getting an image: $image"
get="sudo insula pull $image"
if "$insula" --host "$host" inspect --type image "$image" >/dev/null 2>&1; then
    echo "already here"
elif timeout 60 "$insula" --host "$host" pull --quiet "$image" >/dev/null 2>&1; then
    echo "pulled from its registry"
else
    echo "no registry answers: making it from the distribution's packages"
    show bootstrap "$image"
    get="sudo insula bootstrap $image"
fi

step "Getting a kernel for virtual machines"
show guest make

step "One command, in a container: the host's kernel"
show run --rm "$image" uname -r
step "The same, in a virtual machine: a kernel of its own"
show run --rm --isolation vm "$image" uname -r
echo "(this host runs $(uname -r))"

step "What each costs on this host"
show compare --runs "${INSULA_TRY_RUNS:-3}" "$image"

step "What next"
cat <<EOF
  sudo make install                                   insula as a command, with its systemd units
  $get                          the same image, for the installed engine
  sudo insula run --rm -it --isolation vm $image bash
  docker -H unix:///run/insula/insula.sock run --rm -it --isolation vm $image bash
  insula --help; docs/why.md
EOF
