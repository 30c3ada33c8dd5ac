"""What the tests of other people's clients need from Debian's archive: servers in an image, the stock docker
client and compose 2.

Made once per machine, in the tests' cache.  Whoever cannot be had is None: there may be no archive here.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from insula.images.apt_sources import format_deb822, read_host_sources, translate

IMAGE = "stack:test"
_SUITE = "bookworm"
_PACKAGES = (
    *("postgresql-15", "redis-server", "nginx-light"),
    *("dash", "bash", "coreutils", "sed", "grep", "base-passwd", "libc-bin"),
)
# docs, Perl, and the compiler that PostgreSQL loads for long queries: three quarters of it all
_NOT_NEEDED = (
    *(
        "usr/share/doc",
        "usr/share/man",
        "usr/share/locale",
        "usr/share/i18n",
        "usr/share/perl*",
        "var/cache/apt",
    ),
    *("usr/bin/perl*", "usr/lib/*/perl*", "usr/lib/*/libperl*", "usr/lib/*/libLLVM*", "usr/lib/*/libz3*"),
    *("usr/lib/postgresql/15/lib/bitcode", "usr/lib/systemd", "var/lib/apt/lists", "etc/resolv.conf"),
)
_PREPARE = f"""
cd "$1" && rm -rf {" ".join(_NOT_NEEDED)}
ln -sf dash bin/sh
cp usr/share/base-passwd/passwd.master etc/passwd && cp usr/share/base-passwd/group.master etc/group
echo postgres:x:70:70::/var/lib/postgresql:/bin/sh >>etc/passwd && echo postgres:x:70: >>etc/group
rm -rf var/run && ln -s /run var/run
mkdir -p var/lib/postgresql/data tmp
chown -R 70:70 var/lib/postgresql && chmod 700 var/lib/postgresql/data && chmod 1777 tmp
chroot . ldconfig
"""


def find_compose_1() -> str | None:
    """Debian 12's docker-compose, which is of Python; Debian 13 has compose 2 by that name."""
    path = shutil.which("docker-compose")
    if path is None:
        return None
    with open(path, "rb") as file:
        return path if file.read(2) == b"#!" else None


def find_compose_2(cache: Path) -> str | None:
    """The host's plugin, or the one of Debian 13, out of its package."""
    for directory in ("/usr/libexec/docker/cli-plugins", "/usr/lib/docker/cli-plugins"):
        if os.access(path := f"{directory}/docker-compose", os.X_OK):
            return path
    made = _once(cache / "compose-2", lambda path: _fetch("docker-compose", path))
    return None if made is None else f"{made}/usr/libexec/docker/cli-plugins/docker-compose"


def find_buildx(cache: Path) -> str | None:
    """Debian 13's, for `docker build` as it is where Docker's own packages are installed."""
    made = _once(cache / "buildx", lambda path: _fetch("docker-buildx", path))
    return None if made is None else f"{made}/usr/libexec/docker/cli-plugins/docker-buildx"


def find_docker_client(cache: Path) -> str | None:
    """The host's `docker`, or the one of Debian 13, out of its package: Debian 12 has it in one with the
    daemon only, which would be there to start with the next boot."""
    if (path := shutil.which("docker")) is not None:
        return path
    made = _once(cache / "docker-client", lambda path: _fetch("docker-cli", path))
    return None if made is None else f"{made}/usr/bin/docker"


def stack_tar(cache: Path) -> Path | None:
    """A root with nginx, PostgreSQL (user `postgres`, data in /var/lib/postgresql/data) and redis."""
    recipe = hashlib.sha256(repr((_PACKAGES, _PREPARE)).encode()).hexdigest()[:8]
    return _once(cache / f"stack-{_SUITE}-{recipe}.tar", _make_stack)


def _once(path: Path, make: Callable[[Path], None]) -> Path | None:
    """`make` writes to a path of its own first; whoever comes meanwhile waits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{path}.lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            partial = Path(f"{path}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            try:
                make(partial)
            except (subprocess.CalledProcessError, FileNotFoundError):
                return None
            partial.rename(path)
    return path


def _sources(suite: str) -> str:
    """The host's own archive, of this suite."""
    host_suite = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    found = translate(read_host_sources(), host_suite, suite)
    return format_deb822(source for source in found if source.suites == (suite,))


def _make_stack(path: Path) -> None:
    argv = [
        *("unshare", "--mount"),  # from 1.5 on it makes all mounts private
        *("mmdebstrap", "--quiet", "--mode=root", "--variant=extract", "--format=tar"),
        *(f"--include={','.join(_PACKAGES)}", f"--extract-hook={_PREPARE}"),
        *(_SUITE, str(path), "-"),
    ]
    subprocess.run(argv, input=_sources(_SUITE), text=True, check=True)


def _fetch(package: str, path: Path) -> None:
    """Debian 13's, unpacked, not installed."""
    scratch = path / "apt"
    for name in ("lists/partial", "archives/partial"):
        (scratch / name).mkdir(parents=True)
    (scratch / "status").touch()
    (scratch / "archive.sources").write_text(_sources("trixie"))
    options = {
        "Dir::Etc::sourcelist": f"{scratch}/archive.sources",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": f"{scratch}/lists",
        "Dir::State::status": f"{scratch}/status",
        "Dir::Cache": str(scratch),
        "APT::Sandbox::User": "root",
    }
    apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in options.items())]
    subprocess.run([*apt, "update"], check=True)
    subprocess.run([*apt, "download", package], cwd=path, check=True)
    [archive] = path.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", str(archive), str(path)], check=True)
    archive.unlink()
    shutil.rmtree(scratch)
