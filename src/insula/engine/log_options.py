"""The options of log drivers: what they ask for, in moby's words.  Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote_plus

from insula.errors import InvalidRequest, UnsupportedField
from insula.model.ids import short_id
from insula.model.instance import Instance, LogConfig

DRIVERS = ("", "json-file", "local", "none")
_KNOWN = {
    "json-file": {
        *("max-size", "max-file", "compress", "labels", "labels-regex", "env", "env-regex", "tag"),
        *("mode", "max-buffer-size"),
    },
    "local": {"max-size", "max-file", "compress", "mode", "max-buffer-size"},
}
_TRUE = ("1", "t", "T", "TRUE", "true", "True")
_FALSE = ("0", "f", "F", "FALSE", "false", "False")
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgtp]?)i?b?", re.IGNORECASE)
_FIELD = re.compile(r"\{\{\s*\.(\w+)\s*\}\}")
_LOCAL_BYTES, _LOCAL_FILES = 20_000_000, 5  # moby's, of the driver `local`


def check_log(config: LogConfig) -> None:
    """Raises InvalidRequest, UnsupportedField."""
    if config.driver not in DRIVERS:
        raise UnsupportedField(
            "HostConfig.LogConfig.Type",
            f"log driver {config.driver!r} is not supported",
            hint="use json-file, local or none",
        )
    driver = config.driver or "json-file"
    if driver == "none":
        return
    options = config.options
    for name in options:
        if name not in _KNOWN[driver]:
            raise InvalidRequest(
                f"unknown log opt '{name}' for {driver} log driver",
                hint=f"{', '.join(sorted(_KNOWN[driver]))}",
            )
    log_limit(config)
    if options.get("mode", "blocking") not in ("", "blocking"):
        raise UnsupportedField(
            "HostConfig.LogConfig.Config.mode", "no output is thrown away here: the mode is always blocking"
        )
    if (compress := options.get("compress", "")) not in ("", *_TRUE, *_FALSE):
        raise InvalidRequest(f"invalid value for compress: {compress!r}")
    if driver == "json-file" and compress in _TRUE and ("max-size" not in options or _files(options) < 2):
        raise InvalidRequest("compress cannot be true when max-file is less than 2 or max-size is not set")
    for name in ("labels-regex", "env-regex"):
        try:
            re.compile(options.get(name, ""))
        except re.error as error:
            raise InvalidRequest(f"invalid {name}: {error}") from None
    tag = options.get("tag", "")
    if "{{" in _FIELD.sub("", tag) or not set(_FIELD.findall(tag)) <= set(_TAG_FIELDS):
        raise UnsupportedField(
            "HostConfig.LogConfig.Config.tag",
            f"{tag!r} has more than plain fields in it",
            hint=f"fields are {', '.join('{{.' + name + '}}' for name in _TAG_FIELDS)}",
        )


def log_limit(config: LogConfig) -> int:
    """How many bytes of log are kept, 0 for all: `max-size` × `max-file`.  Raises InvalidRequest."""
    if config.driver == "none":
        return 0
    local = config.driver == "local"
    size = _LOCAL_BYTES if local else 0
    if "max-size" in config.options:
        text = config.options["max-size"]
        found = _SIZE.fullmatch(text)
        if found is None:
            raise InvalidRequest(f"invalid max-size: invalid size: '{text}'")
        size = int(float(found[1]) * 1000 ** " kmgtp".index((found[2] or " ").lower()))
        if size <= 0:
            raise InvalidRequest("max-size must be a positive number")
    return size * _files(config.options, _LOCAL_FILES if local else 1)


def _files(options: Mapping[str, str], default: int = 1) -> int:
    text = options.get("max-file", str(default))
    if not re.fullmatch(r"\d{1,6}", text):
        raise InvalidRequest(f"invalid max-file: {text!r} is not a number")
    if int(text) < 1:
        raise InvalidRequest("max-file cannot be less than 1")
    return int(text)


_TAG_FIELDS = ("ID", "FullID", "Name", "ImageID", "ImageFullID", "ImageName", "DaemonName")


def log_attributes(record: Instance) -> dict[str, str]:
    """What `docker logs --details` shows beside every line (moby: logger.Info.ExtraAttributes)."""
    options, found = record.spec.log.options, dict[str, str]()
    env = dict(entry.partition("=")[::2] for entry in record.config.env)
    for kind, values in (("labels", record.config.labels), ("env", env)):
        names = [name for name in options.get(kind, "").split(",") if name in values]
        if pattern := options.get(f"{kind}-regex"):
            names += [name for name in values if re.search(pattern, name)]
        found |= {name: values[name] for name in names}
    if tag := options.get("tag"):
        image = record.image_id.removeprefix("sha256:")
        fields = {
            "ID": short_id(record.id),
            "FullID": record.id,
            "Name": record.name,
            "ImageID": image[:12],
            "ImageFullID": record.image_id,
            "ImageName": record.spec.image,
            "DaemonName": "insula",
        }
        found["tag"] = _FIELD.sub(lambda match: fields[match[1]], tag)
    return found


def render_attributes(attributes: Mapping[str, str]) -> str:
    """`key=value,key=value`, sorted, quoted as moby does."""
    return ",".join(f"{quote_plus(name)}={quote_plus(attributes[name])}" for name in sorted(attributes))
