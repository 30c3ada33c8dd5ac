#!/bin/sh
# Installs what insula needs on Debian 12 or 13 (packages, then a virtual environment in $1).
# Says what it does, does nothing twice.  Root is needed only when a package is missing.
set -eu
venv=$1
python=${PYTHON:-/usr/bin/python3}

# program or file                     package
needs='
/usr/bin/python3                      python3
/usr/bin/conmon                       conmon
/usr/bin/crun                         crun
/usr/sbin/runc                        runc
/usr/sbin/nft                         nftables
/usr/sbin/ip                          iproute2
/usr/bin/mkfs.erofs                   erofs-utils
/usr/sbin/mke2fs                      e2fsprogs
/usr/bin/qemu-system-x86_64           qemu-system-x86
/usr/bin/mmdebstrap                   mmdebstrap
/usr/share/containers/seccomp.json    golang-github-containers-common
/usr/bin/tini-static                  tini
/usr/bin/busybox                      busybox-static
/usr/bin/docker-registry              docker-registry
/usr/bin/hyperfine                    hyperfine
/usr/bin/htpasswd                     apache2-utils
/usr/bin/nsenter                      util-linux
/usr/sbin/modinfo                     kmod
/usr/bin/ps                           procps
/usr/bin/mount                        mount
/usr/bin/setpriv                      util-linux
/usr/bin/openssl                      openssl
/usr/bin/gcc                          gcc
/usr/include/stdio.h                  libc6-dev
/usr/bin/cpio                         cpio
/usr/bin/lz4                          lz4
/usr/bin/ssh-keygen                   openssh-client
/var/lib/dpkg/info/docker-compose.list docker-compose
'
missing=
while read -r file package; do
    [ -n "$file" ] || continue
    [ -e "$file" ] || missing="$missing $package"
done <<EOF
$needs
EOF
# a package of its own since Debian 13; Debian 12 has it in qemu-system-common
if [ ! -e /usr/lib/qemu/virtiofsd ] && [ ! -e /usr/libexec/virtiofsd ]; then
    case $(. /etc/os-release; echo "${VERSION_ID:-}") in
        12) missing="$missing qemu-system-common" ;;
        *) missing="$missing virtiofsd" ;;
    esac
fi
"$python" -c 'import venv, ensurepip' 2>/dev/null || missing="$missing python3-venv"

if [ -n "$missing" ]; then
    if [ "$(id -u)" != 0 ]; then
        echo "setup: these packages are missing:$missing" >&2
        echo "setup: run this with sudo, or install them: apt-get install$missing" >&2
        exit 1
    fi
    echo "setup: installing$missing"
    log=$(mktemp)
    # no package may start a service of its own while we install
    made=
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d; chmod +x /usr/sbin/policy-rc.d; made=1
    fi
    # a machine that has just booted may be looking for upgrades of its own; not every apt waits for another
    # at its lists, as it does at dpkg (DPkg::Lock::Timeout, in seconds)
    apt() { DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 apt-get -qq -o DPkg::Lock::Timeout=600 "$@"; }
    status=0 tries=0
    until apt update > "$log" 2>&1; do
        status=$?
        tries=$((tries + 1))
        grep -q 'Could not get lock' "$log" && [ "$tries" -le 120 ] || break
        [ "$tries" != 1 ] || echo "setup: waiting for another apt-get to finish"
        status=0
        sleep 5
    done
    [ "$status" != 0 ] || apt install -y --no-install-recommends $missing >> "$log" 2>&1 || status=$?
    [ -z "$made" ] || rm -f /usr/sbin/policy-rc.d
    if [ "$status" != 0 ]; then
        tail -n 20 "$log" >&2
        echo "setup: apt-get failed; the whole output is in $log" >&2
        exit 1
    fi
    rm -f "$log"
fi

if [ ! -x "$venv/bin/python" ]; then
    echo "setup: making a virtual environment in $venv"
    "$python" -m venv "$venv"
fi
echo "setup: installing the Python packages"
"$venv/bin/pip" install --quiet --disable-pip-version-check --root-user-action=ignore editables hatchling ziglang
"$venv/bin/pip" install --quiet --disable-pip-version-check --root-user-action=ignore --no-build-isolation --editable '.[dev]' 
