#!/bin/sh
# Installs insula into $2/lib/insula (a virtual environment), a link in $2/bin, the man pages and the systemd units.
# $1: the directory of the developer environment's programs, which builds the wheel.
set -eu
bin=$1 prefix=$2
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "install: needs root: sudo make install" >&2; exit 1; }
dist=$(mktemp -d)
trap 'rm -rf "$dist"' EXIT
"$bin/pip" wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir "$dist" .
/usr/bin/python3 -m venv "$prefix/lib/insula"
"$prefix/lib/insula/bin/pip" install --quiet --disable-pip-version-check --force-reinstall "$dist"/insula-*.whl
mkdir -p "$prefix/bin"
ln -sf "$prefix/lib/insula/bin/insula" "$prefix/bin/insula"
if [ -d docs/man ]; then
    mkdir -p "$prefix/share/man/man1"
    cp docs/man/*.1 "$prefix/share/man/man1/"
fi
if [ -d /etc/systemd/system ]; then
    sed "s|@BIN@|$prefix/bin|" packaging/insula.service > /etc/systemd/system/insula.service
    cp packaging/insula.socket /etc/systemd/system/insula.socket
    if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
    echo "install: done; start it with: systemctl enable --now insula.socket insula.service"
else
    echo "install: done; start it with: insula daemon"
fi
