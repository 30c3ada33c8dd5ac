"""What differs between the versions of the API, 1.40 to 1.47: fields of answers that came and went, and what
a request may say.  Every field and parameter of each version is known, or is in a table with the reason."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import json
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from api_wire import ask
from contract.schema import VERSIONS, published, strangers
from contract.test_api_routes import absent_as
from fake_house import House, start_house
from insula.api.routes.table import ROUTES
from insula.api.routing import Router
from insula.api.versions import NEWEST, Version, text_of
from insula.api.wire.codec import _shape
from insula.api.wire.container import ExecConfig, ExecStartConfig
from insula.api.wire.container_config import ContainerConfig, ContainerCreateRequest
from insula.api.wire.host_config import UpdateConfig
from insula.api.wire.network import NetworkConnectRequest, NetworkCreateRequest, NetworkDisconnectRequest
from insula.api.wire.registry import AuthConfig
from insula.api.wire.volume import VolumeCreateOptions
from integration.images.fake_registry import make_tar

pytestmark = pytest.mark.timeout(60)

TAR = "Content-Type: application/x-tar\r\n"

# shown also to versions that do not describe them yet
EARLY = {
    # by moby, too
    "SystemInfo.CgroupVersion": (1, 41),
    "SystemInfo.OSVersion": (1, 41),
    "SystemInfo.CDISpecDirs": (1, 44),
    "EndpointSettings.DNSNames": (1, 44),
    "HostConfig.CgroupnsMode": (1, 41),
    "HostConfig.Annotations": (1, 43),
    "Network.ConfigFrom": (1, 41),
    "Network.ConfigOnly": (1, 41),
    # ours
    "/containers/{id}/json.Insula": (9, 0),
    "ContainerSummary.HostConfig.Isolation": (9, 0),
}
# shown longer than they are described
LATE = {"ImageInspect.ContainerConfig": (1, 45)}  # docker-compose 1 needs it
# and never described, but shown by moby until
NEVER = {"/system/df.BuilderSize": (1, 42)}

BODIES: dict[str, type] = {
    "POST /auth": AuthConfig,
    "POST /commit": ContainerConfig,
    "POST /containers/create": ContainerCreateRequest,
    "POST /containers/{id}/exec": ExecConfig,
    "POST /containers/{id}/update": UpdateConfig,
    "POST /exec/{id}/start": ExecStartConfig,
    "POST /networks/create": NetworkCreateRequest,
    "POST /networks/{id}/connect": NetworkConnectRequest,
    "POST /networks/{id}/disconnect": NetworkDisconnectRequest,
    "POST /volumes/create": VolumeCreateOptions,
}
# parameters that say nothing here
UNREAD = {
    ("GET /images/json", "digests"),  # they are always shown, as by moby
    ("GET /networks/{id}", "verbose"),  # of swarm networks
    ("POST /build", "Content-type"),  # the archive itself tells what it is
    ("POST /containers/{id}/start", "detachKeys"),  # nothing is attached; moby does not read it either
    ("GET /plugins", "filters"),  # of none
    ("DELETE /plugins/{name}", "force"),
    ("PUT /volumes/{name}", "version"),
}
# fields of bodies likewise; a warning says so
UNKNOWN = {
    "POST /containers/create HostConfig.Capabilities": (1, 40),  # moby took it back in 1.41
    "POST /containers/{id}/update Init": NEWEST,  # of the description only: moby has it for create
}
# no JSON in them
OTHER_BODIES = {"PUT /volumes/{name}", "POST /images/create"}


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with start_house(tmp_path) as started:
        yield started


async def test_answers_have_what_their_version_describes(house: House) -> None:
    await house.ok("network", "create", "lan")
    await house.ok(
        *("run", "-d", "--name", "one", "--network", "lan", "--annotation", "a=b", "-p", "80"),
        *("-v", "named:/n", "busybox", "sleep", "1000"),
    )
    made = json.loads((await ask(house, "POST", "/containers/one/exec", {"Cmd": ["true"]}))[2])["Id"]
    for version in VERSIONS:
        seen: set[str] = set()
        for page in (
            "/info", "/version", "/containers/json", "/containers/one/json", "/containers/one/top",
            "/containers/one/changes", "/containers/one/stats?stream=0&one-shot=1", f"/exec/{made}/json",
            "/images/json", "/images/busybox/json", "/images/busybox/history", "/system/df", "/networks",
            "/networks/lan", "/volumes", "/volumes/named",
        ):  # fmt: skip
            target = f"/v{text_of(version)}{page}"
            status, _, answer = await ask(house, "GET", target)  # which holds it against the schema
            assert 200 == status, target
            seen |= strangers("GET", target, 200, answer)
        expected = {name for name, since in EARLY.items() if version < since}
        expected |= {name for name, until in LATE.items() if version >= until}
        expected |= {name for name, until in NEVER.items() if version < until}
        assert expected == seen, version


async def test_what_older_versions_show(house: House) -> None:
    await house.ok("network", "create", "lan")
    await house.ok(
        "create",
        "--name",
        "one",
        "--network",
        "lan",
        "--network-alias",
        "web",
        "--annotation",
        "a=b",
        "busybox",
    )

    async def get(version: Version, page: str) -> Any:
        return json.loads((await ask(house, "GET", f"/v{text_of(version)}{page}"))[2])

    for version in VERSIONS:
        image, (listed, *_) = await get(version, "/images/busybox/json"), await get(version, "/images/json")
        for found in (image, listed, (await get(version, "/system/df"))["Images"][0]):
            assert (
                (version < (1, 44)) == ("VirtualSize" in found) == (found.get("VirtualSize") == found["Size"])
            )
        assert (version < (1, 45)) == ("Container" in image)
        runtimes = (await get(version, "/info"))["Runtimes"].values()
        assert {version >= (1, 44)} == {"status" in runtime for runtime in runtimes}
        inspected = await get(version, "/containers/one/json")
        assert (version < (1, 42)) == ("KernelMemory" in inspected["HostConfig"])
        for config in (inspected["Config"], image["Config"], image["ContainerConfig"]):
            assert set() == {"Healthcheck", "MacAddress", "Shell", "StopSignal", "StopTimeout"}.intersection(
                config
            )
        assert set() == {"Init", "Mounts", "StorageOpt", "Sysctls", "Tmpfs"}.intersection(
            inspected["HostConfig"]
        )
        short, lan = inspected["Id"][:12], inspected["NetworkSettings"]["Networks"]["lan"]
        assert (["web", short] if version < (1, 45) else ["web"]) == lan["Aliases"]
        (summary,) = await get(version, "/containers/json?all=1")
        annotations = {"a": "b"} if version >= (1, 46) else None
        assert annotations == summary["HostConfig"].get("Annotations")
        assert (version < (1, 42)) == ("BuilderSize" in await get(version, "/system/df?type=image"))
        assert (version < (1, 42)) == ("Volumes" in await get(version, "/system/df?type=image"))
        shared = (await get(version, "/images/json?shared-size=1"))[0]["SharedSize"]
        assert (version < (1, 42)) == (shared == -1)


async def test_what_older_versions_ask(house: House) -> None:
    async def names(version: str, query: str) -> list[str]:
        answer = (await ask(house, "GET", f"/{version}/images/json?all=1&{query}"))[2]
        return [name for image in json.loads(answer) for name in image["RepoTags"]]

    assert ([], ["busybox:latest"]) == (await names("v1.40", "filter=x"), await names("v1.41", "filter=x"))
    assert ["busybox:latest"] == await names("v1.40", "filter=busybox")
    made = (await ask(house, "POST", "/images/create?fromSrc=-", make_tar({"f": b"x"}), TAR))[0]
    assert 200 == made
    assert {"busybox:latest", "<none>:<none>"} == set(await names("v1.42", ""))
    assert ["busybox:latest"] == await names("v1.43", "")
    platform = quote('{"os":"linux","architecture":"s390x"}')
    # as dockerd: to where, and then why not; a platform means nothing to older ones
    status, _, answer = await ask(house, "POST", f"/v1.45/images/busybox/push?tag=none&platform={platform}")
    assert 200 == status
    assert b"The push refers to repository [docker.io/library/busybox]" in answer
    assert b"tag: busybox" in answer
    status, _, answer = await ask(house, "POST", f"/v1.46/images/busybox/push?tag=latest&platform={platform}")
    assert (404, True) == (status, "specified platform (linux/s390x)" in json.loads(answer)["message"])


class _Fields:
    """What a description of a body has that a wire struct has not."""

    def __init__(self, definitions: dict[str, Any]) -> None:
        self._definitions = definitions

    def missing(self, schema: dict[str, Any], kind: Any, where: str = "") -> Iterator[str]:
        schema = self._whole(schema)
        shape, child = _shape(kind)
        if shape is list:
            yield from self.missing(schema.get("items", {}), child, where)
        elif shape is dict:
            yield from self.missing(schema.get("additionalProperties", {}), child, where)
        elif shape is not None:
            fields = child[0]
            for name, body in schema.get("properties", {}).items():
                if name in fields:
                    yield from self.missing(body, fields[name], f"{where}{name}.")
                else:
                    yield f"{where}{name}"

    def _whole(self, schema: Any) -> dict[str, Any]:
        if not isinstance(schema, dict):
            return {}
        if "$ref" in schema:
            return self._whole(self._definitions[schema["$ref"].rpartition("/")[2]])
        found = dict(schema)
        for part in schema.get("allOf", ()):
            found["properties"] = {**found.get("properties", {}), **self._whole(part).get("properties", {})}
        return found


def operations(version: Version) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in published(version)["requests"].items():
        for method, operation in methods.items():
            page = f"{method.upper()} {path}"
            if absent_as(page) is None:
                yield page, operation


@pytest.mark.parametrize("version", VERSIONS)
def test_every_field_of_a_body_is_known(version: Version) -> None:
    fields = _Fields(published(version)["definitions"])
    missing = set()
    for page, operation in operations(version):
        for parameter in operation["parameters"]:
            if parameter["in"] != "body" or parameter["schema"].get("format") == "binary":
                continue
            if page not in OTHER_BODIES:
                found = fields.missing(parameter["schema"], BODIES[page])
                missing |= {f"{page} {name}" for name in found}
    assert {name for name, until in UNKNOWN.items() if version <= until} == missing


@functools.cache
def _functions(module: str) -> dict[str, ast.AST]:
    tree = ast.parse(Path(sys.modules[module].__file__ or "").read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name: node for node in ast.walk(tree) if isinstance(node, kinds)}


@functools.cache
def _own_words(function: Any) -> tuple[frozenset[str], frozenset[Any]]:
    """Constants in a function of the API's (`filters` for `call.filters()`), and which others it names."""
    words, named = set(), set()
    for node in ast.walk(_functions(function.__module__)[function.__name__]):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            words.add(node.value)
        elif isinstance(node, ast.Attribute) and node.attr == "filters":
            words.add("filters")
        elif isinstance(node, ast.ImportFrom):  # of what is loaded when it is needed
            module = importlib.import_module(str(node.module))
            named |= {f for name in node.names if inspect.isfunction(f := getattr(module, name.name))}
        elif isinstance(node, ast.Name):
            found = function.__globals__.get(node.id)
            words |= {word for word in _flat(found) if isinstance(word, str)}
            if inspect.isfunction(found):
                named.add(found)
    own = {each for each in named if each.__module__.startswith("insula.api")}
    return frozenset(words), frozenset(own)


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = (*value, *value.values())
    if isinstance(value, tuple | list):
        for each in value:
            yield from _flat(each)
    else:
        yield value


def _words(function: Any) -> set[str]:
    found: set[str] = set()
    seen, waiting = {function}, [function]
    while waiting:
        words, named = _own_words(waiting.pop())
        found |= words
        waiting += named - seen
        seen |= named
    return found


def test_every_parameter_is_read() -> None:
    router = Router(ROUTES)
    asked = {
        (page, parameter["name"])
        for version in VERSIONS
        for page, operation in operations(version)
        for parameter in operation["parameters"]
        if parameter["in"] in ("query", "header")
    }
    unread = set()
    for page, name in asked:
        found = router.find(*page.replace("{", "").replace("}", "").split(" "))
        assert found is not None, page
        if name not in _words(found[0].handler):
            unread.add((page, name))
    assert UNREAD == unread
