"""Words of the command line as values of the API: sizes, ports, mounts, durations.  Pure."""

from __future__ import annotations

import os
import re
from typing import Any

from insula.errors import InvalidRequest
from insula.model.durations import parse_duration
from insula.model.sizes import parse_size

_CPUS = re.compile(r"\d{1,9}(?:\.\d{0,9})?|\.\d{1,9}", re.ASCII)


def parse_bytes(text: str, flag: str) -> int:
    """`64m`, `1.5g`, `1024` (binary units, as Docker).  Raises InvalidRequest naming the flag."""
    size = parse_size(text.strip())
    if size is None:
        raise InvalidRequest(f"{flag}: {text!r} is not a size", hint="a number, then b, k, m or g: 512m")
    return size


def parse_cpus(text: str) -> int:
    """`--cpus 1.5` in billionths of a CPU.  Raises InvalidRequest."""
    if not _CPUS.fullmatch(text):
        raise InvalidRequest(f"--cpus: {text!r} is not a number of CPUs", hint="for example 1.5")
    return round(float(text) * 1e9)


def parse_duration_ns(text: str, flag: str) -> int:
    """`1m30s` (Go's durations).  Raises InvalidRequest naming the flag."""
    duration_ns = parse_duration(text)
    if duration_ns is None:
        raise InvalidRequest(f"{flag}: {text!r} is not a duration", hint="for example 1m30s")
    return duration_ns


def parse_pairs(words: tuple[str, ...], flag: str) -> dict[str, str]:
    """`key=value` words; a bare key has an empty value (labels).  Raises InvalidRequest."""
    pairs = {}
    for word in words:
        key, _, value = word.partition("=")
        if not key:
            raise InvalidRequest(f"{flag}: {word!r} has no name before the =")
        pairs[key] = value
    return pairs


def parse_filters(words: tuple[str, ...]) -> dict[str, list[str]]:
    """`--filter key=value` words as the API's filters.  Raises InvalidRequest."""
    found: dict[str, list[str]] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise InvalidRequest(f"--filter: {word!r} is not key=value")
        found.setdefault(key, []).append(value)
    return found


def read_lines(files: tuple[str, ...], flag: str) -> list[str]:
    """What files say, line by line, without comments and empty lines.  Raises InvalidRequest."""
    lines: list[str] = []
    for path in files:
        try:
            with open(path, encoding="utf-8") as file:
                lines += [
                    line.strip("\n") for line in file if line.strip() and not line.lstrip().startswith("#")
                ]
        except OSError as error:
            raise InvalidRequest(f"{flag}: {path}: {error.strerror}") from None
    return lines


def read_env(words: tuple[str, ...], files: tuple[str, ...]) -> list[str]:
    """`--env` and `--env-file`: `NAME` alone takes the value from our own environment, if it has one.
    Raises InvalidRequest."""
    lines = read_lines(files, "--env-file")
    env = []
    for line in (*lines, *words):
        name, equals, _ = line.partition("=")
        if not name:
            raise InvalidRequest(f"--env: {line!r} has no name")
        if line in lines and any(char.isspace() for char in name):
            raise InvalidRequest(f"--env-file: the variable {name!r} has blanks in its name")
        if equals:
            env.append(line)
        elif name in os.environ:
            env.append(f"{name}={os.environ[name]}")
    return env


def _port_range(text: str, word: str) -> range:
    first, _, last = text.partition("-")
    try:
        start, end = int(first), int(last or first)
    except ValueError:
        raise InvalidRequest(f"--publish: {word!r}: {text!r} is not a port") from None
    if not 0 < start <= end <= 65535:
        raise InvalidRequest(f"--publish: {word!r}: ports are 1 to 65535")
    return range(start, end + 1)


