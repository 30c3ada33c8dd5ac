"""The options of log drivers: what they ask for, in moby's words.  Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote_plus

from insula.errors import InvalidRequest, UnsupportedField
from insula.model.ids import short_id
from insula.model.instance import Instance, LogConfig
from insula.model.sizes import parse_size

DRIVERS = ("", "json-file", "local", "journald", "none")
_OF_ALL = {"mode", "max-buffer-size"}
_SHOWN = {"labels", "labels-regex", "env", "env-regex", "tag"}
_KNOWN = {
    "json-file": {"max-size", "max-file", "compress"} | _SHOWN | _OF_ALL,
    "local": {"max-size", "max-file", "compress"} | _OF_ALL,
    "journald": _SHOWN | _OF_ALL,
}
_TRUE = ("1", "t", "T", "TRUE", "true", "True")
_FALSE = ("0", "f", "F", "FALSE", "false", "False")
_LOCAL_BYTES, _LOCAL_FILES = 20_000_000, 5  # moby's, of the driver `local`


def check_log(config: LogConfig) -> None:
    """Raises InvalidRequest, UnsupportedField."""
    if config.driver not in DRIVERS:
        raise UnsupportedField(
            "HostConfig.LogConfig.Type",
            f"log driver {config.driver!r} is not supported",
            hint="use json-file, local, journald or none",
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
    _check_mode(options)
    if (compress := options.get("compress", "")) not in ("", *_TRUE, *_FALSE):
        raise InvalidRequest(f"invalid value for compress: {compress!r}")
    if driver == "json-file" and compress in _TRUE and ("max-size" not in options or _files(options) < 2):
        raise InvalidRequest("compress cannot be true when max-file is less than 2 or max-size is not set")
    for name in ("labels-regex", "env-regex"):
        try:
            re.compile(options.get(name, ""))
        except re.error as error:
            raise InvalidRequest(f"invalid {name}: {error}") from None
    if "{{" in (tag := options.get("tag", "")):
        _render_tag(tag, dict.fromkeys(_TAG_FIELDS, "") | {name: {} for name in _TAG_MAPS})


def _check_mode(options: Mapping[str, str]) -> None:
    """Nothing is thrown away in either mode: a workload writes to a file and waits for no reader."""
    if (mode := options.get("mode", "")) not in ("", "blocking", "non-blocking"):
        raise InvalidRequest(f"logger: logging mode not supported: {mode}")
    if (size := options.get("max-buffer-size")) is not None:
        if mode != "non-blocking":
            raise InvalidRequest("logger: max-buffer-size option is only supported with 'mode=non-blocking'")
        if parse_size(size) is None:
            raise InvalidRequest(f"error parsing option max-buffer-size: invalid size: '{size}'")


def log_limit(config: LogConfig) -> int:
    """How many bytes of log are kept, 0 for all: `max-size` × `max-file`.  Raises InvalidRequest."""
    if config.driver == "none":
        return 0
    local = config.driver in ("local", "journald")  # the journal keeps the rest
    size = _LOCAL_BYTES if local else 0
    if "max-size" in config.options:
        text = config.options["max-size"]
        given = parse_size(text, unit=1000)
        if given is None:
            raise InvalidRequest(f"invalid max-size: invalid size: '{text}'")
        if given <= 0:
            raise InvalidRequest("max-size must be a positive number")
        size = given
    return size * _files(config.options, _LOCAL_FILES if local else 1)


def _files(options: Mapping[str, str], default: int = 1) -> int:
    text = options.get("max-file", str(default))
    if not re.fullmatch(r"\d{1,6}", text):
        raise InvalidRequest(f"invalid max-file: {text!r} is not a number")
    if int(text) < 1:
        raise InvalidRequest("max-file cannot be less than 1")
    return int(text)


_TAG_FIELDS = (
    *("ID", "FullID", "Name", "ImageID", "ImageFullID", "ImageName", "DaemonName", "Command"),
    *("ContainerID", "ContainerName", "ContainerEntrypoint", "ContainerImageID", "ContainerImageName"),
)
_TAG_MAPS = ("ContainerLabels", "Config")


def _render_tag(tag: str, values: Mapping[str, object]) -> str:
    """Raises InvalidRequest, which names the option."""
    from insula.model.go_template import render  # hardly anybody needs it

    try:
        return render(tag, values)
    except InvalidRequest as error:
        raise InvalidRequest(
            f"log opt tag: {error.message}", hint=f"fields are {', '.join((*_TAG_FIELDS, *_TAG_MAPS))}"
        ) from None


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
        found["tag"] = _render_tag(tag, _tag_values(record)) if "{{" in tag else tag
    return found


def _tag_values(record: Instance) -> dict[str, object]:
    """moby's logger.Info, as far as one would write it on every line."""
    words = record.config.args
    return {
        "ID": short_id(record.id),
        "FullID": record.id,
        "Name": record.name,
        "ImageID": short_id(record.image_id),
        "ImageFullID": record.image_id,
        "ImageName": record.spec.image,
        "DaemonName": "insula",
        "Command": " ".join(words),
        "ContainerID": record.id,
        "ContainerName": f"/{record.name}",
        "ContainerEntrypoint": words[0] if words else "",
        "ContainerImageID": record.image_id,
        "ContainerImageName": record.spec.image,
        "ContainerLabels": record.config.labels,
        "Config": record.spec.log.options,
    }


def render_attributes(attributes: Mapping[str, str]) -> str:
    """`key=value,key=value`, sorted, quoted as moby does."""
    return ",".join(f"{quote_plus(name)}={quote_plus(attributes[name])}" for name in sorted(attributes))
