#!/bin/sh
# The whole suite, in the order in which failures are cheapest to learn.  $1: the directory of python's programs.
# The last step looks at the host itself: nothing of ours may be left on it.
set -eu
bin=$1
cd "$(dirname "$0")/.."

if [ "$(id -u)" != 0 ]; then
    echo "test: the integration tests need root: sudo make test" >&2
    exit 1
fi
before=$(mktemp)
trap 'rm -f "$before"' EXIT
"$bin/python" tools/leftovers.py --write "$before"
netns_is_mounted() { mountpoint -q /run/netns; }
netns_is_mounted && had_netns=1 || had_netns=

status=0
make -s check || status=1
"$bin/python" -m pytest -q -n 2 --dist loadfile tests/unit tests/contract || status=1
# two workers, a file each: most wait for something other than a CPU; the longest goes first
"$bin/python" -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder \
    tests/integration/isolation/test_cgroup2.py tests/integration tests/security || status=1
# the first `ip netns add` of a host mounts this, and nothing takes it away again
if [ -z "$had_netns" ] && netns_is_mounted && [ -z "$(ls /run/netns)" ]; then
    umount /run/netns && rmdir /run/netns || true
fi
"$bin/python" tools/leftovers.py --compare "$before" || status=1
exit $status