def parse_publish(words: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`-p [[ip:]host:]port[/protocol]`, ranges too, as (PortBindings, ExposedPorts).  Raises
    InvalidRequest."""
    bindings: dict[str, list[dict[str, str]]] = {}
    for word in words:
        rest, _, protocol = word.partition("/")
        protocol = protocol or "tcp"
        if protocol not in ("tcp", "udp", "sctp"):
            raise InvalidRequest(f"--publish: {word!r}: the protocol is tcp or udp")
        ip = ""
        if rest.startswith("["):
            ip, _, rest = rest[1:].partition("]")
            rest = rest.removeprefix(":")
        elif rest.count(":") == 2:
            ip, _, rest = rest.partition(":")
        host, _, inside = rest.rpartition(":")
        ports = _port_range(inside, word)
        hosts = _port_range(host, word) if host else None
        if hosts is not None and len(hosts) not in (len(ports),) and len(ports) != 1:
            raise InvalidRequest(f"--publish: {word!r}: the two ranges differ in length")
        for index, port in enumerate(ports):
            chosen = ""
            if hosts is not None:
                chosen = host if len(ports) == 1 else str(hosts[index])
            bindings.setdefault(f"{port}/{protocol}", []).append({"HostIp": ip, "HostPort": chosen})
    return bindings, {key: {} for key in bindings}


def parse_expose(words: tuple[str, ...]) -> dict[str, Any]:
    exposed: dict[str, Any] = {}
    for word in words:
        rest, _, protocol = word.partition("/")
        exposed.update({f"{port}/{protocol or 'tcp'}": {} for port in _port_range(rest, word)})
    return exposed


def parse_volumes(words: tuple[str, ...]) -> tuple[list[str], dict[str, Any]]:
    """`-v` words as (Binds, Volumes): a lone path is an anonymous volume.  Raises InvalidRequest."""
    binds: list[str] = []
    volumes: dict[str, Any] = {}
    for word in words:
        source, colon, rest = word.partition(":")
        if not colon:
            if not source.startswith("/"):
                raise InvalidRequest(f"--volume: {word!r}: the path inside must be absolute")
            volumes[source] = {}
        elif source.startswith((".", "~")):
            binds.append(f"{os.path.abspath(os.path.expanduser(source))}:{rest}")
        else:
            binds.append(word)
    return list(dict.fromkeys(binds)), volumes


def parse_ulimit(word: str) -> dict[str, Any]:
    """`nofile=1024[:4096]`.  Raises InvalidRequest."""
    name, _, values = word.partition("=")
    soft, _, hard = values.partition(":")
    try:
        return {"Name": name, "Soft": int(soft), "Hard": int(hard or soft)}
    except ValueError:
        raise InvalidRequest(f"--ulimit: {word!r} is not name=soft[:hard]") from None


def parse_throttle(word: str, flag: str, *, sizes: bool = False, key: str = "Rate") -> dict[str, Any]:
    """`/dev/x:N`; with `sizes` N may be `10mb`.  Raises InvalidRequest naming the flag."""
    path, colon, rate = word.rpartition(":")
    if not colon or not path.startswith("/dev/"):
        raise InvalidRequest(f"{flag}: {word!r} is not DEVICE:NUMBER", hint="for example /dev/sda:100")
    if sizes:
        return {"Path": path, key: parse_bytes(rate, flag)}
    if not rate.isdigit():
        raise InvalidRequest(f"{flag}: {word!r}: {rate!r} is not a number")
    return {"Path": path, key: int(rate)}


def parse_device(word: str) -> dict[str, str]:
    """`/dev/x[:/dev/y][:rwm]`."""
    host, *rest = word.split(":")
    inside, rules = host, "rwm"
    for part in rest:
        if part.startswith("/"):
            inside = part
        else:
            rules = part
    return {"PathOnHost": host, "PathInContainer": inside, "CgroupPermissions": rules}


def parse_restart(word: str) -> dict[str, Any]:
    """`on-failure:3`.  Raises InvalidRequest."""
    name, _, count = word.partition(":")
    if count and not count.isdigit():
        raise InvalidRequest(f"--restart: {word!r}: the count is not a number")
    return {"Name": name, "MaximumRetryCount": int(count or 0)}
