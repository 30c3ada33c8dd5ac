#!/bin/sh
# Another release of Debian on this host, as bare as it can be: a clone of this checkout's HEAD in it, and a command run there.
#
#   sudo tools/other_debian.sh trixie                    `make try`, then `make test`
#   sudo tools/other_debian.sh trixie make try           that only
#   sudo tools/other_debian.sh bookworm sh               look around
#
# The root is made once (mmdebstrap, with what every Debian has, and git, make, sudo and certificates) and kept in
# ${INSULA_OTHER_DEBIAN:-/var/cache/insula-other-debian}/<suite>; remove it for a machine that has nothing installed.  The command has
# mounts, processes and a host name of its own, and ends with this program; kernel, devices, cgroups and network are the host's.
# The host's ways to archives are used: apt's proxies, certificates, pip's and proxies' environment.
set -eu
[ "$(id -u)" = 0 ] || { echo "other_debian: needs root" >&2; exit 1; }
[ $# != 0 ] || { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" >&2; exit 2; }
suite=$1; shift
[ $# != 0 ] || set -- sh -ec 'make try; make test'
here=$(cd "$(dirname "$0")/.." && pwd)
base=${INSULA_OTHER_DEBIAN:-/var/cache/insula-other-debian}
root=$base/$suite

if [ ! -e "$root/etc/debian_version" ]; then
    echo "other_debian: making $root"
    mkdir -p "$base"
    fresh=$(mktemp -d "$base/.$suite.XXXXXX")
    trap 'rm -rf --one-file-system "$fresh"' EXIT
    apt-config dump | grep -E '^Acquire::(http|https)::(Proxy|CAInfo)|^Acquire::(Check-Valid-Until|Check-Date|Retries) ' \
        | grep -v ' "";$' > "$fresh/apt.conf" || true
    # from 1.5 on it makes all mounts private
    unshare --mount mmdebstrap --quiet --variant=minbase --include=ca-certificates,git,make,sudo --aptopt="$fresh/apt.conf" \
        --customize-hook='mkdir -p "$1/usr/local/share"; cp -r /usr/local/share/ca-certificates "$1/usr/local/share/" || true' \
        --customize-hook='chroot "$1" update-ca-certificates' \
        "$suite" "$fresh/root"
    mv "$fresh/root" "$root"
    rm -rf "$fresh"
    trap - EXIT
fi

# what was installed by an earlier run stays; the checkout is what is committed now
cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
if [ -d "$root/root/insula/.git" ]; then
    git -C "$root/root/insula" fetch --quiet "$here" HEAD
    git -C "$root/root/insula" checkout --quiet --detach --force FETCH_HEAD
else
    git clone --quiet --no-hardlinks "$here" "$root/root/insula"
fi

environment=$(env | grep -E '^(PIP_CERT|PIP_INDEX_URL|PIP_EXTRA_INDEX_URL|https?_proxy|no_proxy|INSULA_TRY_RUNS)=' || true)
# shellcheck disable=SC2016
exec unshare --mount --propagation private --pid --fork --kill-child --uts sh -ec '
    root=$1 environment=$2; shift 2
    hostname "other-debian"
    mount --bind "$root" "$root"
    mount --rbind /dev "$root/dev"
    mount --rbind /sys "$root/sys"
    mount -t proc proc "$root/proc"
    mount -t tmpfs -o mode=755 run "$root/run"
    mkdir -p "$root/run/lock" "$root/.host"
    cd "$root"
    pivot_root . .host  # not chroot: runtimes pivot, too, and only a mount can be pivoted from
    umount -l .host
    rmdir .host
    cd /root/insula
    IFS="
"
    exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM="${TERM:-dumb}" \
        $environment "$@"
' sh "$root" "$environment" "$@"
