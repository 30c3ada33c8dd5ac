"""An image of the host's distribution, from its packages: `insula bootstrap debian:12`.  Async.

mmdebstrap makes the root file system; the archives, keys and proxy are those that the host's apt uses.
`debian:12-slim` leaves out documentation and translations.  The time of the archive's Release files is
the time of every file, so the same archive state gives the same layer.

mmdebstrap runs in mount and pid namespaces of its own: when it is killed, nothing of it stays mounted.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import email.utils
import logging
import os
import platform as host
import re
import secrets
import shlex
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from insula.errors import InvalidRequest, ProgramFailed, Unavailable
from insula.images.apt_sources import (
    AptSource,
    find_suite,
    format_deb822,
    read_host_sources,
    read_releases,
    translate,
)
from insula.images.content import ContentStore
from insula.images.imports import StoredLayer, make_imported, store_layer
from insula.images.registry.manifests import host_platform
from insula.model.image import ImageConfig
from insula.model.progress import Progress, no_progress
from insula.system.files import remove_tree
from insula.system.run import arun, find_program, fixed_environment, need_program

log = logging.getLogger(__name__)

_ENV = ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",)
_SLIM = (
    *("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*"),
    *("/usr/share/groff/*", "/usr/share/lintian/*", "/usr/share/linda/*"),
)
_TAIL = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What is made.  `name` is as asked for, `epoch_s` the time of the newest Release file."""

    name: str
    suite: str
    slim: bool
    sources: tuple[AptSource, ...]
    epoch_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrapped:
    config: bytes
    layer: StoredLayer


