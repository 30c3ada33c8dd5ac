"""Where a host gets its distribution's packages from, as apt's files say, and the same for another release.

Pure but for `read_host_sources`.  Both of apt's formats: one line each (`*.list`) and deb822 (`*.sources`).
No archive's address is known here: whatever mirror the host uses, images are made from.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from insula.errors import InvalidRequest

# Without distro-info-data on the host
_DEBIAN = {"11": "bullseye", "12": "bookworm", "13": "trixie", "14": "forky"}
_ALIASES = ("stable", "oldstable", "oldoldstable", "testing", "unstable", "sid", "latest")
_POCKETS = ("", "-updates", "-security")
_SUITE = re.compile(r"[a-z][a-z0-9]*")
_ONE_LINE = re.compile(r"deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s*(.*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class AptSource:
    """One `deb` entry.  `options` are further deb822 fields (Signed-By, Trusted, …) as the host has them."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    options: Mapping[str, str] = field(default_factory=dict)


def parse_one_line(text: str) -> list[AptSource]:
    sources = []
    for line in text.splitlines():
        match = _ONE_LINE.fullmatch(line.partition("#")[0].strip())
        if match is None:
            continue
        options = dict(word.partition("=")[::2] for word in (match[1] or "").split())
        sources.append(
            AptSource(
                uris=(match[2],),
                suites=(match[3],),
                components=tuple(match[4].split()),
                options={_field_name(name): value.replace(",", " ") for name, value in options.items()},
            )
        )
    return sources


def _field_name(option: str) -> str:
    return {"arch": "Architectures", "lang": "Languages"}.get(option, option.title())


def parse_deb822(text: str) -> list[AptSource]:
    sources = []
    for stanza in re.split(r"\n[ \t]*\n", text):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line.startswith("#"):
                continue
            if line[:1] in (" ", "\t") and name:
                fields[name] += "\n" + line  # a key written out is several lines
            elif ":" in line:
                name, _, value = line.partition(":")
                name = name.strip().title()
                fields[name] = value.strip()
        if fields.get("Enabled", "yes").lower() in ("no", "false", "0", "off"):
            continue
        if "deb" not in fields.pop("Types", "").split():
            continue
        main = {key: tuple(fields.pop(key, "").split()) for key in ("Uris", "Suites", "Components")}
        fields.pop("Enabled", None)
        sources.append(
            AptSource(uris=main["Uris"], suites=main["Suites"], components=main["Components"], options=fields)
        )
    return sources


def read_host_sources(etc_apt: str = "/etc/apt") -> list[AptSource]:
    """All enabled `deb` entries of this host."""
    found: list[AptSource] = []
    for path in sorted([f"{etc_apt}/sources.list", *glob.glob(f"{etc_apt}/sources.list.d/*")]):
        parse = {"list": parse_one_line, "sources": parse_deb822}.get(path.rpartition(".")[2])
        if parse is None:
            continue
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                found += parse(file.read())
        except FileNotFoundError:
            continue
    return found


def find_suite(tag: str, releases: Mapping[str, str]) -> str:
    """The archive's name for `12`, `bookworm` or `stable`.  `releases`: version to codename.  Raises
    InvalidRequest for what is neither."""
    if tag in releases:
        return releases[tag]
    if tag == "latest":
        return "stable"
    if tag in releases.values() or tag in _ALIASES:
        return tag
    newest = sorted(releases.items(), key=lambda release: _numbers(release[0]))[-6:]
    known = ", ".join(f"{version} ({name})" for version, name in newest)
    raise InvalidRequest(f"{tag!r} is not a release that this host knows of", hint=f"known: {known}")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def parse_releases(distro_info_csv: str) -> dict[str, str]:
    """distro-info's table (version,codename,series,…): version to series."""
    releases = {}
    for line in distro_info_csv.splitlines()[1:]:
        columns = line.split(",")
        if len(columns) > 2 and columns[0] and _SUITE.fullmatch(columns[2]):
            releases[columns[0].removesuffix(" LTS")] = columns[2]
    return releases


def read_releases(distribution: str) -> dict[str, str]:
    try:
        with open(f"/usr/share/distro-info/{distribution}.csv", encoding="utf-8") as file:
            return parse_releases(file.read())
    except FileNotFoundError:
        return dict(_DEBIAN) if distribution == "debian" else {}


def translate(sources: Iterable[AptSource], host_suite: str, suite: str) -> list[AptSource]:
    """The host's own archives (main component; release, updates and security), for another release.

    One URI and one suite in each, so that each can be checked.
    """
    bases = (host_suite, *_ALIASES)
    found: dict[tuple[str, str], AptSource] = {}
    for source in sources:
        if "main" not in source.components:
            continue
        options = {
            k: v for k, v in source.options.items() if k in ("Signed-By", "Trusted", "Check-Valid-Until")
        }
        for named in source.suites:
            base, dash, rest = named.partition("-")
            pocket = dash + rest
            if base not in bases or pocket not in _POCKETS:
                continue
            if pocket and suite in ("sid", "unstable"):
                continue
            for uri in source.uris:
                if uri.startswith("cdrom:"):
                    continue
                one = AptSource(uris=(uri,), suites=(suite + pocket,), components=("main",), options=options)
                found.setdefault((uri, suite + pocket), one)
    return list(found.values())


def format_deb822(sources: Iterable[AptSource]) -> str:
    stanzas = []
    for source in sources:
        lines = [
            "Types: deb",
            f"URIs: {' '.join(source.uris)}",
            f"Suites: {' '.join(source.suites)}",
            f"Components: {' '.join(source.components)}",
            *(
                f"{name}:{value if value.startswith(chr(10)) else ' ' + value}"
                for name, value in source.options.items()
            ),
        ]
        stanzas.append("\n".join(lines) + "\n")
    return "\n".join(stanzas)
