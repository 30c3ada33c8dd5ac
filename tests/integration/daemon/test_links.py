"""Legacy links on the default bridge: hosts file, environment, and what follows the other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rig import IMAGE, Daemon, isolated

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def database(daemon: Daemon) -> Iterator[str]:
    name = "link-db"
    words = ("run", "-d", "--name", name, "--hostname", "dbhost", "-e", "WHO=db", "--expose", "5432-5433")
    daemon.ok(*words, IMAGE, "sleep", "1000")
    yield name
    daemon.ok("rm", "-f", name)


def address(daemon: Daemon, name: str) -> str:
    return str(daemon.inspect(name)["NetworkSettings"]["IPAddress"])


def test_a_link_is_in_the_hosts_file_and_the_environment(
    daemon: Daemon, database: str, isolation: str, name: str
) -> None:
    words = ("run", "-d", "--name", name, "--link", f"{database}:my-db", "-e", "MY_DB_ENV_WHO=me")
    daemon.ok(*isolated(isolation, *words, IMAGE, "sleep", "1000"))
    try:
        there = address(daemon, database)
        assert daemon.inspect(name)["HostConfig"]["Links"] == [f"/{database}:/{name}/my-db"]
        names = daemon.client.get("/containers/json")
        assert [f"/{database}", f"/{name}/my-db"] in [entry["Names"] for entry in names]
        said = daemon.shell(name, "ping -c 1 my-db >/dev/null && env; cat /etc/hosts").splitlines()
        for line in (
            f"MY_DB_PORT=tcp://{there}:5432",
            f"MY_DB_PORT_5433_TCP_ADDR={there}",
            "MY_DB_PORT_5432_TCP_PORT_END=5433",
            f"MY_DB_NAME=/{name}/my-db",
            "MY_DB_ENV_WHO=me",  # what it is told itself goes first
            f"{there}\tmy-db dbhost {database}",
        ):
            assert line in said
        with_another = address(daemon, name)  # so that the other gets a new address
        daemon.ok("stop", "-t", "0", database)
        daemon.ok("start", database)
        fresh = address(daemon, database)
        assert fresh not in (there, with_another)
        hosts = daemon.shell(name, "cat /etc/hosts").splitlines()
        assert f"{fresh}\tmy-db dbhost {database}" in hosts
        assert not any(line.startswith(f"{there}\t") for line in hosts)
        assert 1 == daemon.insula("rm", "--link", f"{name}/nobody").returncode
        assert 0 == daemon.insula("rm", "--link", f"{name}/my-db").returncode
        assert "my-db" not in daemon.shell(name, "cat /etc/hosts")
        assert daemon.inspect(name)["HostConfig"]["Links"] is None
    finally:
        daemon.ok("rm", "-f", name)


def test_who_is_linked_must_exist_and_run(daemon: Daemon, name: str) -> None:
    done = daemon.docker("create", "--link", "nobody", IMAGE, "true")
    assert b"could not get container for nobody: No such container: nobody" in done.stderr
    daemon.ok("create", "--name", name, IMAGE, "true")
    done = daemon.docker("run", "--rm", "--link", f"{name}:it", IMAGE, "true")
    assert f"Cannot link to a non running container: /{name} AS /".encode() in done.stderr
    daemon.ok("rm", name)
