"""A program that uses testcontainers, run by test_testcontainers.py in the daemon's network namespace.

Its arguments: an image with busybox, and an image with PostgreSQL or nothing.
"""

from __future__ import annotations

import sys
import urllib.request
import warnings

from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network
from testcontainers.core.waiting_utils import wait_for_logs

# both are the older names, which all versions have
warnings.simplefilter("ignore", DeprecationWarning)
from testcontainers.postgres import PostgresContainer  # noqa: E402

_SERVE = "sh -c 'mkdir /www; echo hello >/www/it; echo ready; exec httpd -f -p 80 -h /www'"
_POSTGRES = (
    """bash -ec 'initdb --no-locale -E UTF8 -A trust -N -U "$POSTGRES_USER"; """
    """echo "create database x" | postgres --single postgres; exec postgres -k /tmp'"""
)
_PATHS = {"PATH": "/usr/lib/postgresql/15/bin:/usr/bin:/bin", "PGDATA": "/var/lib/postgresql/data"}


def main(image: str, postgres: str) -> None:
    with Network() as network:
        server = DockerContainer(image).with_command(_SERVE).with_exposed_ports(80).with_env("COLOUR", "red")
        with server.with_network(network).with_network_aliases("www") as one:
            wait_for_logs(one, "ready", timeout=60)
            address = f"http://{one.get_container_host_ip()}:{one.get_exposed_port(80)}/it"
            print(urllib.request.urlopen(address).read().decode(), end="")
            print(one.exec("sh -c 'echo $COLOUR'").output.decode(), end="")
            asking = DockerContainer(image).with_command("sh -c 'wget -qO- http://www/it; exec sleep 1000'")
            with asking.with_network(network) as other:
                wait_for_logs(other, "hello", timeout=60)
    if postgres:
        database = PostgresContainer(postgres, dbname="x").with_command(_POSTGRES).with_envs(**_PATHS)
        with database.with_kwargs(user="postgres") as one:
            print(one.get_connection_url().partition("@")[0])


main(*sys.argv[1:])
