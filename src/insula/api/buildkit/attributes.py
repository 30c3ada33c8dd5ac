"""The attributes of BuildKit's `dockerfile.v0` frontend to BuildOptions.  Pure.

Source: BuildKit's frontend/dockerfile and docker/buildx's build/opt.go.  What is not known is told of, and
what asks for what is not here is refused by its name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from insula.api.translate_build import check_tags
from insula.api.translate_limits import parse_limits
from insula.api.translate_network import check_extra_hosts
from insula.api.wire.codec import convert
from insula.api.wire.host_config import Resources
from insula.build.options import BuildOptions, Client
from insula.errors import InvalidRequest, UnsupportedField
from insula.model.isolation import Isolation, parse_isolation

ISOLATION_ARG = "INSULA_ISOLATION"
"""The build argument that chooses the isolation of a build's RUNs: buildx has a flag for it, and drops it."""

_QUIET = frozenset(
    # about provenance and names, of which nothing is made here, and about BuildKit's own ways to do the same
    ("cmdline", "source", "frontend.caps", "hostname", "contextkey", "dockerfilekey", "filename", "context")
)
_NO_IMAGE = ("local", "tar")


@dataclass(frozen=True, slots=True, kw_only=True)
class Frontend:
    """What a frontend is asked for, besides BuildOptions.  `remote` is the context's address, "" for the
    client's directory.  `dockerfile_directory` is the client's directory that has the Dockerfile.  `contexts`
    are further directories of the client's, by name.  `sessions` are those that have a directory, where that
    is not the build's own.  `inputs` are names of images, and under which other name each was
    given."""

    dockerfile: str
    remote: str
    context_directory: str
    dockerfile_directory: str
    contexts: Mapping[str, str]
    sessions: Mapping[str, str]
    inputs: Mapping[str, str]
    options: BuildOptions
    unknown: tuple[str, ...]


def parse_frontend(
    attributes: Mapping[str, str], *, client: Client, default: Isolation, imports: Sequence[Any] = ()
) -> Frontend:
    """Raises InvalidRequest, UnsupportedField."""
    if request := attributes.get("requestid", ""):
        raise UnsupportedField(
            request, "is a question to BuildKit's own frontend", hint="build without --call and --check"
        )
    args = _prefixed(attributes, "build-arg:")
    contexts, renamed, inputs = _contexts(attributes)
    platform = attributes.get("platform", "")
    if "," in platform:
        raise UnsupportedField("platform", "one platform for a build", hint="build for each by itself")
    for name, value in attributes.items():
        if name.startswith("attest:") and "disabled=true" not in value:
            raise UnsupportedField(name, "attestations are not made", hint="--provenance=false --sbom=false")
    no_cache = attributes.get("no-cache")
    stages = frozenset(filter(None, (no_cache or "").lower().split(",")))
    remote = attributes.get("context", "")
    return Frontend(
        dockerfile=attributes.get("filename", "") or "Dockerfile",
        remote=remote,
        context_directory=attributes.get("contextkey", "") or "context",
        dockerfile_directory=attributes.get("dockerfilekey", "") or ("dockerfile" if not remote else ""),
        contexts=contexts,
        sessions=_prefixed(attributes, "local-sessionid:"),
        inputs=inputs,
        options=BuildOptions(
            isolation=parse_isolation(args.get(ISOLATION_ARG, ""), default),
            target=attributes.get("target", ""),
            platform=platform,
            build_args=args,
            labels=_prefixed(attributes, "label:"),
            cache_from=_imports(attributes, imports),
            no_cache=no_cache is not None and not stages,
            no_cache_stages=stages,
            pull=attributes.get("image-resolve-mode", "") == "pull",
            network_mode=_network(attributes.get("force-network-mode", "")),
            extra_hosts=check_extra_hosts([t for t in attributes.get("add-hosts", "").split(",") if t]),
            limits=_limits(attributes),
            cgroup_parent=attributes.get("cgroup-parent", ""),
            client=client,
            renamed=renamed,
            force_remove=True,
            buildkit=True,
        ),
        unknown=tuple(sorted(name for name in attributes if not _is_known(name))),
    )


