"""A connection to a daemon on another machine, through ssh and `insula system dial-stdio` there.

For the client.  As docker's does it: a program `ssh` for each connection, with the user's own configuration,
keys and agent, in a session of its own, so that a Ctrl-C in the terminal does not end it.  Sync.
"""

from __future__ import annotations

import shlex
import socket
import subprocess
import threading
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote

from insula.errors import DaemonUnreachable, InvalidRequest

_CONNECT_LIMIT_S = 30


@dataclass(frozen=True, slots=True)
class SshTarget:
    """`path`: of the daemon's socket there; without it, the one that insula there uses by itself."""

    host: str
    user: str = ""
    port: int = 0
    path: str = ""


def target_of(parts: SplitResult) -> SshTarget:
    """Of `ssh://[user@]host[:port][/path]`.  Raises InvalidRequest."""
    problem = ""
    try:
        port = parts.port or 0
    except ValueError:
        port, problem = 0, "its port is no number up to 65535"
    if not parts.hostname:
        problem = "it names no host"
    elif parts.password is not None:
        problem = "passwords are not taken here: use a key, or ssh's agent"
    elif parts.query or parts.fragment:
        problem = "nothing may come after the path"
    if problem:
        raise InvalidRequest(f"--host: {problem}", hint="ssh://user@host, with :port and /path if need be")
    path = unquote(parts.path)
    return SshTarget(parts.hostname or "", unquote(parts.username or ""), port, path if path != "/" else "")


def finalize_argv(target: SshTarget) -> list[str]:
    argv = ["ssh", "-T", "-o", f"ConnectTimeout={_CONNECT_LIMIT_S}"]
    if target.user:
        argv += ["-l", target.user]
    if target.port:
        argv += ["-p", str(target.port)]
    argv += ["--", target.host, "insula"]
    if target.path:
        argv += ["--host", shlex.quote(f"unix://{target.path}")]  # a shell there reads it
    return [*argv, "system", "dial-stdio"]


def open_connection(target: SshTarget) -> socket.socket:
    """Connected when ssh is; until then, what is sent waits.  What ssh has to say it says on our stderr.

    Raises DaemonUnreachable when there is no ssh.
    """
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            child = subprocess.Popen(
                finalize_argv(target), stdin=theirs.fileno(), stdout=theirs.fileno(), start_new_session=True
            )
    except FileNotFoundError:
        ours.close()
        raise DaemonUnreachable("there is no ssh here", hint="apt-get install openssh-client") from None
    threading.Thread(target=child.wait, daemon=True).start()  # it ends with the connection
    return ours
