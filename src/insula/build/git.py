"""Repositories of git: `ADD https://….git#ref:dir`, and contexts that the daemon is to clone.  Async.

What is at the address is hostile, and so is what it makes the git program do.  It runs as a user that owns
nothing, in a root with the host's programs (read only) and its own directory, in a pid namespace that ends
with it; of protocols only git, http and https are allowed, also to submodules and after redirections.  What
it has checked out is then read as any hostile tree (`system.tree`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
from dataclasses import dataclass

from insula.errors import DiskFull, InvalidRequest
from insula.system import tree
from insula.system.files import remove_tree
from insula.system.jail import FIRST_UID, Confinement, find_programs, wrap
from insula.system.run import fixed_environment, need_program

log = logging.getLogger(__name__)

_UID = FIRST_UID - 1  # virtual machines have those from there on
_WORK = "/work"
_MOST_SAID = 4000
_SPARE_BYTES = 64 << 20  # left free for the daemon's own records
_LOOK_S = 0.25
_NEEDED = (
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/ssl",
    "/etc/pki",
    "/etc/ca-certificates",
)
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTPS_PROXY", "NO_PROXY")
_ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": f"{_WORK}/home",
    "LC_ALL": "C.UTF-8",
    "GIT_ALLOW_PROTOCOL": "git:http:https",
    "GIT_ASKPASS": "/bin/false",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_HTTP_LOW_SPEED_LIMIT": "1",  # bytes per second, over so many seconds: less is a server that is gone
    "GIT_HTTP_LOW_SPEED_TIME": "60",
    "GIT_TERMINAL_PROMPT": "0",
    **{f"GIT_{who}_{what}": "insula" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
}

# $1 address, $2 what to check out, $3 "keep" if .git is to stay.  Not every server gives a part of the
# history (http without git's own program), or what nothing points to.  Times are the commit's: one commit is
# one layer.
_SCRIPT = f"""
umask 022
mkdir {_WORK}/home {_WORK}/tree
cd {_WORK}/tree
git init -q .
git remote add origin "$1"
git fetch -q --depth 1 origin "$2" 2>/dev/null ||
git fetch -q origin "$2" 2>/dev/null || {{
    git fetch -q --tags origin '+refs/heads/*:refs/remotes/origin/*'
    git rev-parse -q --verify "$2^{{commit}}" > .git/FETCH_HEAD || {{
        echo "there is no $2 in it" >&2
        exit 1
    }}
}}
git -c advice.detachedHead=false checkout -q --detach FETCH_HEAD
[ ! -e .gitmodules ] ||
git submodule -q update --init --recursive --depth=1 2>/dev/null ||
git submodule -q update --init --recursive
time=$(git log -1 --format=%ct)
[ "$3" ] || find . -name .git -prune -exec rm -rf {{}} +
find . -exec touch -h -d "@$time" {{}} +
"""


@dataclass(frozen=True, slots=True)
class GitAddress:
    """`url#ref:directory`.  `ref` "": the server's HEAD; `directory` "": all of it."""

    url: str
    ref: str
    directory: str


def parse_git(text: str) -> GitAddress:
    """Raises InvalidRequest for what the daemon has no key for, and for what git would take for an option."""
    if text.startswith("github.com/"):
        text = f"https://{text}"
    url, _, fragment = text.partition("#")
    ref, _, directory = fragment.partition(":")
    if not url.startswith(("git://", "http://", "https://")):
        raise InvalidRequest(
            f"{url}: the daemon fetches by git://, http:// and https:// only",
            hint="it has no key of yours: docker build and insula build clone such an address themselves",
        )
    for word in (url, ref):
        if word.startswith("-") or any(ord(letter) < 33 for letter in word):
            raise InvalidRequest(f"{word!r} is not the address or name of something in git")
    return GitAddress(url, ref, directory.strip("/"))


async def fetch_repository(address: GitAddress, directory: str, place: str, *, keep_git: bool) -> None:
    """What it has, or the address's directory of it, into `directory`, everything root's.  `place` is the
    path of a directory that is there meanwhile.  Raises InvalidRequest, NotFound for a directory that it has
    not, ProgramMissing, DiskFull."""
    try:
        await _clone(address, place, keep_git=keep_git)
        checkout = tree.get(f"{place}/work/tree", f"/{address.directory}/.", name=".")
        await tree.put(directory, "/", checkout, owner=(0, 0))
    finally:
        await asyncio.to_thread(remove_tree, place)


async def _clone(address: GitAddress, place: str, *, keep_git: bool) -> None:
    need_program("git")
    work, root = f"{place}/work", f"{place}/root"
    for directory in (place, work, root):
        os.mkdir(directory, 0o700)
    os.chown(work, _UID, _UID)
    words = [f"{name}={value}" for name, value in {**_ENVIRONMENT, **_proxies()}.items()]
    script = ("sh", "-euc", _SCRIPT, "git", address.url, address.ref or "HEAD", "keep" if keep_git else "")
    argv = [
        # all of it ends with the daemon, and with this call; who becomes another user must say so once more
        *(setpriv := (need_program("setpriv"), "--pdeathsig", "KILL")),
        *(need_program("unshare"), "--pid", "--fork", "--kill-child"),
        *wrap(_confinement(work, root), [*setpriv, "/usr/bin/env", "-i", *words, *script], ()),
    ]
    log.debug("run: git for %s", shlex.quote(address.url))
    status, said = await _run(argv, place)
    if status != 0:
        raise InvalidRequest(f"unable to clone {address.url}: {said.strip() or f'git ended with {status}'}")


def _confinement(work: str, root: str) -> Confinement:
    links, binds = find_programs()
    needed = tuple((path, path, True) for path in _NEEDED if os.path.exists(path))
    return Confinement(
        uid=_UID,
        root_at=root,
        root_binds=(*binds, *needed, (work, _WORK, False)),
        root_links=links,
        root_nodes=(("/dev/null", os.makedev(1, 3), _UID), ("/dev/urandom", os.makedev(1, 9), _UID)),
    )


def _proxies() -> dict[str, str]:
    return {name: value for name in _PROXIES if (value := os.environ.get(name))}


async def _run(argv: list[str], place: str) -> tuple[int, str]:
    """Its status, and the end of what it says.  Raises DiskFull before the disk of `place` is full: a small
    repository can hold more than any disk."""
    child = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env=fixed_environment(),
    )
    assert child.stderr is not None
    ending = asyncio.ensure_future(_end_of(child.stderr))
    try:
        while not ending.done():
            await asyncio.wait({ending}, timeout=_LOOK_S)
            free = os.statvfs(place)
            if free.f_bavail * free.f_frsize < _SPARE_BYTES and not ending.done():
                raise DiskFull(
                    "no space left on the disk for the repository",
                    hint="free some space: insula system prune",
                )
        said = ending.result().decode(errors="replace")
        return await child.wait(), said
    finally:
        ending.cancel()
        if child.returncode is None:
            child.kill()
            await asyncio.shield(child.wait())


async def _end_of(stream: asyncio.StreamReader) -> bytes:
    said = b""
    while piece := await stream.read(_MOST_SAID):
        said = (said + piece)[-_MOST_SAID:]
    return said
