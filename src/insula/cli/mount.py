"""`--mount type=bind,src=…,dst=…` as the API wants it, with every key of Docker's.  Pure, but that a relative
source is taken from the working directory."""

from __future__ import annotations

import csv
import os
from typing import Any

from insula.cli.values import parse_bytes
from insula.errors import InvalidRequest

_KEYS = {
    "type": "Type",
    "source": "Source",
    "src": "Source",
    "target": "Target",
    "dst": "Target",
    "destination": "Target",
    "consistency": "Consistency",
}
_WORDS = {"": True, "1": True, "true": True, "0": False, "false": False}
_OPTIONS = {"bind": "BindOptions", "volume": "VolumeOptions", "tmpfs": "TmpfsOptions"}
# docker/cli opts/mount.go: how `bind-recursive` says what three fields of the API do
_RECURSIVE: dict[str, dict[str, bool]] = {
    "enabled": {},
    "disabled": {"NonRecursive": True},
    "writable": {"ReadOnlyNonRecursive": True},
    "readonly": {"ReadOnlyForceRecursive": True},
}


def parse_mount(word: str) -> dict[str, Any]:
    """Raises InvalidRequest for a key that does not exist, or a value that makes no sense."""
    mount: dict[str, Any] = {"Type": "volume"}
    for part in next(csv.reader([word])):
        key, _, value = part.partition("=")
        key = key.strip().lower()
        if key in _KEYS:
            mount[_KEYS[key]] = value
        elif key in ("readonly", "ro"):
            mount["ReadOnly"] = _flag(key, value)
        else:
            _option(mount, key, value, word)
    if mount["Type"] == "bind" and str(mount.get("Source", "")).startswith((".", "~")):
        mount["Source"] = os.path.abspath(os.path.expanduser(str(mount["Source"])))
    if not mount.get("Target"):
        raise InvalidRequest(f"--mount: {word!r} says no target")
    return mount


def _option(mount: dict[str, Any], key: str, value: str, word: str) -> None:
    """One that only a bind, a volume or a tmpfs has."""
    kind = {"bind": "BindOptions", "volume": "VolumeOptions", "tmpfs": "TmpfsOptions"}.get(
        key.split("-", maxsplit=1)[0]
    )
    options: dict[str, Any] = mount.setdefault(kind, {}) if kind else {}
    match key:
        case "bind-propagation":
            options["Propagation"] = value
        case "bind-nonrecursive":
            options["NonRecursive"] = _flag(key, value)
        case "bind-recursive":
            if value not in _RECURSIVE:
                raise InvalidRequest(f"--mount: {key}: {value!r} is none of {', '.join(_RECURSIVE)}")
            options.update(_RECURSIVE[value])
        case "volume-nocopy":
            options["NoCopy"] = _flag(key, value)
        case "volume-subpath":
            options["Subpath"] = value
        case "volume-label":
            name, _, text = value.partition("=")
            options.setdefault("Labels", {})[name] = text
        case "volume-driver":
            options.setdefault("DriverConfig", {})["Name"] = value
        case "volume-opt":
            name, _, text = value.partition("=")
            options.setdefault("DriverConfig", {}).setdefault("Options", {})[name] = text
        case "tmpfs-size":
            options["SizeBytes"] = parse_bytes(value, "--mount tmpfs-size")
        case "tmpfs-mode":
            try:
                options["Mode"] = int(value, 8)
            except ValueError:
                raise InvalidRequest(f"--mount: tmpfs-mode: {value!r} is not an octal number") from None
        case _:
            raise InvalidRequest(f"--mount: unknown key {key!r} in {word!r}")


def _flag(key: str, value: str) -> bool:
    try:
        return _WORDS[value.lower()]
    except KeyError:
        raise InvalidRequest(f"--mount: {key}: {value!r} is neither true nor false") from None