_READ = frozenset(
    {
        *("target", "platform", "multi-platform", "no-cache", "cache-from", "cache-imports", "requestid"),
        *("image-resolve-mode", "force-network-mode", "add-hosts", "shm-size", "ulimit", "cgroup-parent"),
    }
)
_PREFIXES = ("build-arg:", "label:", "context:", "attest:", "vcs:", "local-sessionid:", "input-metadata:")


def _is_known(name: str) -> bool:
    return name in _READ or name in _QUIET or name.startswith(_PREFIXES)


def _prefixed(attributes: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {name.removeprefix(prefix): value for name, value in attributes.items() if name.startswith(prefix)}


def _contexts(attributes: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """`--build-context`: directories of the client's, images to take for others, and results of other builds,
    by name."""
    directories, images, inputs = {}, {}, {}
    for name, value in _prefixed(attributes, "context:").items():
        kind, colon, rest = value.partition(":")
        if colon and kind == "local":
            directories[name.lower()] = rest
        elif colon and kind == "docker-image":
            images[name] = rest.removeprefix("//")
        elif colon and kind == "input":
            inputs[name] = rest
        else:
            raise UnsupportedField(
                f"build context {name}",
                f"{value.partition('@')[0][:64]!r} is neither a directory nor docker-image://",
                hint="a directory, or docker-image://NAME",
            )
    return directories, images, inputs


def _network(mode: str) -> str:
    if mode not in ("", "default", "none", "host", "sandbox"):
        raise UnsupportedField("force-network-mode", f"{mode!r} is none of default, none and host")
    return {"sandbox": "", "default": ""}.get(mode, mode)


def _limits(attributes: Mapping[str, str]) -> Any:
    ulimits = []
    for text in filter(None, attributes.get("ulimit", "").split(",")):
        name, _, values = text.partition("=")
        soft, _, hard = values.partition(":")
        ulimits.append(
            {"Name": name, "Soft": _number("ulimit", soft), "Hard": _number("ulimit", hard or soft)}
        )
    resources = convert({"Ulimits": ulimits}, Resources)
    return parse_limits(resources, shm_size=_number("shm-size", attributes.get("shm-size", "") or "0"))


def _number(name: str, text: str) -> int:
    try:
        return int(text[:20])
    except ValueError:
        raise InvalidRequest(f"invalid value for {name}: {text[:64]!r} is not a number") from None


def _imports(attributes: Mapping[str, str], imports: Sequence[Any]) -> tuple[str, ...]:
    """`--cache-from`: images.  Raises UnsupportedField for other kinds of caches."""
    found = [text for text in attributes.get("cache-from", "").split(",") if text]
    entries = [(entry.type, dict(entry.attrs)) for entry in imports]
    if text := attributes.get("cache-imports", ""):
        try:
            entries += [(entry["Type"], entry.get("Attrs") or {}) for entry in json.loads(text) or ()]
        except (ValueError, TypeError, KeyError, AttributeError):
            raise InvalidRequest("cache-imports: not a list of caches") from None
    for kind, attrs in entries:
        if kind != "registry":
            raise UnsupportedField(
                "cache-from", f"type={kind} is not supported", hint="an image: type=registry,ref=…"
            )
        found.append(str(attrs.get("ref", "")))
    return tuple(dict.fromkeys(filter(None, found)))


def image_names(exporter: str, attributes: Mapping[str, str]) -> tuple[str, ...]:
    """The names that an exporter is to give to the image.  Raises InvalidReference."""
    if exporter in _NO_IMAGE:
        return ()
    return check_tags(text.strip() for text in attributes.get("name", "").split(","))