async def bootstrap(
    content: ContentStore, tmp: str, name: str, progress: Progress = no_progress
) -> Bootstrapped:
    """Make the layer (in the content store) and the configuration of an image.

    `name` is `debian:12`, `debian:bookworm-slim`, …; `tmp` a directory for scratch.  Raises InvalidRequest
    for what the host cannot make, Unavailable, ProgramMissing, ProgramFailed, DiskFull.
    """
    mmdebstrap = need_program("mmdebstrap")
    scratch = f"{tmp}/{secrets.token_hex(12)}"
    os.mkdir(scratch, 0o755)  # apt downloads as a user of its own
    try:
        recipe = await _plan(name, scratch, progress)
        progress(f"Making {name} from the packages of {recipe.suite}")
        with open(f"{scratch}/archive.sources", "w", encoding="utf-8") as file:
            file.write(format_deb822(recipe.sources))
        argv = _finalize_argv(mmdebstrap, recipe, f"{scratch}/archive.sources")
        env = {**await _proxies(), "SOURCE_DATE_EPOCH": str(recipe.epoch_s), "TMPDIR": scratch}
        output = _run(argv, env, progress)
        async with contextlib.aclosing(output):
            layer = await store_layer(content, output, progress, status="Packing")
    finally:
        await asyncio.shield(asyncio.to_thread(remove_tree, scratch))
    created = datetime.datetime.fromtimestamp(recipe.epoch_s, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    config = make_imported(
        layer,
        platform=host_platform(),
        changes=(),
        message="",
        created=created,
        config=ImageConfig(env=_ENV, command=("bash",)),
        created_by=f"insula bootstrap {name}",
    )
    return Bootstrapped(config=config, layer=layer)


def _host_release() -> dict[str, str]:
    try:
        return host.freedesktop_os_release()
    except OSError:
        raise Unavailable("this host does not say what distribution it is: no os-release file") from None


async def _plan(name: str, scratch: str, progress: Progress) -> Recipe:
    release = _host_release()
    distribution, _, tag = name.partition(":")
    if distribution != release["ID"]:
        raise InvalidRequest(
            f"{name}: this host's packages are {release['ID']}'s", hint=f"for example {release['ID']}:stable"
        )
    base = (tag or "latest").removesuffix("-slim")
    suite = find_suite(base, read_releases(distribution))
    host_suite = release.get("VERSION_CODENAME", "")
    candidates = translate(read_host_sources(), host_suite, suite)
    progress(f"Looking for {suite} in the host's package archives")
    checked = await asyncio.gather(
        *(_check(one, distribution, scratch, at) for at, one in enumerate(candidates))
    )
    sources = [(one, date) for one, date in zip(candidates, checked, strict=True) if date is not None]
    if not any(one.suites == (suite,) for one, _ in sources):
        raise Unavailable(
            f"{name}: none of this host's package archives has {suite}",
            hint="look at /etc/apt/sources.list.d, and whether `apt-get update` works",
        )
    return Recipe(
        name=name,
        suite=suite,
        slim=tag.endswith("-slim"),
        sources=tuple(one for one, _ in sources),
        epoch_s=max(date for _, date in sources),
    )


async def _check(source: AptSource, distribution: str, scratch: str, number: int) -> int | None:
    """The date of the archive's Release file; None if it is not there or another distribution's.

    What it says is used for that only: mmdebstrap's apt checks the signature.
    """
    helper = find_program("apt-helper", "/usr/lib/apt/apt-helper") or need_program("apt-get")
    target = f"{scratch}/InRelease.{number}"
    uri = f"{source.uris[0].rstrip('/')}/dists/{source.suites[0]}/InRelease"
    done = await arun([helper, "download-file", uri, target], timeout_s=120, check=False)
    if done.returncode != 0:
        log.info("%s is not there: %s", uri, done.stderr.decode(errors="replace").strip()[-300:])
        return None
    with open(target, encoding="utf-8", errors="replace") as file:
        untrusted = file.read(1 << 16)
    fields = dict(re.findall(r"^(Origin|Date): *(.{1,100})$", untrusted, re.MULTILINE))
    if fields.get("Origin", "").strip().lower() != distribution:
        log.info("%s is not %s's own archive", uri, distribution)
        return None
    try:
        return int(email.utils.parsedate_to_datetime(fields["Date"]).timestamp())
    except (KeyError, ValueError):
        log.info("%s has no date", uri)
        return None


async def _proxies() -> dict[str, str]:
    """apt's proxies, by environment: as apt options they would stay in the image."""
    found = {}
    for scheme in ("http", "https"):
        done = await arun(["apt-config", "dump", "--format", "%v", f"Acquire::{scheme}::Proxy"], check=False)
        value = done.stdout.decode(errors="replace").strip()
        if value and value != "DIRECT":
            found[f"{scheme}_proxy"] = value
    return found


def _finalize_argv(mmdebstrap: str, recipe: Recipe, sources: str) -> list[str]:
    slim = [f"--dpkgopt=path-exclude={pattern}" for pattern in _SLIM]
    slim += ["--dpkgopt=path-include=/usr/share/doc/*/copyright"]
    return [
        *(need_program("setpriv"), "--pdeathsig", "KILL"),  # a killed daemon takes all of it along
        need_program("unshare"),
        *("--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"),
        mmdebstrap,
        *("--mode=root", "--variant=minbase", "--format=tar"),
        *(slim if recipe.slim else ()),
        # the host's, copied in for the time of the installation; every instance gets its own
        '--customize-hook=rm -f "$1/etc/resolv.conf" "$1/etc/hostname"',
        recipe.suite,
        "-",
        sources,
    ]


async def _run(argv: Sequence[str], env: dict[str, str], progress: Progress) -> AsyncGenerator[bytes, None]:
    """The program's standard output; its `I:` lines become progress.  Raises ProgramFailed at its end."""
    log.debug("run: %s", shlex.join(argv))
    child = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=fixed_environment(env),
        limit=1 << 20,
    )
    assert child.stdout is not None
    assert child.stderr is not None
    telling = asyncio.create_task(_tell(child.stderr, progress))
    try:
        while piece := await child.stdout.read(1 << 18):
            yield piece
        errors = await telling
        if await child.wait() != 0:
            raise ProgramFailed(shlex.join(argv), child.returncode or 1, errors)
    finally:
        telling.cancel()
        if child.returncode is None:
            child.kill()
        await asyncio.shield(child.wait())


async def _tell(stderr: asyncio.StreamReader, progress: Progress) -> str:
    """Returns the last of what was said."""
    said = ""
    while line := await stderr.readline():
        text = line.decode(errors="replace").rstrip()
        said = (said + "\n" + text)[-_TAIL:]
        if text.startswith("I: "):
            progress(text[3:])
    return said
