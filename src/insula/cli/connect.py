"""Finding the daemon, and starting it when there is none and we may.

TLS is docker's: the same options and variables (DOCKER_TLS_VERIFY, DOCKER_CERT_PATH), files and contexts; the
address is insula's own (`--host`, INSULA_HOST, `--context`, INSULA_CONTEXT): docker's may be another engine.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import cached_property
from typing import TYPE_CHECKING

import click

from insula.client import Client
from insula.config import DEFAULT_SOCKET
from insula.errors import DaemonUnreachable

if TYPE_CHECKING:
    from insula.tls import ClientFiles

_START_LIMIT_S = 30.0


class Connection:
    """What the options and variables say; connects when a command first asks for `client`."""

    def __init__(self, host: str | None, tls: ClientFiles | None = None) -> None:
        self.host = host
        self.tls = tls

    @cached_property
    def client(self) -> Client:
        """A client of a daemon that answers, started if need be.  Raises DaemonUnreachable."""
        client = Client(self.host or f"unix://{DEFAULT_SOCKET}", tls=self.tls)
        may_start = self.host is None and os.geteuid() == 0
        if may_start and not (os.path.exists(DEFAULT_SOCKET) and client.reachable()):
            start_daemon(client)
        return client


def start_daemon(client: Client) -> None:
    """Start `insula daemon` in the background with its defaults, and wait until it answers.  Raises
    DaemonUnreachable."""
    log_path = "/var/log/insula.log"
    with open(log_path, "ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "insula.cli", "daemon"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
        )
    print(f"insula: started the daemon (pid {child.pid}, log in {log_path})", file=sys.stderr)
    limit = time.monotonic() + _START_LIMIT_S
    while not client.reachable():
        if child.poll() is not None or time.monotonic() > limit:
            raise DaemonUnreachable("the daemon did not start", hint=f"its log is in {log_path}")
        time.sleep(0.02)


def pass_client(ctx: click.Context) -> Client:
    """The client of the running command."""
    connection = ctx.find_object(Connection)
    assert connection is not None
    return connection.client
