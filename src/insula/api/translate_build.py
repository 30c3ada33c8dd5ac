"""`POST /build`'s parameters to BuildOptions.  Pure.

Every parameter of the swagger is honoured, or refused by its name when it asks for what only BuildKit has.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from typing import Any

from insula.api.auth import credentials_of
from insula.api.call import Call
from insula.api.translate_limits import parse_limits
from insula.api.translate_network import check_extra_hosts
from insula.api.wire.codec import convert
from insula.api.wire.host_config import Resources
from insula.api.wire.registry import AuthConfig
from insula.build.options import AllAtOnce, BuildOptions
from insula.errors import InvalidReference, InvalidRequest, UnsupportedField
from insula.model.credentials import Credentials
from insula.model.isolation import parse_isolation
from insula.model.reference import parse_reference

SECRETS_HEADER = "X-Insula-Secrets"
_MOST_AUTH = 1 << 20
_HUB = ("index.docker.io", "registry-1.docker.io", "")


def parse_build(call: Call) -> BuildOptions:
    """Raises InvalidRequest, UnsupportedField."""
    if call.text("version") not in ("", "1"):
        raise UnsupportedField(
            "version",
            "BuildKit's way is over /grpc, not over /build",
            hint="docker buildx build, or version=1",
        )
    if call.text("outputs") not in ("", "null", "[]"):
        raise UnsupportedField(
            "outputs", "is BuildKit's; a build makes an image", hint="docker buildx build --output"
        )
    networks = call.text("networkmode")
    if networks.startswith("container:") and not networks.removeprefix("container:"):
        raise InvalidRequest("networkmode: container: needs a container's name")
    build_args = _object(call, "buildargs")
    if not all(value is None or isinstance(value, str) for value in build_args.values()):
        raise InvalidRequest("error reading build args: buildargs holds something that is not a string")
    return BuildOptions(
        isolation=parse_isolation(call.text("isolation"), call.engine.settings.default_isolation),
        tags=check_tags(call.texts("t")),
        target=call.text("target"),
        platform=call.text("platform"),
        build_args=build_args,
        labels=_strings(call, "labels"),
        cache_from=_list(call, "cachefrom"),
        no_cache=call.flag("nocache"),
        pull=call.flag("pull"),
        squash=call.flag("squash"),
        remove=call.flag("rm", True),
        force_remove=call.flag("forcerm"),
        network_mode=networks,
        extra_hosts=check_extra_hosts(_several(call, "extrahosts")),
        limits=_limits(call),
        cgroup_parent=call.text("cgroupparent"),
        security_opt=tuple(
            o.replace(":", "=", 1) if "=" not in o else o for o in _several(call, "securityopt")
        ),
        client=AllAtOnce(
            secrets=parse_secrets(call.http.headers.get(SECRETS_HEADER, "")),
            registries=parse_registry_config(call.http.headers.get("X-Registry-Config", "")),
        ),
    )


def check_tags(texts: Iterable[str]) -> tuple[str, ...]:
    """Names for an image, each once.  Raises InvalidReference."""
    tags: dict[str, None] = {}
    for text in texts:
        if not text:
            continue
        reference = parse_reference(text)
        if reference.digest:
            raise InvalidReference("refusing to create a tag with a digest reference")
        tags[str(reference.tagged())] = None
    return tuple(tags)


def _limits(call: Call) -> Any:
    numbers = {
        "Memory": "memory",
        "MemorySwap": "memswap",
        "CpuShares": "cpushares",
        "CpuQuota": "cpuquota",
        "CpuPeriod": "cpuperiod",
    }
    document: dict[str, Any] = {field: _number(call, name) for field, name in numbers.items()}
    document |= {"CpusetCpus": call.text("cpusetcpus"), "CpusetMems": call.text("cpusetmems")}
    if ulimits := call.text("ulimits"):
        document["Ulimits"] = _json("ulimits", ulimits)
    return parse_limits(convert(document, Resources), shm_size=_number(call, "shmsize"))


def _number(call: Call, name: str) -> int:
    text = call.text(name)
    try:
        return int(text[:20]) if text else 0
    except ValueError:
        raise InvalidRequest(f'invalid value for {name}: "{text[:64]}" is not a number') from None


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{name}: invalid JSON: {error}") from None


def _object(call: Call, name: str) -> dict[str, Any]:
    document = _json(name, call.text(name) or "null") or {}
    if not isinstance(document, dict):
        raise InvalidRequest(f"{name}: expected a JSON object")
    return document


def _strings(call: Call, name: str) -> dict[str, str]:
    document = _object(call, name)
    if not all(isinstance(value, str) for value in document.values()):
        raise InvalidRequest(f"{name}: holds something that is not a string")
    return document


def _list(call: Call, name: str) -> tuple[str, ...]:
    document = _json(name, call.text(name) or "null") or []
    if not isinstance(document, list) or not all(isinstance(item, str) for item in document):
        raise InvalidRequest(f"{name}: expected a JSON list of strings")
    return tuple(document)


def _several(call: Call, name: str) -> tuple[str, ...]:
    """Repeated, as docker's clients send it, or (the swagger) one JSON list."""
    found = call.texts(name)
    if len(found) == 1 and found[0].startswith("["):
        return _list(call, name)
    return tuple(text for text in found if text)


def parse_registry_config(untrusted_text: str) -> Mapping[str, Credentials]:
    """`X-Registry-Config`: credentials by registry, for FROM; none when it cannot be read, as in moby."""
    if not untrusted_text:
        return {}
    try:
        if len(untrusted_text) > _MOST_AUTH:
            raise ValueError("too long")
        padded = untrusted_text.rstrip("=") + "=" * (-len(untrusted_text.rstrip("=")) % 4)
        document = (
            json.loads(base64.b64decode(padded.replace("+", "-").replace("/", "_"), altchars=b"-_")) or {}
        )
        found: dict[str, Credentials] = {}
        for server, given in document.items():
            fields = {k: v for k, v in (given or {}).items() if k in AuthConfig.__struct_fields__ and v}
            if (credentials := credentials_of(AuthConfig(**fields))) is not None:
                domain = server.removeprefix("https://").removeprefix("http://").split("/")[0]
                found["docker.io" if domain in _HUB else domain] = credentials
    except (ValueError, TypeError, AttributeError, binascii.Error, RecursionError):
        return {}
    return found


def parse_secrets(header: str) -> Mapping[str, bytes]:
    """`X-Insula-Secrets: id=base64 id=base64 …`.  Raises InvalidRequest."""
    found: dict[str, bytes] = {}
    for text in header.split():
        name, equals, value = text.partition("=")
        try:
            if not name or not equals:
                raise ValueError("expected id=base64")
            found[name] = base64.b64decode(value, validate=True)
        except (ValueError, binascii.Error) as error:
            raise InvalidRequest(f"invalid {SECRETS_HEADER} header: {error}") from None
    return found
