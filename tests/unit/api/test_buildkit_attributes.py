"""A frontend's attributes: what each asks of a build, and what is refused by its name."""

from __future__ import annotations

from typing import Any

import pytest

from insula.api.buildkit import wire_pb2 as wire
from insula.api.buildkit.attributes import Frontend, image_names, parse_frontend
from insula.build.options import AllAtOnce
from insula.errors import InsulaError, InvalidReference
from insula.model.isolation import Isolation


def parse(attributes: dict[str, str], imports: Any = ()) -> Frontend:
    return parse_frontend(attributes, client=AllAtOnce(), default=Isolation.PROCESS, imports=imports)


def test_nothing_is_a_dockerfile_and_a_directory_of_the_clients() -> None:
    found = parse({})
    assert ("Dockerfile", "", "context", "dockerfile") == (
        found.dockerfile,
        found.remote,
        found.context_directory,
        found.dockerfile_directory,
    )
    options = found.options
    assert (Isolation.PROCESS, True, False, False, True) == (
        options.isolation,
        options.buildkit,
        options.no_cache,
        options.pull,
        options.force_remove,
    )


def test_every_attribute_of_buildx() -> None:
    attributes = {
        "filename": "sub.Dockerfile", "target": "app", "platform": "linux/amd64", "no-cache": "A,b",
        "build-arg:X": "1", "build-arg:INSULA_ISOLATION": "vm", "label:a.b": "c",
        "image-resolve-mode": "pull",
        "force-network-mode": "none", "add-hosts": "a=1.2.3.4,b=::1", "shm-size": "1048576",
        "ulimit": "nofile=10:20,nproc=5", "cgroup-parent": "/x", "context:other": "local:other-dir",
        "context:base": "docker-image://busybox:1", "context:c": "input:d",
        "local-sessionid:context": "s2", "vcs:source": "x",
        "cache-from": "img:1", "cache-imports": '[{"Type":"registry","Attrs":{"ref":"img:2"}}]',
        "attest:provenance": "mode=min,disabled=true", "frontend.caps": "moby.buildkit.x+forward",
    }  # fmt: skip
    imports = [wire.CacheOptionsEntry(type="registry", attrs={"ref": "img:3"})]
    found = parse(attributes, imports)
    options = found.options
    assert () == found.unknown
    assert ("sub.Dockerfile", {"other": "other-dir"}, {"context": "s2"}) == (
        found.dockerfile,
        found.contexts,
        found.sessions,
    )
    assert ("app", "linux/amd64", Isolation.VM) == (options.target, options.platform, options.isolation)
    assert (False, frozenset({"a", "b"})) == (options.no_cache, options.no_cache_stages)
    assert ({"X": "1", "INSULA_ISOLATION": "vm"}, {"a.b": "c"}) == (options.build_args, options.labels)
    assert (True, "none", ("a:1.2.3.4", "b:::1")) == (options.pull, options.network_mode, options.extra_hosts)
    assert 1 << 20 == options.limits.shm_size_bytes
    assert [("nofile", 10, 20), ("nproc", 5, 5)] == [(u.name, u.soft, u.hard) for u in options.limits.ulimits]
    assert ("/x", {"base": "busybox:1"}) == (options.cgroup_parent, options.renamed)
    assert {"c": "d"} == found.inputs
    assert {"img:1", "img:2", "img:3"} == set(options.cache_from)


def test_a_context_that_is_elsewhere_has_its_own_dockerfile_unless_one_is_given() -> None:
    assert "" == parse({"context": "https://x/y.git"}).dockerfile_directory
    given = parse({"context": "https://x/y.git", "dockerfilekey": "dockerfile"})
    assert ("dockerfile", "https://x/y.git") == (given.dockerfile_directory, given.remote)


def test_what_is_not_known_is_told_of() -> None:
    assert ("quantum",) == parse({"quantum": "yes", "no-cache": ""}).unknown
    assert parse({"no-cache": ""}).options.no_cache


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"requestid": "frontend.lint"}, "frontend.lint"),
        ({"platform": "linux/amd64,linux/arm64"}, "platform"),
        ({"attest:sbom": ""}, "attest:sbom"),
        ({"context:x": "target:y"}, "build context x"),
        ({"context:x": "oci-layout://y@sha256:0"}, "build context x"),
        ({"force-network-mode": "bridge2"}, "force-network-mode"),
        ({"ulimit": "nofile=many"}, "ulimit"),
        ({"shm-size": "big"}, "shm-size"),
        ({"add-hosts": "a=b"}, "add-host"),
        ({"cache-imports": '[{"Type":"gha"}]'}, "cache-from"),
        ({"cache-imports": "[3]"}, "cache-imports"),
        ({"build-arg:INSULA_ISOLATION": "jail"}, "isolation"),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(attributes: dict[str, str], words: str) -> None:
    with pytest.raises(InsulaError, match=words):
        parse(attributes)


def test_names_of_an_image() -> None:
    assert ("a:latest", "b:1") == image_names("moby", {"name": "a,docker.io/library/b:1,a:latest"})
    assert () == image_names("local", {"name": "a"})
    with pytest.raises(InvalidReference):
        image_names("image", {"name": "a@sha256:" + "0" * 64})
